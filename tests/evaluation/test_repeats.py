"""Repeated shots of one scene: their spread and changing holes, and the files that hold them."""

import json

import pytest
import torch

from vologan_fast.config import DataConfig
from vologan_fast.data import DataError, load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.evaluation import repeats, sensor
from vologan_fast.evaluation.inputs import load_repeats
from vologan_fast.evaluation.sensor import Unit
from vologan_fast.evaluation.tables import repeats_as_json, repeats_table


def shots(k=4, n=3, size=24, noise=0.01, holes=0.0):
    """A tilted plane with background at the left, with noise of its own in each shot."""
    generator = torch.Generator().manual_seed(3)
    images = torch.full((k, n, 4, size, size), 0.5)
    images[:, :, 3] = torch.linspace(0.3, 0.7, size)[:, None]
    images[:, :, 3] += noise * torch.randn(k, n, size, size, generator=generator)
    images[:, :, 3] *= torch.rand(k, n, size, size, generator=generator) >= holes
    images[..., :4] = 0.0
    return images


def test_the_statistics_are_those_of_the_definition():
    """All numbers again, with loops over pixels and Python's own variance."""
    from statistics import variance

    x = shots(holes=0.02)
    bins = sensor.find_bins(x[0])
    found = repeats.measure(x, bins)
    view = sensor.view(x[0])
    by_depth = [[] for _ in range(sensor.BINS)]
    by_edge = [[] for _ in sensor.DISTANCES]
    changing = []
    for n in range(3):
        for r in range(24):
            for c in range(4, 24):
                depths = x[:, n, 3, r, c].double().tolist()
                changing.append(variance([float(d < sensor.HOLE) for d in depths]))
                if min(depths) >= sensor.HOLE:
                    place = sum(float(view.surface[n, r, c]) > float(end) for end in bins.depth)
                    by_depth[place].append(variance(depths))
                    step = int(view.edge_distance[n, r, c])
                    by_edge[sum(step >= low for low in sensor.DISTANCES) - 1].append(variance(depths))
    for statistic, expected in ((repeats.SPREAD_BY_DEPTH, by_depth), (repeats.SPREAD_BY_EDGE, by_edge)):
        sums = found[statistic.name].sum(0)
        torch.testing.assert_close(sums[0], torch.tensor([sum(of) for of in expected], dtype=torch.float64))
        assert sums[1].tolist() == [len(of) for of in expected]
        everything = [value for of in expected for value in of]
        assert float(statistic.number(sums)) == pytest.approx((sum(everything) / len(everything)) ** 0.5, rel=1e-9)
    of_holes = found["changing holes"].sum(0)
    assert float(of_holes[0]) == pytest.approx(sum(changing)) and int(of_holes[1]) == len(changing)


def test_equal_shots_have_no_spread():
    x = shots()
    found = repeats.measure(x[:1].expand(3, -1, -1, -1, -1), sensor.find_bins(x[0]))
    assert all(float(statistic.number(found[statistic.name].sum(0))) == 0 for statistic in repeats.STATISTICS)
    with pytest.raises(ValueError, match="expected at least 2 of each scene, found 1"):
        repeats.measure(x[:1], sensor.find_bins(x[0]))


def test_the_table_shows_metres_and_the_distance_from_t():
    x, y = shots(noise=0.01), shots(noise=0.03)
    bins = sensor.find_bins(x[0])
    rows = {"T": repeats.measure(x, bins), "G": repeats.measure(y, bins)}
    table = repeats_table(rows, bins, Unit("m", 1.0, 4.0))
    cells = {row[0]: row[1:] for row in table.rows}
    assert table.columns == ["", "T", "G"]
    t, g = map(float, cells["spread (m)"])
    assert t == pytest.approx(0.04, rel=0.05) and g == pytest.approx(0.12, rel=0.05)
    assert cells["spread by depth: distance from T (m)"][0] == "0"
    assert float(cells["spread by depth: distance from T (m)"][1]) == pytest.approx(g - t, rel=0.1)
    assert repeats_as_json(rows["T"], Unit("m", 1.0, 4.0))["spread by depth"]["number"] == pytest.approx(t, rel=0.01)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=5, size=32, paired_test=3, repeats=2)


def test_the_demo_repeats_its_photographs(demo, tmp_path):
    """The phone stands still, so only the noise differs. All other files are those of the demo without repeats."""
    dataset = load_dataset(str(demo), DataConfig(size=32), 0)
    x = load_repeats(demo / "paired-test/paired_paths.json", dataset)
    assert x.shape == (3, 3, 4, 32, 32)
    measured = (x[:, :, 3] > 0).all(0)
    apart = (x[1:, :, 3] - x[:1, :, 3]).abs()[:, measured]
    assert 0 < apart.mean() < 0.01 and not torch.equal(x[1], x[2])
    plain = make_demo(tmp_path / "plain", count=5, size=32, paired_test=3)
    files = [path.relative_to(plain) for path in plain.rglob("*") if path.suffix in (".jpg", ".exr")]
    assert files and all((plain / path).read_bytes() == (demo / path).read_bytes() for path in files)
    assert "repeats" not in json.loads((plain / "demo.json").read_text())
    assert load_repeats(plain / "paired-test/paired_paths.json", dataset) is None


@pytest.mark.parametrize(("channels", "unneeded"), [("depth", "color_path"), ("rgb", "depth_path")])
def test_a_path_that_the_channels_do_not_need_may_be_absent(demo, tmp_path, channels, unneeded):
    dataset = load_dataset(str(demo), DataConfig(size=32, channels=channels), 0)
    whole = demo / "paired-test/paired_paths.json"
    listed = json.loads(whole.read_text())
    for scene in listed["paired_data"]:
        for image in (scene["synthetic"], scene["real"], *scene["repeats"]):
            del image[unneeded]
            image.update({name: str(whole.parent / path) for name, path in image.items()})
    file = tmp_path / "some.json"
    file.write_text(json.dumps(listed))
    assert torch.equal(load_repeats(file, dataset), load_repeats(whole, dataset))


def test_lists_that_do_not_fit_are_refused(demo, tmp_path):
    dataset = load_dataset(str(demo), DataConfig(size=32), 0)
    listed = json.loads((demo / "paired-test/paired_paths.json").read_text())
    for change, said in (
        (lambda scene: scene["repeats"].pop(), "repeats: expected as many for each scene, found 1 to 2"),
        (lambda scene: scene["repeats"][0].pop("depth_path"), 'repeats: expected images like "real"; KeyError'),
    ):
        wrong = json.loads(json.dumps(listed))
        change(wrong["paired_data"][1])
        file = tmp_path / "wrong.json"
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=said):
            load_repeats(file, dataset)
    with pytest.raises(DataError, match="repeats: found 1, expected 0 without a paired test"):
        make_demo(tmp_path / "none", count=5, size=32, repeats=1)


@pytest.mark.slow
def test_evaluate_has_the_table(demo, tmp_path, capsys):
    from vologan_fast.evaluate import main as evaluate
    from vologan_fast.train import main as train

    tiny = ["--preset", "demo", "--generator.width", "4", "--discriminator.widths", "4", "4", "4", "--device", "cpu"]
    tiny += ["--discriminator.down-widths", "4", "4", "4", "--data", str(demo), "--data.size", "32"]
    tiny += ["--data.held-out", "0.4", "--max-steps", "1"]
    for name, options in (("still", []), ("drawing", ["--generator.noise-channels", "1"])):
        run = tmp_path / name
        assert train([*tiny, *options, "--run-dir", str(run)]) == 0
        paired = str(demo / "paired-test/paired_paths.json")
        assert evaluate([str(run), "--paired", paired, "--bootstrap", "0", "--device", "cpu"]) == 0
        assert "Repeated shots of one scene" in capsys.readouterr().out
        found = json.loads((run / "evaluation/evaluation.json").read_text())["repeated_shots"]
        numbers = {of: values["spread by depth"]["number"] for of, values in found.items()}
        assert set(numbers) == {"T", "noise(S)", "G(S) 1"} and numbers["T"] > 0
        assert (numbers["G(S) 1"] > 0) == (name == "drawing")
