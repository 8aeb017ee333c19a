"""Instance norm + activation against the formula in float64."""

import pytest
import torch
from torch.nn import functional as F
from vologan_kernels import ACTIVATIONS, InstanceNormAct2d, instance_norm_act


def truth(x, weight, bias, eps):
    """γ · (x − μ) / sqrt(σ² + ε) + β in float64."""
    x = x.double()
    mean = x.mean((2, 3), keepdim=True)
    variance = (x - mean).square().mean((2, 3), keepdim=True)
    y = (x - mean) / (variance + eps).sqrt()
    return y * weight.double().view(1, -1, 1, 1) + bias.double().view(1, -1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 8, 5), (1, 4, 1, 7), (3, 1, 2, 2), (0, 2, 4, 4)])
def test_agrees_with_the_formula(dtype, memory_format, shape):
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    y = instance_norm_act(x, weight, bias, eps=1e-3, activation="leaky_relu", negative_slope=0.3)
    expected = F.leaky_relu(truth(x, weight, bias, 1e-3), 0.3)
    assert y.dtype == dtype
    # One rounding of the result, and a dozen float32 operations of its magnitude (a sum of ≤ 40 values among them).
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    parameters = torch.finfo(torch.float32).eps if dtype == torch.float64 else 0.0
    tolerance = (torch.finfo(dtype).eps + 16 * arithmetic + parameters) * (1 + expected.abs())
    assert ((y.double() - expected).abs() <= tolerance).all()


def test_a_large_mean_does_not_destroy_the_variance():
    x = torch.randn(1, 2, 32, 32) + 1000.0
    y = instance_norm_act(x)
    exact = truth(x, torch.ones(2), torch.zeros(2), 1e-5)
    # Subtracting a float32 mean of 1000 leaves half an ulp of 1000 in values of magnitude one.
    assert (y.double() - exact).abs().max() < 1000 * torch.finfo(torch.float32).eps


def test_constant_planes_give_finite_outputs_and_gradients():
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    y = instance_norm_act(x, torch.ones(3), torch.full((3,), 0.5), activation="leaky_relu")
    y.sum().backward()
    assert torch.equal(y, torch.full_like(y, 0.5))
    assert torch.isfinite(x.grad).all()


def test_a_plane_of_one_value_gives_the_activation_of_the_bias():
    bias = torch.tensor([-1.0, 2.0])
    y = instance_norm_act(torch.randn(3, 2, 1, 1), torch.ones(2), bias, activation="relu")
    expected = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(3, 2, 1, 1)
    # (x − μ) is 0 only up to rounding, which 1 / sqrt(ε) = 316 magnifies.
    torch.testing.assert_close(y, expected, rtol=0, atol=316 * 4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradients(activation):
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slope = torch.rand(2, dtype=torch.float64, requires_grad=True) if activation == "prelu" else 0.3
    inputs = (x, weight, bias, slope)
    assert torch.autograd.gradcheck(
        lambda x, w, b, s: instance_norm_act(x, w, b, activation=activation, negative_slope=s), inputs
    )
    assert torch.autograd.gradgradcheck(
        lambda x, w, b, s: instance_norm_act(x, w, b, activation=activation, negative_slope=s), inputs
    )


def test_samples_of_a_batch_do_not_interact():
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(instance_norm_act(x)[1:2], instance_norm_act(x[1:2]))


def test_module_takes_the_state_of_torchs_instance_norm():
    theirs = torch.nn.InstanceNorm2d(3, affine=True)
    torch.nn.init.normal_(theirs.weight)
    ours = InstanceNormAct2d(3, affine=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"\(N, C, H, W\).*\(2, 3, 4\)"),
        ({"x": torch.zeros(1, 2, 3, 3, dtype=torch.int32)}, "floating-point.*int32"),
        ({"x": torch.zeros(1, 2, 3, 3), "weight": torch.ones(3)}, r"weight must have shape \(2,\), found \(3,\)"),
        ({"x": torch.zeros(1, 2, 3, 3), "activation": "swish"}, "one of .*leaky_relu.*'swish'"),
        ({"x": torch.zeros(1, 2, 3, 3), "activation": "prelu"}, "prelu takes negative_slope"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        instance_norm_act(**arguments)
