"""What a benchmark says: rows of a table, on the screen and in a file."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import Compared
from lab5.runtime.files import replacing


class Parity(NamedTuple):
    """That both sides compute the same: how far apart they are, and how far they may be."""

    what: str
    apart: float
    limit: float

    @property
    def holds(self) -> bool:
        return bool(self.apart <= self.limit)


class Ratio(NamedTuple):
    """A comparison: seconds per unit of both sides, and how many times as fast lab5 is."""

    what: str
    unit: str
    times: Compared
    parity: Parity
    goal: float | None = None  # the ratio that it should reach
    flops: float | None = None  # of lab5 per unit
    share_of_peak: float | None = None  # of lab5's arithmetic in the product of two matrices timed in the same run
    ceiling: float | None = None  # the ratio that lab5 would have at that peak
    memory: tuple[int | None, int | None] = (None, None)  # bytes at the most, of either side
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.parity.holds and (self.goal is None or self.times.ratio >= self.goal)


class Figure(NamedTuple):
    """One absolute number."""

    what: str
    value: float | None
    unit: str
    note: str = ""


def compared(
    what: str, unit: str, times: Compared, parity: Parity, goal: float | None = None, *,
    flops: float | None = None, peak: float | None = None, memory=(None, None), note: str = "",
) -> Ratio:  # fmt: skip
    """A `Ratio` with what follows from the arithmetic of lab5's side and the peak of the machine."""
    share = flops / times.lab5 / peak if flops and peak else None
    ceiling = times.naive * peak / flops if flops and peak else None
    return Ratio(what, unit, times, parity, goal, flops, share, ceiling, memory, note)


# --- on the screen --------------------------------------------------------------------------------------------------


def describe(row: Ratio | Figure) -> str:
    """A row as lines of text."""
    if isinstance(row, Figure):
        value = "not measured" if row.value is None else f"{row.value:.4g} {row.unit}"
        return f"    {row.what}: {value}{row.note and f' ({row.note})'}"
    times = row.times
    goal = "" if row.goal is None else f"; goal {row.goal:g}x {'reached' if times.ratio >= row.goal else 'not reached'}"
    lines = [
        f"{row.what}: {times.ratio:.2f}x ({times.lowest:.2f} to {times.highest:.2f} in {times.rounds} rounds){goal}",
        f"    {times.naive:.4g} -> {times.lab5:.4g} s per {row.unit}",
        f"    parity {'holds' if row.parity.holds else 'FAILS'}: "
        f"{row.parity.what} {row.parity.apart:.2g}, at most {row.parity.limit:g}",
    ]
    if row.share_of_peak is not None:
        at_peak = f"at all of it the ratio would be {row.ceiling:.2f}x"
        lines.append(f"    {row.share_of_peak:.0%} of the measured peak; {at_peak}")
    if None not in row.memory:
        lines.append(f"    memory at the most: {' -> '.join(f'{used / 2**30:.2f} GB' for used in row.memory)}")
    return "\n".join(lines + [f"    {row.note}"] * bool(row.note))


# --- in a file ------------------------------------------------------------------------------------------------------


def write_json(path: Path, about: dict[str, Any], sections: dict[str, list[Ratio | Figure]]) -> None:
    """The whole file or none: a bench that stops on the way leaves the last one as it was.

    Sections in the file that were not measured now stay, if plan, device, threads and torch are the same.
    """
    rows = {name: [_plain(row) for row in section] for name, section in sections.items()}
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if earlier and all(earlier.get(key) == about.get(key) for key in ("plan", "device", "threads", "torch")):
        rows = earlier["sections"] | rows
        about = earlier | about | {"seconds": earlier["seconds"] | about["seconds"]}
    with replacing(path) as file:
        file.write((json.dumps(about | {"sections": rows}, indent=1) + "\n").encode())


def _plain(row: Ratio | Figure) -> dict[str, Any]:
    plain = row._asdict()
    if isinstance(row, Ratio):
        plain |= {"times": row.times._asdict(), "parity": row.parity._asdict() | {"holds": row.parity.holds}}
        plain["holds"] = row.holds
    return {key: _rounded(value) for key, value in plain.items()}


def _rounded(value: Any) -> Any:
    """Five digits are more than a stopwatch has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value
