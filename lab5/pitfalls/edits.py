"""The eighteen mistakes as a line or two that differ from right code, tried on the reader's own function.

    mistake(5, attend, check_attention, ("softmax(dim=-1)", "softmax(dim=-2)"))

takes the source of `attend`, changes it, and lets the check say what is wrong with the result.
"""

import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from html import escape
from itertools import groupby
from typing import Any

from lab5.pitfalls.catalogue import PITFALLS, Pitfall
from lab5.pitfalls.verdicts import Checks, Verdict

INDENT = "padding:0 .5em 0 2em;text-indent:-1.5em"  # what does not fit into a line of code goes on under it


@dataclass(frozen=True)
class Mistake:
    """One pitfall: the lines that make it, what its check says of them, and what it does. Shown in a notebook."""

    name: str  # in PITFALLS
    removed: tuple[str, ...]  # lines of the right code
    added: tuple[str, ...]  # in their place
    finding: str  # what its check says; nothing where it is silent

    @property
    def told(self) -> bool:
        return bool(self.finding)

    def __repr__(self) -> str:
        return repr(Mistakes((self,)))

    def _repr_html_(self) -> str:
        return Mistakes((self,))._repr_html_()


class Mistakes(tuple[Mistake, ...]):
    """Several, shown one below the other; forms of one pitfall stand together, with its title and its effect once."""

    def __repr__(self) -> str:
        lines = []
        for pitfall, forms in self._grouped():
            lines.append(f"{pitfall.number}. {pitfall.title} ({pitfall.source})")
            for form in forms:
                lines += [f"  − {line}" for line in form.removed] + [f"  + {line}" for line in form.added]
                lines.append(f"  its check: {form.finding or 'says nothing'}")
            lines.append(f"  what it does: {pitfall.effect()}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        html = ""
        for pitfall, forms in self._grouped():
            title, source = escape(pitfall.title), escape(pitfall.source)
            html += f"<p style='margin:1.6em 0 0'><strong>{pitfall.number}. {title}</strong> ({source})</p>"
            for form in forms:
                sides = (("−", "#d55e0026", form.removed), ("+", "#0072b226", form.added))
                code = "".join(
                    f"<div style='background:{colour};{INDENT}'>{sign} {escape(line)}</div>"
                    for sign, colour, lines in sides for line in lines
                )  # fmt: skip
                html += f"<pre style='white-space:pre-wrap;margin:.4em 0'>{code}</pre>"
                html += f"<p style='margin:0'>Its check: {escape(form.finding or 'says nothing')}</p>"
            html += f"<p style='margin:.4em 0 0'>What it does: {escape(pitfall.effect())}</p>"
        return html

    def _grouped(self) -> list[tuple[Pitfall, list[Mistake]]]:
        return [(PITFALLS[name], list(forms)) for name, forms in groupby(self, key=lambda mistake: mistake.name)]


def mistake(
    number: int, function: Callable[..., Any], check: Callable[[Any], Checks | None], *changes: tuple[str, str]
) -> Mistake:
    """The pitfall of this number, made in `function` by changes of its source, each of (right, wrong).

    `check` is one of `lab5.pitfalls.checks`, or one that raises AssertionError with a sentence. Raises ValueError
    where the right text of a change is not found exactly once, and where the check has something to say of this
    pitfall before it is made.
    """
    (name,) = [name for name, pitfall in PITFALLS.items() if pitfall.number == number]
    if before := _finding(check, function, number):
        raise ValueError(f"{function.__name__} has pitfall {number} before it is made: {before}")
    wrong, removed, added = changed(function, *changes)
    return Mistake(name, removed, added, _finding(check, wrong, number))


def changed(
    function: Callable[..., Any], *changes: tuple[str, str]
) -> tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]:
    """The function with other text in its source, the lines that are gone and those in their place."""
    right = wrong = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        if (times := wrong.count(old)) != 1:
            raise ValueError(f"a change needs its text once in {function.__name__}, found {times} times: {old!r}")
        wrong = wrong.replace(old, new)
    file = f"<{function.__name__}, changed: {abs(hash(wrong))}>"
    linecache.cache[file] = (len(wrong), None, wrong.splitlines(keepends=True), file)  # for tracebacks
    names = dict(function.__globals__)
    exec(compile(wrong, file, "exec"), names)
    removed, added = [], []
    one, other = right.splitlines(), wrong.splitlines()
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind != "equal":
            removed += one[a:b]
            added += other[c:d]
    indent = min(len(line) - len(line.lstrip()) for line in removed + added)
    return names[function.__name__], tuple(x[indent:] for x in removed), tuple(x[indent:] for x in added)


@lru_cache(maxsize=8)  # right code is checked once for all its mistakes
def _answer(check: Callable[[Any], Checks | None], function: Callable[..., Any]) -> Checks | str:
    try:
        return check(function) or ""
    except AssertionError as error:
        return str(error)


def _finding(check: Callable[[Any], Checks | None], function: Callable[..., Any], number: int) -> str:
    """What a check has to say about this pitfall: a failure, or the choice that it may be."""
    answer = _answer(check, function)
    if isinstance(answer, str):
        return answer
    rows = [row for row in answer if row.pitfall == number and row.verdict in (Verdict.FAILS, Verdict.CHOICE)]
    verdicts = {Verdict.FAILS: "fails", Verdict.CHOICE: "is a choice"}
    return " ".join(f"“{row.check}” {verdicts[row.verdict]}: {row.evidence}. {row.meaning}" for row in rows)
