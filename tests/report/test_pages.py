"""Chapters and the index, from notebooks that were never run and numbers that nobody measured."""

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import torch
from bs4 import BeautifulSoup
from PIL import Image

from lab5.report import pages, pdf
from lab5.report.chapter import Chapter
from lab5.scoring.scores import Scores, psnr_db
from lab5.show.faces import FILE, read_faces


def printed(text: str, code: str = "1 + 1", tag: str = "") -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(code, outputs=[nbformat.v4.new_output("stream", text=f"{text}\n")])
    cell.metadata["tags"] = [tag] if tag else []
    return cell


def write(folder: Path, stem: str, *cells: str | nbformat.NotebookNode) -> Path:
    """An executed notebook of markdown texts and code cells."""
    cells = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{stem}.ipynb")
    (folder / "figures").mkdir(exist_ok=True)
    return folder / f"{stem}.ipynb"


def chapter(folder: Path, *cells: str | nbformat.NotebookNode) -> BeautifulSoup:
    one = Chapter(write(folder, "01_x", *cells), folder, {}, folder / "figures")
    return BeautifulSoup(one.html(), "html.parser")


def index(folder: Path, *notebooks: Path, private: dict[str, str] | None = None, **metrics) -> BeautifulSoup:
    metrics = {"profile": "smoke", "device": "cpu", "total_seconds": 60.0, "versions": {"torch": "2"},
               "seconds": {path.stem: 15.0 for path in notebooks}} | metrics  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return soup(pages.write_pages(folder, notebooks, private or {}))


def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def test_code_is_folded_behind_its_first_line_that_does_something(tmp_path):
    cell = printed("2", "import math\n# the root\nroot = math.sqrt(4)\nprint(root)")
    (fold,) = chapter(tmp_path, "# Is it?", cell).select("details.code")
    assert fold.summary.get_text() == "code root = math.sqrt(4)"
    assert not fold.has_attr("open") and "print(root)" in fold.get_text()


def test_what_is_printed_bit_by_bit_is_one_text(tmp_path):
    cell = printed("one")
    cell.outputs += printed("two").outputs
    assert [text.get_text().strip() for text in chapter(tmp_path, cell).select("pre")][1:] == ["one\ntwo"]


def test_what_is_written_by_hand_stands_open(tmp_path):
    page = chapter(tmp_path, "# Is it?", printed("4", "2 + 2"), printed("5", "# 5\nfive = 2 + 3", tag="by-hand"))
    code, by_hand = page.select("details.code")
    assert not code.has_attr("open") and by_hand.has_attr("open")
    assert by_hand.summary.get_text() == "by hand five = 2 + 3"


def test_the_index_follows_the_labs_report_and_takes_tagged_cells_where_they_belong(tmp_path):
    common = {"schedule": "cosine", "steps": 4, "n": 9, "score_name": "toy"}
    study = [common | {"stop_at": t, "seed": s, "score": 5.0 - t + s} for t in (1, 2) for s in (0, 1)]
    page = index(
        tmp_path,
        write(tmp_path, "01_x", "# Is it $x^2$?", printed("mistake", tag="report-pitfalls"), printed("attends")),
        write(tmp_path, "02_x", "# And?\n\n## Step by step", printed("trains")),
        write(tmp_path, "03_x", "# So?\n\n## Step by step", printed("grid", tag="report-score"), printed("infers")),
        write(tmp_path, "04_x", "# Which?", printed("compares"), "The verdict."),
        study=study,
    )
    names = [link.get_text() for link in page.nav.find_all("a")]
    assert names == ["Result", "Introduction", "Implementation details", "Attention", "Training", "Inference",
                     "Discussion", "What the study says", "Pitfalls", "Experiment score"]  # fmt: skip
    text = " ".join(page.main.get_text().split())
    words = ("attends", "trains", "infers", "compares", "mistake", "Best score", "grid")
    assert sorted(words, key=text.rindex) == list(words)
    assert text.count("mistake") == text.count("grid") == text.count("compares") == 1
    assert "3.50 (toy; n = 9; mean of 2 seeds, 3.00 to 4.00) with schedule cosine, steps 4, stop at 2" in text
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids)), "two chapters have a heading of one name"
    assert {link["href"][1:] for link in page.find_all("a", href=re.compile("^#"))} <= set(ids)
    assert {heading.name for heading in page.find_all(re.compile("^h[1-6]$"), string="Step by step")} == {"h4"}
    assert page.select_one("article math"), "a title's formula is laid out"


def test_a_notebook_of_another_number_is_in_the_index_as_well(tmp_path):
    notebooks = [write(tmp_path, f"{n:02}_x", f"# Question {n}?", printed(f"words {n}")) for n in range(1, 7)]
    page = index(tmp_path, *notebooks)
    assert "More" in page.nav.get_text() and "words 6" in page.find(id="06_x").get_text()
    assert "words 5" in page.find(id="pitfalls").get_text()


def test_a_chapters_own_page_has_all_of_it_and_lists_its_headings(tmp_path):
    cells = {"02_x": "# And?", "03_x": "# So?\n\nExpected time: long.\n\n## First", "04_x": "# Which <b>?"}
    whole = index(tmp_path, *(write(tmp_path, *cell, printed("grid", tag="report-score")) for cell in cells.items()))
    page = soup(tmp_path / "03_x.html")
    assert page.h1.get_text() == "So?" and "grid" in page.main.get_text() and "Expected time" in page.main.get_text()
    assert [link["href"] for link in page.nav.find_all("a")] == ["index.html", "02_x.html", "03_x.html", "#First",
                                                                "04_x.html"]  # fmt: skip
    assert page.find(id="First") and page.footer.get_text() == "Next: Which <b>?"
    assert soup(tmp_path / "04_x.html").footer.get_text() == "Next: the report"
    assert "Expected time" not in whole.get_text()


def drawn(content: bytes, **described: str) -> nbformat.NotebookNode:
    data = {"image/png": base64.b64encode(content).decode(), "text/plain": "a line"}
    output = nbformat.v4.new_output("display_data", data, metadata={"image/png": described})
    return nbformat.v4.new_code_cell("draw()", outputs=[output])


def test_a_figure_is_one_file_however_many_pages_show_it_and_never_without_a_text_alternative(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "png")
    named, more = png.getvalue(), png.getvalue() + b"more"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "01_x-line.png").write_bytes(named)
    cells = drawn(named, alt="A line"), drawn(named, alt="A line"), drawn(more)
    images = chapter(tmp_path, "# Is it?\n\nIt *rises*,\nsee:", *cells).find_all("img")
    assert [image["src"] for image in images] == ["figures/01_x-line.png"] * 2 + ["figures/01_x.3.png"]
    assert [image["alt"] for image in images] == ["A line", "A line", "Figure: It rises , see:"]
    assert (tmp_path / "figures" / "01_x.3.png").read_bytes() == more


def test_what_is_private_is_shown_otherwise_everywhere(tmp_path):
    path = '/home/"me"/cats.zip'
    notebook = write(tmp_path, "01_x", "# Is it?", printed(f"at {path}", f"dataset = {path!r}"))
    card = index(tmp_path, notebook, private={path: "cats.zip"}).article
    text = soup(tmp_path / "01_x.html").get_text()
    assert "home" not in text and text.count("at cats.zip") == 1 and "at cats.zip" in card.get_text()


def test_the_index_says_what_it_ran_on_and_lists_fills_the_best_first_and_what_can_be_downloaded(tmp_path):
    (tmp_path / "report.pdf").touch()
    page = index(tmp_path, profile="quick", total_seconds=75.0, inpainting={
        "weights": "pretrained 12", "data": "toycats", "seed": 3, "score_name": "toy <distance>",
        "telea": {"score": None, "n": 5}, "lab_rule": {"score": 4.0, "n": 5, "keeps_known_pixels": False},
        "pretrained": {"score": 1.0, "n": 5, "keeps_known_pixels": True, "hole_psnr_db": 20.0},
        "classical": {"score": 2.0, "method": "telea"},
    }, repeat={"commit": "0123456789abcdef", "changed": True})  # fmt: skip
    facts = " ".join(page.select_one(".facts").get_text().split())
    assert facts.startswith("profile quick device cpu took 1 min 15 s weights pretrained 12 data toycats images 5 "
                            "seed 3 commit 0123456789 with changes date ")  # fmt: skip
    rows = [["pretrained", "kept", "1.00"], ["lab rule", "redrawn", "4.00"], ["telea", "–", "–"]]
    assert score_cells(page, 3) == rows
    assert "toy <distance>" in page.select_one(".scores").get_text()
    assert page.footer.find("a", href="report.pdf") and not page.footer.find("a", href="config.json")


def score_cells(page: BeautifulSoup, columns: int) -> list[list[str]]:
    return [[cell.get_text() for cell in row.find_all("td")][:columns] for row in page.select(".scores tbody tr")]


def test_what_was_not_measured_is_not_in_the_index(tmp_path):
    for study in (None, []):
        page = index(tmp_path, inpainting={}, study=study)
        assert not page.find("table") and "Experiment score" not in page.get_text()


def test_equal_pictures_have_no_finite_psnr(tmp_path):
    equal, close = (torch.full((9, 3, 64, 64), value, dtype=torch.uint8) for value in (7, 7))
    close[0, 0, 0, 0] = 8
    for pictures, text in ((equal, "∞"), (close, f"{psnr_db(close, equal):.1f}")):
        row = {"score": 1.0, "n": 9, "hole_psnr_db": psnr_db(pictures, equal)}
        assert score_cells(index(tmp_path, inpainting={"truth": row}), 6)[0][4:] == [text, "9"]


def test_attributes_have_a_column_where_some_fill_was_asked_for_them(tmp_path):
    row = {"score": 1.0, "n": 9}
    read = index(tmp_path, inpainting={"telea": row, "pretrained": row | {"attribute_accuracy": 0.0}})
    assert [cells[4:] for cells in score_cells(read, 7)] == [["–", "–", "9"], ["0.0%", "–", "9"]]
    unread = index(tmp_path, inpainting={"telea": row, "pretrained": row | {"attribute_accuracy": None}})
    for page in (read, unread):
        spans = [int(head.get("colspan", 1)) for head in page.select(".scores thead th")]
        assert sum(spans) == len(score_cells(page, 9)[0]) and ("attributes" in page.thead.get_text()) == (page is read)


def test_the_best_setting_names_what_differs_and_not_what_was_measured(tmp_path):
    assert pages.MEASURED | {"n"} >= {*Scores._fields}
    common = {"schedule": "linear", "steps": 8, "stop_at": 8, "order": "random", "n": 4}
    results = (("argmax", 0, 2.0), ("argmax", 1, 3.0), ("sample", 0, 1.0), ("sample", 1, 5.0))
    rows = [common | {"codes": c, "seed": seed, "seconds": 1.0 + seed, "score": score} for c, seed, score in results]
    sentence = index(tmp_path, study=rows).find(id="experiment-score").get_text()
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


def test_photographs_have_a_page_of_faces_and_one_to_choose_blind_which_the_index_links(faces_report):
    page = soup(faces_report / "index.html")
    assert {link["href"] for link in page.main.find_all("a")} >= {*pages.FACES}
    assert [link["href"] for link in page.nav.find_all("a")][-2:] == [*pages.FACES]
    kept, metrics = read_faces(faces_report), json.loads((faces_report / "metrics.json").read_text())
    faces, blind = (soup(faces_report / name) for name in pages.FACES)
    figures = faces.select("figure.faces")
    assert len(figures) == len(kept["faces"]) == 20
    for figure, face in zip(figures, kept["faces"], strict=True):
        names = ("given", "ours", "classical", "truth")
        assert [image["src"] for image in figure.find_all("img")] == [face[name] for name in names if face[name]]
        assert ("no original is known" in figure.get_text()) == (face["truth"] is None)
        text = " ".join(figure.figcaption.get_text().split())
        assert text.startswith(f"Test image {face['number']}: {100 * face['hidden'] / 308:.0f} % of the eyes missing.")
        assert (" Its original was trained on." in text) == face["leaked"]
    assert json.loads(blind.find(id="pairs").string)["pairs"] == kept["pairs"]
    scores = metrics["inpainting"]
    classical = {"telea": "Telea", "navier_stokes": "Navier–Stokes"}[scores["classical"]["method"]]
    for page, n in ((faces, 20), (blind, 20)):
        text = " ".join(page.main.get_text().split())
        assert f"Shown: n = {n}, of which " in text and "Over all n = 20 whose original is known" in text
        assert f"MaskGIT (trained from scratch) {scores['trained_from_scratch']['score']:.2f}, {classical} " in text
        assert "photographs, weights stub 1, seed 0, profile smoke, device cpu." in text


def test_faces_are_shown_where_their_notebook_was_run_and_kept_some(faces_report, tmp_path):
    (tmp_path / FILE).write_bytes((faces_report / FILE).read_bytes())
    other = write(tmp_path, "01_x", "# Is it?", printed("attends"))
    without = index(tmp_path, other)
    assert not without.find("a", href=re.compile("faces|blind")) and len(list(tmp_path.glob("*.html"))) == 2
    (tmp_path / FILE).unlink()
    without = index(tmp_path, write(tmp_path, "03_inpainting", "# So?", printed("infers")))
    assert not without.find("a", href=re.compile("faces|blind")) and len(list(tmp_path.glob("*.html"))) == 3
