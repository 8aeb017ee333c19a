"""bench/on_gpu.sh: whatever ends a test, a part or the run, a full table is left, and its numbers are the GPU's."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.syspath_prepend(BENCH / "kernels")


@pytest.fixture
def collect():
    return importlib.import_module("collect")


# ---- rows and ratios ------------------------------------------------------------------------------------------------


def side(name, **numbers):
    return {"test": f"test[{name}]", "benchmark": "b", "case": "c", "side": name, **numbers}


def test_ratios_are_those_of_one_case(collect):
    rows = [side("ours", microseconds=2.0), side("eager", microseconds=6.0), side("ours", floor_microseconds=1.0)]
    rows += [{**side("eager", microseconds=8.0), "case": "d"}]
    ours, eager, alone = (line for case in collect.cases(collect.lines(rows)) for line in case)
    assert (ours["ratio"], eager["ratio"]) == (1, 3) and "ratio" not in alone
    assert collect.cells(eager)[5] == "17 %" and collect.cells(ours)[5] == "50 %"  # of the rate of a copy


def test_without_ours_another_side_of_ours_is_the_base(collect):
    rows = [side("eager", microseconds=6.0), side("ours, not compiled", microseconds=3.0), side("ours")]
    assert [line.get("ratio") for line in collect.cases(collect.lines(rows))[0]] == [2, 1, None]


def test_a_side_with_other_losses_has_no_speed(collect):
    losses = [[1.0, 2.0], [1.0, 2.0]]
    wrong = [[1.0, 2.0], [1.0, 2.2]]
    rows = [
        side("ours", milliseconds=1.0, losses=losses, tolerance=[1e-5, 1e-2]),
        side("eager", milliseconds=2.0, losses=wrong, tolerance=[1e-5, 1e-2]),
        side("lucky", milliseconds=2.0, losses=[[float("nan"), 2.0], [1.0, 2.0]], tolerance=[1e-5, 1e-2]),
        side("eager fp32", milliseconds=4.0, losses=losses, tolerance=[1e-5, 1e-2]),
    ]
    ours, eager, lucky, reference = collect.cases(collect.lines(rows))[0]
    assert ours["losses_differ"] == [0, 0] and reference["ratio"] == 4
    assert "ratio" not in eager and collect.cells(eager)[-1].startswith("WRONG: losses differ by 1.0e-01")
    assert "ratio" not in lucky and collect.cells(lucky)[-1].startswith("WRONG")


def test_a_row_that_was_cut_off_is_left_out(collect, tmp_path):
    rows = tmp_path / "rows"
    collect.append(rows, side("ours", microseconds=1.0))
    with rows.open("ab") as file:
        file.write('{"test": "t", "µ'.encode()[:-1])
    assert collect.read(rows) == [side("ours", microseconds=1.0)]
    collect.append(rows, side("eager", microseconds=2.0))  # the disk was full, and has room again
    collect.append(rows, side("native", microseconds=3.0))
    assert [row["side"] for row in collect.read(rows)] == ["ours", "native"]


# ---- time -----------------------------------------------------------------------------------------------------------


class FakeGpu:
    """A host and a GPU with a queue, whose clocks only go on where something takes its time."""

    def __init__(self, host, gpu, waits=False, most=1000):
        self.host, self.gpu, self.waits, self.most = host, gpu, waits, most
        self.now = 0.0
        self.ends = []  # of what is enqueued

    def enqueue(self, seconds):
        self.ends = [end for end in self.ends if end > self.now]
        if len(self.ends) >= self.most:
            self.now = self.ends[-self.most]  # the host waits for a place in the queue
        begin = max([self.now, *self.ends[-1:]])
        self.ends.append(begin + seconds)

    def call(self, i):
        self.now += self.host
        self.enqueue(self.gpu)
        if self.waits:
            self.synchronize()

    def synchronize(self):
        self.now = max([self.now, *self.ends[-1:]])

    def event(self, enable_timing):
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu):
        self.of = gpu

    def record(self):
        self.at = max([self.of.now, *self.of.ends[-1:]])

    def query(self):
        return self.of.now >= self.at

    def synchronize(self):
        self.of.now = max(self.of.now, self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.mark.parametrize(
    ("host", "gpu", "most"),
    [(100e-6, 5e-6, 1000), (5e-6, 100e-6, 1000), (100e-6, 5e-6, 20), (5e-6, 100e-6, 20), (2e-3, 1e-3, 1000)],
)
def test_the_time_is_the_gpu_s_and_not_the_host_s(monkeypatch, host, gpu, most):
    """Also if the queue holds only 20 launches."""
    found = measured(monkeypatch, FakeGpu(host, gpu, most=most))
    assert found.call == pytest.approx(1e6 * gpu) and found.host == pytest.approx(1e6 * host)
    assert not found.waits and found.spread == pytest.approx(0, abs=1e-6)


def test_a_call_that_waits_for_the_gpu_is_named(monkeypatch):
    found = measured(monkeypatch, FakeGpu(50e-6, 20e-6, waits=True))
    assert found.waits and "waits for the GPU" in found.row["note"]


def measured(monkeypatch, fake):
    pytest.importorskip("pytest_benchmark")
    measuring = importlib.import_module("measuring")
    monkeypatch.setattr(measuring, "ON_GPU", True)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: fake.now)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: fake.enqueue(cycles / 1.5e9), raising=False)
    measuring._cycles_a_second.cache_clear()
    try:
        return measuring.measure(fake.call, sets=4)
    finally:
        measuring._cycles_a_second.cache_clear()


# ---- the run --------------------------------------------------------------------------------------------------------

FAULTS = """
import os, signal, time
import pytest

def measured(record, side):
    record("b", "c", side, microseconds=1.0)

@pytest.mark.parametrize("side", ["ours", "memory", "crash", "killed", "hang", "skipped", "wrong", "last"])
def test_side(side, record):
    record("b", "c", side)
    if side == "memory":
        raise MemoryError("CUDA out of memory. Tried to allocate 1 PiB")
    if side == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if side == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if side == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if side == "skipped":
        pytest.importorskip("a_package_that_is_not_there")
    assert side != "wrong", "computes a wrong result"
    measured(record, side)
"""
MISSING = "import a_package_that_is_not_there\ndef test_it(): pass\n"
SLOW = """
import time
import pytest

@pytest.mark.parametrize("i", range(100))
def test_slow(i, record):
    record("slow", f"case {i}", "ours")
    time.sleep(0.5)
    record("slow", f"case {i}", "ours", microseconds=float(i))
"""
DRIVER = """
import sys
sys.path.insert(0, "bench")
from pathlib import Path
import on_gpu
from on_gpu import Part
plan = {plan}
on_gpu.Run._environment = lambda self: {{"device": "GPU", "commit": "c"}}
on_gpu.Run._build = lambda self: None
folder = Path("rows")
folder.mkdir(exist_ok=True)
sys.exit(not on_gpu.Run(plan, {seconds}, Path("results"), False, folder)())
"""


@pytest.fixture
def driver(tmp_path):
    """Return a function that starts a run of a plan in a copy of bench/ with faulty benchmarks."""
    (tmp_path / "bench").mkdir()
    for name in ("collect.py", "conftest.py", "on_gpu.py"):
        shutil.copy(BENCH / name, tmp_path / "bench")
    for name, text in {"faults": FAULTS, "missing": MISSING, "slow": SLOW}.items():
        (tmp_path / "bench" / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def start(plan: str, seconds: float = 60) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER.format(plan=plan, seconds=seconds)]
        return subprocess.Popen(command, cwd=tmp_path, env={**variables(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})

    return start


def variables():
    """The environment without what concerns the run of pytest that this test is in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


def result(tmp_path):
    found = json.loads((tmp_path / "results" / "GPU-c.json").read_text())
    return {part["name"]: part["result"] for part in found["parts"]}, {row["side"]: row for row in found["rows"]}


def test_no_fault_of_a_side_loses_another(driver, tmp_path):
    plan = '[[Part("a", ["bench/test_faults.py"], 50, a_test=3), Part("b", ["bench/test_missing.py"], 20)]]'
    assert driver(plan).wait(timeout=120) == 1
    parts, rows = result(tmp_path)
    why = {name: row.get("why", "") for name, row in rows.items()}
    assert rows["ours"]["microseconds"] == rows["last"]["microseconds"] == 1
    assert why["memory"] == "out of memory"
    assert why["crash"] == "FAILED: ended by SIGSEGV" and why["killed"] == "FAILED: ended by SIGKILL (no memory?)"
    assert why["hang"] == "stopped: nothing happened for 3 s"
    assert "a_package_that_is_not_there" in why["skipped"] and "a wrong result" in why["wrong"]
    assert "No module named 'a_package_that_is_not_there'" in why[""]
    assert parts["a"] == "2 passed, 5 failed, 1 skipped"
    text = (tmp_path / "results" / "GPU-c.md").read_text()
    assert all(f"| {name} |" in text for name in rows if name)


def test_the_run_ends_in_time_and_says_what_it_left_out(driver, tmp_path):
    began = time.monotonic()
    plan = '[[Part("a", ["bench/test_slow.py"], 50)], [Part("b", ["bench/test_faults.py"], 20)]]'
    driver(plan, seconds=4).wait(timeout=60)
    assert time.monotonic() - began < 4 + 5  # the start of Python, killing and writing
    parts, _ = result(tmp_path)
    rows = json.loads((tmp_path / "results" / "GPU-c.json").read_text())["rows"]
    assert parts["b"] == "not reached" and [row["case"] for row in rows[100:]] == ["part 'b'"]
    assert rows[0]["microseconds"] == 0 and {row["why"] for row in rows[99:]} == {"not reached"}


def test_kill_9_leaves_a_table_and_no_process(driver, tmp_path):
    process = driver('[[Part("a", ["bench/test_slow.py"], 50)]]')
    rows = tmp_path / "rows" / "a.jsonl"
    until(lambda: rows.exists() and rows.read_text().count("microseconds") >= 2)
    until(lambda: "| 0 µs |" in (tmp_path / "results" / "GPU-c.md").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)
    size = rows.stat().st_size
    time.sleep(1.2)
    assert rows.stat().st_size == size  # the benchmark has ended, too
    found = json.loads((tmp_path / "results" / "GPU-c.json").read_text())["rows"]
    assert found[0]["microseconds"] == 0 and len(found) == 100


def until(what, seconds=30):
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


# ---- machines that lack something ------------------------------------------------------------------------------------

MAIN = """
import errno, sys, time
sys.path.insert(0, "bench")
import collect, on_gpu
from on_gpu import Part
on_gpu.PLAN[:] = [[Part("a", ["bench/test_{benchmark}.py"], 50)]]
on_gpu.Run._environment = lambda self: {{"device": "GPU", "commit": "c"}}
on_gpu.Run._build = lambda self: None
write = collect.write
{more}
sys.argv = ["on_gpu.sh", "results"]
sys.exit(on_gpu.main())
"""
SLOW_WRITE = """
def slow(*arguments):
    write(*arguments)
    print("writing", flush=True)
    time.sleep(0.5)
collect.write = slow
"""
FULL_DISK = """
def full(name, *arguments):
    if name.with_suffix(".md").exists():
        raise OSError(errno.ENOSPC, "No space left on device")
    write(name, *arguments)
collect.write = full
"""
FALLBACK = """
import pytest
from vologan_kernels import dispatch

@pytest.mark.parametrize("side", ["ours", "ours too"])
def test_side(side, record):
    record("b", "c", side)
    if not dispatch._given_up:
        dispatch._give_up("a norm", RuntimeError("no C compiler"))
    record("b", "c", side, microseconds=1.0)
"""


@pytest.fixture
def command(driver, tmp_path):
    """Return a function that starts the command on one file of benchmarks. The fixture `driver` has made the files."""
    (tmp_path / "bench" / "test_fallback.py").write_text(FALLBACK)
    (tmp_path / "temporary").mkdir()
    environment = {**variables(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TMPDIR": str(tmp_path / "temporary")}

    def start(benchmark: str, more: str = "") -> subprocess.Popen:
        code = MAIN.format(benchmark=benchmark, more=more)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes)

    return start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_result_is_written_ends_the_run(command, tmp_path, number):
    process = command("slow", SLOW_WRITE)
    until(lambda: "| 0 µs |" in (tmp_path / "results" / "GPU-c.md").read_text() if process.stdout.readline() else 1 / 0)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1 and said.endswith("GPU-c.md has what was measured\n")
    assert not list((tmp_path / "temporary").iterdir())
    assert json.loads((tmp_path / "results" / "GPU-c.json").read_text())["rows"][0]["microseconds"] == 0


def test_a_full_disk_ends_no_run(command, tmp_path):
    process = command("faults", FULL_DISK)
    (tmp_path / "bench" / "test_faults.py").write_text(FAULTS.replace('"memory", "crash", "killed", "hang", ', ""))
    shown, said = process.communicate(timeout=60)
    assert "| last | 1 µs |" in shown and "cannot be written now" in said and "No space left" in said


def test_a_folder_that_cannot_be_written_is_named(command, tmp_path):
    (tmp_path / "results").write_text("a file")
    process = command("faults")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and len(said.splitlines()) == 1
    assert said.startswith(f"bench/on_gpu.sh: {tmp_path / 'results'}: the result cannot be written: ")


def test_no_result_is_overwritten(tmp_path):
    on_gpu = importlib.import_module("on_gpu")
    names = []
    for _ in range(3):
        run = on_gpu.Run([], 1, tmp_path, False, tmp_path)
        run.about = {"device": "NVIDIA RTX 6000/8000", "commit": "a branch/with a slash"}
        names.append(run._new_name().name)
    assert names[0] == "NVIDIA-RTX-6000-8000-a-branch-with-a-slash" and names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


def test_ours_in_plain_pytorch_has_no_time(command, tmp_path):
    """Where Triton cannot compile, the package falls back with one warning. No test may measure that as ours."""
    command("fallback").communicate(timeout=60)
    _, rows = result(tmp_path)
    assert not any("microseconds" in row for row in rows.values()) and rows.keys() == {"ours", "ours too"}
    assert all("Triton cannot compile a norm here" in row["why"] for row in rows.values())


def test_missing_packages_are_named(monkeypatch, tmp_path):
    on_gpu = importlib.import_module("on_gpu")
    monkeypatch.setattr(on_gpu, "find_spec", lambda name: None if "bench" in name or name == "triton" else name)
    with pytest.raises(SystemExit, match="lacks pytest-benchmark, triton; "):
        on_gpu.Run([], 1, tmp_path, False, tmp_path)._environment()


def test_an_error_of_the_build_is_named(monkeypatch, tmp_path):
    on_gpu = importlib.import_module("on_gpu")

    def hangs(*command):
        raise subprocess.TimeoutExpired(command, 90)

    monkeypatch.setattr(on_gpu, "_said", hangs)
    monkeypatch.setattr(on_gpu.Run, "_environment", lambda self: {"device": "GPU", "commit": "c"})
    run = on_gpu.Run([], 1, tmp_path, False, tmp_path)
    assert not run() and run.parts["build"]["result"].startswith("FAILED: TimeoutExpired")


def test_nothing_is_built_beside_a_measurement(monkeypatch, tmp_path):
    """Also if --only leaves out the parts that prepare."""
    on_gpu = importlib.import_module("on_gpu")
    events = []
    monkeypatch.setattr(on_gpu.Run, "_environment", lambda self: {"device": "GPU", "commit": "c"})
    monkeypatch.setattr(
        on_gpu.Run, "_build", lambda self: events.append("build") or time.sleep(0.5) or events.append("built")
    )
    monkeypatch.setattr(on_gpu.Run, "_part", lambda self, part: events.append(part.name))
    on_gpu.Run([[on_gpu.Part("norm", ["bench/x.py"], 1)]], 5, tmp_path, False, tmp_path)()
    assert events == ["build", "built", "norm"]


def test_triton_gets_a_cache_that_it_can_write(monkeypatch, tmp_path):
    on_gpu = importlib.import_module("on_gpu")
    (tmp_path / "file").touch()
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file"))
    assert on_gpu._caches(tmp_path) == {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert on_gpu._caches(tmp_path) == {}


def test_a_relative_folder_is_the_caller_s(tmp_path):
    environment = {**variables(), "PYTHON": sys.executable, "CDPATH": str(ROOT)}
    command = [BENCH / "on_gpu.sh", "--rehearse", "a folder", "--only", "norm", "--seconds", "0.1"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "not reached" in next((tmp_path / "a folder").glob("*.md")).read_text()


def test_a_broken_result_is_named(collect, tmp_path, capsys):
    path = tmp_path / "GPU-c.json"
    for text in ("", '{"environment": {}, "parts": [', "[]", '{"environment": {}}', '{"environment": {}, "parts": 3}'):
        path.write_text(text)
        assert collect.main([str(path)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {path}: expected a result of bench/on_gpu.sh, found ")
    assert collect.main([]) == 2 and collect.main([str(tmp_path)]) == 1
    collect.write(tmp_path / "GPU-c", {"device": "GPU"}, [], [side("ours", microseconds=1.0)])
    capsys.readouterr()
    assert collect.main([str(path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "GPU-c.md").read_text() + "\n"


def test_the_clocks_are_those_of_the_measured_gpu(collect, monkeypatch, tmp_path):
    """nvidia-smi lists all GPUs, also those that CUDA_VISIBLE_DEVICES hides."""
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "$1, 1980 MHz"\necho another\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert collect.clocks("GPU-8f").startswith("--id=GPU-8f, 1980 MHz")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: types.SimpleNamespace(uuid="8f"))
    about = collect.environment()
    assert about["GPU"] == "GPU-8f" and about["driver, greatest clocks and power"].startswith("--id=GPU-8f,")


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_fits_its_time():
    """No part may take all of the time, and what compiles for minutes comes last."""
    on_gpu = importlib.import_module("on_gpu")
    names = [part.name for wave in on_gpu.PLAN for part in wave]
    assert len(set(names)) == len(names)
    first = [wave[0] for wave in on_gpu.PLAN[:5]]
    assert sum(part.seconds for part in first[1:3]) + max(part.seconds for part in on_gpu.PLAN[0]) < on_gpu.SECONDS / 2
    assert names[-1] == "max-autotune"
    for wave in on_gpu.PLAN[1:]:
        assert len(wave) == 1 or not any(part.measures for part in wave)  # nothing runs beside what is measured


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command, environment = [BENCH / "on_gpu.sh", tmp_path], {**os.environ, "PYTHON": sys.executable}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and not list(tmp_path.iterdir())
    assert ran.stderr == "bench/on_gpu.sh: torch finds no CUDA device here; expected one, or --rehearse\n"


@pytest.mark.slow
def test_the_rehearsal_gives_a_table(tmp_path):
    """The real plan on a CPU, or as much of it as two minutes allow: norms, and a step with several sides."""
    pytest.importorskip("pytest_benchmark")
    parts = "norm", "step 1"
    command = [BENCH / "on_gpu.sh", "--rehearse", tmp_path, "--only", *parts]
    environment = {**variables(), "PYTHON": sys.executable}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (name,) = tmp_path.glob("rehearsal-*.json")
    found = json.loads(name.read_text())
    steps = {row["side"]: row for row in found["rows"] if row["benchmark"] == "training step"}
    assert steps.keys() == {"ours, not compiled", "eager bf16", "eager fp32"}
    assert all(row["milliseconds_a_pair"] > 0 and row["losses_differ"] for row in steps.values())
    norms = {(row["case"], row["side"]) for row in found["rows"] if "microseconds" in row}
    assert {side for _, side in norms} == {"ours", "eager", "native"} and len(norms) == 3 * 11
