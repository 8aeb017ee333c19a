"""Unfinished work on a GPU: losses are read in order once they have arrived, and the host stays few steps ahead."""

import pytest
import torch

from vologan_fast.config import LossConfig
from vologan_fast.training import pending
from vologan_fast.training.losses import StepLosses
from vologan_fast.training.pending import PendingLosses, StepsAhead


class Event:
    """Fake for a CUDA event. It is over when the test sets `over`, or after a wait for it."""

    def __init__(self):
        self.over = self.waited_for = False

    def query(self):
        return self.over

    def synchronize(self):
        self.over = self.waited_for = True


@pytest.fixture
def events(monkeypatch):
    made = []
    monkeypatch.setattr(pending, "_arrival", lambda device: made.append(Event()) or made[-1])
    return made


def losses(value):
    return StepLosses(LossConfig(), torch.full((2, 3), value), torch.zeros(4, 3, 4), torch.zeros(2, 2, 3))


def test_on_the_cpu_they_are_there_at_once():
    queue = PendingLosses()
    queue.add(losses(2.0), {"step": 7})
    ((terms, record),) = queue.arrived()
    assert record == {"step": 7} and terms["generator_st/adversarial"] == 6.0 and terms["generator_st/total"] == 6.0
    assert not list(queue.arrived(wait=True))


def test_what_is_on_its_way_is_not_waited_for_and_comes_in_order(events):
    queue = PendingLosses()
    for step in range(3):
        queue.add(losses(float(step)), {"step": step})
    assert not list(queue.arrived())
    events[1].over = True  # a later one has arrived, an earlier one has not
    assert not list(queue.arrived())
    events[0].over = True
    assert [record["step"] for _, record in queue.arrived()] == [0, 1]
    assert not any(event.waited_for for event in events)
    assert [record["step"] for _, record in queue.arrived(wait=True)] == [2]
    assert events[2].waited_for


def test_what_the_step_changes_afterwards_does_not_reach_the_log():
    queue, shared = PendingLosses(), losses(1.0)
    queue.add(shared, {})
    shared.generator_outputs.fill_(100.0)
    ((terms, _),) = queue.arrived()
    assert terms["generator_st/adversarial"] == 3.0


@pytest.mark.gpu
def test_they_come_from_a_gpu_without_a_wait():
    queue, shared = PendingLosses(), losses(1.0)
    on_gpu = StepLosses(
        shared.config, shared.generator_outputs.cuda(), shared.metrics.cuda(), torch.zeros(2, 2, 3).cuda()
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        queue.add(on_gpu, {"step": 1})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ((terms, _),) = queue.arrived(wait=True)
    assert terms["generator_ts/adversarial"] == 3.0


def test_the_host_waits_for_the_step_before_the_last_two(events):
    ahead = StepsAhead(torch.device("cuda"), most=2)
    for asked in range(1, 6):
        ahead.add()
        assert [event.waited_for for event in events] == [step + 2 < asked for step in range(asked)]


@pytest.mark.gpu
def test_a_gpu_s_step_is_over_when_the_host_has_waited_for_it():
    ahead, done = StepsAhead(torch.device("cuda"), most=1), []
    for _ in range(4):
        torch.cuda._sleep(10**8)
        done.append(torch.cuda.Event())
        done[-1].record()
        ahead.add()
        assert all(event.query() for event in done[:-1]) and not done[-1].query()
