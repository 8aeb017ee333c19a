"""Where Triton cannot compile, PyTorch takes over. All other errors of a launch are raised. No GPU is needed."""

import subprocess
import sys
import sysconfig
import tempfile
import warnings

import pytest
import torch
from vologan_kernels import dispatch
from vologan_kernels.triton_setup import cannot_compile

pytest.importorskip("triton")
from triton import knobs
from triton.backends.nvidia import driver as nvidia
from triton.runtime import build
from triton.runtime.cache import get_cache_manager

SOURCE = "#include <Python.h>\nint nothing;\n"


def compile_launcher():
    """Do what Triton does before the first launch on a GPU: compile its launcher."""
    build.compile_module_from_src(SOURCE, "nothing")


def without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return compile_launcher


def with_a_compiler_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    return compile_launcher


def with_a_compiler_that_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "false")
    return compile_launcher


def without_the_headers_of_python(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda **_: {"include": str(tmp_path)})
    return compile_launcher


def with_a_launcher_that_cannot_be_loaded(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    return compile_launcher


def without_a_folder_for_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    return compile_launcher


def without_a_cache_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    return lambda: get_cache_manager("A" * 64)


def without_libcuda(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "check_output", lambda command: b"")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return nvidia.libcuda_dirs.__wrapped__


def without_a_list_of_libraries(monkeypatch, tmp_path):
    def check_output(command):
        raise FileNotFoundError(2, "No such file or directory", command[0])

    monkeypatch.setattr(subprocess, "check_output", check_output)
    return nvidia.libcuda_dirs.__wrapped__


def without_ptxas(monkeypatch, tmp_path):
    monkeypatch.setattr(knobs.NvidiaTool, "from_path", lambda path: None)
    return lambda: knobs.nvidia.ptxas


def without_a_driver(monkeypatch, tmp_path):
    module = sys.modules["triton.runtime.driver"]  # the package has an object of the same name
    monkeypatch.setattr(module, "backends", {})
    return module._create_driver


MACHINES = [
    without_a_compiler,
    with_a_compiler_that_is_not_there,
    with_a_compiler_that_fails,
    without_the_headers_of_python,
    with_a_launcher_that_cannot_be_loaded,
    without_a_folder_for_temporary_files,
    without_a_cache_folder,
    without_libcuda,
    without_a_list_of_libraries,
    without_ptxas,
    without_a_driver,
]


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """Let operations believe that their tensors are on a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(dispatch, "_is_gpu", lambda x: True)
    monkeypatch.setattr(dispatch, "_given_up", False)


def computed(impl, launch):
    """Return an operation of 1, whose kernel is launched by `launch` and whose plain form adds 1."""
    x = torch.ones(())
    return dispatch.implementation("addition", impl, x, lambda x: x + 1, lambda: lambda x: launch())(x)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.__name__)
def test_a_machine_on_which_triton_cannot_compile_gets_the_plain_form(monkeypatch, tmp_path, on_gpu, machine):
    launch = machine(monkeypatch, tmp_path)
    sentence = "cannot compile addition here, the plain PyTorch form is used instead.*needs a C compiler"
    with pytest.warns(UserWarning, match=sentence) as caught:
        assert computed("auto", launch) == 2 and computed("auto", launch) == 2
    assert len(caught) == 1
    with pytest.raises(Exception) as raised:  # of many types
        computed("triton", launch)
    assert cannot_compile(raised.value)


def through(error, *functions):
    """Return a function that raises `error` as if it came through these functions, given as "module:name"."""

    def innermost():
        raise error

    call = innermost
    for function in reversed(functions):
        module, name = function.split(":")
        names = {"__name__": module, "call": call}
        exec(f"def {name}():\n    call()", names)
        call = names[name]
    return call


RUN = "triton.runtime.jit:run"
OTHERS = {
    "an argument is missing": through(TypeError("missing 1 required argument"), RUN, "triton.runtime.jit:dynamic_func"),
    "an option is unknown": through(KeyError("unrecognised"), RUN, "triton.runtime.jit:_pack_args"),
    "a pointer is on the CPU": through(
        ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)"),
        *(RUN, "triton.backends.nvidia.driver:__call__"),
    ),
    "the launch fails": through(
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        *(RUN, "triton.backends.nvidia.driver:__call__"),
    ),
    "the GPU's memory is full while a kernel is loaded": through(
        RuntimeError("Triton Error [CUDA]: out of memory"), RUN, "triton.compiler.compiler:_init_handles"
    ),
    "CUDA fails while a kernel is compiled": through(
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        *(RUN, "triton.compiler.compiler:compile", "triton.backends.nvidia.driver:get_current_target"),
        "torch.cuda:get_device_capability",
    ),
    "torch's memory is full": through(torch.OutOfMemoryError("CUDA out of memory"), "torch:empty"),
    "the host's memory is full": through(MemoryError(), RUN, "triton.compiler.compiler:compile"),
    "our own error": through(ValueError("expected a tensor"), "vologan_kernels.instance_norm.kernels:forward"),
    "our own kernel is asked for its grid": through(
        RuntimeError("ours"), RUN, "triton.runtime.cache:put", "vologan_kernels.launch:grid"
    ),
}


@pytest.mark.parametrize("launch", OTHERS.values(), ids=OTHERS)
def test_all_other_errors_are_raised(on_gpu, launch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Exception) as raised:  # of many types
            computed("auto", launch)
    assert not cannot_compile(raised.value) and not dispatch._given_up


def test_triton_itself_may_be_broken(on_gpu):
    """For example, its library needs a newer glibc. An import of ours that fails is raised."""
    with pytest.raises(ImportError) as raised:
        exec("import vologan_fast.absent", {"__name__": "vologan_fast.data"})
    assert not cannot_compile(raised.value)
    broken = through(ImportError("libtriton.so"), "triton:imported")
    broken.__code__ = broken.__code__.replace(co_name="<module>")
    with pytest.warns(UserWarning, match="libtriton"):
        assert computed("auto", broken) == 2
