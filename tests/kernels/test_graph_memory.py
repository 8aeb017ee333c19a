"""What a CUDA graph reads lives as long as the graph, and is there before the capture. A stand-in is the GPU."""

import contextlib
import gc
import weakref

import pytest
import torch
from stand_in_gpu import CUDA, StandInGpu
from torch import nn
from vologan_kernels import device, graph_memory
from vologan_kernels.graph_memory import GraphMemory
from vologan_kernels.pointer_table import PointerTable

ROWS, MOVED, LONGER = ((1, 2), (3, 4)), ((1, 2), (5, 6)), ((1, 2), (3, 4), (7, 8))


@pytest.fixture
def gpu(monkeypatch):
    stand_in = StandInGpu()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: stand_in.capturing)
    with stand_in:
        yield stand_in


@contextlib.contextmanager
def capture(gpu):
    gpu.capturing = True
    try:
        yield
    finally:
        gpu.capturing = False


def test_a_table_is_sent_once_and_the_host_does_not_wait(gpu):
    table = PointerTable()
    first = table(ROWS, CUDA)
    assert table(ROWS, CUDA) is first and table(MOVED, CUDA) is not first
    assert gpu.values(first) == [[1, 2], [3, 4]] and not gpu.faults


@pytest.mark.parametrize("in_capture", [(MOVED,), (MOVED, LONGER), (MOVED, MOVED, ROWS, MOVED)], ids=len)
def test_tables_of_a_graph_are_there_after_the_capture_and_as_long_as_its_memory(gpu, in_capture):
    """The tables of a capture may have other contents than those before, and the shapes of several runs."""
    table, memory = PointerTable(), GraphMemory()
    for runs in ([ROWS] * len(in_capture), [LONGER] * len(in_capture), [ROWS]):
        with memory.counted():
            for rows in runs:
                table(rows, CUDA)
    with memory.held(CUDA), capture(gpu):
        tables = [table(rows, CUDA) for rows in in_capture]
    used = [weakref.ref(t.untyped_storage()) for t in tables]
    host = [[list(row) for row in rows] for rows in in_capture]
    table(LONGER, CUDA)  # the next eager run has another table
    assert [gpu.values(t) for t in tables] == host and not gpu.faults
    del tables
    gc.collect()
    assert all(storage() is not None for storage in used)
    del table, memory
    gc.collect()
    assert not any(storage() is not None for storage in used)


def test_a_table_in_a_graph_lies_as_one_before_the_capture_does():
    """Triton compiles another kernel for an address that is no multiple of 16. In a capture, this must not happen."""
    odd, memory, device = ((1, 2, 3),), GraphMemory(), torch.device("cpu")
    with memory.counted():
        for _ in range(3):
            memory.count(3)
    with memory.held(device):
        tables = [memory.table(torch.tensor(odd)) for _ in range(3)]
    assert [table.tolist() for table in tables] == [[[1, 2, 3]]] * 3
    assert {table.data_ptr() % 16 for table in tables} == {0}


def test_graphs_do_not_add_up_in_the_table(gpu):
    """When the learning rate changes, a step is captured again, with the same memory object or with a new one."""
    table, memory = PointerTable(), GraphMemory()
    with memory.counted():
        table(ROWS, CUDA)
    kept = []
    for gradient in range(5):
        with memory.held(CUDA), capture(gpu):
            kept.append(weakref.ref(table(((1, 2), (3, gradient)), CUDA).untyped_storage()))
    gc.collect()
    assert [storage() is not None for storage in kept] == [False] * 4 + [True] and not gpu.faults


def test_a_capture_without_memory_of_its_own(gpu):
    """The object keeps the pinned memory that each replay copies, but not the table, which is the graph's."""
    table = PointerTable()
    table(ROWS, CUDA), table(ROWS, CUDA)
    with capture(gpu):
        captured = table(MOVED, CUDA)
    assert gpu.values(captured) == [[1, 2], [5, 6]] and not gpu.faults
    storage = weakref.ref(captured.untyped_storage())
    del captured
    gc.collect()
    assert storage() is None and [host.tolist() for host in table._captured] == [[[1, 2], [5, 6]]]
    table(MOVED, CUDA)
    with capture(gpu):
        table(ROWS, CUDA)  # a second graph: the spare was replaced
    assert not gpu.faults


def test_constants_of_a_graph_live_as_long_as_it_does(gpu):
    memory = GraphMemory()
    constant = device.constants((1.0, 2.0), CUDA, torch.float32)
    with memory.held(CUDA), capture(gpu):
        assert device.constants((1.0, 2.0), CUDA, torch.float32) is constant
    device._constants.cache_clear()
    storage = weakref.ref(constant.untyped_storage())
    del constant
    gc.collect()
    assert storage() is not None
    del memory
    gc.collect()
    assert storage() is None
    assert not graph_memory._of_nobody


def test_a_device_writes_the_numbers_of_a_definition_itself(gpu):
    like = torch.zeros(3, device=CUDA)
    found = device.numbers([0.5, 2.0, 3.0], like)
    assert gpu.values(found) == [0.5, 2.0, 3.0] and found.dtype == torch.float32 and not gpu.faults


def test_tables_of_a_model_go_with_it():
    from vologan_kernels.spectral_norm import kernels

    def layers():
        return [nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)]

    kernels._known.clear()
    first, other = layers(), layers()
    tables = kernels._tables([layer.weight for layer in first])
    assert kernels._tables([layer.weight.detach() for layer in first]) is tables
    reference = weakref.ref(tables["rows"])
    del first, tables
    kernels._tables([layer.weight for layer in other])
    assert reference() is None and len(kernels._known) == 1


def test_many_models_keep_their_tables():
    """A graph without a `GraphMemory` reads the tables of its model, however many other models there are."""
    from vologan_kernels.spectral_norm import kernels

    weights = [[torch.zeros(2, 2)] for _ in range(100)]
    tables = [kernels._tables(one) for one in weights]
    assert all(kernels._tables(one) is found for one, found in zip(weights, tables, strict=True))


def test_a_default_device_does_not_hold_the_tables():
    """`torch.set_default_device` says where new tensors lie. Tables are made on the host, and sent to their device."""
    table, memory, cpu = PointerTable(), GraphMemory(), torch.device("cpu")
    with torch.device("meta"):
        with memory.counted():
            assert table(ROWS, cpu).tolist() == [[1, 2], [3, 4]]
        with memory.held(cpu):
            found = memory.table(torch.tensor(MOVED, device=cpu))
    assert found.tolist() == [[1, 2], [5, 6]]
