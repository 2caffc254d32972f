"""Figures of the study: what a setting is worth, and how sure that is.

Plain data to one Figure each, in the style of `lab5.show.figures`: names stand at the lines that they belong to, and what
a colour says a shape or a word says too. It knows no model and computes no score.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lab5.show.figures import CYCLE, INK, PALE, labelled_lines, name_ends, spoken, styled
from lab5.study.findings import Predictions, losses_along
from lab5.study.run import Row

PERCENT = "{x:.0%}"


# --- what a model says and what is so -------------------------------------------------------------------------------


def reliability(bins: dict[str, Sequence[Sequence[float]]], *, caption: str = "") -> Figure:
    """How often the model is right when it is so sure: of each bin, which ends in mean confidence, accuracy and n.

    A line per name. The area of a dot is its share of the tokens. The expected calibration error stands at each name:
    the mean gap between confidence and accuracy over all tokens (Guo et al. 2017, section 2). Empty bins are left out;
    raises ValueError where all are.
    """
    with styled(5.6, 4.0, caption) as figure:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=PALE, lw=1, ls="--")
        ends = [(1.0, 1.0, "as sure as right", PALE)]
        for colour, (name, found) in zip(cycle(CYCLE), bins.items(), strict=False):
            confidence, accuracy, n = np.array([one[-3:] for one in found if one[-1]], dtype=float).reshape(-1, 3).T
            if not n.size:
                raise ValueError(f"{name} must have a bin with a token in it, but all its {len(found)} bins are empty.")
            error = float(np.average(np.abs(accuracy - confidence), weights=n))
            axis.vlines(confidence, confidence, accuracy, color=colour, alpha=0.35, lw=1)
            axis.plot(confidence, accuracy, color=colour, lw=1.5)
            axis.scatter(confidence, accuracy, s=12 + 400 * n / n.sum(), color=colour, edgecolor="white", lw=0.6,
                         zorder=3)  # fmt: skip
            ends.append((confidence[-1], accuracy[-1], f"{spoken(name)}\nerror {error:.1%}", colour))
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Is it right as often as it is sure?",
                 xlabel="confidence: probability of the chosen code", ylabel="share of right codes")  # fmt: skip
        axis.xaxis.set_major_formatter(PERCENT)
        axis.yaxis.set_major_formatter(PERCENT)
        name_ends(axis, ends)
    return figure


def leak_map(
    by_ring: dict[str, Sequence[float]], heat: Float[Tensor, "16 16"], *, title: str = "", caption: str = ""
) -> Figure:
    """Known tokens that change with what stands in the hole: their share by distance to it, a line per fill, and on
    the grid of tokens. Ring 1 touches the hole. `heat` is not-a-number where no token is known, and grey there."""
    with styled(8.0, 3.2, caption) as figure:
        rings, grid = figure.subplots(1, 2, width_ratios=(1.25, 1))
        reach = max(map(len, by_ring.values()))
        labelled_lines(rings, range(1, reach + 1), by_ring, named=False)
        rings.set(title="Known tokens that change", xlabel="distance to the hole, in tokens", ylim=(0, None))
        rings.set(xlim=(1 - 0.32 * reach, reach + 0.2), xticks=range(1, reach + 1))
        starts = [(1, line.get_ydata()[0], line.get_label(), line.get_color()) for line in rings.lines]
        name_ends(rings, starts, at=0.2)
        rings.yaxis.set_major_formatter(PERCENT)
        grid.set_facecolor("#9a9a9a")
        drawn = grid.imshow(heat.numpy(), cmap="cividis", vmin=0, interpolation="nearest")
        grid.set(xticks=[], yticks=[], title=title or "Where")
        grid.spines[:].set_visible(False)
        grid.grid(visible=False)
        figure.colorbar(drawn, ax=grid, format=PERCENT, shrink=0.85).outline.set_visible(False)
    return figure


def loss_against_score(
    trainings: dict[str, Sequence[tuple[int, float, float]]], *, xlabel: str, ylabel: str, caption: str = ""
) -> Figure:
    """Checkpoints (step, loss, score) along trainings: the points of one are joined, with the step at each."""
    with styled(6.4, 3.8, caption) as figure:
        axis = figure.subplots()
        ends = []
        for colour, (name, points) in zip(cycle(CYCLE), trainings.items(), strict=False):
            _, loss, score = zip(*points, strict=True)
            axis.plot(loss, score, "o-", color=colour, ms=4.5, lw=1.3, label=spoken(name))
            for step, *place in points:
                axis.annotate(f"{step}", place, xytext=(4, 5), textcoords="offset points", fontsize=7, color=colour)
            ends.append((loss[-1], score[-1], spoken(name), colour))
        axis.invert_xaxis()  # a training goes from left to right
        axis.set(xlabel=f"{xlabel} (falling to the right)", ylabel=ylabel, title="Does a lower loss fill holes better?")
        axis.margins(0.08)
        name_ends(axis, ends)
    return figure


# --- effects with their intervals -----------------------------------------------------------------------------------

VERDICTS = {
    "artefact": ("#882255", "D"),
    "does not hold": ("#D55E00", "s"),
    "not decided": ("#777777", "|"),
    "holds": ("#0072B2", "o"),
}
"""What a verdict says -> its colour and marker; the first that fits."""
WIDTH = 70  # letters of a label in a line


def forest(
    rows: Sequence[dict[str, Any]],
    value: str,
    *,
    label: str = "label",
    group: str = "",
    limit: float | None = None,
    digits: int = 2,
    xlabel: str = "",
    sides: tuple[str, str] = ("", ""),
    title: str = "",
    caption: str = "",
) -> Figure:
    """A forest plot: under each row's label its effect around zero, with interval, numbers and verdict.

    `rows` are those of a table, with the columns `value`, `<value>_low`, `<value>_high`, `label`, and where there are
    such, `margin`, `verdict` and `group`, under whose values they stand together. A row without `value` was not
    measured. What lies within ± the margin, which is shaded, is too small to matter. `sides` say what it means to lie
    left and right of zero. Beyond `limit` an interval ends in an arrow; its numbers tell all. What has no verdict is
    black where its interval excludes zero, else grey. Raises ValueError unless some row is measured, and for an effect
    outside its interval.
    """
    measured = [row for row in rows if row.get(value) is not None]
    if not measured:
        raise ValueError(f"a forest plot needs a row with a number in {value!r}, but none of {len(rows)} rows has one.")
    for row in measured:
        low, mean, high = (row[name] for name in (f"{value}_low", value, f"{value}_high"))
        if not low <= mean <= high:
            raise ValueError(f"{row[label]!r} must lie in its interval, but {mean} is not in {low}..{high}.")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(str(row[group]) if group else "", []).append(row)
    ends = [abs(row[f"{value}_{end}"]) for row in measured for end in ("low", "high")]
    limit = limit or 1.08 * max(ends + [row.get("margin", 0.0) for row in rows])
    with styled(7.6, 1.0, caption) as figure:  # as high as the rows will need
        axis = figure.subplots()
        axis.axvline(0, color=INK, lw=1)
        place, shaded = 0.0, [(-0.5, 0.0)]  # where a margin begins, and how large it is
        for name, members in groups.items():
            if group:
                _text(axis, name, place + 0.2, 0.0, weight="bold", fontsize=10)
                place += 0.9
            for row in members:
                if (margin := row.get("margin", 0.0)) != shaded[-1][1]:
                    shaded.append((place - 0.25 if len(shaded) > 1 else -0.5, margin))
                place = _effect(axis, row, value, textwrap.wrap(row[label], WIDTH), place, limit, digits)
        figure.set_figheight(0.4 * place + 1.0)
        axis.set(xlim=(-limit, limit), ylim=(place - 0.1, -0.5), yticks=[], xlabel=xlabel)
        for (top, margin), (bottom, _) in pairwise([*shaded, (place - 0.1, 0.0)]):
            axis.fill_betweenx([top, bottom], -margin, margin, color="#ececec", lw=0, zorder=0)
        axis.set_title(title, pad=20 if any(sides) else 6)
        axis.spines["left"].set_visible(False)
        for x, side, text in ((0, "left", f"← {sides[0]}"), (1, "right", f"{sides[1]} →")) if any(sides) else ():
            axis.annotate(text, (x, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", ha=side,
                          va="bottom", fontsize=8, color=PALE)  # fmt: skip
    return figure


def _effect(
    axis: Axes, row: dict[str, Any], value: str, lines: Sequence[str], place: float, limit: float, digits: int
) -> float:
    """One row from `place` on downwards; where the next begins."""
    verdict, mean = row.get("verdict", ""), row.get(value)
    clear = mean is None or row[f"{value}_low"] > 0 or row[f"{value}_high"] < 0
    plain = (INK if clear else "#777777", "o")
    colour, marker = next((style for name, style in VERDICTS.items() if name in verdict), plain)
    for i, line in enumerate(lines):
        _text(axis, line, place + i / 2, 0.0)
    _text(axis, textwrap.fill(verdict, 22), place + len(lines) / 4, 1.02, color=colour, weight="bold")
    place += len(lines) / 2
    if mean is None:
        return place + 0.2
    low, high = row[f"{value}_low"], row[f"{value}_high"]
    left, right = (min(max(end, -limit), limit) for end in (low, high))
    axis.plot([left, right], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
    for cut, end, arrow in ((low < -limit, -limit, "<"), (high > limit, limit, ">")):
        if cut:
            axis.plot(end, place, arrow, color=colour, ms=7, clip_on=False)
    if abs(mean) <= limit:
        axis.plot(mean, place, marker, color=colour, ms=10 if marker == "|" else 7, mew=2 if marker == "|" else 0)
    numbers = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]".replace("-", "−")
    if high < 0.4 * limit:  # then there is room for them after the interval, else before it, else below
        x, away, side = right, (9, 0), "left"
    else:
        x, away, side = (left, (-9, 0), "right") if low > -0.4 * limit else ((left + right) / 2, (0, -10), "center")
    axis.annotate(numbers, (x, place), xytext=away, textcoords="offset points", va="center", ha=side, fontsize=8,
                  color=colour)  # fmt: skip
    return place + (0.9 if side == "center" else 0.6)


def _text(axis: Axes, text: str, place: float, x: float, **style: Any) -> None:
    """At a share x of the axes' width, over whatever line runs there."""
    axis.text(
        x, place, text, transform=axis.get_yaxis_transform(),
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, **{"fontsize": 8.5, "va": "center"} | style,
    )  # fmt: skip

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
    forest: Sequence[Row], claims: Sequence[Row], networks: Sequence[Row], made: str
) -> dict[str, Figure]:
    """The claims, the effects in groups, and KID against loss; only what has been measured.

    The captions are `made`, by what weights and such, behind the images and seeds of the rows that are shown.
    """
    figures = {}
    if measured := [row for row in claims if "kid" in row]:
        figures["claims"] = claims_figure(claims, _of(measured, made))
    for name, questions in TOGETHER.items():
        if shown := [row for row in forest if row["question"] in questions]:
            figures[name] = effects_figure(shown, _of(shown, made), title=f"What it is worth: {name}")
    if losses := losses_along(networks):
        late = [row for row in forest if row["question"] == "late in a training"]
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
