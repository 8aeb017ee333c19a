"""Instance normalisation, an optional residual, an activation and an optional reflection padding, in one operation.

    x̂ = (x − μ) · rstd      rstd = 1 / sqrt(σ² + ε)
    u  = γ · x̂ + β + residual
    y  = reflection_pad(f(u))

μ and σ² are the mean and the biased variance of each plane. A plane is the H·W values of one channel of one sample
(Ulyanov et al., arXiv 1607.08022). Samples do not affect each other, so a sample gives the same result in every batch.

These are the gradients. pad* is the adjoint of the padding: it adds up the gradients of all output positions that show
the same input position. `mean` is the mean over a plane.

    g = f'(u) · pad*(∂L/∂y)
    ∂L/∂x = γ · rstd · (g − mean(g) − x̂ · mean(g · x̂))      ∂L/∂γ = Σ g · x̂      ∂L/∂β = Σ g      ∂L/∂residual = g

**Memory.** The forward saves the mean and rstd of each plane, and either the input or the output. The next convolution
keeps the output anyway, so saving the output costs no memory. Then the backward must compute x̂ back from y. For that,
f needs an inverse (`activations.py`), γ must not come close to 0, and β must not be far above γ: a rounding of β would
move x̂ by |β / γ| roundings. `save="auto"` saves the output if f has an inverse, there is no residual, and there is
neither γ nor β, or a γ with a `min_scale`.

**Bytes**, in units of the tensor: the forward reads 1 and writes 1; the backward reads 2 and writes 1. The kernels for
large planes (`kernels.py`) read the planes twice: the forward then reads 2 and writes 1, the backward reads 4 and
writes 1. The second reading can come from the cache.

Statistics are float64 for float64 tensors, and float32 for all others. A plane of one value has σ² = 0 and gives f(β),
whatever the value is. So such a layer passes on no information about x. It is allowed, and raises no error.
"""

from vologan_kernels.instance_norm.module import InstanceNormAct2d
from vologan_kernels.instance_norm.operation import instance_norm_act

__all__ = ["InstanceNormAct2d", "instance_norm_act"]
