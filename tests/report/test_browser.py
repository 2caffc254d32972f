"""What people see, in a real browser: pages without a network, sliders, folded code, JupyterLab, accessibility."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from lab5.report.pdf import find_browser
from lab5.report.run import run_report
from lab5.runtime.folders import ROOT

CHROMIUM = find_browser()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

PICTURES = """
import ipywidgets, torch
from matplotlib.figure import Figure
from IPython.display import Image, display
from lab5.show.notebook import show
from lab5.show.scrub import Reel, Scrub
figure = Figure()
figure.subplots().plot([1, 2])
"""
SCRUBS = """
masked = torch.arange(4)[:, None] < torch.arange(256) % 4
greys = [torch.full((3, 64, 64), 60 * i, dtype=torch.uint8) for i in range(4)]
tokens, sure = torch.arange(256).expand(4, 256), torch.full((4, 256), -0.5)
one = Reel(torch.stack(greys), tokens, masked, sure)
two = one._replace(pictures=torch.stack(greys[::-1]), tokens=tokens + 1)
display(Scrub({"cosine": one, "linear": two}, alt="Grey squares", caption="Get lighter & darker."))
display(Scrub({"one": one}, alt="Again", step_labels=["a", "b", "c", "</script>"]))
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
    context = browser.new_context(offline=True)
    page = context.new_page()
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
    context.close()


def shade(page, window: int) -> float:
    """The mean brightness of what a window of a scrub shows, 0..255."""
    png = page.locator(".window").nth(window).screenshot()
    return float(np.asarray(Image.open(io.BytesIO(png)).convert("L"))[20:-20, 20:-20].mean())


def scrub_page(tmp_path: Path) -> Path:
    spaces: dict = {}
    exec((PICTURES + SCRUBS.split("display(")[0]).replace("%matplotlib inline", ""), spaces)  # the cells' own reels
    html = spaces["Scrub"]({"cosine": spaces["one"], "linear": spaces["two"]}, alt="Grey squares").html()
    (tmp_path / "a.html").write_text(f'<!DOCTYPE html><html lang="en"><title>a</title><body>{html}')
    return tmp_path / "a.html"


def test_the_slider_the_keys_and_play_move_every_picture_together(tmp_path, toured):
    page = toured(scrub_page(tmp_path))
    slider, button = page.get_by_label("Grey squares", exact=True), page.get_by_role("button")
    assert [shade(page, window) for window in (0, 3)] == [0, 180]
    slider.fill("2")
    assert [shade(page, window) for window in (0, 3)] == [120, 60]
    slider.press("ArrowRight")
    assert [shade(page, window) for window in (0, 3)] == [180, 0]
    assert slider.get_attribute("aria-valuetext") == "t = 3"
    slider.press("Home")
    button.click()
    page.wait_for_timeout(700)
    assert slider.input_value() == "1", "play takes a step in half a second"
    slider.press("Space")
    page.wait_for_timeout(700)
    assert slider.input_value() == "1", "and the space bar pauses"
    button.click()
    page.wait_for_timeout(1700)
    assert slider.input_value() == "3" and button.get_attribute("aria-label") == "play", "it stops at the end"


def test_a_cell_tells_its_token_its_confidence_and_the_step_that_fixed_it(tmp_path, toured):
    page = toured(scrub_page(tmp_path))
    slider, cells = page.get_by_label("Grey squares", exact=True), page.locator(".cell")
    size = page.locator(".window").nth(0).bounding_box()["width"] / 16
    middle = {"x": 2.5 * size, "y": 0.5 * size}  # of the third cell of the first row, which step 2 fixes
    page.locator(".window").nth(0).hover(position=middle)
    assert cells.all_text_contents() == ["row 1, column 3: masked; fixed at step 2"] * 2
    slider.fill("1")
    page.locator(".window").nth(0).hover(position=middle)
    assert cells.nth(1).text_content() == "row 1, column 3: guess 3, confidence 61 %; fixed at step 2"
    page.mouse.move(0, 0)
    assert cells.nth(0).text_content() == ""
    page.locator(".window").nth(0).click(position=middle)
    page.mouse.move(0, 0)
    page.keyboard.press("ArrowRight")
    assert cells.nth(0).text_content() == "row 1, column 3: token 2, confidence 61 %; fixed at step 2", "and stays"
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert cells.nth(0).text_content() == "row 2, column 5: token 20, known from the start"
    page.keyboard.press("Escape")
    assert cells.nth(0).text_content() == ""


def test_a_hole_is_drawn_and_erased_with_the_mouse(browser, tmp_path):
    from lab5.show.play import _hole, board

    html = board(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.bool))
    field = '<div class="lab5-hole" style="display:none"><textarea onchange="this.drawn = this.value"></textarea></div>'
    (tmp_path / "a.html").write_text(f'<!DOCTYPE html><title>a</title><div class="lab5-play">{html}{field}</div>')
    page = browser.new_page()
    page.goto((tmp_path / "a.html").as_uri())
    box = page.locator("canvas").bounding_box()

    def stroke(row: int, first: int, last: int) -> torch.Tensor:
        page.mouse.move(box["x"] + 4 * first, box["y"] + 4 * row)
        page.mouse.down()
        page.mouse.move(box["x"] + 4 * last, box["y"] + 4 * row)
        page.mouse.up()
        return _hole(page.evaluate("document.querySelector('textarea').drawn"))

    drawn = stroke(32, 16, 48)
    assert drawn[28:36, 16:48].all(), "a brush of eight pixels, without gaps where the mouse was fast"
    assert not drawn[:27].any() and not drawn[37:].any() and not drawn[:, :11].any() and not drawn[:, 53:].any()
    assert page.evaluate("document.querySelector('canvas').getContext('2d').getImageData(30, 32, 1, 1).data[3]") == 255
    page.get_by_label("erase").check()
    page.get_by_label("brush").select_option("small")
    erased = stroke(32, 16, 48)
    assert not erased[30:34, 17:47].any() and erased[28, 20:44].all() and erased.sum() < drawn.sum()
    page.close()


def test_without_script_and_in_print_all_steps_are_seen_side_by_side(browser, tmp_path):
    path = scrub_page(tmp_path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    silent = page.locator(".film").nth(0).bounding_box()
    assert silent["width"] == 4 * 64 and silent["height"] == 64 and not page.locator("input").is_visible()
    context.close()
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.locator("input").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".film").nth(0).bounding_box()["width"] == 4 * 64 and not page.locator("input").is_visible()
    page.close()


def test_a_chapter_opens_by_itself(write_notebook, toured):
    folder = write_notebook(
        "01_a", ("markdown", "# Does it move?\n\nA formula: $\\frac{1}{2}$."), ("parameters", 'profile = "auto"'),
        PICTURES, "%matplotlib inline\n" + SCRUBS, ("markdown", "It **does**."),
    )  # fmt: skip
    index = run_report("smoke", notebooks=folder, out=folder.parent / "report", pdf=False)
    page = toured(index)
    page.click("text=Does it move?")
    page = toured(index.parent / "01_a.html")
    assert page.locator("mfrac").bounding_box()["height"] > 10, "the formula is laid out"
    page.locator("input[type=range]").nth(0).fill("2")
    assert [shade(page, window) for window in (0, 3, 6)] == [120, 60, 0], "the other slider has not moved"


# --- the report -----------------------------------------------------------------------------------------------


def test_every_page_of_the_real_report_opens_by_itself(smoke_report, toured):
    pages = sorted(smoke_report.glob("*.html"))
    assert len(pages) == 5
    for path in pages:
        toured(path)


def test_in_the_index_sliders_move_code_folds_and_figures_enlarge(smoke_report, toured):
    page = toured(smoke_report / "index.html")
    window, slider = page.locator(".window").first, page.locator(".bar input").first
    slider.scroll_into_view_if_needed()
    before = window.screenshot()
    slider.fill("2")
    assert window.screenshot() != before
    slider.press("ArrowRight")
    assert slider.input_value() == "3"
    code = page.locator("details.code").nth(3)
    assert not code.locator(".input_area").is_visible()
    code.locator("summary").click()
    assert code.locator(".input_area").is_visible()
    page.get_by_role("button", name="Show all code").click()
    assert all(fold.is_visible() for fold in page.locator(".input_area").all())
    page.get_by_role("button", name="Hide all code").click()
    assert not any(fold.is_visible() for fold in page.locator(".input_area").all())
    figure = page.locator(".output_png button").first
    small = figure.locator("img").bounding_box()["width"]
    figure.click()
    large = page.locator("dialog img")
    assert large.is_visible() and large.bounding_box()["width"] > small and large.get_attribute("alt")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog img')")


def test_every_link_of_the_report_leads_somewhere(smoke_report):
    soups = {path.name: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
             for path in smoke_report.glob("*.html")}  # fmt: skip
    for name, soup in soups.items():
        for link in soup.find_all("a", href=True):
            page, _, place = unquote(link["href"]).partition("#")
            assert (smoke_report / (page or name)).exists(), f"{name} links to {link['href']}"
            if place:
                assert soups[page or name].find(id=place), f"{name} links to {link['href']}"


def test_the_report_is_small_and_on_paper_as_well(smoke_report):
    files = [path for path in smoke_report.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    assert (smoke_report / "report.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_stands_in_the_way_of_anybody(smoke_report, toured, scheme):
    axe = find_spec("axe_playwright_python")
    if axe is None:
        pytest.skip("axe-playwright-python is not installed")
    for path in (smoke_report / "index.html", smoke_report / "03_inpainting.html"):
        page = toured(path)
        page.emulate_media(color_scheme=scheme)
        page.add_script_tag(path=Path(axe.origin).with_name("axe.min.js"))
        violations = page.evaluate("async () => (await axe.run()).violations")
        serious = [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in violations
                   if fault["impact"] in ("serious", "critical")]  # fmt: skip
        assert serious == [], f"in {path.name}"


# --- JupyterLab -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jupyterlab(smoke_report, tmp_path_factory) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks, 03 with the smallest profile, as `make lab` starts it; its address.

    The networks that the smoke report has trained are used again.
    """
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    notebook = home / "notebooks" / "03_inpainting.ipynb"
    source = notebook.read_text(encoding="utf-8")
    assert source.count('profile = \\"auto\\"') == 1
    notebook.write_text(source.replace('profile = \\"auto\\"', 'profile = \\"smoke\\"'), encoding="utf-8")
    whole = home / "config" / "labconfig" / "default_setting_overrides.json"  # a cell out of sight is drawn as well
    whole.parent.mkdir(parents=True)
    whole.write_text('{"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root",
             f"--ServerApp.root_dir={home / 'notebooks'}", "--IdentityProvider.token=secret",
             "--LabApp.default_url=/lab/tree/README.md")  # fmt: skip
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {"JUPYTER_CONFIG_PATH": str(ROOT / "notebooks" / ".jupyter"), "PYTHONPATH": str(ROOT),
            "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"), "OMP_NUM_THREADS": "1",
            "LAB5_DATA": str(smoke_report.parent / "data"), "LAB5_REPORT_DIR": str(home / "report"),
            "LAB5_FIGURES_DIR": str(home / "figures")}  # fmt: skip
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *words], stdout=log, stderr=log,
                                  env=os.environ | folders | environment)  # fmt: skip
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api?token=secret", timeout=5)
                    break
                except OSError:
                    assert server.poll() is None, (home / "log").read_text()
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def test_jupyterlab_opens_on_a_start_page_that_leads_to_the_notebooks(jupyterlab, browser):
    page = browser.new_page()
    page.goto(f"{jupyterlab}/?token=secret")
    page.get_by_role("heading", name="Start here").wait_for(timeout=120_000)
    page.get_by_role("link", name="03 inpainting").click()
    page.get_by_role("heading", name="How does a hidden region come back?").wait_for(timeout=120_000)
    page.close()


def run_all_cells(page) -> None:
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)
    page.wait_for_timeout(1000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Run All( Cells)?$")).click()
    asked = page.get_by_role("button", name="Select", exact=True)  # for a kernel, where none was quite ready
    asked.or_(page.locator(".jp-OutputArea-output").first).first.wait_for(timeout=120_000)
    if asked.is_visible():
        asked.click()
        run_all_cells(page)


def test_notebook_03_runs_in_jupyterlab_its_slider_moves_and_a_drawn_hole_is_filled(jupyterlab, browser):
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.goto(f"{jupyterlab}/lab/tree/03_inpainting.ipynb?token=secret&reset")
    run_all_cells(page)
    page.locator(".jp-OutputArea-output", has_text="Answer: in ").first.wait_for(timeout=480_000)
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count() == 0
    scrub = page.locator(".lab5-scrub.live").first
    slider, window = scrub.locator("input"), scrub.locator(".window").first
    slider.scroll_into_view_if_needed()
    before = window.screenshot()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1" and window.screenshot() != before

    game = page.locator(".lab5-play")
    canvas, share_missing = game.locator("canvas"), game.locator(".widget-label", has_text="missing")
    game.get_by_role("button", name="no hole").click()
    game.get_by_text("there is no hole yet").wait_for(timeout=60_000)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 64, box["y"] + 128)
    page.mouse.down()
    page.mouse.move(box["x"] + 192, box["y"] + 128, steps=4)
    page.mouse.up()
    share_missing.wait_for(timeout=60_000)
    share = float(share_missing.text_content().partition("%")[0])
    assert 4 <= share <= 9, "a stroke of 32 pixels by 8"
    assert game.locator(".lab5-scrub.live figure").count() == 3
    page.close()
