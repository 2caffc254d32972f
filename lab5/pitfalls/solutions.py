"""Solutions of the lab: found in folders and zips, run within a fence, and judged.

for result in check_solutions([Path("solution")]):
    print(result.checks)
"""

import ast
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lab5.pitfalls.judge import INPAINTING, LAYERS, MODEL, TRAINING, findings
from lab5.pitfalls.verdicts import Checks, Verdict
from lab5.runtime.fence import Limits, run_fenced

PARTS = (MODEL, LAYERS, TRAINING, INPAINTING)
LARGEST = 4 << 20  # bytes of a file that is copied: data and weights are not needed
COPIED = {".py", ".yml", ".yaml", ".json", ".txt", ".toml", ".cfg"}
MAX_FILES, MAX_BYTES = 20_000, 1 << 28  # of a zip, unpacked
SECONDS = 80.0


@dataclass(frozen=True)
class Solution:
    """A folder with the template's files, and the name by which it is shown."""

    name: str
    folder: Path
    reason: str = ""  # why it cannot be driven

    @property
    def files(self) -> list[str]:
        return [part for part in PARTS if (self.folder / part).exists()]


@dataclass(frozen=True)
class Result:
    """What was found out about a solution."""

    solution: Solution
    checks: Checks = Checks(())
    reason: str = ""  # why nothing was found out
    seconds: float = 0.0
    notes: tuple[str, ...] = ()  # missing packages and files, what the fence could not keep out

    def __str__(self) -> str:
        return "\n".join([self.solution.name, *self.notes, self.reason or str(self.checks)])

    def _repr_html_(self) -> str:
        return self.checks._repr_html_() if len(self.checks) else f"<p>{self.reason}</p>"


# --- finding --------------------------------------------------------------------------------------------------------


@contextmanager
def found_solutions(paths: Iterable[Path]) -> Iterator[list[Solution]]:
    """All solutions in the folders and zips, in the order of their names; zips are unpacked while it is open.

    Raises ValueError for a path that is neither.
    """
    with tempfile.TemporaryDirectory(prefix="lab5-check-") as temporary:
        solutions: list[Solution] = []
        for number, path in enumerate(map(Path, paths)):
            if not path.exists():
                raise ValueError(f"{path} does not exist")
            if not path.is_dir() and path.suffix.lower() != ".zip":
                raise ValueError(f"{path} must be a folder or a .zip with a solution of the lab, or with several")
            solutions += _within(path, Path(temporary) / str(number))
        yield _with_short_names(solutions)


def _within(path: Path, temporary: Path, name: str = "") -> list[Solution]:
    """The solutions in a folder or zip, and those in zips in it; what looks like one and is none has a reason."""
    name, folder, is_nested = name or path.name, path, bool(name)
    if not path.is_dir():
        try:
            _unpack(path, temporary)
        except (ValueError, OSError, zipfile.BadZipFile, RuntimeError) as error:
            return [Solution(name, path, f"the zip cannot be unpacked: {error}")]
        folder = temporary
    roots = sorted(model.parents[1] for model in folder.rglob(MODEL) if _visible(model, folder))
    found = {root: Solution(_joined(name, root.relative_to(folder)), root) for root in roots}

    def is_free(place: Path) -> bool:
        return not any(root in (place, *place.parents) or place in root.parents for root in roots)

    zips = [] if is_nested else sorted(file for file in folder.rglob("*.zip") if _visible(file, folder))
    for number, file in enumerate(zips):
        inner = _within(file, temporary / f"zip-{number}", _joined(name, file.relative_to(folder)))
        found |= {solution.folder: solution for solution in inner if not solution.reason or is_free(file)}
    for child in sorted(folder.iterdir()) if found and not is_nested else ():
        if child.is_dir() and _visible(child, folder) and is_free(child) and any(child.rglob("*.py")):
            found[child] = Solution(_joined(name, Path(child.name)), child, f"it has no {MODEL}")
    reason = f"it has no {MODEL}, by which a solution of the lab is known"
    return sorted(found.values(), key=lambda solution: solution.name) or [Solution(name, folder, reason)]


def _joined(name: str, rest: Path) -> str:
    return (Path(name) / rest).as_posix()


def _visible(path: Path, folder: Path) -> bool:
    """Not in a hidden folder, as .git, nor in what macOS adds to a zip."""
    return not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts)


def _with_short_names(solutions: list[Solution]) -> list[Solution]:
    """Without the folder that all of them are in, where there are several."""
    tops = {solution.name.partition("/")[0] for solution in solutions}
    if len(solutions) > 1 and len(tops) == 1 and all("/" in solution.name for solution in solutions):
        return [Solution(s.name.partition("/")[2], s.folder, s.reason) for s in solutions]
    return solutions


def _unpack(path: Path, folder: Path) -> None:
    """The text files of a zip; names that leave it are refused."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if Path(entry.filename).suffix.lower() in {*COPIED, ".zip"}]
        if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES >> 20} MB or {MAX_FILES} files")
        folder.mkdir(parents=True)
        for entry in entries:
            if not (folder / entry.filename).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"it holds the path {entry.filename!r}, which leads out of it")
            archive.extract(entry, folder)


# --- running and judging ----------------------------------------------------------------------------------------------


def check_solutions(solutions: Iterable[Solution], seconds: float = SECONDS, jobs: int = 1) -> Iterator[Result]:
    """Run each solution in a copy and a process of its own, `jobs` at once, and say what is found, in their order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda solution: _check(solution, seconds), solutions)


def check_folder(path: str | Path, seconds: float = SECONDS) -> list[Result]:
    """All solutions in a folder or zip. Their code is run: within a fence, but read docs/command-line.md first."""
    with found_solutions([Path(path)]) as solutions:
        return list(check_solutions(solutions, seconds))


def _check(solution: Solution, seconds: float) -> Result:
    if solution.reason:
        return Result(solution, reason=solution.reason)
    with tempfile.TemporaryDirectory(prefix="lab5-check-") as temporary:
        folder = Path(temporary).resolve()
        try:
            _copy(solution.folder, folder / "solution")
        except (OSError, shutil.Error) as error:
            return Result(solution, reason=f"it cannot be copied: {error}")
        facts_file = folder / "facts.json"
        words = [str(folder / "solution"), str(facts_file), str(seconds)]
        outcome = run_fenced("lab5.pitfalls.drive", words, folder, Limits(seconds=seconds + 5), threads=1)
        try:
            facts = json.loads(facts_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if not outcome.in_time:
                return Result(solution, reason="it had not ended when its time was over", seconds=outcome.seconds)
            last = (outcome.log.strip().splitlines() or ["it said nothing"])[-1]
            return Result(solution, reason=f"it could not be run: {last}", seconds=outcome.seconds)
    _say_how_it_ended(facts, outcome.in_time, outcome.code)
    lines = function_lines(solution.folder)
    try:
        rows = findings(facts, lambda file, function: lines.get((file, function), file))
    except (KeyError, TypeError, ValueError, IndexError) as error:  # facts that the solution has spoilt
        reason = f"what was observed of it cannot be read: {type(error).__name__}: {error}"
        return Result(solution, reason=reason, seconds=outcome.seconds)
    return Result(solution, Checks(rows), seconds=outcome.seconds, notes=tuple(_notes(facts)))


def _copy(source: Path, target: Path) -> None:
    """What is text and not large: no data, no weights, no results."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not _is_copied(Path(folder) / name)]

    shutil.copytree(source, target, ignore=left_out, symlinks=True)


def _is_copied(path: Path) -> bool:
    if path.is_symlink() or path.name.startswith(".") or path.name == "__pycache__":
        return False
    return path.is_dir() or (path.suffix.lower() in COPIED and path.stat().st_size <= LARGEST)


def _say_how_it_ended(facts: dict[str, Any], in_time: bool, code: int) -> None:
    """The stage in the midst of which the process ended knows nothing of it."""
    for stage in facts["stages"].values():
        if stage.get("error") == "the process ended in the midst of it":
            how = f"ended itself with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
            stage["error"] = f"the process {how}" if in_time else "it had not ended when its time was over"


def _notes(facts: dict[str, Any]) -> Iterator[str]:
    if facts.get("missing"):
        yield f"not installed, inert stand-ins in their place: {', '.join(facts['missing'])}"
    if facts.get("filled"):
        yield f"not there, the template's in their place: {', '.join(facts['filled'])}"
    if open_to := [name for name in ("network", "files") if name not in facts.get("fence", [])]:
        yield f"this system does not fence off by itself: {', '.join(open_to)}"


def function_lines(folder: Path) -> dict[tuple[str, str], str]:
    """(file, "Class.function") -> "file:line", of the template's files."""
    lines = {}
    for file in PARTS:
        try:
            tree = ast.parse((folder / file).read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for function in node.body:
                    if isinstance(function, ast.FunctionDef):
                        lines[file, f"{node.name}.{function.name}"] = f"{file}:{function.lineno}"
    return lines


# --- many at once ---------------------------------------------------------------------------------------------------

PITFALL_NUMBERS = range(1, 19)
OTHERS = "others"  # mistakes that are none of the eighteen
SEVERITY = (Verdict.FAILS, Verdict.NOT_TESTED, Verdict.CHOICE, Verdict.PASSES)


def verdicts_by_pitfall(result: Result) -> dict[int | str, Verdict]:
    """For each of the eighteen, and for all others together, the gravest verdict of the rows that tell of it."""
    rows = {number: [row for row in result.checks if row.pitfall == number] for number in (*PITFALL_NUMBERS, 0)}
    for one, other in (
        (1, 2),
        (2, 1),
    ):  # they have one symptom, and one row: what it says of the one holds of the other
        rows[one] = rows[one] or [replace(row, verdict=Verdict.PASSES) if row in result.checks.failed else row
                                  for row in rows[other]]  # fmt: skip
    rows[OTHERS] = [row for row in rows.pop(0) if row.verdict is not Verdict.NOT_TESTED]
    return {
        name: min((row.verdict for row in found), key=SEVERITY.index, default=Verdict.NOT_TESTED)
        for name, found in rows.items()
    }


def as_json(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Everything that is known, as JSON has it."""
    return [
        {
            "solution": result.solution.name, "seconds": round(result.seconds, 1), "reason": result.reason,
            "notes": list(result.notes),
            "checks": [asdict(row) | {"verdict": row.verdict.name} for row in result.checks],
        }
        for result in results
    ]  # fmt: skip
