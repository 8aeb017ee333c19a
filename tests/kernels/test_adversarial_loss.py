"""Adversarial losses: the plain form against the table, the kernels against the plain form, all in float64."""

import math

import pytest
import torch
from exactness import assert_as_exact
from torch.nn import functional as F
from vologan_kernels import adversarial_loss, adversarial_losses
from vologan_kernels.adversarial_loss import KINDS, ROLES

triton = pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
IMPLEMENTATIONS = ("reference", "triton")
SHAPES = [(2, 8, 4, 4), (2, 5, 1, 1), (1,), (0, 3), (2, 1, 7, 7), ()]
WEIGHTS = [1.0, 0.5, 2.0, 3.0, 0.25, 1.0]

FORMULAS = {
    ("lsgan", "real"): lambda z: (z - 1) ** 2,
    ("lsgan", "fake"): lambda z: z**2,
    ("lsgan", "generator"): lambda z: (z - 1) ** 2,
    ("bce", "real"): lambda z: -torch.log(torch.sigmoid(z)),
    ("bce", "fake"): lambda z: -torch.log(1 - torch.sigmoid(z)),
    ("bce", "generator"): lambda z: -torch.log(torch.sigmoid(z)),
    ("hinge", "real"): lambda z: F.relu(1 - z),
    ("hinge", "fake"): lambda z: F.relu(1 + z),
    ("hinge", "generator"): lambda z: -z,
    ("hinge_both", "real"): lambda z: F.relu(1 - z),
    ("hinge_both", "fake"): lambda z: F.relu(1 + z),
    ("hinge_both", "generator"): lambda z: F.relu(1 - z),
    ("wgan", "real"): lambda z: -z,
    ("wgan", "fake"): lambda z: z,
    ("wgan", "generator"): lambda z: -z,
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Outputs that take several programs of several blocks."""
    from vologan_kernels.adversarial_loss import kernels

    monkeypatch.setattr(kernels, "LOGITS_BLOCK", 16)
    monkeypatch.setattr(kernels, "LOGITS_PROGRAMS", 5)
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 1)


def randn(*shape, dtype=torch.float32, seed=0, scale=2.0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.mul(scale).to(DEVICE, dtype)


def check(logits, roles, kind, weights):
    """Loss, means and gradients of both implementations are as near to float64 as the table in float32 is."""

    def written_out(dtype):
        exact = [z.detach().to(dtype).requires_grad_() for z in logits]
        means = [FORMULAS[kind, role](z).sum() / max(z.numel(), 1) for z, role in zip(exact, roles, strict=True)]
        loss = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
        return [loss.detach(), torch.stack(means).detach(), *torch.autograd.grad(loss, exact)]

    truth = written_out(torch.float64)
    plain = written_out(torch.float64 if logits[0].dtype == torch.float64 else torch.float32)
    for impl in IMPLEMENTATIONS:
        inputs = [z.detach().requires_grad_() for z in logits]
        loss, values = adversarial_losses(inputs, roles, kind, weights=weights, impl=impl)
        assert not values.requires_grad
        gradients = torch.autograd.grad(loss, inputs)
        for z, gradient in zip(inputs, gradients, strict=True):
            assert gradient.dtype == z.dtype and gradient.stride() == torch.empty_like(z).stride()
        for found, expression, true in zip((loss.detach(), values, *gradients), plain, truth, strict=True):
            # Losses are sums of terms that may cancel: exact to some ulps of 1, or of the largest.
            scale = true.abs().max().clamp(min=1.0) if true.dim() < 2 and true.numel() else None
            assert_as_exact(found, expression.to(found.dtype), true, ulps=4, scale=scale)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_table(kind, role, dtype, small_blocks, poison):
    logits = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(SHAPES)]
    check(logits, [role, "real", "fake", "generator", role, role], kind, WEIGHTS)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_strides_and_types(kind, small_blocks, poison):
    a = randn(2, 8, 6, 6)
    logits = [
        a.contiguous(memory_format=torch.channels_last),
        a[:, ::2, 1:],
        a.transpose(1, 3),
        a[:1, :1].expand(3, 4, 6, 6),
        a.bfloat16(),
    ]
    check(logits, ["real", "fake", "generator", "real", "fake"], kind, WEIGHTS[:5])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("role", ROLES)
def test_bce_of_extreme_logits(role, impl):
    """There is no overflow, and no term is lost: log(1 + e^−20) is 2e-9, and float32 has seven digits of it."""
    logits = torch.tensor([-1e4, -200.0, -20.0, 0.0, 20.0, 200.0, 1e4], device=DEVICE, requires_grad=True)
    toward = logits.detach().double() * (-1 if role == "fake" else 1)
    values = torch.stack([adversarial_loss([z], role, "bce", impl=impl) for z in logits])
    torch.testing.assert_close(values.double(), F.softplus(-toward), rtol=1e-6, atol=1e-45)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    expected = torch.sigmoid(-toward) * (1 if role == "fake" else -1)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_are_rounded_once(kind, role, impl):
    """Half a rounding of each value; a whole one in Triton's interpreter, which cuts digits off where a GPU rounds."""
    z = torch.tensor([0.0, 1.0, -1.0, 2.0, 12.5, -30.0, 50.0, 100.0, -1e3, 1e3, 1e-3, -1e-3], device=DEVICE)
    inputs = [z.bfloat16().to(dtype).requires_grad_() for dtype in (torch.bfloat16, torch.float64)]
    found, truth = (torch.autograd.grad(adversarial_loss([z], role, kind, impl=impl), z)[0] for z in inputs)
    roundings = 1.0 if impl == "triton" and DEVICE == "cpu" else 0.5
    slack = 2**-16  # of float32's own roundings, and below the least normal number a rounding is absolute
    limit = (roundings * torch.finfo(torch.bfloat16).eps + slack) * truth.abs() + torch.finfo(torch.bfloat16).tiny
    assert ((found.double() - truth).abs() <= limit).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_hinge_at_its_kinks_takes_torchs_side(impl):
    z = torch.tensor([-1.0, 1.0], device=DEVICE, requires_grad=True)
    hinges = [case for case in FORMULAS if "hinge" in case[0] and case != ("hinge", "generator")]
    assert len(hinges) == 5
    for kind, role in hinges:
        (ours,) = torch.autograd.grad(adversarial_loss([z], role, kind, impl=impl), z)
        (torchs,) = torch.autograd.grad(FORMULAS[kind, role](z).mean(), z)
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_elements_there_is_no_loss(impl):
    loss, values = adversarial_losses([torch.zeros(0, 1, 3, 3, device=DEVICE)], ["real"], impl=impl)
    assert loss == 0 and values.tolist() == [0.0]


def test_a_mean_of_many_is_as_exact_as_torchs():
    logits = [randn(1, 64, 100, 100), randn(1, 1, 12, 12)]
    check(logits, ["real", "fake"], "lsgan", [1.0, 1.0])


def test_only_the_wanted_gradients_are_computed():
    wanted, other = randn(2, 3).requires_grad_(), randn(4, 1, 2, 2)
    for impl in IMPLEMENTATIONS:
        loss, _ = adversarial_losses([other, wanted], ["real", "generator"], "hinge", impl=impl)
        torch.testing.assert_close(torch.autograd.grad(loss, wanted)[0], torch.full_like(wanted, -1 / 6))


def test_one_launch_each_way_and_the_same_bits(monkeypatch, small_blocks):
    from vologan_kernels.adversarial_loss import kernels

    launches = []
    for name in ("adversarial_fwd_kernel", "adversarial_bwd_kernel"):
        kernel = getattr(kernels, name)
        counted = type("Counted", (), {"__getitem__": lambda self, grid, k=kernel: launches.append(k) or k[grid]})()
        monkeypatch.setattr(kernels, name, counted)
    logits = [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(SHAPES)]
    results = []
    for _ in range(2):
        loss, values = adversarial_losses(logits, ["real"] * len(logits), impl="triton")
        results.append((loss.detach(), values, *torch.autograd.grad(loss, logits)))
    assert len(launches) == 4
    assert all(torch.equal(first, again) for first, again in zip(*results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_and_double_backward(kind):
    logits = [randn(2, 3, dtype=torch.float64), randn(1, 2, 2, dtype=torch.float64, seed=1)]
    inputs = [z.requires_grad_() for z in logits]

    def loss(*inputs):
        return adversarial_losses(inputs, ["real", "fake"], kind, weights=[1.0, 0.5])[0]

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_a_gradient_penalty_runs_through_it():
    """A penalty of the gradient of a discriminator's loss, instead of its logits, equals the plain expression's."""
    layer = torch.nn.Conv2d(3, 1, 3).double().to(DEVICE)
    images = randn(2, 3, 6, 6, dtype=torch.float64).requires_grad_()
    found = []
    for loss in (lambda z: adversarial_loss([z], "real", "bce"), lambda z: F.softplus(-z).mean()):
        (gradient,) = torch.autograd.grad(loss(layer(images)), images, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), layer.weight)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_opcheck(impl):
    arguments = [randn(2, 3, 4), randn(2, 1)], [0, 1], [1.0, 2.0], "bce", impl
    torch.library.opcheck(torch.ops.vologan_kernels.adversarial_losses, arguments)
    grad = torch.ones((), device=DEVICE)
    torch.library.opcheck(torch.ops.vologan_kernels.adversarial_losses_backward, (grad, *arguments))


def test_compiles_without_breaks_and_gives_the_same():
    logits = [randn(2, 3, 4, 4).requires_grad_(), randn(2, 1).requires_grad_()]

    def loss(a, b):
        return adversarial_losses([a * 2, b], ["real", "fake"], "hinge")

    results = []
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for function in (loss, compiled):
        total, values = function(*logits)
        results.append((total.detach(), values, *torch.autograd.grad(total, logits)))
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*logits), results[0][:2])


def test_torch_func():
    z = randn(2, 3)
    found = torch.func.grad(lambda z: adversarial_loss([z], "real", "bce"))(z)
    torch.testing.assert_close(found, -torch.sigmoid(-z) / z.numel())


def test_one_discriminators_outputs_in_one_role():
    logits = [randn(2, 8, 4, 4), randn(2, 1, 3, 3)]
    expected = sum(FORMULAS["lsgan", "fake"](z).mean() for z in logits)
    torch.testing.assert_close(adversarial_loss(logits, "fake"), expected)
    assert math.isclose(adversarial_loss(logits, "fake", "wgan"), sum(z.mean() for z in logits), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (([torch.zeros(1)], ["real"], "mse"), {}, "one of lsgan, bce, hinge, hinge_both, wgan, found 'mse'"),
        (([torch.zeros(1)], ["maybe"]), {}, "one of real, fake, generator, found 'maybe'"),
        (([], []), {}, "at least one discriminator output, found none"),
        (([torch.zeros(1)], ["real", "fake"]), {}, r"roles must be as many as logits \(1\), found 2"),
        (([torch.zeros(1)], ["real"]), {"weights": []}, r"weights must be as many as logits \(1\), found 0"),
        (([torch.zeros(1).int()], ["real"]), {}, "floating-point on one device, found torch.int32"),
        (([torch.zeros(1), torch.zeros(1).double()], ["real"] * 2), {}, "all be float64 or none"),
        (([torch.zeros(1)], ["real"]), {"impl": "cuda"}, "auto, reference or triton, found 'cuda'"),
    ],
)
def test_bad_arguments_are_named(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        adversarial_losses(*arguments, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_large_outputs_on_a_gpu(kind, dtype):
    logits = [randn(2, 64, 512, 512, dtype=dtype), randn(2, 512, 1, 1, dtype=dtype), randn(2, 1, 64, 64, dtype=dtype)]
    check(logits * 2, ["real"] * 3 + ["fake"] * 3, kind, WEIGHTS)
