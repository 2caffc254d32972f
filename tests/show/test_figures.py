"""Figures hold what was asked for: panels, lines, labels, colours; and the same data give the same file."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.spines import Spine
from matplotlib.text import Text

from lab5.gamma import SCHEDULES, gamma
from lab5.scoring.predictions import Bin, calibration_error
from lab5.show import figures as plots
from lab5.show.figures import (
    attention_map,
    bars,
    decode_grid,
    fid_curve,
    gamma_curves,
    loss_curve,
    mask_pictures,
    name_ends,
)
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
RINGS = {"grey": [0.8, 0.4, 0.1], "navier_stokes": [0.3, 0.1]}
TRAININGS = {
    "paper": pd.DataFrame({"steps": [100, 300], "val_loss_nats": [5.0, 4.0], "kid": [40.0, 30.0]}),
    "half_masked": pd.DataFrame({"steps": [100, 300], "val_loss_nats": [4.8, 3.9], "kid": [42.0, 35.0]}),
}
CLAIMS = pd.DataFrame([
    {"question": "schedule", "claim": "cosine is best", "kid": -0.1, "kid_low": -0.3, "kid_high": 0.1,
     "verdict": Verdict.OPEN, "direction": Direction.UNKNOWN, "pitfall": 0},
    {"question": "steps", "claim": "iterating hurts", "kid": -5.0, "kid_low": -6.0, "kid_high": -4.0,
     "verdict": Verdict.ARTEFACT, "direction": Direction.BETTER, "pitfall": 3},
    {"question": "schedule", "claim": "square is best", "kid": 0.5, "kid_low": 0.25, "kid_high": 0.75,
     "verdict": Verdict.FAILS, "direction": Direction.WORSE, "pitfall": 0},
    {"question": "training", "claim": "half masked is best", "kid": 0.0, "kid_low": -0.2, "kid_high": 0.2,
     "verdict": Verdict.OPEN, "direction": Direction.UNKNOWN, "pitfall": 0},
    {"question": "steps", "claim": "one shot is as good", "kid": 0.0, "kid_low": -0.1, "kid_high": 0.1,
     "verdict": Verdict.HOLDS, "direction": Direction.NONE, "pitfall": 0},
]).assign(margin=0.05)  # fmt: skip

FIGURES = {
    "decode_grid": lambda: decode_grid(
        {"cosine image": PICTURES, "truth": PICTURES[:2]}, ["t = 0", "t = 1"], caption="n"
    ),
    "loss_curve": lambda: loss_curve(
        HISTORY, "accuracy", label="accuracy", validation=[(40, 0.3), (80, 0.6)], caption="n"
    ),
    "gamma_curves": lambda: gamma_curves(caption="n"),
    "fid_curve": lambda: fid_curve(ROWS, "steps", baselines={"do_nothing": 40.0}, caption="n"),
    "attention_map": lambda: attention_map(PICTURES[0], WEIGHTS[:2], 17, titles=["a", "b", "c"], caption="n"),
    "bars": lambda: bars({"ours": 1.5, "telea": 2.5}, xlabel="score", highlight="ours", caption="n"),
    "sampler_distributions": lambda: sampler_distributions(
        [1, 2, 4], {"distance": BY_T, "diversity": BY_T}, EXPONENTS, caption="n"
    ),
    "pitfall_curves": lambda: pitfall_curves(RIGHT, MASKED, {"ours": 0.9, "drowned": 0.05}, caption="n"),
    "mistakes": lambda: mistakes(
        {"4 view": ("gap", MANY, FEW), "7 axis": ("loss", torch.tensor([6.9]), torch.tensor([1.4]))}, caption="n"
    ),
    "reliability": lambda: calibration_figure(PREDICTIONS, "n"),
    "leak_map": lambda: leak_map(RINGS, HEAT, title="grey", caption="n"),
    "loss_against_score": lambda: loss_against_score(TRAININGS, "n"),
    "effects": lambda: forest(CLAIMS, "claim", group="question", title="", caption="n"),
}
"""One figure of each kind."""


def hex_colour(artist) -> str:
    return colors.to_hex(artist.get_color()).upper()


# --- for all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_the_caption_is_under_the_figure_which_fits_into_the_column_of_a_page(name):
    """Wider ones are shrunk there, and their letters with them."""
    figure = FIGURES[name]()
    assert figure.get_supxlabel() == "n" and figure.get_figwidth() <= 8.4


def test_a_long_caption_is_broken_into_lines_that_fit():
    figure = bars({"a": 1.0}, xlabel="score", caption="words and words " * 20)
    figure.canvas.draw()
    assert figure._supxlabel.get_window_extent().width < figure.bbox.width


def test_the_same_data_give_the_same_svg(own_folders, capsys):
    several, files = ("decode_grid", "fid_curve", "attention_map", "mistakes", "effects"), []
    for _ in range(2):
        for name in several:
            show(FIGURES[name](), "a figure", name)
        files.append({path.name: path.read_bytes() for path in (own_folders / "figures").glob("*.svg")})
    assert len(files[0]) == len(several) and files[0] == files[1]


def test_figures_leave_matplotlibs_settings_alone_and_do_not_depend_on_them():
    def looks(figure: Figure) -> list:
        sizes = [(text.get_text(), text.get_fontsize()) for text in figure.findobj(Text)]
        spines = [spine.get_visible() for spine in figure.findobj(Spine)]
        grids = [line.get_visible() for axis in figure.axes for line in axis.get_xgridlines() + axis.get_ygridlines()]
        return [sizes, spines, grids]

    before = dict(matplotlib.rcParams)
    plain = {name: looks(draw()) for name, draw in FIGURES.items()}
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.titlesize": 20, "axes.grid": False, "axes.spines.top": True}):
        assert {name: looks(draw()) for name, draw in FIGURES.items()} == plain


def test_every_schedule_has_a_colour_of_its_own_the_same_everywhere():
    assert set(plots.COLOURS) == set(SCHEDULES) and len(set(plots.COLOURS.values())) == len(SCHEDULES)
    for line in gamma_curves().axes[0].lines:
        assert hex_colour(line) == plots.COLOURS[line.get_label().replace(" ", "_")]
    for container in fid_curve(ROWS, "steps").axes[0].containers:
        assert hex_colour(container.lines[0]) == plots.COLOURS[container.get_label()]
    grid = decode_grid({"square image": PICTURES, "linear": PICTURES})
    labels = {axis.get_ylabel(): axis.yaxis.label for axis in grid.axes if axis.get_ylabel()}
    assert {name: hex_colour(label) for name, label in labels.items()} == {
        "square image": plots.COLOURS["square"], "linear": plots.COLOURS["linear"],
    }  # fmt: skip


# --- one by one -------------------------------------------------------------------------------------------------


def test_a_grid_has_a_row_a_name_and_a_column_a_picture():
    figure = decode_grid({"a": PICTURES, "b": PICTURES[:2]}, ["t = 0", "t = 1", "t = 2"], marked=("b",))
    axes = np.array(figure.axes).reshape(2, 3)
    assert [[len(axis.images) for axis in line] for line in axes] == [[1, 1, 1], [1, 1, 0]]
    assert np.array_equal(axes[1, 1].images[0].get_array(), PICTURES[1].permute(1, 2, 0))
    assert [axis.get_title() for axis in axes[0]] == ["t = 0", "t = 1", "t = 2"]
    assert [line[0].yaxis.label.get_weight() for line in axes] == ["normal", "bold"]
    assert not any(spine.get_visible() for spine in axes[1, 2].spines.values()), "no frame around nothing"


def test_mask_pictures_tell_known_decoded_and_masked_apart():
    unknown = torch.zeros(256, dtype=torch.bool)
    unknown[[0, 17]] = True
    masked = torch.zeros(1, 256, dtype=torch.bool)
    masked[0, 17] = True
    picture = mask_pictures(masked, unknown)
    assert picture.shape == (1, 3, 64, 64) and picture.dtype == torch.uint8
    decoded, still = picture[0, :, 0, 0], picture[0, :, 4, 4]
    assert (picture[0, :, :4, :4] == decoded[:, None, None]).all() and (picture[0, :, 4:8, 4:8] == 20).sum() >= 32
    assert picture[0, :, 60, 60].tolist() == [255] * 3, "known is white"
    assert still.float().mean() < 30 < decoded.float().mean() < 250, "masked is black, decoded in between"
    assert (picture == 255).all(1).sum() == (256 - 2) * 16


def test_a_loss_curve_shows_loss_rate_metric_and_validation():
    figure = loss_curve(HISTORY, "accuracy", label="masked accuracy", validation=[(40, 0.3), (80, 0.6)])
    left, right, rate = figure.axes
    assert np.allclose(left.lines[0].get_xydata(), [(s.step, s.loss) for s in HISTORY])
    assert np.allclose(rate.lines[0].get_ydata(), [s.lr for s in HISTORY])
    by_name = {line.get_label(): line for line in right.lines}
    assert np.allclose(by_name["validation"].get_xydata(), [(40, 0.3), (80, 0.6)])
    smooth = by_name["training"].get_xydata()  # a running mean over 2 of 80 values
    assert np.allclose(smooth, [(s, (2 * s - 1) / 200) for s in range(2, 81)])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "validation"]
    assert right.get_title(loc="left") == "Masked accuracy"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("history", [[], HISTORY[:1]])
def test_a_loss_curve_can_be_drawn_from_the_first_step_on(history):
    loss_curve(history, "no such metric", label="accuracy").canvas.draw()


def test_gamma_curves_are_the_schedules():
    lines = gamma_curves().axes[0].lines
    assert [line.get_label() for line in lines] == [plots.spoken(name) for name in SCHEDULES]
    for name, line in zip(SCHEDULES, lines, strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 1, 1, 0)
        assert y[500] == pytest.approx(gamma(name, x[500]))


def test_a_fid_curve_has_means_with_deviations_a_line_per_schedule():
    figure = fid_curve(
        ROWS, "steps", baselines={"do_nothing": 40.0, "truth": 1.0}, labels=("T", "distance", "Many or few?")
    )
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["linear", "cosine"]
    for container, base in zip(axis.containers, (10, 20), strict=True):
        line, _, (error_bars,) = container.lines
        assert line.get_ydata().tolist() == [base + 4 + 1, base + 8 + 1]  # seeds add 0 and 2
        assert np.allclose(line.get_xdata(), [4, 8], atol=0.1), "beside each other, but at their T"
        for (_, low), (_, high) in error_bars.get_segments():
            assert high - low == pytest.approx(2 * math.sqrt(2)), "the sample deviation of 0 and 2 on either side"
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [40.0, 1.0]
    assert axis.get_xticks().tolist() == [4, 8]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title(loc="left")) == ("T", "distance", "Many or few?")
    (unnamed,) = fid_curve(ROWS, "steps").axes
    assert (unnamed.get_xlabel(), unnamed.get_ylabel()) == ("steps", "score")
    assert {text.get_text() for text in axis.texts} == {"do nothing", "truth"}


def test_one_seed_has_no_deviation():
    container = fid_curve(ROWS[ROWS["seed"] == 0], "steps").axes[0].containers[0]
    for (_, low), (_, high) in container.lines[2][0].get_segments():
        assert low == high


def test_an_attention_map_has_a_panel_a_head_and_frames_the_query():
    figure = attention_map(PICTURES[0], WEIGHTS, 16 * 2 + 5, titles=["picture", "head 1", "head 2", "head 3"])
    assert len(figure.axes) == 1 + 3
    for i, axis in enumerate(figure.axes):
        x, y = axis.lines[0].get_xdata(), axis.lines[0].get_ydata()
        assert (x.min(), x.max(), y.min(), y.max()) == (19.5, 23.5, 7.5, 11.5), "columns 20 to 23, rows 8 to 11"
        if i > 0:
            below, heat = axis.images
            assert np.allclose(heat.get_array(), WEIGHTS[i - 1].view(16, 16) / WEIGHTS[i - 1].max())
            assert tuple(heat.get_extent()) == tuple(below.get_extent()), "it covers the picture"
    assert [axis.get_title() for axis in figure.axes] == ["picture", "head 1", "head 2", "head 3"]


def test_bars_stand_in_the_order_given_with_their_values():
    (axis,) = bars({"ours": 1.25, "telea": 2.5}, xlabel="score", highlight="ours", digits=1).axes
    assert [bar.get_width() for bar in axis.patches] == [1.25, 2.5]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ours", "telea"] and axis.yaxis_inverted()
    assert [text.get_text() for text in axis.texts] == ["1.2", "2.5"]
    ours, telea = (colors.to_hex(bar.get_facecolor()).upper() for bar in axis.patches)
    assert ours == plots.COLOURS["cosine"] != telea


# --- names at lines ---------------------------------------------------------------------------------------------


def texts(axis) -> dict[str, object]:
    return {text.get_text(): text for text in axis.texts}


def boxes(figure: Figure, axis) -> list:
    """Of all texts, in pixels."""
    figure.canvas.draw()
    for text in axis.texts:
        text.arrow_patch = text.arrowprops = None  # a line to a name may pass others
    return [text.get_window_extent() for text in axis.texts if text.get_text()]


def overlap(a, b) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


@pytest.mark.parametrize("ends", [(0.5, 0.5, 0.5, 0.5), (0.0, 0.01, 0.02), (0.98, 0.99, 1.0), (0.0, 0.5, 1.0)])
def test_names_at_lines_never_cover_each_other_and_keep_the_order_of_the_lines(ends):
    with plots.styled(4.0, 2.6, "") as figure:
        axis = figure.subplots()
        axis.set(xlim=(0, 1), ylim=(0, 1))
        name_ends(axis, [(1.0, y, f"line {i}", "#000000") for i, y in enumerate(ends)])
    places = boxes(figure, axis)
    assert not any(overlap(a, b) for i, a in enumerate(places) for b in places[:i])
    heights = [text.get_position()[1] for text in axis.texts]
    assert heights == sorted(heights) and 0 <= heights[0] and heights[-1] <= 1
    assert all(box.x0 > axis.get_window_extent().x1 for box in places), "beside the axes"


# --- samplers and mistakes --------------------------------------------------------------------------------------


def test_the_laws_of_samplers_have_a_panel_per_distance_and_one_of_exponents():
    figure = sampler_distributions([1, 2, 4], {"distance": BY_T, "diversity": BY_T}, EXPONENTS)
    first, second, last = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Distance", "Diversity", "A hidden temperature"]
    for axis in (first, second):
        lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
        assert list(lines) == ["random", "margin, entropy"], "two samplers with one law are one line with two names"
        assert lines["random"].get_xdata().tolist() == [1, 2, 4]
        assert lines["random"].get_ydata().tolist() == [0.5, 0.2, 0.0]
    formula, *points, level = last.lines
    assert np.allclose(formula.get_ydata(), 1 + 1 / formula.get_xdata())
    assert formula.get_xdata()[[0, -1]].tolist() == [0.5, 2]
    assert {line.get_label(): line.get_xydata().tolist() for line in points} == {
        name: [list(point) for point in expected] for name, expected in EXPONENTS.items()
    }  # fmt: skip
    assert level.get_ydata()[0] == 1 and {"1 + 1/τ", "p itself", *EXPONENTS} == set(texts(last))


def test_the_curves_of_pitfalls_show_both_counts_and_the_correlations():
    tokens, counts, order = pitfall_curves(RIGHT, MASKED, {"ours": 0.9, "drowned_order": 0.05}).axes
    for axis, curves in ((tokens, RIGHT), (counts, MASKED)):
        assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == {
            plots.spoken(name): values for name, values in curves.items()
        }
        assert all(list(line.get_xdata()) == [1, 2, 3] for line in axis.lines), "steps are counted from 1"
        assert set(texts(axis)) == {plots.spoken(name) for name in curves}
    assert [list(line.get_xdata()) for line in order.lines] == [[0.9], [0.05]]
    assert set(texts(order)) == {"0.90  ours", "0.05  drowned order"}


def test_mistakes_stand_beside_what_is_right_with_their_means():
    many, single = mistakes({"4 view": ("gap", MANY, FEW), "7 axis": ("loss", MANY[:1] + 6.9, FEW[:1])}).axes
    assert [axis.get_title(loc="left") for axis in (many, single)] == ["4 view", "7 axis"]
    assert many.get_xlabel() == "gap" and [t.get_text() for t in many.get_yticklabels()] == ["ours", "mistake"]
    level, right, wrong = many.lines
    assert level.get_xdata()[0] == pytest.approx(0.5)
    assert right.get_xdata().tolist() == MANY.tolist() and wrong.get_xdata().tolist() == FEW.tolist()
    assert right.get_ydata().max() < 0.5 < wrong.get_ydata().min() and many.yaxis_inverted()
    assert set(texts(many)) == {"0.50 ± 0.30", "1.50 ± 0.30"} and set(texts(single)) == {"6.90", "1.00"}


# --- the study --------------------------------------------------------------------------------------------------


def test_a_reliability_diagram_has_a_dot_per_bin_by_its_share_and_the_calibration_error():
    (axis,) = calibration_figure(PREDICTIONS, "").axes
    diagonal, shot, steps = (line for line in axis.lines)
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert shot.get_xydata().tolist() == [[0.2, 0.1], [0.7, 0.9]]
    assert steps.get_xydata().tolist() == [[0.4, 0.4]]
    dots = [c for c in axis.collections if hasattr(c, "get_sizes") and len(c.get_sizes())]
    large, small = dots[0].get_sizes()
    assert (large - 12) / (small - 12) == pytest.approx(3)
    # (30 |0.1 - 0.2| + 10 |0.9 - 0.7|) / 40
    assert {"one shot\nerror 12.5%", "in steps\nerror 0.0%"} <= set(texts(axis))


def test_a_leak_map_has_a_line_per_fill_and_the_grid_of_tokens():
    rings, grid, scale = leak_map(RINGS, HEAT, title="grey", caption="").axes
    assert {line.get_label(): line.get_xydata().tolist() for line in rings.lines} == {
        "grey": [[1, 0.8], [2, 0.4], [3, 0.1]], "navier stokes": [[1, 0.3], [2, 0.1]],
    }  # fmt: skip
    assert set(texts(rings)) == {"grey", "navier stokes"} and rings.get_ylim()[0] == 0
    assert list(rings.get_xticks()) == [1, 2, 3] and grid.get_title(loc="left") == "grey"
    drawn = grid.images[0].get_array()
    assert np.ma.is_masked(drawn[7, 8]) and drawn.mask.sum() == 1
    assert np.allclose(drawn.compressed(), HEAT[~HEAT.isnan()])


def test_checkpoints_are_joined_in_the_order_of_training_with_their_steps():
    (axis,) = loss_against_score(TRAININGS, "").axes
    assert {line.get_label(): line.get_xydata().tolist() for line in axis.lines} == {
        "paper": [[5, 40], [4, 30]], "half masked": [[4.8, 42], [3.9, 35]],
    }  # fmt: skip
    assert axis.xaxis_inverted(), "the loss falls to the right"
    steps = [(text.get_text(), text.xy) for text in axis.texts if text.get_text().isdigit()]
    looks = [look for training in TRAININGS.values() for look in training.itertuples(index=False)]
    assert steps == [(str(step), (loss, kid)) for step, loss, kid in looks]
    assert {"paper", "half masked"} <= set(texts(axis))


def intervals(axis) -> list[list[float]]:
    """The ends of the horizontal lines, from the top down."""
    lines = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    return [[float(x) for x in line.get_xdata()] for line in sorted(lines, key=lambda line: line.get_ydata()[0])]


def test_a_forest_plot_has_an_interval_a_row_in_groups_with_numbers_and_verdicts():
    rows = CLAIMS.assign(margin=[0.3 if question == "training" else 0.2 for question in CLAIMS["question"]])
    figure = forest(rows, "claim", group="question", title="claims", caption="")
    (axis,) = figure.axes
    places = {text: artist.get_position()[1] for text, artist in texts(axis).items()}
    order = ["schedule", "cosine is best", "square is best", "steps", "iterating hurts", "one shot is as good",
             "training", "half masked is best"]  # fmt: skip
    assert sorted(order, key=places.get) == order and axis.yaxis_inverted()
    assert intervals(axis) == [[-0.3, 0.1], [0.25, 0.75], [-6.0, -4.0], [-0.1, 0.1], [-0.2, 0.2]]
    numbers = {"−0.1000 [−0.3000, +0.1000]", "+0.5000 [+0.2500, +0.7500]", "−5.0000 [−6.0000, −4.0000]"}
    assert numbers <= set(places)
    assert {"not decided at this n", "holds", "does not hold: worse"} <= set(places)
    assert {"artefact of pitfall 3", "← first is better", "second is better →"} <= set(places)
    assert axis.get_title(loc="left") == "claims"
    shaded = [band.get_paths()[0].get_extents() for band in axis.collections]
    assert [band.intervalx.tolist() for band in shaded] == [[0, 0], [-0.2, 0.2], [-0.3, 0.3]]
    assert [band.intervaly.tolist()[0] for band in shaded[1:]] == [-0.5, shaded[1].intervaly[1]]
    assert places["iterating hurts"] < shaded[2].intervaly[0] < places["half masked is best"]
    markers = [line for line in axis.lines if len(line.get_xdata()) == 1]
    looks = [(line.get_marker(), hex_colour(line)) for line in sorted(markers, key=lambda line: line.get_ydata()[0])]
    told = (Verdict.OPEN, Verdict.FAILS, Verdict.ARTEFACT, Verdict.HOLDS, Verdict.OPEN)
    assert looks == [VERDICTS[verdict][::-1] for verdict in told], "the marker and the colour of the verdict"


def test_in_a_forest_plot_no_text_covers_another():
    wide = {"question": "steps", "claim": "unsure", "kid": 0.0, "kid_low": -7.0, "kid_high": 7.0}
    wide |= {"verdict": Verdict.OPEN, "direction": Direction.UNKNOWN, "pitfall": 0, "margin": 0.05}
    above = wide | {"claim": "to the right", "kid": 4.0, "kid_low": 3.0}
    rows = pd.concat([CLAIMS, pd.DataFrame([wide, above])])
    rows["claim"] += ", told at length, as long as a claim can be, over two lines of a figure"
    figure = forest(rows, "claim", group="question", title="", caption="")
    (axis,) = figure.axes
    places = boxes(figure, axis)
    assert len(places) > 25
    assert not any(overlap(a, b) for i, a in enumerate(places) for b in places[:i])
    assert all(box.x0 >= axis.get_window_extent().x0 for box in places), "nothing reaches out to the left"


def test_there_may_be_more_lines_than_colours():
    many = {f"line {i}": [0, i] for i in range(len(plots.CYCLE) + 2)}
    tokens, *_ = pitfall_curves(many, MASKED, {"ours": 0.9}).axes
    assert len(tokens.lines) == len(many) and hex_colour(tokens.lines[1]) == hex_colour(tokens.lines[-1])


def test_without_groups_it_is_a_list_of_intervals_as_wide_as_they_need():
    row = {"label": "a − b", "kid": 1.5, "kid_low": -1.0, "kid_high": 4.0, "verdict": "worse", "margin": 0.1}
    rows = pd.DataFrame([row])
    (axis,) = forest(rows, "label", title="", caption="").axes
    assert axis.get_xlim() == pytest.approx((-4.32, 4.32))
    assert {"a − b", "+1.5000 [−1.0000, +4.0000]"} <= set(texts(axis))
    (clear,) = forest(rows.assign(kid_low=0.5), "label", title="", caption="").axes
    unsure, sure = (next(line for line in a.lines if len(line.get_xdata()) == 1) for a in (axis, clear))
    assert hex_colour(unsure) != hex_colour(sure) == plots.INK


def test_the_verdict_of_an_effect_is_its_direction():
    row = {"comparison": "a − b", "kid": 1.5, "kid_low": 1.0, "kid_high": 2.0, "margin": 0.1}
    effects = pd.DataFrame([row | {"verdict": str(direction)} for direction in Direction])
    (axis,) = forest(effects, "comparison", title="", caption="").axes
    assert {str(direction) for direction in Direction} <= set(texts(axis))
