"""Schedules have their closed forms, and their counts are the published ones, free of float noise.

What holds for every schedule, ratio and hole is in test_properties.py.
"""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from lab5.gamma import SCHEDULES, gamma, masked_count, masked_counts
from lab5.study.lessons import committed

# Tokens committed per step, from holes of 100 in 8 steps and from some others, computed apart from this code.
COMMITTED = [
    ("cosine", [2, 6, 9, 13, 15, 17, 19, 19]),
    ("linear", [13, 12, 13, 12, 13, 12, 13, 12]),
    ("square", [2, 5, 8, 10, 15, 17, 20, 23]),
    ("cubic", [1, 1, 4, 7, 12, 18, 24, 33]),
    ("square_root", [36, 14, 12, 9, 9, 7, 7, 6]),
    ("raised_cosine", [4, 11, 16, 19, 20, 16, 11, 3]),
    ("arccos", [8, 9, 8, 9, 9, 11, 14, 32]),
    ("log", [55, 15, 9, 6, 5, 4, 4, 2]),
    ("exp", [2, 2, 2, 4, 8, 14, 25, 43]),
    ("stair", [10] * 10),  # 1 - (r // 0.1) * 0.1 would leave 10 at the end and 80 instead of 70 at r = 0.3
    ("one_shot", [85, 0, 0, 0, 0]),
    ("cosine", [2, 3, 5, 7, 8, 11, 11, 12, 13, 13]),  # the contract's sequence for a typical hole
]


@pytest.mark.parametrize("schedule, ratio, tokens, share", [
    ("stair", 0.95, 256, 0.1), ("log", 1e-3, 256, 1.0), ("log", 0.5, 1, 1.0), ("exp", 0.5, 0, 0.0),
])  # fmt: skip
def test_closed_form_where_a_schedule_is_cut_off(schedule, ratio, tokens, share):
    assert gamma(schedule, ratio, tokens) == pytest.approx(share)


@pytest.mark.parametrize("schedule, at_half", [
    ("linear", 0.5), ("cosine", math.sqrt(0.5)), ("square", 0.75), ("cubic", 0.875),
    ("square_root", 1 - math.sqrt(0.5)), ("raised_cosine", 0.5), ("arccos", 2 / 3),
    ("log", 1 / 8),  # 1 of the 8 bits of a number below 256
    ("exp", 1 - 1 / 16), ("stair", 0.5), ("one_shot", 0.0),
])  # fmt: skip
def test_closed_form_at_one_half_and_exact_ends(schedule, at_half):
    assert gamma(schedule, 0.5) == pytest.approx(at_half, abs=1e-15)
    assert gamma(schedule, 0.0) == 1 and gamma(schedule, 1.0) == 0


def test_log_and_exp_depend_on_the_size_of_the_hole_and_the_others_do_not():
    for schedule in SCHEDULES:
        assert (gamma(schedule, 0.5, 100) == gamma(schedule, 0.5, 16)) == (schedule not in ("log", "exp"))
    # At r = 1/n "log" begins to fall; "exp" has unmasked 16^(3/4) = 8 of 16 tokens at r = 3/4.
    assert gamma("log", 1 / 16, 16) == pytest.approx(1) and gamma("exp", 0.75, 16) == pytest.approx(0.5)
    # The smallest holes in which they are what they are: "log" of two tokens, "exp" of one, which is one_shot.
    assert gamma("log", 0.75, 2) == pytest.approx(-math.log2(0.75)) and gamma("exp", 0.5, 1) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_ratios_gives_what_each_ratio_gives_in_its_own_type(dtype):
    ratios = torch.tensor([[0.0, 0.125, 0.3], [0.5, 0.9, 1.0]], dtype=dtype)
    one_by_one = [[gamma("log", ratio, 16) for ratio in row] for row in ratios.tolist()]
    shares = gamma("log", ratios, 16)
    assert shares.dtype == dtype and torch.equal(shares, torch.tensor(one_by_one, dtype=dtype))


# --- tokens per step


@pytest.mark.parametrize("schedule, counts", COMMITTED)
def test_tokens_committed_per_step_match_the_published_table(schedule, counts):
    steps, hole = len(counts), sum(counts)
    masked = [masked_count(schedule, step, steps, hole) for step in range(steps + 1)]
    assert [before - after for before, after in pairwise(masked)] == counts == committed(schedule, steps, hole)
    assert masked_counts(schedule, steps, hole) == masked[1:]


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("schedule, share", [
    ("linear", lambda r: 1 - r), ("square", lambda r: 1 - r**2), ("cubic", lambda r: 1 - r**3),
], ids=["linear", "square", "cubic"])  # fmt: skip
def test_counts_equal_those_of_exact_fractions(schedule, share, rounding):
    holes = [1, 10, 85, 100, 139, 256]
    for steps in (1, 3, 7, 10, 25):
        for step in range(steps + 1):
            right = [getattr(math, rounding)(share(Fraction(step, steps)) * n) for n in holes]
            assert masked_count(schedule, step, steps, torch.tensor(holes), rounding).tolist() == right


# --- what the same names mean in other code


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


# --- what is refused


@pytest.mark.parametrize("call, sentence", [
    (lambda: gamma("cosin", 0.5), "schedule must be one of linear, cosine.*'cosin'"),
    (lambda: masked_count("cosin", 1, 8, 100), "schedule must be one of"),
    (lambda: gamma("cosine", torch.tensor([0.5, 1.5])), "ratio must lie between 0 and 1"),
    (lambda: gamma("cosine", math.nan), "ratio must lie between 0 and 1"),
    (lambda: masked_count("cosine", -1, 8, 100), "between 0 and the 8 steps.*it is -1"),
    (lambda: masked_count("cosine", 9, 8, 100), "between 0 and the 8 steps.*it is 9"),
    (lambda: masked_count("cosine", 0, 0, 100), "steps must be at least 1"),
    (lambda: masked_count("cosine", 1, 8, 100, rounding="round"), "'floor' or 'ceil'.*'round'"),
], ids=["name", "name in a count", "above 1", "nan", "step -1", "step 9", "no steps", "rounding"])  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
