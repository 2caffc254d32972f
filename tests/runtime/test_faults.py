"""Faults that belong to no module, and promises that the whole source keeps."""

import ast
import errno
import re
from functools import cache
from pathlib import Path

import pytest
from torchvision.transforms.functional import to_pil_image

from lab5.data import archives as files
from lab5.data.dataset import open_dataset
from lab5.data.toycats import render

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lab5"
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


@cache
def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call in a module, with the name that it is called by."""
    nodes = (node for node in ast.walk(ast.parse(SOURCES[name])) if isinstance(node, ast.Call))
    return [(ast.unparse(node.func), node) for node in nodes]


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path) -> Path:
    for i, picture in enumerate(render(0, 6).images):
        (tmp_path / "cats").mkdir(exist_ok=True)
        to_pil_image(picture).save(tmp_path / "cats" / f"cat {i}.png")
    return tmp_path / "cats"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), FileNotFoundError(errno.ENOENT, "gone")])
def test_a_picture_that_cannot_be_read_any_more_is_named_and_nothing_is_kept(error, pictures, monkeypatch, tmp_path):
    """A disk that breaks, or a file that is deleted, after the folder was listed."""
    read = Path.read_bytes

    def broken(path):
        if path.name == "cat 3.png":
            raise error
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(ValueError, match="cat 3.png in .*cats is not a readable image") as refused:
        open_dataset(pictures, n_train=4, n_val=1, n_test=1, seed=0, cache=tmp_path / "cache")
    assert refused.value.__cause__ is error and not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_read_is_made_again(pictures, monkeypatch, tmp_path):
    sizes = {"n_train": 4, "n_val": 1, "n_test": 1, "seed": 0, "cache": tmp_path / "cache"}
    first = open_dataset(pictures, **sizes)
    monkeypatch.setattr(files.np, "load", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    assert open_dataset(pictures, **sizes).fingerprint == first.fingerprint


# --- the source -------------------------------------------------------------------------------------------------------


def test_nothing_from_outside_is_unpickled_with_code():
    for name in SOURCES:
        for called, node in calls(name):
            # Between a process and its own workers; a notebook's own function, with a line of it changed.
            ours = name in ("runtime/processes.py", "pitfalls/edits.py")
            assert ours or not re.fullmatch(r"(pickle|marshal|shelve|dill|joblib)\.\w+|eval|exec", called), name
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                inert = name == "runtime/pickles.py" and keywords.get("pickle_module") == "INERT"  # which makes stubs
                assert keywords.get("weights_only") == "True" or inert, name
            if called in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") == "False", name
            last = called.rpartition(".")[2]
            # But for a solution that is to be run: its paths and sizes are checked there.
            may = last == "extract_tb" or name == "pitfalls/solutions.py"
            assert "extract" not in last or may, f"{name}: archives are not extracted"


def test_times_are_taken_by_a_clock_that_does_not_jump():
    """The report compares times of files with its own, for which the wall clock is the right one."""
    users = {name for name in SOURCES for called, _ in calls(name) if called == "time.time"}
    assert users <= {"report/run.py"}


def test_jupyterlab_is_started_with_its_token_and_on_this_computer_only():
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "-m jupyterlab" in line]
    assert not re.search(r"--ip|token|password|allow[-_]origin|allow[-_]root|0\.0\.0\.0", line)


def test_no_file_of_the_repository_tells_a_home_folder():
    kinds = ("lab5/**/*.*", "notebooks/*.ipynb", "*.md", "figures/*.csv", "data/pretrained/*.json")
    paths = [path for kind in kinds for path in ROOT.glob(kind) if path.is_file() and "__pycache__" not in path.parts]
    assert len(paths) > 80
    for path in paths:
        assert not re.search(r"/(home|Users)/\w+|/root/", path.read_text(encoding="utf-8")), path


# --- this folder ------------------------------------------------------------------------------------------------------


def test_every_test_that_the_table_of_faults_names_is_there():
    table = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]*test_\w+\.py)::(test_\w+)(…?)`", table)
    assert len(named) > 30
    for file, test, more in named:
        found = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert [name for name in found if name == test or more and name.startswith(test)], f"{file}::{test}"
    assert all((ROOT / "tests" / file).exists() for file in re.findall(r"`([\w/]*test_\w+\.py)", table))
