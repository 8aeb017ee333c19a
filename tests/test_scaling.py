"""The files with which others run a training: the SLURM script, SkyPilot's file, the Dockerfile, the mirror of a run.

SLURM's commands are stand-ins here. docs/log.md says what ran on a real SLURM.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from vologan_fast.data.demo import make_demo
from vologan_fast.train import main

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = [EXAMPLES / "slurm.sbatch", EXAMPLES / "mirror_run.sh"]
PAGES = [ROOT / "docs" / name for name in ("scaling.md", "several-gpus.md", "training.md", "shards.md")]
TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --train.log-every 1 --generator.width 4
    --generator.max-width 8 --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --train.report-every -1
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


@pytest.fixture(scope="module")
def sky() -> dict:
    return yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())


# Options that exist


STARTS = ("vologan_fast.train", "vologan", "examples/slurm.sbatch")
"""The words before the options of a training: the module, the image of the Dockerfile, the script of SLURM."""


def commands(text: str) -> list[list[str]]:
    """Return the words of each command line in the text that starts a training."""
    code = re.findall(r"^(?:# {4,}| {2,}|(?=\w))(.*)$", text, re.MULTILINE)  # also those in comments
    lines = re.sub(r" *\\\n *", " ", "\n".join(code)).splitlines()
    words = [line.split(" # ")[0].removesuffix("&").replace("…", "").split() for line in lines]
    programs = ("python", "torchrun", "srun", "docker", "sbatch")
    return [found for found in words if found and found[0] in programs and start(found) is not None]


def start(words: list[str]) -> int | None:
    """Return where the options of the training begin."""
    places = [words.index(name) + 1 for name in STARTS if name in words and words[1] != "build"]
    return max(places, default=None)


def options(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if word.startswith("--")]


TEXTS = {path.name: path.read_text() for path in (*SCRIPTS, *PAGES, EXAMPLES / "skypilot.yaml", ROOT / "Dockerfile")}
LINES = [
    pytest.param(words, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, words in enumerate(commands(text))
]


@pytest.fixture(scope="module")
def our_options() -> str:
    command = [sys.executable, "-m", "vologan_fast.train", "--help"]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "300"}
    ).stdout


@pytest.mark.parametrize("words", LINES)
def test_the_options_of_training_and_of_torchrun_exist(words: list[str], our_options: str) -> None:
    begin = start(words)
    for option in options(words[begin:]):
        assert re.search(rf"(?<![\w-]){option}(?![\w.-])", our_options), option
    if "torchrun" in words:
        known = {name.replace("_", "-") for action in get_args_parser()._actions for name in action.option_strings}
        for option in options(words[words.index("torchrun") : begin]):
            assert option in known or words[0] == "docker", option


def test_all_commands_are_found() -> None:
    found = [parameter.id.rpartition("-")[0] for parameter in LINES]
    expected = {"slurm.sbatch": 2, "scaling.md": 3, "several-gpus.md": 4, "training.md": 3, "shards.md": 2}
    expected |= {"skypilot.yaml": 1, "Dockerfile": 2}
    assert all(found.count(name) >= number for name, number in expected.items())


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("torchrun --max-restart=3 -m vologan_fast.train --data x", "--max-restart"),
        ("python -m vologan_fast.train --resumed", "--resumed"),
        ("docker run --gpus all vologan --dataset x", "--dataset"),
        ("sbatch examples/slurm.sbatch --train.bach 4", "--train.bach"),
    ],
)
def test_an_option_that_does_not_exist_would_be_found(line: str, wrong: str, our_options: str) -> None:
    (words,) = commands(f"    {line}")
    with pytest.raises(AssertionError, match=wrong):
        test_the_options_of_training_and_of_torchrun_exist(words, our_options)


# SLURM


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([checker, script], check=True)


STAND_INS = {
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & child=$!
echo $child > "$STATE/srun.pid"
wait $child
""",
    "scontrol": """#!/bin/bash
echo "$@" >> "$STATE/scontrol.log"
if [ "$1 $2" = "show hostnames" ]; then echo localhost; fi
""",
    "scancel": """#!/bin/bash
echo "$@" >> "$STATE/scancel.log"
kill -TERM "$(cat "$STATE/srun.pid")"
""",
}


class Job:
    """Runs the script as SLURM does, on one node, with stand-ins for SLURM's commands."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        for name, text in STAND_INS.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        path = f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1]", "SLURM_NNODES": "1"}
        self._environment = {**os.environ, **slurm, "PATH": path, "STATE": str(folder), "OMP_NUM_THREADS": "1"}
        self._environment["PROCESSES_PER_NODE"] = "1"
        self._arguments = [str(argument) for argument in arguments]

    def start(self) -> subprocess.Popen[str]:
        command = ["bash", str(EXAMPLES / "slurm.sbatch"), *self._arguments]
        return subprocess.Popen(
            command, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def said(self, name: str) -> list[str]:
        path = self.folder / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_before_the_time_limit_the_job_saves_and_requeues_itself(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "my run"
    job = Job(tmp_path, *TINY, "--data", data, "--run-dir", run, "--max-steps", "150")
    running = job.start()
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    output, errors = running.communicate(timeout=120)
    assert running.returncode != 0 and "stopped after step" in output, errors
    number = str(os.getpid())
    assert job.said("scancel") == [f"--signal=TERM {number}"] and f"requeue {number}" in job.said("scontrol")
    saved = [path.name for path in (run / "checkpoints").iterdir()]

    again = job.start()
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert f"resuming after step {int(saved[-1].removeprefix('step-'))}" in output
    assert job.said("scontrol").count(f"requeue {number}") == 1  # not after the last step


@pytest.mark.slow
def test_a_job_that_fails_is_not_requeued(tmp_path: Path, data: Path) -> None:
    job = Job(tmp_path, *TINY, "--data", tmp_path / "nowhere", "--run-dir", tmp_path / "run")
    running = job.start()
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1 and f"error: {tmp_path / 'nowhere'}" in errors
    assert not [line for line in job.said("scontrol") if line.startswith("requeue")]


def test_the_job_asks_slurm_for_what_the_script_needs() -> None:
    directives = re.findall(r"^#SBATCH --(.*)$", (EXAMPLES / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"requeue", "open-mode=append", "ntasks-per-node=1"} <= set(directives)
    (warning,) = (int(d.rpartition("@")[2]) for d in directives if d.startswith("signal=B:USR1@"))
    (patience,) = map(int, re.findall(r"--shutdown-timeout=(\d+)", (EXAMPLES / "slurm.sbatch").read_text()))
    assert patience + 120 <= warning  # SLURM's signal comes up to a minute early or late


# The mirror of a run


def mirror(action: str, bucket: Path, run: Path | str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [EXAMPLES / "mirror_run.sh", action, bucket, run]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_a_run_goes_on_from_its_mirror(tmp_path: Path, data: Path) -> None:
    bucket, run = tmp_path / "bucket", tmp_path / "run"
    bucket.mkdir()
    command = [*TINY, "--data", str(data), "--run-dir", str(run), "--resume", "--max-steps"]
    assert mirror("restore", bucket, run).returncode == 0 and not run.exists()
    assert mirror("once", bucket, run).returncode == 0 and not list(bucket.iterdir())
    for steps in (1, 2):
        assert main([*command, str(steps)]) == 0
        assert mirror("once", bucket, run).returncode == 0
        assert [path.name for path in bucket.iterdir()] == [f"step-{steps:08d}"]
    shutil.rmtree(run)
    copied = bucket / "step-00000003"  # a copy that was not finished when the machine vanished
    copied.mkdir()
    assert mirror("restore", bucket, run).returncode == 0
    assert main([*command, "4"]) == 0
    assert main([*command[:-1], "--max-steps", "4", "--run-dir", str(tmp_path / "whole")]) == 0
    for path in (tmp_path / "whole/checkpoints/step-00000004").glob("*.safetensors"):
        assert path.read_bytes() == (run / "checkpoints/step-00000004" / path.name).read_bytes()
    assert mirror("once", bucket, run).returncode == 0
    assert [path.name for path in bucket.iterdir()] == ["step-00000004"]
    assert mirror("restore", bucket, run).returncode == 0  # a run that is there stays
    assert (run / "checkpoints/step-00000004").exists()


def test_the_mirror_keeps_up_and_survives_kills(tmp_path: Path) -> None:
    """Copies are killed at many moments, while checkpoints come and go. Some whole copy is there at all times."""
    bucket, run = tmp_path / "bucket", tmp_path / "run"
    bucket.mkdir()
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_text("{}\n")
    for step in range(1, 13):
        new = run / "checkpoints" / f"step-{step:08d}"
        new.mkdir()
        (new / "state.pt").write_bytes(bytes(300_000))
        (new / "generator_st.safetensors").write_bytes(bytes(300_000))
        if step > 2:
            shutil.rmtree(run / "checkpoints" / f"step-{step - 2:08d}")
        keeping = subprocess.Popen(
            [EXAMPLES / "mirror_run.sh", "keep", bucket, run],
            env={**os.environ, "SECONDS_BETWEEN": "0.01"},
            start_new_session=True,
        )
        time.sleep(0.003 * step if step > 1 else 0.5)
        os.killpg(keeping.pid, signal.SIGKILL)
        keeping.wait()
        restored = tmp_path / f"restored-{step}"
        assert mirror("restore", bucket, restored).returncode == 0
        (found,) = (restored / "checkpoints").iterdir()
        assert sorted((path.name, path.stat().st_size) for path in found.iterdir()) == [
            ("generator_st.safetensors", 300_000),
            ("state.pt", 300_000),
        ]
        assert (restored / "config.json").exists()


def made_run(run: Path, *steps: int, logs: bool = True) -> Path:
    """Make a run folder with these checkpoints."""
    for step in steps:
        (run / f"checkpoints/step-{step:08d}").mkdir(parents=True)
        (run / f"checkpoints/step-{step:08d}/state.pt").write_text(str(step))
    (run / "config.json").write_text("{}")
    for name in ("metrics.jsonl", "skipped.jsonl") if logs else ():
        (run / name).write_text("{}\n")
    return run


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", [0, 8, 99, 99_999_999, 100_000_000])
@pytest.mark.parametrize("later", [1, 1_000_000_000])
def test_the_mirror_never_replaces_a_copy_by_an_earlier_step(tmp_path: Path, step: int, later: int) -> None:
    bucket, old = tmp_path / "bucket", made_run(tmp_path / "old", step)
    assert mirror("once", bucket, made_run(tmp_path / "new", step, step + later)).returncode == 0
    before = contents(bucket)
    assert f"step-{step + later:08d}/complete" in before
    done = mirror("once", bucket, old)
    assert done.returncode == 1 and done.stderr.endswith(
        f": {bucket}: holds a copy of step {step + later}; expected none after step {step}, the last in {old}\n"
    )
    assert contents(bucket) == before
    assert mirror("once", bucket, tmp_path / "new").returncode == 0 and contents(bucket) == before


def test_a_later_step_replaces_all_copies_before_it_and_nothing_else(tmp_path: Path) -> None:
    """99 999 999 and 100 000 000 sort by number, not by name."""
    bucket, run = tmp_path / "bucket", made_run(tmp_path / "run", 99_999_999)
    assert mirror("once", bucket, run).returncode == 0
    for name in ("step-00000001", "step-200000000", "step-by-step"):  # only the first is a copy of an earlier step
        (bucket / name).mkdir()
    made_run(run, 100_000_000)
    assert mirror("once", bucket, run).returncode == 0
    assert sorted(path.name for path in bucket.iterdir()) == ["step-100000000", "step-200000000", "step-by-step"]
    assert mirror("restore", bucket, tmp_path / "restored").returncode == 0
    assert [path.name for path in (tmp_path / "restored/checkpoints").iterdir()] == ["step-100000000"]


@pytest.mark.parametrize("logs", [False, True])
def test_a_run_is_copied_and_restored_with_the_logs_that_it_has(tmp_path: Path, logs: bool) -> None:
    run = made_run(tmp_path / "run", 5, logs=logs)
    assert mirror("once", tmp_path / "bucket", run).returncode == 0
    assert mirror("restore", tmp_path / "bucket", f"{tmp_path}/restored/").returncode == 0
    assert contents(tmp_path / "restored") == contents(run)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("notes.txt", "notes.txt"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("samples2/a.png", "samples2"),
        ("checkpoints/step-00000300/state.pt", "checkpoints"),
    ],
)
def test_restore_keeps_a_folder_that_is_not_the_rest_of_a_start(tmp_path: Path, name: str, found: str) -> None:
    bucket, folder = tmp_path / "bucket", tmp_path / "folder"
    assert mirror("once", bucket, made_run(tmp_path / "run", 100)).returncode == 0
    for path in (folder / name, folder / "samples/step-00000000.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = contents(folder)
    done = mirror("restore", bucket, folder)
    assert done.returncode == 1 and contents(folder) == before
    assert done.stderr.endswith(f": {folder}: has {found} but no config.json; expected a run, or an empty folder\n")
    done = mirror("restore", bucket, folder / name)
    assert done.returncode == 1 and "expected a folder, found a file" in done.stderr and contents(folder) == before


@pytest.mark.parametrize("name", [".lock", "samples/step-00000000.png", "checkpoints/step-00000000/state.pt", "x"])
def test_restore_replaces_the_rest_of_a_start(tmp_path: Path, name: str) -> None:
    """The rest is one of these, or an empty folder."""
    bucket, folder = tmp_path / "bucket", tmp_path / "folder"
    run = made_run(tmp_path / "run", 100)
    assert mirror("once", bucket, run).returncode == 0
    (folder / name).parent.mkdir(parents=True)
    if name != "x":
        (folder / name).write_text("old")
    (tmp_path / "link").symlink_to(folder)
    assert mirror("restore", bucket, tmp_path / "link").returncode == 0
    assert contents(folder) == contents(run)


@pytest.mark.parametrize("name", [".keep", "lost+found/x", ".hidden/file", ".restored/x"])
def test_restore_removes_only_the_rest_of_a_start(tmp_path: Path, name: str) -> None:
    """`.restored` is the script's own folder, which a kill may leave."""
    bucket, folder = tmp_path / "bucket", tmp_path / "folder"
    run = made_run(tmp_path / "run", 100)
    assert mirror("once", bucket, run).returncode == 0
    for path in (name, ".lock", "samples/step-00000000.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("mine")
    done = mirror("restore", bucket, folder)
    assert done.returncode == 0, done.stderr
    mine = {} if name.startswith(".restored") else {name: "mine"}
    assert contents(folder) == contents(run) | mine


def link(run: Path, name: str, step: int) -> None:
    (run / "checkpoints" / name).unlink(missing_ok=True)
    (run / "checkpoints" / name).symlink_to(f"step-{step:08d}")


@pytest.mark.parametrize("best", [100, 300])
@pytest.mark.parametrize("other", [100, 200, 300, 999, None])
def test_copies_have_the_best_checkpoints(tmp_path: Path, best: int, other: int | None) -> None:
    """Two links may name one checkpoint, the last one, or none. A link also comes when it moves after the copy."""
    bucket, run = tmp_path / "bucket", made_run(tmp_path / "run", 100, 200, 300)
    link(run, "best", best)
    if other is not None:
        link(run, "best-t2s", other)
    for moved in (best, 200):
        link(run, "best", moved)
        assert mirror("once", bucket, run).returncode == 0
        assert [path.name for path in bucket.iterdir()] == ["step-00000300"]
        restored = tmp_path / f"restored-{moved}"
        assert mirror("restore", bucket, restored).returncode == 0
        expected = {"best": moved} | ({} if other in (None, 999) else {"best-t2s": other})
        for name, step in expected.items():
            assert (restored / "checkpoints" / name).readlink() == Path(f"step-{step:08d}")
            assert (restored / "checkpoints" / name / "state.pt").read_text() == str(step)
        found = {path.name for path in (restored / "checkpoints").iterdir()}
        assert found == expected.keys() | {f"step-{step:08d}" for step in {300, *expected.values()}}


@pytest.mark.parametrize("stop", ["cp", "cp cp cp", "rm", "rm rm", "mv", "mv mv", "mv mv mv", "mv mv mv mv", "rmdir"])
def test_a_restore_that_was_killed_is_repeated(tmp_path: Path, stop: str) -> None:
    """A stand-in for one of the commands ends the script where a kill would."""
    bucket, folder = tmp_path / "bucket", tmp_path / "folder"
    run = made_run(tmp_path / "run", 50, 100)
    link(run, "best", 50)
    assert mirror("once", bucket, run).returncode == 0
    (folder / "samples").mkdir(parents=True)
    (folder / ".mine").write_text("mine")
    (command, *rest), calls = stop.split(), tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    count = 1 + len([word for word in rest if word == command])
    fake = f'#!/bin/bash\necho >>{calls}\n[ "$(wc -l <{calls})" -ge {count} ] && kill -9 $PPID\n'
    fake += f'PATH=$OLD exec {command} "$@"\n'
    (tmp_path / "bin" / command).write_text(fake)
    (tmp_path / "bin" / command).chmod(0o755)
    killed = {**os.environ, "OLD": os.environ["PATH"], "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run([EXAMPLES / "mirror_run.sh", "restore", bucket, folder], env=killed)
    assert done.returncode == -signal.SIGKILL
    assert mirror("restore", bucket, folder).returncode == 0
    assert contents(folder) == contents(run) | {".mine": "mine"}


def test_the_mirror_stops_at_once_but_ends_a_copy(tmp_path: Path) -> None:
    bucket, run = tmp_path / "bucket", made_run(tmp_path / "run", 5)
    keeping = subprocess.Popen([EXAMPLES / "mirror_run.sh", "keep", bucket, run], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (bucket / "step-00000005/complete").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    keeping.terminate()
    keeping.communicate(timeout=30)  # it waits 60 s between copies
    assert keeping.returncode == 0 and (bucket / "step-00000005/complete").exists()


def test_a_copy_that_has_begun_is_finished(tmp_path: Path) -> None:
    """SIGTERM comes while a slow `cp` copies the checkpoint. The other files of the copy follow."""
    bucket, run = tmp_path / "bucket", made_run(tmp_path / "run", 5)
    (tmp_path / "bin").mkdir()
    slow = f'#!/bin/bash\ntouch {tmp_path}/begun\nsleep 0.5\nPATH=$OLD exec cp "$@"\n'
    (tmp_path / "bin/cp").write_text(slow)
    (tmp_path / "bin/cp").chmod(0o755)
    environment = {**os.environ, "OLD": os.environ["PATH"], "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    keeping = subprocess.Popen([EXAMPLES / "mirror_run.sh", "keep", bucket, run], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    keeping.terminate()
    assert keeping.wait(timeout=30) == 0
    assert (bucket / "step-00000005/complete").exists()


def test_the_mirror_says_what_it_expects(tmp_path: Path) -> None:
    done = mirror("rest", tmp_path, tmp_path)
    assert done.returncode == 2 and done.stderr.endswith("expected restore, keep or once, found rest\n")


# SkyPilot and Docker


def test_the_file_of_skypilot_fits_the_repository(sky: dict, tmp_path: Path) -> None:
    for part in ("setup", "run"):
        script = tmp_path / f"{part}.sh"
        script.write_text(sky[part])
        subprocess.run(["bash", "-n", script], check=True)
    for path in re.findall(r"examples/\S+\.sh", sky["run"]):
        assert os.access(ROOT / path, os.X_OK)
    used = set(re.findall(r"\$\{?([A-Z_]+)", str(sky))) - {"HOME"}
    assert used - {name for name in used if name.startswith("SKYPILOT_")} == set(sky["envs"])


@pytest.mark.parametrize("code", [0, 1, 130])
def test_the_script_of_skypilot_fails_as_the_training_does(sky: dict, tmp_path: Path, code: int) -> None:
    """A stand-in for torchrun saves step 7, and ends with `code`. The last copy is made in each case."""
    bin_folder, bucket, home = tmp_path / ".venv/bin", tmp_path / "bucket", tmp_path / "home"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f"PATH={shlex.quote(str(tmp_path))}:$PATH\n")
    made_run(tmp_path / "made", 7)
    torchrun = (
        f'#!/bin/bash\nsleep 0.3; mkdir -p "$HOME/runs"; cp -r {tmp_path}/made "$HOME/runs/people"; exit {code}\n'
    )
    (tmp_path / "torchrun").write_text(torchrun)
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    environment = {**os.environ, "HOME": str(home), "NAME": "people", "DATA": "d", "PRESET": "p"}
    environment["SKYPILOT_NUM_GPUS_PER_NODE"] = "1"
    script = sky["run"].replace("/bucket/", f"{bucket}/")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == code, done.stderr
    assert (bucket / "people/step-00000007/complete").exists()


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_of_skypilot_stop_at_the_first_error(sky: dict, tmp_path: Path, part: str) -> None:
    """Nothing is installed there: the first command fails."""
    script = f"sudo() {{ return 9; }}; conda() {{ touch conda; }}; mkdir() {{ touch mkdir; }}; {sky[part]}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=50)
    assert done.returncode != 0 and not list(tmp_path.iterdir())


def test_the_dockerfile_copies_what_the_build_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    needed = [
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "CMakeLists.txt",
        "csrc",
        "kernels",
        "vologan_fast",
    ]
    assert all((ROOT / name).exists() for name in needed) and not set(needed) & set(ignored)
    text = (ROOT / "Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(images) == 2 and all(
        re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-\w+-ubuntu24\.04", image) for image in images
    )
    extras = re.search(r"\[([a-z0-9,]+)\]\"$", text, re.MULTILINE)
    assert extras is not None
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras[1].split(","))
    assert re.search(r"^USER [1-9]", text, re.MULTILINE)
