"""What a check says: rows of verdicts with evidence, meaning and remedy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from html import escape
from typing import Any

import torch


class Verdict(Enum):
    PASSES = "passes"
    FAILS = "fails"
    CHOICE = "a choice"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Row:
    """What one check found."""

    check: str
    verdict: Verdict
    evidence: str  # in numbers: what was observed beside what was expected
    meaning: str = ""
    remedy: str = ""
    pitfall: int = 0  # its number in the catalogue; 0 for none of the eighteen


@dataclass(frozen=True)
class Checks(Sequence):
    """Rows; shown as a table in a notebook, and as text by `print`."""

    rows: tuple[Row, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict is Verdict.FAILS)

    @property
    def summary(self) -> str:
        """Which checks fail, and how many could not be tested: a solution of which little was seen is not praised."""
        untested = sum(row.verdict is Verdict.NOT_TESTED for row in self.rows)
        failed = f"fails: {', '.join(row.check for row in self.failed)}" if self.failed else "nothing fails"
        return f"{failed}; {untested} of {len(self.rows)} not tested" if untested else failed

    @property
    def ok(self) -> bool:
        """Nothing fails, and something was tested."""
        return not self.failed and any(row.verdict is Verdict.PASSES for row in self.rows)

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            lines.append(f"{row.verdict.value:<10}  {row.check}: {row.evidence}")
            lines += [f"{'':<12}{text}" for text in (row.meaning, row.remedy and f"Remedy: {row.remedy}") if text]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Three columns, so that it fits a page of any width: what was observed, and below it what it means."""
        left = "style='text-align:left;vertical-align:top;white-space:normal'"
        head = "".join(f"<th {left}>{name}</th>" for name in ("check", "verdict", "evidence, meaning, remedy"))
        body = ""
        for row in self.rows:
            verdict = f"<strong>{row.verdict.value}</strong>" if row in self.failed else row.verdict.value
            texts = (row.evidence, row.meaning, row.remedy and f"Remedy: {row.remedy}")
            cells = (escape(row.check), verdict, "<br>".join(escape(text) for text in texts if text))
            body += "<tr>" + "".join(f"<td {left}>{cell}</td>" for cell in cells) + "</tr>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def judged(check: str, good: bool, evidence: str, meaning: str, remedy: str, pitfall: int = 0) -> Row:
    """Passes or fails; only a failure needs a meaning and a remedy."""
    if good:
        return Row(check, Verdict.PASSES, evidence)
    return Row(check, Verdict.FAILS, evidence, meaning, remedy, pitfall)


def not_tested(check: str, reason: str) -> Row:
    return Row(check, Verdict.NOT_TESTED, reason)


class Unusable(ValueError):
    """An answer that no check can read: a sentence that says why."""


def raised(check: str, error: Exception) -> Row:
    if isinstance(error, Unusable):
        return not_tested(check, str(error))
    return not_tested(check, f"it raises {type(error).__name__}: {error}")


@contextmanager
def at_seed(seed: int) -> Iterator[None]:
    """Draws from torch's own stream repeat themselves, and the stream is afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
