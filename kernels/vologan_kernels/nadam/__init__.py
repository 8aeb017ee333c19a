"""NAdam (Dozat, 2016), for all parameters of a model in one update.

Let θ be a parameter with gradient g at its t-th step. The moments m and v start at 0, and Π starts at 1.

    g   ← −g                          if maximize
    g   ← g + λθ                      weight decay; if it is decoupled, θ ← θ − ηλθ instead
    μ_t = β₁ (1 − ½ · 0.96^(tψ))      the momentum's own schedule, ψ = momentum_decay
    Π   ← Π · μ_t
    m   ← β₁ m + (1 − β₁) g
    v   ← β₂ v + (1 − β₂) g²
    θ   ← θ − η [(1 − μ_t) / (1 − Π) · g + μ_{t+1} / (1 − Π μ_{t+1}) · m] / (√v / √(1 − β₂^t) + ε)

This is `torch.optim.NAdam`, whose functional form is the plain form here. On a GPU, two launches update all parameters
(`kernels.py`). They read θ, g, m and v, and write θ, m and v, each of them once. Numbers that depend only on t are
computed in float64. t and Π stay on the parameter's device. So no step waits for the GPU, and a CUDA graph can hold
one. On a CPU, one call of the native library updates all parameters (`native.py`).
"""

from vologan_kernels.nadam.optimizer import NAdam

__all__ = ["NAdam"]
