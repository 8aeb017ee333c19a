"""Every kernel as Triton compiles it for a GPU, against the plain form.

The checks are those of the tests of each operation, with their tolerances. The kernels are not run by Triton's
interpreter. They are compiled for the launch that a GPU would get, and their PTX is executed (`launch.py`). The tensors
are small, but the launch shapes are those of `vologan_kernels.launch`, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import test_adversarial_loss
import test_instance_norm
import test_nadam
import test_pixel_loss
import test_spectral_norm
import torch

pytest.importorskip("triton")
from ptx.launch import entry_kernels, launches_executed
from vologan_kernels import ACTIVATIONS, launch
from vologan_kernels.adversarial_loss import KINDS
from vologan_kernels.instance_norm import kernels as instance_norm

from vologan_fast.data.loaders import resident_triton
from vologan_fast.data.loaders.resident import Images, pack_plain

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@dataclass(frozen=True)
class Case:
    name: str
    kernels: tuple[str, ...]
    """Kernels that it must launch."""
    check: Callable[[], None]
    slow: bool = False
    arch: int = 90


# ---- instance norm --------------------------------------------------------------------------------------------------

SINGLE = "single_fwd_kernel", "single_bwd_kernel"
STREAMED_FORWARD = "statistics_kernel", "apply_fwd_kernel"
STREAMED_BACKWARD = "sums_kernel", "apply_bwd_kernel"
STREAMED = STREAMED_FORWARD + STREAMED_BACKWARD
PERSISTENT = "persistent_fwd_kernel", "persistent_bwd_kernel"


def norm(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
    kernels: tuple[str, ...],
    *,
    slow: bool = False,
    arch: int = 90,
    **options: Any,
) -> Case:
    """A layer; `options` are those of `test_instance_norm.Case`."""

    def check() -> None:
        x = test_instance_norm.randn(*shape, dtype=dtype)
        case = test_instance_norm.Case(x.contiguous(memory_format=test_instance_norm.LAYOUTS[layout]), **options)
        with pytest.MonkeyPatch.context() as patch:
            if kernels != SINGLE:  # also planes that would fit one program, because larger ones take long
                patch.setattr(launch, "SINGLE_FORWARD", 0)
                patch.setattr(launch, "SINGLE_BACKWARD", 0)
            if kernels == PERSISTENT:  # few programs, which go several rounds
                patch.setattr(launch, "ONE_LAUNCH", True)
                patch.setattr(launch, "CACHED", 2**19)
                patch.setattr(instance_norm, "multiprocessors", lambda device: 2)
            case.check("triton")

    words = [f"{name}={value}" if value is not True else name for name, value in options.items()]
    name = ", ".join(["norm", str(shape), str(dtype).removeprefix("torch."), layout, *words, f"sm_{arch}"])
    adds = ("add_samples_kernel",) if kernels in (SINGLE, PERSISTENT) and shape[0] > 1 else ()
    return Case(name, kernels + adds, check, slow, arch)


CL, NCHW = "channels_last", "contiguous"
NORMS = [
    # A plane in one program: every activation, type, layout and padding.
    norm((2, 5, 9, 7), BF16, CL, SINGLE, activation="leaky_relu", from_output=True, min_scale=2**-6),
    norm((2, 5, 9, 7), BF16, CL, SINGLE, activation="leaky_relu", residual=True, arch=80),
    norm((2, 19, 8, 8), FP32, NCHW, SINGLE, activation="relu", affine=False),
    norm((1, 16, 12, 10), FP16, CL, SINGLE, activation="identity", residual=True),
    norm((2, 12, 11, 5), FP32, CL, SINGLE, activation="prelu", residual=True),
    norm((1, 3, 16, 16), FP64, NCHW, SINGLE, activation="silu"),
    norm((2, 3, 17, 13), BF16, NCHW, SINGLE, activation="gelu", residual=True),
    norm((1, 9, 6, 5), FP32, CL, SINGLE, activation="elu", pad=1),
    norm((1, 4, 8, 9), FP16, NCHW, SINGLE, activation="tanh", pad=3, residual=True),
    norm((1, 6, 7, 10), BF16, CL, SINGLE, activation="identity", pad=2, from_output=True, min_scale=0.25),
    norm((1, 4, 5, 4), FP64, CL, SINGLE, activation="gelu", pad=1),
    norm((3, 7, 1, 1), BF16, CL, SINGLE),
    norm((2, 3, 1, 9), FP32, NCHW, SINGLE, activation="silu"),
    norm((0, 2, 4, 4), BF16, CL, ()),
    # Planes that are cut into parts.
    norm((1, 48, 48, 45), BF16, CL, STREAMED, activation="leaky_relu", from_output=True, min_scale=2**-6),
    norm((1, 48, 48, 45), BF16, CL, STREAMED, activation="leaky_relu", from_output=True, min_scale=2**-6, arch=80),
    norm((2, 64, 50, 44), BF16, CL, STREAMED, activation="relu", residual=True, affine=False, pad=1),
    norm((1, 20, 67, 65), FP32, CL, STREAMED, activation="prelu", residual=True),
    norm((1, 2, 183, 181), FP32, NCHW, STREAMED, activation="gelu"),
    norm((1, 1, 190, 175), BF16, NCHW, STREAMED, activation="leaky_relu", from_output=True, min_scale=2**-6, pad=3),
    norm((1, 12, 50, 45), FP16, CL, STREAMED, activation="silu"),
    norm((1, 32, 51, 43), BF16, CL, STREAMED, activation="identity", residual=True),
    norm((1, 3, 97, 87), FP64, CL, STREAMED, activation="elu"),
    norm((2, 80, 47, 46), FP16, CL, STREAMED, activation="tanh", affine=False),
    # The same in one launch.
    norm((3, 48, 48, 45), BF16, CL, PERSISTENT, activation="leaky_relu", from_output=True, min_scale=2**-6),
    norm((2, 64, 50, 44), BF16, CL, PERSISTENT, activation="relu", residual=True, affine=False, pad=1, arch=80),
    norm((1, 32, 67, 65), FP32, CL, PERSISTENT, activation="prelu", residual=True),
    norm((1, 5, 93, 91), BF16, NCHW, PERSISTENT, activation="gelu"),
]
SLOW_NORMS = [
    norm(shape, dtype, layout, kernels, activation=activation, residual=residual, pad=pad, slow=True, arch=arch)
    for shapes, kernels in (
        ({CL: (2, 11, 9, 8), NCHW: (2, 11, 9, 8)}, SINGLE),
        ({CL: (1, 17, 97, 87), NCHW: (1, 2, 184, 180)}, STREAMED),
    )
    for layout, shape in shapes.items()
    for dtype, arch, options in (
        (BF16, 80, (("identity", False, 0), ("relu", True, 1), ("leaky_relu", False, 3), ("gelu", True, 0))),
        (FP16, 90, (("prelu", True, 0), ("silu", False, 1), ("elu", False, 0), ("tanh", True, 2))),
        (FP32, 80, (("identity", True, 2), ("relu", False, 0), ("silu", True, 0), ("gelu", False, 1))),
        (FP64, 90, (("leaky_relu", True, 0), ("prelu", False, 1), ("elu", True, 3), ("tanh", False, 0))),
    )
    for activation, residual, pad in options
]


# ---- losses ---------------------------------------------------------------------------------------------------------

PIXELS = "pixel_loss_fwd_kernel", "pixel_loss_bwd_kernel"
LOGITS = "adversarial_fwd_kernel", "adversarial_bwd_kernel"


def pixels(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
    *,
    masked: bool = False,
    statistics: str = "image",
    slow: bool = False,
    arch: int = 90,
) -> Case:
    def check() -> None:
        pairs = test_pixel_loss.pairs_of(*shape, dtype=dtype, layout=test_pixel_loss.LAYOUTS[layout])
        n, c, *size = shape
        masks = [test_pixel_loss.rand(n, 1, *size, seed=9) > 0.3, None] if masked else None
        weight = [1.0 + i % 3 for i in range(c)]
        test_pixel_loss.check(pairs, masks=masks, statistics=statistics, channel_weight=weight)

    words = ["masked"] * masked + [statistics, f"sm_{arch}"]
    name = ", ".join(["pixel losses", str(shape), str(dtype).removeprefix("torch."), layout, *words])
    return Case(name, PIXELS, check, slow, arch)


def logits(kind: str, dtype: torch.dtype, *, slow: bool = False, arch: int = 90) -> Case:
    """Outputs of many sizes, one of them empty and one of several parts."""

    def check() -> None:
        shapes = [*test_adversarial_loss.SHAPES, (1, 3, 50, 47)]
        outputs = [test_adversarial_loss.randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
        roles = ["real", "fake", "generator", "fake", "real", "generator", "fake"]
        test_adversarial_loss.check(outputs, roles, kind, [*test_adversarial_loss.WEIGHTS, 0.5])

    return Case(
        f"adversarial losses, {kind}, {str(dtype).removeprefix('torch.')}, sm_{arch}", LOGITS, check, slow, arch
    )


LOSSES = [
    pixels((2, 4, 33, 31), FP32, CL, masked=True),
    pixels((2, 3, 40, 37), FP32, NCHW, statistics="batch"),
    pixels((1, 4, 64, 66), BF16, CL),
    pixels((2, 5, 7, 5), FP16, NCHW, masked=True),
    pixels((1, 1, 1, 1), FP32, NCHW),
    pixels((2, 4, 9, 7), FP64, CL, masked=True, statistics="batch"),
    pixels((1, 4, 33, 31), BF16, CL, masked=True, arch=80),
    *(
        logits(kind, dtype, arch=arch)
        for kind, dtype, arch in zip(KINDS, (BF16, FP32, FP16, FP64, BF16), (90, 90, 90, 90, 80), strict=True)
    ),
    *(
        pixels(shape, dtype, layout, masked=masked, statistics=statistics, slow=True, arch=arch)
        for shape in ((3, 1, 1, 5), (2, 4, 70, 61))
        for dtype, arch in ((BF16, 90), (FP16, 80), (FP32, 80), (FP64, 90))
        for layout, masked, statistics in ((CL, True, "image"), (NCHW, False, "batch"))
    ),
    *(logits(kind, dtype, slow=True, arch=80) for kind in KINDS for dtype in (FP32, FP16, FP64)),
]


# ---- spectral norm, NAdam, kept images ------------------------------------------------------------------------------

SPECTRAL = "rows_kernel", "normalise_kernel", "inner_kernel", "gradient_kernel"
NADAM = "coefficients_kernel", "update_kernel"


def spectral(dtype: torch.dtype, layout: str, iterates: bool, *, slow: bool = False, arch: int = 90) -> Case:
    def check() -> None:
        test_spectral_norm.test_kernels_agree_with_the_plain_form(None, dtype, layout, iterates)

    words = ["iterates"] * iterates + [f"sm_{arch}"]
    name = ", ".join(["spectral norm", str(dtype).removeprefix("torch."), layout, *words])
    return Case(name, (*SPECTRAL, "columns_kernel") if iterates else SPECTRAL, check, slow, arch)


def nadam(options: dict[str, Any], *, slow: bool = False) -> Case:
    def check() -> None:
        test_nadam.compare_with_torch("triton", options, steps=3)

    return Case(f"NAdam, {options}", NADAM, check, slow)


def nadam_of_halves(dtype: torch.dtype) -> Case:
    def check() -> None:
        test_nadam.test_half_precision_is_as_near_to_the_truth_as_torch("triton", dtype)

    return Case(f"NAdam, {dtype}", NADAM, check)


def kept_images(size: tuple[int, int], coded: bool, dtype: torch.dtype, *, slow: bool = False) -> Case:
    """A batch of kept images: both kinds of depth, flips and shifts, also out of the image."""

    def check() -> None:
        height, width = size
        numbers = torch.Generator().manual_seed(height)
        levels = torch.rand(65536, generator=numbers)
        levels[::3], levels[1::3] = -1, 0
        codes = torch.randint(0, 65536, (3, height, width), generator=numbers)
        color = torch.randint(0, 256, (3, height, width, 3), generator=numbers, dtype=torch.uint8)
        depth = codes.to(torch.uint16) if coded else levels[codes]
        images = Images(color, depth, levels if coded else None)
        rows = [(0, 0, 0, 0), (1, 1, 0, 0), (2, 1, 1, min(2, width)), (0, 0, height, 0), (1, 1, height - 1, width - 1)]
        draws = torch.tensor(rows, dtype=torch.int32)
        batch = torch.full((len(rows), height, width, 4), float("nan"), dtype=dtype)
        resident_triton.pack(images.color, images.depth, images.levels, draws, batch)
        assert torch.equal(batch, pack_plain(images, draws).to(dtype))

    kind = "codes" if coded else "float32"
    return Case(f"kept images {size}, {kind}, {str(dtype).removeprefix('torch.')}", ("pack_kernel",), check, slow)


OTHERS = [
    spectral(FP32, "contiguous", True),
    spectral(BF16, "channels_last", True),
    spectral(FP16, "transposed", False),
    spectral(FP64, "with gaps", True),
    spectral(BF16, "transposed channels_last", True, arch=80),
    nadam({"weight_decay": 0.1, "maximize": True}),
    nadam({"lr": torch.tensor(0.01)}),
    *map(nadam_of_halves, (BF16, FP16)),
    Case(
        "NAdam, float32", NADAM, lambda: test_nadam.test_float32_is_as_near_to_the_truth_as_torch("triton"), slow=True
    ),
    Case(
        "NAdam, other orders",
        NADAM,
        lambda: test_nadam.test_gradients_and_moments_may_lie_in_another_order("triton"),
    ),
    kept_images((33, 31), True, FP32),
    kept_images((24, 40), False, BF16),
    kept_images((1, 9), True, FP16),
    *(
        spectral(dtype, layout, iterates, slow=True, arch=arch)
        for dtype, arch in ((FP32, 80), (BF16, 90), (FP16, 80), (FP64, 90))
        for layout, iterates in zip(
            ("contiguous", "channels_last", "transposed", "transposed channels_last", "with gaps"),
            (False, False, True, False, True),
            strict=True,
        )
    ),
    *(nadam(options, slow=True) for options in test_nadam.OPTIONS),
]

CASES = NORMS + SLOW_NORMS + LOSSES + OTHERS


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow) for case in CASES]
)
def test_the_compiled_kernels_are_the_plain_form(case: Case) -> None:
    with launches_executed(seed=1, arch=case.arch) as launched:
        case.check()
    missing = set(case.kernels) - {one.kernel for one in launched}
    assert not missing, f"these kernels were not launched: {missing}"


def test_every_kernel_is_executed_by_default() -> None:
    """If this fails for a new kernel or activation, add a case that launches it."""
    covered = {kernel for case in CASES if not case.slow for kernel in case.kernels}
    assert covered == {name for _, name in entry_kernels()}
    for tier in (SINGLE, STREAMED):
        names = " ".join(case.name for case in NORMS if case.kernels[: len(tier)] == tier)
        assert all(f"activation={activation}" in names for activation in ACTIVATIONS)


@pytest.mark.parametrize("together", [1, 3])
def test_the_order_of_programs_changes_no_bit(together: int) -> None:
    """Also in the losses, where the program that comes last merges the parts of all."""
    found = []
    for seed in (3, 4):
        images = [test_pixel_loss.rand(1, 4, 40, 41, seed=i).requires_grad_(i == 0) for i in range(2)]
        outputs = [test_adversarial_loss.randn(2, 60, 61, seed=i).requires_grad_() for i in range(2)]
        with launches_executed(seed=seed, together=together) as launched:
            loss, metrics = test_pixel_loss.pixel_losses([tuple(images)], [(1, 1, 1)], impl="triton")
            other, means = test_adversarial_loss.adversarial_losses(outputs, ["real", "fake"], "bce", impl="triton")
            gradients = torch.autograd.grad(loss + other, [images[0], *outputs])
        assert len(launched) == 4 and all(one.programs > 3 for one in launched)
        found.append([loss, metrics, other, means, *gradients])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
