"""Spectral normalisation against torch's, which iterates at every forward."""

import torch
from torch import nn
from vologan_kernels import spectral_norm, spectral_norm_step


def pair(dtype=torch.float64):
    """The same convolution under our normalisation and under torch's, with the same u and v."""
    ours = spectral_norm(nn.Conv2d(3, 5, 3, bias=False).to(dtype))
    theirs = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 5, 3, bias=False).to(dtype))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_200_training_steps_equal_torchs():
    ours, theirs = pair()
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9) for layer in (ours, theirs)]
    for step in range(200):
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        spectral_norm_step(ours)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_forwards_of_one_step_see_one_weight():
    ours, _ = pair()
    spectral_norm_step(ours)
    first, second = ours.weight, ours.weight
    assert torch.equal(first, second)
    spectral_norm_step(ours)
    assert not torch.equal(first, ours.weight)


def test_the_largest_singular_value_becomes_one():
    layer = spectral_norm(nn.Conv2d(4, 6, 3))
    for _ in range(100):
        spectral_norm_step(layer)
    assert abs(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2).item() - 1) < 1e-4


def test_backward_twice_after_a_further_iteration():
    """A graph that is still alive when the next iteration runs keeps its own u and v."""
    ours, _ = pair()
    loss = ours(torch.ones(1, 3, 4, 4, dtype=torch.float64)).sum()
    spectral_norm_step(ours)
    loss.backward()
    assert torch.isfinite(ours.parametrizations.weight.original.grad).all()
