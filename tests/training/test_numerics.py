"""The precision and the memory format of a run: what `auto` chooses, what is recorded, and what older records mean."""

import json
import platform
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro")  # the command needs it
from test_train import TINY, metrics, weights

from vologan_fast.config import PRESETS, from_record, to_dict
from vologan_fast.data.demo import make_demo
from vologan_fast.networks import choose, has_bfloat16_instructions, numerics, numerics_of
from vologan_fast.train import main
from vologan_fast.training.build import build_training
from vologan_fast.training.run_folder import read_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
DEMO = to_dict(PRESETS["demo"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


@pytest.fixture
def processor(monkeypatch):
    """Return a function that sets whether the processor has bfloat16, and whether `auto` uses it."""

    def has(bfloat16, by_default=True):
        monkeypatch.setattr(numerics, "has_bfloat16_instructions", lambda: bfloat16)
        monkeypatch.setattr(numerics, "BFLOAT16_ON_CPU", by_default)

    return has


def config_of(**train):
    return from_record({**DEMO, "train": DEMO["train"] | train})


def train(run, data, *options):
    return main([*TINY, "--run-dir", str(run), "--data", str(data), *options])


def recorded(run):
    train = read_config(run / "config.json")[1].train
    return train.precision, train.memory_format


@pytest.mark.parametrize(
    ("bfloat16", "by_default", "device", "train", "chosen"),
    [
        (True, True, CPU, {}, ("bfloat16", "channels_last")),
        (True, False, CPU, {}, ("float32", "channels_last")),
        (False, True, CPU, {}, ("float32", "channels_last")),
        (False, True, GPU, {}, ("bfloat16", "channels_last")),
        (True, True, CPU, {"precision": "float32"}, ("float32", "channels_last")),
        (False, False, CPU, {"precision": "bfloat16"}, ("bfloat16", "channels_last")),
        (True, True, CPU, {"memory_format": "contiguous"}, ("bfloat16", "contiguous")),
        (True, True, GPU, {"precision": "float32"}, ("float32", "channels_last")),
        (True, True, CPU, {"precision": "tf32"}, ("tf32", "channels_last")),
        (True, True, CPU, {"precision": "by_device", "memory_format": "by_device"}, ("by_device", "by_device")),
    ],
)
def test_auto_is_chosen_by_the_processor(processor, bfloat16, by_default, device, train, chosen):
    processor(bfloat16, by_default)
    settings = choose(config_of(**train), device)
    assert (settings.train.precision, settings.train.memory_format) == chosen
    assert choose(settings, GPU if device == CPU else CPU) == settings
    if "by_device" not in chosen:
        dtype = torch.bfloat16 if chosen[0] == "bfloat16" else torch.float32
        assert numerics_of(settings, CPU) == (dtype, CHANNELS_LAST if chosen[1] == "channels_last" else CONTIGUOUS)


def test_older_records_mean_what_they_did(processor):
    """`auto` was bfloat16 and channels_last on a GPU, else float32 and contiguous. The layout had no setting."""
    processor(True)
    for precision, on_cpu, on_gpu in (
        ("auto", torch.float32, torch.bfloat16),
        ("float32", torch.float32, torch.float32),
        ("tf32", torch.float32, torch.float32),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
    ):
        former = {name: value for name, value in DEMO["train"].items() if name != "memory_format"}
        config = from_record({**DEMO, "train": former | {"precision": precision}})
        assert numerics_of(config, CPU) == (on_cpu, CONTIGUOUS)
        assert numerics_of(config, GPU) == (on_gpu, CHANNELS_LAST)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_whole_step_has_the_layout(precision, layout):
    """No image and no weight of a convolution comes in another one."""
    config = config_of(precision=precision, memory_format=layout)
    networks, _, step = build_training(config, CPU)
    expected, seen = {"contiguous": CONTIGUOUS, "channels_last": CHANNELS_LAST}[layout], []

    def look(module, inputs, output):
        image = inputs[0]
        if image.shape[1] > 1 and image.shape[2] > 1:  # else both layouts are one
            seen.append((image.is_contiguous(memory_format=expected), output.dtype))
        if module.weight.shape[1] > 1 and module.weight.shape[2] > 1:
            seen.append((module.weight.is_contiguous(memory_format=expected), output.dtype))

    for module in networks.learning.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(look)
    step(*(torch.rand(2, 4, 64, 64).contiguous(memory_format=CHANNELS_LAST) for _ in range(2)), 0)
    assert len(seen) > 50 and all(holds for holds, _ in seen)
    assert {dtype for _, dtype in seen} == {getattr(torch, precision)}


def test_a_new_run_records_what_was_chosen(tmp_path, data, processor, capsys):
    processor(True)
    assert train(tmp_path / "run", data, "--max-steps", "1") == 0
    assert recorded(tmp_path / "run") == ("bfloat16", "channels_last")
    assert "networks: bfloat16, channels_last\n" in capsys.readouterr().out


def test_a_run_keeps_its_choice_on_another_processor(tmp_path, data, processor, capsys):
    """It says so if the processor has no such instructions. The repeated command leaves both settings open."""
    run = tmp_path / "run"
    processor(True)
    assert train(run, data, "--max-steps", "1") == 0
    assert "--train.precision: this run" not in capsys.readouterr().out
    processor(False)
    assert train(run, data, "--max-steps", "2", "--resume") == 0
    assert recorded(run) == ("bfloat16", "channels_last")
    assert "--train.precision: this run computes in bfloat16" in capsys.readouterr().out
    assert main(["--run-dir", str(run), "--resume", "--max-steps", "3", "--train.memory-format", "contiguous"]) == 0
    assert recorded(run) == ("bfloat16", "contiguous")
    assert main(["--run-dir", str(run), "--resume", "--train.precision", "float32"]) == 1
    assert "--train.precision: float32 in this command, bfloat16 in" in capsys.readouterr().err


def test_a_run_of_an_older_version_resumes_to_the_bit(tmp_path, data, processor):
    """Its record says auto, and has no memory format. The processor has bfloat16 now, and `auto` would use it."""
    fixed = "--train.precision", "float32", "--train.memory-format", "contiguous"
    assert train(tmp_path / "straight", data, "--max-steps", "4", *fixed) == 0
    assert train(tmp_path / "older", data, "--max-steps", "2", *fixed) == 0
    path = tmp_path / "older" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["train"]["precision"] = "auto"
    del record["config"]["train"]["memory_format"], record["crc32"]
    path.write_text(json.dumps(record))
    processor(True)
    assert train(tmp_path / "older", data, "--max-steps", "3", "--resume") == 0  # the command that started it
    assert main(["--run-dir", str(tmp_path / "older"), "--resume", "--max-steps", "4"]) == 0
    assert recorded(tmp_path / "older") == ("by_device", "by_device")
    assert metrics(tmp_path / "older") == metrics(tmp_path / "straight")
    found, expected = weights(tmp_path / "older", 4), weights(tmp_path / "straight", 4)
    assert len(found) > 100 and all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags of other processors have other names")
def test_the_processor_is_asked():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert has_bfloat16_instructions() == ("avx512_bf16" in flags or "amx_bf16" in flags)
