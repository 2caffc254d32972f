"""The findings of a study as figures, for the notebook and the command line alike.

It computes nothing: rows of `lab5.findings` go into the figures of `lab5.studyplots`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lab5.findings import Predictions, losses_along
from lab5.study import Row
from lab5.studyplots import effects as forest
from lab5.studyplots import loss_against_score, reliability

# Which questions stand in a figure together.
TOGETHER = {
    "schedules": ("schedule", "steps", "iterating", "sweet spot"),
    "samplers": ("codes", "order", "temperature", "choice temperature", "budget", "re-masking", "correcting rounds"),
    "surroundings": ("seen", "around the hole, best", "around the hole, lab"),
    "trainings": ("recipes", "training: mask ratio", "training: loss", "late in a training"),
}
AXIS: dict[str, Any] = {
    "xlabel": "difference of KID, first − second, with a 95 % interval",
    "sides": ("first is better", "second is better"),
    "digits": 4,
}


def study_figures(
    effects: Sequence[Row], claims: Sequence[Row], networks: Sequence[Row], made: str
) -> dict[str, Figure]:
    """The claims, the effects in groups, and KID against loss; only what has been measured.

    The captions are `made`, by what weights and such, behind the images and seeds of the rows that are shown.
    """
    figures = {}
    if measured := [row for row in claims if "kid" in row]:
        figures["claims"] = claims_figure(claims, _of(measured, made))
    for name, questions in TOGETHER.items():
        if shown := [row for row in effects if row["question"] in questions]:
            figures[name] = effects_figure(shown, _of(shown, made), title=f"What it is worth: {name}")
    if losses := losses_along(networks):
        late = [row for row in effects if row["question"] == "late in a training"]
        figures["loss"] = loss_against_score(
            losses, xlabel="validation loss, nats per masked token", ylabel="KID", caption=_of(late, made)
        )
    return figures


def _of(rows: Sequence[Row], made: str) -> str:
    """How many images and seeds are behind the rows, as in "n = 64 and 32, 5 and 3 seeds", and what else there is."""
    n, seeds = (" and ".join(map(str, sorted({row[name] for row in rows}, reverse=True))) for name in ("n", "seeds"))
    return ", ".join([f"n = {n}, {seeds} seeds"] * bool(rows) + [made])


def claims_figure(rows: Sequence[Row], caption: str) -> Figure:
    """`claim_rows`, but for claims that have not been measured."""
    measured = [row for row in rows if row.get("kid") is not None]
    return forest(measured, "kid", label="claim", title="What the reports claim", caption=caption, **AXIS)


def effects_figure(rows: Sequence[Row], caption: str, title: str = "What it is worth") -> Figure:
    """`effect_rows`; the schedules of single recipes are left to the table."""
    shown = [row for row in rows if "recipe" not in row["comparison"]]
    return forest(shown, "kid", label="comparison", group="question", title=title, caption=caption, **AXIS)


def calibration_figure(told: Mapping[str, Predictions], caption: str) -> Figure:
    """How often each network is right when it is so sure."""
    bins = {name: [(b.confidence, b.accuracy, b.n) for b in one.bins] for name, one in told.items()}
    return reliability(bins, caption=caption)


def save_figure(figure: Figure, path: Path) -> None:
    """As `path`.png and .svg; the same data give the same bytes."""
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=110, bbox_inches="tight")
    with rc_context({"svg.hashsalt": "lab5"}):
        figure.savefig(path.with_name(f"{path.name}.svg"), bbox_inches="tight", metadata={"Date": None})
