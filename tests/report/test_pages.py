"""Chapters, the index and the overview, from notebooks that were never run and numbers that nobody measured."""

import base64
import io
import re
from pathlib import Path

import nbformat
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from lab5.report import pages, pdf
from lab5.report import pages as overview
from lab5.report.chapter import Chapter
from lab5.scoring.scores import Scores, psnr_db


def printed(text: str, code: str = "1 + 1", tag: str = "") -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(code, outputs=[nbformat.v4.new_output("stream", text=f"{text}\n")])
    cell.metadata["tags"] = [tag] if tag else []
    return cell


def chapter(folder: Path, stem: str, *cells: str | nbformat.NotebookNode, **settings) -> Chapter:
    """An executed notebook of markdown texts and code cells."""
    cells = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{stem}.ipynb")
    return Chapter(folder / f"{stem}.ipynb", folder, **settings)


def index(folder: Path, *chapters: Chapter, **metrics) -> BeautifulSoup:
    (folder / "figures").mkdir(exist_ok=True)
    executed = {f"{number:02}_x": one for number, one in enumerate(chapters, start=1)}
    metrics = {"profile": "smoke", "device": "cpu", "total_seconds": 60.0, "versions": {"torch": "2"},
               "seconds": dict.fromkeys(executed, 15.0)} | metrics  # fmt: skip
    named = [(stem, one.title) for stem, one in executed.items()]
    return BeautifulSoup(pages.write_index(folder, metrics, named, executed).read_text(), "html.parser")


def test_code_is_folded_behind_its_first_line_that_does_something(tmp_path):
    cell = printed("2", "import math\n# the root\nroot = math.sqrt(4)\nprint(root)")
    one = chapter(tmp_path, "01_a", "# Is it?", cell)
    (fold,) = BeautifulSoup(one.html(), "html.parser").select("details.code")
    assert fold.summary.get_text() == "code root = math.sqrt(4)"
    assert not fold.has_attr("open") and "print(root)" in fold.get_text()


def test_the_index_follows_the_labs_report_and_takes_tagged_cells_where_they_belong(tmp_path):
    common = {"schedule": "cosine", "steps": 4, "n": 9, "score_name": "toy"}
    study = [common | {"stop_at": t, "seed": s, "score": 5.0 - t + s} for t in (1, 2) for s in (0, 1)]
    soup = index(
        tmp_path,
        chapter(tmp_path, "01_x", "# Is it $x^2$?", printed("mistake", tag="report-pitfalls"), printed("attends")),
        chapter(tmp_path, "02_x", "# And?\n\n## Step by step", printed("trains")),
        chapter(tmp_path, "03_x", "# So?\n\n## Step by step", printed("grid", tag="report-score"), printed("infers")),
        chapter(tmp_path, "04_x", "# Which?", printed("compares"), "The verdict."),
        study=study,
    )
    names = [link.get_text() for link in soup.nav.find_all("a")]
    assert names == ["Result", "Introduction", "Implementation details", "Attention", "Training", "Inference",
                     "Discussion", "What the study says", "Pitfalls", "Experiment score"]  # fmt: skip
    told = soup.main.get_text()
    words = ("attends", "trains", "infers", "compares", "mistake", "Best score", "grid")
    assert sorted(words, key=told.rindex) == list(words)
    assert told.count("mistake") == told.count("grid") == told.count("compares") == 1
    assert "3.50 (toy; n = 9; mean of 2 seeds, 3.00 to 4.00) with schedule cosine, steps 4, stop at 2" in told
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids)), "two chapters have a heading of one name"
    assert {link["href"][1:] for link in soup.find_all("a", href=re.compile("^#"))} <= set(ids)
    assert {heading.name for heading in soup.find_all(re.compile("^h[1-6]$"), string="Step by step")} == {"h4"}
    assert soup.select_one("article math"), "a title's formula is laid out"


def test_a_notebook_of_another_number_is_told_as_well(tmp_path):
    parts = [chapter(tmp_path, f"{n:02}_x", f"# Question {n}?", printed(f"words {n}")) for n in range(1, 6)]
    soup = index(tmp_path, *parts)
    assert "More" in soup.nav.get_text() and "words 5" in soup.find(id="05_x").get_text()


def test_a_chapters_own_page_has_all_of_it_and_lists_its_headings(tmp_path):
    one = chapter(tmp_path, "03_x", "# So?\n\nExpected time: long.\n\n## First", printed("grid", tag="report-score"))
    pages.write_chapter(tmp_path / "03_x.html", one, [("02_x", "And?"), ("03_x", "So?"), ("04_x", "Which <b>?")])
    soup = BeautifulSoup((tmp_path / "03_x.html").read_text(), "html.parser")
    assert soup.h1.get_text() == "So?" and "grid" in soup.main.get_text() and "Expected time" in soup.main.get_text()
    assert [link["href"] for link in soup.nav.find_all("a")] == ["index.html", "02_x.html", "03_x.html", "#First",
                                                                "04_x.html"]  # fmt: skip
    assert soup.find(id="First") and soup.footer.get_text() == "Next: Which <b>?"
    assert "Expected time" not in one.html("", deeper=2)


def test_a_figure_is_one_file_however_many_pages_show_it(tmp_path):
    def shown(content: bytes) -> nbformat.NotebookNode:
        data = {"image/png": base64.b64encode(content).decode(), "text/plain": "a line"}
        output = nbformat.v4.new_output("display_data", data, metadata={"image/png": {"alt": "A line"}})
        return nbformat.v4.new_code_cell("draw()", outputs=[output])

    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "png")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "01_x-line.png").write_bytes(png.getvalue())
    cells = (shown(png.getvalue()), shown(png.getvalue()), shown(png.getvalue() + b"more"))
    one = chapter(tmp_path, "01_x", "# Is it?", *cells, figures=tmp_path / "figures")
    images = BeautifulSoup(one.html(), "html.parser").find_all("img", alt="A line")
    assert [image["src"] for image in images] == ["figures/01_x-line.png"] * 2 + ["figures/01_x.3.png"]
    assert (tmp_path / "figures" / "01_x.3.png").read_bytes() == png.getvalue() + b"more"
    assert "base64" in chapter(tmp_path, "01_x", "# Is it?", *cells).html()


def test_what_is_private_is_shown_otherwise_everywhere(tmp_path):
    path = '/home/"me"/cats.zip'
    cell = printed(f"at {path}", f"dataset = {path!r}")
    one = chapter(tmp_path, "01_x", "# Is it?", cell, private={path: "cats.zip"})
    assert "home" not in one.html() and one.html().count("at cats.zip") == 1
    assert "at cats.zip" in index(tmp_path, one).article.get_text()


def test_the_overview_says_what_it_ran_on_and_whose_known_pixels_are_kept():
    metrics = {"profile": "quick", "device": "cpu", "total_seconds": 75.0, "inpainting": {
        "weights": "pretrained 12", "data": "toycats", "seed": 3, "score_name": "toy <distance>",
        "pretrained": {"score": 1.0, "n": 5, "keeps_known_pixels": True, "hole_psnr_db": 20.0},
        "lab_rule": {"score": 4.0, "n": 5, "keeps_known_pixels": False}, "telea": {"score": None, "n": 5},
        "classical": {"score": 2.0, "method": "telea"},
    }, "repeat": {"commit": "0123456789abcdef", "changed": True}}  # fmt: skip
    words = BeautifulSoup(overview.facts(metrics), "html.parser").get_text(" ")
    for fact in ("quick", "1 min 15 s", "pretrained 12", "toycats", "seed 3", "0123456789 with changes", "images 5"):
        assert re.sub(r"\s+", " ", fact) in re.sub(r"\s+", " ", words)
    rows = BeautifulSoup(overview.scores(metrics["inpainting"]), "html.parser").select("tbody tr")
    cells = [[cell.get_text() for cell in row.find_all("td")] for row in rows]
    assert [row[:3] for row in cells] == [["pretrained", "kept", "1.00"], ["lab rule", "redrawn", "4.00"],
                                          ["telea", "–", "–"]]  # fmt: skip
    assert "toy &lt;distance&gt;" in overview.scores(metrics["inpainting"])
    assert overview.scores({}) == "" and overview.best_setting(None) == "" and overview.best_setting([]) == ""


def test_equal_pictures_have_no_finite_psnr():
    equal, close = (torch.full((9, 3, 64, 64), value, dtype=torch.uint8) for value in (7, 7))
    close[0, 0, 0, 0] = 8
    for pictures, told in ((equal, "∞"), (close, f"{psnr_db(close, equal):.1f}")):
        row = {"score": 1.0, "n": 9, "hole_psnr_db": psnr_db(pictures, equal)}
        assert f"<td>{told}</td>" in overview.scores({"truth": row})


def test_the_best_setting_tells_what_differs_and_not_what_was_measured():
    assert overview.MEASURED | {"n"} >= {*Scores._fields}
    common = {"schedule": "linear", "steps": 8, "stop_at": 8, "order": "random", "n": 4}
    found = (("argmax", 0, 2.0), ("argmax", 1, 3.0), ("sample", 0, 1.0), ("sample", 1, 5.0))
    rows = [common | {"codes": c, "seed": seed, "seconds": 1.0 + seed, "score": score} for c, seed, score in found]
    sentence = BeautifulSoup(overview.best_setting(rows), "html.parser").get_text()
    assert "2.50" in sentence and "schedule linear, steps 8, stop at 8, codes argmax." in sentence


def test_without_a_browser_there_is_a_sentence_and_no_old_file(tmp_path, monkeypatch):
    (tmp_path / "report.pdf").write_text("old")
    (tmp_path / "index.html").write_text("<p>new")
    monkeypatch.setenv("LAB5_BROWSER", str(tmp_path / "nowhere"))
    why = pdf.print_pdf(tmp_path / "index.html", tmp_path / "report.pdf")
    assert why.startswith("There is no report.pdf, because no Chromium was found") and not list(tmp_path.glob("*.pdf"))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("LAB5_BROWSER", str(broken))
    assert "broken could not print index.html" in pdf.print_pdf(tmp_path / "index.html", tmp_path / "report.pdf")


@pytest.mark.skipif(pdf.find_browser() is None, reason="no Chromium is installed")
def test_a_page_is_printed_with_its_code_folded_and_its_films_whole(tmp_path):
    one = chapter(tmp_path, "01_x", "# Is it?", printed("spoken", "silent = 1"))
    index(tmp_path, one)
    assert pdf.print_pdf(tmp_path / "index.html", tmp_path / "report.pdf") == ""
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert [path.name for path in tmp_path.glob("*.pdf")] == ["report.pdf"]
    assert "report.pdf" not in (tmp_path / "index.html").read_text()
    pages.add_pdf(tmp_path / "index.html")
    assert BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser").footer.find("a", href="report.pdf")
