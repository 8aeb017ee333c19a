"""Put the fused instance norm into a model that was written without it.

`fuse` finds each `nn.InstanceNorm2d` and each call of `F.instance_norm`, together with what follows it: a sum with a
residual, an activation, and a reflection padding. Each of them is optional, and they come in this order. Then `fuse`
rewrites the forward of the module that calls the norm: one call of `instance_norm_act` takes their place.

Every norm also becomes an `InstanceNormAct2d` without activation, for other code that calls it alone. That is the same
function, without the layout copies of `nn.InstanceNorm2d`.

No child is added, removed or renamed, and no parameter changes. So the state dict, the parameters that an optimiser
holds, and every other method of the model stay as they are.

- `surgery.py`: `fuse` itself.
- `report.py`: the report that it returns.
- `sites.py`: a norm and the steps behind it that one operation can do.
- `fused_call.py`: the call that takes the place of a site.
- `tracing.py`: the graph of a module's forward.
- `rewriting.py`: a second forward from such a graph. It says when the original forward runs instead.
"""

import sys

from vologan_kernels.fuse import fused_call, rewriting
from vologan_kernels.fuse.report import Finding, FusionReport
from vologan_kernels.fuse.surgery import fuse

__all__ = ["Finding", "FusionReport", "fuse"]

# Pickles of models that were fused before these modules moved look for them at their former places.
sys.modules |= {"vologan_kernels.rewriting": rewriting, "vologan_kernels.surgery": fused_call}
