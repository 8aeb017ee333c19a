"""Kernels that are broken on purpose are caught, with a message that names the fault.

Each breaks the PTX of a right kernel, or the source of a copy of the kernels.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import test_adversarial_loss
import test_instance_norm
import torch

pytest.importorskip("triton")
from ptx.launch import launches_executed
from ptx.memory import Fault
from vologan_kernels import launch
from vologan_kernels.instance_norm import kernels as instance_norm


def norm(dtype: torch.dtype = torch.float32, shape: tuple[int, int, int, int] = (2, 5, 9, 7)) -> None:
    """A forward and a backward of a norm, and their comparison with the plain form."""
    x = test_instance_norm.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    test_instance_norm.Case(x).check("triton")


def streamed(one_launch: bool = False) -> None:
    """A norm of planes in several parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "SINGLE_FORWARD", 0)
        patch.setattr(launch, "SINGLE_BACKWARD", 0)
        patch.setattr(launch, "ONE_LAUNCH", one_launch)
        patch.setattr(launch, "CACHED", 2**19)
        patch.setattr(instance_norm, "multiprocessors", lambda device: 2)
        norm(torch.bfloat16, (3, 32, 32, 33))  # with 16-byte copies


def in_one_launch() -> None:
    streamed(one_launch=True)


def losses() -> None:
    """Adversarial losses in several programs."""
    logits = [test_adversarial_loss.randn(2, 60, 61, seed=i) for i in range(2)]
    test_adversarial_loss.check(logits, ["real", "fake"], "lsgan", [1.0, 1.0])


def without_guards(opcode: str) -> Callable[[str], str]:
    return lambda ptx: re.sub(rf"@!?%p\d+ ({re.escape(opcode)})", r"\1", ptx)


def without(pattern: str) -> Callable[[str], str]:
    return lambda ptx: re.sub(pattern, "", ptx)


BROKEN: dict[str, tuple[Callable[[], None], str, Callable[[str], str], type[Exception], str]] = {
    # bounds: the masks of loads and stores
    "a load without its mask": (
        norm,
        "single_fwd_kernel",
        without_guards("ld.global"),
        Fault,
        r"single_fwd_kernel: out of bounds: 4 bytes at \d+ of a tensor of 2520 bytes; at ld.* \[tiles_triton.py:",
    ),
    "a store without its mask": (
        norm,
        "single_bwd_kernel",
        without_guards("st.global"),
        Fault,
        r"single_bwd_kernel: (out of bounds|writes where|two threads write|two programs write).*st.global.* \[",
    ),
    # barriers: in a program, and between programs
    "no barrier around shared memory": (
        norm,
        "single_fwd_kernel",
        without(r"\tbar\.sync\s+0;"),
        Fault,
        r"single_fwd_kernel: thread \d+ (reads what|writes where|writes what) thread \d+ (wrote|read), without a",
    ),
    "no barrier before a program counts itself": (
        losses,
        "adversarial_fwd_kernel",
        lambda ptx: re.sub(r"\tbar\.sync\s+0;(?=(?:(?!bar\.sync).)*atom\.)", "", ptx, flags=re.DOTALL),
        Fault,
        r"adversarial_fwd_kernel: (program \d reads what program \d wrote in the same launch, and nothing orders"
        r"|writes what several threads read, without a barrier)",
    ),
    "a program that counts itself without a release": (
        losses,
        "adversarial_fwd_kernel",
        lambda ptx: ptx.replace(".acq_rel.", ".relaxed."),
        Fault,
        r"adversarial_fwd_kernel: program \d reads what program \d wrote in the same launch",
    ),
    "a part that is said to be there before all threads have written": (
        in_one_launch,
        "persistent_fwd_kernel",
        lambda ptx: re.sub(r"\tbar\.sync\s+0;(?=(?:(?!bar\.sync).)*atom\.)", "", ptx, flags=re.DOTALL),
        Fault,
        r"persistent_fwd_kernel: .*(nothing orders|without a barrier)",
    ),
    "programs that wait without an acquire": (
        in_one_launch,
        "persistent_bwd_kernel",
        lambda ptx: ptx.replace(".acquire.", ".relaxed."),
        Fault,
        r"persistent_bwd_kernel: program \d reads what program \d wrote in the same launch",
    ),
    "a program that publishes without a release": (
        in_one_launch,
        "persistent_fwd_kernel",
        lambda ptx: ptx.replace(".release.", ".relaxed."),
        Fault,
        r"persistent_fwd_kernel: program \d reads what program \d wrote in the same launch",
    ),
    # asynchronous copies
    "a tile that is read before its copy has arrived": (
        streamed,
        "statistics_kernel",
        without(r"cp\.async\.wait_group[^;]*;"),
        Fault,
        r"statistics_kernel: .*(asynchronous|has not arrived|undefined|nothing has written)",
    ),
    "a tile that is overwritten while it is read": (
        streamed,
        "apply_bwd_kernel",
        without(r"\tbar\.sync\s+0;"),
        Fault,
        r"apply_bwd_kernel: ",
    ),
    # masks: values from outside of a plane
    "values outside of a plane that count": (
        norm,
        "single_fwd_kernel",
        lambda ptx: re.sub(r"selp\.f32\s+(%\w+), (%\w+), 0f00000000, %p\d+;", r"mov.b32 \1, \2;", ptx),
        AssertionError,
        r"error .*, plain .*, allowed",
    ),
    "a masked load whose rest stays undefined": (
        norm,
        "single_fwd_kernel",
        without(r"mov\.u32 %r\d+, (0x0|%r\d+);(?=\s+@%p\d+ ld\.global)"),
        Fault,
        r"single_fwd_kernel: the stored value depends on register %r\d+, which nothing has written; at .*st\.",
    ),
    # types
    "bfloat16 that is read as float16": (
        lambda: norm(torch.bfloat16),
        "single_fwd_kernel",
        lambda ptx: ptx.replace("cvt.f32.bf16", "cvt.f32.f16"),
        AssertionError,
        r"error .*, plain .*, allowed|isfinite",
    ),
    "bfloat16 that is addressed as float32": (
        lambda: norm(torch.bfloat16),
        "single_fwd_kernel",
        lambda ptx: re.sub(r"(mad\.wide\.s32\s+%rd\d+, %r\d+), 2,|shl\.b64(\s+%rd\d+, %rd\d+), 1;", _twice, ptx),
        Fault,
        r"single_fwd_kernel: out of bounds: 2 bytes at \d+ of a tensor of 1260 bytes; at ",
    ),
}


def _twice(found: re.Match[str]) -> str:
    return f"{found[1]}, 4," if found[1] else f"shl.b64{found[2]}, 2;"


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(("check", "kernel", "break_it", "kind", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_kernel_is_caught(
    check: Callable[[], None], kernel: str, break_it: Callable[[str], str], kind: type[Exception], message: str
) -> None:
    broken = []

    def change(name: str, ptx: str) -> str:
        if name != kernel:
            return ptx
        broken.append(break_it(ptx) != ptx)
        return break_it(ptx)

    with launches_executed(change=change), pytest.raises(kind, match=message):
        check()
    assert broken and all(broken), "the text was not changed"


def test_the_same_kernels_whole_are_right() -> None:
    with launches_executed():
        norm()
        norm(torch.bfloat16)
        streamed()
        in_one_launch()
        losses()


@pytest.mark.parametrize("kernel", ["single_fwd_kernel", "single_bwd_kernel", "adversarial_fwd_kernel"])
def test_each_barrier_that_orders_something_is_needed(kernel: str) -> None:
    """Without any one of its barriers a kernel races, except for those in front of memory that is not used again."""
    check = losses if kernel.startswith("adversarial") else norm
    texts: list[str] = []

    def run(number: int | None) -> None:
        def change(name: str, ptx: str) -> str:
            if name == kernel:
                parts = re.split(r"\tbar\.sync\s+0;", ptx)
                texts.append(ptx)
                if number is not None:
                    return "\tbar.sync 0;".join(
                        [*parts[:number], parts[number] + parts[number + 1], *parts[number + 2 :]]
                    )
            return ptx

        with launches_executed(change=change):
            check()

    run(None)
    count = texts[0].count("bar.sync")
    caught = 0
    for number in range(count):
        try:
            run(number)
        except Fault as fault:
            assert "without a barrier" in str(fault) or "nothing orders" in str(fault)
            caught += 1
    assert count - 1 <= caught <= count
