"""Memory that runs out: the sizes are said, and the options that help most."""

import re
import resource
import subprocess
import sys

import pytest
import torch
from test_train import ONE_THREAD, TINY

from vologan_fast.config import PRESETS
from vologan_fast.data.demo import make_demo
from vologan_fast.profiling.less_memory import options_for_less_memory


def test_a_limit_of_memory_gets_sizes_and_options(tmp_path):
    data, limit = make_demo(tmp_path / "data", count=4, size=64), 6 << 30
    options = ["--data.size", "1024", "--train.batch", "4", "--generator.width", "64", "--run-dir", tmp_path / "run"]
    command = [sys.executable, "-m", "vologan_fast.train", *TINY, *options, "--data", data]
    done = subprocess.run(
        [*map(str, command)],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    sizes = r"[\d.]+ [MG]B were in use at the peak, [\d.]+ [MG]B are the most"
    assert re.match(rf"error: memory ran out \(.*\); {sizes}; less is needed with --train.micro-batch, ", error), error
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_options_that_help_most_are_named():
    options = options_for_less_memory(PRESETS["vologan-64"], torch.device("cpu"))
    assert len(options) == 3
    shares = [int(re.fullmatch(r"--\S+ [\d ]+ \(about (\d+)% less\)", option)[1]) for option in options]
    assert shares == sorted(shares, reverse=True) and shares[-1] >= 1 and shares[0] < 90
