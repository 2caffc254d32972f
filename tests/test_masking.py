"""Each masking has the law that its name says and draws what it has always drawn.

That each hides at least one token, and the same ones from the same generator, is in test_properties.py.
"""

import math

import pytest
import scipy.stats
import torch
from stubs import seeded

from lab5.gamma import SCHEDULES, gamma
from lab5.masking import MASKINGS, mvtm_mask, read_masking

N = 256


def holes_of(n, seed=0):
    """Token masks of 60 to 120 positions in a row."""
    start, length = torch.randint(130, (2, n), generator=seeded(seed))
    place = torch.arange(N)
    return (place >= start[:, None]) & (place < (start + 60 + length % 61)[:, None])


def masks(masking, n=2000, positions=N, holes=None):
    return read_masking(masking)(n, positions, holes, seeded())


# --- what several of them promise -------------------------------------------------------------------------------------

DRAWN = {  # four images of 16 tokens in hexadecimal, and a number drawn afterwards
    "cosine": "ffdf ffef 2062 c9b3 153d",
    "linear": "9fd7 d5ef 0062 81b1 153d",
    "square": "ffdf ffef 6062 c9f3 153d",
    "bernoulli": "6e8f 5406 0f63 66cb 4904",
    "bernoulli:0.5": "6e8f 5406 0f63 66cb 4904",
    "uniform": "ffff 4c44 f636 289b fe0a",
    "hole": "1400 07fe 0280 0040 83a3",
    "mixed": "1400 4810 dffd 0040 97ea",
}


@pytest.mark.parametrize("masking", DRAWN)
def test_draws_are_what_they_were_when_the_trainings_on_disk_began(masking):
    place, generator = torch.arange(16), seeded(7)
    holes = (place >= torch.tensor([[2], [5], [9]])) & (place < torch.tensor([[8], [15], [12]]))
    masked = read_masking(masking)(4, 16, holes, generator)
    rows = [int("".join("1" if token else "0" for token in row), 2) for row in masked.tolist()]
    rows.append(int(torch.randint(1 << 16, (), generator=generator)))
    assert " ".join(f"{row:04x}" for row in rows) == DRAWN[masking]


@pytest.mark.parametrize("masking", ["cosine", "cosine_kept", "uniform", "bernoulli", "bernoulli:0:1", "per_token",
                                     "count:0.4:0.5"])  # fmt: skip
def test_no_position_is_masked_more_often_than_another(masking):
    counts = masks(masking, 6000, 32).double().sum(0)
    assert (counts / counts.mean() - 1).abs().max() < 0.08


# --- gamma(u) ---------------------------------------------------------------------------------------------------------

INVERSE = {
    "cosine": lambda share: 2 / math.pi * math.acos(share),
    "linear": lambda share: 1 - share,
    "square": lambda share: math.sqrt(1 - share),
    "cubic": lambda share: (1 - share) ** (1 / 3),
    "square_root": lambda share: (1 - share) ** 2,
    "raised_cosine": lambda share: math.acos(2 * share - 1) / math.pi,
}


@pytest.mark.parametrize("kept", [False, True], ids=["masked", "kept"])
@pytest.mark.parametrize("schedule", INVERSE)
def test_gamma_of_a_uniform_ratio_is_the_share_of_tokens_masked_or_kept(schedule, kept):
    masked = masks(f"{schedule}_kept" if kept else schedule, 4000, 64)
    counts = (~masked if kept else masked).sum(1).double()
    for c in (6, 16, 32, 48, 60):  # P(gamma(u) 64 <= c) = 1 - gamma^-1(c / 64), for gamma falls
        share = (c + kept) / 64  # what is masked is rounded up, what is kept down
        assert gamma(schedule, INVERSE[schedule](share)) == pytest.approx(share)
        assert abs((counts <= c).double().mean() - (1 - INVERSE[schedule](share))) < 0.03, c


def test_every_schedule_is_a_masking_but_the_one_that_hides_one_token():
    for schedule in SCHEDULES:
        assert (schedule in MASKINGS) == (f"{schedule}_kept" in MASKINGS) == (schedule != "one_shot")


# --- Bernoulli and counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("masking", "p"), [("bernoulli", 0.5), ("bernoulli:0.2", 0.2), ("per_token", 0.5),
                                            ("per_token:0.1:0.5", 0.3)])  # fmt: skip
def test_bernoulli_counts_are_binomial_and_a_probability_per_token_is_nothing_else(masking, p):
    counts = masks(masking).sum(1).double()
    assert counts.mean() / N == pytest.approx(p + (1 - p) / N, abs=0.002)  # one token is masked in any case
    assert counts.std() == pytest.approx(math.sqrt(N * p * (1 - p)), rel=0.05)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.9), (0.3, 0.4)])
def test_a_bernoulli_of_two_numbers_has_a_share_of_its_own_for_each_image(low, high):
    counts = masks(f"bernoulli:{low}:{high}").sum(1).double()
    mean, spread = (low + high) / 2, (high - low) / math.sqrt(12)
    within = N * (mean - mean**2 - spread**2)  # E[N p (1 - p)]
    assert counts.mean() / N == pytest.approx(mean, abs=0.02)
    assert counts.std() == pytest.approx(math.sqrt(within + (N * spread) ** 2), rel=0.05)


@pytest.mark.parametrize("masking", ["uniform", "bernoulli:0:1"])
def test_counts_are_uniform_from_one_to_all(masking):
    """Those of a Bernoulli are so from none to all, and a random token more makes it from one to all exactly."""
    counts = masks(masking, 8000, 8).sum(1)
    assert scipy.stats.chisquare(torch.bincount(counts, minlength=9)[1:].numpy()).pvalue > 1e-3


def test_a_count_between_two_shares_is_exact_and_uniform_there():
    counts = masks("count:0.4:0.5", 5000, 100).sum(1)
    assert (counts.min(), counts.max()) == (40, 49)  # the share itself stays below 0.5
    assert scipy.stats.chisquare(torch.bincount(counts)[40:].numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("masking", "positions", "count"), [
    ("count", 256, 128), ("count:0.4", 256, 102), ("count:0.29", 100, 29), ("count:1", 7, 7), ("count:0", 7, 1),
])  # fmt: skip
def test_a_count_of_one_share_is_that_of_every_image(masking, positions, count):
    assert masks(masking, 50, positions).sum(1).unique().tolist() == [count]


# --- holes and mixtures -----------------------------------------------------------------------------------------------


def test_hole_masks_lie_inside_a_given_hole_and_a_quarter_and_more_are_all_of_it():
    holes = holes_of(3)
    masked = masks("hole", holes=holes)
    inside = (masked[:, None] <= holes[None]).all(2)  # image, hole
    assert inside.any(1).all()
    size = holes.sum(1)
    whole = (masked[:, None] == holes[None]).all(2).any(1).double().mean()
    # One in four by decree; of the others, those with ceil(cos(pi u / 2) M) = M.
    rest = sum(2 / math.pi * math.acos(1 - 1 / m) for m in size.tolist()) / 3
    assert whole == pytest.approx(0.25 + 0.75 * rest, abs=0.025)
    share = masked.sum(1) / (inside * size).amax(1)
    assert share.mean() == pytest.approx(0.25 + 0.75 * 2 / math.pi, abs=0.03)


@pytest.mark.parametrize("masking", ["hole", "whole_hole"])
def test_each_hole_is_as_likely_as_any(masking):
    counts = masks(masking, holes=torch.eye(4, N, dtype=torch.bool)).sum(0)
    assert scipy.stats.chisquare(counts[:4].numpy()).pvalue > 1e-3 and not counts[4:].any()


def test_whole_holes_are_the_holes():
    holes = holes_of(3)
    assert (masks("whole_hole", 50, holes=holes)[:, None] == holes[None]).all(2).any(1).all()


def first_80():
    return (torch.arange(N) < 80)[None]


def test_mixed_masks_are_half_of_them_in_a_hole_and_half_anywhere():
    masked = masks("mixed", holes=first_80())
    within = ~masked[:, 80:].any(1)
    assert within.double().mean() == pytest.approx(0.5, abs=0.03)
    assert masked[~within].double().mean() == pytest.approx(2 / math.pi, abs=0.03)


def test_a_mixture_gives_each_image_one_of_its_maskings_and_names_may_be_repeated():
    for masking, share in (("whole_hole+count:0.9", 1 / 2), ("whole_hole + count:0.9 + count:0.9", 1 / 3)):
        masked = masks(masking, holes=first_80())
        whole = (masked == first_80()).all(1)
        assert (masked[~whole].sum(1) == 230).all()
        assert whole.double().mean() == pytest.approx(share, abs=0.03)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("masking", "message"), [
    ("cosin", "unknown masking 'cosin'; there are linear, cosine, .*mixed"),
    ("", "unknown masking ''"),
    ("hole+cosin", "unknown masking 'cosin'"),
    ("hole+", "unknown masking ''"),
    ("cosine:0.5", "'cosine' takes no numbers, found 'cosine:0.5'"),
    ("bernoulli:0:0.5:1", "'bernoulli' takes one or two numbers, found 'bernoulli:0:0.5:1'"),
    ("bernoulli:half", "takes shares from 0 to 1, the lower one first, found 'bernoulli:half'"),
    ("bernoulli:", "takes shares from 0 to 1"),
    ("bernoulli:nan", "takes shares from 0 to 1"),
    ("count:40:50", "'count' takes shares from 0 to 1"),
    ("count:0.5:0.4", "the lower one first, found 'count:0.5:0.4'"),
    ("per_token:-0.1:1", "'per_token' takes shares from 0 to 1"),
])  # fmt: skip
def test_what_is_no_masking_is_refused_with_what_was_expected(masking, message):
    with pytest.raises(ValueError, match=message):
        read_masking(masking)


@pytest.mark.parametrize("masking", ["hole", "whole_hole", "mixed", "cosine+hole"])
def test_maskings_by_holes_are_refused_without_any(masking):
    with pytest.raises(ValueError, match="needs holes .* found none"):
        mvtm_mask(torch.zeros(1, N, dtype=torch.int64), masking, seeded())
