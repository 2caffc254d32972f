"""Figures of two lessons: what a sampler does to the distribution, and what mistakes do.

Plain data to one Figure each, in the style of `lab5.show.figures`.
"""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from lab5.show.figures import CYCLE, INK, PALE, labelled_lines, name_ends, spoken, styled


def sampler_distributions(
    steps: Sequence[int],
    distances: dict[str, dict[str, Sequence[float]]],
    exponents: dict[str, Sequence[tuple[float, float]]],
    *,
    caption: str = "",
) -> Figure:
    """How far each sampler's distribution is from the truth, and the temperature that hides in choosing after drawing.

    `distances` has a panel per name ("total variation"), in it a line per sampler over the numbers of `steps`.
    `exponents` has points (choice temperature tau, exponent e) per name ("8 positions"), where the codes that are
    committed follow p^e; the line is the formula for many positions, 1 + 1/tau (arXiv 2510.04525).
    """
    with styled(8.0, 2.7 * (len(distances) // 2 + 1), caption) as figure:
        grid = figure.add_gridspec(len(distances) // 2 + 1, 2)
        *panels, last = (figure.add_subplot(grid[divmod(i, 2)]) for i in range(len(distances) + 1))
        for axis, (name, curves) in zip(panels, distances.items(), strict=True):
            labelled_lines(axis, steps, curves, named=axis in panels[::2])
            axis.set(title=name[0].upper() + name[1:], xlabel="T, number of steps", xticks=steps)
            axis.axhline(0, color=INK, lw=0.8)
        temperatures = sorted({tau for points in exponents.values() for tau, _ in points})
        tau = np.linspace(temperatures[0], temperatures[-1], 200)
        last.plot(tau, 1 + 1 / tau, color=INK, lw=1.2)
        last.annotate("1 + 1/τ", (tau[30], 1 + 1 / tau[30]), xytext=(6, 4), textcoords="offset points", color=INK)
        ends = []
        for colour, (name, points) in zip(CYCLE[1:], exponents.items(), strict=False):
            last.plot(*zip(*points, strict=True), "o", color=colour, ms=4.5, label=name)
            ends.append((*points[-1], name, colour))
        last.axhline(1, color=PALE, lw=1, ls="--")
        last.set(title="A hidden temperature", xlabel="choice temperature τ", ylabel="drawn are pᵉ: e")
        name_ends(last, [*ends, (tau[-1], 1, "p itself", PALE)])
    return figure


def pitfall_curves(
    right: dict[str, Sequence[int]],
    masked: dict[str, Sequence[int]],
    correlation: dict[str, float],
    *,
    caption: str = "",
) -> Figure:
    """Mistakes in decoding in numbers, beside what is right: after each step t = 1 .. T the right tokens and those
    still masked, and the rank correlation of the order of committing and the probability."""
    with styled(8.0, 4.3, caption) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 0.5))
        tokens, counts, order = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, slice(None))))
        for axis, curves in ((tokens, right), (counts, masked)):
            t = range(1, len(next(iter(curves.values()))) + 1)
            labelled_lines(axis, t, curves)
            axis.set(xlabel="t, steps taken", xticks=t)
        tokens.set(title="Right tokens after t steps", ylabel="tokens")
        counts.set(title="Masked tokens after t steps")
        for place, (colour, (name, value)) in enumerate(zip(cycle(CYCLE), correlation.items(), strict=False)):
            order.hlines(place, 0, value, color=colour, lw=2)
            order.plot(value, place, "o", color=colour, ms=7)
            order.annotate(f"{value:.2f}  {spoken(name)}", (value, place), xytext=(8, 0), textcoords="offset points",
                           va="center", fontsize=8.5, color=colour)  # fmt: skip
        order.set(title="Likely tokens first?", xlabel="rank correlation of order and probability", yticks=[])
        order.set(xlim=(0, 1.7), xticks=(0, 0.5, 1), ylim=(len(correlation) - 0.4, -0.6))
    return figure


def mistakes(panels: dict[str, tuple[str, Float[Tensor, " n"], Float[Tensor, " m"]]], *, caption: str = "") -> Figure:
    """A panel per mistake: (what is measured, what the right way gives, what the mistake gives), a dot per number.

    The line marks the mean of the right way; beside the dots stand their mean and standard deviation.
    """
    columns = min(2, len(panels))
    with styled(3.9 * columns, 1.6 * -(-len(panels) // columns), caption) as figure:
        grid = figure.add_gridspec(-(-len(panels) // columns), columns)
        axes = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(panels))]
        noise = np.random.default_rng(0)
        for axis, (name, (label, *both)) in zip(axes, panels.items(), strict=True):
            axis.axvline(float(both[0].mean()), color=CYCLE[0], lw=1, alpha=0.4)
            for place, colour, values in zip((0, 1), CYCLE, both, strict=False):
                many = len(values) > 1
                style = {"ms": 2, "alpha": 0.35} if many else {"ms": 7}
                height = place + noise.uniform(-0.24, 0.24, len(values)) * many
                axis.plot(values, height, "o", color=colour, mew=0, rasterized=many, **style)
                text = f"{float(values.mean()):.2f}" + (f" ± {float(values.std()):.2f}" if many else "")
                axis.annotate(text, (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                              color=colour)  # fmt: skip
            axis.set(title=name, xlabel=label, ylim=(1.5, -0.5))
            axis.set_yticks([0, 1], ["ours", "mistake"])
            axis.set_xlim(left=min(0.0, axis.get_xlim()[0]))
            axis.margins(x=0.1)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
    return figure
