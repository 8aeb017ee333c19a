"""The norm's kernels as a GPU runs them: every activation, type, layout, residual, padding and way to launch.

The other tests of the norm run on a GPU, too, if there is one. `pytest -m gpu` selects these alone, and has little
time. So a case has one combination, and `test_the_cases_hold_every_pair` shows that no pair is left out.
"""

import itertools
import random

import pytest
from test_instance_norm import DTYPES, LAYOUTS, Case, randn
from vologan_kernels import ACTIVATIONS, launch

SHAPES = {"single": (2, 40, 24, 18), "two launches": (2, 48, 256, 200), "one launch": (2, 48, 256, 200)}
"""Planes that fit a program, and planes that do not."""


def cases(seed):
    """Return two cases for each activation and type. The other properties are drawn."""
    draw = random.Random(seed)
    for activation, dtype in itertools.product(ACTIVATIONS, DTYPES * 2):
        launches, layout, residual, pad = map(draw.choice, (list(SHAPES), list(LAYOUTS), (False, True), (0, 1, 2)))
        from_output = ACTIVATIONS[activation].inverse is not None and draw.random() < 0.5
        yield activation, dtype, launches, layout, residual, pad, from_output


def missing(cases):
    """Return the pairs that no case holds. Without an inverse, an activation cannot save its output."""
    values = [list(dict.fromkeys(column)) for column in zip(*cases, strict=True)]
    without_inverse = {(name, True) for name, row in ACTIVATIONS.items() if row.inverse is None}
    for a, b in itertools.combinations(range(len(values)), 2):
        pairs = {(case[a], case[b]) for case in cases}
        yield from set(itertools.product(values[a], values[b])) - pairs - without_inverse


CASES = list(cases(seed=16))


def test_the_cases_hold_every_pair():
    """If an activation was added, another seed may be needed."""
    assert not list(missing(CASES))


def test_the_shapes_are_launched_as_they_are_named():
    for launches, (_, c, h, w) in SHAPES.items():
        for dtype, channels_last, backward in itertools.product(DTYPES, (False, True), (False, True)):
            tile = launch.single_tile(h * w, c, channels_last, dtype.itemsize, backward=backward)
            assert (tile is not None) == (launches == "single")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("activation", "dtype", "launches", "layout", "residual", "pad", "from_output"), CASES, ids=str
)
def test_on_a_gpu(monkeypatch, activation, dtype, launches, layout, residual, pad, from_output):
    monkeypatch.setattr(launch, "ONE_LAUNCH", launches == "one launch")
    x = randn(*SHAPES[launches], dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    min_scale = 2**-6 if from_output else 0.0
    Case(x, activation=activation, residual=residual, pad=pad, from_output=from_output, min_scale=min_scale).check()
