"""Networks that cannot be compiled run uncompiled, also if it is Triton that lacks a compiler."""

import pytest
from torch import nn

from vologan_fast.training.compilation import compiled_or_not

pytest.importorskip("triton")
from triton.runtime import build


@pytest.fixture
def network():
    network = nn.Linear(2, 2)
    network._compiled_call_impl = lambda *_: None
    return network


def test_without_a_c_compiler_networks_run_uncompiled(monkeypatch, tmp_path, network):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    tries = []

    def run():
        if network._compiled_call_impl:
            build.compile_module_from_src("int nothing;", "nothing")
        return "uncompiled"

    with pytest.warns(UserWarning, match="they run uncompiled .CalledProcessError.*--train.compile none"):
        assert compiled_or_not(run, [network], lambda: tries.append("again")) == "uncompiled"
    assert tries == ["again"]


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), MemoryError(), ValueError("ours")], ids=repr)
def test_other_errors_are_raised(network, error):
    def run():
        raise error

    with pytest.raises(type(error)):
        compiled_or_not(run, [network], lambda: None)
    assert network._compiled_call_impl
