"""How many small changes to a module its own tests notice: `python tests/mutation.py gamma [MINUTES]`.

A module of a wing is named with it: `runtime/files`. Its tests are the file of its name, or all of its wing's.

One change at a time, to a copy: a comparison, an operator, a number, a text, a condition, a statement, a keyword left
out. A change that the tests of the module let pass is printed: it survives. Results are kept in the temporary folder:
a run that is stopped goes on. The order is random, so that a part of them is a fair sample of all.

Messages of errors are not changed, nor annotations and imports. Each change is tried in a fork of a process that has
imported the large packages already.
"""

import ast
import copy
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

Change = tuple[str, int, ast.Module]  # what is changed, in which line, and the module with it


def changes(tree: ast.Module) -> Iterator[Change]:
    """Every change, each to a copy of the module."""
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent
    for number, node in enumerate(ast.walk(tree)):
        if not _is_left_alone(node):
            for what, edit in _edits(node):
                changed = copy.deepcopy(tree)
                edit(next(n for i, n in enumerate(ast.walk(changed)) if i == number))
                yield what, getattr(node, "lineno", 0), ast.fix_missing_locations(changed)


def _is_left_alone(node: ast.AST) -> bool:
    """Imports, annotations, and aliases of types."""
    while hasattr(node, "parent"):
        child, node = node, node.parent
        annotation = getattr(node, "annotation", None) is child or getattr(node, "returns", None) is child
        alias = isinstance(child, ast.Assign) and isinstance(child.value, ast.Subscript)
        if annotation or (alias and isinstance(node, ast.Module)) or isinstance(child, ast.Import | ast.ImportFrom):
            return True
    return False


def _is_inside(node: ast.AST, *kinds: type) -> bool:
    while hasattr(node, "parent"):
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def _edits(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    """What can be done to a node, and how."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                what = f"{type(operator).__name__} -> {other.__name__}"
                yield what, lambda n, place=place, other=other: n.ops.__setitem__(place, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and (other := OPERATORS.get(type(node.op))):
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda n: setattr(n, "op", other())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"-> {other.__name__}", lambda n: setattr(n, "op", other())
    elif isinstance(node, ast.UnaryOp):
        yield f"without {type(node.op).__name__}", _become_operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node)
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", lambda n: n.__dict__.update(body=n.orelse, orelse=n.body)
    elif isinstance(node, ast.If):
        for value in (True, False):
            yield f"if {value}", lambda n, value=value: setattr(n, "test", ast.Constant(value))
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "return None", lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield):
        yield "statement left out", lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Call) and not _is_inside(node, ast.Raise):
        for place, keyword in enumerate(node.keywords):
            if keyword.arg:
                yield f"without {keyword.arg}=", lambda n, place=place: n.keywords.pop(place)


def _become_operand(node: ast.UnaryOp) -> None:
    operand = node.operand
    node.__class__, node.__dict__ = operand.__class__, operand.__dict__


def _constants(node: ast.Constant) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    value = node.value
    if _is_inside(node, ast.JoinedStr) or isinstance(node.parent, ast.Expr):
        others = []  # messages and docstrings
    elif isinstance(value, bool):
        others = [not value]
    elif isinstance(value, int | float):
        others = [value + 1] + [value - 1 if isinstance(value, int) else value / 2] * (value != 0)
    elif isinstance(value, str):
        others = [] if _is_inside(node, ast.Raise) else ["XX" + value]
    else:
        others = [0] if value is None and not isinstance(node.parent, ast.Return) else []
    for other in others:
        yield f"{value!r} -> {other!r}", lambda n, other=other: setattr(n, "value", other)


class ShortestFirst:
    """A plugin: what takes long comes last, for most changes are noticed by what takes no time."""

    def __init__(self, kept: Path):
        self.kept, self.took = kept, json.loads(kept.read_text()) if kept.exists() else {}

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: self.took.get(item.name, 0))

    def pytest_runtest_logreport(self, report) -> None:
        name = report.nodeid.rpartition("::")[2]
        self.took[name] = self.took.get(name, 0) + report.duration

    def pytest_sessionfinish(self) -> None:
        if not self.kept.exists():
            self.kept.write_text(json.dumps(self.took))


def outcome(folder: Path, test: str, limit: float) -> int | str:
    """The exit code of the tests in a fork, or "timeout"."""
    if (process := os.fork()) == 0:
        os.setpgrp()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        os.chdir(folder)
        sys.path[0] = str(folder)
        try:
            import pytest

            words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore", test]
            os._exit(int(pytest.main(words, plugins=[ShortestFirst(folder / "took.json")])))
        finally:
            os._exit(99)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "timeout"


def tests_of(module: str) -> str:
    """The file of tests of a module, or where there is none, the folder of its wing's."""
    wing, _, name = f"tests/{module}".rpartition("/")
    own = f"{wing}/test_{name}.py"
    return own if (ROOT / own).exists() or wing == "tests" else wing


def main(module: str, minutes: float = 1e6) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    for package in ("cv2", "hypothesis.strategies", "matplotlib", "scipy.stats", "torchvision"):
        importlib.import_module(package)  # once, for all forks
    folder = Path(tempfile.gettempdir()) / f"mutation-{module.replace('/', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("lab5", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "data").mkdir()
    (folder / "data" / "pretrained").symlink_to(ROOT / "data" / "pretrained")
    file, test, kept = folder / "lab5" / f"{module}.py", tests_of(module), folder.with_suffix(".json")
    source = file.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    began = time.monotonic()
    if outcome(folder, test, 1e4) != 0:
        sys.exit(f"{test} fails as it is")
    limit = 20 + 5 * (time.monotonic() - began)
    found = json.loads(kept.read_text()) if kept.exists() else {}
    todo = [
        (f"{number}, line {line}: {what}: {lines[line - 1].strip()}", ast.unparse(changed))
        for number, (what, line, changed) in enumerate(changes(tree))
    ]
    random.Random(0).shuffle(todo)
    for name, text in todo:
        if name not in found and time.monotonic() - began < 60 * minutes:
            file.write_text(text, encoding="utf-8")
            for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
                compiled.unlink()  # two changes within a second may look alike
            found[name] = outcome(folder, test, limit)
            kept.write_text(json.dumps(found, indent=1))
    tried = {name: found[name] for name, _ in todo if name in found}
    print("\n".join(sorted(f"survives {name}" for name, code in tried.items() if code == 0)))
    killed = sum(code != 0 for code in tried.values())
    print(f"{module}: {killed} of {len(tried)} changes noticed, {killed / max(1, len(tried)):.1%}; {len(todo)} in all")


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
