"""Spectral normalisation of whole models: one power iteration a training step, in three launches for all layers.

Let W be a weight, seen as a matrix (out, in·kh·kw). It is divided by σ, an estimate of its largest singular value
(Miyato et al., arXiv 1802.05957). Vectors u and v are kept from step to step. One iteration is

    t = W v    u = t / max(‖t‖, ε)    s = Wᵀu    v = s / max(‖s‖, ε)        σ = uᵀW v = s · v        Ŵ = W / σ

u and v count as constants. So, with G = ∂L/∂Ŵ,

    ∂L/∂W = (G − ⟨G, Ŵ⟩ u vᵀ) / σ

**One iteration a step.** `torch.nn.utils.parametrizations.spectral_norm` iterates layer by layer, at every forward in
training mode. But a CycleGAN step runs each generator three times, and those passes must see one weight.
`spectral_norm_step` iterates once, for all layers of its models together, and gives every forward inside it the same Ŵ.
The gradients of all passes meet there, and one backward takes them to the weights in two launches. Outside of it, each
forward divides by σ for itself and does not change u and v. The state dict is torch's:
`….parametrizations.weight.original`, `….parametrizations.weight.0._u` and `._v`.

**The dtype of Ŵ** is the one that the layers compute in. So the division is also the cast that mixed precision makes
anyway. Before an instance norm, 1/σ could move into the norm's ε, since IN(x / σ; ε) = IN(x; σ²ε). But that would save
no pass.

**Precision.** Sums, σ, and the u and v of a graph are float32 (float64 for float64). This holds also if the weights,
and the kept u and v, are bfloat16 or float16. A weight of zeros has σ = 0, for which torch gives NaN. Here such a σ
counts as 1, and u and v do not change. So a layer that starts at zero can learn.
"""

from vologan_kernels.spectral_norm.module import power_iteration, spectral_norm, spectral_norm_step

__all__ = ["power_iteration", "spectral_norm", "spectral_norm_step"]
