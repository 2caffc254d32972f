"""Figures hold what was asked for: panels, lines, labels, colours; and the same data give the same file."""

import math
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.spines import Spine
from matplotlib.text import Text

from lab5.gamma import SCHEDULES, gamma
from lab5.scoring.predictions import Bin, calibration_error
from lab5.show import figures as plots
from lab5.show.lesson_figures import mistakes, pitfall_curves, sampler_distributions
from lab5.show.notebook import show
from lab5.show.study_figures import VERDICTS, calibration_figure, forest, leak_map, loss_against_score
from lab5.study.claims import Direction, Verdict
from lab5.study.tables import Predictions
from lab5.trainer import TrainStep

PICTURES = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.rand(3, 256, generator=torch.Generator().manual_seed(1))
HISTORY = [TrainStep(s, 80, 2 / s, 1e-3 * s, 0.1 * s, {"accuracy": s / 100}) for s in range(1, 81)]
ROWS = pd.DataFrame([
    {"schedule": schedule, "steps": steps, "seed": seed, "score": base + steps + 2.0 * seed}
    for schedule, base in (("linear", 10), ("cosine", 20))
    for steps in (4, 8)
    for seed in (0, 1)
])  # fmt: skip
BY_T = {"random": [0.5, 0.2, 0.0], "margin": [0.5, 0.4, 0.0], "entropy": [0.5, 0.4, 0.0]}
EXPONENTS = {"2 positions": [(0.5, 1.9), (2.0, 1.3)], "8 positions": [(0.5, 2.6), (2.0, 1.45)]}
RIGHT = {"ours": [9, 9, 9], "shrinking_mask": [6, 3, 0]}
MASKED = {"ours": [6, 3, 0], "compounding": [6, 2, 0]}
MANY, FEW = torch.linspace(0, 1, 40), torch.linspace(1, 2, 40)
BINS = {"one_shot": [Bin(0.0, 0.5, 0.2, 0.1, 30), Bin(0.5, 1.0, 0.7, 0.9, 10)], "in_steps": [Bin(0, 0.5, 0.4, 0.4, 20)]}
PREDICTIONS = {name: Predictions(1.0, 1.0, calibration_error(bins), bins) for name, bins in BINS.items()}
HEAT = torch.linspace(0, 0.5, 256).view(16, 16).index_put((torch.tensor(7), torch.tensor(8)), torch.tensor(math.nan))
TRAININGS = {
    "paper": pd.DataFrame({"steps": [100, 300], "val_loss_nats": [5.0, 4.0], "kid": [40.0, 30.0]}),
    "half_masked": pd.DataFrame({"steps": [100, 300], "val_loss_nats": [4.8, 3.9], "kid": [42.0, 35.0]}),
}
COLUMNS = ["question", "claim", "kid", "kid_low", "kid_high", "margin", "verdict", "direction", "pitfall"]
CLAIMS = pd.DataFrame([
    ("schedule", "cosine is best", -0.1, -0.3, 0.1, 0.2, Verdict.OPEN, Direction.UNKNOWN, 0),
    ("steps", "iterating hurts", -5.0, -6.0, -4.0, 0.2, Verdict.ARTEFACT, Direction.BETTER, 3),
    ("schedule", "square is best", 0.5, 0.25, 0.75, 0.2, Verdict.FAILS, Direction.WORSE, 0),
    ("training", "half masked is best", 0.0, -0.2, 0.2, 0.3, Verdict.OPEN, Direction.UNKNOWN, 0),
    ("steps", "one shot is as good", 0.0, -0.1, 0.1, 0.2, Verdict.HOLDS, Direction.NONE, 0),
], columns=COLUMNS)  # fmt: skip

FIGURES = {
    "grid": partial(
        plots.decode_grid, {"cosine image": PICTURES, "square": PICTURES, "truth": PICTURES[:2]},
        ["t = 0", "t = 1", "t = 2"], marked=("truth",),
    ),
    "loss": partial(
        plots.loss_curve, HISTORY, "accuracy", label="masked accuracy", validation=[(40, 0.3), (80, 0.6)]
    ),
    "gamma": plots.gamma_curves,
    "fid": partial(plots.fid_curve, ROWS, "steps", baselines={"do_nothing": 40.0, "truth": 1.0}),
    "attention": partial(plots.attention_map, PICTURES[0], WEIGHTS, 16 * 2 + 5, titles=["picture", "a", "b", "c"]),
    "bars": partial(plots.bars, {"ours": 1.25, "telea": 2.5}, xlabel="score", highlight="ours", digits=1),
    "samplers": partial(sampler_distributions, [1, 2, 4], {"distance": BY_T, "diversity": BY_T}, EXPONENTS),
    "pitfalls": partial(pitfall_curves, RIGHT, MASKED, {"ours": 0.9, "drowned_order": 0.05}),
    "mistakes": partial(mistakes, {"4 view": ("gap", MANY, FEW), "7 axis": ("loss", MANY[:1] + 6.9, FEW[:1])}),
    "reliability": partial(calibration_figure, PREDICTIONS),
    "leak": partial(leak_map, {"grey": [0.8, 0.4, 0.1], "navier_stokes": [0.3, 0.1]}, HEAT, title="grey"),
    "checkpoints": partial(loss_against_score, TRAININGS),
    "claims": partial(forest, CLAIMS, "claim", group="question", title="claims"),
}  # fmt: skip
"""One figure of each kind, but for its caption."""


def axes(kind: str) -> list[Axes]:
    return FIGURES[kind](caption="").axes


def title(axis: Axes) -> str:
    return axis.get_title(loc="left")


def texts(axis: Axes) -> dict[str, Text]:
    return {text.get_text(): text for text in axis.texts}


def points(axis: Axes) -> dict[str, list[list[float]]]:
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def hex_colour(artist) -> str:
    return colors.to_hex(artist.get_color()).upper()


# --- for all ----------------------------------------------------------------------------------------------------


def looks(figure: Figure) -> list:
    sizes = [(text.get_text(), text.get_fontsize()) for text in figure.findobj(Text)]
    spines = [spine.get_visible() for spine in figure.findobj(Spine)]
    grids = [line.get_visible() for axis in figure.axes for line in axis.get_xgridlines() + axis.get_ygridlines()]
    return [sizes, spines, grids]


@pytest.mark.parametrize("kind", FIGURES)
def test_a_figure_has_a_caption_fits_into_a_page_and_has_nothing_to_do_with_matplotlibs_settings(kind):
    before = dict(matplotlib.rcParams)
    figure = FIGURES[kind](caption="n")
    assert figure.get_supxlabel() == "n"
    assert figure.get_figwidth() <= 8.4, "wider ones are shrunk on a page, and their letters with them"
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.titlesize": 20, "axes.grid": False, "axes.spines.top": True}):
        assert looks(FIGURES[kind](caption="n")) == looks(figure)


def test_a_long_caption_is_broken_into_lines_that_fit():
    figure = FIGURES["bars"](caption="words and words " * 20)
    figure.canvas.draw()
    assert figure._supxlabel.get_window_extent().width < figure.bbox.width


def test_the_same_data_give_the_same_files(own_folders, capsys):
    kept = []
    for _ in range(2):
        for kind in ("grid", "mistakes", "claims"):
            show(FIGURES[kind](caption=""), "a figure", kind)
        kept.append({path.name: path.read_bytes() for path in (own_folders / "figures").iterdir()})
    assert len(kept[0]) == 6 and kept[0] == kept[1]


# --- one by one -------------------------------------------------------------------------------------------------


def test_a_grid_has_a_row_a_name_and_a_column_a_picture():
    panels = np.array(axes("grid")).reshape(3, 3)
    assert [[len(axis.images) for axis in line] for line in panels] == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert np.array_equal(panels[2, 1].images[0].get_array(), PICTURES[1].permute(1, 2, 0))
    assert [axis.get_title() for axis in panels[0]] == ["t = 0", "t = 1", "t = 2"]
    names = [line[0].yaxis.label for line in panels]
    assert [name.get_text() for name in names] == ["cosine image", "square", "truth"]
    assert [name.get_weight() for name in names] == ["normal", "normal", "bold"]
    assert [hex_colour(name) for name in names] == [plots.COLOURS["cosine"], plots.COLOURS["square"], plots.INK]
    assert not any(spine.get_visible() for spine in panels[2, 2].spines.values()), "no frame around nothing"


def test_mask_pictures_tell_known_decoded_and_masked_apart():
    unknown = torch.zeros(256, dtype=torch.bool)
    unknown[[0, 17]] = True
    masked = torch.zeros(1, 256, dtype=torch.bool)
    masked[0, 17] = True
    picture = plots.mask_pictures(masked, unknown)
    assert picture.shape == (1, 3, 64, 64) and picture.dtype == torch.uint8
    decoded, still = picture[0, :, :4, :4], picture[0, :, 4:8, 4:8]
    assert all((square == square[:, :1, :1]).all() for square in (decoded, still)), "a token is four pixels wide"
    assert still.float().mean() < 30 < decoded.float().mean() < 250, "masked is black, decoded in between"
    assert (picture == 255).all(1).sum() == (256 - 2) * 16, "known is white"


def test_a_loss_curve_shows_loss_rate_metric_and_validation():
    left, right, rate = axes("loss")
    assert np.allclose(left.lines[0].get_xydata(), [(s.step, s.loss) for s in HISTORY])
    assert np.allclose(rate.lines[0].get_ydata(), [s.lr for s in HISTORY])
    assert np.allclose(points(right)["validation"], [(40, 0.3), (80, 0.6)])
    assert np.allclose(points(right)["training"], [(s, (2 * s - 1) / 200) for s in range(2, 81)]), "means over 2 of 80"
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "validation"]
    assert title(right) == "Masked accuracy"


@pytest.mark.filterwarnings("error")
def test_a_loss_curve_can_be_drawn_from_the_first_step_on():
    for history in ([], HISTORY[:1]):
        plots.loss_curve(history, "no such metric", label="accuracy").canvas.draw()


def test_gamma_curves_are_the_schedules_each_in_a_colour_of_its_own():
    lines = axes("gamma")[0].lines
    assert [line.get_label() for line in lines] == [plots.spoken(name) for name in SCHEDULES]
    for name, line in zip(SCHEDULES, lines, strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 1, 1, 0)
        assert y[500] == pytest.approx(gamma(name, x[500]))
        assert hex_colour(line) == plots.COLOURS[name]
    assert len(set(plots.COLOURS.values())) == len(SCHEDULES)


def test_a_fid_curve_has_means_with_deviations_a_line_per_schedule():
    (axis,) = axes("fid")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["linear", "cosine"]
    for container, base in zip(axis.containers, (10, 20), strict=True):
        line, _, (error_bars,) = container.lines
        assert hex_colour(line) == plots.COLOURS[container.get_label()]
        assert line.get_ydata().tolist() == [base + 4 + 1, base + 8 + 1]  # seeds add 0 and 2
        assert np.allclose(line.get_xdata(), [4, 8], atol=0.1), "beside each other, but at their T"
        for (_, low), (_, high) in error_bars.get_segments():
            assert high - low == pytest.approx(2 * math.sqrt(2)), "the sample deviation of 0 and 2 on either side"
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [40.0, 1.0]
    assert axis.get_xticks().tolist() == [4, 8] and set(texts(axis)) == {"do nothing", "truth"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("steps", "score")


def test_one_seed_has_no_deviation_and_labels_may_be_chosen():
    (axis,) = plots.fid_curve(ROWS[ROWS["seed"] == 0], "steps", labels=("T", "distance", "Many or few?")).axes
    assert (axis.get_xlabel(), axis.get_ylabel(), title(axis)) == ("T", "distance", "Many or few?")
    for (_, low), (_, high) in axis.containers[0].lines[2][0].get_segments():
        assert low == high


def test_an_attention_map_has_a_panel_a_head_and_frames_the_query():
    panels = axes("attention")
    assert [axis.get_title() for axis in panels] == ["picture", "a", "b", "c"]
    for axis in panels:
        x, y = axis.lines[0].get_xdata(), axis.lines[0].get_ydata()
        assert (x.min(), x.max(), y.min(), y.max()) == (19.5, 23.5, 7.5, 11.5), "columns 20 to 23, rows 8 to 11"
    for axis, weights in zip(panels[1:], WEIGHTS, strict=True):
        below, heat = axis.images
        assert np.allclose(heat.get_array(), weights.view(16, 16) / weights.max())
        assert tuple(heat.get_extent()) == tuple(below.get_extent()), "it covers the picture"


def test_bars_stand_in_the_order_given_with_their_values():
    (axis,) = axes("bars")
    assert [bar.get_width() for bar in axis.patches] == [1.25, 2.5]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ours", "telea"] and axis.yaxis_inverted()
    assert list(texts(axis)) == ["1.2", "2.5"]
    ours, telea = (colors.to_hex(bar.get_facecolor()).upper() for bar in axis.patches)
    assert ours == plots.COLOURS["cosine"] != telea


# --- names at lines ---------------------------------------------------------------------------------------------


def apart(figure: Figure, axis: Axes) -> list:
    """The boxes of all texts, in pixels, of which none covers another."""
    figure.canvas.draw()
    for text in axis.texts:
        text.arrow_patch = text.arrowprops = None  # a line to a name may pass others
    places = [text.get_window_extent() for text in axis.texts if text.get_text()]
    for i, a in enumerate(places):
        assert not any(a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1 for b in places[:i])
    return places


@pytest.mark.parametrize("ends", [(0.5, 0.5, 0.5, 0.5), (0.0, 0.01, 0.02), (0.98, 0.99, 1.0), (0.0, 0.5, 1.0)])
def test_names_at_lines_never_cover_each_other_and_keep_the_order_of_the_lines(ends):
    with plots.styled(4.0, 2.6, "") as figure:
        axis = figure.subplots()
        axis.set(xlim=(0, 1), ylim=(0, 1))
        plots.name_ends(axis, [(1.0, y, f"line {i}", "#000000") for i, y in enumerate(ends)])
    assert all(box.x0 > axis.get_window_extent().x1 for box in apart(figure, axis)), "beside the axes"
    heights = [text.get_position()[1] for text in axis.texts]
    assert heights == sorted(heights) and 0 <= heights[0] and heights[-1] <= 1


def test_there_may_be_more_lines_than_colours():
    many = {f"line {i}": [0, i] for i in range(len(plots.CYCLE) + 2)}
    tokens, *_ = pitfall_curves(many, MASKED, {"ours": 0.9}).axes
    assert len(tokens.lines) == len(many) and hex_colour(tokens.lines[1]) == hex_colour(tokens.lines[-1])


def test_the_laws_of_samplers_have_a_panel_per_distance_and_one_of_exponents():
    *panels, last = axes("samplers")
    assert [title(axis) for axis in (*panels, last)] == ["Distance", "Diversity", "A hidden temperature"]
    for axis in panels:
        lines = {name: line for name, line in points(axis).items() if not name.startswith("_")}
        assert list(lines) == ["random", "margin, entropy"], "two samplers with one law are one line with two names"
        assert lines["random"] == [[1, 0.5], [2, 0.2], [4, 0.0]]
    formula, *_, level = last.lines
    assert np.allclose(formula.get_ydata(), 1 + 1 / formula.get_xdata())
    assert formula.get_xdata()[[0, -1]].tolist() == [0.5, 2]
    assert {name: [tuple(point) for point in points(last)[name]] for name in EXPONENTS} == EXPONENTS
    assert level.get_ydata()[0] == 1 and {"1 + 1/τ", "p itself", *EXPONENTS} == set(texts(last))


def test_the_curves_of_pitfalls_show_both_counts_and_the_correlations():
    tokens, counts, order = axes("pitfalls")
    for axis, curves in ((tokens, RIGHT), (counts, MASKED)):
        expected = {plots.spoken(name): [[t, y] for t, y in enumerate(ys, 1)] for name, ys in curves.items()}
        assert points(axis) == expected, "steps are counted from 1"
        assert set(texts(axis)) == set(expected)
    assert [list(line.get_xdata()) for line in order.lines] == [[0.9], [0.05]]
    assert set(texts(order)) == {"0.90  ours", "0.05  drowned order"}


def test_mistakes_stand_beside_what_is_right_with_their_means():
    many, single = axes("mistakes")
    assert [title(axis) for axis in (many, single)] == ["4 view", "7 axis"]
    assert many.get_xlabel() == "gap" and [t.get_text() for t in many.get_yticklabels()] == ["ours", "mistake"]
    level, right, wrong = many.lines
    assert level.get_xdata()[0] == pytest.approx(0.5)
    assert right.get_xdata().tolist() == MANY.tolist() and wrong.get_xdata().tolist() == FEW.tolist()
    assert right.get_ydata().max() < 0.5 < wrong.get_ydata().min() and many.yaxis_inverted()
    assert set(texts(many)) == {"0.50 ± 0.30", "1.50 ± 0.30"} and set(texts(single)) == {"6.90", "1.00"}


# --- the study --------------------------------------------------------------------------------------------------


def test_a_reliability_diagram_has_a_dot_per_bin_by_its_share_and_the_calibration_error():
    (axis,) = axes("reliability")
    assert [line.get_xydata().tolist() for line in axis.lines] == [
        [[0, 0], [1, 1]], [[0.2, 0.1], [0.7, 0.9]], [[0.4, 0.4]],
    ]  # fmt: skip
    dots = [c for c in axis.collections if hasattr(c, "get_sizes") and len(c.get_sizes())]
    large, small = dots[0].get_sizes()
    assert (large - 12) / (small - 12) == pytest.approx(3)
    # (30 |0.1 - 0.2| + 10 |0.9 - 0.7|) / 40
    assert {"one shot\nerror 12.5%", "in steps\nerror 0.0%"} <= set(texts(axis))


def test_a_leak_map_has_a_line_per_fill_and_the_grid_of_tokens():
    rings, grid, scale = axes("leak")
    assert points(rings) == {"grey": [[1, 0.8], [2, 0.4], [3, 0.1]], "navier stokes": [[1, 0.3], [2, 0.1]]}
    assert set(texts(rings)) == {"grey", "navier stokes"} and rings.get_ylim()[0] == 0
    assert list(rings.get_xticks()) == [1, 2, 3] and title(grid) == "grey"
    drawn = grid.images[0].get_array()
    assert np.ma.is_masked(drawn[7, 8]) and drawn.mask.sum() == 1
    assert np.allclose(drawn.compressed(), HEAT[~HEAT.isnan()])


def test_checkpoints_are_joined_in_the_order_of_training_with_their_steps():
    (axis,) = axes("checkpoints")
    assert points(axis) == {"paper": [[5, 40], [4, 30]], "half masked": [[4.8, 42], [3.9, 35]]}
    assert axis.xaxis_inverted(), "the loss falls to the right"
    steps = [(text.get_text(), text.xy) for text in axis.texts if text.get_text().isdigit()]
    assert steps == [("100", (5, 40)), ("300", (4, 30)), ("100", (4.8, 42)), ("300", (3.9, 35))]
    assert {"paper", "half masked"} <= set(texts(axis))


def marks(axis: Axes) -> list[tuple[str, str]]:
    """The colour and the marker of each row, from the top down."""
    lines = sorted((line for line in axis.lines if len(line.get_xdata()) == 1), key=lambda line: line.get_ydata()[0])
    return [(hex_colour(line), line.get_marker()) for line in lines]


def test_a_forest_plot_has_an_interval_a_row_in_groups_with_numbers_and_verdicts():
    (axis,) = axes("claims")
    places = {text: artist.get_position()[1] for text, artist in texts(axis).items()}
    order = ["schedule", "cosine is best", "square is best", "steps", "iterating hurts", "one shot is as good",
             "training", "half masked is best"]  # fmt: skip
    assert sorted(order, key=places.get) == order and axis.yaxis_inverted() and title(axis) == "claims"
    level = [line.get_xydata() for line in axis.lines if len(line.get_xdata()) == 2 and len({*line.get_ydata()}) == 1]
    assert [line[:, 0].tolist() for line in sorted(level, key=lambda line: line[0, 1])] == [
        [-0.3, 0.1], [0.25, 0.75], [-6.0, -4.0], [-0.1, 0.1], [-0.2, 0.2],
    ]  # fmt: skip
    numbers = {"−0.1000 [−0.3000, +0.1000]", "+0.5000 [+0.2500, +0.7500]", "−5.0000 [−6.0000, −4.0000]"}
    assert numbers <= set(places)
    assert {"not decided at this n", "holds", "does not hold: worse"} <= set(places)
    assert {"artefact of pitfall 3", "← first is better", "second is better →"} <= set(places)
    told = (Verdict.OPEN, Verdict.FAILS, Verdict.ARTEFACT, Verdict.HOLDS, Verdict.OPEN)
    assert marks(axis) == [VERDICTS[verdict] for verdict in told]
    _, first, last = (band.get_paths()[0].get_extents() for band in axis.collections)
    assert (first.intervalx.tolist(), last.intervalx.tolist()) == ([-0.2, 0.2], [-0.3, 0.3]), "the margins, shaded"
    assert first.intervaly.tolist() == [-0.5, last.intervaly[0]]
    assert places["iterating hurts"] < last.intervaly[0] < places["half masked is best"]


def test_in_a_forest_plot_no_text_covers_another():
    unsure = ("steps", "unsure", 0.0, -7.0, 7.0, 0.05, Verdict.OPEN, Direction.UNKNOWN, 0)
    above = ("steps", "to the right", 4.0, 3.0, 7.0, 0.05, Verdict.OPEN, Direction.UNKNOWN, 0)
    rows = pd.concat([CLAIMS, pd.DataFrame([unsure, above], columns=COLUMNS)])
    rows["claim"] += ", told at length, as long as a claim can be, over two lines of a figure"
    figure = forest(rows, "claim", group="question", title="", caption="")
    (axis,) = figure.axes
    places = apart(figure, axis)
    assert len(places) > 25
    assert all(box.x0 >= axis.get_window_extent().x0 for box in places), "nothing reaches out to the left"


def test_effects_without_groups_are_a_list_as_wide_as_it_needs_with_directions_for_verdicts():
    row = {"label": "a − b", "kid": 1.5, "kid_high": 4.0, "margin": 0.1}
    lows = (-1.0, 0.5, 1.0, -1.0)
    rows = [row | {"kid_low": low, "verdict": str(told)} for low, told in zip(lows, Direction, strict=True)]
    (axis,) = forest(pd.DataFrame(rows), "label", title="", caption="").axes
    assert axis.get_xlim() == pytest.approx((-4.32, 4.32))
    assert {"a − b", "+1.5000 [−1.0000, +4.0000]", *map(str, Direction)} <= set(texts(axis))
    assert [colour == plots.INK for colour, _ in marks(axis)] == [False, True, True, False], "grey around zero"
