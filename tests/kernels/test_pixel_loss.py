"""Pixel losses: the plain form against the formulas, the kernels against the plain form, all in float64.

Without a GPU the kernels run in Triton's interpreter, on small images; `small_tiles` cuts those into several parts of
several tiles.
"""

import pytest
import torch
from exactness import assert_as_exact
from vologan_kernels import cycle_loss, global_ssim, launch, pixel_losses, weighted_l1, weighted_l2

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CHANNEL_WEIGHT = (1.0, 1.0, 1.0, 3.0)
WEIGHTS = [(10.0, 0.0, 1.0), (0.5, 0.25, 2.0)]
IMPLEMENTATIONS = ("reference", "triton")
ZEROS = torch.zeros(1, 4, 2, 2, device=DEVICE)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(launch, "STREAM", 256)
    monkeypatch.setattr(launch, "LEAST_TILES", 1)


def rand(*shape, dtype=torch.float32, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def ssim_with_its_square_roots(a, b):
    """l · k · s as published, of images (pixels,)."""
    c1, c2 = 0.01**2, 0.03**2
    mu1, mu2 = a.mean(), b.mean()
    s1, s2 = a.std(correction=0), b.std(correction=0)
    s12 = ((a - mu1) * (b - mu2)).mean()
    luminance = (2 * mu1 * mu2 + c1) / (mu1**2 + mu2**2 + c1)
    contrast = (2 * s1 * s2 + c2) / (s1**2 + s2**2 + c2)
    return luminance * contrast * (s12 + c2 / 2) / (s1 * s2 + c2 / 2)


def formula(pairs, weights, channel_weight, masks=None, statistics="image"):
    """The loss and the metrics (T, 3, C), image by image and channel by channel, in the precision of the images."""
    metrics = []
    for (a, b), mask in zip(pairs, masks or [None] * len(pairs), strict=True):
        n, c = a.shape[:2]
        valid = torch.ones_like(a, dtype=torch.bool) if mask is None else mask.expand_as(a)
        samples = [slice(None)] if statistics == "batch" else range(n)
        rows = []
        for channel in range(c):
            found = []
            for sample in samples:
                p, q = (image[sample, channel][valid[sample, channel]] for image in (a, b))
                if p.numel() == 0:
                    found.append(a.new_zeros(3))
                    continue
                similarity = ssim_with_its_square_roots(p, q)
                found.append(torch.stack([(p - q).abs().mean(), (p - q).square().mean(), 1 - similarity]))
            rows.append(torch.stack(found).mean(0))
        metrics.append(torch.stack(rows, 1))
    metrics = torch.stack(metrics)
    table = metrics.new_tensor(weights)[:, :, None] * metrics.new_tensor(channel_weight)
    return (table * metrics).sum(), metrics


def pairs_of(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    images = [rand(*shape, dtype=dtype, seed=i).contiguous(memory_format=layout) for i in range(4)]
    return [(images[0], images[1]), (images[2], images[3])]


def check(pairs, *, channel_weight=CHANNEL_WEIGHT, masks=None, statistics="image", weights=WEIGHTS):
    """Loss, metrics and all gradients of both implementations are as near to float64 as the formula in float32 is."""
    weights = weights[: len(pairs)]
    images = [image for pair in pairs for image in pair]

    def written_out(dtype):
        exact = [image.detach().to(dtype).requires_grad_() for image in images]
        loss, metrics = formula(
            list(zip(exact[::2], exact[1::2], strict=True)), weights, channel_weight, masks, statistics
        )
        return [loss.detach(), metrics.detach(), *torch.autograd.grad(loss, exact)]

    truth = written_out(torch.float64)
    plain = written_out(torch.float64 if images[0].dtype == torch.float64 else torch.float32)
    for impl in IMPLEMENTATIONS:
        inputs = [image.detach().requires_grad_() for image in images]
        loss, metrics = pixel_losses(
            list(zip(inputs[::2], inputs[1::2], strict=True)),
            weights,
            channel_weight,
            masks=masks,
            statistics=statistics,
            impl=impl,
        )
        assert not metrics.requires_grad
        gradients = torch.autograd.grad(loss, inputs)
        for image, gradient in zip(inputs, gradients, strict=True):
            assert gradient.dtype == image.dtype and gradient.stride() == torch.empty_like(image).stride()
        for found, expression, true in zip((loss.detach(), metrics, *gradients), plain, truth, strict=True):
            # 1 − SSIM and a mean of values up to 1 are exact to some ulps of 1, the loss to those of its terms' sum.
            scale = None if true.dim() == 4 else true.abs().max().clamp(min=1.0)
            assert_as_exact(found, expression.to(found.dtype), true, ulps=4, scale=scale)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("statistics", "masked"), [("image", True), ("batch", False)])
def test_every_type_layout_and_option(dtype, layout, statistics, masked, small_tiles, poison):
    masks = [rand(2, 1, 7, 5, seed=9) > 0.3, None] if masked else None
    check(pairs_of(2, 4, 7, 5, dtype=dtype, layout=layout), masks=masks, statistics=statistics)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 5), (1, 3, 17, 1), (2, 5, 8, 8), (1, 4, 11, 13)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_odd_shapes(shape, layout, small_tiles, poison):
    check(pairs_of(*shape, layout=layout), channel_weight=[1.0 + c for c in range(shape[1])])


def test_channel_weights_of_each_metric(small_tiles, poison):
    check(pairs_of(2, 4, 9, 7), channel_weight=[(0.25, 0.25, 0.25, 0.25), (1.0, 2.0, 0.0, 1.5), CHANNEL_WEIGHT])


def test_many_channels_as_of_feature_maps(poison):
    check(pairs_of(1, 130, 3, 5, layout=torch.channels_last), channel_weight=[1.0] * 130)


@pytest.mark.parametrize(
    "make",
    [
        lambda image: image[:, :, ::2, 1:],
        lambda image: image.transpose(2, 3),
        lambda image: image[:, 1:5],
        lambda image: image[:1].expand(2, -1, -1, -1),
    ],
    ids=["sliced", "transposed", "channels", "expanded"],
)
def test_images_of_any_strides(make, small_tiles, poison):
    images = [make(rand(2, 8, 10, 8, seed=i)) for i in range(4)]
    check([(images[0], images[1]), (images[2], images[3].contiguous())], channel_weight=[1.0] * images[0].shape[1])


def test_images_of_different_types_and_layouts(small_tiles, poison):
    a, b = rand(2, 4, 6, 6, dtype=torch.bfloat16), rand(2, 4, 6, 6, seed=1)
    check([(a, b), (b.contiguous(memory_format=torch.channels_last), a.half())])


@pytest.mark.parametrize(
    "mask",
    [
        lambda: rand(2, 4, 9, 7) > 0.5,
        lambda: rand(9, 7) > 0.5,
        lambda: rand(1, 1, 9, 14)[..., ::2] > 0.5,
        lambda: torch.tensor([False, True], device=DEVICE)[:, None, None, None],
    ],
    ids=["each channel", "one for all", "sliced", "an image without a valid pixel"],
)
def test_masks_of_any_shape(mask, small_tiles, poison):
    check(pairs_of(2, 4, 9, 7), masks=[mask(), mask()])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_the_mask_excludes_may_be_nan(impl):
    (a, b), _ = pairs_of(2, 4, 6, 6)
    valid = torch.ones(6, 6, dtype=torch.bool, device=DEVICE)
    valid[2:4, 1:3] = False
    expected = cycle_loss(a, b, mask=valid, impl=impl)
    holes = torch.where(valid, a, torch.nan).requires_grad_()
    loss = cycle_loss(holes, b, mask=valid, impl=impl)
    (gradient,) = torch.autograd.grad(loss, holes)
    assert torch.equal(loss, expected)
    assert torch.isfinite(gradient).all() and (gradient[..., ~valid] == 0).all() and (gradient[..., valid] != 0).all()


@pytest.mark.parametrize("constants", [(0.0, 0.0), (0.3, 0.0), (0.5, 0.5), (1.0, 0.7)])
def test_constant_images_have_finite_gradients(constants, small_tiles):
    """The published form has a square root of zero variance; ours is its limit."""
    images = [torch.full((2, 4, 8, 8), value, device=DEVICE, requires_grad=True) for value in constants]
    p, q = constants
    luminance = (2 * p * q + 1e-4) / (p * p + q * q + 1e-4)
    gradients = []
    for impl in IMPLEMENTATIONS:
        loss, metrics = pixel_losses([tuple(images)], [(0, 0, 1)], CHANNEL_WEIGHT, impl=impl)
        gradients.append(torch.autograd.grad(loss, images))
        assert torch.isfinite(torch.stack(gradients[-1])).all()
        torch.testing.assert_close(metrics[0, 2], torch.full((4,), 1 - luminance, device=DEVICE), rtol=0, atol=1e-6)
    # A mean that is off by an ulp makes a deviation where there is none, which C₂ scales: w · 2 / C₂ / (N n).
    ulp = torch.finfo(torch.float32).eps
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=2 * ulp * 3 * 2 / 9e-4 / 128)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_moments_keep_their_digits_where_the_mean_is_large(impl, small_tiles):
    """E[x²] − E[x]² of these would have no correct digit."""
    a, b = (image + 1000 for image in pairs_of(2, 4, 9, 7)[0])
    _, truth = formula([(a.double(), b.double())], WEIGHTS[:1], CHANNEL_WEIGHT)
    _, metrics = pixel_losses([(a, b)], WEIGHTS[:1], impl=impl)
    # Means are off by an ulp of 1000, deviations of 0.3 by as much: (1000 / 0.3) ulps of the correlation.
    limit = 1000 / 0.3 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(metrics.double(), truth, rtol=0, atol=limit)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 4, 0, 8)], ids=str)
def test_nothing_has_no_loss(impl, shape):
    image = torch.zeros(shape, device=DEVICE, requires_grad=True)
    loss, metrics = pixel_losses([(image, image.detach())], [(1, 1, 1)], CHANNEL_WEIGHT, impl=impl)
    assert loss == 0 and (metrics == 0).all()
    assert torch.autograd.grad(loss, image)[0].shape == shape


def test_an_image_with_itself_and_twice_in_one_call():
    a, b = (image.requires_grad_() for image in pairs_of(1, 4, 5, 5)[0])
    loss, metrics = pixel_losses([(a, b), (b, a), (a, a)], [(1, 0, 1)] * 3)
    assert metrics[2].abs().max() < 1e-6
    once, _ = pixel_losses([(a, b)], [(1, 0, 1)])
    for twice, single in zip(torch.autograd.grad(loss, (a, b)), torch.autograd.grad(once, (a, b)), strict=True):
        torch.testing.assert_close(twice, 2 * single)


def test_samples_and_launches_do_not_change_the_bits(small_tiles):
    pairs = pairs_of(3, 4, 9, 7)
    first, again = (pixel_losses(pairs, WEIGHTS, impl="triton") for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    alone = [pixel_losses([(a[i : i + 1], b[i : i + 1]) for a, b in pairs], WEIGHTS)[1] for i in range(3)]
    torch.testing.assert_close(first[1], torch.stack(alone).mean(0))


def test_one_launch_each_way_for_all_pairs(monkeypatch):
    from vologan_kernels.pixel_loss import kernels

    launches = []
    for name in ("pixel_loss_fwd_kernel", "pixel_loss_bwd_kernel"):
        kernel = getattr(kernels, name)
        counted = type("Counted", (), {"__getitem__": lambda self, grid, k=kernel: launches.append(k) or k[grid]})()
        monkeypatch.setattr(kernels, name, counted)
    pairs = [(a.requires_grad_(), b) for a, b in pairs_of(2, 4, 8, 8) * 2]
    pixel_losses(pairs, WEIGHTS * 2, impl="triton")[0].backward()
    assert len(launches) == 2


def test_gradcheck_and_gradgradcheck():
    a, b = (image.double().requires_grad_() for image in pairs_of(2, 2, 3, 3)[0])
    mask = rand(2, 1, 3, 3, seed=7) > 0.2

    def loss(a, b):
        return pixel_losses([(a, b), (b, a)], [(1, 0.5, 2), (0, 1, 1)], (1, 3), masks=[mask, None])[0]

    assert torch.autograd.gradcheck(loss, (a, b))
    assert torch.autograd.gradgradcheck(loss, (a, b))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_opcheck(impl):
    pairs = pairs_of(2, 4, 5, 5, layout=torch.channels_last)
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    masks = [(rand(2, 1, 5, 5) > 0.5).expand(2, 4, 5, 5)] * 2
    forward, backward = torch.ops.vologan_kernels.pixel_losses, torch.ops.vologan_kernels.pixel_losses_backward
    arguments = a, b, masks, [1.0] * 24
    torch.library.opcheck(forward, (*arguments, False, impl))
    loss, _, moments = forward(*arguments, False, impl)
    torch.library.opcheck(backward, (loss, *arguments, moments, False, True, impl))


def test_compiles_without_breaks_and_gives_the_same():
    pairs = pairs_of(2, 4, 8, 8)

    def loss(a, b, c, d):
        total, metrics = pixel_losses([(a * 2, b), (c, d)], WEIGHTS, CHANNEL_WEIGHT)
        return total + cycle_loss(a, d), metrics

    images = [image.requires_grad_() for pair in pairs for image in pair]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        total, metrics = function(*images)
        results.append((total.detach(), metrics, *torch.autograd.grad(total, images)))
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*images)[0], results[0][0])


def test_torch_func():
    a, b = pairs_of(2, 4, 5, 5)[0]
    found = torch.func.grad(lambda image: cycle_loss(image, b))(a)
    expected = torch.autograd.grad(cycle_loss(a.requires_grad_(), b), a)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_single_losses_are_parts_of_the_whole(impl):
    a, b = pairs_of(2, 4, 6, 6)[0]
    _, metrics = pixel_losses([(a, b)], [(0, 0, 0)], impl=impl)
    l1, l2, ssim = (metrics[0] * torch.tensor(CHANNEL_WEIGHT, device=DEVICE)).sum(1)
    torch.testing.assert_close(weighted_l1(a, b, CHANNEL_WEIGHT, impl=impl), l1)
    torch.testing.assert_close(weighted_l2(a, b, CHANNEL_WEIGHT, impl=impl), l2)
    torch.testing.assert_close(global_ssim(a, b, CHANNEL_WEIGHT, impl=impl), ssim)
    torch.testing.assert_close(cycle_loss(a, b, channel_weight=CHANNEL_WEIGHT, impl=impl), 10 * l1 + ssim)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (([], []), {}, "at least one pair, found none"),
        (([(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 3))], WEIGHTS[:1]), {}, r"\(1, 4, 2, 2\) and \(1, 4, 2, 3\)"),
        (
            ([(torch.zeros(4, 2, 2), torch.zeros(4, 2, 2))], WEIGHTS[:1]),
            {},
            r"prediction must be .* found .* \(4, 2, 2",
        ),
        (
            ([(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).int())], WEIGHTS[:1]),
            {},
            "target must be .* torch.int32",
        ),
        (([(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).double())], WEIGHTS[:1]), {}, "float64 or none"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS[:1]), {}, "3 numbers for each of 2 pairs"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS, (1, 1, 1)), {}, "4 numbers, found 3"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS, [(1, 1, 1, 1)]), {}, "a row for each of l1, l2, ssim, found 1"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS, [(1, 1, 1, 1)] * 2 + [(1, 1)]), {}, "4 numbers, found 2"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS), {"statistics": "row"}, "'image' or 'batch', found 'row'"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS), {"masks": [None]}, r"as many as pairs \(2\), found 1"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS), {"masks": [torch.ones(3, 3), None]}, "must be bool"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS), {"masks": [torch.ones(3, 3, device=DEVICE) > 0, None]}, "must expand to"),
        ((pairs_of(1, 4, 2, 2), WEIGHTS), {"impl": "cuda"}, "auto, reference or triton, found 'cuda'"),
    ],
)
def test_bad_arguments_are_named(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pixel_losses(*arguments, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_large_images_on_a_gpu(layout, dtype):
    check(pairs_of(2, 4, 512, 512, dtype=dtype, layout=layout), masks=[rand(2, 1, 512, 512) > 0.5, None])


@pytest.mark.gpu
def test_captured_in_a_cuda_graph():
    """The counter of the captured launch is its own: launches beside the graph do not disturb it."""
    pairs = pairs_of(2, 4, 64, 64)
    expected = pixel_losses(pairs, WEIGHTS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pixel_losses(pairs, WEIGHTS)
    for _ in range(3):
        graph.replay()
        beside = pixel_losses(pairs, WEIGHTS)
        torch.testing.assert_close(captured, expected)
        torch.testing.assert_close(beside, expected)
