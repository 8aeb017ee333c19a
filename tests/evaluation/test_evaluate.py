"""The command `python -m vologan_fast.evaluate`, `--train.evaluate-every`, and the link to the best checkpoint."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vologan_fast
from vologan_fast import evaluate, train, translate
from vologan_fast.config import Config, from_dict, to_dict
from vologan_fast.data import held_out_batches, load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.evaluate import main
from vologan_fast.evaluation.distances import quantile_affine
from vologan_fast.evaluation.inputs import Images
from vologan_fast.evaluation.judge import Translate
from vologan_fast.evaluation.noise_model import NoiseModel
from vologan_fast.report.record import read_lines
from vologan_fast.training.checkpoint import CheckpointError, find_best, link_best, list_checkpoints, save_checkpoint

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 2 --train.log-every 1 --generator.width 4
    --generator.max-width 8 --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --data.held-out 0.5 --generator.dropout 0.2 --generator.spectral-norm --generator.no-keep-background
    --discriminator.depth-gradient 0 --discriminator-optimizer.learning-rate 2e-3 --schedule.decay none
    --train.report-every -1
""")


@pytest.fixture(autouse=True)
def quick_baselines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the baselines of quick tests be ones that are fitted at once."""
    if request.node.get_closest_marker("slow"):
        return

    def baselines(synthetic: Images, real: Images, seed: int) -> dict[str, Translate]:
        return {"affine(S)": quantile_affine(synthetic.pixels, real.pixels), "noise(S)": NoiseModel()}

    monkeypatch.setattr(evaluate, "_baselines", baselines)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=12, size=32, paired_test=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    torch.set_num_threads(1)
    options = ["--max-steps", "3", "--train.save-every", "1", "--train.evaluate-every", "2"]
    assert train.main([*TINY, "--run-dir", str(folder), "--data", str(data), *options]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run. Its config.json names the same data set."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def lines(run: Path, split: str) -> list[dict[str, float]]:
    return [record for record in read_lines(run / "metrics.jsonl") if record["split"] == split]


def losses(run: Path) -> list[dict[str, float]]:
    times = ("seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes")
    return [{k: v for k, v in line.items() if k not in times} for line in lines(run, "train")]


def test_all_checkpoints_are_judged_and_the_best_is_linked(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paired = data / "paired-test" / "paired_paths.json"
    assert main([str(run), "--bootstrap", "20", "--paired", str(paired)]) == 0
    out = run / "evaluation"
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json",
        "evaluation.md",
        "curves.png",
        "checkpoints.png",
    }
    record = json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert record["part"] == "held-out images" and record["images"] == {"synthetic": 6, "real": 6}
    assert list(record["rows"]) == ["T", "S", "affine(S)", "noise(S)"]
    assert list(record["checkpoints"]) == ["1", "2", "3"]
    scores = {int(step): row["score"]["score"][0] for step, row in record["checkpoints"].items()}
    best = min(scores, key=scores.__getitem__)
    assert (record["best"]["step"], record["best"]["score"]) == (best, scores[best])
    assert record["best"]["minus_first"][0] == pytest.approx(scores[best] - scores[1])
    assert f"best checkpoint: step {best}, linked as {run}/checkpoints/best" in capsys.readouterr().out
    assert (run / "checkpoints" / "best").readlink() == Path(f"step-{best:08d}")
    row = record["checkpoints"]["1"]
    assert set(row["errors"]) == {f"{w} {c}" for w in ("paired", "cycle", "identity") for c in ("colour", "depth")}
    assert set(record["rows"]["S"]["errors"]) == {"paired colour", "paired depth"}
    assert {"S", "affine(S)", "noise(S)"} == set(row["minus"])
    assert all(low <= high for low, high in [row["score"]["score"][1:]])
    assert len(record["weights"]["1"]["sha256"]) == 64
    assert len(record["data_fingerprint"]) == 64
    text = (out / "evaluation.md").read_text()
    assert "depth gradient" in text and f"| {best} (best) |" in text


def test_another_data_set_changes_nothing_of_the_runs_own_results(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link_best(run / "checkpoints" / "step-00000001")
    (run / "evaluation").mkdir()
    (run / "evaluation" / "evaluation.json").write_text("own")
    other = Path(shutil.copytree(data, tmp_path / "other set"))
    assert main([str(run), "--bootstrap", "0", "--images", "4", "--data", str(other)]) == 0
    assert (run / "evaluation" / "evaluation.json").read_text() == "own"
    assert (run / "checkpoints" / "best").readlink() == Path("step-00000001")
    out = run / "evaluation-other-set"
    record = json.loads((out / "evaluation.json").read_text())
    assert record["data"] == str(other) and record["part"] == "all images"
    assert f"on all images of `{other}`: 4 of synthetic and 4 of real." in (out / "evaluation.md").read_text()
    assert f"best checkpoint on {other}: step" in capsys.readouterr().out


@pytest.mark.slow
def test_baselines_are_fitted_on_training_images(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, fit = [], evaluate._baselines

    def baselines(synthetic: Images, real: Images, seed: int) -> dict[str, Translate]:
        given.extend([*synthetic.names, *real.names])
        return fit(synthetic, real, seed)

    monkeypatch.setattr(evaluate, "_baselines", baselines)
    options = ["--bootstrap", "20", "--checkpoints", "last", "--out", str(tmp_path)]
    assert main([str(run), *options]) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    config = from_dict(json.loads((run / "config.json").read_text())["config"])
    dataset = load_dataset(data, config.data, config.train.seed)
    expected = [record.color for domain in ("synthetic", "real") for record in dataset.train[domain]]
    assert given == [str(path.with_suffix("")) for path in expected if isinstance(path, Path)] and len(given) == 12
    for name in ("affine(S)", "noise(S)"):  # the phone's depth is larger, as each image shows
        assert rows[name]["measures"]["mean depth"]["change"][0] < 0


def test_the_best_checkpoint_is_used_by_its_link(run: Path, data: Path, tmp_path: Path) -> None:
    checkpoints = run / "checkpoints"
    link_best(checkpoints / "step-00000001")
    model = vologan_fast.load(checkpoints / "best", device="cpu")
    assert model.weights == (checkpoints / "step-00000001" / "average_st.safetensors").resolve()
    x = torch.rand(1, 4, 32, 32)
    assert torch.equal(model(x), vologan_fast.load(checkpoints / "step-00000001", device="cpu")(x))
    assert vologan_fast.load(run, device="cpu").weights.parent.name == "step-00000003"  # the last one, as before
    inside = vologan_fast.load(checkpoints / "best" / "generator_ts.safetensors", device="cpu")
    assert inside.direction == "t2s" and inside.weights.parent.name == "step-00000001"
    out = tmp_path / "out"
    assert translate.main([str(checkpoints / "best"), "--data", str(data), "--out", str(out)]) == 0
    assert len(list(out.rglob("*.exr"))) == 12
    assert train.main(["--run-dir", str(run), "--resume", "--max-steps", "4"]) == 0  # it goes on from step 3
    assert [path.name for path in list_checkpoints(checkpoints)][-1] == "step-00000004"


def test_a_link_from_elsewhere_works_too(run: Path, tmp_path: Path) -> None:
    link_best(run / "checkpoints" / "step-00000002")
    elsewhere = tmp_path / "my-best"
    elsewhere.symlink_to(run / "checkpoints" / "best")
    assert vologan_fast.load(elsewhere, device="cpu").weights.parent.name == "step-00000002"


def test_pruning_never_removes_the_best(run: Path) -> None:
    checkpoints = run / "checkpoints"
    link_best(checkpoints / "step-00000001")
    link_best(checkpoints / "step-00000002", "t2s")
    options = ["--train.keep-checkpoints", "1", "--train.evaluate-every", "0", "--train.save-every", "1"]
    for _ in range(2):
        assert train.main(["--run-dir", str(run), "--resume", "--max-steps", "6", *options]) == 0
        assert [int(path.name[5:]) for path in list_checkpoints(checkpoints)] == [1, 2, 6]
    link_best(checkpoints / "step-00000006")
    assert find_best(checkpoints) == checkpoints / "step-00000006"
    config = from_dict(json.loads((run / "config.json").read_text())["config"])
    from vologan_fast.networks import Networks

    save_checkpoint(checkpoints, 7, Networks(config), {}, keep=1)
    assert [int(path.name[5:]) for path in list_checkpoints(checkpoints)] == [2, 6, 7]


@pytest.mark.parametrize("target", ["step-00000099", "../checkpoints/step-00000001", "/", "step-1"])
def test_a_link_to_something_else_is_no_best_checkpoint(tmp_path: Path, target: str) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "best").symlink_to(target)
    assert find_best(tmp_path) is None
    link_best(tmp_path / "step-00000001")
    assert find_best(tmp_path) == tmp_path / "step-00000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-00000001"]


def test_a_folder_in_the_way_of_the_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "best").mkdir()
    with pytest.raises(CheckpointError, match="best: cannot be written"):
        link_best(tmp_path / "step-00000001")


def test_evaluations_during_training_change_no_loss(trained: Path, data: Path, tmp_path: Path) -> None:
    options = ["--max-steps", "3", "--train.save-every", "1"]
    assert train.main([*TINY, "--run-dir", str(tmp_path / "plain"), "--data", str(data), *options]) == 0
    assert losses(trained) == losses(tmp_path / "plain") and len(losses(trained)) == 3
    weights = [
        {path.name: load_file(path) for path in (folder / "checkpoints" / "step-00000003").glob("*.safetensors")}
        for folder in (trained, tmp_path / "plain")
    ]
    for name, tensors in weights[0].items():
        assert all(torch.equal(tensor, weights[1][name][key]) for key, tensor in tensors.items())


def test_training_logs_scores_and_links_the_best(trained: Path) -> None:
    found = lines(trained, "evaluation")
    assert [line["step"] for line in found] == [2, 3]  # every second step, and the last
    for line in found:
        assert {"score", "patches", "sensor", "colour", "depth_gradient", "bias_by_depth"} <= set(line)
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
    best = min(found, key=lambda line: line["score"])["step"]
    assert find_best(trained / "checkpoints") == trained / "checkpoints" / f"step-{best:08d}"


def test_a_resumed_run_keeps_the_best_so_far(run: Path) -> None:
    """The best checkpoint of the former part stays, and a new one must have a lower score."""
    lower = [
        line | {"score": -1.0} if line["split"] == "evaluation" and line["step"] == 2 else line
        for line in all_lines(run)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lower))
    link_best(run / "checkpoints" / "step-00000002")
    more = ["--max-steps", "6", "--train.keep-checkpoints", "1", "--train.evaluate-every", "1"]
    assert train.main(["--run-dir", str(run), "--resume", *more]) == 0
    assert [line["step"] for line in lines(run, "evaluation")] == [2, 3, 4, 5, 6]
    assert find_best(run / "checkpoints") == run / "checkpoints" / "step-00000002"
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000002", "step-00000006"]


def all_lines(run: Path) -> list[dict[str, float]]:
    return read_lines(run / "metrics.jsonl")


def test_a_checkpoint_is_saved_where_an_evaluation_is_due(data: Path, tmp_path: Path) -> None:
    options = ["--max-steps", "4", "--train.save-every", "1000", "--train.evaluate-every", "2"]
    assert train.main([*TINY, "--run-dir", str(tmp_path / "run"), "--data", str(data), *options]) == 0
    assert {path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")} == {
        "step-00000002",
        "step-00000004",
    }


def test_evaluations_that_cannot_be_are_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = make_demo(tmp_path / "few", count=3, size=32)
    options = ["--data.held-out", "0.2", "--max-steps", "4", "--train.evaluate-every", "2"]
    assert train.main([*TINY, "--run-dir", str(tmp_path / "run"), "--data", str(few), *options]) == 1
    assert "expected at least 2 held-out images of each domain, found 1 of the synthetic one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_former_configurations_still_read() -> None:
    former = to_dict(Config())
    del former["train"]["evaluate_every"]
    assert from_dict(former) == Config()


@pytest.mark.slow
def test_given_images_and_chosen_checkpoints(run: Path, data: Path, tmp_path: Path) -> None:
    """Another data set is used whole. The run's own data set means its held-out images."""
    other = make_demo(tmp_path / "other", count=5, size=32, seed=7)
    before = (run / "checkpoints" / "best").readlink()
    for given, part, count in ((other, "all images", 5), (data, "held-out images", 3)):
        options = [
            "--data",
            str(given),
            "--checkpoints",
            "last",
            "1",
            "--bootstrap",
            "0",
            "--images",
            "5" if given == other else "3",
            "--out",
            str(tmp_path / "out"),
        ]
        assert main([str(run), *options, "--direction", "t2s", "--weights", "trained"]) == 0
        record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert record["part"] == part and record["images"] == {"synthetic": count, "real": count}
        assert list(record["checkpoints"]) == ["1", "3"]
        assert record["weights"]["3"]["file"].endswith("generator_ts.safetensors")
        assert record["checkpoints"]["3"]["score"]["score"][1] is None  # no intervals
    assert (run / "checkpoints" / "best").readlink() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoints", "9"], "--checkpoints 9: not found; expected all, last, best (after all), or of 1, 2, 3"),
        (["--images", "1"], "--images 1: expected at least 2"),
        (["--bootstrap", "-1"], "--bootstrap -1: expected 0 or more"),
        (["--scene-pattern", "(x"], "--scene-pattern (x: expected a regular expression; "),
        (["--scene-pattern", "x"], "--scene-pattern x: expected a group, which is the name of the scene"),
        (["--data", "/no/such/folder"], "/no/such/folder: expected a folder of training data, found nothing"),
        (["--paired", "/no/such/file"], "/no/such/file: no such file"),
        (["--features", "/no/such/file"], "--features"),
        (["--out", "/proc/x"], "--out /proc/x: cannot be written"),
    ],
)
def test_bad_input_gives_one_sentence(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--bootstrap", "0", "--checkpoints", "last"]
    assert main([str(run), *small, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert f"error: {tmp_path}: expected a run folder with a checkpoint" in capsys.readouterr().err


def test_changed_data_are_refused(data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With other images, other images would be held out, among them some that were trained on."""
    changed = Path(shutil.copytree(data, tmp_path / "changed"))
    manifest = json.loads((changed / "training_paths.json").read_text())
    manifest["real_data"].pop()
    (changed / "training_paths.json").write_text(json.dumps(manifest))
    record = json.loads((run / "config.json").read_text())
    del record["crc32"]  # it is changed on purpose
    (run / "config.json").write_text(json.dumps(record | {"data": str(changed)}))
    assert main([str(run)]) == 1
    assert "config.json: its data set now has other images than the run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", 'expected {"paired_data"'),
        ('{"paired_data": []}', 'expected {"paired_data"'),
        ('{"paired_data": [{"synthetic": {}}]}', "KeyError"),
        ("not json", "cannot be read as JSON"),
    ],
)
def test_bad_lists_of_pairs_are_named(
    run: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.json").write_text(content)
    assert main([str(run), "--paired", str(tmp_path / "pairs.json"), "--bootstrap", "0"]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/pairs.json: " in error and message in error


def test_a_checkpoint_with_nan_is_left_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / "step-00000002" / "average_st.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file)
    (file.parent / "checksums.json").unlink()  # a former version may have written such weights
    assert main([str(run), "--bootstrap", "0"]) == 0
    assert f"left out: {file}: expected finite translations" in capsys.readouterr().out
    assert list(json.loads((run / "evaluation" / "evaluation.json").read_text())["checkpoints"]) == ["1", "3"]
    assert main([str(run), "--bootstrap", "0", "--checkpoints", "2"]) == 1
    assert "expected a checkpoint with finite translations, found none" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["the way back", "identity", "paired"])
def test_a_checkpoint_whose_other_translations_are_not_finite_is_left_out(
    run: Path, data: Path, broken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images of S are fine. The work on the other checkpoints is not lost."""
    wrong = run / "checkpoints" / "step-00000002" / f"average_{'ts' if broken == 'the way back' else 'st'}.safetensors"
    in_batches = evaluate._in_batches

    def translated(model: Any) -> Any:
        translate = in_batches(model)
        order = {"identity": 1, "paired": 2, "the way back": 0}[broken]
        count = iter(range(3))
        return lambda images: translate(images) * (math.nan if model.weights == wrong and next(count) == order else 1)

    monkeypatch.setattr(evaluate, "_in_batches", translated)
    assert main([str(run), "--bootstrap", "0", "--paired", str(data / "paired-test" / "paired_paths.json")]) == 0
    assert f"left out: {wrong}: expected finite translations" in capsys.readouterr().out
    assert list(json.loads((run / "evaluation" / "evaluation.json").read_text())["checkpoints"]) == ["1", "3"]


def test_an_empty_data_set_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--data", ""]) == 1
    assert capsys.readouterr().err == "error: --data is empty; expected a data set, or no --data\n"


def test_a_checkpoint_that_is_gone_is_not_linked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000001: no such checkpoint"):
        link_best(tmp_path / "step-00000001")
    assert not list(tmp_path.iterdir())


def test_a_link_that_a_kill_prevented_is_made_later(run: Path) -> None:
    """The best checkpoint so far is known from metrics.jsonl."""
    better = [
        line | {"score": -1.0} if line["split"] == "evaluation" and line["step"] == 2 else line
        for line in all_lines(run)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in better))
    (run / "checkpoints" / "best").unlink()
    assert train.main(["--run-dir", str(run), "--resume", "--max-steps", "4", "--train.evaluate-every", "1"]) == 0
    assert find_best(run / "checkpoints") == run / "checkpoints" / "step-00000002"


def with_scores(run: Path, scores: dict[int, float]) -> None:
    """Let metrics.jsonl record these scores and no others."""
    kept = [line for line in all_lines(run) if line["split"] != "evaluation"]
    kept += [{"step": step, "split": "evaluation", "score": score} for step, score in scores.items()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))


RESUMED = ["--resume", "--train.keep-checkpoints", "1", "--train.evaluate-every", "1", "--max-steps"]


@pytest.mark.parametrize(
    ("linked", "scores", "best", "kept"),
    [
        (1, {2: -1.0, 3: 9.0}, 1, {1, 2, 4}),  # evaluate and the training disagree: both stay
        (1, {3: -1.0}, 1, {1, 3, 4}),
        (1, {1: 9.0, 2: 9.0}, 4, {4}),  # the new one is better than all
        (2, {1: 9.0, 2: -1.0}, 2, {2, 4}),
        (None, {2: -1.0, 3: 9.0}, 2, {2, 4}),  # no link, or one to nothing
        (99, {2: -1.0, 3: 9.0}, 2, {2, 4}),
        (99, {}, 4, {4}),
    ],
)
def test_training_and_evaluate_share_the_link(
    run: Path, linked: int | None, scores: dict[int, float], best: int, kept: set[int]
) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "best").unlink()
    if linked is not None:
        (checkpoints / "best").symlink_to(f"step-{linked:08d}")
    with_scores(run, scores)
    assert train.main(["--run-dir", str(run), *RESUMED, "4"]) == 0
    assert find_best(checkpoints) == checkpoints / f"step-{best:08d}"
    assert {int(path.name[5:]) for path in list_checkpoints(checkpoints)} >= kept


@pytest.mark.parametrize("broken", [False, True])
def test_a_linked_checkpoint_without_a_score_is_judged(
    run: Path, trained: Path, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training compares it by its own measure. The weights of the run do not change by this."""
    from vologan_fast.training.trainer import Trainer

    judged, score_of = [], Trainer._score_of

    def noted(self: Trainer, folder: Path) -> float:
        before = {name: value.clone() for name, value in self.networks.state_dict().items()}
        judged.append((folder.name, score_of(self, folder)))
        assert all(torch.equal(value, before[name]) for name, value in self.networks.state_dict().items())
        return judged[-1][1]

    monkeypatch.setattr(Trainer, "_score_of", noted)
    recorded = {line["step"]: line["score"] for line in lines(run, "evaluation")}
    checkpoints = run / "checkpoints"
    link_best(checkpoints / "step-00000002")
    if broken:
        (checkpoints / "step-00000002" / "average_st.safetensors").write_bytes(b"cut")
    with_scores(run, {})
    assert train.main(["--run-dir", str(run), *RESUMED, "4"]) == 0
    # The step 3 of the copy had no line any more, so it was evaluated again.
    expected = math.inf if broken else pytest.approx(recorded[2], rel=1e-4)
    assert judged == [("step-00000002", expected)]
    assert (find_best(checkpoints) == checkpoints / "step-00000002") <= (not broken)


def test_domains_of_different_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """S from 1 to 2 m and T from 2 to 4 m, in millimetres. The way there and back ends in the range of S."""
    generator = np.random.default_rng(0)
    for domain, near in (("synthetic", 1000), ("real", 2000)):
        for part in ("color", "depth"):
            (tmp_path / "data" / domain / part).mkdir(parents=True)
        for i in range(6):
            depth = np.tile(np.linspace(near, 2 * near, 32), (32, 1)) + generator.normal(0, 4, (32, 32))
            Image.fromarray(depth.astype(np.uint16)).save(tmp_path / "data" / domain / "depth" / f"{i}.png")
            color = generator.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(color).save(tmp_path / "data" / domain / "color" / f"{i}.png")
    ranges = shlex.split(
        "--data.synthetic.near 1 --data.synthetic.far 2 --data.real.near 2 --data.real.far 4 --max-steps 1"
    )
    run = tmp_path / "run"
    assert train.main([*TINY, "--run-dir", str(run), "--data", str(tmp_path / "data"), *ranges]) == 0
    assert main([str(run), "--bootstrap", "0"]) == 0
    out = capsys.readouterr().out
    assert "synthetic depth is 1 to 2 m, real depth 2 to 4 m: all depth is shown in the range of real" in out
    assert "synthetic: with less than 30 images, the intervals are too narrow" in out
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert 2 < record["rows"]["S"]["measures"]["mean depth"]["number"][0] < 4
    config = from_dict(json.loads((run / "config.json").read_text())["config"])
    images = torch.cat(list(held_out_batches(load_dataset(tmp_path / "data", config.data, 0), "synthetic", 8)))
    there, back = (vologan_fast.load(run, direction, device="cpu") for direction in ("s2t", "t2s"))
    with torch.no_grad():
        error = (back(there(images)) - images).abs()[:, 3].mean()  # all is foreground, and S has a span of 1 m
    assert record["checkpoints"]["1"]["errors"]["cycle depth"][0] == pytest.approx(float(error), rel=1e-3)
