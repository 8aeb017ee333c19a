"""The command `python -m vologan_fast.train`: the files of a run, how it stops, and how it resumes."""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("tyro")  # the command needs it
from vologan_fast.data.demo import make_demo
from vologan_fast.report.record import read_lines
from vologan_fast.train import main
from vologan_fast.training.run_folder import read_config
from vologan_fast.training.trainer import Trainer

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --train.log-every 1 --train.validate-every 1000
    --train.save-every 1000 --generator.width 4 --generator.max-width 8 --generator.levels 2 --generator.dropout 0.2
    --generator.spectral-norm --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --discriminator.attention matrix
    --train.report-every -1
""")
STATE = ("step", "optimizers", "loader", "data", "rng", "cuda_rng")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums depend on the number of threads
TIMES = ("seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


def train(run, data, *options):
    return main([*TINY, "--run-dir", str(run), "--data", str(data), *options])


def resume(run, *options):
    return main(["--run-dir", str(run), "--resume", *options])


def process(*arguments, **options):
    """Start the command in its own process, from another directory."""
    command = [sys.executable, "-m", "vologan_fast.train", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd="/", env=ONE_THREAD, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def wait_for_the_first_step(run):
    path, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)


def metrics(run, split="train"):
    records = read_lines(run / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records if r["split"] == split]


def weights(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {
        f"{path.stem}.{name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def test_a_run_folder_holds_everything(tmp_path, data, capsys):
    options = ["--max-steps", "3", "--train.log-every", "1000", "--train.report-every", "0"]
    assert train(tmp_path / "run", data, *options) == 0
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        ".lock",
        "samples",
        "checkpoints",
        "report.html",
    }
    folder = run / "checkpoints" / "step-00000003"
    assert {path.name for path in folder.iterdir()} == {
        "generator_st.safetensors",
        "generator_ts.safetensors",
        "discriminator_s.safetensors",
        "discriminator_t.safetensors",
        "average_st.safetensors",
        "average_ts.safetensors",
        "state.pt",
        "checksums.json",
    }
    lines = read_lines(run / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (3, "train"), (3, "held_out")]
    terms = {f"generator_{g}/{t}" for g in ("st", "ts") for t in ("adversarial", "cycle", "identity", "ssim", "total")}
    terms |= {f"discriminator_{d}/{t}" for d in "st" for t in ("real", "fake", "total")}
    assert terms <= set(lines[0]) and set(TIMES) <= set(lines[0])
    assert {"learning_rate/generator", "learning_rate/discriminator"} <= set(lines[0])
    assert set(lines[2]) == terms | {"step", "split"}
    assert lines[0]["images_per_second"] > 0 and lines[0]["peak_memory_bytes"] > 2**20
    output = capsys.readouterr().out
    assert str(run.resolve()) in output
    assert str(run.resolve() / "samples" / "step-00000003.png") in output
    recorded, config = read_config(run / "config.json")
    assert recorded == str(data.resolve())
    assert config.data.synthetic.near == -1 and config.data.synthetic.background == -1


def test_stopping_and_resuming_changes_no_bit(tmp_path, data):
    """20 steps give the same losses and weights as 10 + 10 steps with validations between."""
    assert train(tmp_path / "straight", data, "--max-steps", "20") == 0
    assert train(tmp_path / "halves", data, "--max-steps", "10", "--train.validate-every", "3") == 0
    assert resume(tmp_path / "halves", "--max-steps", "20") == 0
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "halves")
    straight, halves = weights(tmp_path / "straight", 20), weights(tmp_path / "halves", 20)
    assert len(straight) > 100 and straight.keys() == halves.keys()
    assert all(torch.equal(tensor, halves[name]) for name, tensor in straight.items())


EVERY_STATE = shlex.split("""
    --loss.pool 3 --loss.penalty r1 --loss.penalty-every 2 --loss.diffaugment color translation cutout
    --loss.pixel l1_then_l2 --schedule.epochs 4 --schedule.decay linear --train.micro-batch 1
""")
"""Losses that depend on former steps, on the number of the step, and on the progress of the schedule."""


def test_stopping_and_resuming_changes_no_bit_of_losses_with_a_history(tmp_path, data):
    """12 steps, an image pool that is full after 2, a penalty every other step, and L2 from step 6 on."""
    assert train(tmp_path / "straight", data, "--max-steps", "12", *EVERY_STATE) == 0
    assert train(tmp_path / "parts", data, "--max-steps", "1", *EVERY_STATE) == 0  # the pool is not full yet
    for steps in (5, 6, 12):
        assert resume(tmp_path / "parts", "--max-steps", str(steps)) == 0
    straight = metrics(tmp_path / "straight")
    assert straight == metrics(tmp_path / "parts")
    assert ["discriminator_s/penalty" in line for line in straight] == [True, False] * 6
    assert [line["epoch"] for line in straight] == [step // 3 for step in range(12)]
    before, after = weights(tmp_path / "straight", 12), weights(tmp_path / "parts", 12)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    states = [
        torch.load(tmp_path / run / "checkpoints" / "step-00000012" / "state.pt", weights_only=True)
        for run in ("straight", "parts")
    ]
    (straight_pools,), (pools,) = (state["image_pools"] for state in states)
    for domain, pool in pools.items():
        assert pool["images"].shape == (3, 4, 32, 32) and pool["count"] == 3
        assert torch.equal(pool["images"], straight_pools[domain]["images"])
    assert not torch.equal(pools["s"]["images"], pools["t"]["images"])


def test_a_checkpoint_without_the_image_pool_is_named(tmp_path, data, capsys):
    assert train(tmp_path / "run", data, "--max-steps", "1", "--loss.pool", "2") == 0
    path = tmp_path / "run" / "checkpoints" / "step-00000001" / "state.pt"
    (path.parent / "checksums.json").unlink()  # as a former version wrote it
    state = torch.load(path, weights_only=True)
    pools = state.pop("image_pools")
    for change in ({}, {"image_pools": [{"s": pools[0]["s"]}]}):
        torch.save(state | change, path)
        assert resume(tmp_path / "run", "--max-steps", "2") == 1
        assert f"{path}: does not fit this run (" in capsys.readouterr().err


def test_a_run_goes_on_with_less_memory(tmp_path, data):
    """A run in parts of the batch, and then with the plain step, differs only by rounding: 6e-6 after three steps.

    This is so in float32.
    """
    train(tmp_path / "straight", data, "--max-steps", "3", "--train.precision", "float32")
    train(tmp_path / "changed", data, "--max-steps", "1", "--train.precision", "float32")
    assert resume(tmp_path / "changed", "--max-steps", "2", "--train.micro-batch", "1", "--train.recompute", "1") == 0
    options = ("--train.step", "plain", "--train.micro-batch", "0", "--train.recompute", "0")
    assert resume(tmp_path / "changed", "--max-steps", "3", *options) == 0
    for straight, changed in zip(metrics(tmp_path / "straight"), metrics(tmp_path / "changed"), strict=True):
        for name in straight.keys() - {"split"}:
            assert straight[name] == pytest.approx(changed[name], rel=1e-4), name


def test_max_steps_changes_no_schedule(tmp_path, data):
    train(tmp_path / "short", data, "--max-steps", "4")
    train(tmp_path / "long", data, "--max-steps", "6")
    assert metrics(tmp_path / "short") == metrics(tmp_path / "long")[:4]


KILLED_WHILE_SAVING = """
import os, signal, sys
from vologan_fast import files, train
calls, sync = [], files.sync
def kill(path):
    if "checkpoints" in str(path):
        calls.append(path)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
files.sync = kill
train.main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    "sync", [pytest.param(3, marks=pytest.mark.slow, id="in the first save"), pytest.param(12, id="in a later save")]
)
def test_kill_9_while_saving_leaves_a_run_that_resumes(tmp_path, data, sync):
    run = tmp_path / "run"
    arguments = [*TINY, "--run-dir", str(run), "--data", str(data), "--max-steps", "6", "--train.save-every", "2"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(sync), *arguments], env=ONE_THREAD, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert list((run / "checkpoints").glob("*.partial"))
    assert resume(run, "--max-steps", "6") == 0
    assert not list((run / "checkpoints").glob("*.partial"))
    assert train(tmp_path / "undisturbed", data, "--max-steps", "6") == 0
    assert metrics(run) == metrics(tmp_path / "undisturbed")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_says_how_to_resume(tmp_path, data, number):
    run = tmp_path / "my run"
    options = ["--schedule.epochs", 100_000, "--max-steps", 90_000, "--device", "cpu"]
    running = process(*TINY, "--run-dir", run, "--data", data, *options)
    wait_for_the_first_step(run)
    running.send_signal(number)
    output, errors = running.communicate(timeout=300)
    assert running.returncode == 130, errors
    command = f"python -m vologan_fast.train --run-dir '{run}' --resume --max-steps 90000 --device cpu"
    assert f"go on with: {command}\n" in output
    saved = int(sorted((run / "checkpoints").iterdir())[-1].name.removeprefix("step-"))
    assert resume(run, "--max-steps", str(saved + 1)) == 0
    assert [record["step"] for record in metrics(run)] == list(range(1, saved + 2))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_was_saved(tmp_path, data):
    run = tmp_path / "run"
    assert train(run, data, "--max-steps", "2") == 0
    limit = 100 * 1024  # largest file in bytes, less than the state needs, as on a full disk
    full = process(
        "--run-dir",
        run,
        "--resume",
        "--max-steps",
        3,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = full.communicate(timeout=300)
    assert full.returncode == 1
    assert "step-00000003: cannot be written" in errors and "complete checkpoints: step-00000002" in errors
    assert "Traceback" not in errors
    assert resume(run, "--max-steps", "3") == 0


def test_a_file_that_breaks_during_training_is_named_and_nothing_is_lost(tmp_path):
    data = make_demo(tmp_path / "data", count=4, size=64)
    run = tmp_path / "run"
    running = process(*TINY, "--run-dir", run, "--data", data, "--schedule.epochs", 100_000)
    wait_for_the_first_step(run)
    for path in data.glob("real/*.exr"):
        path.write_bytes(path.read_bytes()[:-40])
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1
    step = int(errors.removeprefix("error: step ").split(":")[0])
    assert errors.count("\n") == 1 and str(data / "real") in errors
    assert (run / "checkpoints" / f"step-{step - 1:08d}").is_dir()


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, data, capsys):
    rates = ("--generator-optimizer.learning-rate", "1e30", "--schedule.warmup-epochs", "0")
    assert train(tmp_path / "run", data, "--max-steps", "9", *rates) == 1
    assert "is nan" in capsys.readouterr().err


@pytest.mark.parametrize("every", [("--train.save-every", "1"), ("--train.validate-every", "2")], ids=["save", "grid"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, data, capsys, every):
    diverging = ("--generator-optimizer.kind", "sgd", "--generator-optimizer.learning-rate", "1e30")
    options = ("--max-steps", "9", "--train.log-every", "1000", "--train.keep-checkpoints", "9")
    assert train(tmp_path / "run", data, *options, *every, *diverging) == 1
    assert "last saved: " in capsys.readouterr().err
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        for name, weight in weights(tmp_path / "run", int(checkpoint.name[5:])).items():
            assert weight.isfinite().all(), (checkpoint, name)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_signal_in_the_last_validation_loses_nothing(tmp_path, data, monkeypatch):
    validate = Trainer.validate

    def interrupted(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        validate(trainer)

    monkeypatch.setattr(Trainer, "validate", interrupted)
    assert train(tmp_path / "run", data, "--max-steps", "2") == 0
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    assert len(metrics(tmp_path / "run", "held_out")) == 1


def test_a_validation_that_was_cut_off_is_made_up_for(tmp_path, data, monkeypatch):
    every = ("--train.validate-every", "2", "--train.save-every", "2")
    train(tmp_path / "whole", data, "--max-steps", "3", *every)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "validate", lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "cut", data, "--max-steps", "3", *every)
    assert resume(tmp_path / "cut", "--max-steps", "3") == 0
    assert metrics(tmp_path / "cut", "held_out") == metrics(tmp_path / "whole", "held_out")


def test_a_finished_run_that_is_resumed_does_nothing_twice(tmp_path, data):
    train(tmp_path / "run", data, "--max-steps", "2")
    assert resume(tmp_path / "run", "--max-steps", "2") == 0
    assert len(metrics(tmp_path / "run", "held_out")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda state, name=name: state.pop(name), f"expected the entry '{name}', found only") for name in STATE),
        *((lambda state, name=name: state.update({name: b"x"}), f"{name}: expected ") for name in STATE),
        (lambda state: state.update(step=3), "step: expected 1, found 3"),
        (lambda state: state["optimizers"].popitem(), "does not fit this run (KeyError"),
        (
            lambda state: state["optimizers"].update({name: {} for name in state["optimizers"]}),
            "does not fit this run (",
        ),
        (lambda state: state["loader"].clear(), "does not fit this run (ValueError: loader: expected a loader after"),
        (lambda state: state.update(rng=torch.zeros(3)), "does not fit this run ("),
    ],
)
def test_a_state_that_does_not_fit_is_named(trained, capsys, change, message):
    """The weights are read before the state is used, so the run folder is as it was."""
    path = trained / "checkpoints/step-00000001/state.pt"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    try:
        assert resume(trained, "--max-steps", "2") == 1
    finally:
        path.write_bytes(whole)
    errors = capsys.readouterr().err
    assert f"{path}: " in errors and message in errors and errors.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """A run folder after one step, as former versions wrote it: without checksums."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train(run, data, "--max-steps", "1") == 0
    (run / "checkpoints/step-00000001/checksums.json").unlink()
    return run


@pytest.mark.parametrize("error", [ImportError("No module named 'tensorboard'"), TypeError("Descriptors cannot\nbe")])
def test_without_tensorboard_a_run_says_so_and_trains(tmp_path, data, capsys, monkeypatch, error):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "torch.utils.tensorboard":
                raise error

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert train(tmp_path / "run", data, "--max-steps", "1") == 0
    said = f"TensorBoard cannot be imported ({str(error).splitlines()[0]}): no curves are written for it"
    assert said in capsys.readouterr().err
    assert len(metrics(tmp_path / "run")) == len(metrics(tmp_path / "run", "held_out")) == 1


def test_one_process_at_a_time_trains_in_a_run_folder(tmp_path, data, capsys):
    run = tmp_path / "run"
    running = process(*TINY, "--run-dir", run, "--data", data, "--max-steps", "100000", "--train.save-every", "1")
    wait_for_the_first_step(run)
    assert resume(run) == 1
    assert "another process is training in it" in capsys.readouterr().err
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130 and not errors


def test_a_background_of_nan_can_be_resumed(tmp_path, data):
    train(tmp_path / "run", data, "--max-steps", "1", "--data.real.background", "nan")
    assert resume(tmp_path / "run", "--max-steps", "2") == 0


def test_a_run_folder_that_cannot_be_written_gets_one_sentence(tmp_path, data, capsys):
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run", data, "--max-steps", "1") == 1
    assert "cannot be written" in capsys.readouterr().err


def test_init_from_starts_from_weights(tmp_path, data, capsys):
    train(tmp_path / "first", data, "--max-steps", "2")
    source = tmp_path / "first" / "checkpoints" / "step-00000002"
    frozen = ("--generator-optimizer.learning-rate", "0", "--discriminator-optimizer.learning-rate", "0")
    assert train(tmp_path / "second", data, "--max-steps", "1", "--init-from", str(source), *frozen) == 0
    first, second = weights(tmp_path / "first", 2), weights(tmp_path / "second", 1)
    for name, weight in first.items():
        if not name.startswith("average") and "_u" not in name and "_v" not in name:
            assert torch.equal(second[name], weight)
            if name.startswith("generator"):
                torch.testing.assert_close(second[name.replace("generator", "average")], weight)
    assert train(tmp_path / "third", data, "--init-from", str(tmp_path)) == 1
    assert "generator_st.safetensors: no such file" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()  # so the user can correct the command and run it again
    assert train(tmp_path / "fourth", data, "--init-from", str(source), "--generator.width", "8") == 1
    assert "made by a network of another configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_init_from_is_not_forgotten_by_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, data):
    train(tmp_path / "first", data, "--max-steps", "2")
    source = ("--init-from", tmp_path / "first" / "checkpoints" / "step-00000002")
    assert train(tmp_path / "whole", data, *map(str, source), "--max-steps", "1") == 0
    killed = process(*TINY, "--run-dir", tmp_path / "killed", "--data", data, *source, "--max-steps", "100000")
    wait_for_the_first_step(tmp_path / "killed")
    killed.kill()
    killed.communicate()
    assert resume(tmp_path / "killed", "--max-steps", "1") == 0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_config_repeats_a_run(tmp_path, data):
    train(tmp_path / "first", data, "--max-steps", "2")
    config = tmp_path / "first" / "config.json"
    assert main(["--config", str(config), "--run-dir", str(tmp_path / "second"), "--max-steps", "2"]) == 0
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "demos"], "--preset demos: expected one of vologan-512, vologan-64, "),
        (["--resume"], "--resume: expected --run-dir"),
        (["--run-dir", "nowhere", "--resume"], "nowhere/config.json: no such file"),
        (["--preset", "demo", "--run-dir", ".", "--max-steps", "1"], "exists and is not empty"),
        (["--preset", "demo", "--max-steps", "0"], "--max-steps 0: expected at least 1"),
        (["--preset", "demo", "--data.size", "100"], "--data.size is 100: expected a multiple of 8"),
        (["--preset", "demo", "--data", "nowhere"], "nowhere"),
        (["--preset", "demo", "--data", ""], "the data set's name is empty"),
        (["--preset", "demo", "--config", "config.json"], "--preset and --config: expected one of them"),
    ],
)
def test_bad_commands_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_resumed_run_keeps_its_settings_and_its_images(tmp_path, capsys):
    data = make_demo(tmp_path / "data", count=4, size=64)
    run = tmp_path / "run"
    assert train(run, data, "--max-steps", "1") == 0
    assert resume(run, "--max-steps", "2", "--train.keep-checkpoints", "1") == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert resume(run, "--loss.cycle", "5") == 1
    assert "--loss.cycle: 5.0 in this command, 1.0 in" in capsys.readouterr().err
    manifest = json.loads((data / "training_paths.json").read_text())
    manifest["real_data"].pop()
    (data / "training_paths.json").write_text(json.dumps(manifest))
    assert resume(run, "--max-steps", "3") == 1
    assert "resume with the same data set" in capsys.readouterr().err


def test_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    for option in ("--data", "--data.synthetic.unit", "--generator.first-kernel", "--train.seed", "--loss.routing"):
        assert option in output


@pytest.mark.parametrize("name", ["vologan512", "rooms"])
def test_real_rgbd_trains(real_images, tmp_path, name):
    """The images are in the paper's layout (EXR), or 640 × 480 frames with holes, in 16-bit PNG millimetres."""
    assert train(tmp_path / "run", real_images / name, "--max-steps", "2") == 0
    assert (tmp_path / "run" / "samples" / "step-00000002.png").stat().st_size > 1000
    if name == "rooms":
        spec = read_config(tmp_path / "run" / "config.json")[1].data.real
        assert spec.unit == "mm" and spec.invalid == (0.0,) and 0 < spec.near < spec.far < 10


@pytest.mark.gpu
def test_the_command_trains_and_resumes_on_a_gpu(tmp_path, data):
    assert train(tmp_path / "run", data, "--device", "cuda", "--max-steps", "3") == 0
    assert resume(tmp_path / "run", "--device", "cuda", "--max-steps", "6") == 0
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_was_moved_and_linked_is_rotated_out(tmp_path, data):
    run = tmp_path / "run"
    train(run, data, "--max-steps", "1")
    moved = (run / "checkpoints" / "step-00000001").rename(tmp_path / "moved")
    (run / "checkpoints" / "step-00000001").symlink_to(moved)
    (run / "checkpoints" / "notes.partial").write_text("mine")
    assert resume(run, "--max-steps", "3", "--train.save-every", "1", "--train.keep-checkpoints", "1") == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["notes.partial", "step-00000003"]
    assert (moved / "state.pt").is_file()
