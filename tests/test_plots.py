"""Figures hold what was asked for: panels, lines, labels, colours; and the same data give the same file."""

import io
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib.figure import Figure

from lab5 import plots
from lab5.gamma import SCHEDULES, gamma
from lab5.plots import attention_map, bars, decode_grid, fid_curve, gamma_curves, loss_curve, mask_pictures
from lab5.results import show
from lab5.trainer import TrainStep

PICTURES = torch.randint(256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.rand(3, 256, generator=torch.Generator().manual_seed(1))
HISTORY = [TrainStep(s, 80, 2 / s, 1e-3 * s, 0.1 * s, {"accuracy": s / 100}) for s in range(1, 81)]
ROWS = [
    {"schedule": schedule, "steps": steps, "seed": seed, "score": base + steps + 2.0 * seed}
    for schedule, base in (("linear", 10), ("cosine", 20))
    for steps in (4, 8)
    for seed in (0, 1)
]


def draw() -> dict[str, Figure]:
    """One figure of each kind."""
    return {
        "decode_grid": decode_grid({"cosine image": PICTURES, "truth": PICTURES[:2]}, ["t = 0", "t = 1"], caption="n"),
        "loss_curve": loss_curve(HISTORY, "accuracy", label="accuracy", validation=[(40, 0.3), (80, 0.6)], caption="n"),
        "gamma_curves": gamma_curves(caption="n"),
        "fid_curve": fid_curve(ROWS, "steps", baselines={"do_nothing": 40.0}, caption="n"),
        "attention_map": attention_map(PICTURES[0], WEIGHTS[:2], 17, titles=["a", "b", "c"], caption="n"),
        "bars": bars({"ours": 1.5, "telea": 2.5}, xlabel="score", highlight="ours", caption="n"),
    }


def hex_colour(artist) -> str:
    return colors.to_hex(artist.get_color()).upper()


# --- for all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(draw()))
def test_the_caption_is_under_the_figure(name):
    assert draw()[name].get_supxlabel() == "n"


def test_a_long_caption_is_broken_into_lines_that_fit():
    figure = bars({"a": 1.0}, xlabel="score", caption="words and words " * 20)
    figure.canvas.draw()
    assert figure._supxlabel.get_window_extent().width < figure.bbox.width


def test_the_same_data_give_the_same_svg(own_folders, capsys):
    files = []
    for _ in range(2):
        for name, figure in draw().items():
            show(figure, "a figure", name)
        files.append({path.name: path.read_bytes() for path in (own_folders / "figures").glob("*.svg")})
    assert len(files[0]) == 6 and files[0] == files[1]


def test_figures_leave_matplotlibs_settings_alone_and_do_not_depend_on_them():
    def pixels(figure: Figure) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="rgba", dpi=50)
        return buffer.getvalue()

    before = dict(matplotlib.rcParams)
    plain = {name: pixels(figure) for name, figure in draw().items()}
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.titlesize": 20, "axes.grid": False, "axes.spines.top": True}):
        assert {name: pixels(figure) for name, figure in draw().items()} == plain


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


@pytest.mark.parametrize("rows", [{}, {"a": PICTURES[:0]}])
def test_a_grid_of_nothing_is_refused(rows):
    with pytest.raises(ValueError, match="at least one row with a picture"):
        decode_grid(rows)


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


def test_a_loss_curve_shows_loss_rate_metric_validation_and_floor():
    figure = loss_curve(
        HISTORY, "accuracy", label="masked accuracy", validation=[(40, 0.3), (80, 0.6)], floor=("chance", 0.1)
    )
    left, right, rate = figure.axes
    assert np.allclose(left.lines[0].get_xydata(), [(s.step, s.loss) for s in HISTORY])
    assert np.allclose(rate.lines[0].get_ydata(), [s.lr for s in HISTORY])
    by_name = {line.get_label(): line for line in right.lines}
    assert np.allclose(by_name["validation"].get_xydata(), [(40, 0.3), (80, 0.6)])
    assert set(by_name["chance"].get_ydata()) == {0.1}
    smooth = by_name["training"].get_xydata()  # a running mean over 2 of 80 values
    assert np.allclose(smooth, [(s, (2 * s - 1) / 200) for s in range(2, 81)])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "validation", "chance"]
    assert right.get_title(loc="left") == "Masked accuracy"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("history", [[], HISTORY[:1]])
def test_a_loss_curve_can_be_drawn_from_the_first_step_on(history):
    loss_curve(history, "no such metric", label="accuracy").canvas.draw()


def test_gamma_curves_are_the_schedules():
    figure = gamma_curves(("cosine", "stair"))
    assert [line.get_label() for line in figure.axes[0].lines] == ["cosine", "stair"]
    for line in figure.axes[0].lines:
        x, y = line.get_xdata(), line.get_ydata()
        assert (x[0], y[0], x[-1], y[-1]) == (0, 1, 1, 0)
        assert y[500] == pytest.approx(gamma(line.get_label(), x[500]))


def test_a_fid_curve_has_means_with_deviations_a_line_per_schedule():
    figure = fid_curve(ROWS, "steps", baselines={"do_nothing": 40.0, "truth": 1.0}, ylabel="score")
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["linear", "cosine"]
    for container, base in zip(axis.containers, (10, 20), strict=True):
        line, _, (error_bars,) = container.lines
        assert line.get_ydata().tolist() == [base + 4 + 1, base + 8 + 1]  # seeds add 0 and 2
        assert np.allclose(line.get_xdata(), [4, 8], atol=0.1), "beside each other, but at their T"
        for (_, low), (_, high) in error_bars.get_segments():
            assert high - low == pytest.approx(2 * math.sqrt(2)), "the sample deviation of 0 and 2 on either side"
    assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [40.0, 1.0]
    assert axis.get_xticks().tolist() == [4, 8] and axis.get_ylabel() == "score"
    assert {text.get_text() for text in axis.texts} == {"do nothing", "truth"}


def test_one_seed_has_no_deviation():
    container = fid_curve([row for row in ROWS if row["seed"] == 0], "steps").axes[0].containers[0]
    for (_, low), (_, high) in container.lines[2][0].get_segments():
        assert low == high


def test_an_attention_map_has_a_panel_a_head_and_frames_the_query():
    figure = attention_map(PICTURES[0], WEIGHTS, 16 * 2 + 5, titles=["picture", "head 1"])
    assert len(figure.axes) == 1 + 3
    for i, axis in enumerate(figure.axes):
        x, y = axis.lines[0].get_xdata(), axis.lines[0].get_ydata()
        assert (x.min(), x.max(), y.min(), y.max()) == (19.5, 23.5, 7.5, 11.5), "columns 20 to 23, rows 8 to 11"
        if i > 0:
            below, heat = axis.images
            assert np.allclose(heat.get_array(), WEIGHTS[i - 1].view(16, 16) / WEIGHTS[i - 1].max())
            assert tuple(heat.get_extent()) == tuple(below.get_extent()), "it covers the picture"
    assert [axis.get_title() for axis in figure.axes] == ["picture", "head 1", "", ""]


def test_bars_stand_in_the_order_given_with_their_values():
    (axis,) = bars({"ours": 1.25, "telea": 2.5}, xlabel="score", highlight="ours", digits=1).axes
    assert [bar.get_width() for bar in axis.patches] == [1.25, 2.5]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ours", "telea"] and axis.yaxis_inverted()
    assert [text.get_text() for text in axis.texts] == ["1.2", "2.5"]
    ours, telea = (colors.to_hex(bar.get_facecolor()).upper() for bar in axis.patches)
    assert ours == plots.COLOURS["cosine"] != telea
