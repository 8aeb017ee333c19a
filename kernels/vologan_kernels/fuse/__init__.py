"""Put the fused instance norm into a model that was written without it.

`fuse` finds each `nn.InstanceNorm2d` and each call of `F.instance_norm`, together with what follows it: a sum with a
residual, an activation, and a reflection padding. Each of them is optional, and they come in this order. Then `fuse`
rewrites the forward of the module that calls the norm: one call of `instance_norm_act` takes their place. On a CPU, the
convolutions of that forward get channels_last images.

Only that forward changes. The norms stay `nn.InstanceNorm2d`. No child is added, removed or renamed, and no parameter
changes. So the state dict, the parameters that an optimiser holds, code that looks for norms by their class, and every
other method of the model stay as they are. `unfuse` takes the new forwards away again.

- `surgery.py`: `fuse` and `unfuse` themselves.
- `report.py`: the report that `fuse` returns.
- `strides.py`: whether the model's code depends on how tensors lie in memory.
- `sites.py`: a norm and the steps behind it that one operation can do.
- `fused_call.py`: the call that takes the place of a site.
- `convolutions.py`: the calls that take the places of convolutions, which are faster on a CPU.
- `tracing.py`: the graph of a module's forward.
- `reads.py`: everything that the forward read while it was traced.
- `guards.py`: the conditions under which the graph still holds.
- `rewriting.py`: a second forward from such a graph.
"""

import sys

from vologan_kernels.fuse import fused_call, rewriting
from vologan_kernels.fuse.report import Finding, FusionReport
from vologan_kernels.fuse.surgery import fuse, unfuse

__all__ = ["Finding", "FusionReport", "fuse", "unfuse"]

# Pickles of models that were fused before these modules moved look for them at their former places.
sys.modules |= {"vologan_kernels.rewriting": rewriting, "vologan_kernels.surgery": fused_call}
