"""The command `python -m vologan_fast.profile`, and its counts and times."""

import json
import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from vologan_kernels import InstanceNormAct2d, instance_norm_act

pytest.importorskip("tyro")  # the command needs it
from vologan_fast.config import PRESETS
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.networks import Networks, numerics_of
from vologan_fast.profile import _in_table, _new_trace, _parse, main
from vologan_fast.profiling import parts, summary, times
from vologan_fast.profiling.counts import Counts
from vologan_fast.profiling.machine import Machine
from vologan_fast.profiling.parts import CONVOLUTIONS, DISCRIMINATORS, GENERATORS, NEITHER, NORMS, OPTIMIZERS, REST
from vologan_fast.profiling.workload import Workload
from vologan_fast.training import places
from vologan_fast.training.run_folder import write_config

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 3 --generator.width 4 --generator.max-width 8
    --generator.levels 2 --generator.spectral-norm --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --loss.identity-every 2
""")
OPTIONS = ["--steps", "1", "--warm-up", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """Run the command once, and return its output and its files."""
    folder = tmp_path_factory.mktemp("run")
    command = [
        sys.executable,
        "-m",
        "vologan_fast.profile",
        *TINY,
        *OPTIONS,
        "--data",
        str(data),
        "--json",
        "cost.json",
    ]
    ended = subprocess.run(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    (trace,) = folder.glob("runs/profile-demo-*.json")
    return SimpleNamespace(
        output=ended.stdout,
        errors=ended.stderr,
        cost=json.loads((folder / "cost.json").read_text()),
        trace_path=trace,
        trace=json.loads(trace.read_text()),
    )


def test_the_command_prints_a_table_and_says_where_the_trace_is(run):
    assert run.errors == ""
    lines = run.output.splitlines()
    numerics = numerics_of(_parse(TINY).settings, torch.device("cpu"))
    assert lines[0] == f"demo: FastStep, 3 images a domain of 32 × 32, {numerics}"
    for part in (*parts.PARTS, "total"):
        assert sum(line.startswith(f"{part} ") for line in lines) == 1
    assert "cycle and identity" in run.output and str(run.trace_path) in lines[-1]
    assert max(map(len, lines[:-1])) <= 100


def test_the_parts_add_up_to_the_step(run):
    found = run.cost["parts"]
    total = sum(part["seconds"] for part in found.values())
    assert total == pytest.approx(run.cost["profiled_seconds"], rel=1e-6)
    assert found["waiting for data"]["seconds"] == pytest.approx(run.cost["wait"], rel=1e-6)
    for part in found.values():
        assert 0 <= part["generators"] + part["discriminators"] <= part["seconds"] * (1 + 1e-6)
    for name in ("convolutions", "norms", "optimisers, averages"):  # nearly all of it in networks, some in each
        part = found[name]
        assert part["generators"] > 0 < part["discriminators"]
        assert part["generators"] + part["discriminators"] > 0.9 * part["seconds"]
    assert found["spectral norm"]["seconds"] > 0 < found["losses"]["seconds"]


def test_the_flop_of_convolutions_are_those_of_the_layers(run):
    """Forward, gradient of the weight and gradient of the input each take 2 · positions · weights, if needed."""
    generator = [  # channels in · out · kernel² · positions
        *(4 * 4 * 9 * 1024, 4 * 4 * 9 * 1024, 4 * 4 * 9 * 256),  # level 0: two blocks, and one that halves
        *(4 * 8 * 9 * 256, 8 * 8 * 9 * 256, 8 * 8 * 9 * 64),  # level 1
        *(8 * 8 * 9 * 64, 8 * 8 * 9 * 64),  # bottleneck
        *(8 * 8 * 64, 16 * 8 * 9 * 256, 8 * 8 * 9 * 256),  # up to level 1, enlarged behind the 1 × 1 convolution
        *(8 * 4 * 256, 8 * 4 * 9 * 1024, 4 * 4 * 9 * 1024),  # up to level 0
        4 * 4 * 1024,  # to the image
    ]
    discriminator = [
        *(6 * 4 * 9 * 1024, 4 * 4 * 9 * 256, 4 * 8 * 9 * 64),  # trunk, with poolings between; 2 channels of gradient
        *(8 * 1 * 9 * 16, 9 * 16, 9 * 16, 9 * 16),  # layout; the content is products of matrices
    ]
    # A generator gets 2 batches, for translation and cycle, and in every other step one for identity. No batch needs
    # the gradient of its images.
    of_generators = 2 * 2.5 * (3 * sum(generator) - generator[0])
    # A frozen discriminator passes gradients to the images once. Then it learns from real and fake images.
    of_discriminators = 2 * (2 * sum(discriminator) + 2 * (3 * sum(discriminator) - discriminator[0]))
    assert run.cost["parts"]["convolutions"]["flop"] == 2 * 3 * (of_generators + of_discriminators)


def test_a_norm_makes_five_passes_and_the_floor_is_the_longer_of_arithmetic_and_bytes(run):
    x = torch.rand(2, 4, 16, 16, requires_grad=True)
    with Counts() as counts:
        InstanceNormAct2d(4)(x).sum().backward()
    size, statistics = 4 * x.numel(), 4 * 2 * 4
    assert 5 * size <= sum(o.bytes for o in counts.operations if o.part == NORMS) <= 5 * size + 8 * statistics
    machine = run.cost["machine"]
    for name, part in run.cost["parts"].items():
        longest = max(part["flop"] / machine["multiply"], part["bytes"] / machine["copy"])
        assert longest <= part["floor"] * (1 + 1e-9), name
    parameters = 4 * sum(parameter.numel() for parameter in Networks(_parse(TINY).settings).learning.parameters())
    averages = 4 * sum(parameter.numel() for parameter in Networks(_parse(TINY).settings).generators.parameters())
    assert run.cost["parts"]["optimisers, averages"]["bytes"] == 7 * parameters + 3 * averages  # Adam has two moments


def test_the_trace_is_json_with_the_annotations(run):
    times = Counter(event.get("name") for event in run.trace["traceEvents"])
    assert times[places.STEP] == times[places.WAIT] == 2  # the option asks for one; the other is without identity
    assert times["vologan: generator"] == 2 * 4 and times["vologan: discriminator"] == 2 * 4
    assert times["phase: cycle and identity"] == times["phase: discrimination"] == 2 * 2
    assert "aten::convolution_backward" in times


def test_memory_by_phase(run, data):
    assert set(run.cost["memory"]) == {"translation and its judgement", "cycle and identity", "discrimination"}
    memory = run.cost["memory"]
    assert memory["cycle and identity"] > memory["translation and its judgement"] > memory["discrimination"] > 0
    assert run.cost["peak_memory"] > max(memory.values())


def test_the_trace_of_a_run_goes_into_its_folder(tmp_path, monkeypatch, data):
    (tmp_path / "run").mkdir()
    write_config(tmp_path / "run", str(data), _parse(TINY).settings)
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "run/config.json", *OPTIONS, "--device", "cpu"]) == 0
    assert len(list((tmp_path / "run").glob("profile-run-*.json"))) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        (["--train.step", "plain"], {"all forwards and backwards": 1}),
        (["--loss.routing", "cyclegan"], {"translation, cycle and identity": 2, "discrimination": 2}),
    ],
)
def test_every_step_names_its_phases(tmp_path, data, options, phases):
    """Any trace that is made with torch.profiler shows the phases."""
    settings = _parse([*TINY, *options]).settings
    dataset = load_dataset(data, settings.data, 0)
    with Workload(settings, dataset, torch.device("cpu")) as work, profile(activities=[ProfilerActivity.CPU]) as trace:
        work.run()
    found = Counter(event.name for event in trace.events())
    assert {name.removeprefix(places.PHASE): n for name, n in found.items() if name.startswith(places.PHASE)} == phases
    assert found[places.OPTIMIZE_GENERATORS] == found[places.OPTIMIZE_DISCRIMINATORS] == 1


def test_a_backward_belongs_to_what_its_forward_belonged_to():
    """There is one convolution in each network. The time of its gradients must count for the right network."""
    big, small = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 1, 1)
    x = torch.rand(4, 16, 64, 64)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler, record_function(places.STEP):
        with record_function("vologan: generator"):
            y = big(x)
        with record_function("vologan: discriminator"):
            z = small(y)
        z.mean().backward()
    events = list(profiler.events())
    seconds = times.cpu_time(events).seconds

    def duration(convolution):
        """Seconds of the forward and the backward of a convolution, told by the shape of its weight."""
        (forward,) = (e for e in events if e.name == "aten::conv2d" and weight_of(e) == convolution.weight.shape)
        (gradient,) = (
            e for e in events if e.name == "aten::convolution_backward" and weight_of(e) == convolution.weight.shape
        )
        backward = gradient.cpu_parent
        assert backward.name == "ConvolutionBackward0"
        return (forward.cpu_time_total + backward.cpu_time_total) / 1e6

    def weight_of(event):
        return torch.Size(event.input_shapes[1 if event.name == "aten::conv2d" else 2])

    assert seconds[CONVOLUTIONS, GENERATORS] == pytest.approx(duration(big), rel=1e-6)
    assert seconds[CONVOLUTIONS, DISCRIMINATORS] == pytest.approx(duration(small), rel=1e-6)
    assert seconds[CONVOLUTIONS, NEITHER] == 0
    (step,) = (event for event in events if event.name == places.STEP)
    assert sum(seconds.values()) == pytest.approx(step.cpu_time_total / 1e6)


SMALL_G = ["--generator.width", "4", "--generator.max-width", "8"]
SMALL_ZHU = [*SMALL_G, "--data.size", "32", "--generator.residual-blocks", "2", "--discriminator.width", "4"]
SMALL_VOLOGAN = shlex.split("""
    --data.size 32 --train.batch 1 --generator.levels 1 --discriminator.widths 4 8 --discriminator.down-widths 4 8
    --discriminator.width 4
""")
SMALL_PRESETS = {
    "vologan-512": [*SMALL_G, *SMALL_VOLOGAN],
    "vologan-64": [*SMALL_G, *SMALL_VOLOGAN],
    "cyclegan-256": SMALL_ZHU,
    "cut-256": [*SMALL_ZHU, "--contrast.patches", "20", "--contrast.width", "8"],
    "demo": [*SMALL_G, *SMALL_VOLOGAN],
}
CHANGES = shlex.split("--loss.pool 2 --discriminator.network unet --discriminator.levels 2")
PARTS_OF_OPTIONS = {
    ("cyclegan-256",): ["image pool"],
    ("cut-256",): ["projector", "contrastive loss"],
    ("cut-256", *CHANGES): ["projector", "contrastive loss", "image pool"],
    ("demo", *CHANGES, "--loss.cutmix", "1", "--loss.cutmix-ramp", "0"): ["CutMix", "image pool"],
    ("demo", "--loss.diffaugment", "color", "cutout"): ["DiffAugment"],
}


def test_all_presets_are_profiled_here():
    assert set(SMALL_PRESETS) == set(PRESETS)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        *(((preset,), "fast") for preset in PRESETS),
        *((options, "fast") for options in list(PARTS_OF_OPTIONS)[2:]),
        *((options, "plain") for options in list(PARTS_OF_OPTIONS)[2:4]),
    ],
    ids=str,
)
def test_each_preset_names_all_its_parts(tmp_path, monkeypatch, data, options, step):
    machine = Machine("a machine", "float32", copy=1e9, multiply=1e9)
    monkeypatch.setattr(summary, "measure_machine", lambda *_: machine)  # which takes seconds
    preset, *changes = options
    arguments = [*SMALL_PRESETS[preset], *OPTIONS, *changes, "--train.step", step, "--device", "cpu"]
    places = ["--data", str(data), "--json", str(tmp_path / "cost.json"), "--trace", str(tmp_path / "trace.json")]
    assert main(["--preset", preset, *arguments, *places]) == 0
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert list(cost["parts"]) == [*parts.PARTS, *PARTS_OF_OPTIONS.get(options, [])]
    assert sum(part["seconds"] for part in cost["parts"].values()) == pytest.approx(cost["profiled_seconds"], rel=1e-6)
    for name in PARTS_OF_OPTIONS.get(options, []):
        assert cost["parts"][name]["seconds"] > 0 < cost["parts"][name]["launches"]
    # Little is left without a name: views, and Python's own time.
    assert cost["parts"]["other"]["launches"] <= 0.1 * sum(part["launches"] for part in cost["parts"].values())
    if options == ("cut-256",):
        of_projector = 0
        for channels, positions in ((3, 20), (8, 20), (8, 20), (8, 20), (8, 20)):
            of_projector += positions * (channels * 8 + 8 * 8)
        # Queries and targets of S and of T; the queries also have the gradients of the weights and of their inputs.
        assert cost["parts"]["projector"]["flop"] == 2 * (2 + 2 + 2 + 2) * of_projector


def event(name, start, end, parent=None, kind=DeviceType.CPU, number=0, annotation=False):
    """Return a fake profiler event for `device_time`, because there is no GPU to make real ones."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    made = SimpleNamespace(name=name, time_range=span, cpu_parent=parent, device_type=kind, id=number, cpu_children=[])
    made.thread, made.fwd_thread, made.sequence_nr, made.is_user_annotation = 1, 0, -1, annotation
    if parent is not None:
        parent.cpu_children.append(made)
    return made


def test_a_kernel_belongs_to_what_launched_it():
    gpu = DeviceType.CUDA
    step = event(places.STEP, 0, 100)
    network = event("vologan: generator", 10, 40, step)
    norm = event("vologan_kernels::instance_norm_act", 11, 20, network)
    optimizer = event("Optimizer.step#NAdam.step", 60, 80, event("vologan: optimise generators", 55, 85, step))
    events = [
        *(step, network, norm, optimizer, optimizer.cpu_parent),
        event("cuLaunchKernelEx", 12, 13, norm, number=1),
        event("cudaLaunchKernel", 25, 26, network, number=2),
        event("cuLaunchKernelEx", 61, 62, number=3),  # from NAdam, outside of all operations
        event("norm_kernel", 20, 50, kind=gpu, number=1),
        event("add", 50, 54, kind=gpu, number=2),
        event("nadam_kernel", 70, 75, kind=gpu, number=3),
        event("somebody's", 80, 90, kind=gpu, number=4),
        event("vologan: generator", 20, 54, kind=gpu, annotation=True),  # an annotation on the GPU is no kernel
        event("Optimizer.step#NAdam.step", 70, 75, kind=gpu, annotation=True),
    ]
    taken = times.device_time(events)
    assert {owner: round(1e6 * seconds) for owner, seconds in taken.seconds.items()} == {
        (NORMS, GENERATORS): 30,
        (REST, GENERATORS): 4,
        (OPTIMIZERS, GENERATORS): 5,
        (parts.OTHER, NEITHER): 10,
    }
    assert taken.launches.total() == 4


@pytest.mark.parametrize(("impl", "share"), [("reference", 0.0), ("native", 1.0)])
def test_native_norms_are_found(impl, share):
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    try:
        instance_norm_act(x, impl=impl)
    except ValueError as error:
        pytest.skip(str(error))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        instance_norm_act(x, impl=impl).sum().backward()
    assert times.native_share(profiler.events()) == share


def test_a_norm_is_native_if_pytorch_only_makes_tensors_in_it():
    norms = [event("vologan_kernels::instance_norm_act", begin, begin + 8) for begin in (0, 10)]
    event("aten::empty", 1, 2, norms[0])
    assert times.native_share(norms) == 1.0 and times.native_share([]) == 0.0
    event("aten::var_mean", 11, 12, norms[1])
    assert times.native_share(norms) == 0.5
    profile = SimpleNamespace(native_norms=0.5)
    assert _in_table(NORMS, profile) == "norms (50% native)" and _in_table(REST, profile) == REST
    assert [_in_table(NORMS, SimpleNamespace(native_norms=share)) for share in (0, 1)] == ["norms", "norms (native)"]


def test_names_of_operations_of_ours():
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if "vologan_kernels::" in name}
    assert {parts.part_of(name) for name in names} == {NORMS, parts.LOSSES, parts.SPECTRAL_NORM}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "demos"], "--preset demos: expected one of vologan-512, vologan-64, "),
        (["--preset", "demo", "--steps", "0"], "--steps 0: expected at least 1"),
        (["--preset", "demo", "--warm-up", "0"], "--warm-up 0: expected at least 1"),
        (["--preset", "demo", "--data.size", "100"], "--data.size is 100: expected a multiple of 8"),
        (["--preset", "demo", "--trace", "old.json"], "--trace old.json: exists"),
        (["--preset", "demo", "--json", "old.json"], "--json old.json: exists"),
        (["--preset", "demo", "--trace", "no/where.json"], "--trace no/where.json: expected a file in a folder"),
        (["--preset", "demo", "--data", "nowhere"], "nowhere"),
        (["--config", "nowhere"], "nowhere: no such file"),
    ],
)
def test_bad_commands_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").touch()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "old.json").read_text() == ""


def test_a_place_for_the_trace_that_cannot_be_made_gets_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    assert main(["--preset", "demo"]) == 1
    assert capsys.readouterr().err.startswith("error: --trace: runs cannot be made (File exists)")


def test_the_trace_of_a_configuration_from_a_pipe_goes_into_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert _new_trace("run", tmp_path / "pipe").parent == Path("runs")
    (tmp_path / "config.json").touch()
    (tmp_path / "link.json").symlink_to("config.json")
    assert _new_trace("run", Path("link.json")).parent == tmp_path


def test_settings_start_from_the_preset():
    assert _parse(["--preset", "vologan-64"]).settings == PRESETS["vologan-64"]
    assert math.isclose(_parse([*TINY, "--loss.cycle", "3"]).settings.loss.cycle, 3)


@pytest.mark.gpu
def test_on_a_gpu_the_parts_and_idle_time_add_up(tmp_path, data):
    cost = tmp_path / "cost.json"
    trace = tmp_path / "trace.json"
    assert (
        main([*TINY, *OPTIONS, "--device", "cuda", "--data", str(data), "--json", str(cost), "--trace", str(trace)])
        == 0
    )
    found = json.loads(cost.read_text())
    assert sum(part["seconds"] for part in found["parts"].values()) == pytest.approx(found["seconds"])
    for name in ("convolutions", "norms", "losses", "spectral norm", "optimisers, averages"):
        assert found["parts"][name]["seconds"] > 0 < found["parts"][name]["launches"]


def test_what_profile_writes_is_whole_and_through_no_link(tmp_path, data, capsys):
    target = tmp_path / "target"
    for option in ("--json", "--trace"):
        (tmp_path / "link.json").unlink(missing_ok=True)
        (tmp_path / "link.json").symlink_to(target)
        assert main([*TINY, *OPTIONS, "--data", str(data), option, str(tmp_path / "link.json")]) == 1
        assert "exists; expected a new file" in capsys.readouterr().err
    assert main([*TINY, *OPTIONS, "--data", str(data), "--trace", f"{tmp_path}/\udcff.json"]) == 1
    assert "expected a path in UTF-8" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["link.json"]


@pytest.mark.slow
def test_a_full_disk_leaves_no_part_of_a_trace(tmp_path, data, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a disk")
    try:
        assert main([*TINY, *OPTIONS, "--data", str(data), "--trace", str(disk / "trace.json")]) == 1
        assert "trace.json: the trace could not be written" in capsys.readouterr().err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("option", ["--steps=5", "--warm-up=2", "--device=cpu", "--trace=trace.json"])
def test_an_estimate_takes_no_options_of_a_measurement(capsys, option):
    assert main(["--estimate", "H100", option]) == 1
    assert "expected no such option with --estimate" in capsys.readouterr().err
