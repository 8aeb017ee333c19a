"""Reports in Chromium: all figures are drawn, nothing is requested, clouds turn together, sliders work."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser
from PIL import Image
from report_runs import EVIL, trained

pytest.importorskip("plotly")
from vologan_fast.report.__main__ import main
from vologan_fast.words import printable

pytestmark = pytest.mark.slow  # Chromium starts in seconds, and draws scenes without a GPU

DRAWN = """[...document.querySelectorAll(".plot, .clouds")].every((place) => place.querySelector(".main-svg"))
    && document.querySelectorAll(".plot").length > 0"""
EYES = """JSON.stringify(["scene", "scene2", "scene3"].map((name) =>
    document.querySelector(".clouds")._fullLayout[name])
    .filter(Boolean).map((scene) => scene._scene.getCamera().eye))"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory, real_images: Path) -> Path:
    """Return a run on photographs of a room, whose depth is in metres, wider than high."""
    options = ["--max-steps", "2", "--data.size", "48", "64", "--data.held-out", "0.4"]
    return trained(tmp_path_factory.mktemp("runs") / "rooms", real_images / "rooms", *options)


def opened(page: Browser, path: Path, width: int = 1280) -> Browser:
    page.open(path, width)
    page.wait(DRAWN)
    assert page.errors == []
    assert page.requests == [path.resolve().as_uri()]
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "the page can be moved sideways"
    return page


def colors_of_scenes(page: Browser, path: Path) -> list[int]:
    """Return how many strong colours each scene of the first clouds shows on the screen. Axes are grey."""
    page.run("document.querySelector('.clouds').scrollIntoView({block: 'center'})")
    left, top, width, height = page.run(
        "(({left, top, width, height}) => [left, top, width, height])"
        "(document.querySelector('.clouds').getBoundingClientRect())"
    )
    count = page.run("document.querySelector('.clouds')._fullLayout.annotations.length")
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    with Image.open(page.screenshot(path)) as picture:
        pixels = np.asarray(picture.convert("RGB"))[int(top) : int(top + height)].astype(int)
    strong = np.ptp(pixels, axis=2) > 24
    ends = [int(left + width * i / count) for i in range(count + 1)]
    return [len(np.unique(pixels[:, a:b][strong[:, a:b]], axis=0)) for a, b in itertools.pairwise(ends)]


def wait_for_clouds(page: Browser, folder: Path) -> None:
    end = time.monotonic() + 60
    while min(found := colors_of_scenes(page, folder / "screen.png")) < 20:
        assert time.monotonic() < end, f"colours of the scenes: {found}"


def figures_without_marks(page: Browser) -> list[str]:
    """Return the figures in which no curve, bar or point is drawn."""
    found: list[str] = page.run("""[...document.querySelectorAll(".plot")].filter((place) =>
        !place.querySelector(".scatterlayer path, .barlayer path, .points path")).map((place) => place.id)""")
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_a_report_is_drawn_at_the_width_of_a_screen_and_of_a_phone(page: Browser, run: Path, width: int) -> None:
    opened(page, run / "report.html", width)
    assert figures_without_marks(page) == []
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.run("window.hacked === undefined")
    assert printable(EVIL.rsplit("/", 1)[-1]) in page.run("document.querySelector('select[data-clouds]').textContent")
    titles = page.run("document.querySelector('#profiles .gtitle').textContent")
    assert printable(EVIL.rsplit("/", 1)[-1])[:40] in titles


def test_a_report_of_rooms_has_metres(page: Browser, rooms: Path, tmp_path: Path) -> None:
    opened(page, rooms / "report.html")
    assert figures_without_marks(page) == []
    assert "in metres" in page.run("document.querySelector('#clouds .how').textContent")
    assert page.run("document.querySelector('.clouds')._fullLayout.scene.zaxis.title.text") == "up (m)"
    wait_for_clouds(page, tmp_path)


def test_a_comparison_is_drawn(page: Browser, run: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    assert main([str(run), str(other), "--output", str(path), "--device", "cpu"]) == 0
    opened(page, path)
    assert figures_without_marks(page) == []
    assert page.run("document.querySelectorAll('#grids-0 img').length") == 2
    assert page.run("window.hacked === undefined")


def test_a_drag_in_one_cloud_turns_all(
    page: Browser, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(page, run / "report.html")
    wait_for_clouds(page, tmp_path)
    left, top, width, height = page.run(
        "(({left, top, width, height}) => [left, top, width, height])"
        "(document.querySelector('.clouds').getBoundingClientRect())"
    )
    for scene in range(3):
        before = json.loads(page.run(EYES))
        start = left + width * (scene + 0.5) / 3, top + height / 2
        seconds = page.drag(start, (start[0] + 60, start[1] + 10))
        page.wait(f"new Set({EYES}.match(/\\{{[^}}]*\\}}/g)).size === 1")
        after = json.loads(page.run(EYES))
        turned = math.dist([before[0][k] for k in "xyz"], [after[0][k] for k in "xyz"])
        assert len(after) == 3 and turned > 0.1
        with capsys.disabled():
            print(f"\na turn by a drag in scene {scene + 1}: median {1000 * statistics.median(seconds):.0f} ms")
    assert page.errors == []


def test_the_clouds_are_upright_and_not_mirrored(page: Browser, run: Path) -> None:
    """What is at the right of an image is drawn at the right, and what is at its top is drawn at the top."""
    opened(page, run / "report.html")
    places = page.run("""(() => {
        const place = document.querySelector(".clouds");
        const front = { eye: { x: 0, y: -2, z: 0 }, up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: 0 } };
        return Plotly.relayout(place, { "scene.camera": front }).then(() => new Promise((done) =>
            requestAnimationFrame(() => requestAnimationFrame(() => {
                const { model, view, projection } = place._fullLayout.scene._scene.glplot.cameraParams;
                const four = [0, 1, 2, 3];
                const times = (m, v) => four.map((i) => four.reduce((sum, j) => sum + m[4 * j + i] * v[j], 0));
                const scale = place._fullLayout.scene._scene.dataScale;
                const seen = (x, y, z) => {
                    const place = [x * scale[0], y * scale[1], z * scale[2], 1];
                    const p = times(projection, times(view, times(model, place)));
                    return [p[0] / p[3], p[1] / p[3]];
                };
                done([seen(-0.5, 2.5, 0), seen(0.5, 2.5, 0), seen(0, 2.5, -0.5), seen(0, 2.5, 0.5)]);
            }))));
    })()""")
    left, right, low, high = places
    assert left[0] < right[0] and low[1] < high[1]


def test_the_slider_over_the_steps_changes_the_grid(page: Browser, run: Path) -> None:
    opened(page, run / "report.html")
    seen = [
        page.run(f"""(() => {{
            const slider = document.querySelector("[data-slider]");
            slider.value = {i};
            slider.dispatchEvent(new Event("input"));
            const output = slider.parentElement.querySelector("output").textContent;
            return [output, document.querySelector("#grids-0 img").src,
                    document.querySelector("#grids-0 figcaption").textContent];
        }})()""")
        for i in range(3)
    ]
    assert [step for step, _, _ in seen] == ["1", "2", "3"]
    assert len({source for _, source, _ in seen}) == 3
    assert all(f"step {step}" in caption for step, _, caption in seen)


def test_smoothing_and_the_logarithmic_axis_change_the_curves(page: Browser, run: Path) -> None:
    opened(page, run / "report.html")
    found = page.run("""(async () => {
        const place = document.getElementById("losses-0");
        const menu = document.querySelector("select[data-plot='losses-0']");
        const texts = [...menu.options].map((option) => option.text);
        menu.selectedIndex = texts.indexOf("losses of the discriminators");
        menu.dispatchEvent(new Event("change"));
        const raw = place.calcdata[0].map((p) => p.y);
        const slider = document.querySelector("[data-curves='losses-0'] .smooth");
        slider.value = 0.5;
        slider.dispatchEvent(new Event("input"));
        const smooth = place.calcdata[0].map((p) => p.y);
        const box = document.querySelector("[data-curves='losses-0'] .log");
        box.click();
        return [raw, smooth, place._fullLayout.yaxis.type];
    })()""")
    (a, b, c), smooth, kind = found
    weights = [1.0], [1 / 3, 2 / 3], [1 / 7, 2 / 7, 4 / 7]
    expected = [sum(w * v for w, v in zip(of, (a, b, c), strict=False)) for of in weights]
    assert smooth == pytest.approx(expected, rel=1e-5) and a != b
    assert kind == "log"
    assert page.errors == []


def test_menus_show_other_figures_and_clouds(page: Browser, run: Path, tmp_path: Path) -> None:
    opened(page, run / "report.html")
    chosen = """(async () => {
        const menu = document.querySelector("select[data-clouds]");
        const titles = () => document.querySelector(".clouds")._fullLayout.annotations.map((a) => a.text);
        const before = titles();
        menu.selectedIndex = 3;
        menu.dispatchEvent(new Event("change"));
        await new Promise((done) => setTimeout(done, 500));
        return [before, titles()];
    })()"""
    assert page.run(chosen) == [["S", "G(S)", "F(G(S))"], ["T", "F(T)", "G(F(T))"]]
    wait_for_clouds(page, tmp_path)
    assert page.errors == []
