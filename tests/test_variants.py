"""Budgets, re-masking and correcting rounds: what they choose, and what every decoding promises under them."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from stubs import (
    IMAGES,
    POSITIONS,
    K,
    Table,
    a_batch,
    assert_committed_tokens_stay,
    assert_finished_states_repeat,
    assert_promises,
    assert_stopping_early_follows_the_plan,
    assert_the_logit_of_the_mask_id_does_not_matter,
    named,
    seeded,
    walk,
    walks_alike,
)

from lab5 import variants
from lab5.config import DecodeConfig
from lab5.decoder import decode_steps
from lab5.gamma import masked_count, masked_counts
from lab5.samplers import CODES, ORDERS, Proposal
from lab5.variants import BUDGETS, decode, doubtful, taken_back

states_of = partial(walk, decode)

# --- the promises


@pytest.mark.parametrize("order", ORDERS)
def test_under_a_schedule_alone_it_is_the_lessons_decoder(order):
    ours, lesson = (walk(one, Table(), *a_batch(), order=order, steps=5, stop_at=4) for one in (decode, decode_steps))
    for state, right in zip(ours, lesson, strict=True):
        assert all(torch.equal(*pair) for pair in zip(state[1:6], right[1:6], strict=True))


@pytest.mark.parametrize("codes", ["sample", "argmax"])
@pytest.mark.parametrize("budget, limit", [("entropy", 2.0), ("entropy", 0.0), ("threshold", 0.4), ("threshold", 1.0)])
def test_every_budget_keeps_its_promises(budget, limit, codes):
    states = walks_alike(decode, budget=budget, limit=limit, codes=codes, steps=2)
    assert_promises(states, *a_batch())
    assert_committed_tokens_stay(states)
    for before, after in pairwise(states):
        committed = (before.masked & ~after.masked).sum(dim=1)
        assert (committed >= before.masked.any(dim=1).long()).all(), "at least one, and no more than there are"
    assert len(states) > 3, "T = 2 is no cap"


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_budget_brings_its_own_order_without_noise(budget):
    settings = dict(budget=budget, limit=0.4, codes="argmax", choice_temperature=9.0)
    right = states_of(Table(), *a_batch(), seeded(1), **settings)
    for order in ORDERS:
        for state, other in zip(right, states_of(Table(), *a_batch(), seeded(2), order=order, **settings), strict=True):
            assert torch.equal(state.tokens, other.tokens)


@pytest.mark.parametrize("changes", [
    {"remask": 0.5}, {"remask": 1.0}, {"rounds": 3}, {"rounds": 1, "redo": 1.0}, {"remask": 1.0, "rounds": 1},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("order", ORDERS)
def test_every_option_keeps_the_promises(order, changes):
    assert_promises(walks_alike(decode, order=order, steps=4, **changes), *a_batch())


@pytest.mark.parametrize("settings", [{"remask": 0.5, "rounds": 1}, *({"budget": b} for b in BUDGETS)], ids=str)
def test_the_mask_id_is_never_chosen_however_large_its_logit(settings):
    assert_the_logit_of_the_mask_id_does_not_matter(decode, steps=4, **settings)


@pytest.mark.parametrize("order", ORDERS)
def test_stopping_early_follows_the_plan_and_then_commits_everything(order):
    assert_stopping_early_follows_the_plan(decode, steps=4, order=order, remask=1.0)


@pytest.mark.parametrize("settings, hole, calls", [
    ({"schedule": "one_shot", "rounds": 2}, True, 1 + 2 * 2), ({"rounds": 2}, False, 0), ({"remask": 1.0}, False, 0),
], ids=str)  # fmt: skip
def test_steps_with_nothing_left_to_do_do_not_ask_the_model(settings, hole, calls):
    model = Table()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, unknown & hole, steps=6, **settings)
    assert len(states) == 7 + settings.get("rounds", 0) and len(model.asked) == calls
    assert not states[6].masked.any()
    assert_finished_states_repeat(states if calls == 0 else states[:7])


@pytest.mark.parametrize("settings, steps, calls", [
    ({"budget": "entropy", "limit": 1e9}, 1, 1), ({"budget": "threshold", "limit": 0.0}, 1, 1),
    ({"budget": "threshold", "limit": 1.0}, POSITIONS, POSITIONS),
], ids=str)  # fmt: skip
def test_a_budget_takes_as_many_steps_as_it_needs(settings, steps, calls):
    model = Table()
    assert len(states_of(model, *a_batch(), steps=6, **settings)) == 1 + steps and len(model.asked) == calls
    tokens, unknown = a_batch()
    assert len(states_of(model, tokens, unknown & False, **settings)) == 1


@pytest.mark.parametrize("settings, sentence", [
    ({"budget": "free"}, f"decode.budget must be one of schedule, {', '.join(BUDGETS)}, not 'free'"),
    *(({name: 1, "budget": "entropy"}, f"decode.{name} = 1 needs a schedule, but decode.budget = entropy has none")
      for name in ("stop_at", "remask", "rounds")),
], ids=str)  # fmt: skip
def test_bad_settings_are_refused_at_the_call(settings, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        decode(Table(), *a_batch(), DecodeConfig(**settings), generator=seeded())


# --- budgets: the longest safe prefix of their order is committed, against a loop over every prefix


def a_proposal(images=6, positions=16, codes=5, sharpness=4.0) -> Proposal:
    logits = sharpness * torch.randn(images, positions, codes, generator=seeded(1))
    unknown = torch.ones(images, positions, dtype=torch.bool)
    return Proposal(logits.log_softmax(dim=-1), CODES["sample"](logits, 1.0, seeded(2)), unknown, 0.0)


def a_mask(proposal: Proposal) -> torch.Tensor:
    """From no position masked to all of them."""
    images, positions = proposal.codes.shape
    shares = torch.linspace(0, 1, images)[:, None]
    return torch.rand(images, positions, generator=seeded(3)) < shares


def safe(budget: str, proposal: Proposal, masked: torch.Tensor, limit: float) -> list[int]:
    return BUDGETS[budget][1](proposal, masked, limit).tolist()


@pytest.mark.parametrize("limit", [0.0, 0.3, 3.0, 1e9])
def test_entropies_are_committed_from_the_least_while_they_bound_what_is_ignored(limit):
    """The EB-Sampler as its paper states it: sum H - max H within the limit."""
    proposal = a_proposal()
    masked = a_mask(proposal)
    entropies = scipy.stats.entropy(proposal.log_probabilities.double().exp().numpy(), axis=2)
    for image, count in enumerate(safe("entropy", proposal, masked, limit)):
        rising = np.sort(entropies[image][masked[image].numpy()])
        prefixes = [rising[: length + 1] for length in range(len(rising))]
        assert count == sum(prefix.sum() - prefix.max() <= limit for prefix in prefixes)


@pytest.mark.parametrize("limit", [0.0, 0.2, 0.7, 1.0])
def test_all_codes_over_the_threshold_are_committed(limit):
    proposal = a_proposal()
    masked = a_mask(proposal)
    probabilities = proposal.log_probabilities.softmax(2).gather(2, proposal.codes[..., None])[..., 0]
    expected = [(row[known] >= limit).sum().item() for row, known in zip(probabilities, masked, strict=True)]
    assert safe("threshold", proposal, masked, limit) == expected


def test_a_limit_is_within_bounds():
    """Three positions of two equally likely codes: log 2 nats each, and probability one half."""
    log_probabilities = torch.full((1, 3, 2), 0.5).log()
    masked = torch.ones(1, 3, dtype=torch.bool)
    proposal = Proposal(log_probabilities, torch.zeros(1, 3).long(), masked, 0.0)
    for budget, limit, count in (
        ("threshold", 0.5, 3), ("threshold", 0.5001, 0),
        ("entropy", 2 * 0.6932, 3), ("entropy", 2 * 0.6931, 2), ("entropy", 0.6932, 2), ("entropy", 0.6931, 1),
    ):  # fmt: skip
        assert safe(budget, proposal, masked, limit) == [count]


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_is_known_does_not_count(budget):
    """The same masked positions among others that are known, sure or unsure."""
    proposal = a_proposal(images=1)
    masked = torch.arange(16)[None] < 9
    limit = {"entropy": 1.0, "threshold": 0.5}[budget]
    right = safe(budget, proposal, masked, limit)
    for sharpness in (0.0, 100.0):
        known = (sharpness * torch.randn(1, 16, 5, generator=seeded(6))).log_softmax(dim=-1)
        log_probabilities = torch.where(masked[..., None], proposal.log_probabilities, known)
        assert safe(budget, proposal._replace(log_probabilities=log_probabilities), masked, limit) == right


def test_the_surest_go_first_and_an_image_that_is_done_waits_for_the_others():
    """Sure of the tokens of one image and in doubt in the other, most in doubt at its first positions."""
    logits = torch.zeros(2, POSITIONS, K)
    logits[0, :, 1] = 50
    logits[1, 8:, 1] = 0.1
    unknown = torch.ones(2, POSITIONS, dtype=torch.bool)
    states = states_of(named(lambda tokens: logits), unknown.long(), unknown, steps=1, budget="entropy", limit=2.0)
    masked = torch.stack([state.masked.sum(dim=1) for state in states])
    assert masked[:, 0].tolist() == [16] + [0] * 8
    # One code's entropy is about log 6 = 1.79 nats: two of them exceed the larger by that, three by twice as much.
    assert masked[:, 1].tolist() == [16, 14, 12, 10, 8, 6, 4, 2, 0]
    assert states[4].masked[1].tolist() == [True] * 8 + [False] * 8


# --- re-masking: with ReMDM's probabilities


@pytest.mark.parametrize("eta, left, probability", [
    (1.0, 4, 4 / 12),  # (1 - alpha_s) / alpha_t: 4 of 16 masked after the step, 12 generated before it
    (0.5, 4, 2 / 12),
    (0.5, 24, 0.5),  # never more than eta, however many are masked
    (0.25, 0, 0.0),  # nothing in the step that ends with nothing masked
    (0.0, 4, 0.0),
])  # fmt: skip
def test_each_generated_token_has_the_papers_chance(eta, left, probability):
    generated = (torch.arange(20) < 12).expand(20_000, -1)
    back = taken_back(generated, torch.full((20_000,), left), eta, seeded())
    assert not (back & ~generated).any()
    # The cap at `left` cuts the binomial's tail, which is 0.07 tokens of 4 at eta = 1.
    mean = scipy.stats.binom(12, probability).expect(lambda number: np.minimum(number, left))
    assert back.sum(dim=1).float().mean().item() == pytest.approx(mean, abs=0.04)
    shares = back[:, :12].float().mean(dim=0)
    assert (shares - shares.mean()).abs().max() < 0.015, "all alike"


@pytest.mark.parametrize("steps, right", [(8, 9.6), (64, 106.4)])
def test_so_many_tokens_are_taken_back_in_all(steps, right):
    """A hole of 85 under the cosine at eta = 0.1: what the chances add up to, min(1, left / generated) of each."""
    generated, expected, taken = torch.zeros(300, 85, dtype=torch.bool), 0.0, 0
    for left in masked_counts("cosine", steps, torch.full((300,), 85)):
        expected += 0.1 * min(int(generated[0].sum()), int(left[0]))
        taken += int(taken_back(generated, left, 0.1, seeded(steps + taken)).sum())
        generated = torch.arange(85) >= left[:, None]  # by the schedule's counts
    assert expected == pytest.approx(right, abs=0.5) and taken / 300 == pytest.approx(expected, rel=0.05)


def test_never_more_than_stay_masked_after_the_step():
    generated = torch.ones(1000, 6, dtype=torch.bool)
    left = torch.arange(1000) % 7
    back = taken_back(generated, left, 1.0, seeded())
    assert (back.sum(dim=1) <= left).all()
    assert torch.equal(back.sum(dim=1)[left == 6], left[left == 6]), "6 generated, 6 to be masked: a chance of 1"


def test_a_single_generated_token_has_the_whole_chance_and_where_there_is_none_nothing_is_taken_back():
    for generated in ((torch.arange(8) == 3).expand(200, -1), torch.zeros(200, 8, dtype=torch.bool)):
        assert torch.equal(taken_back(generated, torch.ones(200, dtype=torch.int64), 1.0, seeded()), generated)


def test_remasking_keeps_the_schedules_counts_and_really_takes_tokens_back():
    _, unknown = a_batch()
    again = torch.zeros_like(unknown)
    for seed in range(5):
        states = states_of(Table(), *a_batch(), seeded(seed), steps=8, remask=1.0)
        for before, after in pairwise(states):
            assert torch.equal(after.masked.sum(dim=1), masked_count("cosine", after.step, 8, unknown.sum(dim=1)))
            again |= after.masked & ~before.masked
    assert again[3].any() and not (again & ~unknown).any()


# --- correcting rounds: the least probable tokens once more


def test_the_least_probable_generated_tokens_are_doubtful():
    probabilities = torch.tensor([[0.9, 0.1, 0.3, 0.2, 0.05], [0.5, 0.6, 0.7, 0.8, 0.9]])
    log_probabilities = torch.stack([probabilities, 1 - probabilities], dim=-1).log()
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    generated = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    for share, right in {
        0.0: [[], []], 0.01: [[1], [0]], 0.25: [[1], [0]], 0.5: [[1, 3], [0]], 0.51: [[1, 2, 3], [0, 1]],
        1.0: [[0, 1, 2, 3], [0, 1]],
    }.items():  # fmt: skip
        found = doubtful(log_probabilities, tokens, generated, share)
        assert [row.nonzero().flatten().tolist() for row in found] == right
    # Judged by the code that is there: with the other code the order turns round.
    turned = doubtful(log_probabilities, 1 - tokens, generated, 0.25)
    assert [row.nonzero().flatten().tolist() for row in turned] == [[0], [1]]


def test_a_share_that_is_a_whole_number_of_tokens_is_not_rounded_up():
    """0.07 x 100 is 7.000000000000001 in floats."""
    generated = torch.ones(1, 100, dtype=torch.bool)
    log_probabilities = torch.randn(1, 100, 3, generator=seeded()).log_softmax(dim=-1)
    for hundredths in range(101):
        assert doubtful(log_probabilities, torch.zeros(1, 100).long(), generated, hundredths / 100).sum() == hundredths


def test_a_round_of_correction_decodes_the_least_probable_tokens_again():
    model, unknown = Table(), a_batch()[1]
    states = states_of(model, *a_batch(), steps=2, rounds=2, redo=0.25)
    assert [state.step for state in states] == [0, 1, 2, 3, 4] and len(model.asked) == 2 + 2 * 2
    quarter = [0, 1, 3, 4]  # of holes of 0, 1, 9 and 16, rounded up
    asked = model.asked[2:4], model.asked[4:]
    for (before, after), (judged, redone) in zip(pairwise(states[2:]), asked, strict=True):
        assert torch.equal(judged, before.tokens) and not after.masked.any()
        again = redone == K
        assert again.sum(dim=1).tolist() == quarter and torch.equal(redone[~again], before.tokens[~again])
        probability = Table()(judged).softmax(-1).gather(-1, judged[..., None])[..., 0]
        for image in range(1, IMAGES):
            kept = unknown[image] & ~again[image]
            assert not kept.any() or probability[image][again[image]].max() <= probability[image][kept].min()
        assert torch.equal(after.tokens[~again], before.tokens[~again])
        proposed = Table()(redone).log_softmax(-1).gather(-1, after.tokens[..., None])[..., 0]
        torch.testing.assert_close(after.confidence, torch.where(again, proposed, before.confidence))


@pytest.mark.parametrize("end, right", [(-1.0, 2.0), (0.5, 0.5)])
def test_a_round_of_correction_is_as_cold_as_the_last_step(monkeypatch, end, right):
    temperatures = []

    def spy(logits, temperature, generator):
        temperatures.append(temperature)
        return logits.argmax(dim=-1)

    monkeypatch.setitem(variants.CODES, "argmax", spy)
    states_of(Table(), *a_batch(), steps=4, codes="argmax", temperature=2.0, temperature_end=end, rounds=2)
    assert temperatures[3:] == [right] * 3
