"""The order of the rooms: each module imports only from those above it, says what it is for, and stays short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lab5"

# From the bottom of the package to its top. A new room is put in its place here.
ROOMS = """
    settings memory config durable gamma dropout matmul attention transformer codebook vqgan painter toycats files
    layouts data labfiles checkpoint fid resampling uncertainty features critics pasting tokenizer surroundings
    maskings objectives states trainer training samplers budgets remasking decoder predictions smallworld scores
    pipeline filling recipes workers study networks grids claims findings pitfalls_training pitfalls_decoding
    pitfalls pitfalls_shown pitfalls_scored plots lessonplots studyplots drawings scrub play widgets results
    progress provenance chapters overview pages pdf report sweep doctor arguments labflags outputs commands
    inpainting studying distances __main__
""".split()

# For notebooks, the report and the command line.
PICTURES = {"plots", "lessonplots", "studyplots", "drawings", "scrub", "play", "widgets"}
ABOVE_PICTURES = {"studying", "lessonplots", "studyplots", "drawings", "scrub", "play", "widgets", "report", "__main__"}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported(source: str) -> set[str]:
    """The modules of the package that a source imports, wherever in it, relative imports included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lab5.")}
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level == 0 and parts[0] != "lab5":
                continue
            inner = [part for part in (parts if node.level else parts[1:]) if part]
            found |= {inner[0]} if inner else {alias.name for alias in node.names}
    return found


def test_imports_are_found_in_every_form():
    forms = ("import lab5.a, torch", "from lab5 import b", "if 1: from lab5.c import x", "from .d import y",
             "from . import e", "import lab5x.f", "from torch import g")  # fmt: skip
    assert imported("\n".join(forms)) == {"a", "b", "c", "d", "e"}


def test_every_module_has_its_place():
    assert sorted(ROOMS) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_those_above(name):
    found = imported((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    above = set(ROOMS[: ROOMS.index(name)])
    if name not in ABOVE_PICTURES:
        above -= PICTURES
    assert found <= above


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for_and_stays_short(name):
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "no docstring"
    assert len(source.splitlines()) <= 300
