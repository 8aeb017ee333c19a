"""Windowed SSIM against the formula in float64, window by window, and against the packages that people use."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from vologan_kernels import windowed_ssim

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def images(*shape, dtype=torch.float32, seed=0):
    """Two images in [0, 1] that resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    a, noise = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return a.to(DEVICE, dtype), (0.7 * a + 0.3 * noise).to(DEVICE, dtype)


def formula(a, b, data_range=1.0, window=11, sigma=1.5, padding="valid"):
    """SSIM as published, in float64, one value an image. Every window is cut out and has its own means."""
    a, b = a.double(), b.double()
    if padding == "same":
        a, b = (F.pad(image, (window // 2,) * 4, mode="reflect") for image in (a, b))
    k = torch.arange(window, dtype=torch.float64, device=a.device) - window // 2
    w = torch.exp(-(k[:, None] ** 2 + k**2) / (2 * sigma**2))
    w = w / w.sum()
    a, b = (image.unfold(2, window, 1).unfold(3, window, 1) for image in (a, b))
    mean = lambda values: (values * w).sum((-2, -1), keepdim=True)  # noqa: E731
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean((a - mu_a) ** 2), mean((b - mu_b) ** 2), mean((a - mu_a) * (b - mu_b))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mu_a * mu_b + c1) / (mu_a**2 + mu_b**2 + c1)
    return (luminance * (2 * cov + c2) / (var_a + var_b + c2)).mean((1, 2, 3, 4, 5))


def gradients(function, a, b):
    a, b = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    return torch.autograd.grad(function(a, b), (a, b))


def relative_error(found, truth):
    return ((found.double() - truth.double()).norm() / truth.double().norm()).item()


OPTIONS = [{}, {"padding": "same"}, {"window": 7, "sigma": 0.8}, {"data_range": 255.0, "padding": "same", "window": 5}]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients_are_those_of_the_formula(options, dtype):
    a, b = (image * options.get("data_range", 1.0) for image in images(2, 3, 15, 18, dtype=dtype))
    found, truth = windowed_ssim(a, b, reduction="none", **options), formula(a, b, **options)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    digits = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=4 * digits)
    torch.testing.assert_close(windowed_ssim(a, b, **options).double(), truth.mean(), rtol=0, atol=4 * digits)

    wanted = lambda p, q: windowed_ssim(p, q, **options)  # noqa: E731
    true_gradients = gradients(lambda p, q: formula(p, q, **options).mean(), a.double(), b.double())
    for gradient, true in zip(gradients(wanted, a, b), true_gradients, strict=True):
        assert gradient.dtype == dtype
        underflow = 2**-24 * math.sqrt(true.numel()) / true.norm().item() if dtype == torch.float16 else 0
        assert relative_error(gradient, true) < 16 * digits + torch.finfo(dtype).eps + underflow


@pytest.mark.parametrize("shape", [(2, 3, 32, 24), (1, 1, 11, 40)], ids=str)
def test_agrees_with_pytorch_msssim(shape):
    ssim = partial(pytest.importorskip("pytorch_msssim").ssim, data_range=1.0)
    a, b = images(*shape)
    torch.testing.assert_close(windowed_ssim(a, b), ssim(a, b), rtol=0, atol=2e-6)
    torch.testing.assert_close(windowed_ssim(a, b, reduction="none"), ssim(a, b, size_average=False), rtol=0, atol=2e-6)
    for ours, theirs in zip(gradients(windowed_ssim, a, b), gradients(ssim, a, b), strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 32, 24), (1, 1, 6, 40)], ids=str)
def test_agrees_with_torchmetrics(shape):
    image = pytest.importorskip("torchmetrics.functional.image")
    theirs = partial(image.structural_similarity_index_measure, data_range=1.0)
    ours = partial(windowed_ssim, padding="same")
    a, b = images(*shape)
    torch.testing.assert_close(ours(a, b), theirs(a, b), rtol=0, atol=2e-6)
    torch.testing.assert_close(ours(a, b, reduction="none"), theirs(a, b, reduction="none"), rtol=0, atol=2e-6)
    for mine, other in zip(gradients(ours, a, b), gradients(theirs, a, b), strict=True):
        assert relative_error(mine, other) < 1e-5


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_gradients_of_first_and_second_order(padding):
    a, b = (image.requires_grad_() for image in images(2, 1, 5, 6, dtype=torch.float64))
    function = partial(windowed_ssim, window=5, padding=padding, reduction="none")
    assert torch.autograd.gradcheck(function, (a, b))
    assert torch.autograd.gradgradcheck(function, (a, b))


def test_keeps_the_images_and_four_maps_for_the_backward():
    a, b = (image.requires_grad_() for image in images(2, 3, 32, 32))
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        windowed_ssim(a, b)
    small = 4 * 4 * 2 * 3  # the means of the planes of a, b, a + b and a − b
    assert sum(kept.values()) <= a.nbytes + b.nbytes + 4 * 4 * a[:, :, 10:, 10:].numel() + small


def test_equal_images_and_opposite_ones():
    a, _ = images(2, 3, 16, 16)
    assert windowed_ssim(a, a) == 1
    assert gradients(windowed_ssim, a, a)[0].abs().max() < 1e-9
    assert windowed_ssim(a, 1 - a) < -0.5


@pytest.mark.parametrize("a, b", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.0), (0.0, 1.0)])
def test_constant_images(a, b):
    a, b = (torch.full((2, 3, 16, 16), value, device=DEVICE) for value in (a, b))
    torch.testing.assert_close(windowed_ssim(a, b).double(), formula(a, b).mean(), rtol=0, atol=1e-6)
    found = gradients(windowed_ssim, a, b)
    true = gradients(lambda p, q: formula(p, q).mean(), a.double(), b.double())
    largest = max(gradient.abs().max().item() for gradient in true)
    for f, t in zip(found, true, strict=True):
        torch.testing.assert_close(f.double(), t, rtol=0, atol=1e-6 * largest + 1e-9)


def test_variances_far_from_the_origin():
    """An offset costs as many digits as the input has lost to it, and not twice as many."""
    a, b = (image + 1000 for image in images(1, 2, 24, 24))
    torch.testing.assert_close(windowed_ssim(a, b).double(), formula(a, b).mean(), rtol=0, atol=1e-6)
    found = gradients(windowed_ssim, a, b)
    true = gradients(lambda p, q: formula(p, q).mean(), a.double(), b.double())
    assert max(relative_error(f, t) for f, t in zip(found, true, strict=True)) < 1e-5


def test_stays_in_its_range_for_images_that_leave_theirs():
    """Values to 255 with the data_range of [0, 1]: rounding is larger than C₂."""
    generator = torch.Generator().manual_seed(0)
    a = (255 * torch.rand(1, 1, 32, 1, generator=generator)).expand(1, 1, 32, 32).to(DEVICE)
    a = F.interpolate(a[:, :, ::8, ::8], scale_factor=8)
    similarity = windowed_ssim(a, a.flip(2), reduction="none")
    assert similarity.abs().max() <= 1
    assert all(torch.isfinite(gradient).all() for gradient in gradients(windowed_ssim, a, a.flip(2)))


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_any_layout(padding):
    a, b = images(2, 3, 20, 16)
    expected = windowed_ssim(a, b, padding=padding)
    wide = torch.zeros(2, 3, 20, 32, device=DEVICE)
    wide[..., ::2] = b
    for p, q in [
        (a.contiguous(memory_format=torch.channels_last), b),
        (a.mT.contiguous().mT, wide[..., ::2]),
        (a.flip(0).flip(0), b.contiguous(memory_format=torch.channels_last)),
    ]:
        torch.testing.assert_close(windowed_ssim(p, q, padding=padding), expected)
    row = a[:, :, :1].expand(-1, -1, 20, -1)
    torch.testing.assert_close(windowed_ssim(row, b, padding=padding), windowed_ssim(row.clone(), b, padding=padding))


def test_each_image_may_have_its_own_dtype():
    a, b = images(2, 3, 16, 16)
    a = a.bfloat16()
    torch.testing.assert_close(windowed_ssim(a, b), windowed_ssim(a.float(), b))
    assert [gradient.dtype for gradient in gradients(windowed_ssim, a, b)] == [torch.bfloat16, torch.float32]
    assert windowed_ssim(a, b.double()).dtype == torch.float64


def test_autocast_does_not_round():
    a, b = images(2, 3, 16, 16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        inside, inside_gradients = windowed_ssim(a, b), gradients(windowed_ssim, a, b)
    assert torch.equal(inside, windowed_ssim(a, b))
    for found, expected in zip(inside_gradients, gradients(windowed_ssim, a, b), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_empty_batch(padding):
    a, b = (image.requires_grad_() for image in images(0, 3, 16, 16))
    assert windowed_ssim(a, b, padding=padding, reduction="none").shape == (0,)
    similarity = windowed_ssim(a, b, padding=padding)
    similarity.backward()
    assert similarity.isnan() and a.grad.shape == b.grad.shape == (0, 3, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_compiles_to_one_graph(padding):
    torch.compiler.reset()
    compiled = torch.compile(partial(windowed_ssim, padding=padding), fullgraph=True)
    plain = partial(windowed_ssim, padding=padding)
    for n in (2, 3, 4):  # the second batch size makes the batch dynamic
        a, b = images(n, 3, 16, 20)
        torch.testing.assert_close(compiled(a, b), plain(a, b))
        for found, expected in zip(gradients(compiled, a, b), gradients(plain, a, b), strict=True):
            torch.testing.assert_close(found, expected)


GOOD = torch.zeros(1, 3, 16, 20)


@pytest.mark.parametrize(
    "prediction, target, options, message",
    [
        (GOOD, GOOD[..., 1:], {}, r"one shape with C ≥ 1, found \(1, 3, 16, 20\) and \(1, 3, 16, 19\)"),
        (GOOD[0], GOOD[0], {}, r"\(N, C, H, W\) of one shape .* found \(3, 16, 20\)"),
        (GOOD[:, :0], GOOD[:, :0], {}, "C ≥ 1"),
        (GOOD, GOOD.byte(), {}, "target must have a floating-point dtype, found torch.uint8"),
        (GOOD[:, :, :8], GOOD[:, :, :8], {}, "at least 11 × 11 pixels for window=11 and padding='valid', found 8 × 20"),
        (GOOD[..., :5], GOOD[..., :5], {"padding": "same"}, "at least 6 × 6 pixels .* found 16 × 5"),
        (GOOD, GOOD, {"data_range": 0.0}, "data_range must be a positive number, found 0.0"),
        (GOOD, GOOD, {"sigma": -1.5}, "sigma must be a positive number, found -1.5"),
        (GOOD, GOOD, {"sigma": math.nan}, "sigma must be a positive number, found nan"),
        (GOOD, GOOD, {"window": 8}, "window must be a positive odd integer, found 8"),
        (GOOD, GOOD, {"window": 11.0}, "window must be a positive odd integer, found 11.0"),
        (GOOD, GOOD, {"padding": "full"}, "padding must be 'valid' or 'same', found 'full'"),
        (GOOD, GOOD, {"reduction": "sum"}, "reduction must be 'mean' or 'none', found 'sum'"),
    ],
)
def test_one_clear_error_each(prediction, target, options, message):
    with pytest.raises(ValueError, match=message):
        windowed_ssim(prediction, target, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [1, 3])
def test_gpu_does_not_round_to_tensorfloat(channels, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    a, b = images(4, channels, 64, 64)
    a = a.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(windowed_ssim(a, b).double(), formula(a, b).mean(), rtol=0, atol=1e-6)
    found = gradients(windowed_ssim, a, b)
    true = gradients(lambda p, q: formula(p, q).mean(), a.double(), b.double())
    assert max(relative_error(f, t) for f, t in zip(found, true, strict=True)) < 1e-5
