"""What a decoding promises, under every schedule, code and order, with stub models whose answer is known."""

import inspect
from dataclasses import asdict
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from lab5 import decoder
from lab5.config import DecodeConfig, TransformerConfig
from lab5.decoder import DecodeStep, decode_steps, inpaint
from lab5.gamma import SCHEDULES, masked_count
from lab5.inpainting import fill as filling
from lab5.inpainting.pair import Pair
from lab5.samplers import CODES, ORDERS, halton_order
from lab5.transformer import BidirectionalTransformer
from lab5.variants import BUDGETS

IMAGES, POSITIONS, K = 4, 16, 6  # the mask id is K


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Stub:
    """A fixed table of logits per position, plus what a position gets from the tokens of its image."""

    mask_id = K

    def __init__(self, columns=K):
        self.table = torch.randn(POSITIONS, columns, generator=seeded(1))
        self.context = torch.randn(K + 1, POSITIONS, columns, generator=seeded(2))
        self.asked = []

    def __call__(self, tokens):
        self.asked.append(tokens.clone())
        return self.table + self.context[tokens].mean(dim=1)


def constant(logits):
    """A model that answers the same for every image and every context."""
    model = lambda tokens: logits.expand(len(tokens), -1, -1)  # noqa: E731
    model.mask_id = logits.shape[-1]
    return model


def a_batch():
    """Holes of 0, 1, 9 and 16 of the 16 positions."""
    tokens = torch.randint(0, K, (IMAGES, POSITIONS), generator=seeded(3))
    shuffled = torch.rand(IMAGES, POSITIONS, generator=seeded(4)).argsort(dim=1)
    return tokens, shuffled < torch.tensor([0, 1, 9, 16])[:, None]


def per_image():
    return [seeded(i) for i in range(IMAGES)]


def states_of(model, tokens, unknown, generator=None, **settings) -> list[DecodeStep]:
    return list(decode_steps(model, tokens, unknown, generator=generator or seeded(), **settings))


# --- the invariants


def assert_promises(states, tokens, unknown):
    """What holds at every step of every decoding."""
    assert [state.step for state in states] == list(range(len(states)))
    assert torch.equal(states[0].masked, unknown)
    assert not states[-1].masked.any() and torch.equal(states[-1].filled, states[-1].tokens)
    for state in states:
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])
        assert torch.equal(state.filled[~unknown], tokens[~unknown])
        assert torch.equal(state.tokens == K, state.masked) and not (state.masked & ~unknown).any()
        assert state.step == 0 or ((0 <= state.filled) & (state.filled < K)).all()
        # What is committed is what was proposed.
        assert torch.equal(state.tokens[~state.masked], state.filled[~state.masked])


def assert_committed_tokens_stay(states):
    for before, after in pairwise(states):
        assert not (after.masked & ~before.masked).any()
        assert torch.equal(after.tokens[~before.masked], before.tokens[~before.masked])


def states_alike(settings):
    """The states of the batch; its two larger holes are decoded once more, alone, with the same seeds."""
    tokens, unknown = a_batch()
    before = tokens.clone(), unknown.clone()
    states = states_of(Stub(), tokens, unknown, per_image(), **settings)
    for i in (2, 3):
        alone = states_of(Stub(), tokens[i : i + 1], unknown[i : i + 1], [seeded(i)], **settings)
        for state, right in zip(alone, states, strict=True):
            assert torch.equal(state.filled, right.filled[i : i + 1])
            assert torch.equal(state.masked, right.masked[i : i + 1])
    assert torch.equal(tokens, before[0]) and torch.equal(unknown, before[1]), "the caller's tensors"
    return states


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_decoding_keeps_its_promises(schedule, codes, order):
    tokens, unknown = a_batch()
    settings = {"schedule": schedule, "codes": codes, "order": order}
    states = states_alike(settings | {"steps": 4})
    assert len(states) == 5
    assert_promises(states, tokens, unknown)
    assert_committed_tokens_stay(states)
    for state in states:  # what is masked is counted per image from the start
        assert torch.equal(state.masked.sum(dim=1), masked_count(schedule, state.step, 4, unknown.sum(dim=1)))
    one_shot = CODES[codes](Stub()(tokens.masked_fill(unknown, K)), 1.0, seeded())
    filled = inpaint(Stub(), tokens, unknown, **settings, steps=1, generator=seeded())
    assert torch.equal(filled, torch.where(unknown, one_shot, tokens))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("budget, limit", [("entropy", 2.0), ("threshold", 0.4)])
def test_every_budget_keeps_its_promises(budget, limit, codes, order):
    tokens, unknown = a_batch()
    settings = {"budget": budget, "limit": limit, "codes": codes, "order": order}
    states = states_alike(settings | {"steps": 6})
    assert_promises(states, tokens, unknown)
    assert_committed_tokens_stay(states)
    for before, after in pairwise(states):
        committed = (before.masked & ~after.masked).sum(dim=1)
        assert (committed >= before.masked.any(dim=1).long()).all(), "at least one, and no more than there are"


@pytest.mark.parametrize("changes", [
    {"remask": 0.5}, {"remask": 1.0}, {"rounds": 3}, {"rounds": 1, "redo": 1.0}, {"remask": 1.0, "rounds": 1},
    {"count_base": "current"}, {"temperature_end": 0.0}, {"choice_temperature_end": 4.5}, {"rounding": "ceil"},
])  # fmt: skip
@pytest.mark.parametrize("order", ORDERS)
def test_every_option_keeps_the_promises(order, changes):
    tokens, unknown = a_batch()
    states = states_alike({"order": order, "steps": 4} | changes)
    assert_promises(states, tokens, unknown)
    if not {"remask", "rounds"} & changes.keys():
        assert_committed_tokens_stay(states)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
def test_the_mask_id_is_never_chosen_however_large_its_logit(codes, order):
    tokens, unknown = a_batch()
    model = Stub()
    settings = {"codes": codes, "order": order, "steps": 4, "mask_id": K, "remask": 0.5, "rounds": 1}
    with_mask = lambda tokens: torch.nn.functional.pad(model(tokens), (0, 1), value=1e9)  # noqa: E731
    states = states_of(with_mask, tokens, unknown, **settings)
    # The extra column must not merely lose: it must not matter at all.
    for state, right in zip(states, states_of(model, tokens, unknown, **settings), strict=True):
        assert torch.equal(state.filled, right.filled) and torch.equal(state.confidence, right.confidence)
    assert (states[-1].tokens < K).all()


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_the_rounding_is_the_schedules(rounding):
    tokens, unknown = a_batch()
    for state in states_of(Stub(), tokens, unknown, steps=7, rounding=rounding):
        count = masked_count("cosine", state.step, 7, unknown.sum(dim=1), rounding)
        assert torch.equal(state.masked.sum(dim=1), count)


def test_tokens_under_the_hole_do_not_influence_the_result():
    tokens, unknown = a_batch()
    right = inpaint(Stub(), tokens, unknown, generator=seeded())
    for junk in (0, K, -5, 10**6):
        other = tokens.masked_fill(unknown, junk)
        assert torch.equal(inpaint(Stub(), other, unknown, generator=seeded()), right)


def test_the_callers_tensors_are_neither_modified_nor_watched():
    tokens, unknown = a_batch()
    before = tokens.clone(), unknown.clone()
    right = states_of(Stub(), tokens, unknown)
    assert torch.equal(tokens, before[0]) and torch.equal(unknown, before[1])
    walk = decode_steps(Stub(), tokens, unknown, generator=seeded())
    tokens.zero_()
    unknown.fill_(True)
    for state, expected in zip(walk, right, strict=True):
        assert torch.equal(state.filled, expected.filled)


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    tokens, unknown = a_batch()
    first, again, other = (inpaint(Stub(), tokens, unknown, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- the steps


def test_each_step_is_computed_when_it_is_asked_for():
    model = Stub()
    walk = decode_steps(model, *a_batch(), steps=3, generator=seeded())
    for calls in (0, 1, 2, 3):
        assert next(walk).step == calls == len(model.asked)
    assert next(walk, None) is None


def test_the_model_is_asked_with_what_is_committed_so_far():
    model = Stub()
    states = states_of(model, *a_batch(), steps=5)
    for asked, state in zip(model.asked, states, strict=False):
        assert torch.equal(asked, state.tokens)


def test_one_step_is_one_shot_sampling():
    tokens, unknown = a_batch()
    drawn = CODES["sample"](Stub()(tokens.masked_fill(unknown, K)), 1.0, seeded(9))
    filled = inpaint(Stub(), tokens, unknown, steps=1, generator=seeded(9))
    assert torch.equal(filled, torch.where(unknown, drawn, tokens))


def test_one_step_of_argmax_needs_no_luck():
    tokens, unknown = a_batch()
    best = Stub()(tokens.masked_fill(unknown, K)).argmax(dim=-1)
    filled = inpaint(Stub(), tokens, unknown, steps=1, codes="argmax", generator=seeded())
    assert torch.equal(filled, torch.where(unknown, best, tokens))


def test_without_noise_the_surest_positions_are_committed_first():
    surest = torch.randperm(POSITIONS, generator=seeded(5))  # surest[i] is the i-th to be committed
    logits = torch.zeros(POSITIONS, K)
    logits[surest, surest % K] = torch.linspace(8, 2, POSITIONS)
    unknown = torch.ones(1, POSITIONS, dtype=torch.bool)
    settings = {"schedule": "linear", "steps": POSITIONS, "codes": "argmax", "choice_temperature": 0.0}
    states = states_of(constant(logits), unknown.long(), unknown, **settings)
    committed = [int((a.masked ^ b.masked).nonzero()[0, 1]) for a, b in zip(states, states[1:], strict=False)]
    assert committed == surest.tolist()
    assert torch.equal(states[-1].tokens[0], torch.arange(POSITIONS) % K)


def test_the_moment_sampler_draws_anew_only_what_it_commits():
    tokens, unknown = a_batch()
    settings = dict(steps=4, schedule="linear", temperature=2.0, choice_temperature=0.5)
    first, drawn = (
        states_of(Stub(), tokens, unknown, per_image(), order=order, **settings)[1] for order in ("moment", "random")
    )
    assert torch.equal(first.filled[first.masked], drawn.filled[first.masked]), "guesses are the model's own"
    committed = unknown & ~first.masked
    assert not torch.equal(first.filled[committed], drawn.filled[committed]), "the chosen ones' are sharper"


def test_where_a_budget_leaves_all_to_the_last_step_the_moment_sampler_commits_what_it_drew():
    tokens, unknown = a_batch()
    settings = dict(steps=1, budget="entropy", limit=6.0, temperature=2.0)
    filled = [
        states_of(Stub(), tokens, unknown, per_image(), order=order, **settings)[1].filled
        for order in ("moment", "random")
    ]
    assert torch.equal(*filled)


class Chain:
    """Sure that a token is one more than its left neighbour where it sees that, without a clue elsewhere."""

    mask_id = K

    def __call__(self, tokens):
        left = tokens.roll(1, dims=1)
        logits = torch.zeros(*tokens.shape, K)
        clue = torch.nn.functional.one_hot((left + 1) % K, K).float() * 50
        return torch.where((left < K)[..., None], clue, logits)


def test_iterating_solves_what_one_shot_cannot():
    tokens = torch.arange(POSITIONS).expand(8, -1) % K
    unknown = torch.ones_like(tokens, dtype=torch.bool)
    unknown[:, 0] = False
    settings = {"schedule": "linear", "choice_temperature": 0.0}
    one_by_one = inpaint(Chain(), tokens, unknown, steps=POSITIONS - 1, generator=seeded(), **settings)
    assert torch.equal(one_by_one, tokens)
    at_once = inpaint(Chain(), tokens, unknown, steps=1, generator=seeded(), **settings)
    assert (at_once == tokens)[:, 2:].float().mean() < 0.5


@pytest.mark.parametrize("changes", [{}, {"remask": 1.0}, {"budget": "entropy"}, {"count_base": "current"}])
@pytest.mark.parametrize("order", ORDERS)
def test_stopping_early_follows_the_plan_and_then_commits_everything(order, changes):
    tokens, unknown = a_batch()
    settings = {"steps": 4, "order": order} | changes
    whole = states_of(Stub(), tokens, unknown, **settings)
    for stop_at in range(1, 5):
        states = states_of(Stub(), tokens, unknown, **settings, stop_at=stop_at)
        assert len(states) == stop_at + 1
        for state, right in zip(states[:-1], whole, strict=False):
            assert torch.equal(state.tokens, right.tokens)
        # The last one shows what the whole run showed at this step, but with nothing left masked.
        assert torch.equal(states[-1].filled, whole[stop_at].filled)
        assert torch.equal(states[-1].tokens, states[-1].filled) and not states[-1].masked.any()


def test_noise_on_the_order_falls_linearly_to_zero(monkeypatch):
    temperatures = []

    def spy(proposal, generator):
        temperatures.append(proposal.temperature)
        return torch.zeros(proposal.codes.shape)

    monkeypatch.setitem(decoder.ORDERS, "spy", spy)
    states_of(Stub(), *a_batch(), steps=4, order="spy", choice_temperature=2.0)
    assert temperatures == [1.5, 1.0, 0.5, 0.0]
    temperatures.clear()
    states_of(Stub(), *a_batch(), steps=4, stop_at=2, order="spy", choice_temperature=2.0)
    assert temperatures == [1.5, 1.0]  # the plan's, wherever it is left


@pytest.mark.parametrize("end, right", [(None, [2, 2, 2, 2]), (0.0, [1.5, 1, 0.5, 0]), (4.0, [2.5, 3, 3.5, 4])])
def test_the_temperature_of_the_codes_moves_linearly_to_its_end(monkeypatch, end, right):
    temperatures = []

    def spy(logits, temperature, generator):
        temperatures.append(temperature)
        return logits.argmax(dim=-1)

    monkeypatch.setitem(decoder.CODES, "spy", spy)
    states_of(Stub(), *a_batch(), steps=4, codes="spy", temperature=2.0, temperature_end=end, rounds=1)
    assert temperatures == [*right, right[-1]], "a round of correction is as cold as the last step"


def test_the_noise_on_the_order_can_end_elsewhere_than_at_zero(monkeypatch):
    temperatures = []

    def spy(proposal, generator):
        temperatures.append((proposal.temperature, proposal.code_temperature))
        return torch.zeros(proposal.codes.shape)

    monkeypatch.setitem(decoder.ORDERS, "spy", spy)
    settings = {"choice_temperature": 2.0, "choice_temperature_end": 1.0, "temperature": 1.0, "temperature_end": 0.5}
    states_of(Stub(), *a_batch(), steps=4, order="spy", **settings)
    assert temperatures == [(1.75, 0.875), (1.5, 0.75), (1.25, 0.625), (1.0, 0.5)]


def test_counts_from_the_current_mask_compound():
    unknown = (torch.arange(100) < 85)[None]
    states = states_of(constant(torch.zeros(100, 2)), unknown.long() * 0, unknown, steps=10, count_base="current")
    assert [int(state.masked.sum()) for state in states] == [85, 83, 78, 69, 55, 38, 22, 9, 2, 0, 0]


@pytest.mark.parametrize("settings, calls", [
    ({"schedule": "one_shot"}, 1),
    ({"schedule": "one_shot", "rounds": 2}, 1 + 2 * 2),
    ({"schedule": "linear"}, 6),
    ({"budget": "entropy", "limit": 1e9}, 1),
    ({"budget": "threshold", "limit": 0.0}, 1),
    ({"budget": "threshold", "limit": 1.0}, 6),
])  # fmt: skip
def test_steps_with_nothing_left_to_do_do_not_ask_the_model(settings, calls):
    model = Stub()
    states = states_of(model, *a_batch(), steps=6, **settings)
    assert len(states) == 7 + settings.get("rounds", 0) and len(model.asked) == calls
    assert not states[6].masked.any()
    for before, after in pairwise(states[: 7]):
        if not before.masked.any():
            assert after.step == before.step + 1
            assert all(torch.equal(new, old) for new, old in zip(after[1:], before[1:], strict=True))


def test_without_a_hole_the_model_is_never_asked():
    model = Stub()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, torch.zeros_like(unknown), rounds=2)
    assert not model.asked and all(torch.equal(state.filled, tokens) for state in states)


def test_an_image_whose_hole_is_done_waits_for_the_others():
    """Sure of the tokens of one image and in doubt in the other: a budget finishes them at different steps."""
    logits = torch.zeros(2, POSITIONS, K)
    logits[0, :, 1] = 50
    model = lambda tokens: logits  # noqa: E731
    unknown = torch.ones(2, POSITIONS, dtype=torch.bool)
    states = states_of(model, unknown.long(), unknown, steps=20, budget="entropy", limit=2.0, mask_id=K)
    masked = torch.stack([state.masked.sum(dim=1) for state in states])
    assert masked[:, 0].tolist() == [16] + [0] * 20
    # One code's entropy is log 6 = 1.79 nats: two of them exceed the larger by that, three by twice as much.
    assert masked[:, 1].tolist() == [16, 14, 12, 10, 8, 6, 4, 2] + [0] * 13


# --- second thoughts


def test_remasking_keeps_the_schedules_counts_and_really_takes_tokens_back():
    tokens, unknown = a_batch()
    again = torch.zeros_like(unknown)
    for seed in range(5):
        states = states_of(Stub(), tokens, unknown, seeded(seed), steps=8, remask=1.0)
        for before, after in pairwise(states):
            count = masked_count("cosine", after.step, 8, unknown.sum(dim=1))
            assert torch.equal(after.masked.sum(dim=1), count)
            again |= after.masked & ~before.masked
    assert again[3].any() and not (again & ~unknown).any()


def test_without_remasking_nothing_changes():
    tokens, unknown = a_batch()
    right = states_of(Stub(), tokens, unknown)
    for state, other in zip(right, states_of(Stub(), tokens, unknown, remask=0.0), strict=True):
        assert torch.equal(state.tokens, other.tokens)


def test_a_round_of_correction_decodes_the_least_probable_tokens_again():
    tokens, unknown = a_batch()
    model = Stub()
    states = states_of(model, tokens, unknown, steps=2, rounds=2, redo=0.25)
    assert [state.step for state in states] == [0, 1, 2, 3, 4] and len(model.asked) == 2 + 2 * 2
    quarter = [0, 1, 3, 4]  # of holes of 0, 1, 9 and 16, rounded up
    for (before, after), (judged, redone) in zip(
        pairwise(states[2:]), [model.asked[2:4], model.asked[4:]], strict=True
    ):
        assert torch.equal(judged, before.tokens) and not after.masked.any()
        again = redone == K
        assert again.sum(dim=1).tolist() == quarter and torch.equal(redone[~again], before.tokens[~again])
        probability = Stub()(judged).softmax(-1).gather(-1, judged[..., None])[..., 0]
        for image in range(1, IMAGES):
            kept = unknown[image] & ~again[image]
            assert not kept.any() or probability[image][again[image]].max() <= probability[image][kept].min()
        assert torch.equal(after.tokens[~again], before.tokens[~again])
        proposed = Stub()(redone).log_softmax(-1).gather(-1, after.tokens[..., None])[..., 0]
        torch.testing.assert_close(after.confidence, torch.where(again, proposed, before.confidence))


def test_rounds_of_correction_repair_a_one_shot_decoding():
    """The chain again: in one shot most links are wrong; a model that sees a token judges it by its neighbour."""
    tokens = torch.arange(POSITIONS).expand(8, -1) % K
    unknown = torch.ones_like(tokens, dtype=torch.bool)
    unknown[:, 0] = False
    right = [(inpaint(Chain(), tokens, unknown, steps=1, rounds=rounds, redo=0.2, generator=seeded()) == tokens)[:, 2:]
             .float().mean() for rounds in (0, 30)]  # fmt: skip
    assert right[0] < 0.5 and right[1] > 0.8


def test_the_halton_order_keeps_its_beginning_through_all_steps_and_passes_over_what_is_known():
    tokens, unknown = torch.zeros(40, POSITIONS, dtype=torch.int64), torch.arange(POSITIONS).expand(40, -1) % 3 > 0
    settings = {"schedule": "linear", "steps": POSITIONS, "order": "halton"}
    states = states_of(Stub(), tokens, unknown, **settings)
    rotations = [halton_order(4)[start:] + halton_order(4)[:start] for start in range(POSITIONS)]
    right = {tuple(n for n in rotation if n % 3) for rotation in rotations}
    found = set()
    for image in range(40):
        changes = [(a.masked ^ b.masked)[image].nonzero().flatten().tolist() for a, b in pairwise(states)]
        found.add(tuple(n for change in changes for n in change))
    assert found <= right and len(found) > 5


def test_no_score_brings_a_known_position_under_the_mask(monkeypatch):
    tokens, unknown = a_batch()
    monkeypatch.setitem(
        decoder.ORDERS, "spiteful", lambda proposal, _: torch.where(proposal.unknown, 1e30, -torch.inf)
    )
    for state in states_of(Stub(), tokens, unknown, order="spiteful"):
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])


def test_confidence_is_the_log_probability_of_each_code_when_it_was_proposed():
    tokens, unknown = a_batch()
    model = Stub()
    states = states_of(model, tokens, unknown, steps=5, temperature=2.0)
    assert not states[0].confidence.any()
    for before, after, asked in zip(states, states[1:], list(model.asked), strict=False):
        log_probabilities = model(asked).log_softmax(dim=-1)  # at temperature 1, not that of the codes
        proposed = log_probabilities.gather(2, after.filled[..., None])[..., 0]
        right = torch.where(before.masked, proposed, before.confidence)
        torch.testing.assert_close(after.confidence, right)
        assert not after.confidence[~unknown].any()


def test_the_temperature_sharpens_the_codes():
    logits = torch.tensor([0.6, 0.4]).log().expand(POSITIONS, 2)
    tokens = torch.zeros(1000, POSITIONS, dtype=torch.int64)
    # In random order: one that looks at the proposals prefers likely ones, a sharpening of its own.
    for temperature, right in ((0.0, 0.0), (0.25, 0.4**4 / (0.4**4 + 0.6**4)), (1.0, 0.4)):
        settings = {"temperature": temperature, "order": "random", "generator": seeded()}
        filled = inpaint(constant(logits), tokens, tokens == 0, **settings)
        assert filled.float().mean().item() == pytest.approx(right, abs=0.015)  # four standard errors


# --- the settings of a run


def test_the_defaults_of_a_run_are_those_of_the_decoder():
    defaults = {name: p.default for name, p in inspect.signature(decode_steps).parameters.items()}
    settings = asdict(DecodeConfig()) | {"stop_at": None, "temperature_end": None}  # 0 and -1 stand for None
    shared = settings.keys() & defaults.keys()
    assert len(shared) == 16 and {name: settings[name] for name in shared} == {name: defaults[name] for name in shared}


def test_every_setting_of_a_run_reaches_the_decoder(monkeypatch):
    given = {}
    monkeypatch.setattr(filling, "dilate", lambda unknown, rings: unknown)  # this grid is a small one
    monkeypatch.setattr(filling, "decode_steps", lambda *_, **settings: given.update(settings) or iter(()))
    transformer = torch.nn.Linear(1, 1)
    transformer.mask_id = K
    pair = Pair(SimpleNamespace(encode_holed=lambda *_: a_batch()), transformer, "stub")
    changed = {
        "schedule": "linear", "steps": 3, "stop_at": 2, "codes": "argmax", "order": "halton", "temperature": 0.5,
        "choice_temperature": 2.0, "temperature_end": 0.0, "choice_temperature_end": 1.0, "rounding": "ceil",
        "count_base": "current", "budget": "entropy", "limit": 0.1, "remask": 0.2, "rounds": 4, "redo": 0.3,
    }  # fmt: skip
    images, holes = torch.zeros(IMAGES, 3, 64, 64, dtype=torch.uint8), torch.ones(IMAGES, 64, 64, dtype=torch.bool)
    filling._decode_batch(pair, images, holes, "grey", DecodeConfig(**changed), per_image())
    assert {name: given[name] for name in changed} == changed
    filling._decode_batch(pair, images, holes, "grey", DecodeConfig(), per_image())
    assert given["stop_at"] is None and given["temperature_end"] is None


# --- the model


def test_a_real_transformer_fills_a_hole_and_is_left_as_it_was():
    config = TransformerConfig(codes=K, positions=POSITIONS, width=8, layers=1, heads=2, hidden=8)
    model = BidirectionalTransformer(config, generator=seeded()).eval()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, unknown)
    assert (states[-1].tokens < K).all() and torch.equal(states[-1].tokens[~unknown], tokens[~unknown])
    assert not any(field.requires_grad for state in states for field in state[1:])
    assert torch.is_grad_enabled() and not model.training
    model.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        decode_steps(model, tokens, unknown, generator=seeded())


def test_half_precision_logits_are_decoded_in_float32():
    tokens, unknown = a_batch()
    half = lambda tokens: Stub()(tokens).bfloat16()  # noqa: E731
    rounded = lambda tokens: half(tokens).float()  # noqa: E731
    states = states_of(half, tokens, unknown, mask_id=K)
    for state, right in zip(states, states_of(rounded, tokens, unknown, mask_id=K), strict=True):
        assert state.confidence.dtype == torch.float32
        assert torch.equal(state.filled, right.filled) and torch.equal(state.confidence, right.confidence)


def test_a_prior_multiplies_the_models_probabilities():
    """Against a model that knows nothing, the codes follow the prior alone."""
    tokens, unknown = torch.zeros(4000, 1, dtype=torch.int64), torch.ones(4000, 1, dtype=torch.bool)
    prior = torch.tensor([0.7, 0.2, 0.1]).log().expand(4000, 1, 3)
    filled = inpaint(constant(torch.zeros(1, 3)), tokens, unknown, steps=1, prior=prior, generator=seeded())
    shares = torch.bincount(filled.flatten(), minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.03)


def test_a_prior_of_zeros_changes_nothing_and_one_of_another_shape_is_refused():
    tokens, unknown = a_batch()
    zeros = torch.zeros(IMAGES, POSITIONS, K)
    ours = inpaint(Stub(), tokens, unknown, generator=seeded(), prior=zeros)
    assert torch.equal(ours, inpaint(Stub(), tokens, unknown, generator=seeded()))
    with pytest.raises(ValueError, match="prior must have shape"):
        decode_steps(Stub(), tokens, unknown, generator=seeded(), prior=zeros[..., :-1])


def test_mask_id_comes_from_the_model_or_the_caller():
    tokens, unknown = a_batch()
    nameless = lambda tokens: Stub()(tokens)  # noqa: E731
    with pytest.raises(ValueError, match="mask_id must be given"):
        decode_steps(nameless, tokens, unknown, generator=seeded())
    right = inpaint(Stub(), tokens, unknown, generator=seeded())
    assert torch.equal(inpaint(nameless, tokens, unknown, mask_id=K, generator=seeded()), right)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(wrong):
    logits = torch.zeros(POSITIONS, K)
    logits[3, 2] = wrong
    with pytest.raises(ValueError, match="must return finite logits"):
        inpaint(constant(logits), *a_batch(), generator=seeded())


def test_impossible_codes_are_allowed_and_never_drawn():
    logits = torch.zeros(POSITIONS, K)
    logits[:, ::2] = -torch.inf
    tokens, unknown = a_batch()
    for codes in CODES:
        filled = inpaint(constant(logits), tokens, unknown, codes=codes, generator=seeded())
        assert (filled[unknown] % 2 == 1).all()


@pytest.mark.parametrize("columns", [K - 1, K + 2])
def test_logits_of_another_width_are_refused(columns):
    with pytest.raises(ValueError, match=rf"of shape \(4, 16, 6\) or \(4, 16, 7\).*\(4, 16, {columns}\)"):
        inpaint(Stub(columns), *a_batch(), generator=seeded())


# --- bad input


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"schedule": "cosin"}, "schedule must be one of linear, .*'cosin'"),
        ({"codes": "beam"}, "codes must be one of argmax, .*'beam'"),
        ({"order": "best"}, "order must be one of confidence, .*'best'"),
        ({"rounding": "up"}, "rounding must be 'floor' or 'ceil'.*'up'"),
        ({"steps": 0}, "steps must be at least 1, but it is 0"),
        ({"steps": 8, "stop_at": 0}, "stop_at must lie between 1 and the 8 steps, but it is 0"),
        ({"steps": 8, "stop_at": 9}, "stop_at must lie between 1 and the 8 steps, but it is 9"),
        ({"stop_at": -1}, "stop_at must lie between 1 and the 8 steps, but it is -1"),
        ({"temperature": -0.1}, "temperature must be at least 0 and finite, but it is -0.1"),
        ({"choice_temperature": torch.nan}, "choice_temperature must be at least 0 and finite.*nan"),
        ({"generator": [seeded()] * 3}, "generator must be one .*, but there are 3 generators for 4 images"),
        ({"temperature_end": -1.0}, "temperature_end must be at least 0 and finite, but it is -1.0"),
        ({"choice_temperature_end": torch.inf}, "choice_temperature_end must be at least 0 and finite"),
        ({"count_base": "mask"}, "count_base must be 'hole' or 'current', but it is 'mask'"),
        ({"budget": "free"}, f"budget must be one of schedule, {', '.join(BUDGETS)}, but it is 'free'"),
        ({"limit": -1.0}, "limit must be at least 0 and finite, but it is -1.0"),
        ({"remask": 1.5}, "remask must be at least 0 and at most 1, but it is 1.5"),
        ({"remask": 0.5, "budget": "entropy"}, "remask keeps .* the budget 'schedule', but that is 'entropy'"),
        ({"rounds": -1}, "rounds must be at least 0, but it is -1"),
        ({"redo": torch.nan}, "redo must be at least 0 and at most 1, but it is nan"),
    ],
)
def test_bad_settings_are_refused_at_the_call(settings, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        decode_steps(Stub(), *a_batch(), **{"generator": seeded(), **settings})


def test_bad_batches_are_refused_at_the_call():
    tokens, unknown = a_batch()
    already_masked = tokens.masked_fill(unknown, K)
    with pytest.raises(ValueError, match=r"known tokens must be codes in 0\.\.5, but they span 0\.\.6"):
        decode_steps(Stub(), already_masked, torch.zeros_like(unknown), generator=seeded())
    # Where the annotations are checked, as in these tests, a TypeError comes first.
    with pytest.raises((ValueError, TypeError)):
        decode_steps(Stub(), tokens, unknown[:, :8], generator=seeded())
    with pytest.raises((ValueError, TypeError)):
        decode_steps(Stub(), tokens, unknown.long(), generator=seeded())


def test_bad_batches_are_refused_in_a_sentence_where_nobody_checks_shapes():
    tokens, unknown = a_batch()

    def check(tokens, unknown, prior=None, generator=None):
        decoder._check_batch(Stub(), tokens, unknown, prior, K, generator or per_image())

    check(tokens, unknown)
    check(tokens[3:], unknown[3:], generator=[seeded()])  # where nothing is known
    check(torch.tensor([[0, K - 1]]), torch.zeros(1, 2, dtype=torch.bool), generator=seeded())
    known = torch.zeros_like(unknown)
    for wrong in (-1, K):
        with pytest.raises(ValueError, match="known tokens must be codes in 0..5, but they span"):
            check(tokens.masked_fill(unknown, wrong), known)
    with pytest.raises(ValueError, match=r"same shape \(B, N\), but they have \(4, 16\) and \(4, 8\)"):
        check(tokens, unknown[:, :8])
    with pytest.raises(ValueError, match=r"same shape \(B, N\), but they have \(16,\) and \(16,\)"):
        check(tokens[0], unknown[0])
    with pytest.raises(ValueError, match="unknown must be bool, .* it is torch.int64"):
        check(tokens, unknown.long())
    with pytest.raises(ValueError, match="3 generators for 4 images"):
        check(tokens, unknown, generator=per_image()[:3])
    with pytest.raises(ValueError, match=r"prior must have shape \(4, 16, 6\), but it has \(16, 6\)"):
        check(tokens, unknown, torch.zeros(16, K))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_decodes_the_same_on_a_gpu():
    tokens, unknown = a_batch()
    right = inpaint(constant(Stub().table), tokens, unknown, generator=seeded())
    model = constant(Stub().table.cuda())
    assert torch.equal(inpaint(model, tokens.cuda(), unknown.cuda(), generator=seeded()).cpu(), right)
