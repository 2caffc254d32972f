"""Run the notebooks from the first cell to the last and export them: papermill, pages, the index, a PDF.

`record` and `show`, with which notebooks take part, are `lab5.show.notebook`' and can be had here as well.

It does not know what a notebook does or what its numbers mean, nor how a page looks.
"""

import ast
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from lab5.config import ROOT, Config
from lab5.profiles import configure
from lab5.report import pages
from lab5.report.chapter import Chapter, title
from lab5.report.pdf import print_pdf
from lab5.report.progress import TYPICAL, Progress
from lab5.report.provenance import private, provenance, without, without_folder
from lab5.runtime.files import InUseError, locked
from lab5.show.notebook import copy_figures, read_metrics, record, show, write_json, write_metrics

__all__ = ["ReportError", "record", "run_report", "show"]

CELL_SECONDS = {"smoke": 600, "quick": 3600, "cats-cpu": 4 * 3600, "full": 48 * 3600}  # a cell that runs longer hangs


class ReportError(RuntimeError):
    """The report could not be finished; the message says what stopped it, where, and what is left."""


def run_report(
    profile: str = "auto",
    *,
    notebooks: Path = ROOT / "notebooks",
    out: Path = ROOT / "report",
    only: Sequence[str] | None = None,
    parameters: dict[str, str] | None = None,
    pdf: bool = True,
) -> Path:
    """Execute the notebooks in the order of their names and return the path of `index.html`.

    `only` selects notebooks by how their names begin (`["03"]`) and keeps the rest of an earlier report.
    `parameters` go to the notebooks whose parameters cell declares them. With `pdf` the index is also printed to
    `report.pdf`, if a browser is found. A wrong name or value is refused with a ValueError before anything runs; a
    cell that fails or a folder that cannot be written raises ReportError.
    """
    config, paths, values, given = plan(profile, parameters or {}, only=only, notebooks=notebooks)
    try:
        out = Path(out).resolve()
        with locked(out):
            kept = _kept(out, config.profile, paths, given) if only else {}
            repeat = provenance(config.profile, kept.get("repeat", {}).get("parameters", {}) | given)
            _begin(out, config.profile, config.device, repeat, kept)
            index = _run(paths, values, out, CELL_SECONDS.get(config.profile, 3600), private(given))
            if pdf:
                _print(index)
        return index
    except InUseError as error:
        raise ReportError(str(error)) from error
    except OSError as error:
        raise ReportError(
            f"the report cannot be written to {out}: {error.strerror or error}; make room there "
            "or choose another folder"
        ) from error


def plan(
    profile: str,
    parameters: dict[str, str],
    *,
    only: Sequence[str] | None = None,
    notebooks: Path = ROOT / "notebooks",
) -> tuple[Config, list[Path], dict[Path, dict[str, Any]], dict[str, Any]]:
    """What a report would run: the profile's settings, the notebooks, the values for each, and all given ones by name.

    Raises ValueError for what cannot be run.
    """
    config = configure(profile)
    if "profile" in parameters:
        raise ValueError("the profile of a report is what --profile says; it is not one of its parameters")
    paths = _select(Path(notebooks), only)
    values = _share_out({"profile": config.profile, **parameters}, paths, _select(Path(notebooks), None))
    given = {name: value for own in values.values() for name, value in own.items() if name != "profile"}
    provenance(config.profile, given)
    return config, paths, values, given


def _kept(out: Path, profile: str, paths: list[Path], given: dict[str, Any]) -> dict[str, Any]:
    """The metrics of the run in the folder, of which some notebooks are run again; {} where there is none.

    Raises ValueError where that run was another one: the parts would not belong together.
    """
    metrics, again = read_metrics(out), {path.stem for path in paths}
    if not metrics:
        return {}
    there = {"profile": metrics.get("profile", profile)} | metrics.get("repeat", {}).get("parameters", {})
    here = {"profile": profile} | {name: without_folder(value) for name, value in given.items()}
    seconds = {stem: value for stem, value in metrics.get("seconds", {}).items() if stem not in again}
    staying = [path for path in paths[0].parent.glob("*.ipynb") if path.stem in seconds]
    theirs, ours = ({k: v for path in some for k, v in _defaults(path).items()} for some in (staying, paths))
    for name in ["profile", *sorted(ours.keys() & theirs.keys())]:
        before, now = (run.get(name, ours.get(name)) for run in (there, here))
        if before != now:
            raise ValueError(
                f"{out} holds a run with {name} = {before!r}, of which no part can be run again with {name} = {now!r}: "
                "give the same, run all notebooks, or choose another folder"
            )
    return {key: value for key, value in metrics.items() if key != "failed"} | {"seconds": seconds}


def _begin(out: Path, profile: str, device: str, repeat: dict[str, Any], kept: dict[str, Any]) -> None:
    """Lay out the folder and its metrics: with what is `kept` of an earlier run, or without anything of it."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    metrics = read_metrics(out)
    earlier = metrics if metrics.get("profile") == profile else {}
    expected = TYPICAL.get(profile, {}) | earlier.get("expected_seconds", {}) | earlier.get("seconds", {})
    outdated = [f"{stem}.html" for stem in metrics.get("seconds", {}) if not kept]
    for name in [*outdated, pages.PDF] if metrics else ():
        (out / name).unlink(missing_ok=True)
    fresh = {"profile": profile, "device": device, "seconds": kept.get("seconds", {}), "total_seconds": 0.0}
    versions, repeat = repeat["versions"], {key: value for key, value in repeat.items() if key != "versions"}
    write_metrics(out, kept | fresh | {"versions": versions, "repeat": repeat, "expected_seconds": expected})
    write_json(out / "config.json", {"profile": profile, "device": device} | repeat | {"versions": versions})


def _run(
    paths: list[Path], values: dict[Path, dict[str, Any]], out: Path, limit: float, private: dict[str, str]
) -> Path:
    every = sorted(paths[0].parent.glob("*.ipynb"))
    chapters = [(path.stem, title(nbformat.read(path, as_version=4)) or path.stem) for path in every]
    progress = Progress([path.stem for path in paths], read_metrics(out)["expected_seconds"], sys.stderr)
    executed = {
        path.stem: Chapter(out / path.name, path.parent, private, out / "figures")
        for path in every
        if path not in paths and (out / path.name).exists() and path.stem in read_metrics(out)["seconds"]
    }
    for path in paths:
        stopped = ""
        started, began = time.time(), time.monotonic()
        shutil.copy(path, out / path.name)  # what there is to show where not even a kernel starts
        try:
            _execute(path, out / path.name, values[path], progress, limit)
        except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
            stopped = without(f"{path.name} stopped in {progress.where}: {_reason(error, limit)}.", private)
        except RuntimeError as error:  # of jupyter_client: the kernel did not answer
            stopped = without(f"{path.name} did not start: {error}.", private)
        progress.finish(stopped)
        if "LAB5_FIGURES_DIR" not in _environment(out):
            copy_figures(path.stem, out / "figures", since=started)
        metrics = read_metrics(out)
        metrics["seconds"].pop(path.stem, None)
        if stopped:
            metrics["failed"] = {"notebook": path.stem, "message": stopped}
        else:
            metrics["seconds"][path.stem] = round(time.monotonic() - began, 1)
        metrics["total_seconds"] = round(sum(metrics["seconds"].values()), 1)
        write_metrics(out, metrics)
        chapter = Chapter(out / path.name, path.parent, private, out / "figures")
        there = [named for named in chapters if named[0] in (*executed, path.stem)]
        for stem, told in (executed | {path.stem: chapter}).items():
            pages.write_chapter(out / f"{stem}.html", told, there, stopped if stem == path.stem else "")
        if not stopped:
            executed[path.stem] = chapter
        in_order = {stem: executed[stem] for stem, _ in chapters if stem in executed}
        index = pages.write_index(out, metrics, chapters, in_order)
        if stopped:
            raise ReportError(f"{stopped} The page up to there is {out / f'{path.stem}.html'}")
    return index


def _print(index: Path) -> None:
    pdf = index.with_name(pages.PDF)
    if why_not := print_pdf(index, pdf):
        print(why_not, file=sys.stderr)
    else:
        pages.add_pdf(index)
        print(f"{pdf} is the same on paper.", file=sys.stderr)


def _select(notebooks: Path, only: Sequence[str] | None) -> list[Path]:
    paths = sorted(notebooks.glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no notebooks (*.ipynb) in {notebooks.resolve()}")
    for start in only or ():
        if not any(path.stem.startswith(start) for path in paths):
            raise ValueError(f"no notebook's name begins with {start!r}; there are {[path.stem for path in paths]}")
    return [path for path in paths if not only or path.stem.startswith(tuple(only))]


def _share_out(values: dict[str, str], paths: list[Path], every: list[Path]) -> dict[Path, dict[str, Any]]:
    """To each notebook the values that its parameters cell declares, as the type of the default there.

    Names that none of `every` notebook declares are refused; those of one that is not run go nowhere.
    """
    declared = {path: _defaults(path) for path in paths}
    known = {name for path in every for name in _defaults(path)}
    for name in values.keys() - known - {"profile"}:
        raise ValueError(f"no notebook declares a parameter {name!r}; declared are {sorted(known)}")
    return {
        path: {name: _typed(name, text, defaults[name]) for name, text in values.items() if name in defaults}
        for path, defaults in declared.items()
    }


def _defaults(path: Path) -> dict[str, Any]:
    """The assignments of the cell tagged `parameters`."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            lines = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
            return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    return {}


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return str(text)
    try:
        value = ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"parameter {name!r} is of type {type(default).__name__}, like {default!r}; got {text!r}")
    return value


def _own_kernel(environment: dict[str, str]) -> type[AsyncKernelManager]:
    """A kernel of this very interpreter, whatever kernelspec is called python3 on this machine."""
    spec = KernelSpec(**get_kernel_dict(), env=environment)  # its command is sys.executable -m ipykernel_launcher

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **settings):
            super().__init__(transport_encryption="auto", **settings)  # else each kernel prints a warning

        async def _async_interrupt_kernel(self) -> None:
            """A shutdown begins with an interrupt, which an idle kernel reports as an error of its own: not then."""
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

    return OwnKernel


def _environment(out: Path) -> dict[str, str]:
    """What notebooks are told of the run. One in a folder of its own keeps its figures to itself."""
    told = {"LAB5_REPORT_DIR": str(out), "LAB5_HEADLESS": "1"}
    if out == ROOT / "report" or "LAB5_FIGURES_DIR" in os.environ:
        return told
    return told | {"LAB5_FIGURES_DIR": str(out / "figures")}


def _execute(path: Path, executed: Path, parameters: dict[str, Any], progress: Progress, limit: float) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source]
    progress.start(path.stem, len(cells) + bool(parameters))  # papermill adds a cell with the parameters
    papermill.execute_notebook(
        path,
        executed,
        parameters,
        kernel_name="python3",
        language="python",
        cwd=ROOT,  # `import lab5` works, and paths are as on the command line
        progress_bar=False,
        stderr_file=progress,
        execution_timeout=limit,
        kernel_manager_class=_own_kernel(_environment(executed.parent)),
        on_cell_execute=progress.cell,
    )


def _reason(error: Exception, limit: float) -> str:
    if isinstance(error, PapermillExecutionError):
        first, *_ = error.evalue.strip().splitlines() or [""]
        return f"{error.ename}: {first}".rstrip(": .")
    if isinstance(error, CellTimeoutError):
        return f"the cell ran longer than {limit:g} s"
    return "the kernel died, perhaps for lack of memory"
