"""`python -m vologan_fast.report`, `--train.report-every` and the report at the end of a run."""

from __future__ import annotations

import builtins
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from editors import EDITED
from report_runs import EVIL, TINY, trained
from safetensors.torch import load_file

pytest.importorskip("plotly")
from vologan_fast import train
from vologan_fast.checksums import signed
from vologan_fast.report import page as page_module
from vologan_fast.report.__main__ import main
from vologan_fast.report.page import LIMIT, embedded
from vologan_fast.training import run_report
from vologan_fast.training.trainer import Trainer
from vologan_fast.words import printable

SECTIONS = ["summary", "warnings", "losses", "grids", "histograms", "profiles", "clouds", "holes", "discriminators"]
SECTIONS += ["ranked", "components", "weights"]


class Page(HTMLParser):
    """What a browser sees of a page: its elements, its texts, and the numbers for its script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.numbers, self._scripts = "", "", 0
        self._inside: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag if dict(attrs).get("id") != "numbers" else "numbers")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if self._inside == ["numbers"]:
            self.numbers += data
        elif not self._inside:
            self.text += data

    @property
    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.elements if tag == "section"]


def test_the_end_of_a_run_writes_a_report_with_all_sections(run: Path) -> None:
    path = run / "report.html"
    found = Page(path)
    assert found.sections == SECTIONS
    assert path.stat().st_size < LIMIT
    numbers = json.loads(found.numbers)
    assert set(numbers["clouds"]) == {"clouds-0"} and len(numbers["clouds"]["clouds-0"]["choices"]) == 6
    assert [step for step, _ in numbers["sliders"]["grids-0"]] == [1, 2, 3]
    assert "this report showsstep 3" in re.sub(r"\s*\n\s*", "", found.text)


def test_reports_change_no_bit_of_the_training(run: Path, evil_data: Path, tmp_path: Path) -> None:
    without, often = (
        trained(
            tmp_path / every, evil_data, "--max-steps", "3", "--train.save-every", "1", "--train.report-every", every
        )
        for every in ("-1", "1")
    )
    assert not (without / "report.html").exists()
    for file in (without / "checkpoints" / "step-00000003").glob("*.safetensors"):
        for reported in (run, often):
            found = load_file(reported / "checkpoints" / "step-00000003" / file.name)
            assert all(torch.equal(found[name], value) for name, value in load_file(file).items())


def test_losses_that_are_not_finite_end_a_run_that_is_writing_its_report(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def report(self: Trainer) -> None:
        nan = [({"generator_st/total": float("nan")}, {"step": 1, "split": "train"})]
        monkeypatch.setattr(self._pending, "arrived", lambda wait: nan)
        whole(self)

    whole = Trainer.report
    monkeypatch.setattr(Trainer, "report", report)
    options = ["--max-steps", "1", "--run-dir", str(tmp_path / "run"), "--data", str(demo)]
    assert train.main([*TINY, *options]) == 1
    assert "step 1: the loss generator_st/total is nan" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()


def test_names_are_text_and_the_page_asks_for_nothing(run: Path) -> None:
    found = Page(run / "report.html")
    scripts = [attributes for tag, attributes in found.elements if tag == "script"]
    assert len(scripts) == 4 and not any("src" in attributes for attributes in scripts)
    assert all((attributes.get("src") or "data:").startswith("data:") for tag, attributes in found.elements)
    assert {attributes.get("href", "#")[:1] for tag, attributes in found.elements if tag == "a"} == {"#"}
    assert [attributes["href"] for tag, attributes in found.elements if tag == "link"] == ["data:,"]
    assert printable(EVIL.rsplit("/", 1)[-1]) in found.text
    assert "\x1b" not in (run / "report.html").read_text()


def test_a_script_element_cannot_be_ended_by_a_text() -> None:
    evil = {"a": "</script><!--<script>&", "b": "\u2028"}
    assert not re.search(r"[<>&]", embedded(evil)) and json.loads(embedded(evil)) == evil


def test_text_that_cannot_be_seen_is_written_as_escapes() -> None:
    assert printable("a\x1b[31m\n\udc80é→") == "a\\x1b[31m\\n\\udc80é→"


def test_the_command_writes_the_report_of_a_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "a.html"
    assert main([str(run), "--output", str(path), "--checkpoint", "2", "--fov", "50", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"report: {path}" in printed and "\x1b" not in printed
    found = Page(path)
    assert "this report showsstep 2" in re.sub(r"\s*\n\s*", "", found.text)
    assert "a field of view of 50°" in found.text


def test_a_report_shows_the_tables_of_evaluate(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (copy / "evaluation").mkdir()
    table = "| | T | G(S) 3 |\n| --- | --- | --- |\n| depth <b> | 0 | 0.5 [0.4, 0.6] |\n"
    (copy / "evaluation" / "evaluation.md").write_text(f"# Evaluation\n\n## Distance from T\n\n{table}")
    assert main([str(copy), "--device", "cpu"]) == 0
    found = Page(copy / "report.html")
    assert "Distance from T" in found.text and "depth <b>" in found.text and "0.5 [0.4, 0.6]" in found.text


def test_a_report_names_an_evaluation_that_has_changed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tables are in a file that holds its own checksum."""
    folder = Path(shutil.copytree(run, tmp_path / "run", symlinks=True)) / "evaluation"
    folder.mkdir()
    whole = signed(
        {"tables": [{"title": "Distance from T", "columns": ["", "T"], "rows": [["depth", "0.5"]]}]}, indent=1
    )
    for content, said in (
        (whole, ""),
        (EDITED["all of it"](whole), ""),  # what it says has not changed
        (whole.replace(b"0.5", b"0.4"), f"warning: {folder / 'evaluation.json'}: damaged"),
    ):
        (folder / "evaluation.json").write_bytes(content)
        capsys.readouterr()
        assert main([str(folder.parent), "--device", "cpu"]) == 0
        error = capsys.readouterr().err
        assert said in error and ("warning: " in error) == bool(said)
        assert ("Distance from T" in Page(folder.parent / "report.html").text) == (not said)


def test_a_report_names_a_log_that_is_missing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (copy / "metrics.jsonl").unlink()
    assert main([str(copy), "--device", "cpu"]) == 0
    said = f"warning: {copy / 'metrics.jsonl'}: no such file, although the run has checkpoints"
    error = capsys.readouterr().err
    assert said in error and error.count("warning: ") == 1


def test_several_runs_are_compared(run: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    assert main([str(run), str(other), "--output", str(path), "--device", "cpu"]) == 0
    found = Page(path)
    assert found.sections == ["summary", "settings", "warnings", "losses", "grids", "histograms", "clouds"]
    assert "loss.cycle" in found.text and "generator.hole_head" in found.text and "train.batch" not in found.text
    numbers = json.loads(found.numbers)
    first = numbers["plots"]["losses-0"]["choices"][0][1]
    assert len(first["data"]) == 2
    assert all(len(pictures) == 2 for _, pictures in numbers["sliders"]["grids-0"])
    assert [len(clouds) for _, clouds in numbers["clouds"]["clouds-0"]["choices"]] == [3, 3, 3]


def test_a_run_of_one_generator_without_depth_has_the_sections_that_it_can_have(cut: Path) -> None:
    assert Page(cut / "report.html").sections == [
        name for name in SECTIONS if name not in ("profiles", "clouds", "holes")
    ]


def test_reports_change_nothing_in_a_run(demo: Path, tmp_path: Path) -> None:
    options = ["--max-steps", "3", "--generator.dropout", "0.2", "--generator.noise-channels", "1"]
    often = trained(tmp_path / "often", demo, *options, "--train.report-every", "1")
    never = trained(tmp_path / "never", demo, *options, "--train.report-every", "-1")
    assert (often / "report.html").exists() and not (never / "report.html").exists()
    for file in sorted((never / "checkpoints" / "step-00000003").glob("*.safetensors")):
        weights = load_file(often / "checkpoints" / "step-00000003" / file.name)
        assert all(torch.equal(value, weights[name]) for name, value in load_file(file).items())


def test_without_plotly_a_run_says_so_once_and_ends_well(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("plotly"):
            raise ImportError(name)
        return find(name, *arguments, **options)  # type: ignore[arg-type]

    for name in [name for name in sys.modules if name.split(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    run = trained(tmp_path / "run", demo, "--max-steps", "1")
    captured = capsys.readouterr()
    assert captured.err == "no report of step 1: plotly is not installed; pip install plotly\n"
    assert "report:" not in captured.out and not (run / "report.html").exists()
    assert main([str(run)]) == 1
    assert capsys.readouterr().err == "error: plotly is not installed; pip install plotly\n"


@pytest.mark.parametrize("error", [MemoryError("no\nmemory"), OSError(28, "No space left on device"), KeyError("x")])
def test_a_failing_report_costs_a_sentence_and_keeps_the_last_one(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = trained(tmp_path / "run", demo, "--max-steps", "1")
    before = (run / "report.html").read_bytes()

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(run_report, "write_page", fail)
    options = ["--max-steps", "2"]
    capsys.readouterr()
    assert train.main(["--run-dir", str(run), "--resume", *options]) == 0
    assert capsys.readouterr().err == f"no report of step 2: {str(error).splitlines()[0]}\n"
    assert (run / "report.html").read_bytes() == before
    assert (run / "checkpoints" / "step-00000002").is_dir()


def test_a_page_that_would_be_too_large_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "LIMIT", 5_000_000)
    path = tmp_path / "a.html"
    assert main([str(run), "--output", str(path), "--device", "cpu"]) == 1
    assert re.fullmatch(r"error: .*: \d\.\d MB, expected less than 5 MB\n", capsys.readouterr().err)
    assert not path.exists()


def test_what_cannot_be_reported_is_refused_in_a_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: object) -> str:
        assert main([*map(str, arguments)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("error: ")

    assert error() == "RUN_DIR: expected at least one run folder, found none"
    assert error(tmp_path / "no\x1bne") == f"{tmp_path}/no\\x1bne: no such folder; expected a run folder"
    (tmp_path / "empty").mkdir()
    assert "no such file; expected the config.json" in error(tmp_path / "empty")
    assert "expected last, best or one of 1, 2, 3" in error(run, "--checkpoint", "7")
    assert "has no best checkpoint" in error(run, "--checkpoint", "best")
    assert error(run, "--fov", "0") == "--fov 0: expected 1 to 170 degrees"
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in error(run, "--output", blocked / "a.html")
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    (copy / "checkpoints" / "step-00000003" / "discriminator_t.safetensors").write_bytes(b"x")
    assert "discriminator_t.safetensors: damaged (expected" in error(copy)


def test_a_finished_run_whose_report_is_missing_makes_it_when_it_is_resumed(demo: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", demo, "--max-steps", "1")
    resumed = ["--run-dir", str(run), "--resume", "--max-steps", "1"]
    before = (run / "report.html").stat().st_mtime_ns
    assert train.main(resumed) == 0 and (run / "report.html").stat().st_mtime_ns == before
    (run / "report.html").unlink()
    assert train.main(resumed) == 0 and (run / "report.html").exists()


def test_a_damaged_log_and_missing_grids_leave_a_report(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    shutil.rmtree(copy / "samples")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "train", "seconds": 1e999, "x": NaN}\n')
        file.write('{"step": 5, "split": "train", "seconds": "a", "images_per_second": null}\nnot json\n')
    assert main([str(copy), "--device", "cpu"]) == 0
    assert Page(copy / "report.html").sections == [name for name in SECTIONS if name != "grids"]


def test_a_report_that_cannot_be_written_names_the_option(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report.html").unlink()
    os.mkfifo(copy / "report.html")
    assert main([str(copy), "--device", "cpu"]) == 1
    reason = "not a regular file, so it is not replaced; name another file with --output"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {copy / 'report.html'}: {reason}"
