"""Losses between images that show the same scene: weighted L1 and L2, and the global structural similarity (SSIM).

For a pair of images (a, b), a channel c, and the valid pixels of one image of the batch:

    l1 = mean |a − b|        l2 = mean (a − b)²        ssim = 1 − l · q

    l = (2 μₐμ_b + C₁) / (μₐ² + μ_b² + C₁)        q = (2 σₐ_b + C₂) / (σₐ² + σ_b² + C₂)

ssim is computed as p + r − p r, with p = 1 − l = (μₐ − μ_b)² / Dₗ and r = 1 − q = σ²(a − b) / D_q. Dₗ and D_q are the
denominators. p and r are never negative. So equal images give exactly 0, and nearly equal images keep their digits.

Each is averaged over the images of the batch. The loss is their sum with weights w[metric, c].

l · q is the SSIM of Wang et al. (IEEE TIP 2004, doi 10.1109/TIP.2003.819861), but with the moments of all pixels
instead of a sliding window. `windowed_ssim.py` has the window. C₁ = 0.01² and C₂ = 0.03². Their third factor is
(σₐ_b + C₃) / (σₐσ_b + C₃). With C₃ = C₂/2 the standard deviations cancel. So there is no square root, whose gradient
would be infinite at the variance of a constant image.

With n valid pixels in each of N images,

    ∂loss/∂a = (w₁ · sign(a − b) + 2 w₂ · (a − b) − w₃ · ∂(l·q)/∂a) / (N n)
    ∂(l·q)/∂a = 2 q (μ_b − μₐ l) / Dₗ + 2 l ((b − μ_b) − q (a − μₐ)) / D_q

**Bytes and launches.** One launch reads every pair of a training step once. One more reads it again and writes the
gradient (`kernels.py`). Images of four channels are small, so the gain is in the dozens of launches that are saved.

Sums are float32 for all dtypes but float64, which has float64 sums.
"""

from vologan_kernels.pixel_loss.operation import cycle_loss, global_ssim, pixel_losses, weighted_l1, weighted_l2
from vologan_kernels.pixel_loss.reference import METRICS

__all__ = ["METRICS", "cycle_loss", "global_ssim", "pixel_losses", "weighted_l1", "weighted_l2"]
