"""Several processes that train one run together: `torchrun --nproc-per-node=N -m vologan_fast.train …`.

Each process is a rank. It has its own device and its own part of each batch. Gradients are averaged, so all ranks make
the same optimisation step and hold the same weights. Only rank 0 writes and prints.

The ranks communicate in two ways. The gradients and losses of a step go from device to device (NCCL; gloo on the CPU),
and no host waits for a GPU. Messages between the Python processes, such as a request to stop, go from host to host by
gloo, once per step, in `World.together`. The wait there may be long, since rank 0 validates and saves while the others
wait. A process that ends is noticed at once, because its connections are closed. One that is stopped has no such end:
`heartbeat` finds it.

A single process is a world of size 1. All of this then does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vologan_fast import stopping
from vologan_fast.config import ConfigError
from vologan_fast.training.heartbeat import Heartbeat

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Environment variables that torchrun sets for each process."""
_PATIENCE = timedelta(hours=6)
"""Longest wait of one host for another. It is longer than any validation or checkpoint."""
_LOOK_AGAIN = 0.02
"""Seconds between two looks for the other ranks, at the start."""
_BUCKET_BYTES = 32 * 2**20
"""Bytes of gradients that are sent together: large enough for the full bandwidth, small enough for an early start."""
_LOOK = timedelta(seconds=0.5)
"""Time between two looks at the signals and the other ranks, in a wait of a host."""
_READY, _STOP, _GAVE_UP, _FAILED = range(4)
"""States that the ranks exchange in `World.together`. The largest one counts."""

T = TypeVar("T")


class PeerError(RuntimeError):
    """Another rank has failed. The message is the message of its error."""


class PeerLost(RuntimeError):
    """Another rank has ended or does not answer, so the ranks cannot communicate any more."""


class World:
    """The ranks of a run, from the view of one of them. A rank waits for the others at the end of its `with`."""

    def __init__(self) -> None:
        """Join the ranks that torchrun started, if there are any. Raises ConfigError for an incomplete environment."""
        self.rank, self.size, self.local_rank, self.local_size = _environment()
        self.device = torch.device("cpu")
        self.stopping = False
        """Whether any rank received a request to stop. It has the same value on all ranks."""
        self._between_devices: dist.ProcessGroup | None = None
        self._lost = False
        self._heartbeat: Heartbeat | None = None
        if self.size > 1:
            with stopping.default_actions():  # the other ranks may never come
                store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
                store = _unused_part(store, rank, size)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
            self._heartbeat = Heartbeat(store.clone(), rank, size)  # type: ignore[attr-defined]  # torch does not declare it

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    @property
    def launcher(self) -> str:
        """Beginning of a command that resumes the run: "python" or "torchrun …"."""
        if self.size == 1:
            return "python"
        return "torchrun " + (f"--nproc-per-node={self.size}" if self.size == self.local_size else "…")

    def use(self, device: torch.device) -> torch.device:
        """Choose this rank's own device of the type of `device`, for all later tensors, and return it.

        If a machine has fewer GPUs than ranks, raises ConfigError on the ranks without one and PeerError on the others.
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
        """Return the number of images per rank for a `batch`. Raises ConfigError if it cannot be divided evenly."""
        if batch % self.size:
            raise ConfigError(f"--train.batch is {batch}: expected a multiple of the number of processes, {self.size}")
        return batch // self.size

    @contextlib.contextmanager
    def together(self, stop: bool = False) -> Iterator[None]:
        """Return a context that all ranks enter and that they leave together.

        If a rank raises an error inside, that error is raised there and PeerError on the other ranks. If one rank
        passes `stop`, `stopping` is set on all ranks. If one raises `stopping.Stopped`, all do, and it is set too. The
        block must not communicate with other ranks.
        """
        try:
            yield
        except stopping.Stopped:
            self._meet(_GAVE_UP)
            raise
        except Exception as error:
            self._meet(_FAILED, str(error) or type(error).__name__)
            raise
        self._meet(_STOP if stop else _READY)

    def share(self, value: T) -> T:
        """Return rank 0's `value` on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        with self._noticing_losses():
            dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks in their order on rank 0, and nothing on the others.

        Tensors must be on the CPU.
        """
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        with self._noticing_losses():
            dist.gather_object(value, values)
        return values or []

    def check_same(self, **values: object) -> None:
        """Raise an error on all ranks if one has other `values` than rank 0: ConfigError there, else PeerError."""
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
        """Copy rank 0's parameters and buffers to all ranks. Equal seeds give equal values only on equal processors."""
        if self.size == 1:
            return
        for tensor in module.state_dict().values():
            value = tensor.contiguous()
            with self._noticing_losses():
                dist.broadcast(value, 0, self._between_devices)
            tensor.copy_(value)

    @torch.no_grad()
    def mean(self, values: T) -> T:
        """Return the dataclass `values` with each tensor replaced by its mean over ranks. No host waits for a GPU."""
        if self.size == 1:
            return values
        fields = dataclasses.fields(values)  # type: ignore[arg-type]
        tensors = {f.name: v for f in fields if isinstance(v := getattr(values, f.name), Tensor)}
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
        with self._noticing_losses():
            self._wait(dist.all_reduce(flat, group=self._between_devices, async_op=True), self.device)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors.values()])
        means = {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}
        return dataclasses.replace(values, **means)  # type: ignore[type-var]

    def reducer(self) -> GradientReducer | None:
        """Return the object that averages a training step's gradients. None for a single process."""
        return None if self.size == 1 else GradientReducer(self)

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # torchrun ends all processes as soon as one has failed. So first rank 0 must save and print its message. After
        # an error on this rank alone, the other ranks do not come here, so there is no wait.
        if self.size > 1 and kind is None and not self._lost:
            with contextlib.suppress(PeerError, PeerLost):
                self._meet(_READY)
                dist.destroy_process_group()
        if self._heartbeat is not None:
            self._heartbeat.stop()

    def _meet(self, state: int, message: str | None = None) -> None:
        """Wait for all ranks and exchange their states.

        If a rank has failed, this raises PeerError on the ranks that have not.
        """
        if self.size == 1:
            self.stopping |= state in (_STOP, _GAVE_UP)
            return
        with self._noticing_losses():
            worst = torch.tensor(state)
            self._wait(dist.all_reduce(worst, dist.ReduceOp.MAX, async_op=True), worst.device)
            self.stopping |= worst.item() in (_STOP, _GAVE_UP)
            if worst.item() < _FAILED:
                if worst.item() == _GAVE_UP and state != _GAVE_UP:
                    raise stopping.Stopped
                return
            messages: list[str | None] = [None] * self.size
            dist.all_gather_object(messages, message)
        if message is None:
            raise PeerError(next(m for m in messages if m is not None))

    def _wait(self, transfer: dist.Work, device: torch.device) -> None:
        """Wait for a transfer. On a GPU, only the stream waits.

        Raises PeerLost if another rank is lost, or if it is silent and a signal asks for the end.
        """
        if device.type == "cuda":
            transfer.wait()
            return
        assert self._heartbeat is not None
        while True:
            try:
                transfer.wait(_LOOK)
                return
            except RuntimeError:
                if transfer.is_completed():  # it was no timeout
                    raise
            silence = self._heartbeat.silent() if stopping.requested() else self._heartbeat.lost()
            if silence is not None:
                self._lost = True
                stopping.abandon_threads()  # those of gloo, which wait on
                raise PeerLost(silence)

    @contextlib.contextmanager
    def _noticing_losses(self) -> Iterator[None]:
        try:
            yield
        except PeerLost:
            raise
        except RuntimeError as error:  # gloo and NCCL raise it when a connection is closed
            self._lost = True
            raise PeerLost("another process of this run has ended; what it said last is the reason") from error


@dataclass
class _Bucket:
    """Gradients that are sent together."""

    work: Any  # torch's handle of the transfer
    flat: Tensor
    """The data that are sent: float32, one gradient after the other, each in its parameter's memory order."""
    views: list[Tensor]
    """Views of `flat`, one for each gradient."""
    gradients: list[Tensor]


class GradientReducer:
    """Averages gradients over the ranks while the following backward passes run.

        reducer.start(network.parameters())    # once per step, when this network's gradients are complete
        ...                                    # the backward of other networks
        reducer.finish()                       # before the optimisers use the gradients

    All ranks must make the same calls. The layout of the data follows from the parameters, so it is the same on all
    ranks. A missing gradient counts as 0, and is the mean afterwards. Sums are made in float32. All ranks get the same
    bits, and a repeated run with as many ranks gets them again.
    """

    def __init__(self, world: World, bucket_bytes: int = _BUCKET_BYTES) -> None:
        self._world = world
        self._bucket_bytes = bucket_bytes
        self._under_way: list[_Bucket] = []

    @torch.no_grad()
    def start(self, parameters: Iterable[nn.Parameter]) -> None:
        """Start to average the gradients of `parameters`. Do not read or change them before `finish`."""
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
        """Replace the gradients by their means. On a GPU, the host does not wait for the result."""
        for bucket in self._under_way:
            with self._world._noticing_losses():
                self._world._wait(bucket.work, self._world.device)
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


def _unused_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a part of the store in which no process has written yet, the same on all ranks.

    If torchrun restarts its processes, it gives them the store of the former processes. The addresses there lead
    nowhere, and new ranks that find them wait for hours. So rank 0 names a new part, and tells only ranks that are
    alive now:

        rank r    hello/r = A             a name that this process has made up
        rank 0    welcome/A = P           P is the name of the part; a hello of a dead process gets an answer too
        rank r    P/ready/r               rank 0 repeats its answers until all ranks are here
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", name)
        part = dist.PrefixStore(store.get(f"welcome/{name}").decode(), store)
        part.set(f"ready/{rank}", "")
        return part
    part = dist.PrefixStore(name, store)
    missing = set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        missing = {other for other in missing if not part.check([f"ready/{other}"])}
        time.sleep(_LOOK_AGAIN)
    return part


def _environment() -> tuple[int, ...]:
    """Return rank and size in the world, then rank and size on this machine."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0, 1
    found = {name: os.environ.get(name, "") for name in _ENVIRONMENT}
    for name, value in found.items():
        if not value.isdecimal():
            raise ConfigError(f"${name} is {value!r}: expected a number, as torchrun sets it beside $WORLD_SIZE")
    return tuple(map(int, found.values()))
