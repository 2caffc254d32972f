"""The pages in a real browser: nothing is fetched, nothing fails, the slider moves, pictures are described."""

import shutil
from pathlib import Path

import pytest

from lab5.report import run_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

PICTURES = """
import ipywidgets, numpy as np
from matplotlib.figure import Figure
from IPython.display import Image, display
from lab5.results import show
from lab5.widgets import scrub
figure = Figure()
figure.subplots().plot([1, 2])
"""
SCRUBS = """
frames = [np.full((8, 8, 3), 60 * i, np.uint8) for i in range(4)]
display(scrub({"cosine": frames, "linear": frames[::-1]}, alt="Grey squares", caption="Get lighter & darker."))
display(scrub({"one": frames}, alt="Again", step_labels=["a", "b", "c", "</script>"]))
show(figure, "A line that rises", "01_a-cover")
display(figure)
display(ipywidgets.IntSlider())
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def toured(browser):
    """`toured(path)` opens a page; what it asks for, what fails and what it complains about are collected."""
    page = browser.new_page()
    trouble: list[str] = []
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(f"asks {r.url}"))
    page.on("requestfailed", lambda request: trouble.append(f"fails {request.url[:200]}"))
    page.on("console", lambda m: trouble.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(f"script: {error}"))

    def tour(path: Path):
        page.goto(path.as_uri())
        page.wait_for_load_state("networkidle")
        assert trouble == []
        described = page.eval_on_selector_all("img", "all => all.map(image => image.alt.trim())")
        assert all(described), f"{path.name} has a picture without a text alternative"
        assert page.eval_on_selector_all("img", "all => all.every(image => image.complete && image.naturalWidth)")
        assert "application/vnd.jupyter" not in page.content()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        return page

    yield tour
    page.close()


def seen(page, box: int) -> list[str]:
    """The pictures of one slider that are visible, by their text alternatives."""
    pictures = page.locator("[data-labels]").nth(box).locator("img").all()
    return [picture.get_attribute("alt") for picture in pictures if picture.is_visible()]


def test_a_chapter_opens_by_itself_and_its_sliders_move(write_notebook, toured):
    folder = write_notebook(
        "01_a", ("markdown", "# Does it move?\n\nA formula: $\\frac{1}{2}$."), ("parameters", 'profile = "auto"'),
        PICTURES, "%matplotlib inline\n" + SCRUBS, ("markdown", "It **does**."),
    )  # fmt: skip
    index = run_report("smoke", notebooks=folder, out=folder.parent / "report")
    page = toured(index)
    page.click("text=Does it move?")
    page = toured(index.parent / "01_a.html")
    assert page.locator("mfrac").bounding_box()["height"] > 10, "the formula is laid out"
    assert seen(page, 0) == ["Grey squares: cosine, step 0", "Grey squares: linear, step 0"]
    slider = page.locator("[data-labels]").nth(0).locator("input")
    slider.fill("2")
    assert seen(page, 0) == ["Grey squares: cosine, step 2", "Grey squares: linear, step 2"]
    slider.press("ArrowRight")
    assert seen(page, 0)[0] == "Grey squares: cosine, step 3"
    assert seen(page, 1) == ["Again: one, a"], "the other slider has not moved"
    page.locator("[data-labels]").nth(1).locator("button").click()
    page.wait_for_timeout(700)
    assert seen(page, 1) == ["Again: one, b"], "play takes a step in half a second"
    page.locator("[data-labels]").nth(1).locator("button").click()
    page.wait_for_timeout(700)
    assert seen(page, 1) == ["Again: one, b"], "and pauses"


def test_a_slider_without_script_is_a_strip_of_all_steps(browser, tmp_path):
    import numpy as np

    from lab5.widgets import scrub

    (tmp_path / "a.html").write_text(scrub({"row": [np.zeros((4, 4, 3), np.uint8)] * 5}, alt="Black").html())
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    assert sum(picture.is_visible() for picture in page.locator("img").all()) == 5
    assert not page.locator("input").is_visible()
    context.close()


def test_every_page_of_the_real_report_opens_by_itself(smoke_report, toured):
    pages = sorted(smoke_report.glob("*.html"))
    assert len(pages) == 5
    for path in pages:
        toured(path)
