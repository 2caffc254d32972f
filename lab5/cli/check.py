"""The command check: which of the eighteen pitfalls solutions of the lab have."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lab5.cli.tables import print_table
from lab5.pitfalls.solutions import (
    OTHERS,
    PITFALL_NUMBERS,
    Result,
    Solution,
    as_json,
    check_solutions,
    found_solutions,
    verdicts_by_pitfall,
)  # fmt: skip
from lab5.pitfalls.verdicts import Verdict
from lab5.runtime.files import write

SIGNS = {Verdict.FAILS: "x", Verdict.PASSES: "ok", Verdict.CHOICE: "ok", Verdict.NOT_TESTED: "?"}


def check(paths: Sequence[Path], *, run: bool, seconds: float, jobs: int, out: Path | None, page: Path | None) -> None:
    """Find the solutions; with `run` run each and print its rows, or a matrix of several. `out` is JSON, `page` HTML.

    Raises ValueError for a path that is neither a folder nor a zip, and for limits below 1.
    """
    if seconds < 10 or jobs < 1:
        raise ValueError(f"--seconds must be at least 10 and --jobs at least 1, not {seconds:g} and {jobs}")
    for file in (out, page):
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"there is no folder {file.parent} for {file.name}")
    with found_solutions(paths) as solutions:
        if not run:
            _announce(solutions, seconds)
            return
        results = []
        for result in check_solutions(solutions, seconds, jobs):
            results.append(result)
            if len(solutions) > 1:
                print(f"{len(results)} of {len(solutions)}: {_in_a_line(result)}", file=sys.stderr, flush=True)
    print(results[0]) if len(results) == 1 else _print_matrix(results)
    if out is not None:
        write(out, json.dumps(as_json(results), indent=1, ensure_ascii=False).encode())
    if page is not None:
        from lab5.report.solutions import page_of

        write(page, page_of(results).encode())


def _announce(solutions: Sequence[Solution], seconds: float) -> None:
    """What would be done."""
    for solution in solutions:
        print(f"{solution.name}: {solution.reason or 'found ' + ', '.join(solution.files)}")
    print(
        "Nothing was run. With --run the code of each is executed, in a copy in a temporary folder, in a process of "
        f"its own with limits of time ({seconds:g} s), memory and file size, without your environment variables and, "
        "where the system allows it, without network and without writing elsewhere. docs/command-line.md says what "
        "that does not promise."
    )


def _in_a_line(result: Result) -> str:
    return f"{result.solution.name}: {result.reason or result.checks.summary} ({result.seconds:.0f} s)"


def _print_matrix(results: Sequence[Result]) -> None:
    """A row for each solution, a column for each pitfall, and how many have it."""
    rows, counts = [], dict.fromkeys([*PITFALL_NUMBERS, OTHERS], 0)
    for result in results:
        verdicts = verdicts_by_pitfall(result)
        rows.append({"solution": result.solution.name} | {str(n): SIGNS[verdict] for n, verdict in verdicts.items()})
        for number, verdict in verdicts.items():
            counts[number] += verdict is Verdict.FAILS
    print_table([*rows, {"solution": "have it"} | {str(number): str(count) for number, count in counts.items()}])
    print("x has the pitfall, ok has not, ? was not tested; numbers as in notebook 05_pitfalls")
    for result in results:
        if result.reason:
            print(f"{result.solution.name}: {result.reason}")
