"""Spectral normalisation of whole models: one power iteration a training step, in three launches for all layers.

Let W be a weight in the form of a matrix (out, in·kh·kw). It is divided by σ, an estimate of its largest singular value
(Miyato et al., arXiv 1802.05957). Vectors u and v are kept from step to step. One iteration is

    t = W v    u = t / max(‖t‖, ε)    s = Wᵀu    v = s / max(‖s‖, ε)        σ = uᵀW v = s · v        Ŵ = W / σ

For the gradient, u and v are constants. With G = ∂L/∂Ŵ,

    ∂L/∂W = (G − ⟨G, Ŵ⟩ u vᵀ) / σ

**One iteration a step.** `torch.nn.utils.parametrizations.spectral_norm` iterates layer by layer, at every forward in
training mode. But a CycleGAN step runs each generator three times, and these passes must use the same weight.
`spectral_norm_step` iterates once, for all layers of its models together. Every forward inside it uses the same Ŵ. The
gradients of all passes are added up at Ŵ, and one backward computes ∂L/∂W from them in two launches. A forward outside
of `spectral_norm_step` divides by σ on its own, and does not change u and v. The state dict is the same as torch's:
`….parametrizations.weight.original`, `….parametrizations.weight.0._u` and `._v`.

**The dtype of Ŵ** is the dtype that the layers compute in. So the division also makes the cast that mixed precision
needs. If an instance norm follows a layer, the layer could use W, and the norm σ²ε in place of ε, because
IN(x / σ; ε) = IN(x; σ²ε). But this would not save a pass over the weights.

**Precision.** Sums, σ, and the u and v that the backward uses are float32, or float64 for float64 weights. They are
float32 even if the weights, and the u and v of the state dict, are bfloat16 or float16. A weight of zeros has σ = 0,
for which torch gives NaN. Here such a σ counts as 1, and u and v do not change. So a layer that starts at zero can
learn.
"""

from vologan_kernels.spectral_norm.module import power_iteration, spectral_norm, spectral_norm_step

__all__ = ["power_iteration", "spectral_norm", "spectral_norm_step"]
