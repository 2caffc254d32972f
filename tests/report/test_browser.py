"""What people see, in a real browser: pages without a network, sliders, folded code, JupyterLab, accessibility."""

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from lab5.report.pdf import find_browser
from lab5.runtime.folders import ROOT
from lab5.show.faces import read_faces
from lab5.show.play import _hole, board
from lab5.show.scrub import Reel, Scrub

CHROMIUM = find_browser()
MINUTES = 15 * 60_000  # against a hang

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=MINUTES)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    """`tab(**settings)` is a page in a window of its own."""
    windows = []

    def new_page(**settings):
        windows.append(browser.new_context(**settings))
        windows[-1].set_default_timeout(MINUTES)
        return windows[-1].new_page()

    yield new_page
    for window in windows:
        window.close()


@pytest.fixture
def toured(tab):
    """`toured(path)` opens a page; what it asks for, what fails and what it complains about are collected."""
    page = tab(offline=True)
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

    return tour


# --- parts of pages -------------------------------------------------------------------------------------------


@pytest.fixture
def scrubs(tmp_path) -> Path:
    """A page with two sliders: for "Grey squares", which get lighter and darker, and for the lighter ones "Again"."""
    greys = torch.tensor([0, 60, 120, 180], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 64, 64)
    masked = torch.arange(4)[:, None] < torch.arange(256) % 4
    one = Reel(greys, torch.arange(256).expand(4, 256), masked, torch.full((4, 256), -0.5))
    two = one._replace(pictures=greys.flip(0), tokens=one.tokens + 1)
    html = Scrub({"cosine": one, "linear": two}, alt="Grey squares").html()
    html += Scrub({"one": one}, alt="Again", step_labels=["a", "b", "c", "</script>"]).html()
    (tmp_path / "a.html").write_text(f'<!DOCTYPE html><html lang="en"><title>a</title><body>{html}')
    return tmp_path / "a.html"


def shades(page) -> list[float]:
    """The mean brightness, 0..255, of the picture of each reel."""
    windows = [page.locator(".window").nth(number).screenshot() for number in (0, 3, 6)]
    return [float(np.asarray(Image.open(io.BytesIO(png)).convert("L"))[20:-20, 20:-20].mean()) for png in windows]


def test_the_slider_the_keys_and_play_move_the_pictures_of_one_scrub_together(scrubs, tab):
    page = tab()
    page.clock.install(time=0)
    page.goto(scrubs.as_uri())
    page.clock.pause_at(100_000)
    slider, button = page.get_by_label("Grey squares", exact=True), page.get_by_role("button").first
    assert shades(page) == [0, 180, 0]
    slider.fill("2")
    assert shades(page) == [120, 60, 0]
    slider.press("ArrowRight")
    assert shades(page) == [180, 0, 0]
    assert slider.get_attribute("aria-valuetext") == "t = 3"
    slider.press("Home")
    button.click()
    page.clock.run_for(700)
    assert slider.input_value() == "1", "play takes a step in half a second"
    slider.press("Space")
    page.clock.run_for(700)
    assert slider.input_value() == "1", "and the space bar pauses"
    button.click()
    page.clock.run_for(1200)
    assert slider.input_value() == "3" and button.get_attribute("aria-label") == "play", "it stops at the end"


def test_a_cell_tells_its_token_its_confidence_and_the_step_that_fixed_it(scrubs, toured):
    page = toured(scrubs)
    slider, cells, window = page.get_by_label("Grey squares"), page.locator(".cell"), page.locator(".window").first
    size = window.bounding_box()["width"] / 16
    middle = {"x": 2.5 * size, "y": 0.5 * size}  # of the third cell of the first row, which step 2 fixes
    window.hover(position=middle)
    assert cells.all_text_contents() == ["row 1, column 3: masked; fixed at step 2"] * 2 + [""]
    slider.first.fill("1")
    window.hover(position=middle)
    assert cells.nth(1).text_content() == "row 1, column 3: guess 3, confidence 61 %; fixed at step 2"
    page.mouse.move(0, 0)
    assert cells.first.text_content() == ""
    window.click(position=middle)
    page.mouse.move(0, 0)
    page.keyboard.press("ArrowRight")
    assert cells.first.text_content() == "row 1, column 3: token 2, confidence 61 %; fixed at step 2", "and stays"
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(f"Shift+{key}")
    assert cells.first.text_content() == "row 2, column 5: token 20, known from the start"
    page.keyboard.press("Escape")
    assert cells.first.text_content() == ""


def test_without_script_and_in_print_all_steps_are_seen_side_by_side(scrubs, tab):
    silent, printed = tab(java_script_enabled=False), tab()
    for page in (silent, printed):
        page.goto(scrubs.as_uri())
    assert printed.locator("input").first.is_visible()
    printed.emulate_media(media="print")
    for page in (silent, printed):
        box = page.locator(".film").first.bounding_box()
        assert (box["width"], box["height"]) == (4 * 64, 64) and not page.locator("input").first.is_visible()


def test_a_hole_is_drawn_and_erased_with_the_mouse(tab, tmp_path):
    html = board(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.bool))
    field = '<div class="lab5-hole" style="display:none"><textarea onchange="this.drawn = this.value"></textarea></div>'
    (tmp_path / "a.html").write_text(f'<!DOCTYPE html><title>a</title><div class="lab5-play">{html}{field}</div>')
    page = tab()
    page.goto((tmp_path / "a.html").as_uri())

    def stroke() -> torch.Tensor:
        draw(page, page.locator("canvas"), 16, 48)
        return _hole(page.evaluate("document.querySelector('textarea').drawn"))

    drawn = stroke()
    assert drawn[28:36, 16:48].all(), "a brush of eight pixels, without gaps where the mouse was fast"
    assert not drawn[:27].any() and not drawn[37:].any() and not drawn[:, :11].any() and not drawn[:, 53:].any()
    assert page.evaluate("document.querySelector('canvas').getContext('2d').getImageData(30, 32, 1, 1).data[3]") == 255
    page.get_by_label("erase").check()
    page.get_by_label("brush").select_option("small")
    erased = stroke()
    assert not erased[30:34, 17:47].any() and erased[28, 20:44].all() and erased.sum() < drawn.sum()


def draw(page, canvas, first: int, last: int) -> None:
    """A stroke along the middle row, where a pixel of the hole is four wide."""
    page.wait_for_function("!!document.querySelector('canvas').onpointerdown")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 4 * first, box["y"] + 128)
    page.mouse.down()
    page.mouse.move(box["x"] + 4 * last, box["y"] + 128)
    page.mouse.up()


# --- photographs ----------------------------------------------------------------------------------------------


def test_fills_are_chosen_blind_by_keys_and_buttons_counted_and_forgotten(faces_report, toured):
    pairs = read_faces(faces_report)["pairs"]
    page = toured(faces_report / "03_inpainting-blind.html")

    def result() -> str:
        assert page.locator("#blind").is_hidden() and page.evaluate("document.activeElement.id") == "result"
        return page.locator("#result").text_content()

    def seen() -> list[str]:
        return [page.locator(f"#{side} img").get_attribute("src") for side in ("left", "right")]

    other = {"ours": "classical", "classical": "ours"}
    assert page.locator("#end").is_disabled() and page.locator("#tally").is_hidden()
    assert seen() == [pairs[0][pairs[0]["left"]], pairs[0][other[pairs[0]["left"]]]]
    page.keyboard.press("Control+ArrowRight")  # not ours
    assert page.get_by_role("status").text_content() == f"Pair 1 of {len(pairs)}"
    page.keyboard.press("ArrowRight" if pairs[0]["left"] == "classical" else "ArrowLeft")
    assert page.get_by_role("status").text_content() == f"Pair 2 of {len(pairs)}"
    assert seen() == [pairs[1][pairs[1]["left"]], pairs[1][other[pairs[1]["left"]]]]
    page.get_by_role("button", name="End here").click()
    assert result().startswith("MaskGIT in 1 of 1 pairs, ") and "from 21 % to 100 %; too few choices" in result()

    page.get_by_role("button", name="Begin again").click()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "right"
    for _ in pairs:
        page.keyboard.press("Enter")  # on the right
    k, n = sum(pair["left"] == "classical" for pair in pairs), len(pairs)
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert result().startswith(f"MaskGIT in {k} of {n} pairs, ") and 0 < k < n
    assert f"from {100 * interval.low:.0f} % to {100 * interval.high:.0f} %;" in result()
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    assert page.get_by_role("status").text_content() == f"Pair 1 of {n}"


@pytest.mark.parametrize("name", ["faces", "blind"])
def test_pages_of_photographs_fit_a_telephone_and_keep_nobody_out(faces_report, toured, name):
    page = toured(faces_report / f"03_inpainting-{name}.html")
    assert_open_to_everybody(page)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    if name == "blind":
        assert page.locator("#right").bounding_box()["x"] > page.locator("#left").bounding_box()["x"] + 150
        page.keyboard.press("ArrowLeft")
        page.locator("#end").click()
    assert_open_to_everybody(page)


# --- the report -----------------------------------------------------------------------------------------------


def test_every_page_of_the_real_report_opens_by_itself(smoke_report, toured):
    pages = sorted(smoke_report.glob("*.html"))
    assert len(pages) == len(list((ROOT / "notebooks").glob("*.ipynb"))) + 1
    for path in pages:
        page = toured(path)
    page = toured(smoke_report / "01_attention_checks.html")
    assert page.locator("mfrac").first.bounding_box()["height"] > 10, "a formula is laid out"


def test_in_the_index_sliders_move_code_folds_and_figures_enlarge(smoke_report, toured):
    page = toured(smoke_report / "index.html")
    window, slider = page.locator(".window").first, page.locator(".bar input").first
    slider.scroll_into_view_if_needed()
    before = window.screenshot()
    slider.fill("2")
    assert window.screenshot() != before
    assert page.locator(".by-hand .input_area").first.is_visible()
    code = page.locator("details.code:not(.by-hand)").nth(3)
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


def test_the_report_is_on_paper_as_well(smoke_report):
    assert (smoke_report / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert 'href="report.pdf"' in (smoke_report / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["index", "03_inpainting"])
def test_nothing_serious_stands_in_the_way_of_anybody(smoke_report, toured, name):
    assert_open_to_everybody(toured(smoke_report / f"{name}.html"))


def assert_open_to_everybody(page) -> None:
    """Nothing serious that axe finds, by day and by night."""
    axe = pytest.importorskip("axe_playwright_python")
    page.add_script_tag(path=Path(axe.__file__).with_name("axe.min.js"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        violations = page.evaluate("async () => (await axe.run()).violations")
        serious = [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in violations
                   if fault["impact"] in ("serious", "critical")]  # fmt: skip
        assert serious == [], f"where it is {scheme}"


# --- JupyterLab -----------------------------------------------------------------------------------------------


@pytest.fixture
def jupyterlab(smoke_report, tmp_path) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks, 03 with the smallest profile, as `make lab` starts it; its address.

    The networks that the smoke report has trained are used again.
    """
    home = tmp_path
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    notebook = home / "notebooks" / "03_inpainting.ipynb"
    source = notebook.read_text(encoding="utf-8")
    assert source.count('profile = \\"auto\\"') == 1
    notebook.write_text(source.replace('profile = \\"auto\\"', 'profile = \\"smoke\\"'), encoding="utf-8")
    whole = home / "config" / "labconfig" / "default_setting_overrides.json"  # a cell out of sight is drawn as well
    whole.parent.mkdir(parents=True)
    whole.write_text('{"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}')
    words = ("--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", f"--ServerApp.root_dir={notebook.parent}",
             "--IdentityProvider.token=secret", "--LabApp.default_url=/lab/tree/README.md",
             "--LabApp.expose_app_in_browser=True")  # fmt: skip
    environment = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")} | {
        "JUPYTER_CONFIG_PATH": str(ROOT / "notebooks" / ".jupyter"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"), "LAB5_DATA": str(smoke_report.parent / "data"),
    }  # fmt: skip
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *words], stdout=log, stderr=log,
                                  env=os.environ | environment)  # fmt: skip
    try:
        while not (address := re.search(r"http://127.0.0.1:\d+(?=/)", (home / "log").read_text())):
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.2)
        yield address[0]
    finally:
        server.terminate()
        server.wait(600)


def test_jupyterlab_leads_to_notebook_03_which_runs_its_slider_moves_and_a_drawn_hole_is_filled(jupyterlab, tab):
    page = tab(viewport={"width": 1300, "height": 1000})
    page.goto(f"{jupyterlab}/?token=secret")
    page.get_by_role("heading", name="Start here").wait_for()
    page.get_by_role("link", name="03 inpainting").click()
    page.get_by_role("heading", name="How does a hidden region come back?").wait_for()
    page.wait_for_function("!!window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")
    page.evaluate("() => void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.locator(".jp-OutputArea-output", has_text="Answer: in ").first.wait_for()
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count() == 0
    scrub = page.locator(".lab5-scrub.live").first
    slider, window = scrub.locator("input"), scrub.locator(".window").first
    slider.scroll_into_view_if_needed()
    before = window.screenshot()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "1" and window.screenshot() != before

    game = page.locator(".lab5-play")
    game.get_by_role("button", name="no hole").click()
    game.get_by_text("there is no hole yet").wait_for()
    game.locator("canvas").scroll_into_view_if_needed()
    draw(page, game.locator("canvas"), 16, 48)
    game.locator(".lab5-scrub.live figure").nth(2).wait_for()
    assert game.locator(".lab5-scrub.live figure").count() == 3
    share = game.locator(".widget-label", has_text="missing").text_content().partition("%")[0]
    assert 4 <= float(share) <= 9, "a stroke of 32 pixels by 8"
