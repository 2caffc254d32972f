"""The notebooks keep to their rules, and all of them run, in the smallest profile, to numbers that make sense."""

import ast
import json
import math
import re
from pathlib import Path

import nbformat
import pytest

from lab5.profiles import configure

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FILLS = ("pretrained", "trained_from_scratch", "classical", "do_nothing", "mean_colour", "one_shot", "reconstruction")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


FINDS_THE_PACKAGE = cells(NOTEBOOKS[0], "code")[1].source


@each
def test_it_is_stored_without_outputs(path):
    for cell in cells(path, "code"):
        assert cell.outputs == [] and cell.execution_count is None
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


@each
def test_its_title_is_a_question_and_the_expected_time_is_below(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    title, *rest = first.source.strip().splitlines()
    assert re.fullmatch(r"# .+\?", title)
    assert re.search(r"(?i)\b(second|minute)s?\b", " ".join(rest)), "no line with the expected time"


@each
def test_it_has_one_cell_of_scalar_parameters_and_its_profile_exists(path):
    (cell,) = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    for line in ast.parse(cell.source).body:
        assert isinstance(line, ast.Assign) and len(line.targets) == 1
        values[line.targets[0].id] = ast.literal_eval(line.value)
    assert all(isinstance(value, str | int | float | bool) for value in values.values())
    configure(values["profile"])


@each
def test_it_finds_the_package_in_plain_jupyter_and_tells_on_what_it_runs(path):
    parameters, finds, *rest = (cell.source for cell in cells(path, "code"))
    assert finds == FINDS_THE_PACKAGE and "parameters" not in finds
    assert any("machine(" in source for source in rest[:4])


@each
def test_what_it_imports_is_there(path):
    code = "\n".join(re.sub(r"(?m)^[%!].*$", "", cell.source) for cell in cells(path, "code"))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), path.name, "exec"), {})


@each
def test_its_last_cell_states_the_answer(path):
    last = nbformat.read(path, as_version=4).cells[-1]
    if last.cell_type == "code":
        assert re.search(r"\b(print|display|Markdown)\(", last.source)
    else:
        assert re.sub(r"(?m)^#.*$", "", last.source).strip()


def test_the_smoke_run_measures_everything(smoke_report):
    metrics = json.loads((smoke_report / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["profile"] == "smoke" and metrics["device"] and metrics["versions"]["torch"]
    assert list(metrics["seconds"]) == [path.stem for path in NOTEBOOKS]
    assert all(seconds > 0 for seconds in metrics["seconds"].values())
    assert math.isfinite(metrics["tokenizer"]["psnr_db"])
    inpainting = metrics["inpainting"]
    assert inpainting["score_name"]
    for fill in FILLS:
        row = inpainting[fill]
        assert row["score"] >= 0 and math.isfinite(row["hole_psnr_db"]) and row["n"] > 0
        assert 0 <= row["attribute_accuracy"] <= 1
    assert inpainting["reconstruction"]["score"] < inpainting["do_nothing"]["score"]
    for row in metrics["study"]:
        assert {"schedule", "steps", "stop_at", "seed", "n", "score", "score_name"} <= set(row)
    assert metrics["study"]


def test_the_smoke_run_writes_a_page_for_every_notebook(smoke_report):
    index = (smoke_report / "index.html").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert (smoke_report / f"{path.stem}.html").stat().st_size > 5000
        assert f'href="{path.stem}.html"' in index
