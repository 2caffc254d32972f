"""The notebooks keep to their rules, and all of them run, in the smallest profile, to numbers that make sense."""

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

NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4)
             for path in sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))}  # fmt: skip
FILLS = ("pretrained", "trained_from_scratch", "classical", "do_nothing", "mean_colour", "one_shot", "reconstruction")

each = pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=NOTEBOOKS)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
    (cell,) = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
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
def test_what_it_imports_is_there(notebook):
    source = "\n".join(re.sub(r"(?m)^[%!].*$", "", cell.source) for cell in code(notebook))
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "a notebook", "exec"), {})


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


def test_the_smoke_run_is_small_and_has_a_page_for_every_notebook_whose_links_lead_somewhere(smoke_report):
    assert sum(path.stat().st_size for path in smoke_report.rglob("*") if path.is_file()) < 15e6
    pages = {path.name: path.read_text(encoding="utf-8") for path in smoke_report.glob("*.html")}
    assert {f"{stem}.html" for stem in NOTEBOOKS} | {"index.html"} == set(pages)
    assert all(f'href="{name}"' in pages["index.html"] for name in pages if name != "index.html")
    for name, text in pages.items():
        assert len(text) > 5000
        for link in re.findall(r'<a\b[^>]*\shref="([^"]*)"', text):
            page, _, place = unquote(unescape(link)).partition("#")
            assert (smoke_report / (page or name)).exists(), f"{name} links to {link}"
            assert not place or f'id="{place}"' in pages[page or name], f"{name} links to {link}"
