"""Plain data to one matplotlib Figure, in one style: the same colour for the same schedule everywhere.

A caption under each figure carries n, seeds, device and weights.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lab5.gamma import SCHEDULES, gamma
from lab5.trainer import TrainStep

# Okabe and Ito's colours, which the colour-blind tell apart, and which differ in print.
COLOURS = {
    "cosine": "#0072B2",
    "linear": "#D55E00",
    "square": "#009E73",
    "raised_cosine": "#CC79A7",
    "square_root": "#E69F00",
    "cubic": "#56B4E9",
    "stair": "#8C6D1F",
    "arccos": "#882255",
    "log": "#44AA99",
    "exp": "#332288",
    "one_shot": "#444444",
}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#444444")
INK, PALE = "#222222", "#8a8a8a"
TONES = torch.tensor([[255, 255, 255], [110, 170, 220], [20, 20, 24]], dtype=torch.uint8)  # known, decoded, masked
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}

Pictures = UInt8[Tensor, "m 3 H W"]


@contextmanager
def styled(width: float, height: float, caption: str) -> Iterator[Figure]:
    """A figure to draw on, in our style."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        if caption:
            figure.supxlabel(textwrap.fill(caption, int(15 * width)), fontsize=7.5, color=PALE)
        yield figure


def save_figure(figure: Figure, path: Path, description: str | None = None) -> Path:
    """As `path`.png, which is returned, and .svg; the same data give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    figure.savefig(png, dpi=110, bbox_inches="tight", metadata={"Description": description})
    with rc_context({"svg.hashsalt": "lab5"}):  # or the ids in the file would be drawn by chance
        figure.savefig(svg, bbox_inches="tight", metadata={"Description": description, "Date": None})
    return png


def spoken(name: str) -> str:
    """A name of the package as a person writes it: `one_shot` -> "one shot"."""
    return name.replace("_", " ")


def labelled_lines(axis: Axes, x: Sequence[float], curves: dict[str, Sequence[float]], *, named: bool = True) -> None:
    """A line per name in the order of CYCLE, names at the right ends; equal lines are one, with all of their names.

    Curves may be shorter than `x`.
    """
    together: dict[tuple[float, ...], list[str]] = {}
    for name, values in curves.items():
        together.setdefault(tuple(round(float(value), 9) for value in values), []).append(spoken(name))
    ends = []
    for colour, (values, names) in zip(cycle(CYCLE), together.items(), strict=False):
        axis.plot(x[: len(values)], values, "o-", color=colour, ms=4, lw=1.8, label=", ".join(names))
        ends.append((x[len(values) - 1], values[-1], textwrap.fill(", ".join(names), 20), colour))
    if named:
        name_ends(axis, ends)


def name_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]], at: float = 1.05) -> None:
    """Each (x, y, name, colour) at the height of its y, moved apart where names would overlap.

    `at` is a share of the axes' width: beyond 1 the names stand to the right of the axes, else they end there.
    """
    low, high = axis.set_ylim(axis.get_ylim())
    ends = sorted(ends, key=lambda end: end[1])
    heights = [0.065 * (1 + name.count("\n")) for _, _, name, _ in ends]
    gaps = [(below + above) / 2 + 0.012 for below, above in pairwise(heights)]
    places = [(y - low) / (high - low) for _, y, _, _ in ends]
    for i, gap in enumerate(gaps):
        places[i + 1] = max(places[i + 1], places[i] + gap)
    places[-1] = min(places[-1], 1.0)
    for i, gap in reversed(list(enumerate(gaps))):
        places[i] = min(places[i], places[i + 1] - gap)
    for (x, y, name, colour), place in zip(ends, places, strict=True):
        axis.annotate(
            name, (x, y), xytext=(at, place), textcoords="axes fraction", color=colour, fontsize=8, va="center",
            ha="left" if at > 1 else "right",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def decode_grid(
    rows: dict[str, Pictures], columns: Sequence[str] = (), *, caption: str = "", marked: Sequence[str] = ()
) -> Figure:
    """Named rows of equally many pictures with a label above each column; `marked` rows are labelled bold."""
    longest = max(map(len, rows.values()))
    with styled(1.0 * longest + 1.1, 1.04 * len(rows) + 0.45, caption) as figure:
        axes = figure.subplots(len(rows), longest, squeeze=False)
        for line, (name, pictures) in zip(axes, rows.items(), strict=True):
            for i, axis in enumerate(line):
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set(visible=i < len(pictures), color="#d8d8d8", lw=0.6)
                if i < len(pictures):
                    axis.imshow(pictures[i].permute(1, 2, 0).numpy(), interpolation="nearest")
            line[0].set_ylabel(
                spoken(name), rotation=0, ha="right", va="center", fontsize=8.5, labelpad=6,
                weight="bold" if name in marked else "normal", color=COLOURS.get(name.partition(" ")[0], INK),
            )  # fmt: skip
        for axis, label in zip(axes[0], columns, strict=False):
            axis.set_title(label, fontsize=8, weight="normal", loc="center")
    return figure


def mask_pictures(masked: Bool[Tensor, "m N"], unknown: Bool[Tensor, " N"]) -> Pictures:
    """The mask in the latent domain: black still masked, blue decoded so far, white known from the start."""
    index = masked.long() + unknown[None].long()
    grid = TONES[index].unflatten(1, (16, 16)).permute(0, 3, 1, 2)
    return grid.repeat_interleave(4, 2).repeat_interleave(4, 3)


def loss_curve(
    history: Sequence[TrainStep],
    metric: str,
    *,
    label: str,
    validation: Sequence[tuple[int, float]] = (),
    caption: str = "",
) -> Figure:
    """Loss with the learning rate, and a metric beside it; points of (step, value) on clean validation data."""
    with styled(8.4, 2.9, caption) as figure:
        left, right = figure.subplots(1, 2)
        steps = np.array([s.step for s in history])
        _line(left, steps, np.array([s.loss for s in history]), COLOURS["cosine"])
        left.set(xlabel="step", ylabel="loss", title="Loss and learning rate")
        rate = left.twinx()
        rate.plot(steps, [s.lr for s in history], color=PALE, lw=1, ls=":")
        rate.set_ylabel("learning rate (dotted)", color=PALE)
        rate.ticklabel_format(style="sci", axis="y", scilimits=(0, 0))
        rate.grid(False)
        rate.spines["right"].set_visible(True)
        pairs = [(s.step, s.metrics[metric]) for s in history if metric in s.metrics]
        if pairs:
            at, value = np.array(pairs).T
            _line(right, at, value, COLOURS["cosine"], "training")
        if validation:
            right.plot(*zip(*validation, strict=True), "o-", ms=4, lw=1.2, color=COLOURS["linear"], label="validation")
        right.set(xlabel="step", title=label[0].upper() + label[1:])
        if right.get_legend_handles_labels()[0]:
            right.legend(frameon=False, fontsize=8)
    return figure


def _line(axis, x: np.ndarray, y: np.ndarray, colour: str, label: str = "") -> None:
    """The values, pale, under their running mean."""
    axis.plot(x, y, color=colour, alpha=0.2, lw=0.8)
    window = max(1, len(y) // 40)
    if len(y) >= window:
        smooth = np.convolve(y, np.ones(window) / window, mode="valid")
        axis.plot(x[window - 1 :], smooth, color=colour, lw=1.6, label=label or None)


def gamma_curves(caption: str = "") -> Figure:
    """The share of tokens still masked over the share of the decoding done."""
    with styled(5.2, 3.0, caption) as figure:
        axis = figure.subplots()
        ratio = np.linspace(0, 1, 2001)  # so fine that the stairs stand upright
        for name in SCHEDULES:
            axis.plot(ratio, [gamma(name, float(r)) for r in ratio], color=COLOURS[name], lw=1.8, label=spoken(name))
        axis.set(xlabel="share of the steps done, t/T", ylabel="share still masked, γ", title="Mask schedules")
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def fid_curve(
    table: pd.DataFrame,
    x: str,
    *,
    y: str = "score",
    baselines: dict[str, float] | None = None,
    labels: Sequence[str] = ("", "", ""),
    caption: str = "",
) -> Figure:
    """Mean of `y` over seeds with its standard deviation, against `x`, a line per schedule; baselines as levels.

    `table` is a study's, with the columns `schedule`, `seed`, x and y; `labels` are those of x, of y, and the title.
    """
    with styled(6.4, 3.4, caption) as figure:
        axis = figure.subplots()
        schedules = table.groupby("schedule", sort=False)
        for shift, (name, rows) in enumerate(schedules):
            groups = rows.groupby(x)[y]
            nudge = 0.06 * (shift - (len(schedules) - 1) / 2)  # error bars side by side, not on top of each other
            axis.errorbar(
                groups.mean().index + nudge, groups.mean(), groups.std().fillna(0.0), color=COLOURS[name], marker="o",
                ms=3.5, lw=1.5, capsize=2.5, label=spoken(name),
            )  # fmt: skip
        for name, value in (baselines or {}).items():
            axis.axhline(value, color=PALE, lw=1, ls="--")
            axis.annotate(spoken(name), (1.0, value), xycoords=("axes fraction", "data"), fontsize=7.5, color=PALE,
                          xytext=(4, 0), textcoords="offset points", va="center")  # fmt: skip
        axis.set(xlabel=labels[0] or x, ylabel=labels[1] or y, title=labels[2], xticks=sorted(table[x].unique()))
        axis.legend(frameon=False, fontsize=8)
    return figure


def attention_map(
    image: UInt8[Tensor, "3 64 64"],
    weights: Float[Tensor, "heads N"],
    query: int,
    *,
    titles: Sequence[str],
    caption: str = "",
) -> Figure:
    """Where one position looks: the picture with the query's token framed, and each head's weights glowing on it."""
    with styled(1.75 * (len(weights) + 1), 2.1, caption) as figure:
        axes = figure.subplots(1, len(weights) + 1)
        picture = image.permute(1, 2, 0).numpy()
        row, column = divmod(query, 16)
        for i, (axis, title) in enumerate(zip(axes, titles, strict=True)):
            axis.imshow(picture if i == 0 else picture // 3, interpolation="nearest")
            if i > 0:
                heat = weights[i - 1].reshape(16, 16).numpy()
                heat = heat / heat.max()
                axis.imshow(
                    heat, alpha=heat**0.5, extent=(-0.5, 63.5, 63.5, -0.5), cmap="inferno", interpolation="nearest"
                )
            frame = np.array([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]) + np.array([column * 4, row * 4]) - 0.5
            axis.plot(*frame.T, color="#00d0ff", lw=1.6)
            axis.set_axis_off()
            axis.set_title(title, fontsize=8, weight="normal", loc="center")
    return figure


def bars(
    values: dict[str, float], *, xlabel: str, title: str = "", highlight: str = "", caption: str = "", digits: int = 2
) -> Figure:
    """Named values as horizontal bars, in the order given."""
    with styled(6.4, 0.32 * len(values) + 0.95, caption) as figure:
        axis = figure.subplots()
        colours = [COLOURS["cosine"] if name == highlight else "#b8c4cc" for name in values]
        drawn = axis.barh([spoken(name) for name in values], list(values.values()), color=colours)
        axis.bar_label(drawn, fmt=f"%.{digits}f", padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.12)
        axis.set(title=title)
        axis.set_xlabel(xlabel, loc="right")  # a long one reaches below the names, not beyond the edge
    return figure
