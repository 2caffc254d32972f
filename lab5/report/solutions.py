"""The page of `python -m lab5 check`: solutions and checks as a matrix, each solution opening to its rows."""

from collections.abc import Sequence

from lab5.pitfalls.judge import CHECKS
from lab5.pitfalls.solutions import SEVERITY, Result
from lab5.pitfalls.verdicts import Verdict
from lab5.report.pages import render

SIGNS = {Verdict.FAILS: "✗", Verdict.PASSES: "✓", Verdict.CHOICE: "○", Verdict.NOT_TESTED: "·"}


def page_of(results: Sequence[Result]) -> str:
    """The page as HTML; nothing in it is loaded from elsewhere."""
    counts = {key: sum(row.key == key for result in results for row in result.checks.failed) for key in CHECKS}
    return render(
        "check.html", results=results, checks=CHECKS, counts=counts, signs=SIGNS, failed=Verdict.FAILS,
        gravest_first=lambda rows: sorted(rows, key=lambda row: SEVERITY.index(row.verdict)),
    )  # fmt: skip
