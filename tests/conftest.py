"""What all tests share: shapes are checked, threads are few, and no test writes into the checkout."""

import resource
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import torch
from jaxtyping import install_import_hook

# Before any test imports lab5: every shape in a signature is checked at every call. The tower: an int is a float.
install_import_hook("lab5", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
pytest.register_assert_rewrite("stubs")

torch.set_num_threads(min(2, torch.get_num_threads()))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script, where Ctrl-C is not for it
    signal.signal(signal.SIGINT, signal.default_int_handler)

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch) -> Path:
    """Numbers, figures, caches and checkpoints that a test writes go to folders of its own."""
    folder = tmp_path_factory.mktemp("folders")
    monkeypatch.setenv("LAB5_DATA", str(folder / "data"))
    monkeypatch.setenv("LAB5_REPORT_DIR", str(folder / "report"))
    monkeypatch.setenv("LAB5_FIGURES_DIR", str(folder / "figures"))
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """Random draws that are the same in every run."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def disk_of():
    """`with disk_of(1000): ...`: no file may become larger, the system refuses to write on as on a full disk."""

    @contextmanager
    def full(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)

    return full


@pytest.fixture
def write_notebook(tmp_path) -> Callable[..., Path]:
    """`write_notebook("01_a", ("markdown", "# Is it?"), ("parameters", "profile = 1"), "print(1)")`: cells of
    code, but where a pair says markdown or gives a tag. Returns the folder, which several notebooks share."""

    def write(name: str, *cells: str | tuple[str, str]) -> Path:
        notebook = nbformat.v4.new_notebook()
        for cell in cells:
            tag, source = cell if isinstance(cell, tuple) else ("", cell)
            if tag == "markdown":
                notebook.cells.append(nbformat.v4.new_markdown_cell(source))
            else:
                notebook.cells.append(nbformat.v4.new_code_cell(source))
                notebook.cells[-1].metadata["tags"] = [tag] if tag else []
        folder = tmp_path / "notebooks"
        folder.mkdir(exist_ok=True)
        nbformat.write(notebook, folder / f"{name}.ipynb")
        return folder

    return write


@pytest.fixture(scope="session")
def smoke_report(tmp_path_factory) -> Path:
    """The folder of a report on the real notebooks, made once for all tests that look at it."""
    if not list(NOTEBOOKS.glob("*.ipynb")):
        pytest.skip("there are no notebooks yet")
    from lab5.report.run import run_report

    out = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB5_DATA", str(out / "data"))
        patch.setenv("LAB5_FIGURES_DIR", str(out / "figures"))
        return run_report("smoke", notebooks=NOTEBOOKS, out=out / "report").parent
