"""Instance normalisation, an optional residual, an activation and an optional reflection padding, in one operation.

    x̂ = (x − μ) · rstd      rstd = 1 / sqrt(σ² + ε)
    u  = γ · x̂ + β + residual
    y  = reflection_pad(f(u))

μ and σ² are the mean and the biased variance of each plane. A plane is the H·W values of one channel of one sample
(Ulyanov et al., arXiv 1607.08022). Samples never interact, so a batch gives exactly what its samples give alone. With
g = f'(u) · pad*(∂L/∂y), where pad* is the adjoint of the padding, and with means over the plane,

    ∂L/∂x = γ · rstd · (g − mean(g) − x̂ · mean(g · x̂))      ∂L/∂γ = Σ g · x̂      ∂L/∂β = Σ g      ∂L/∂residual = g

**Memory.** The forward saves the mean and rstd of each plane, and either the input or the output. The next convolution
keeps the output anyway, so saving the output costs no memory. Then x̂ has to come back from y. That needs an f with an
inverse (`activations.py`), and a γ that stays away from 0. `save="auto"` takes the output if there is no γ, or if there
is a `min_scale`.

**Bytes**, in units of the tensor: the forward reads 1 and writes 1; the backward reads 2 and writes 1. The kernels for
large planes (`kernels.py`) read the planes twice, which makes 3 and 5. The second reading can come from the cache.

Statistics are float32 for all dtypes but float64, which has float64 ones. A plane of one value has σ² = 0 and gives
f(β), so such a layer carries no signal. That is the definition here, not an error.
"""

from vologan_kernels.instance_norm.module import InstanceNormAct2d
from vologan_kernels.instance_norm.operation import instance_norm_act

__all__ = ["InstanceNormAct2d", "instance_norm_act"]
