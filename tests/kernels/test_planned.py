"""Launches that are planned once: they are what Triton itself would launch, without its interpreter."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("bound_launches.py")
CHECKS = [
    "a_bound_launch_gives_the_launcher_what_tritons_own_gives",
    "with_an_unknown_triton_too",
    "hooks_of_profilers_see_every_launch",
    "no_call_launches_what_another_one_should",
    "an_address_that_is_no_multiple_of_16_gets_a_kernel_of_its_own",
    "each_device_has_its_own_plans",
    "plans_keep_no_tensor",
    "a_stand_in_gets_the_launches_of_a_kernel_that_was_bound",
]


@pytest.fixture(scope="module")
def errors():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_bound_launches(errors, check):
    assert errors[check] is None, errors[check]


def test_every_check_is_here(errors):
    assert list(errors) == CHECKS


@pytest.mark.parametrize(("gpus", "entered"), [(1, []), (2, [torch.device("cuda", 1)])])
def test_a_plan_runs_on_the_device_of_its_first_tensor(gpus, entered, monkeypatch):
    from vologan_kernels import planned_triton as planned

    seen = []

    @contextlib.contextmanager
    def device(which):
        seen.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "device", device)
    run = planned._on_device(torch.device("cuda", 1), lambda x: x + 1)
    assert seen == []
    assert run(1) == 2
    assert seen == entered
