"""What all tests share: shapes are checked, threads are few, and no test writes into the checkout."""

import os
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Before any test imports lab5: every shape in a signature is checked at every call. The tower: an int is a float.
install_import_hook("lab5", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
pytest.register_assert_rewrite("stubs")

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: one thread for each and for its children
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", 2)), torch.get_num_threads()))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script, where Ctrl-C is not for it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMOKE = ("report/test_notebooks.py", "report/test_browser.py")  # files with tests of the smoke report


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a process per core that may be used, four at most, because each takes a gigabyte of memory."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """The tests of a file share a process, for what they have set up; so do the files that look at the smoke report."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "smoke report" if file.endswith(SMOKE) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that nothing waits for it in the end."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(SMOKE))


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


@pytest.fixture(scope="session")
def smoke_report(tmp_path_factory) -> Path:
    """The folder of a report on the real notebooks, made once for all tests that look at it."""
    from lab5.report.run import run_report

    out = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB5_DATA", str(out / "data"))
        patch.setenv("LAB5_FIGURES_DIR", str(out / "figures"))
        return run_report("smoke", out=out / "report").parent


@pytest.fixture(scope="session")
def faces_report(tmp_path_factory) -> Path:
    """The folder of a report on made-up photographs by untrained networks: its pages, but for what notebooks show."""
    from dataclasses import replace

    import nbformat
    from stubs import Blocks, photographs, untrained_pair

    from lab5.config import DecodeConfig
    from lab5.inpainting.fill import baselines, inpaint_images
    from lab5.report.pages import write_pages
    from lab5.scoring.scores import Scorer
    from lab5.show.notebook import read_metrics, record_fills, write_metrics

    out = tmp_path_factory.mktemp("faces")
    (out / "figures").mkdir()
    data, pair, decoding = photographs(out), untrained_pair(), DecodeConfig(steps=2, paste="poisson")
    data = replace(data, whole=torch.arange(24) > 3, leaked=torch.arange(24) > 15)
    scorer = Scorer(data, Blocks())
    pictures = baselines(scorer.truth, scorer.holes, pair.tokenizer)
    pictures["trained_from_scratch"] = inpaint_images(pair, scorer.truth, scorer.holes, decoding, 0)
    groups = {name: scorer.by_group(images) for name, images in pictures.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB5_REPORT_DIR", str(out))
        record_fills(scorer, pictures, groups, pair=pair, data=data, decoding=decoding, seed=0)
    run = {"profile": "smoke", "device": "cpu", "seconds": {"03_inpainting": 1.0}, "total_seconds": 1.0, "versions": {}}
    write_metrics(out, read_metrics(out) | run)
    cells = [nbformat.v4.new_markdown_cell("# So?"), nbformat.v4.new_markdown_cell("Yes.")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), out / "03_inpainting.ipynb")
    return write_pages(out, [out / "03_inpainting.ipynb"], {}).parent
