"""Figures of the study: what a setting is worth, and how sure that is.

Names stand at the lines that they belong to, and what a colour says a shape or a word says too.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lab5.show.figures import CYCLE, INK, PALE, labelled_lines, name_ends, spoken, styled
from lab5.study.claims import Verdict
from lab5.study.plans import Question
from lab5.study.tables import Predictions, losses_along, verdict_text

PERCENT = "{x:.0%}"


# --- what a model says and what is so -------------------------------------------------------------------------------


def calibration_figure(networks: Mapping[str, Predictions], caption: str) -> Figure:
    """How often each network is right when it is so sure, a line per name; the area of a dot is its share of tokens.

    The expected calibration error stands at each name.
    """
    with styled(5.6, 4.0, caption) as figure:
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color=PALE, lw=1, ls="--")
        ends = [(1.0, 1.0, "as sure as right", PALE)]
        for colour, (name, predictions) in zip(cycle(CYCLE), networks.items(), strict=False):
            confidence, accuracy, n = np.array([(b.confidence, b.accuracy, b.n) for b in predictions.bins]).T
            axis.vlines(confidence, confidence, accuracy, color=colour, alpha=0.35, lw=1)
            axis.plot(confidence, accuracy, color=colour, lw=1.5)
            axis.scatter(confidence, accuracy, s=12 + 400 * n / n.sum(), color=colour, edgecolor="white", lw=0.6,
                         zorder=3)  # fmt: skip
            label = f"{spoken(name)}\nerror {predictions.calibration_error:.1%}"
            ends.append((confidence[-1], accuracy[-1], label, colour))
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title="Is it right as often as it is sure?",
                 xlabel="confidence: probability of the chosen code", ylabel="share of right codes")  # fmt: skip
        axis.xaxis.set_major_formatter(PERCENT)
        axis.yaxis.set_major_formatter(PERCENT)
        name_ends(axis, ends)
    return figure


def leak_map(
    by_ring: dict[str, Sequence[float]], heat: Float[Tensor, "16 16"], *, title: str, caption: str
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
        grid.set(xticks=[], yticks=[], title=title)
        grid.spines[:].set_visible(False)
        grid.grid(visible=False)
        figure.colorbar(drawn, ax=grid, format=PERCENT, shrink=0.85).outline.set_visible(False)
    return figure


def loss_against_score(trainings: dict[str, pd.DataFrame], caption: str) -> Figure:
    """KID against validation loss along trainings, as `tables.losses_along` has them: joined, with the step at each."""
    with styled(6.4, 3.8, caption) as figure:
        axis = figure.subplots()
        ends = []
        for colour, (name, looks) in zip(cycle(CYCLE), trainings.items(), strict=False):
            axis.plot(looks["val_loss_nats"], looks["kid"], "o-", color=colour, ms=4.5, lw=1.3, label=spoken(name))
            for step, *place in zip(looks["steps"], looks["val_loss_nats"], looks["kid"], strict=True):
                axis.annotate(f"{step}", place, xytext=(4, 5), textcoords="offset points", fontsize=7, color=colour)
            last = looks.iloc[-1]
            ends.append((last["val_loss_nats"], last["kid"], spoken(name), colour))
        axis.invert_xaxis()  # a training goes from left to right
        axis.set(xlabel="validation loss, nats per masked token (falling to the right)", ylabel="KID",
                 title="Does a lower loss fill holes better?")  # fmt: skip
        axis.margins(0.08)
        name_ends(axis, ends)
    return figure


# --- effects with their intervals -----------------------------------------------------------------------------------

VERDICTS = {  # -> colour and marker
    Verdict.ARTEFACT: ("#882255", "D"),
    Verdict.FAILS: ("#D55E00", "s"),
    Verdict.OPEN: ("#777777", "|"),
    Verdict.HOLDS: ("#0072B2", "o"),
    Verdict.SPLIT: ("#777777", "D"),
}
WAYS = {"best": "this project's decoding", "sampled": "the lab's, sampled codes", "argmax": "the lab's, best codes"}
WIDTH = 70  # letters of a label in a line
OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # the line at 0 makes a plus of a minus


def forest(table: pd.DataFrame, label: str, *, group: str = "", title: str, caption: str) -> Figure:
    """A forest plot of KID: under each row's label its effect around zero, with interval, numbers and verdict.

    The table is one of effects or claims, all of them measured; `label` and `group`, under whose values rows stand
    together, are columns. What lies within ± the margin, which is shaded, is too small to matter. An effect is black
    where its interval excludes zero, else grey.
    """
    ends = table[["kid_low", "kid_high", "margin"]].abs().to_numpy()
    limit = 1.08 * ends[np.isfinite(ends)].max()  # an interval without an end goes on to the edge
    with styled(7.6, 1.0, caption) as figure:  # as high as the rows will need
        axis = figure.subplots()
        axis.axvline(0, color=INK, lw=1)
        place, shaded = 0.0, [(-0.5, 0.0)]  # where a margin begins, and how large it is
        for name, members in table.groupby(group, sort=False) if group else [("", table)]:
            if group:
                _text(axis, str(name), place + 0.2, 0.0, weight="bold", fontsize=10)
                place += 0.9
            for row in members.to_dict("records"):
                if (margin := row["margin"]) != shaded[-1][1]:
                    shaded.append((place - 0.25 if len(shaded) > 1 else -0.5, margin))
                place = _effect(axis, row, textwrap.wrap(row[label], WIDTH), place, limit)
        figure.set_figheight(0.4 * place + 1.0)
        axis.set(xlim=(-limit, limit), ylim=(place - 0.1, -0.5), yticks=[])
        axis.set_xlabel("difference of KID, first − second, with a 95 % interval")
        for (top, margin), (bottom, _) in pairwise([*shaded, (place - 0.1, 0.0)]):
            axis.fill_betweenx([top, bottom], -margin, margin, color="#ececec", lw=0, zorder=0)
        axis.set_title(title, pad=20)
        axis.spines["left"].set_visible(False)
        for x, side, text in (0, "left", "← first is better"), (1, "right", "second is better →"):
            axis.annotate(text, (x, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", ha=side,
                          va="bottom", fontsize=8, color=PALE)  # fmt: skip
    return figure


def _effect(axis: Axes, row: dict[str, Any], lines: Sequence[str], place: float, limit: float) -> float:
    """One row from `place` on downwards; where the next begins."""
    mean, low, high = row["kid"], row["kid_low"], row["kid_high"]
    colour, marker = VERDICTS.get(row["verdict"], (INK if low > 0 or high < 0 else "#777777", "o"))
    weight = "bold" if row.get("way") == "" else "normal"  # a claim, above its ways of decoding
    for i, line in enumerate(lines):
        _text(axis, line, place + i / 2, 0.0, weight=weight)
    verdict = verdict_text(row) if "direction" in row else row["verdict"]
    _text(axis, textwrap.fill(verdict, 22), place + len(lines) / 4, 1.02, color=colour, weight="bold")
    place += len(lines) / 2
    axis.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
    axis.plot(mean, place, marker, color=colour, ms=10 if marker == "|" else 7, mew=2 if marker == "|" else 0)
    numbers = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]".replace("-", "−")
    if high < 0.4 * limit:  # then there is room for them after the interval, else before it, else below
        x, away, side = high, (9, 0), "left"
    elif low > -0.4 * limit:
        x, away, side = low, (-9, 0), "right"
    else:
        x, away, side = (low + high) / 2, (0, -10), "center"
    axis.annotate(numbers, (x, place), xytext=away, textcoords="offset points", va="center", ha=side, fontsize=8,
                  color=colour, bbox=OVER_LINES)  # fmt: skip
    return place + (0.9 if side == "center" else 0.6)


def _text(axis: Axes, text: str, place: float, x: float, **style: Any) -> None:
    """At a share x of the axes' width, over whatever line runs there."""
    axis.text(
        x, place, text, transform=axis.get_yaxis_transform(),
        bbox=OVER_LINES, **{"fontsize": 8.5, "va": "center"} | style,
    )  # fmt: skip


# --- the figures of a study -----------------------------------------------------------------------------------------

Q = Question
TOGETHER = {  # which questions stand in one figure
    "schedules": (Q.SCHEDULE, Q.STEPS, Q.ITERATING, Q.STOPPING),
    "samplers": (Q.CODES, Q.ORDER, Q.TEMPERATURE, Q.CHOICE_TEMPERATURE, Q.BUDGET, Q.REMASKING, Q.ROUNDS),
    "surroundings": (Q.SEEN, Q.AROUND_BEST, Q.AROUND_LAB),
    "trainings": (Q.RECIPES, Q.MASKING, Q.LOSS, Q.LATE),
}


def study_figures(
    effects: pd.DataFrame, claims: pd.DataFrame, networks: pd.DataFrame, made_by: str
) -> dict[str, Figure]:
    """The claims, the effects in groups, and KID against loss; only what has been measured.

    The captions are `made_by`, which weights and such, behind the images and seeds of the rows that are in the figure.
    """
    figures = {}
    if "kid" in claims:
        figures["claims"] = claims_figure(claims, _caption(claims.dropna(subset="kid"), made_by))
    for name, questions in TOGETHER.items():
        rows = effects[effects["question"].isin(questions)] if len(effects) else effects
        if len(rows):
            figures[name] = effects_figure(rows, _caption(rows, made_by), title=f"What it is worth: {name}")
    if losses := losses_along(networks):
        late = effects[effects["question"] == Question.LATE]
        figures["loss"] = loss_against_score(losses, _caption(late, made_by))
    return figures


def _caption(rows: pd.DataFrame, made_by: str) -> str:
    """How many images and seeds are behind the rows, as in "n = 64 and 32, 5 and 3 seeds", and what else there is."""
    if rows.empty:
        return made_by
    n, seeds = (" and ".join(f"{x:.0f}" for x in sorted(rows[name].unique())[::-1]) for name in ("n", "seeds"))
    return f"n = {n}, {seeds} seeds, {made_by}"


def claims_figure(claims: pd.DataFrame, caption: str) -> Figure:
    """The claims that have been measured, each with its ways of decoding under it."""
    measured = claims.dropna(subset="kid")
    ways = "      " + measured["way"].replace(WAYS)
    labels = measured["claim"].where(measured["way"] == "", ways)
    return forest(measured.assign(label=labels), "label", title="What the reports claim", caption=caption)


def effects_figure(effects: pd.DataFrame, caption: str, title: str = "What it is worth") -> Figure:
    """Every effect but the schedules of single recipes, which are left to the table."""
    rows = effects[effects["question"] != Question.SCHEDULE_OF_RECIPE]
    return forest(rows, "comparison", group="question", title=title, caption=caption)
