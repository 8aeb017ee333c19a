"""From public data to translated files: look-alikes are converted, inspected, trained on for two steps, translated."""

from __future__ import annotations

import shlex
import shutil
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from public_sets import bedlam2_set, bedlam_set, hammer_sequence, humman_sequence

from vologan_fast import depth, train, translate
from vologan_fast.data import __main__ as data_command
from vologan_fast.data.convert import FORMATS, convert

pytest.importorskip("OpenEXR")

TINY = """--preset demo --device cpu --data.size 32 --train.batch 2 --generator.width 4 --generator.max-width 8
    --generator.levels 2 --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8 --max-steps 2
    --train.report-every -1"""


def write_sources(root: Path) -> None:
    bedlam_set(root / "bedlam/20221010_3_1000_batch01hand")
    bedlam2_set(root / "bedlam2/20240425_1_171_hdri")
    humman_sequence(root / "humman/p000438_a000040", 4)
    for i in (1, 2):
        hammer_sequence(root / f"hammer/scene2_traj{i}_1")
    hammer_sequence(root / "hammer/scene12_traj1_1")


@pytest.mark.parametrize(
    ("synthetic", "real"),
    [
        ("bedlam bedlam --people", "humman-kinect humman --people"),
        ("bedlam bedlam2 --people", "humman-iphone humman --people"),
        ("bedlam bedlam2", "humman-iphone humman"),
        ("hammer-truth hammer", "hammer-tof hammer"),
    ],
)
def test_from_download_to_result(
    synthetic: str, real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["data", *shlex.split(arguments)])
        assert data_command.main() == 0, capsys.readouterr()
        return capsys.readouterr().out

    write_sources(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = []
    for domain, source in (("synthetic", synthetic), ("real", real)):
        kind, folder, *people = source.split()
        out = run(f"convert {kind} {folder} set --domain {domain} {' '.join(people)}")
        (line,) = [line for line in out.splitlines() if line.startswith("settings of training: ")]
        settings += shlex.split(line.removeprefix("settings of training: ").replace("none needed", ""))
    report = run(f"inspect set {' '.join(settings)} --picture None")
    assert "4 images" in report and "broken" not in report
    assert train.main([*shlex.split(TINY), "--data", "set", "--run-dir", "run", *settings]) == 0
    assert translate.main(["run", "--data", "set", "--out", "translated"]) == 0
    for source_path in sorted((tmp_path / "set/synthetic/depth").iterdir()):
        before = depth.decode(source_path)
        after = depth.decode(tmp_path / "translated/synthetic/depth" / source_path.name)
        np.testing.assert_array_equal(np.isinf(before), np.isinf(after))
        assert (after[np.isfinite(after)] > 0).any()


@pytest.mark.parametrize(
    ("kind", "domain", "count"),
    [
        ("bedlam", "synthetic", 8),
        ("humman-kinect", "real", 4),
        ("humman-iphone", "real", 4),
        ("hammer-tof", "real", 4),
        ("hammer-tof", "paired-test", 2),
    ],
)
def test_what_systems_add_is_left_alone(kind: str, domain: str, count: int, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_sources(source)
    for path in [path for path in source.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    for folder in list(source.iterdir()):
        shutil.copytree(folder, source / "__MACOSX" / folder.name)
    done = convert(kind, source, tmp_path / "set", domain, people=FORMATS[kind].people)
    assert (done.written, done.broken) == (count, ())


def test_the_command_offers_all_formats() -> None:
    hints = typing.get_type_hints(data_command.convert)
    assert set(typing.get_args(hints["kind"])) == set(FORMATS)
