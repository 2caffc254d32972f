"""What holds for every schedule, mask, decoding and pair of sets: tried on inputs that nobody has chosen."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stubs import POSITIONS, K, assert_committed_tokens_stay, assert_promises, seeded, walk

from lab5.data.dataset import token_mask
from lab5.decoder import decode_steps
from lab5.fid import frechet_distance, frechet_distance_from_stats, kid
from lab5.gamma import SCHEDULES, gamma, masked_count, masked_counts
from lab5.masking import MASKINGS, WITH_NUMBERS, mvtm_mask
from lab5.objectives import epoch_batch
from lab5.samplers import CODES, ORDERS
from lab5.study.lessons import CONVENTIONS, committed

tried = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
schedules = st.sampled_from(sorted(SCHEDULES))
roundings = st.sampled_from(["floor", "ceil"])
holes = st.integers(0, 300)
seeds = st.integers(0, 2**31)


# --- gamma ------------------------------------------------------------------------------------------------------------


@tried
@given(schedules, st.floats(0, 1), st.floats(0, 1), st.integers(1, 5000))
def test_gamma_is_a_share_that_falls_from_one_to_nothing(schedule, a, b, tokens):
    early, late = (gamma(schedule, ratio, tokens) for ratio in sorted((a, b)))
    assert 0 <= late <= early + 1e-12 <= 1 + 1e-12
    assert gamma(schedule, 0.0, tokens) == 1 and gamma(schedule, 1.0, tokens) == 0


@tried
@given(schedules, st.floats().filter(lambda ratio: not 0 <= ratio <= 1))
def test_gamma_refuses_every_ratio_outside(schedule, ratio):
    with pytest.raises(ValueError, match="ratio must lie between 0 and 1"):
        gamma(schedule, ratio)


@tried
@given(schedules, st.integers(1, 40), holes)
def test_counts_fall_from_the_hole_to_nothing_and_are_those_of_each_image(schedule, steps, hole):
    for rounding in ("floor", "ceil"):
        counts = [masked_count(schedule, step, steps, hole, rounding) for step in range(steps + 1)]
        assert counts[0] == hole and counts[-1] == 0 and counts == sorted(counts, reverse=True)
        assert counts[1:] == masked_counts(schedule, steps, hole, rounding)
        several = torch.stack(masked_counts(schedule, steps, torch.tensor([hole, 0, 7]), rounding), dim=1).tolist()
        assert several == [counts[1:], [0] * steps, masked_counts(schedule, steps, 7, rounding)]


@tried
@given(schedules, st.integers(1, 40), holes, st.data())
def test_rounding_up_keeps_at_most_one_more(schedule, steps, hole, data):
    step = data.draw(st.integers(0, steps))
    low, high = (masked_count(schedule, step, steps, hole, rounding) for rounding in ("floor", "ceil"))
    exact = hole * gamma(schedule, step / steps, hole)
    assert low <= high <= low + 1 and low - 1e-6 <= exact <= high + 1e-6


@tried
@given(schedules, st.integers(1, 20), holes, st.sampled_from(CONVENTIONS))
def test_every_convention_commits_the_whole_hole_and_never_takes_back(schedule, steps, hole, convention):
    counts = committed(schedule, steps, hole, convention)
    assert len(counts) == steps and sum(counts) == hole and min(counts) >= 0


# --- masks ------------------------------------------------------------------------------------------------------------


@st.composite
def maskings(draw) -> str:
    """As the grammar has them: names, some with one share or two, several together."""

    def one() -> str:
        name = draw(st.sampled_from(sorted(MASKINGS)))
        if name in WITH_NUMBERS and draw(st.booleans()):
            low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
            return f"{name}:{low}:{high}" if draw(st.booleans()) else f"{name}:{low}"
        return name

    return "+".join(one() for _ in range(draw(st.integers(1, 3))))


@tried
@given(maskings(), st.integers(1, 6), st.integers(1, 300), st.sampled_from([0.0, 0.01, 0.5, 1.0]), seeds)
def test_every_masking_hides_something_of_each_image_and_repeats_itself(masking, n, positions, share, seed):
    holes = torch.rand(3, positions, generator=seeded(seed)) < share
    tokens = torch.zeros(n, positions, dtype=torch.int64)
    first, again = (mvtm_mask(tokens, masking, seeded(seed), holes) for _ in range(2))
    assert first.shape == (n, positions) and first.dtype == torch.bool and first.any(1).all()
    assert torch.equal(first, again)


@tried
@given(seeds, st.floats(0, 1))
def test_a_hole_in_pixels_and_in_tokens_cover_each_other(seed, share):
    hole = torch.rand(2, 64, 64, generator=seeded(seed)) < share**4
    unknown = token_mask(hole)
    pixels = unknown.unflatten(1, (16, 16)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert (hole <= pixels).all(), "no missing pixel is in a known token"
    assert torch.equal(token_mask(pixels), unknown)
    blocks = hole.unflatten(1, (16, 4)).unflatten(3, (16, 4)).transpose(2, 3).flatten(1, 2).flatten(2)
    assert torch.equal(unknown, blocks.any(2)), "and no known pixel alone makes a token unknown"


@tried
@given(st.integers(1, 50), st.integers(1, 50), seeds)
def test_an_epoch_shows_each_image_once_and_the_next_in_another_order(n, batch, seed):
    batch = min(n, batch)
    per_epoch = n // batch
    epochs = [torch.cat([epoch_batch(n, batch, 1 + e * per_epoch + i, seed) for i in range(per_epoch)]) for e in (0, 1)]
    for epoch in epochs:
        assert len(epoch.unique()) == len(epoch) == per_epoch * batch and 0 <= epoch.min() <= epoch.max() < n
    assert n < 20 or not torch.equal(*epochs)


# --- decoding ---------------------------------------------------------------------------------------------------------


class Anything:
    """Logits that depend on the tokens in no sensible way."""

    mask_id = K

    def __init__(self, seed: int, scale: float):
        self.table = scale * torch.randn(K + 1, POSITIONS, K + 1, generator=seeded(seed))

    def __call__(self, tokens):
        return self.table[tokens.sum(1) % (K + 1)]


@tried
@given(
    schedules, st.integers(1, 9), roundings, st.sampled_from(sorted(CODES)), st.sampled_from(sorted(ORDERS)),
    st.floats(0, 3), st.floats(0, 9), st.floats(0.01, 30), st.integers(-5, 10**6), seeds,
)  # fmt: skip
def test_a_decoding_fills_the_hole_by_the_plan_whatever_lies_under_it_and_never_touches_what_is_known(
    schedule, steps, rounding, codes, order, temperature, choice_temperature, scale, junk, seed
):
    tokens = torch.randint(K, (3, POSITIONS), generator=seeded(seed))
    unknown = torch.rand(3, POSITIONS, generator=seeded(seed + 1)) < torch.tensor([[0.0], [0.5], [1.0]])
    states, with_junk = (
        walk(decode_steps, Anything(seed, scale), before, unknown, seeded(seed), schedule=schedule, steps=steps,
             rounding=rounding, codes=codes, order=order, temperature=temperature,
             choice_temperature=choice_temperature)
        for before in (tokens, tokens.masked_fill(unknown, junk))
    )  # fmt: skip
    assert_promises(states, tokens, unknown)
    assert_committed_tokens_stay(states)
    assert torch.equal(states[-1].tokens, with_junk[-1].tokens)
    counts = masked_counts(schedule, steps, unknown.sum(1), rounding)
    for state, count in zip(states[1:], counts, strict=True):
        assert torch.equal(state.masked.sum(1), count), "so many stay masked as the schedule says"
        assert (state.confidence <= 0).all() and state.confidence.isfinite().all()
        assert (state.confidence[~unknown] == 0).all()


# --- distances --------------------------------------------------------------------------------------------------------


@st.composite
def feature_sets(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of features, more or fewer images than features, some constant or equal."""
    n, m, features, seed = draw(st.tuples(st.integers(2, 20), st.integers(2, 20), st.integers(1, 12), seeds))
    a, b = (torch.randn(k, features, generator=seeded(seed + i), dtype=torch.float64) for i, k in enumerate((n, m)))
    scale = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0]), min_size=features, max_size=features)))
    return a * scale, b * draw(st.sampled_from([0.0, 0.5, 1.0])) + draw(st.floats(-3, 3))


def size(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1 + a.square().sum().item() + b.square().sum().item()


@tried
@given(feature_sets(), seeds)
def test_the_frechet_distance_is_symmetric_not_negative_and_blind_to_order_and_turns(pair, seed):
    a, b = pair
    distance, near = frechet_distance(a, b), 1e-9 * size(a, b)
    assert math.isfinite(distance) and distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, abs=near)
    assert frechet_distance(a, a) == pytest.approx(0, abs=near)
    shuffled = a[torch.randperm(len(a), generator=seeded(seed))]
    assert frechet_distance(shuffled, b) == pytest.approx(distance, abs=near)
    turn = torch.linalg.qr(torch.randn(a.shape[1], a.shape[1], generator=seeded(seed), dtype=torch.float64)).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, abs=near)


variances = st.lists(st.floats(0, 9), min_size=3, max_size=3)


@tried
@given(variances, variances, st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_of_independent_features_it_is_the_sum_of_the_closed_forms(first, second, mean):
    found = frechet_distance_from_stats(
        torch.zeros(3), torch.tensor(first).diag(), torch.tensor(mean), torch.tensor(second).diag()
    )
    one_by_one = ((math.sqrt(a) - math.sqrt(b)) ** 2 + m**2 for a, b, m in zip(first, second, mean, strict=True))
    assert found == pytest.approx(sum(one_by_one), rel=1e-5, abs=1e-5)


@tried
@given(feature_sets(), seeds)
def test_kid_is_symmetric_and_blind_to_order(pair, seed):
    a, b = pair
    value, near = kid(a, b), 1e-9 * size(a, b) ** 3
    assert kid(b, a) == pytest.approx(value, abs=near)
    assert kid(a[torch.randperm(len(a), generator=seeded(seed))], b) == pytest.approx(value, abs=near)
    assert kid(a, a, paired=True) == pytest.approx(0, abs=near)
