"""What a decoding promises, under every schedule, code and order, with stub models whose answer is known."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from stubs import (
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
    per_image,
    seeded,
    untrained_pair,
    walk,
    walks_alike,
)

from lab5 import decoder
from lab5.config import DecodeConfig, TransformerConfig
from lab5.decoder import decode_steps, inpaint
from lab5.gamma import SCHEDULES, masked_count
from lab5.inpainting import fill as filling
from lab5.samplers import CODES, ORDERS, AtMasked, halton_order, uniform
from lab5.transformer import BidirectionalTransformer

states_of = partial(walk, decode_steps)


def constant(logits):
    """A model that answers the same for every image and every context."""
    return named(lambda tokens: logits.expand(len(tokens), -1, -1), logits.shape[-1])


# --- the invariants


@pytest.mark.parametrize("changes", [
    *({"schedule": schedule} for schedule in SCHEDULES), *({"codes": codes} for codes in CODES),
    {"temperature_end": 0.0}, {"choice_temperature_end": 4.5}, {"rounding": "ceil"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("order", ORDERS)
def test_every_decoding_keeps_its_promises(order, changes):
    tokens, unknown = a_batch()
    states = walks_alike(decode_steps, order=order, steps=4, **changes)
    assert len(states) == 5
    assert_promises(states, tokens, unknown)
    assert_committed_tokens_stay(states)
    schedule, rounding = changes.get("schedule", "cosine"), changes.get("rounding", "floor")
    for state in states:  # what is masked is counted per image from the start
        count = masked_count(schedule, state.step, 4, unknown.sum(dim=1), rounding)
        assert torch.equal(state.masked.sum(dim=1), count)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
def test_one_step_is_one_shot_sampling(codes, order):
    tokens, unknown = a_batch()
    drawn = CODES[codes](Table()(tokens.masked_fill(unknown, K)), 1.0, seeded())
    filled = inpaint(Table(), tokens, unknown, codes=codes, order=order, steps=1, generator=seeded())
    assert torch.equal(filled, torch.where(unknown, drawn, tokens))


@pytest.mark.parametrize("settings", [*({"codes": c} for c in CODES), *({"order": o} for o in ORDERS)], ids=str)
def test_the_mask_id_is_never_chosen_however_large_its_logit(settings):
    assert_the_logit_of_the_mask_id_does_not_matter(decode_steps, steps=4, **settings)


def test_the_callers_tensors_are_not_watched():
    right = states_of(Table(), *a_batch())
    tokens, unknown = a_batch()
    states = decode_steps(Table(), tokens, unknown, generator=seeded())
    tokens.zero_()
    unknown.fill_(True)
    for state, expected in zip(states, right, strict=True):
        assert torch.equal(state.filled, expected.filled)


# --- the steps


def test_each_step_is_computed_when_it_is_asked_for_from_what_is_committed_so_far():
    model = Table()
    states = decode_steps(model, *a_batch(), DecodeConfig(steps=3), generator=seeded())
    state = next(states)
    assert state.step == 0 and not model.asked
    for calls in (1, 2, 3):
        before, state = state, next(states)
        assert state.step == calls == len(model.asked)
        assert torch.equal(model.asked[-1], before.tokens)
    assert next(states, None) is None


def test_without_noise_the_surest_positions_are_committed_first():
    surest = torch.randperm(POSITIONS, generator=seeded(5))  # surest[i] is the i-th to be committed
    logits = torch.zeros(POSITIONS, K)
    logits[surest, surest % K] = torch.linspace(8, 2, POSITIONS)
    unknown = torch.ones(1, POSITIONS, dtype=torch.bool)
    settings = {"schedule": "linear", "steps": POSITIONS, "codes": "argmax", "choice_temperature": 0.0}
    states = states_of(constant(logits), unknown.long(), unknown, **settings)
    committed = [int((before.masked ^ after.masked).nonzero()[0, 1]) for before, after in pairwise(states)]
    assert committed == surest.tolist()
    assert torch.equal(states[-1].tokens[0], torch.arange(POSITIONS) % K)


def test_the_moment_sampler_draws_anew_only_what_it_commits():
    tokens, unknown = a_batch()
    settings = dict(steps=4, schedule="linear", temperature=2.0, choice_temperature=0.5)
    first, drawn = (
        states_of(Table(), tokens, unknown, per_image(), order=order, **settings)[1] for order in ("moment", "random")
    )
    assert torch.equal(first.filled[first.masked], drawn.filled[first.masked]), "guesses are the model's own"
    committed = unknown & ~first.masked
    assert not torch.equal(first.filled[committed], drawn.filled[committed]), "the chosen ones' are sharper"


@pytest.mark.parametrize("order", ORDERS)
def test_stopping_early_follows_the_plan_and_then_commits_everything(order):
    assert_stopping_early_follows_the_plan(decode_steps, steps=4, order=order)


@pytest.mark.parametrize("settings, of_the_order, of_the_codes", [
    ({}, [1.5, 1.0, 0.5, 0.0], [2.0] * 4),
    ({"stop_at": 2}, [1.5, 1.0], [2.0] * 2),  # the plan's, wherever it is left
    ({"temperature_end": 0.0}, [1.5, 1.0, 0.5, 0.0], [1.5, 1.0, 0.5, 0.0]),
    ({"temperature_end": 4.0}, [1.5, 1.0, 0.5, 0.0], [2.5, 3.0, 3.5, 4.0]),
    ({"choice_temperature_end": 1.0, "temperature_end": 0.5}, [1.75, 1.5, 1.25, 1.0], [1.625, 1.25, 0.875, 0.5]),
], ids=str)  # fmt: skip
def test_temperatures_move_linearly_that_of_the_order_to_zero(monkeypatch, settings, of_the_order, of_the_codes):
    drawn_at, ordered_at = [], []

    def codes(logits, temperature, generator):
        drawn_at.append(temperature)
        return logits.argmax(dim=-1)

    def order(proposal, generator):
        ordered_at.append((proposal.temperature, proposal.code_temperature))
        return torch.zeros(proposal.codes.shape)

    monkeypatch.setitem(decoder.CODES, "argmax", codes)
    monkeypatch.setitem(decoder.ORDERS, "random", order)
    states_of(Table(), *a_batch(), steps=4, codes="argmax", order="random", temperature=2.0, choice_temperature=2.0,
              **settings)  # fmt: skip
    assert drawn_at == of_the_codes and ordered_at == list(zip(of_the_order, of_the_codes, strict=True))


@pytest.mark.parametrize("schedule, hole, calls", [("one_shot", True, 1), ("linear", True, 6), ("linear", False, 0)])
def test_steps_with_nothing_left_to_do_do_not_ask_the_model(schedule, hole, calls):
    model = Table()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, unknown & hole, steps=6, schedule=schedule)
    assert len(states) == 7 and len(model.asked) == calls
    assert_finished_states_repeat(states)


def test_the_halton_order_keeps_its_beginning_through_all_steps_and_passes_over_what_is_known():
    tokens, unknown = torch.zeros(40, POSITIONS, dtype=torch.int64), torch.arange(POSITIONS).expand(40, -1) % 3 > 0
    states = states_of(Table(), tokens, unknown, schedule="linear", steps=POSITIONS, order="halton")
    rotations = [halton_order(4)[start:] + halton_order(4)[:start] for start in range(POSITIONS)]
    right = {tuple(n for n in rotation if n % 3) for rotation in rotations}
    found = set()
    for image in range(40):
        changes = [(a.masked ^ b.masked)[image].nonzero().flatten().tolist() for a, b in pairwise(states)]
        found.add(tuple(n for change in changes for n in change))
    assert found <= right and len(found) > 5


def test_no_score_brings_a_known_position_under_the_mask(monkeypatch):
    tokens, unknown = a_batch()
    spiteful = lambda proposal, _: proposal.at_masked(torch.where(proposal.unknown, 1e30, -torch.inf))  # noqa: E731
    monkeypatch.setitem(decoder.ORDERS, "random", spiteful)
    for state in states_of(Table(), tokens, unknown, order="random"):
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])


@pytest.mark.parametrize("order", ORDERS)
def test_confidence_is_the_log_probability_of_each_code_when_it_was_proposed(order):
    model = Table()
    states = states_of(model, *a_batch(), steps=5, temperature=2.0, order=order)
    assert not states[0].confidence.any()
    for (before, after), asked in zip(pairwise(states), list(model.asked), strict=True):
        log_probabilities = model(asked).log_softmax(dim=-1)  # at temperature 1, not that of the codes
        proposed = log_probabilities.gather(2, after.filled[..., None])[..., 0]
        torch.testing.assert_close(after.confidence, torch.where(before.masked, proposed, before.confidence))


# --- the settings of a run


def test_without_settings_a_decoding_follows_the_labs_rule():
    right = states_of(Table(), *a_batch(), schedule="cosine", steps=8, codes="sample", order="confidence",
                      temperature=1.0, choice_temperature=4.5)  # fmt: skip
    for state, expected in zip(decode_steps(Table(), *a_batch(), generator=seeded()), right, strict=True):
        assert torch.equal(state.filled, expected.filled)
    for stop_at in ({}, {"stop_at": None}, {"stop_at": 0}, {"stop_at": 8}):  # None is a name for 0 among keywords
        assert torch.equal(inpaint(Table(), *a_batch(), generator=seeded(), **stop_at), right[-1].tokens)


def test_every_setting_of_a_run_reaches_the_decoder(monkeypatch):
    given = []
    monkeypatch.setattr(filling, "decode", lambda *batch, **_: given.append(batch[-1]) or iter(()))
    changed = DecodeConfig(
        schedule="linear", steps=3, stop_at=2, codes="argmax", order="halton", temperature=0.5, choice_temperature=2.0,
        temperature_end=0.0, choice_temperature_end=1.0, rounding="ceil", rounds=4, redo=0.3, remask=0.2,
    )  # fmt: skip
    image, hole = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.ones(1, 64, 64, dtype=torch.bool)
    for decoding in (changed, DecodeConfig(budget="entropy", limit=0.1)):
        list(filling.decode_holes(untrained_pair(), image, hole, decoding, 0))
    assert given == [changed, DecodeConfig(budget="entropy", limit=0.1)]


# --- the model


def test_a_real_transformer_fills_a_hole_and_is_left_as_it_was():
    config = TransformerConfig(codes=K, positions=POSITIONS, width=8, layers=1, heads=2, hidden=8)
    model = BidirectionalTransformer(config, generator=seeded()).eval()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, unknown)
    assert_promises(states, tokens, unknown)
    assert not any(field.requires_grad for state in states for field in state[1:6])
    assert torch.is_grad_enabled() and not model.training
    model.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        decode_steps(model, tokens, unknown, generator=seeded())


@pytest.mark.parametrize("order", ORDERS)
def test_a_model_is_asked_about_masked_positions_alone_and_answers_there_as_a_whole_one(order, monkeypatch):
    config = TransformerConfig(codes=K, positions=POSITIONS, width=8, layers=1, heads=2, hidden=8)
    model = BidirectionalTransformer(config, generator=seeded()).eval()
    torch.nn.init.normal_(model.bias, generator=seeded(1))
    settings = {"order": order, "steps": 4, "temperature": 0.7}
    whole = states_of(named(lambda tokens: model(tokens)), *a_batch(), prior=prior_of(), **settings)
    asked, forward = [], type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, tokens, where: asked.append(where) or forward(self, tokens, where)
    )
    states = states_of(model, *a_batch(), prior=prior_of(), **settings)
    for (rows, columns), state in zip(asked, states, strict=False):
        assert torch.equal(torch.stack([rows, columns], dim=1), state.masked.nonzero())
    assert asked
    for state, right in zip(states, whole, strict=True):
        assert torch.equal(state.filled, right.filled) and torch.equal(state.masked, right.masked)


def prior_of() -> torch.Tensor:
    return torch.randn(4, POSITIONS, K, generator=seeded(9))


def test_the_noise_of_a_position_does_not_depend_on_what_else_is_masked():
    whole = uniform((2, 8), [seeded(1), seeded(2)], torch.device("cpu"))
    masked = torch.rand(2, 8, generator=seeded()) < 0.5
    noise = uniform((int(masked.sum()),), AtMasked([seeded(1), seeded(2)], masked), torch.device("cpu"))
    assert torch.equal(noise, whole[masked])


def test_half_precision_logits_are_decoded_in_float32():
    half = named(lambda tokens: Table()(tokens).bfloat16())
    rounded = named(lambda tokens: half(tokens).float())
    for state, right in zip(*(states_of(model, *a_batch()) for model in (half, rounded)), strict=True):
        assert state.confidence.dtype == torch.float32
        assert torch.equal(state.filled, right.filled) and torch.equal(state.confidence, right.confidence)


def test_a_prior_multiplies_the_models_probabilities():
    """Against a model that knows nothing, the codes follow the prior alone."""
    tokens, unknown = torch.zeros(4000, 1, dtype=torch.int64), torch.ones(4000, 1, dtype=torch.bool)
    prior = torch.tensor([0.7, 0.2, 0.1]).log().expand(4000, 1, 3)
    filled = inpaint(constant(torch.zeros(1, 3)), tokens, unknown, steps=1, prior=prior, generator=seeded())
    shares = torch.bincount(filled.flatten(), minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1]), rtol=0, atol=0.03)


def test_a_model_has_to_say_its_mask_id():
    with pytest.raises(ValueError, match="^the model needs an attribute mask_id"):
        decode_steps(lambda tokens: Table()(tokens), *a_batch(), generator=seeded())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(wrong):
    logits = torch.zeros(POSITIONS, K)
    logits[3, 2] = wrong
    with pytest.raises(ValueError, match="must return finite logits"):
        inpaint(constant(logits), *a_batch(), generator=seeded())


@pytest.mark.parametrize("codes", CODES)
def test_impossible_codes_are_allowed_and_never_drawn(codes):
    logits = torch.zeros(POSITIONS, K)
    logits[:, ::2] = -torch.inf
    tokens, unknown = a_batch()
    filled = inpaint(constant(logits), tokens, unknown, codes=codes, generator=seeded())
    assert (filled[unknown] % 2 == 1).all()


@pytest.mark.parametrize("columns", [K - 1, K + 2])
def test_logits_of_another_width_are_refused(columns):
    with pytest.raises(ValueError, match=rf"of shape \(4, 16, 6\) or \(4, 16, 7\).*\(4, 16, {columns}\)"):
        inpaint(Table(columns), *a_batch(), generator=seeded())


# --- bad input; test_config.py has the range of every setting


@pytest.mark.parametrize("settings, sentence", [
    ({"schedule": "cosin"}, "decode.schedule must be one of linear, .*'cosin'"),
    ({"steps": 8, "stop_at": 9}, r"decode.stop_at = 9 must lie in 0\.\.8"),
], ids=str)  # fmt: skip
def test_bad_settings_are_refused_at_the_call(settings, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        decode_steps(Table(), *a_batch(), DecodeConfig(**settings), generator=seeded())
    with pytest.raises(ValueError, match=f"^{sentence}"):
        inpaint(Table(), *a_batch(), generator=seeded(), **settings)


@pytest.mark.parametrize("settings", [{"budget": "entropy"}, {"remask": 0.5}, {"rounds": 1}], ids=str)
def test_what_goes_beyond_a_schedule_is_refused_with_where_it_is(settings):
    with pytest.raises(ValueError, match="^decode_steps follows a schedule alone: lab5.variants.decode has "):
        decode_steps(Table(), *a_batch(), DecodeConfig(**settings), generator=seeded())


@pytest.mark.parametrize("setting", ["fill", "hints", "evidence", "passes", "paste", "dilate", "batch"])
def test_a_setting_that_needs_pixels_is_not_silently_ignored(setting):
    default = DecodeConfig.__dataclass_fields__[setting].default
    with pytest.raises(TypeError, match=f"inpaint has tokens only; lab5.inpaint_images takes {setting}"):
        inpaint(Table(), *a_batch(), generator=seeded(), **{setting: default})


TOKENS, UNKNOWN = a_batch()
NOWHERE = torch.zeros_like(UNKNOWN)


def begun(tokens, unknown, generator=None, prior=None):
    """`begin` has no shapes in its signature: as where nobody checks them."""
    return decoder.begin(Table(), tokens, unknown, DecodeConfig(), generator or per_image(), prior)


@pytest.mark.parametrize("batch, sentence", [
    ((TOKENS.masked_fill(UNKNOWN, K), NOWHERE), r"known tokens must be codes in 0\.\.5, but they span 0\.\.6"),
    ((TOKENS.masked_fill(UNKNOWN, -1), NOWHERE), r"known tokens must be codes in 0\.\.5, but they span -1\.\.5"),
    ((TOKENS, UNKNOWN[:, :8]), r"same shape \(B, N\), but they have \(4, 16\) and \(4, 8\)"),
    ((TOKENS[0], UNKNOWN[0]), r"same shape \(B, N\), but they have \(16,\) and \(16,\)"),
    ((TOKENS, UNKNOWN.long()), "unknown must be bool, .* it is torch.int64"),
    ((TOKENS, UNKNOWN, per_image()[:3]), "generator must be one .*, but there are 3 generators for 4 images"),
    ((TOKENS, UNKNOWN, None, torch.zeros(16, K)), r"prior must have shape \(4, 16, 6\), but it has \(16, 6\)"),
], ids=["masked", "below 0", "shapes", "axes", "dtype", "generators", "prior"])  # fmt: skip
def test_bad_batches_are_refused_in_a_sentence(batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        begun(*batch)


def test_batches_at_the_edge_of_what_is_allowed_are_taken():
    begun(TOKENS[3:], UNKNOWN[3:], [seeded()])  # nothing is known
    begun(torch.tensor([[0, K - 1]]), torch.zeros(1, 2, dtype=torch.bool), seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_decodes_the_same_on_a_gpu():
    tokens, unknown = a_batch()
    right = inpaint(constant(Table().table), tokens, unknown, generator=seeded())
    model = constant(Table().table.cuda())
    assert torch.equal(inpaint(model, tokens.cuda(), unknown.cuda(), generator=seeded()).cpu(), right)
