"""Counts of a step's operations: arithmetic, bytes and number. Nothing here is measured."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from vologan_fast.networks import Networks
from vologan_fast.profiling.parts import OF_OPTIONS, OPTIMIZERS, OTHER, PLACES, REST, part_of


@dataclass(frozen=True)
class Operation:
    part: str
    flop: int
    bytes: int


_NO_WORK = ("aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::empty", "aten::new_empty")


class Counts(TorchDispatchMode):
    """Context that counts the FLOP and bytes of all operations in it, and the number of operations in each part.

    An operation of `vologan_kernels` counts as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.launches: Counter[str] = Counter()
        self._places: list[str] = []
        self._backwards: dict[int, str] = {}
        """Number of an autograd node → the part of its backward."""

    @contextlib.contextmanager
    def inside(self, place: str) -> Iterator[None]:
        if place not in PLACES:
            yield
            return
        self._places.append(PLACES[place][0])
        try:
            yield
        finally:
            self._places.pop()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        place = self._places[-1] if self._places else OTHER
        node, in_backward = torch._C._current_autograd_node(), torch._C._current_graph_task_id() != -1
        if not in_backward:  # the last number is that of this operation's node, or of a former operation's
            of_backward = place if place in OF_OPTIONS else REST
            self._backwards.setdefault(torch.autograd._get_sequence_nr() - 1, of_backward)
        result = function(*args, **kwargs)
        name = function._schema.name
        if function.is_view or name.startswith(_NO_WORK):
            return result
        part = part_of(name)
        moved = size_of(needed(name, args)) + size_of(_tensors(result)) if part is not None else 0
        if part is None:
            part = place if not in_backward else self._backwards.get(node._sequence_nr() if node else -1, REST)
        formula = flop_registry.get(function.overloadpacket)
        flop = formula(*args, **kwargs, out_val=result) if formula else 0
        self.operations.append(Operation(part, flop, moved))
        self.launches[part] += 1
        return result


def needed(name: str, arguments: Any) -> list[Tensor]:
    """Return the tensors whose values an operation needs."""
    if name == "aten::convolution_backward":
        grad, image, weight, *_, (of_image, of_weight, _) = arguments
        return [grad] + [weight] * of_image + [image] * of_weight
    if name == "vologan_kernels::spectral_normalize_backward":
        grads, _, normalised, vectors, sigmas, *_ = arguments  # it needs only the shapes of the weights
        return [*grads, normalised, vectors, sigmas]
    return _tensors(arguments)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def moved_by_optimizers(optimizers: Sequence[Optimizer], networks: Networks) -> list[Operation]:
    """Return the bytes that the optimisers, and the averages if there are any, must read and write in a step."""
    found = []
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = [tensor for tensor in _tensors(optimizer.state_dict()) if tensor.dim()]
        found.append(Operation(OPTIMIZERS, 0, 3 * size_of(parameters) + 2 * size_of(state)))
    if networks.decay:
        found.append(Operation(OPTIMIZERS, 0, 3 * size_of(networks.translators.parameters())))
    return found


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the size of the tensors together, in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
