"""The notebooks keep to their rules, and all of them run, in the smallest profile, to numbers that make sense.

Each cell can be run again. What is run here is the smoke report, and once more its notebooks with every cell twice.
"""

import ast
import json
import math
import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from lab5.profiles import configure
from lab5.report.chapter import BY_HAND, SECTION
from lab5.report.execute import execute

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4)
             for path in sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))}  # fmt: skip
FILLS = ("pretrained", "trained_from_scratch", "classical", "do_nothing", "mean_colour", "one_shot", "reconstruction")

each = pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=NOTEBOOKS)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def lines(cell: nbformat.NotebookNode) -> list[str]:
    """Those of code: neither empty nor a comment alone."""
    return [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]


def imports(cell: nbformat.NotebookNode) -> list[ast.stmt]:
    return [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Import | ast.ImportFrom)]


@each
def test_it_is_stored_without_outputs(notebook):
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))
    assert "widgets" not in notebook.metadata


@each
def test_it_begins_with_a_question_and_the_expected_time_and_ends_with_an_answer(notebook):
    first, *_, last = notebook.cells
    title, *rest = first.source.strip().splitlines()
    assert first.cell_type == "markdown" and re.fullmatch(r"# .+\?", title)
    assert re.search(r"(?i)\b(second|minute)s?\b", " ".join(rest)), "no line with the expected time"
    if last.cell_type == "code":
        assert re.search(r"\b(print|display|Markdown)\(", last.source)
    else:
        assert re.sub(r"(?m)^#.*$", "", last.source).strip()


@each
def test_it_has_one_cell_of_scalar_parameters_and_its_profile_exists(notebook):
    (cell,) = [cell for cell in code(notebook) if "parameters" in tags(cell)]
    values = {}
    for line in ast.parse(cell.source).body:
        assert isinstance(line, ast.Assign) and len(line.targets) == 1
        values[line.targets[0].id] = ast.literal_eval(line.value)
    assert all(isinstance(value, str | int | float | bool) for value in values.values())
    configure(values["profile"])


@each
def test_it_finds_the_package_in_plain_jupyter_and_tells_on_what_it_runs(notebook):
    parameters, finds, *rest = (cell.source for cell in code(notebook))
    assert finds == code(NOTEBOOKS["01_attention_checks"])[1].source and "parameters" not in finds
    assert any("machine(" in source for source in rest[:4])


@each
def test_what_it_imports_is_there_and_stands_in_one_short_cell(notebook):
    _, _, cell, *rest = code(notebook)  # parameters, and what finds the package, are tested above
    assert len(ast.parse(cell.source).body) == len(imports(cell)) and len(lines(cell)) <= 10
    assert not any(map(imports, rest))
    assert not any("sys.path" in other.source for other in code(notebook))
    exec(compile(ast.Module(imports(cell), []), "a notebook", "exec"), {})


@each
def test_it_is_short_and_does_the_books_of_the_report_in_one_call(notebook):
    assert sum(len(lines(cell)) for cell in code(notebook)) <= 160
    assert sum(len(re.findall(r"\brecord\w*\(", cell.source)) for cell in code(notebook)) <= 1
    known = {"parameters", BY_HAND}
    assert all(tag in known or tag.startswith(SECTION) for cell in notebook.cells for tag in tags(cell))


@each
def test_what_it_writes_by_hand_is_held_against_the_package_in_the_next_cell(notebook):
    cells = code(notebook)
    by_hand = [place for place, cell in enumerate(cells) if BY_HAND in tags(cell)]
    assert by_hand and all(BY_HAND not in tags(cell) for cell in notebook.cells if cell.cell_type == "markdown")
    for place in by_hand:
        assert 10 <= len(lines(cells[place])) <= 25, cells[place].source
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cells[place + 1].source)))


@pytest.mark.parametrize("notebook", [NOTEBOOKS[stem] for stem in NOTEBOOKS if stem < "05"],
                         ids=[stem for stem in NOTEBOOKS if stem < "05"])  # fmt: skip
def test_the_reader_has_a_turn_and_a_check_that_tells_what_is_wrong(notebook):
    assert any(re.search(r"(?m)^## Your turn$", cell.source) for cell in notebook.cells)
    checks = {alias.name for node in imports(code(notebook)[2]) for alias in node.names if "check_" in alias.name}
    ends = [ast.parse(cell.source).body[-1] for cell in code(notebook)]
    shown = {end.value.func.id for end in ends if isinstance(end, ast.Expr) and isinstance(end.value, ast.Call)
             and isinstance(end.value.func, ast.Name)}  # fmt: skip
    assert checks and checks <= shown, "the last line of a cell, whose value is its output"


def test_the_smoke_run_measures_everything(smoke_report):
    metrics = json.loads((smoke_report / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["profile"] == "smoke" and metrics["device"] and metrics["versions"]["torch"]
    assert list(metrics["seconds"]) == list(NOTEBOOKS)
    assert all(seconds >= 0 for seconds in metrics["seconds"].values())
    assert math.isfinite(metrics["tokenizer"]["psnr_db"])
    inpainting = metrics["inpainting"]
    assert inpainting["score_name"]
    for fill in FILLS:
        row = inpainting[fill]
        assert row["score"] >= 0 and math.isfinite(row["hole_psnr_db"]) and row["n"] > 0
        assert 0 <= row["attribute_accuracy"] <= 1
    assert inpainting["reconstruction"]["score"] < inpainting["do_nothing"]["score"]
    assert metrics["study"]
    for row in metrics["study"]:
        assert {"schedule", "steps", "stop_at", "seed", "n", "score", "score_name"} <= set(row)


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_every_cell_can_be_run_again_and_draws_the_same_figures(stem, smoke_report, tmp_path):
    """All cells in order, then all again from the last to the first, so that each finds what later ones have left.

    The networks that the smoke report has trained are found on disk.
    """
    cells = code(NOTEBOOKS[stem])
    again = [nbformat.v4.new_code_cell(cell.source) for cell in reversed(cells)]
    (tmp_path / "run").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells + again), tmp_path / f"{stem}.ipynb")
    environment = {"LAB5_DATA": str(smoke_report.parent / "data")}
    stopped = execute(tmp_path / f"{stem}.ipynb", tmp_path / "run", {"profile": "smoke"}, environment=environment,
                      limit=600, label=stem)  # fmt: skip
    assert not stopped
    ran = [cell for cell in code(nbformat.read(tmp_path / "run" / f"{stem}.ipynb", 4))
           if "injected-parameters" not in tags(cell)]  # fmt: skip
    pictures = [[output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
                for cell in ran]  # fmt: skip
    first, second = pictures[: len(cells)], pictures[len(cells) :][::-1]
    assert any(first)
    for cell, once, twice in zip(cells, first, second, strict=True):
        same = once == twice  # an assertion about them would print them
        assert same, f"run again, this cell draws something else:\n{cell.source}"


def test_the_smoke_run_is_small_and_has_a_page_for_every_notebook_whose_links_lead_somewhere(smoke_report):
    assert sum(path.stat().st_size for path in smoke_report.rglob("*") if path.is_file()) < 18e6
    pages = {path.name: path.read_text(encoding="utf-8") for path in smoke_report.glob("*.html")}
    assert {f"{stem}.html" for stem in NOTEBOOKS} | {"index.html"} == set(pages)
    assert all(f'href="{name}"' in pages["index.html"] for name in pages if name != "index.html")
    for name, text in pages.items():
        assert len(text) > 5000
        for link in re.findall(r'<a\b[^>]*\shref="([^"]*)"', text):
            if link.startswith("https://arxiv.org/abs/"):  # a paper: followed by a reader, needed by no page
                continue
            page, _, place = unquote(unescape(link)).partition("#")
            assert (smoke_report / (page or name)).exists(), f"{name} links to {link}"
            assert not place or f'id="{place}"' in pages[page or name], f"{name} links to {link}"
