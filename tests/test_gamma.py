"""Schedules fall from 1 to 0, and their counts are the published ones, free of float noise."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from lab5.gamma import SCHEDULES, gamma, masked_count, masked_counts
from lab5.study.lessons import committed

# Tokens committed per step of a 100-token hole in 8 steps, computed apart from this code.
COMMITTED = {
    "cosine": [2, 6, 9, 13, 15, 17, 19, 19],
    "linear": [13, 12, 13, 12, 13, 12, 13, 12],
    "square": [2, 5, 8, 10, 15, 17, 20, 23],
    "cubic": [1, 1, 4, 7, 12, 18, 24, 33],
    "square_root": [36, 14, 12, 9, 9, 7, 7, 6],
    "raised_cosine": [4, 11, 16, 19, 20, 16, 11, 3],
    "arccos": [8, 9, 8, 9, 9, 11, 14, 32],
    "log": [55, 15, 9, 6, 5, 4, 4, 2],
    "exp": [2, 2, 2, 4, 8, 14, 25, 43],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ends_are_exact_and_the_schedule_never_rises(schedule):
    assert gamma(schedule, 0.0) == 1.0
    assert gamma(schedule, 1.0) == 0.0
    shares = [gamma(schedule, i / 1000) for i in range(1001)]
    assert all(0 <= share <= 1 for share in shares)
    assert all(later <= earlier for earlier, later in pairwise(shares))


@pytest.mark.parametrize(
    "schedule, at_half",
    [
        ("linear", 0.5),
        ("cosine", math.sqrt(0.5)),
        ("square", 0.75),
        ("cubic", 0.875),
        ("square_root", 1 - math.sqrt(0.5)),
        ("raised_cosine", 0.5),
        ("arccos", 2 / 3),
        ("log", 1 / 8),  # 1 of the 8 bits of a number below 256
        ("exp", 1 - 1 / 16),
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


@pytest.mark.parametrize("tokens", [1, 2, 7, 100, 4096])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_falls_from_1_to_0_whatever_the_size_of_the_hole(schedule, tokens):
    shares = [gamma(schedule, i / 50, tokens) for i in range(51)]
    assert shares[0] == 1 and shares[-1] == 0
    assert all(1 >= before >= after >= 0 for before, after in pairwise(shares))


@pytest.mark.parametrize("schedule", ["log", "exp"])
def test_log_and_exp_depend_on_the_size_of_the_hole_and_the_others_do_not(schedule):
    assert gamma(schedule, 0.5, 100) != gamma(schedule, 0.5, 16)
    assert gamma("cosine", 0.5, 100) == gamma("cosine", 0.5, 16)
    # At r = 1/n "log" begins to fall; "exp" has unmasked 16^(3/4) = 8 of 16 tokens at r = 3/4.
    assert gamma("log", 1 / 16, 16) == pytest.approx(1) and gamma("exp", 0.75, 16) == pytest.approx(0.5)
    # The smallest holes in which they are what they are: "log" of two tokens, "exp" of one, which is one_shot.
    assert gamma("log", 0.75, 2) == pytest.approx(-math.log2(0.75)) and gamma("exp", 0.5, 1) == 0


# --- tokens per step


@pytest.mark.parametrize("schedule", COMMITTED)
def test_tokens_committed_per_step_match_the_published_table(schedule):
    masked = [masked_count(schedule, step, 8, 100) for step in range(9)]
    assert [before - after for before, after in pairwise(masked)] == COMMITTED[schedule]
    assert committed(schedule, 8, 100) == COMMITTED[schedule]


def test_the_contracts_sequence_for_a_typical_hole():
    masked = [masked_count("cosine", step, 10, 85) for step in range(1, 11)]
    assert masked == [83, 80, 75, 68, 60, 49, 38, 26, 13, 0]
    assert masked_counts("cosine", 10, 85) == masked


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_counts_of_all_steps_are_those_of_each_for_one_hole_and_for_many(schedule, rounding):
    holes = torch.tensor([0, 1, 31, 85])
    right = [[masked_count(schedule, step, 7, n, rounding) for step in range(1, 8)] for n in holes.tolist()]
    assert torch.stack(masked_counts(schedule, 7, holes, rounding), dim=1).tolist() == right
    assert [masked_counts(schedule, 7, n, rounding) for n in holes.tolist()] == right


def reader_of_muse(schedule, steps, hole):
    """The loop of muse-maskgit-pytorch: masked before each step, at least one."""
    masked = [max(int(gamma(schedule, float(r), hole) * hole + 1e-9), 1) for r in np.linspace(0, 1, steps)]
    return [before - after for before, after in pairwise([*masked, 0])]


def reader_of_valeoai(schedule, steps, hole):
    """`adap_sche` of valeoai's Maskgit-pytorch: proportions, rounded, at least one, the rest in the last step."""
    shares = np.array([gamma(schedule, float(r), hole) for r in np.linspace(1, 0, steps)])
    counts = np.maximum(np.round(shares / shares.sum() * hole), 1)
    counts[-1] += hole - counts.sum()
    return counts.astype(int).tolist()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "square", "arccos"])
@pytest.mark.parametrize("steps, hole", [(8, 100), (12, 256), (18, 85)])
def test_other_conventions_read_as_the_code_that_has_them(schedule, steps, hole):
    assert committed(schedule, steps, hole, "start") == reader_of_muse(schedule, steps, hole)
    assert committed(schedule, steps, hole, "share") == reader_of_valeoai(schedule, steps, hole)


def test_the_same_name_means_other_counts_in_other_conventions():
    assert committed("cosine", 10, 85, "end") == [2, 3, 5, 7, 8, 11, 11, 12, 13, 13]
    assert committed("cosine", 10, 85, "start") == [2, 4, 6, 8, 11, 12, 13, 15, 13, 1]
    assert committed("cosine", 10, 85, "share") == [1, 2, 5, 7, 9, 10, 12, 13, 13, 13]


@pytest.mark.parametrize("convention", ["end", "start", "share"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_in_every_convention_all_tokens_are_committed_and_none_twice(schedule, convention):
    for steps in (1, 2, 7, 20):
        for hole in (0, 1, 5, 85):
            counts = committed(schedule, steps, hole, convention)
            assert len(counts) == steps and sum(counts) == hole and min(counts) >= 0
            if steps == 1:
                assert counts == [hole]


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
        for steps in (1, 3, 7, 10, 25):
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
