import functools
import math

import pytest
import torch


@pytest.fixture
def poison(monkeypatch):
    """Fill new memory with NaN, so that a value shows that no kernel wrote."""

    def poisoned(make):
        @functools.wraps(make)
        def wrapper(*arguments, **options):
            tensor = make(*arguments, **options)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return wrapper

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
