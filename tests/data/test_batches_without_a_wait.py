"""Batches for a GPU never make the host wait, and their memory outlives what reads it. A stand-in is the GPU."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import MakeDataset
from stand_in_gpu import CUDA, Executor, StandInGpu
from torch import Tensor
from vologan_kernels import dispatch

from vologan_fast.config import AugmentConfig, DataConfig
from vologan_fast.data import load_dataset, open_loader
from vologan_fast.data.loader import held_out_batches
from vologan_fast.data.loaders import native, resident, resident_triton
from vologan_fast.data.loaders.host_memory import Reads, host_memory, send
from vologan_fast.data.loaders.resident import Images, pack_plain

MOVING = AugmentConfig(flip=0.5, shift=0.7)
CHANGING = AugmentConfig(flip=0.5, shift=0.2, crop=0.1, scale=0.2, jitter=0.3)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInGpu]:
    stand_in = StandInGpu()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: stand_in.finish())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    event = SimpleNamespace(record=lambda stream: None, synchronize=stand_in.finish)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    for module in (native, resident):
        for name in ("ThreadPoolExecutor", "ReadingThreads"):
            monkeypatch.setattr(module, name, Executor)

    def pack(color: Tensor, depth: Tensor, levels: Tensor | None, draws: Tensor, batch: Tensor) -> None:
        def kernel(color: Tensor, depth: Tensor) -> None:
            batch.copy_(pack_plain(Images(color, depth, levels), draws))

        stand_in.launch(kernel, color, depth)

    monkeypatch.setattr(resident_triton, "pack", pack)
    with stand_in:
        yield stand_in


@pytest.mark.parametrize("triton", [True, False], ids=["triton", "no triton"])
@pytest.mark.parametrize("augment", [MOVING, CHANGING], ids=["moving", "changing"])
@pytest.mark.parametrize("channels", ["rgbd", "grey+depth", "depth"])
@pytest.mark.parametrize("cache", ["none", "host", "device", "disk"])
def test_no_batch_makes_the_host_wait(
    gpu: StandInGpu,
    monkeypatch: pytest.MonkeyPatch,
    make_dataset: MakeDataset,
    cache: str,
    channels: str,
    augment: AugmentConfig,
    triton: bool,
) -> None:
    monkeypatch.setattr(dispatch, "_given_up", not triton)
    if channels == "depth":
        augment = dataclasses.replace(augment, jitter=0.0)
    config = DataConfig(size=32, backend="torch", augment=augment, cache=cache, channels=channels)
    data = load_dataset(make_dataset(), config, seed=5)
    with open_loader(dataclasses.replace(data, config=dataclasses.replace(data.config, cache="none")), 4) as loader:
        expected = [[batch.tolist() for batch in next(loader)] for _ in range(5)]
    with open_loader(data, 4, device="cuda") as loader:
        gpu.faults.clear()  # images are kept once
        batches = [next(loader) for _ in range(5)]
        faults = list(gpu.faults)
    assert not faults and all(gpu.is_on_gpu(batch) for both in batches for batch in both)
    assert [[gpu.values(batch) for batch in both] for both in batches] == expected
    assert not gpu.faults


def test_held_out_batches_do_not_make_the_host_wait(gpu: StandInGpu, make_dataset: MakeDataset) -> None:
    data = load_dataset(make_dataset(), DataConfig(size=32, backend="torch"), seed=5)
    expected = [batch.tolist() for batch in held_out_batches(data, "real", 2)]
    batches = list(held_out_batches(data, "real", 2, "cuda"))
    assert [gpu.values(batch) for batch in batches] == expected and not gpu.faults


@pytest.mark.parametrize("end", ["close", "go elsewhere", "drop"])
@pytest.mark.parametrize("cache", ["host", "disk"])
def test_kept_images_outlive_the_kernels_that_read_them(
    gpu: StandInGpu, make_dataset: MakeDataset, cache: str, end: str
) -> None:
    data = load_dataset(make_dataset(), DataConfig(size=32, backend="torch", cache=cache), seed=5)
    loader = open_loader(data, 4, device="cuda")
    gpu.faults.clear()
    for _ in range(3):
        next(loader)
    if end == "close":
        loader.close()
    elif end == "go elsewhere":
        loader.load_state_dict({"step": 0})
        loader.close()
    del loader
    gc.collect()
    gpu.finish()
    assert not gpu.faults


def test_the_stand_in_finds_what_is_wrong(gpu: StandInGpu) -> None:
    """Otherwise the tests above could not fail."""
    plain, pinned = torch.ones(3), torch.ones(3).pin_memory()
    plain.to(CUDA, non_blocking=True)
    pinned.to(CUDA)
    torch.tensor([1.0], device=CUDA)
    there = send(pinned, CUDA)
    assert gpu.faults == ["the host waits for a copy", "the host waits for a copy", "the host waits for torch.tensor"]
    gpu.faults.clear()
    pinned[0] = 2
    bool(there.sum() > 0)
    assert gpu.faults == ["memory was changed before it was read", "the host waits for __bool__"]
    gpu.faults.clear()
    gpu.launch(lambda tensor: None, pinned)
    del pinned
    gpu.finish()
    assert gpu.faults == ["memory was freed before it was read"]


@pytest.mark.gpu
def test_a_gpu_gets_what_was_sent_while_it_was_busy() -> None:
    """torch gives pinned memory to nobody while a copy from it waits: each number arrives, though all were dropped."""
    device, reads = torch.device("cuda"), Reads(torch.device("cuda"))
    send(torch.zeros(1000, dtype=torch.int32), device)
    torch.cuda._sleep(10**8)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = [send(torch.full((1000,), number, dtype=torch.int32), device) for number in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query()
    reads.add()
    reads.wait()
    assert torch.cuda.current_stream().query()
    assert [tensor.unique().tolist() for tensor in sent] == [[number] for number in range(20)]


def test_a_default_device_does_not_hold_the_hosts_memory():
    """`torch.set_default_device` says where new tensors lie, but memory of the host lies on the host."""
    with torch.device("meta"):
        memory = host_memory((2, 3), torch.uint8, torch.device("cpu"))
    assert memory.device.type == "cpu" and memory.shape == (2, 3)
