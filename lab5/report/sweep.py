"""One report for every point of a grid of parameters: runs in folders of their own, several at once, and an overview.

It does not know what a parameter does: each run is `python -m lab5 report` as it would be typed, and what it found is
read from its `metrics.json`.
"""

import itertools
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from lab5.config import ROOT
from lab5.profiles import configure
from lab5.report.pages import COVER, document, figure
from lab5.report.progress import duration
from lab5.report.provenance import without_folder
from lab5.report.run import plan
from lab5.show.notebook import read_metrics

TRAINED_BY = ("seed", "dataset")  # runs that agree in these share trained networks: only one of them may train
NUMBERS = {"score": "score", "hole_psnr_db": "hole PSNR, dB", "attribute_accuracy": "attributes read right"}
ROWS = ("pretrained", "trained_from_scratch")  # of a run's results, the first that it has is compared
STOPPED = 1  # the exit code of a report of which a notebook failed

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
    found = []
    for values in itertools.product(*grid.values()):
        parameters = dict(zip(grid, values, strict=True))
        name = "_".join(f"{key}-{without_folder(value)}" for key, value in parameters.items())
        found.append(Run(parameters, out / "".join(c if c.isalnum() or c in "-_." else "-" for c in name)))
    if len({run.folder for run in found}) < len(found):
        raise ValueError(f"--grid has values whose folders in {out} would have the same name")
    return found


def run_sweep(
    profile: str,
    grid: dict[str, list[str]],
    *,
    out: Path,
    only: Sequence[str] | None = None,
    parameters: dict[str, str] | None = None,
    jobs: int = 0,
) -> tuple[Path, list[str]]:
    """Run a report for every point of `grid`, beside the fixed `parameters`; return the overview and what failed.

    `jobs` runs go on at once, 0 = one for each two cores, and one alone on a GPU. Runs that train the same networks
    wait for each other. One that fails leaves the others alone, and is told in a sentence.
    """
    config, fixed, out = configure(profile), parameters or {}, Path(out).resolve()
    if twice := sorted(fixed.keys() & grid.keys()):
        raise ValueError(f"parameter {twice[0]!r} is given twice, by -p and by --grid: give one of them")
    if jobs < 0:
        raise ValueError(f"--jobs must be at least 0, not {jobs}")
    runs = points(grid, out)
    for run in runs:
        plan(config.profile, fixed | run.parameters, only=only)  # what is wrong is refused before anything runs
    cores = os.cpu_count() or 1
    chains: dict[tuple, list[Run]] = {}
    for run in runs:
        chains.setdefault(tuple(run.parameters.get(name) for name in TRAINED_BY), []).append(run)
    workers = min(jobs or (1 if config.device.startswith("cuda") else max(1, cores // 2)), len(chains))
    out.mkdir(parents=True, exist_ok=True)
    print(f"{len(runs)} runs, {workers} at once, in {out}", file=sys.stderr)

    codes: Codes = {}
    writing, stopping = threading.Lock(), threading.Event()

    def follow(chain: list[Run]) -> None:
        for run in chain:
            code = _follow(_start(run, config.profile, fixed, only, max(1, cores // workers)), stopping)
            with writing:
                codes[run.folder] = code
                print(f"{run.name}: {_told(run, codes)}", file=sys.stderr)
                write_overview(out, runs, codes)
            if stopping.is_set():
                return

    with ThreadPoolExecutor(workers) as pool:
        following = [pool.submit(follow, chain) for chain in chains.values()]
        try:
            for chain in following:
                chain.result()
        except BaseException:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise
    failed = [f"{run.name}: {_told(run, codes)}" for run in runs if codes[run.folder] != 0]
    return write_overview(out, runs, codes), failed


def _start(
    run: Run, profile: str, fixed: dict[str, str], only: Sequence[str] | None, threads: int
) -> subprocess.Popen:
    """One report in a process of its own; what it prints goes to `report.log` in its folder.

    It is in a group of its own too: Ctrl-C is for the sweep, which ends its runs.
    """
    words = [word for name, value in (fixed | run.parameters).items() for word in ("-p", name, value)]
    words += ["--only", *only] if only else []
    command = [sys.executable, "-m", "lab5", "report", "--profile", profile, "--out", str(run.folder), *words]
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "report.log").open("w", encoding="utf-8") as log:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        own = {"process_group": 0} if os.name == "posix" else {}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **own
        )


def _follow(process: subprocess.Popen, stopping: threading.Event) -> int:
    """Its exit code, when it has ended, by itself or because it was to."""
    while (code := process.poll()) is None:
        if stopping.wait(0.2):
            process.terminate()  # a training keeps its state first
            return process.wait()
    return code


def _told(run: Run, codes: Codes) -> str:
    """What became of a run. What lies in its folder may be an earlier one's: only the exit code tells."""
    if run.folder not in codes:
        return "not yet"
    metrics = read_metrics(run.folder)
    if codes[run.folder] == 0:
        return f"done after {duration(metrics['total_seconds'])}"
    if codes[run.folder] == STOPPED and "failed" in metrics:
        return metrics["failed"]["message"]
    return f"stopped, {run.folder.name}/report.log says why"


# --- the overview -------------------------------------------------------------------------------------------------


def write_overview(out: Path, runs: list[Run], codes: Codes) -> Path:
    """Write `out/sweep.html`: a table with a row per run, means over seeds, and the runs' pictures."""
    done = [run for run in runs if codes.get(run.folder) == 0]
    rows = [(run, _numbers(run) if run in done else {}) for run in runs]
    names = [name for name in NUMBERS if any(name in numbers for _, numbers in rows)]
    keys = list(runs[0].parameters)
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in [*keys, *(NUMBERS[name] for name in names)])
    body = "".join(
        f"<tr>{_cells(without_folder(run.parameters[key]) for key in keys)}"
        f"{_cells(_number(numbers.get(name)) for name in names)}<td>{_link(run, codes)}</td></tr>"
        for run, numbers in rows
    )
    what = next((numbers["what"] for _, numbers in rows if "what" in numbers), "")
    pictures = "".join(
        f"<h3>{escape(run.name)}</h3>{_picture(run, out)}" for run in done if (run.folder / "figures" / COVER).exists()
    )
    content = f"""<h1 id="runs">{len(runs)} runs</h1>
<div class="scroll" tabindex="0"><table class="runs"><thead><tr>{head}<th scope="col">run</th></tr></thead>
<tbody>{body}</tbody><caption>{escape(what)}</caption></table></div>{_over_seeds(rows, names)}
{'<h2 id="pictures">Pictures</h2>' + pictures if pictures else ""}"""
    contents = '<a href="#runs">Runs</a>' + ('<a href="#pictures">Pictures</a>' if pictures else "")
    overview = out / "sweep.html"  # beside an index.html that a report may have put there
    overview.write_text(document("lab5 sweep", contents, content), encoding="utf-8")
    return overview


def _numbers(run: Run) -> dict[str, Any]:
    """The numbers of the run's own filling, and in words what they are."""
    inpainting = read_metrics(run.folder).get("inpainting", {})
    for name in ROWS:
        if name in inpainting:
            row = inpainting[name]
            score = f"score: {inpainting.get('score_name', '?')}, lower is better"
            numbers = {key: row[key] for key in NUMBERS if isinstance(row.get(key), int | float)}
            return numbers | {"what": f"{name.replace('_', ' ')}; {score}; n = {row['n']}"}
    return {}


def _over_seeds(rows: list[tuple[Run, dict[str, Any]]], names: list[str]) -> str:
    """Mean ± SD of the runs that differ in nothing but their seed; nothing where there is one seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run, numbers in rows:
        rest = ", ".join(f"{k} {without_folder(v)}" for k, v in run.parameters.items() if k != "seed")
        groups.setdefault(rest or "all", []).append(numbers)
    groups = {name: [numbers for numbers in group if numbers] for name, group in groups.items()}
    if all(len(group) < 2 for group in groups.values()):
        return ""
    body = ""
    for name, group in groups.items():
        columns = ([numbers[key] for numbers in group if key in numbers] for key in names)
        body += f"<tr><td>{escape(name)}</td>{_cells(map(_mean, columns))}<td>{len(group)}</td></tr>"
    head = "".join(f'<th scope="col">{escape(NUMBERS[name])}</th>' for name in names)
    return f"""<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">over seeds</th>{head}
<th scope="col">seeds</th></tr></thead><tbody>{body}</tbody><caption>mean ± SD over seeds</caption></table></div>"""


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return _number(values[0] if values else None)
    return f"{_number(statistics.fmean(values))} ± {_number(statistics.stdev(values))}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _cells(texts: Iterable[str]) -> str:
    return "".join(f"<td>{escape(str(text))}</td>" for text in texts)


def _link(run: Run, codes: Codes) -> str:
    told = escape(_told(run, codes))
    there = run.folder in codes and (run.folder / "index.html").exists()
    return f'<a href="{escape(run.folder.name)}/index.html">{told}</a>' if there else told


def _picture(run: Run, out: Path) -> str:
    return figure(run.folder / "figures" / COVER, caption=run.name).replace(
        'src="figures/', f'src="{escape(run.folder.relative_to(out).as_posix())}/figures/'
    )
