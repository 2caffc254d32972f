"""One report for every point of a grid of parameters: runs in folders of their own, several at once, and an overview.

Each run is `python -m lab5 report` as it would be typed; its results are read from its `metrics.json`.
"""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from lab5.profiles import configure
from lab5.report.pages import COVER, duration, number, picture, write_page
from lab5.report.provenance import without_folder
from lab5.report.run import make_plan
from lab5.runtime.folders import ROOT
from lab5.show.notebook import OURS, read_metrics

TRAINED_BY = ("seed", "dataset")  # runs that agree in these share trained networks: only one of them may train
NUMBERS = {"score": "score", "hole_psnr_db": "hole PSNR, dB", "attribute_accuracy": "attributes read right"}

Codes = dict[Path, int]  # of the runs that have ended, by folder


class Run(NamedTuple):
    """One point of the grid, and where it is run."""

    parameters: dict[str, str]
    folder: Path

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {without_folder(value)}" for name, value in self.parameters.items())


def read_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """`["seed=0,1,2", "schedule=cosine,linear"]` as lists by name. Raises ValueError for anything else."""
    grid: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        listed = [value.strip() for value in values.split(",")]
        if not name or not equals or "" in listed:
            raise ValueError(f"--grid takes NAME=VALUE,VALUE such as seed=0,1,2, not {word!r}")
        if name in grid or len(set(listed)) < len(listed):
            raise ValueError(f"--grid names {name}{'' if name in grid else ' = ' + values} twice")
        grid[name] = listed
    return grid


def points(grid: dict[str, list[str]], out: Path) -> list[Run]:
    """Every combination, each with a folder named after it: `out/seed-0_schedule-linear`."""
    runs = []
    for values in itertools.product(*grid.values()):
        parameters = dict(zip(grid, values, strict=True))
        name = "_".join(f"{key}-{without_folder(value)}" for key, value in parameters.items())
        runs.append(Run(parameters, out / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)))
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError(f"--grid has values whose folders in {out} would have the same name")
    return runs


def run_sweep(
    profile: str, grid: dict[str, list[str]], *, out: Path, only: Sequence[str] | None = None,
    parameters: dict[str, str] | None = None, jobs: int = 0,
) -> tuple[Path, list[str]]:  # fmt: skip
    """Run a report for every point of `grid`, beside the fixed `parameters`; return the overview and what failed.

    `jobs` runs go on at once, 0 = one for each two cores, and one alone on a GPU. Runs that train the same networks
    wait for each other. One that fails leaves the others alone, and is reported in a sentence.
    """
    config, fixed, out = configure(profile), parameters or {}, Path(out).resolve()
    if twice := sorted(fixed.keys() & grid.keys()):
        raise ValueError(f"parameter {twice[0]!r} is given twice, by -p and by --grid: give one of them")
    if jobs < 0:
        raise ValueError(f"--jobs must be at least 0, not {jobs}")
    runs = points(grid, out)
    chains: dict[tuple, list[Run]] = {}
    for run in runs:
        make_plan(config.profile, fixed | run.parameters, only=only)  # a mistake is refused before anything runs
        chains.setdefault(tuple(run.parameters.get(name) for name in TRAINED_BY), []).append(run)
    cores = os.cpu_count() or 1
    workers = min(jobs or (1 if config.device.startswith("cuda") else max(1, cores // 2)), len(chains))
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(runs)} runs, {workers} at once, in {out}", file=sys.stderr)

    codes: Codes = {}
    writing, stopping = threading.Lock(), threading.Event()

    def run_chain(chain: list[Run]) -> None:
        for run in chain:
            words = [word for name, value in (fixed | run.parameters).items() for word in ("-p", name, value)]
            words += ["--only", *only] if only else []
            code = _report(run.folder, ["--profile", config.profile, *words], max(1, cores // workers), stopping)
            with writing:
                codes[run.folder] = code
                print(f"{run.name}: {_outcome(run, codes)}", file=sys.stderr)
                write_overview(out, runs, codes)
            if stopping.is_set():
                return

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(run_chain, chain) for chain in chains.values()]:
                future.result()
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    failed = [f"{run.name}: {_outcome(run, codes)}" for run in runs if codes[run.folder] != 0]
    return write_overview(out, runs, codes), failed


def _report(folder: Path, words: list[str], threads: int, stopping: threading.Event) -> int:
    """One report as a command of its own, and its exit code; what it prints goes to `report.log` in its folder.

    Its process is in a group of its own too: Ctrl-C is for the sweep, which ends its runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lab5", "report", "--out", str(folder), *words]
    with (folder / "report.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, process_group=0 if os.name == "posix" else None,
        )  # fmt: skip
    while process.poll() is None:
        if stopping.wait(0.2):
            process.terminate()  # a training keeps its state first
            process.wait()
    return process.returncode


def _outcome(run: Run, codes: Codes) -> str:
    """What became of a run, by its exit code: what lies in its folder may be an earlier one's."""
    if run.folder not in codes:
        return "not yet"
    metrics = read_metrics(run.folder)
    if codes[run.folder] == 0:
        return f"done after {duration(metrics['total_seconds'])}"
    if codes[run.folder] == 1 and "failed" in metrics:
        return metrics["failed"]["message"]
    return f"stopped, {run.folder.name}/report.log says why"


# --- the overview -------------------------------------------------------------------------------------------------


def write_overview(out: Path, runs: list[Run], codes: Codes) -> Path:
    """Write `out/sweep.html`: a table with a row per run, means over seeds, and the runs' pictures."""
    done = [run for run in runs if codes.get(run.folder) == 0]
    numbers = {run.folder: _numbers(run) for run in done}
    columns = {key: name for key, name in NUMBERS.items() if any(key in row for row in numbers.values())}
    rows = [
        {
            "parameters": map(without_folder, run.parameters.values()),
            "numbers": numbers.get(run.folder, {}),
            "outcome": _outcome(run, codes),
            "folder": run.folder.name,
            "has_page": run.folder in codes and (run.folder / "index.html").exists(),
        }
        for run in runs
    ]
    pictures = {run.name: picture(out, run.folder / "figures" / COVER) for run in done}
    overview = out / "sweep.html"  # beside an index.html that a report may have put there
    write_page(
        overview, "sweep.html", parameters=list(runs[0].parameters), columns=columns, rows=rows,
        caption=next((row["caption"] for row in numbers.values() if row), ""),
        over_seeds=_over_seeds(runs, numbers, columns),
        pictures={name: cover for name, cover in pictures.items() if cover},
    )  # fmt: skip
    return overview


def _numbers(run: Run) -> dict[str, Any]:
    """The numbers of the run's own filling, and in words what they are; {} where it recorded none."""
    inpainting = read_metrics(run.folder).get("inpainting", {})
    for name in OURS:
        if row := inpainting.get(name):
            score = f"score: {inpainting.get('score_name', '?')}, lower is better"
            numbers = {key: row[key] for key in NUMBERS if isinstance(row.get(key), int | float)}
            return numbers | {"caption": f"{name.replace('_', ' ')}; {score}; n = {row['n']}"}
    return {}


def _over_seeds(runs: list[Run], numbers: dict[Path, dict], columns: Iterable[str]) -> list[tuple[str, list[str], int]]:
    """(setting, mean ± SD for each column, runs) where runs differ in nothing but their seed; [] for one seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        setting = run._replace(parameters={name: v for name, v in run.parameters.items() if name != "seed"}).name
        groups.setdefault(setting or "all", []).extend([numbers[run.folder]] if numbers.get(run.folder) else [])
    if all(len(group) < 2 for group in groups.values()):
        return []
    return [
        (setting, [_mean([row[key] for row in group if key in row]) for key in columns], len(group))
        for setting, group in groups.items()
    ]


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return number(values[0] if values else None, ".3g")
    return f"{fmean(values):.3g} ± {stdev(values):.3g}"
