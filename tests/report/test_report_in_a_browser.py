"""Reports in Chromium: all figures are drawn, nothing is requested, clouds turn together, sliders work."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from browser import Browser, browser
from report_runs import EVIL, trained

pytest.importorskip("plotly")
from vologan_fast.quantities.clouds import Cloud, cloud
from vologan_fast.quantities.depth import DepthScale
from vologan_fast.report.__main__ import main
from vologan_fast.report.figures import curves, packed_cloud
from vologan_fast.report.page import Clouds, Plot, Section, write_page
from vologan_fast.words import printable

pytestmark = pytest.mark.slow  # Chromium starts in seconds, and draws scenes without a GPU

DRAWN = """[...document.querySelectorAll(".plot")].every((place) => place.querySelector(".main-svg"))
    && [...document.querySelectorAll(".clouds")].every((place) => place.querySelector("canvas").width !== 300)
    && document.querySelectorAll(".plot").length > 0"""
CLOUD_TITLES = "[...document.querySelectorAll('.clouds figcaption')].map((caption) => caption.textContent)"
PLACES = """[...document.querySelectorAll(".clouds canvas")].map((canvas) => canvas.getBoundingClientRect())
    .map(({ left, top, width, height }) => [left, top, width, height])"""
PIXELS = """[...document.querySelectorAll(".clouds canvas")].map((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { width: canvas.width, data: btoa(Array.from(data, (value) => String.fromCharCode(value)).join("")) };
})"""


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


def canvases(page: Browser) -> list[npt.NDArray[np.uint8]]:
    """Return the pixels (H, W, 4) of each cloud, after what was to be painted is painted."""
    page.run("document.querySelector('.clouds').scrollIntoView({block: 'center'})")
    page.paint()
    found = [(canvas["width"], base64.b64decode(canvas["data"])) for canvas in page.run(PIXELS)]
    return [np.frombuffer(data, np.uint8).reshape(-1, width, 4) for width, data in found]


def colors(pixels: npt.NDArray[np.uint8]) -> int:
    """Return how many strong colours a cloud has on the screen. Axes are grey."""
    rgb = pixels[..., :3].astype(int)
    strong = (np.ptp(rgb, axis=2) > 24) & (pixels[..., 3] == 255)
    return len(np.unique(rgb[strong], axis=0))


def middle(pixels: npt.NDArray[np.uint8], color: tuple[int, int, int]) -> tuple[float, float]:
    """Return column and row of the middle of a colour's pixels."""
    rows, columns = np.nonzero((pixels == (*color, 255)).all(2))
    assert len(rows), f"the colour {color} is not there"
    return columns.mean(), rows.mean()


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


def test_a_report_of_rooms_has_metres(page: Browser, rooms: Path) -> None:
    opened(page, rooms / "report.html")
    assert figures_without_marks(page) == []
    assert "in metres" in page.run("document.querySelector('#clouds .how').textContent")
    assert page.run("numbers.textContent").count('"unit":"m"') == 1
    assert all(colors(pixels) > 20 for pixels in canvases(page))


def test_a_comparison_is_drawn(page: Browser, run: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    assert main([str(run), str(other), "--output", str(path), "--device", "cpu"]) == 0
    opened(page, path)
    assert figures_without_marks(page) == []
    assert page.run("document.querySelectorAll('#grids-0 img').length") == 2
    assert page.run("window.hacked === undefined")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_drag_in_one_cloud_turns_all(page: Browser, run: Path, width: int) -> None:
    opened(page, run / "report.html", width)
    before = canvases(page)
    assert len(before) == 3 and all(colors(pixels) > 20 for pixels in before)
    for scene in range(3):
        page.run(f"document.querySelectorAll('.clouds canvas')[{scene}].scrollIntoView({{block: 'center'}})")
        left, top, wide, high = page.run(PLACES)[scene]
        start = left + wide / 2, top + high / 2
        page.drag(start, (start[0] + 60, start[1] + 10))
        after = canvases(page)
        assert all((a != b).any() for a, b in zip(after, before, strict=True))
        before = after
    page.run("document.querySelector('[data-reset]').click()")
    assert page.errors == []


def test_many_moves_of_the_mouse_paint_each_cloud_once(page: Browser, run: Path) -> None:
    """So a turn takes no longer than painting its points once, however fast the mouse sends its moves."""
    opened(page, run / "report.html")
    painted = page.run("""(async () => {
        let painted = 0;
        const put = CanvasRenderingContext2D.prototype.putImageData;
        CanvasRenderingContext2D.prototype.putImageData = function (...all) { painted++; return put.apply(this, all); };
        const canvas = document.querySelector(".clouds canvas");
        canvas.setPointerCapture = () => {};
        const send = (type, x) => canvas.dispatchEvent(
            new PointerEvent(type, { pointerId: 1, clientX: x, clientY: 0, button: 0, bubbles: true }));
        send("pointerdown", 0);
        for (let i = 1; i <= 50; i++) send("pointermove", i);
        send("pointerup", 50);
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        CanvasRenderingContext2D.prototype.putImageData = put;
        return painted;
    })()""")
    assert painted == 3


def test_clouds_are_upright_and_not_mirrored_and_what_is_near_hides_what_is_far(page: Browser, tmp_path: Path) -> None:
    red, green, blue, yellow, white, black = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 255, 255], [9, 9, 9]], np.uint8
    )
    corners = np.zeros((32, 32, 3), np.uint8)
    corners[:16, :16], corners[:16, 16:], corners[16:, :16], corners[16:, 16:] = red, green, blue, yellow
    image = cloud(np.full((32, 32), 0.5, np.float32), corners, DepthScale(1, 3, "m"))
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60)))
    walls = np.concatenate([np.stack([x, y, np.full_like(x, z)], 1) for z in (1.9, 2.1)])
    two = Cloud(walls.astype(np.float32), np.repeat([white, black], len(x), axis=0), 0.03)
    packed = [{"title": title, **packed_cloud(found)} for title, found in (("image", image), ("walls", two))]
    parts = [Plot({"plot": curves([{"step": 1, "x": 1.0}], ["x"], "x")}), Clouds({"both": packed}, "m")]
    path = write_page(tmp_path / "page.html", "page", "", [Section("clouds", "Clouds", "", parts)])
    opened(page, path)
    seen, walls_seen = canvases(page)
    middles = [middle(seen, tuple(int(v) for v in color)) for color in (red, green, blue, yellow)]
    (a, b), (c, d), (e, f), (g, h) = middles
    assert a < c and e < g and b < f and d < h
    at = walls_seen.shape[0] // 2, walls_seen.shape[1] // 2
    assert (walls_seen[at][:3] == white).all()
    left, top, wide, high = page.run(PLACES)[0]
    page.drag((left + wide / 2, top + high / 2), (left + wide / 2 + 400, top + high / 2))  # half a turn
    assert (canvases(page)[1][at][:3] == black).all()


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


def test_menus_show_other_figures_and_clouds(page: Browser, run: Path) -> None:
    opened(page, run / "report.html")
    chosen = """(async () => {
        const menu = document.querySelector("select[data-clouds]");
        const titles = () => %s;
        const before = titles();
        menu.selectedIndex = 3;
        menu.dispatchEvent(new Event("change"));
        return [before, titles()];
    })()""".replace("%s", CLOUD_TITLES)
    assert page.run(chosen) == [["S", "G(S)", "F(G(S))"], ["T", "F(T)", "G(F(T))"]]
    assert all(colors(pixels) > 20 for pixels in canvases(page))
    assert page.errors == []
