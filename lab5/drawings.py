"""The findings of a study as figures, for the notebook and the command line alike.

It computes nothing: rows of `lab5.findings` go into the figures of `lab5.studyplots`.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    effects: Sequence[Row], claims: Sequence[Row], networks: Sequence[Row], caption: str
) -> dict[str, Figure]:
    """The claims, the effects in groups, and KID against loss; only what has been measured."""
    figures = {}
    if any("kid" in row for row in claims):
        figures["claims"] = claims_figure(claims, caption)
    for name, questions in TOGETHER.items():
        if any(row["question"] in questions for row in effects):
            figures[name] = effects_figure(effects, caption, questions, f"What it is worth: {name}")
    if losses := losses_along(networks):
        figures["loss"] = loss_against_score(
            losses, xlabel="validation loss, nats per masked token", ylabel="KID", caption=caption
        )
    return figures


def claims_figure(rows: Sequence[Row], caption: str) -> Figure:
    """`claim_rows`, but for claims that have not been measured."""
    measured = [row for row in rows if row.get("kid") is not None]
    return forest(
        measured, "kid", label="claim", margin=measured[0]["margin"], title="What the reports claim", caption=caption,
        **AXIS,
    )  # fmt: skip


def effects_figure(
    rows: Sequence[Row], caption: str, questions: Iterable[str] = (), title: str = "What it is worth"
) -> Figure:
    """`effect_rows` that answer these questions, or all of them; schedules of single recipes are left to the table."""
    chosen = set(questions) or {row["question"] for row in rows}
    shown = [row for row in rows if row["question"] in chosen and "recipe" not in row["comparison"]]
    return forest(
        shown, "kid", label="comparison", group="question", margin=shown[0]["margin"], title=title, caption=caption,
        **AXIS,
    )  # fmt: skip


def calibration_figure(told: Mapping[str, Predictions], caption: str) -> Figure:
    """How often each network is right when it is so sure."""
    bins = {name: [(b.confidence, b.accuracy, b.n) for b in one.bins] for name, one in told.items()}
    return reliability(bins, caption=caption)


def save_figure(figure: Figure, path: Path) -> None:
    """As `path`.png and .svg; the same data give the same bytes."""
    figure.savefig(path.with_name(f"{path.name}.png"), dpi=110, bbox_inches="tight")
    with rc_context({"svg.hashsalt": "lab5"}):
        figure.savefig(path.with_name(f"{path.name}.svg"), bbox_inches="tight", metadata={"Date": None})
