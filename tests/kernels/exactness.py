"""How exact a kernel must be."""

import torch


def assert_as_exact(found, plain, truth, ulps=1.0, scale=None):
    """Assert that the error against the float64 truth is at most twice the plain form's, plus some rounding.

    The rounding is `ulps` of the largest value. For a sum, rounding follows the magnitudes of its terms: then `scale`
    is their sum, and replaces the largest value.
    """
    if found.dtype == torch.float64:  # the plain form is the truth: allow both the roundings of some dozen operations
        ulps = 64
    assert found.shape == truth.shape
    if not truth.numel():
        return
    assert torch.isfinite(found).all()
    error, plain_error = ((t.double() - truth).abs().max() for t in (found, plain))
    limit = 2 * plain_error + ulps * torch.finfo(found.dtype).eps * (truth.abs().max() if scale is None else scale)
    assert error <= limit, f"error {error:.3g}, plain {plain_error:.3g}, allowed {limit:.3g}"
