"""What a decoding promises, under every schedule, code and order, with stub models whose answer is known."""

import pytest
import torch

from lab5 import decoder
from lab5.config import TransformerConfig
from lab5.decoder import DecodeStep, decode_steps, inpaint
from lab5.gamma import SCHEDULES, masked_count
from lab5.samplers import CODES, ORDERS
from lab5.transformer import BidirectionalTransformer

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


def states_of(model, tokens, unknown, generator=None, **settings) -> list[DecodeStep]:
    return list(decode_steps(model, tokens, unknown, generator=generator or seeded(), **settings))


# --- the invariants


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_decoding_keeps_its_promises(schedule, codes, order):
    tokens, unknown = a_batch()
    states = states_of(Stub(), tokens, unknown, schedule=schedule, codes=codes, order=order, steps=5)

    assert [state.step for state in states] == [0, 1, 2, 3, 4, 5]
    assert torch.equal(states[0].masked, unknown)
    assert not states[-1].masked.any() and torch.equal(states[-1].filled, states[-1].tokens)
    for state in states:
        # The known tokens are there at every step, and what is masked is counted per image from the start.
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])
        assert torch.equal(state.filled[~unknown], tokens[~unknown])
        assert torch.equal(state.tokens == K, state.masked)
        count = masked_count(schedule, state.step, 5, unknown.sum(dim=1))
        assert torch.equal(state.masked.sum(dim=1), count)
    for before, after in zip(states, states[1:], strict=False):
        # A token once committed stays, and what is committed is what was proposed.
        assert not (after.masked & ~before.masked).any()
        assert torch.equal(after.tokens[~before.masked], before.tokens[~before.masked])
        assert torch.equal(after.tokens[~after.masked], after.filled[~after.masked])
        assert (0 <= after.filled).all() and (after.filled < K).all()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
def test_the_mask_id_is_never_chosen_however_large_its_logit(codes, order):
    tokens, unknown = a_batch()
    model = Stub()
    settings = {"codes": codes, "order": order, "steps": 4, "mask_id": K}
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


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
def test_with_a_generator_per_image_an_image_decodes_the_same_alone_and_in_a_batch(codes, order):
    tokens, unknown = a_batch()
    settings = {"codes": codes, "order": order, "steps": 4}
    batch = inpaint(Stub(), tokens, unknown, generator=[seeded(i) for i in range(IMAGES)], **settings)
    for i in range(IMAGES):
        alone = inpaint(Stub(), tokens[i : i + 1], unknown[i : i + 1], generator=[seeded(i)], **settings)
        assert torch.equal(batch[i : i + 1], alone)


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


def test_stopping_early_follows_the_plan_and_then_commits_everything():
    tokens, unknown = a_batch()
    whole = states_of(Stub(), tokens, unknown, steps=6)
    for stop_at in range(1, 7):
        states = states_of(Stub(), tokens, unknown, steps=6, stop_at=stop_at)
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
        ({"generator": [seeded()] * 3}, "3 generators for 4 images"),
    ],
)
def test_bad_settings_are_refused_at_the_call(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_decodes_the_same_on_a_gpu():
    tokens, unknown = a_batch()
    right = inpaint(constant(Stub().table), tokens, unknown, generator=seeded())
    model = constant(Stub().table.cuda())
    assert torch.equal(inpaint(model, tokens.cuda(), unknown.cuda(), generator=seeded()).cpu(), right)
