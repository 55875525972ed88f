"""Promises of the report that a browser alone can show: it moves, and asks nobody for anything."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jepa_vl.report import compare, curves, figures, words
from jepa_vl.report.page import Section, render_page
from tests.browser import Browser
from tests.test_runs import write_run

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
STEPS = 400


def rows() -> list[dict]:
    """A run: a loss that falls, kNN now and then, two metrics in one panel."""
    out = [{"step": i, "loss": 5.0 / (1 + i) + 0.01, "lr": 1e-3} for i in range(1, STEPS + 1)]
    for i in range(0, STEPS, 100):
        out[i] |= {"knn/target": 0.5 + i / 1000, "knn/pixels": 0.2, "text_gain": 0.01 * i}
    return out


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    sections = [curves.section({"": rows()})]
    out.write_text(render_page("A run", [("steps", "400")], sections), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def silent(browser: Browser, page: Path) -> None:
    assert browser.trouble == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]


SPAN = "[...document.querySelectorAll('.bar input[type=number]')].map(e => Number(e.value))"
AXIS = "document.querySelector('.plot .axes').textContent"
READOUT = "document.querySelector('.panel output').textContent"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_in_silence_and_nothing_is_wider_than_the_screen(browser, page, width, dark):
    browser.open(page, width, dark)
    silent(browser, page)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('.panel').length") == 4
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_without_scripts_the_picture_stands_in_the_place_of_the_panels(browser, page):
    browser.open(page, scripts=False)
    shown = "[...document.querySelectorAll('.still')].map(e => e.getBoundingClientRect().height)"
    (height,) = browser.run(shown)
    assert height > 300 and browser.run("document.querySelectorAll('.panel').length") == 0
    browser.open(page)
    assert browser.run(shown) == [0]


def test_dragging_zooms_all_panels_and_a_double_click_shows_all_again(browser, page):
    browser.open(page)
    whole, axis = browser.run(SPAN), browser.run(AXIS)
    assert whole == [1, STEPS]
    x, y, width = browser.centre(".plot")
    browser.drag((x, y), (x + width / 4, y))
    low, high = browser.run(SPAN)
    # The plot begins a little right of the panel's edge: its middle is no half of the steps.
    assert low == pytest.approx(178, abs=4) and high == pytest.approx(296, abs=4)
    assert browser.run(AXIS) != axis
    others = browser.run("[...document.querySelectorAll('.plot .axes')].map(e => e.textContent)")
    assert all("250" in text and "400" not in text for text in others)
    for count in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, x, y, button="left", clickCount=count)
    assert browser.run(SPAN) == whole and browser.run(AXIS) == axis
    silent(browser, page)


def test_the_readout_tells_the_value_at_the_step_under_the_pointer(browser, page):
    browser.open(page)
    x, y, _ = browser.centre(".plot")
    browser.mouse("mouseMoved", x, y)
    told = browser.run(READOUT)
    step = int(told.split(":")[0].removeprefix("step "))
    assert step == pytest.approx(178, abs=4)
    assert float(told.split("loss ")[1]) == pytest.approx(5.0 / (1 + step) + 0.01, rel=1e-3)


def test_the_keyboard_does_all_that_the_pointer_does(browser, page):
    browser.open(page)
    browser.run("document.querySelector('.plot').focus()")
    for key, told in (("Home", "step 1:"), ("ArrowRight", "step 2:"), ("End", "step 400:")):
        browser.press(key)
        assert browser.run(READOUT).startswith(told)
    browser.press("ArrowLeft")
    assert browser.run(READOUT).startswith("step 399:")
    browser.press("+")
    low, high = browser.run(SPAN)
    assert 290 < low < 310 and high == STEPS
    browser.press("ArrowLeft", shift=True)
    assert browser.run(SPAN)[0] < low and browser.run(SPAN)[1] < STEPS
    browser.press("0")
    assert browser.run(SPAN) == [1, STEPS]
    browser.run(
        "(() => {const e = document.querySelector('.bar input'); e.value = 100;"
        "e.dispatchEvent(new Event('change'))})()"
    )
    assert browser.run(SPAN) == [100, STEPS]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """The page of two runs."""
    folder = tmp_path_factory.mktemp("both")
    runs = [write_run(folder / name, rows=rows(), seed=seed) for seed, name in enumerate("ab")]
    out = folder / "both.html"
    out.write_text(compare.build(runs, print), encoding="utf-8")
    return out


def test_the_page_of_two_runs_has_a_line_of_each_in_every_panel(browser, both):
    browser.open(both, 390)
    silent(browser, both)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    drawn = "[...document.querySelectorAll('.panel')].map(e => [e.querySelector('h3').textContent,"
    drawn += "e.querySelectorAll('.plot .line:not(.faint)').length, e.checkVisibility()])"
    panels = browser.run(drawn)
    assert ["loss", 2, True] in panels and ["knn/pixels", 2, False] in panels
    assert all(lines == 2 for _, lines, _ in panels)
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert all(shown for *_, shown in browser.run(drawn))


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """A page of words on patches: two images, one of two captions, two layers; one word is dead."""

    def caption(text: str) -> words.Caption:
        said = text.split()
        own = RNG.random((2, len(said), 4, 4)) + 0.1
        own[:, -1] = 0.0
        boxes: list = [None] * len(said)
        boxes[1] = (4.0, 4.0, 20.0, 24.0)
        return words.Caption(text, said, own, boxes)

    def image() -> np.ndarray:
        return RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)

    shown = [
        ("image 7", image(), [caption("one red box here"), caption("two words")]),
        ("image 9", image(), [caption("a blue ring there")]),
    ]
    still = (
        figures.to_png(figures.curves(rows(), {"loss": ["loss"]}), colours=16),
        "a still picture",
    )
    part = Section("Words on patches", "How to read.", [still], widget=words.widget(shown))
    out = tmp_path_factory.mktemp("maps") / "maps.html"
    out.write_text(render_page("Words", [], [part]), encoding="utf-8")
    return out


HEAT = "(c => c.toDataURL())(document.querySelectorAll('.stage canvas')[1])"
DRAWN = """new Promise(done => { const look = () => {
  if (document.querySelector('.stage').getAttribute('aria-busy') === 'false') done(true);
  else setTimeout(look, 20); }; look(); })"""  # an image has to be decoded
CHOSEN = "[...document.querySelectorAll('.word input')].findIndex(e => e.checked)"


def choose(browser: Browser, which: int, index: int) -> str:
    """Chooses in the image's, caption's or layer's list, and returns the map that is drawn then."""
    browser.run(
        f"(() => {{const e = document.querySelectorAll('.bar select')[{which}];"
        f"e.selectedIndex = {index}; e.dispatchEvent(new Event('change'))}})()"
    )
    assert browser.run(DRAWN)
    return browser.run(HEAT)


@pytest.mark.parametrize("width", [1280, 390])
def test_words_layers_captions_and_images_are_chosen(browser, maps, width):
    browser.open(maps, width)
    assert browser.run(DRAWN) and browser.run("document.documentElement.scrollWidth") <= width
    seen = [browser.run(HEAT)]
    assert browser.run(CHOSEN) == 1  # the first word whose object is known
    browser.run("document.querySelectorAll('.word input')[1].focus()")
    browser.press("ArrowRight")
    assert browser.run(CHOSEN) == 2
    seen += [browser.run(HEAT), choose(browser, 2, 1), choose(browser, 2, 2)]
    assert browser.run("document.querySelectorAll('.bar select')[1].options.length") == 2
    seen += [choose(browser, 1, 1)]
    assert browser.run("document.querySelectorAll('.word').length") == 2
    seen += [choose(browser, 0, 1)]
    assert browser.run("document.querySelectorAll('.word').length") == 4
    assert len(set(seen)) == 6
    silent(browser, maps)


def test_the_value_of_a_patch_is_told_and_a_word_without_one_says_so(browser, maps):
    browser.open(maps)
    assert browser.run(DRAWN)
    told = "document.querySelector('.stage output').textContent"
    assert browser.run(told).startswith("“red”: greatest")
    x, y, width = browser.centre(".stage div canvas")
    browser.mouse("mouseMoved", x + width / 8, y - width / 8)
    assert " at row 2, column 3" in browser.run(told)
    data = json.loads(browser.run("document.querySelector('.widget script').textContent"))
    layer = data["images"][0]["captions"][0]["layers"][0]
    value = float(browser.run(told).split(": ")[1].split()[0])
    assert layer["low"] <= value <= layer["high"]
    browser.run("document.querySelectorAll('.word input')[3].click()")
    assert browser.run(told) == "“here”: no patch"


def test_without_scripts_maps_of_words_are_the_still_pictures(browser, maps):
    browser.open(maps, scripts=False)
    assert browser.run("document.querySelector('.still img').getBoundingClientRect().height") > 100
    assert browser.run("document.querySelectorAll('.word').length") == 0


def axe() -> str:
    """axe-core's source; a test skips where there is none."""
    found = os.environ.get("JEPA_VL_AXE")
    if not found or not Path(found).is_file():
        pytest.skip("set JEPA_VL_AXE to axe.min.js of the npm package axe-core")
    return Path(found).read_text()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["page", "both", "maps"])
def test_axe_finds_no_serious_fault(browser, request, name, width, dark):
    source, shown = axe(), request.getfixturevalue(name)
    browser.open(shown, width, dark)
    browser.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    browser.run(source + ";0")
    found = json.loads(browser.run("axe.run().then(r => JSON.stringify(r.violations))"))
    faults = [
        (fault["id"], fault["impact"], node["html"][:200], node["failureSummary"])
        for fault in found
        for node in fault["nodes"]
    ]
    assert faults == []
