"""Several processes that train one run together: `torchrun --nproc-per-node=N -m vologan_fast.train …`.

Every process, a rank, has a device and a part of each batch of its own. Gradients are averaged, so all ranks make the
same optimisation step and hold the same weights. Rank 0 alone writes and prints.

There are two ways to talk. Tensors of a step, gradients and losses, go from device to device (NCCL; gloo on the CPU),
and no host waits for a GPU. What Python must know, such as whether to stop, goes from host to host by gloo: once a
step, in `World.together`. A host may be waited for there as long as it takes, since rank 0 validates and saves while
the others wait; a process that ends is noticed at once, as its connections are closed.

A single process is a world of size 1, in which all of this does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vologan_fast.config import ConfigError

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun tells each process."""
_PATIENCE = timedelta(hours=6)
"""How long hosts wait for each other: longer than any validation or checkpoint."""
_BUCKET_BYTES = 32 * 2**20
"""Of gradients that travel together: large enough for the full bandwidth, small enough to start early."""
_READY, _STOP, _FAILED = range(3)
"""What a rank says when all meet; the largest counts."""

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank has failed; the message is that of its error."""


class PeerLost(RuntimeError):
    """Another rank is gone, and nothing can be agreed any more."""


class World:
    """The ranks of a run, seen from one of them. Leaving its `with` block waits for the others to do so."""

    def __init__(self) -> None:
        """Join the ranks that torchrun started, if it did. Raises ConfigError for an environment that is incomplete."""
        self.rank, self.size, self.local_rank, self.local_size = _environment()
        self.device = torch.device("cpu")
        self.stopping = False
        """Whether a rank was told to stop; the same on all ranks."""
        self._between_devices: dist.ProcessGroup | None = None
        self._lost = False
        if self.size > 1:
            dist.init_process_group("gloo", timeout=_PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    @property
    def launcher(self) -> str:
        """What a command that goes on with the run starts with."""
        if self.size == 1:
            return "python"
        return "torchrun " + (f"--nproc-per-node={self.size}" if self.size == self.local_size else "…")

    def use(self, device: torch.device) -> torch.device:
        """Choose this rank's own device of that type, for all tensors to come.

        Raises ConfigError on all ranks if a machine has fewer GPUs than ranks.
        """
        self.device = device
        if self.size == 1:
            return device
        self.check_same(device=device.type)
        if device.type == "cuda":
            with self.together():
                if self.local_rank >= torch.cuda.device_count():
                    raise ConfigError(
                        f"--nproc-per-node={self.local_size}: expected at most {torch.cuda.device_count()}, "
                        f"the number of GPUs of {socket.gethostname()}"
                    )
            self.device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(self.device)
        self._between_devices = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo")
        return self.device

    def part_of(self, batch: int) -> int:
        """How many of a batch's images a rank gets. Raises ConfigError if they cannot be shared evenly."""
        if batch % self.size:
            raise ConfigError(f"--train.batch is {batch}: expected a multiple of the number of processes, {self.size}")
        return batch // self.size

    @contextlib.contextmanager
    def together(self, stop: bool = False) -> Iterator[None]:
        """All ranks go through this block, and leave it when all have come to its end.

        Where one fails, all leave it with an error: that one with its own, the others with PeerError. Where one says
        `stop`, all find `stopping` set. Inside, nothing may be sent to other ranks.
        """
        try:
            yield
        except Exception as error:
            self._meet(_FAILED, str(error) or type(error).__name__)
            raise
        self._meet(_STOP if stop else _READY)

    def share(self, value: T) -> T:
        """Rank 0's `value`, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        with self._noticing_losses():
            dist.broadcast_object_list(box)
        return box[0]

    def check_same(self, **values: object) -> None:
        """Raise ConfigError on all ranks if one has other `values` than rank 0."""
        expected = self.share(values)
        with self.together():
            for name, value in values.items():
                if value != expected[name]:
                    raise ConfigError(
                        f"{name}: what rank {self.rank} on {socket.gethostname()} has is not what rank 0 has; "
                        "every node must see the same data set and run folder"
                    )

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give all ranks rank 0's parameters and buffers. Equal seeds make them equal only on equal processors."""
        if self.size == 1:
            return
        for tensor in module.state_dict().values():
            value = tensor.contiguous()
            with self._noticing_losses():
                dist.broadcast(value, 0, self._between_devices)
            tensor.copy_(value)

    @torch.no_grad()
    def mean(self, values: T) -> T:
        """`values`, a dataclass, with each of its tensors replaced by the mean over the ranks; no GPU is waited for."""
        if self.size == 1:
            return values
        fields = dataclasses.fields(values)  # type: ignore[arg-type]
        tensors = {f.name: v for f in fields if isinstance(v := getattr(values, f.name), Tensor)}
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
        with self._noticing_losses():
            dist.all_reduce(flat, group=self._between_devices)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors.values()])
        means = {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}
        return dataclasses.replace(values, **means)  # type: ignore[type-var]

    def reducer(self) -> GradientReducer | None:
        """What a training step averages its gradients with; None for a single process."""
        return None if self.size == 1 else GradientReducer(self)

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # torchrun ends all processes as soon as one has failed: rank 0 must first have saved and said why. After an
        # error that the others do not know of there is nobody to wait for.
        if self.size > 1 and kind is None and not self._lost:
            with contextlib.suppress(PeerError, PeerLost):
                self._meet(_READY)
                dist.destroy_process_group()

    def _meet(self, state: int, message: str | None = None) -> None:
        """Wait for all ranks and hear how they are. Raises PeerError unless this rank is one that failed itself."""
        if self.size == 1:
            self.stopping |= state == _STOP
            return
        with self._noticing_losses():
            worst = torch.tensor(state)
            dist.all_reduce(worst, dist.ReduceOp.MAX)
            self.stopping |= worst.item() == _STOP
            if worst.item() < _FAILED:
                return
            messages: list[str | None] = [None] * self.size
            dist.all_gather_object(messages, message)
        if message is None:
            raise PeerError(next(m for m in messages if m is not None))

    @contextlib.contextmanager
    def _noticing_losses(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's, about sockets
            self._lost = True
            raise PeerLost("another process of this run has ended; what it said last is the reason") from error


@dataclass
class _Bucket:
    """Gradients that travel together."""

    work: Any  # torch's handle of the transfer
    flat: Tensor
    """What travels: float32, one gradient after the other, each in its parameter's order in memory."""
    views: list[Tensor]
    """The gradients in `flat`."""
    gradients: list[Tensor]


class GradientReducer:
    """Averages gradients over the ranks, beside the backward passes that follow.

        reducer.start(network.parameters())    # when this network's gradients are complete, once a step
        ...                                    # the others' backward
        reducer.finish()                       # before the optimisers use them

    All ranks make the same calls. What travels is laid out by the parameters, so it is the same everywhere: a parameter
    without a gradient counts as 0, and has the mean as its gradient afterwards. Sums are made in float32; all ranks get
    the same bits, and the same again when a run is repeated with as many ranks.
    """

    def __init__(self, world: World, bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._world = world
        self._bucket_bytes = bucket_bytes
        self._under_way: list[_Bucket] = []

    @torch.no_grad()
    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Send the gradients of `parameters` off; until `finish` nobody may touch them."""
        for bucket in self._buckets(parameters):
            flat = torch.empty(sum(p.numel() for p in bucket), device=bucket[0].device)
            parts = flat.split([p.numel() for p in bucket])
            views = [part.as_strided(p.shape, p.stride()) for part, p in zip(parts, bucket, strict=True)]
            gradients = [_gradient(p) for p in bucket]
            torch._foreach_copy_(views, gradients)
            with self._world._noticing_losses():
                work = dist.all_reduce(flat, group=self._world._between_devices, async_op=True)
            self._under_way.append(_Bucket(work, flat, views, gradients))

    @torch.no_grad()
    def finish(self) -> None:
        """Put the means where the gradients were. A GPU's host does not wait for them."""
        for bucket in self._under_way:
            with self._world._noticing_losses():
                bucket.work.wait()
            bucket.flat /= self._world.size
            torch._foreach_copy_(bucket.gradients, bucket.views)
        self._under_way.clear()

    def _buckets(self, parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
        bucket: list[nn.Parameter] = []
        size = 0
        for parameter in parameters:
            if bucket and size + 4 * parameter.numel() > self._bucket_bytes:
                yield bucket
                bucket, size = [], 0
            bucket.append(parameter)
            size += 4 * parameter.numel()
        if bucket:
            yield bucket


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _environment() -> tuple[int, ...]:
    """Rank and size of the world, and of this machine's part of it."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0, 1
    found = {name: os.environ.get(name, "") for name in _ENVIRONMENT}
    for name, value in found.items():
        if not value.isdecimal():
            raise ConfigError(f"${name} is {value!r}: expected a number, as torchrun sets it beside $WORLD_SIZE")
    return tuple(map(int, found.values()))
