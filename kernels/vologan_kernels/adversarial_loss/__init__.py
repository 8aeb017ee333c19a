"""Adversarial losses over any number of discriminator outputs.

Let z be the logits of one output. The loss is averaged over all elements of an output, weighted, and summed over the
outputs:

| kind       | real                | fake                | generator           |
|------------|---------------------|---------------------|---------------------|
| lsgan      | (z − 1)²            | z²                  | (z − 1)²            |
| bce        | softplus(−z)        | softplus(z)         | softplus(−z)        |
| hinge      | max(0, 1 − z)       | max(0, 1 + z)       | −z                  |
| hinge_both | max(0, 1 − z)       | max(0, 1 + z)       | max(0, 1 − z)       |
| wgan       | −z                  | z                   | −z                  |

- lsgan: Mao et al. (arXiv 1611.04076).
- bce: the non-saturating loss of Goodfellow et al. (arXiv 1406.2661). Here softplus(x) = max(x, 0) + log(1 + e^−|x|),
  which neither overflows nor loses the small terms.
- hinge: Lim and Ye (arXiv 1705.02894).
- hinge_both: the generator has a hinge too, as published with VoloGAN (arXiv 2207.09204). It learns nothing from logits
  of 1 and more.
- wgan: the critic of Arjovsky et al. (arXiv 1701.07875). The caller has to bound its Lipschitz constant.

All outputs of all discriminators take one launch forward and one backward (`kernels.py`). Each reads the logits once;
the backward writes as much. Sums are float32 for all dtypes but float64, which has float64 sums.
"""

from vologan_kernels.adversarial_loss.operation import adversarial_loss, adversarial_losses
from vologan_kernels.adversarial_loss.reference import KINDS, ROLES, Role, elementwise_loss

__all__ = ["KINDS", "ROLES", "Role", "adversarial_loss", "adversarial_losses", "elementwise_loss"]
