"""Run the notebooks from the first cell to the last and export them: papermill, pages, the index, a PDF."""

import ast
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from lab5.config import Config
from lab5.profiles import configure
from lab5.report import pages
from lab5.report.execute import execute
from lab5.report.pdf import print_pdf
from lab5.report.provenance import private_texts, provenance, replace_private, without_folder
from lab5.runtime.changes import changed
from lab5.runtime.files import InUseError, locked
from lab5.runtime.folders import ROOT
from lab5.show.faces import FILE
from lab5.show.notebook import copy_figures, read_metrics, write_json, write_metrics

# A cell that runs longer hangs.
CELL_SECONDS = {"smoke": 600, "quick": 3600, "cats-cpu": 4 * 3600, "gpu": 3600, "full": 48 * 3600}


class ReportError(RuntimeError):
    """The report could not be finished; the message says what stopped it, where, and what is left."""


class Plan(NamedTuple):
    """What a report runs: the profile's settings, which notebooks, and with which parameters."""

    config: Config
    defaults: dict[Path, dict[str, Any]]  # of every notebook that there is, what its parameters cell declares
    values: dict[Path, dict[str, Any]]  # of every notebook that is run, what it gets instead
    given: dict[str, Any]  # the same of all of them, but for the profile


def run_report(
    profile: str = "auto", *, notebooks: Path = ROOT / "notebooks", out: Path = ROOT / "report",
    only: Sequence[str] | None = None, parameters: dict[str, str] | None = None, pdf: bool = True,
) -> Path:  # fmt: skip
    """Execute the notebooks in the order of their names and return the path of `index.html`.

    `only` selects notebooks by how their names begin (`["03"]`) and keeps the rest of an earlier report.
    `parameters` go to the notebooks whose parameters cell declares them. With `pdf` the index is also printed to
    `report.pdf`, if a browser is found. A wrong name or value is refused with a ValueError before anything runs; a
    cell that fails or a folder that cannot be written raises ReportError.
    """
    plan = make_plan(profile, parameters or {}, only=only, notebooks=notebooks)
    private = private_texts(plan.given)
    try:
        out = Path(out).resolve()
        with locked(out):
            _begin(out, plan, _kept(out, plan) if only else {})
            index = _run(out, plan, private)
            if pdf:
                why_not = print_pdf(index, out / pages.PDF)
                print(why_not or f"{out / pages.PDF} is the same on paper.", file=sys.stderr)
                pages.write_pages(out, plan.defaults, private)  # once more, with a link to the PDF
        return index
    except InUseError as error:
        raise ReportError(str(error)) from error
    except OSError as error:
        instead = "make room there or choose another folder"
        raise ReportError(f"the report cannot be written to {out}: {error.strerror or error}; {instead}") from error


# --- what to run --------------------------------------------------------------------------------------------------


def make_plan(
    profile: str, parameters: dict[str, str], *, only: Sequence[str] | None = None, notebooks: Path = ROOT / "notebooks"
) -> Plan:
    """Raises ValueError for what cannot be run."""
    config = configure(profile)
    if "profile" in parameters:
        raise ValueError("the profile of a report is what --profile says; it is not one of its parameters")
    defaults = {path: _defaults(path) for path in sorted(Path(notebooks).glob("*.ipynb"))}
    if not defaults:
        raise FileNotFoundError(f"no notebooks (*.ipynb) in {Path(notebooks).resolve()}")
    stems = [path.stem for path in defaults]
    for start in only or ():
        if not any(stem.startswith(start) for stem in stems):
            raise ValueError(f"no notebook's name begins with {start!r}; there are {stems}")
    known = {name for declared in defaults.values() for name in declared}
    for name in parameters.keys() - known:
        raise ValueError(f"no notebook declares a parameter {name!r}; declared are {sorted(known)}")
    texts = {"profile": config.profile, **parameters}
    values = {
        path: {name: _typed(name, text, declared[name]) for name, text in texts.items() if name in declared}
        for path, declared in defaults.items()
        if not only or path.stem.startswith(tuple(only))
    }
    given = {name: value for own in values.values() for name, value in own.items() if name != "profile"}
    provenance(config.profile, given)
    return Plan(config, defaults, values, given)


def _defaults(path: Path) -> dict[str, Any]:
    """The assignments of the cell tagged `parameters`."""
    for cell in nbformat.read(path, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            lines = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
            return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    return {}


def _typed(name: str, text: str, default: Any) -> Any:
    """The text as the type of the default, read as that of a setting."""
    return getattr(changed(make_dataclass("Parameters", [name])(default), name, str(text)), name)


# --- the folder ---------------------------------------------------------------------------------------------------


def _kept(out: Path, plan: Plan) -> dict[str, Any]:
    """The metrics of the run in the folder, of which some notebooks are run again; {} where there is none.

    Raises ValueError where that run was another one: the parts would not belong together.
    """
    metrics, profile = read_metrics(out), plan.config.profile
    if not metrics:
        return {}
    before = {"profile": metrics.get("profile", profile)} | metrics.get("repeat", {}).get("parameters", {})
    now = {"profile": profile} | {name: without_folder(value) for name, value in plan.given.items()}
    repeated = [path.stem for path in plan.values]
    seconds = {stem: value for stem, value in metrics.get("seconds", {}).items() if stem not in repeated}
    defaults = {name: value for path in plan.values for name, value in plan.defaults[path].items()}
    kept = {name for path, declared in plan.defaults.items() if path.stem in seconds for name in declared}
    for name in ["profile", *sorted(kept & defaults.keys())]:
        old, new = (values.get(name, defaults.get(name)) for values in (before, now))
        if old != new:
            raise ValueError(
                f"{out} holds a run with {name} = {old!r}, of which no part can be run again with {name} = {new!r}: "
                "give the same, run all notebooks, or choose another folder"
            )
    return {key: value for key, value in metrics.items() if key != "failed"} | {"seconds": seconds}


def _begin(out: Path, plan: Plan, kept: dict[str, Any]) -> None:
    """Lay out the folder and its metrics: with what is `kept` of an earlier run, or without anything of it."""
    profile, device = plan.config.profile, plan.config.device
    repeat = provenance(profile, kept.get("repeat", {}).get("parameters", {}) | plan.given)
    facts = {"profile": profile, "device": device, "versions": repeat.pop("versions")}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    metrics = read_metrics(out)
    earlier = metrics if metrics.get("profile") == profile else {}
    expected = earlier.get("expected_seconds", {}) | earlier.get("seconds", {})
    outdated = [f"{stem}.html" for stem in metrics.get("seconds", {}) if not kept]
    stems = [path.stem for path in plan.values]
    outdated += [name for name in (FILE, *pages.FACES) if name.partition("-")[0] in stems]
    for name in [*outdated, pages.PDF] if metrics else ():
        (out / name).unlink(missing_ok=True)
    times = {"seconds": kept.get("seconds", {}), "total_seconds": 0.0, "expected_seconds": expected}
    write_metrics(out, kept | facts | times | {"repeat": repeat})
    write_json(out / "config.json", facts | repeat)


def _run(out: Path, plan: Plan, private: dict[str, str]) -> Path:
    """Run the notebooks one by one; after each all pages are written anew."""
    environment = {"LAB5_REPORT_DIR": str(out), "LAB5_HEADLESS": "1"}
    if out != ROOT / "report" and "LAB5_FIGURES_DIR" not in os.environ:
        environment["LAB5_FIGURES_DIR"] = str(out / "figures")  # a run elsewhere keeps its figures to itself
    limit = CELL_SECONDS.get(plan.config.profile, 3600)
    expected = read_metrics(out)["expected_seconds"]
    for number, path in enumerate(plan.values, start=1):
        left = [expected.get(path.stem) for path in list(plan.values)[number - 1 :]]
        about = "" if None in left else f", about {pages.duration(sum(left))} left"
        label = f"[{number}/{len(plan.values)}] {path.stem}{about}"
        started, began = time.time(), time.monotonic()
        stopped = execute(path, out, plan.values[path], environment=environment, limit=limit, label=label)
        if "LAB5_FIGURES_DIR" not in environment:
            copy_figures(path.stem, out / "figures", since=started)
        metrics = read_metrics(out)
        if stopped:
            stopped = replace_private(stopped, private)
            metrics["failed"] = {"notebook": path.stem, "message": stopped}
        else:
            metrics["seconds"][path.stem] = round(time.monotonic() - began, 1)
        metrics["total_seconds"] = round(sum(metrics["seconds"].values()), 1)
        write_metrics(out, metrics)
        index = pages.write_pages(out, plan.defaults, private)
        if stopped:
            raise ReportError(f"{stopped} The page up to there is {out / path.stem}.html")
    return index
