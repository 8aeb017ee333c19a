"""Damage in a checkpoint: it is noticed by every command, and a resumed run goes on from an older checkpoint."""

import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import ONE_THREAD, metrics, process, resume, train, weights

import vologan_fast
from vologan_fast import evaluate, translate
from vologan_fast.data.demo import make_demo
from vologan_fast.training.checkpoint import CheckpointError, check_whole, lowest_score

OPTIONS = ["--train.save-every", "2", "--max-steps"]
LAST = "step-00000004"
NETWORKS = [f"{kind}_{part}.safetensors" for kind in ("generator", "average") for part in ("st", "ts")]
NETWORKS += [f"discriminator_{part}.safetensors" for part in ("s", "t")]
FILES = [*NETWORKS, "state.pt", "checksums.json"]


def flip(data, rng):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def change_a_byte(data, rng):
    place = rng.randrange(len(data))
    data[place] = (data[place] + rng.randrange(1, 256)) % 256


def clear_a_page(data, rng):
    while True:
        first = rng.randrange(0, len(data), 512)
        if any(data[first : first + 512]):
            break
    data[first : first + 512] = bytes(len(data[first : first + 512]))


def truncate(data, rng):
    del data[rng.randrange(len(data)) :]


def lengthen(data, rng):
    data += rng.randbytes(rng.randrange(1, 5000))


def exchange_pages(data, rng):
    while True:
        one, two = (rng.randrange(0, max(len(data) - 64, 1)) for _ in range(2))
        first, second = bytes(data[one : one + 64]), bytes(data[two : two + 64])
        if abs(one - two) >= 64 and first != second:
            break
        if len(data) < 200:
            return flip(data, rng)
    data[one : one + 64], data[two : two + 64] = second, first
    return None


def few(cases, fast):
    """Leave all cases but the first `fast` to the slow tests."""
    return [*cases[:fast], *(pytest.param(*case, marks=pytest.mark.slow) for case in cases[fast:])]


FAULTS = [flip, change_a_byte, clear_a_page, truncate, lengthen, exchange_pages]


def damage(path, fault, seed):
    data = bytearray(path.read_bytes())
    fault(data, random.Random(f"{path.name} {fault.__name__} {seed}"))
    assert data != path.read_bytes()
    path.write_bytes(data)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory, demo):
    """A run folder with checkpoints after steps 2 and 4."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("undamaged") / "run"
    assert train(run, demo, *OPTIONS, "4") == 0
    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory, undamaged):
    """The same run after step 5, without a fault."""
    run = shutil.copytree(undamaged, tmp_path_factory.mktemp("straight") / "run")
    assert resume(run, *OPTIONS, "5") == 0
    return run


@pytest.fixture
def run(tmp_path, undamaged):
    return shutil.copytree(undamaged, tmp_path / "run")


def assert_same(run, straight):
    assert metrics(run) == metrics(straight)
    found, expected = weights(run, 5), weights(straight, 5)
    assert len(found) > 100 and found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(("name", "fault"), few(list(zip(FILES[::-1], [flip, truncate, *FAULTS], strict=True)), 3))
def test_a_resumed_run_goes_on_from_the_newest_whole_checkpoint(run, straight, capsys, name, fault):
    """Nothing is lost but time: the steps after it are made again, with the same bits."""
    damage(run / "checkpoints" / LAST / name, fault, 0)
    assert resume(run, *OPTIONS, "5") == 0
    said = capsys.readouterr()
    assert "resuming after step 2" in said.out
    first, second = said.err.splitlines()
    assert first.startswith(f"warning: {run}/checkpoints/{LAST}/{name}: damaged (")
    assert first.endswith("it is kept as step-00000004.damaged")
    assert second == "warning: steps 3 to 4 are lost, and made again from step-00000002 on"
    assert_same(run, straight)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000004", "step-00000004.damaged", "step-00000005"}
    check_whole(run / "checkpoints" / LAST)


@pytest.mark.slow
def test_a_process_that_finds_damage_goes_on(run, straight):
    (run / "checkpoints" / LAST / "generator_ts.safetensors").unlink()
    _, errors = process("--run-dir", run, "--resume", *OPTIONS, 5).communicate(timeout=300)
    assert "generator_ts.safetensors: no such file; it is kept as" in errors and errors.count("\n") == 2
    assert_same(run, straight)


def test_without_a_whole_checkpoint_the_run_ends_with_a_sentence(run, capsys):
    for step in (2, 4):
        damage(run / f"checkpoints/step-0000000{step}/state.pt", truncate, step)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert resume(run, *OPTIONS, "5") == 1
    error = capsys.readouterr().err
    assert f"error: {run}/checkpoints/{LAST}/state.pt: damaged (expected" in error and error.count("\n") == 1
    assert error.endswith("; no older checkpoint is whole\n")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [NETWORKS[2], *few([(name,) for name in NETWORKS if name != NETWORKS[2]], 0)])
def test_other_commands_refuse_a_damaged_checkpoint(run, demo, tmp_path, capsys, name):
    file = run / "checkpoints" / LAST / name
    damage(file, clear_a_page, 1)
    whole = f"the newest whole checkpoint is {run}/checkpoints/step-00000002"
    if not name.startswith("discriminator"):
        direction = {"st": "s2t", "ts": "t2s"}[file.stem[-2:]]
        averages = "average" if name.startswith("average") else "trained"
        options = ["--data", str(demo), "--out", str(tmp_path / "out"), "--direction", direction]
        for source in (run, run / "checkpoints" / LAST, file):
            mine = options[:4] if source == file else options
            assert translate.main([str(source), *mine, "--weights", averages, "--device", "cpu"]) == 1
            error = capsys.readouterr().err
            assert f"{file}: damaged (expected checksum" in error and whole in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert evaluate.main([str(run), "--bootstrap", "0", "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert f"{file}: damaged (expected checksum" in error and whole in error and error.count("\n") == 1
    assert train(tmp_path / "other", demo, "--init-from", str(file.parent), "--max-steps", "1") == (
        0 if name.startswith("average") else 1
    )


def test_an_averaged_generator_that_is_missing_is_not_replaced_by_the_other_one(run, tmp_path):
    (run / "checkpoints" / LAST / "average_st.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"average_st\.safetensors: no such file; the newest whole checkpoint is"):
        vologan_fast.load(run, device="cpu")


def test_a_file_of_another_step_is_noticed(run, straight):
    """Each file is whole, but they do not belong together."""
    for name in ("generator_st.safetensors", "checksums.json"):
        copy = run / "checkpoints" / LAST / name
        whole = copy.read_bytes()
        shutil.copy(run / "checkpoints/step-00000002" / name, copy)
        with pytest.raises(CheckpointError, match=name):
            check_whole(copy.parent)
        copy.write_bytes(whole)
        check_whole(copy.parent)


def changed(path, change):
    """Change the tensors of a file, as a former version or another program might have written it."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    few(
        [
            (
                "generator_st",
                lambda t: next(iter(t.values())).fill_(torch.nan),
                "expected finite weights, found NaN or",
            ),
            ("discriminator_s", lambda t: t.update({(n := next(iter(t))): t[n].half()}), "found torch.float16"),
            ("average_ts", lambda t: t.pop(next(iter(t))), "made by a network of another configuration (Missing key"),
            ("generator_ts", lambda t: t.update({(n := next(iter(t))): t[n][..., :1].clone()}), "(size mismatch for"),
        ],
        2,
    ),
)
def test_a_checkpoint_of_a_former_version_is_looked_at_too(run, straight, capsys, name, change, message):
    """It has no checksums. A warning says so if it is used, and other faults are found by its content."""
    for step in (2, 4):
        (run / f"checkpoints/step-0000000{step}/checksums.json").unlink()
    changed(run / "checkpoints" / LAST / f"{name}.safetensors", change)
    assert resume(run, *OPTIONS, "5") == 0
    said = capsys.readouterr()
    assert message in said.err and "warning: steps 3 to 4 are lost" in said.err
    assert "step-00000002: has no checksums.json (removed, or of a former version)" in said.out
    assert_same(run, straight)


def of_optimizer(state, name="generator"):
    return state["optimizers"][name].get("active", state["optimizers"][name])["state"]


@pytest.mark.parametrize(
    ("change", "message"),
    few(
        [
            (lambda s: of_optimizer(s)[0].update(exp_avg=torch.zeros(3)), "exp_avg does not have the shape"),
            (lambda s: of_optimizer(s)[0].pop("exp_avg_sq"), "expected ['exp_avg', 'exp_avg_sq'"),
            (lambda s: of_optimizer(s)[1]["exp_avg"].fill_(torch.inf), "exp_avg: expected finite numbers"),
            (lambda s: of_optimizer(s, "discriminator").update({0: None}), "does not fit this run ("),
            (
                lambda s: [v["step"].fill_(7) for v in of_optimizer(s).values()],
                "an optimiser after 4 steps, found one after 7",
            ),
            (lambda s: s.update(loader={"step": 3}), "expected a loader after step 4, found {'step': 3}"),
            (lambda s: s.update(loader={"step": "4"}), "expected a loader after step 4, found {'step': '4'}"),
            (lambda s: s.update(lines={"metrics.jsonl": "4"}), "lines: expected the number of lines of each log"),
            (lambda s: s.update(optimizers={"generator": 1, "discriminator": [2]}), "does not fit this run ("),
        ],
        4,
    ),
)
def test_a_state_of_valid_form_and_wrong_content_is_noticed(run, straight, capsys, change, message):
    path = run / "checkpoints" / LAST / "state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    (path.parent / "checksums.json").unlink()
    assert resume(run, *OPTIONS, "5") == 0
    errors = capsys.readouterr().err
    assert f"warning: {path}: " in errors and message in errors and "steps 3 to 4 are lost" in errors
    assert_same(run, straight)


class Runs:
    """A pickle that calls a function when it is loaded."""

    def __reduce__(self):
        return print, ("called",)


def test_a_state_that_would_run_code_is_refused_without_the_advice_to_run_it(run, capsys):
    path = run / "checkpoints" / LAST / "state.pt"
    torch.save({"step": Runs()}, path)
    (path.parent / "checksums.json").unlink()
    assert resume(run, *OPTIONS, "5") == 0
    said = capsys.readouterr()
    assert "called" not in said.out and "weights_only" not in said.err
    assert "expected tensors, numbers and texts alone, because anything else may run code" in said.err


READ = """
import sys
from pathlib import Path
from pathlib import Path
from test_damaged_checkpoints import FAULTS, FILES, damage
import vologan_fast
from vologan_fast.training.checkpoint import CheckpointError, check_whole, load_state, load_tensors

folder, count = Path(sys.argv[1]), int(sys.argv[2])
accepted = []
for number in range(count):
    name, fault = FILES[number % len(FILES)], FAULTS[number // len(FILES) % len(FAULTS)]
    path = folder / name
    whole = path.read_bytes()
    damage(path, fault, number)
    readers = [check_whole]
    if name == "state.pt":
        readers.append(load_state)
    elif name != "checksums.json":
        readers.append(lambda folder: load_tensors(folder / name))
        if not name.startswith("discriminator"):
            readers.append(lambda folder: vologan_fast.load(folder / name, device="cpu"))
    for reader in readers:
        try:
            reader(folder)
            accepted.append((number, name, fault.__name__))
        except CheckpointError as error:
            assert name in str(error), (number, name, error)
    path.write_bytes(whole)
check_whole(folder)
print(count, accepted)
"""


@pytest.mark.parametrize("count", [48, pytest.param(1008, marks=pytest.mark.slow)])
def test_no_flip_and_no_truncation_is_accepted_in_silence(run, count):
    reading = [sys.executable, "-c", READ, str(run / "checkpoints" / LAST), str(count)]
    done = subprocess.run(reading, env=ONE_THREAD, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.stdout == f"{count} []\n", done.stderr


@pytest.mark.slow
def test_a_full_disk_is_called_so(undamaged, tmp_path):
    """The disk is full when a checkpoint is written. torch alone would say "unexpected pos"."""
    run = shutil.copytree(undamaged, tmp_path / "run")
    full = """
import errno, os, sys
from vologan_fast import train
from vologan_fast.training import checksums
write = checksums.SummedFile.write
def fails(self, data):
    if str(self.name).endswith(sys.argv[1]) and self._bytes > 1000:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(self, data)
checksums.SummedFile.write = fails
sys.exit(train.main(sys.argv[2:]))
"""
    command = [sys.executable, "-c", full, "state.pt", "--run-dir", str(run), "--resume", *OPTIONS, "5"]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 1
    kept = "complete checkpoints: step-00000002, step-00000004"
    expected = f"error: {run}/checkpoints/step-00000005: cannot be written (No space left on device); {kept}\n"
    assert done.stderr == expected


def test_a_score_that_is_nan_is_the_worst(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
    for scores, best in (({1: math.nan, 2: 0.5, 3: 0.75}, 2), ({2: 0.5, 3: math.nan}, 2), ({3: math.nan}, 3)):
        assert lowest_score(tmp_path, scores) == tmp_path / f"step-{best:08d}"
