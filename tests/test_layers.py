"""The order of the house: a file imports from its own wing and from what stands to the left, and says what it is."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lab5"

# The ground floor's files and the wings, from the bottom to the top. A new one is put in its place here.
ORDER = """
    runtime config profiles attention gamma fid data transformer vqgan masking samplers checkpoint objectives trainer
    decoder variants inpainting scoring training pitfalls study show report cli
""".split()
WINGS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MODULES = [file for file in FILES if file.stem not in ("__init__", "__main__")]


def place(file: Path) -> str:
    """The wing of a file, or its own name on the ground floor."""
    return file.parts[0] if len(file.parts) > 1 else file.stem


def imported(source: str) -> set[str]:
    """The places that a source imports from, wherever in it, relative imports included."""
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
    forms = ("import lab5.a.x, torch", "from lab5 import b", "if 1: from lab5.c.y import x", "from .d import y",
             "from . import e", "import lab5x.f", "from torch import g")  # fmt: skip
    assert imported("\n".join(forms)) == {"a", "b", "c", "d", "e"}


def test_every_file_and_wing_has_its_place():
    assert sorted(ORDER) == sorted({place(file) for file in MODULES})
    assert len(WINGS) == 10


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_a_file_imports_from_its_wing_and_from_what_stands_to_the_left(file):
    here = place(file)
    left = set(ORDER[: ORDER.index(here)])
    own = {here} if len(file.parts) > 1 else set()
    assert imported((PACKAGE / file).read_text(encoding="utf-8")) <= left | own


def test_no_wing_has_a_circle_within():
    for wing in WINGS:
        needs = {
            file.stem: {
                node.module.split(".")[2]
                for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"lab5.{wing}.")
            }
            for file in MODULES if place(file) == wing
        }  # fmt: skip
        while free := {name for name, others in needs.items() if not others & needs.keys()}:
            needs = {name: others for name, others in needs.items() if name not in free}
        assert not needs, f"{wing}: {needs} import each other"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_says_what_it_is_for(file):
    assert ast.get_docstring(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))), "no docstring"


def test_the_ground_floor_is_small():
    ground = list(PACKAGE.glob("*.py"))
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in ground)
    assert len(ground) <= 16 and lines <= 2850, f"{len(ground)} files, {lines} lines"


def test_no_function_takes_more_than_eight_parameters():
    wide = []
    for file in FILES:
        for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [arg.arg for arg in node.args.args + node.args.kwonlyargs]
                if len([name for name in names if name not in ("self", "cls")]) > 8:
                    wide.append(f"{file}: {node.name}")
    assert not wide
