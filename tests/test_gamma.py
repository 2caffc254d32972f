"""Schedules fall from 1 to 0, and their counts are the published ones, free of float noise."""

import math
from fractions import Fraction

import pytest
import torch

from lab5.gamma import SCHEDULES, gamma, masked_count

# Tokens committed per step of a 100-token hole in 8 steps, computed apart from this code.
COMMITTED = {
    "cosine": [2, 6, 9, 13, 15, 17, 19, 19],
    "linear": [13, 12, 13, 12, 13, 12, 13, 12],
    "square": [2, 5, 8, 10, 15, 17, 20, 23],
    "cubic": [1, 1, 4, 7, 12, 18, 24, 33],
    "square_root": [36, 14, 12, 9, 9, 7, 7, 6],
    "raised_cosine": [4, 11, 16, 19, 20, 16, 11, 3],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ends_are_exact_and_the_schedule_never_rises(schedule):
    assert gamma(schedule, 0.0) == 1.0
    assert gamma(schedule, 1.0) == 0.0
    shares = [gamma(schedule, i / 1000) for i in range(1001)]
    assert all(0 <= share <= 1 for share in shares)
    assert all(later <= earlier for earlier, later in zip(shares, shares[1:], strict=False))


@pytest.mark.parametrize(
    "schedule, at_half",
    [
        ("linear", 0.5),
        ("cosine", math.sqrt(0.5)),
        ("square", 0.75),
        ("cubic", 0.875),
        ("square_root", 1 - math.sqrt(0.5)),
        ("raised_cosine", 0.5),
        ("stair", 0.5),
        ("one_shot", 0.0),
    ],
)
def test_closed_form_at_one_half(schedule, at_half):
    assert gamma(schedule, 0.5) == pytest.approx(at_half, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_ratios_gives_what_each_ratio_gives(schedule, dtype):
    ratios = torch.tensor([[0.0, 0.125, 0.3], [0.5, 0.9, 1.0]], dtype=dtype)
    shares = gamma(schedule, ratios)
    assert shares.dtype == dtype and shares.shape == ratios.shape
    one_by_one = [gamma(schedule, float(r)) for r in ratios.flatten()]
    assert torch.equal(shares.flatten(), torch.tensor(one_by_one, dtype=dtype))


@pytest.mark.parametrize("schedule", COMMITTED)
def test_tokens_committed_per_step_match_the_published_table(schedule):
    masked = [masked_count(schedule, step, 8, 100) for step in range(9)]
    assert [before - after for before, after in zip(masked, masked[1:], strict=False)] == COMMITTED[schedule]


def test_the_contracts_sequence_for_a_typical_hole():
    masked = [masked_count("cosine", step, 10, 85) for step in range(1, 11)]
    assert masked == [83, 80, 75, 68, 60, 49, 38, 26, 13, 0]


def test_the_stair_takes_a_tenth_per_step_and_reaches_the_floor():
    # 1 - (r // 0.1) * 0.1 would leave 10 at the end and 80 instead of 70 at r = 0.3.
    assert [masked_count("stair", step, 10, 100) for step in range(11)] == list(range(100, -1, -10))


def test_one_shot_commits_everything_at_the_first_step():
    assert [masked_count("one_shot", step, 5, 85) for step in range(6)] == [85, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_counts_equal_those_of_exact_fractions(rounding):
    exact = {"linear": lambda r: 1 - r, "square": lambda r: 1 - r**2, "cubic": lambda r: 1 - r**3}
    holes = [1, 10, 85, 100, 139, 256]
    for schedule, share in exact.items():
        for steps in (3, 7, 10, 25):
            for step in range(steps + 1):
                right = [getattr(math, rounding)(share(Fraction(step, steps)) * n) for n in holes]
                assert [masked_count(schedule, step, steps, n, rounding) for n in holes] == right
                assert masked_count(schedule, step, steps, torch.tensor(holes), rounding).tolist() == right


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_is_left_at_the_end_and_everything_at_the_start(schedule, rounding):
    for at_start in (0, 1, 85, 256):
        assert masked_count(schedule, 0, 12, at_start, rounding) == at_start
        assert masked_count(schedule, 12, 12, at_start, rounding) == 0


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_tensor_of_holes_gives_one_count_per_image(schedule, rounding):
    at_start = torch.tensor([0, 1, 31, 85, 139, 256])
    for step in range(9):
        counts = masked_count(schedule, step, 8, at_start, rounding)
        assert counts.dtype == torch.int64
        assert counts.tolist() == [masked_count(schedule, step, 8, n, rounding) for n in at_start.tolist()]
    assert at_start.tolist() == [0, 1, 31, 85, 139, 256]


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="schedule must be one of linear, cosine.*'cosin'"):
        gamma("cosin", 0.5)
    with pytest.raises(ValueError, match="schedule must be one of"):
        masked_count("cosin", 1, 8, 100)
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="ratio must lie between 0 and 1"):
            gamma("cosine", ratio)
    with pytest.raises(ValueError, match="ratio must lie between 0 and 1"):
        gamma("cosine", torch.tensor([0.5, 1.5]))
    for step in (-1, 9):
        with pytest.raises(ValueError, match=f"between 0 and the 8 steps.*it is {step}"):
            masked_count("cosine", step, 8, 100)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        masked_count("cosine", 0, 0, 100)
    with pytest.raises(ValueError, match="'floor' or 'ceil'.*'round'"):
        masked_count("cosine", 1, 8, 100, rounding="round")
