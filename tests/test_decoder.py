"""What a decoding promises, under every schedule, code and order, with stub models whose answer is known."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from stubs import (
    IMAGES,
    POSITIONS,
    Chain,
    K,
    Table,
    a_batch,
    assert_committed_tokens_stay,
    assert_promises,
    named,
    per_image,
    seeded,
    walk,
    walks_alike,
)

from lab5 import decoder
from lab5.config import DecodeConfig, TransformerConfig
from lab5.decoder import DecodeStep, decode_steps, inpaint
from lab5.gamma import SCHEDULES, masked_count
from lab5.inpainting import fill as filling
from lab5.inpainting.pair import Pair
from lab5.samplers import CODES, ORDERS, halton_order
from lab5.transformer import BidirectionalTransformer


def constant(logits):
    """A model that answers the same for every image and every context."""
    return named(lambda tokens: logits.expand(len(tokens), -1, -1), logits.shape[-1])


def states_of(model, tokens, unknown, generator=None, **settings) -> list[DecodeStep]:
    return walk(decode_steps, model, tokens, unknown, generator, **settings)


def assert_states_repeat_when_done(states):
    assert not states[-1].masked.any()
    for before, after in pairwise(states):
        if not before.masked.any():
            assert after.step == before.step + 1
            assert all(torch.equal(getattr(after, name), getattr(before, name)) for name in DecodeStep._fields[1:6])


# --- the invariants


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_decoding_keeps_its_promises(schedule, codes, order):
    tokens, unknown = a_batch()
    settings = {"schedule": schedule, "codes": codes, "order": order}
    states = walks_alike(decode_steps, **settings, steps=4)
    assert len(states) == 5
    assert_promises(states, tokens, unknown)
    assert_committed_tokens_stay(states)
    for state in states:  # what is masked is counted per image from the start
        assert torch.equal(state.masked.sum(dim=1), masked_count(schedule, state.step, 4, unknown.sum(dim=1)))
    one_shot = CODES[codes](Table()(tokens.masked_fill(unknown, K)), 1.0, seeded())
    filled = inpaint(Table(), tokens, unknown, **settings, steps=1, generator=seeded())
    assert torch.equal(filled, torch.where(unknown, one_shot, tokens))


@pytest.mark.parametrize("changes", [
    {"temperature_end": 0.0}, {"choice_temperature_end": 4.5}, {"rounding": "ceil"},
])  # fmt: skip
@pytest.mark.parametrize("order", ORDERS)
def test_every_option_keeps_the_promises(order, changes):
    tokens, unknown = a_batch()
    states = walks_alike(decode_steps, order=order, steps=4, **changes)
    assert_promises(states, tokens, unknown)
    assert_committed_tokens_stay(states)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("codes", CODES)
def test_the_mask_id_is_never_chosen_however_large_its_logit(codes, order):
    tokens, unknown = a_batch()
    model = Table()
    settings = {"codes": codes, "order": order, "steps": 4}
    with_mask = named(lambda tokens: torch.nn.functional.pad(model(tokens), (0, 1), value=1e9))
    states = states_of(with_mask, tokens, unknown, **settings)
    # The extra column must not merely lose: it must not matter at all.
    for state, right in zip(states, states_of(model, tokens, unknown, **settings), strict=True):
        assert torch.equal(state.filled, right.filled) and torch.equal(state.confidence, right.confidence)
    assert (states[-1].tokens < K).all()


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_the_rounding_is_the_schedules(rounding):
    tokens, unknown = a_batch()
    for state in states_of(Table(), tokens, unknown, steps=7, rounding=rounding):
        count = masked_count("cosine", state.step, 7, unknown.sum(dim=1), rounding)
        assert torch.equal(state.masked.sum(dim=1), count)


def test_tokens_under_the_hole_do_not_influence_the_result():
    tokens, unknown = a_batch()
    right = inpaint(Table(), tokens, unknown, generator=seeded())
    for junk in (0, K, -5, 10**6):
        other = tokens.masked_fill(unknown, junk)
        assert torch.equal(inpaint(Table(), other, unknown, generator=seeded()), right)


def test_the_callers_tensors_are_neither_modified_nor_watched():
    tokens, unknown = a_batch()
    before = tokens.clone(), unknown.clone()
    right = states_of(Table(), tokens, unknown)
    assert torch.equal(tokens, before[0]) and torch.equal(unknown, before[1])
    states = decode_steps(Table(), tokens, unknown, generator=seeded())
    tokens.zero_()
    unknown.fill_(True)
    for state, expected in zip(states, right, strict=True):
        assert torch.equal(state.filled, expected.filled)


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    tokens, unknown = a_batch()
    first, again, other = (inpaint(Table(), tokens, unknown, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- the steps


def test_each_step_is_computed_when_it_is_asked_for():
    model = Table()
    states = decode_steps(model, *a_batch(), DecodeConfig(steps=3), generator=seeded())
    for calls in (0, 1, 2, 3):
        assert next(states).step == calls == len(model.asked)
    assert next(states, None) is None


def test_the_model_is_asked_with_what_is_committed_so_far():
    model = Table()
    states = states_of(model, *a_batch(), steps=5)
    for asked, state in zip(model.asked, states, strict=False):
        assert torch.equal(asked, state.tokens)


def test_one_step_is_one_shot_sampling():
    tokens, unknown = a_batch()
    drawn = CODES["sample"](Table()(tokens.masked_fill(unknown, K)), 1.0, seeded(9))
    filled = inpaint(Table(), tokens, unknown, steps=1, generator=seeded(9))
    assert torch.equal(filled, torch.where(unknown, drawn, tokens))


def test_one_step_of_argmax_needs_no_luck():
    tokens, unknown = a_batch()
    best = Table()(tokens.masked_fill(unknown, K)).argmax(dim=-1)
    filled = inpaint(Table(), tokens, unknown, steps=1, codes="argmax", generator=seeded())
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
        states_of(Table(), tokens, unknown, per_image(), order=order, **settings)[1] for order in ("moment", "random")
    )
    assert torch.equal(first.filled[first.masked], drawn.filled[first.masked]), "guesses are the model's own"
    committed = unknown & ~first.masked
    assert not torch.equal(first.filled[committed], drawn.filled[committed]), "the chosen ones' are sharper"


def test_iterating_solves_what_one_shot_cannot():
    tokens = torch.arange(POSITIONS).expand(8, -1) % K
    unknown = torch.ones_like(tokens, dtype=torch.bool)
    unknown[:, 0] = False
    settings = {"schedule": "linear", "choice_temperature": 0.0}
    one_by_one = inpaint(Chain(), tokens, unknown, steps=POSITIONS - 1, generator=seeded(), **settings)
    assert torch.equal(one_by_one, tokens)
    at_once = inpaint(Chain(), tokens, unknown, steps=1, generator=seeded(), **settings)
    assert (at_once == tokens)[:, 2:].float().mean() < 0.5


@pytest.mark.parametrize("order", ORDERS)
def test_stopping_early_follows_the_plan_and_then_commits_everything(order):
    tokens, unknown = a_batch()
    settings = {"steps": 4, "order": order}
    whole = states_of(Table(), tokens, unknown, **settings)
    for stop_at in range(1, 5):
        states = states_of(Table(), tokens, unknown, **settings, stop_at=stop_at)
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

    monkeypatch.setitem(decoder.ORDERS, "random", spy)
    states_of(Table(), *a_batch(), steps=4, order="random", choice_temperature=2.0)
    assert temperatures == [1.5, 1.0, 0.5, 0.0]
    temperatures.clear()
    states_of(Table(), *a_batch(), steps=4, stop_at=2, order="random", choice_temperature=2.0)
    assert temperatures == [1.5, 1.0]  # the plan's, wherever it is left


@pytest.mark.parametrize("end, right", [(-1.0, [2, 2, 2, 2]), (0.0, [1.5, 1, 0.5, 0]), (4.0, [2.5, 3, 3.5, 4])])
def test_the_temperature_of_the_codes_moves_linearly_to_its_end(monkeypatch, end, right):
    temperatures = []

    def spy(logits, temperature, generator):
        temperatures.append(temperature)
        return logits.argmax(dim=-1)

    monkeypatch.setitem(decoder.CODES, "argmax", spy)
    states_of(Table(), *a_batch(), steps=4, codes="argmax", temperature=2.0, temperature_end=end)
    assert temperatures == right


def test_the_noise_on_the_order_can_end_elsewhere_than_at_zero(monkeypatch):
    temperatures = []

    def spy(proposal, generator):
        temperatures.append((proposal.temperature, proposal.code_temperature))
        return torch.zeros(proposal.codes.shape)

    monkeypatch.setitem(decoder.ORDERS, "random", spy)
    settings = {"choice_temperature": 2.0, "choice_temperature_end": 1.0, "temperature": 1.0, "temperature_end": 0.5}
    states_of(Table(), *a_batch(), steps=4, order="random", **settings)
    assert temperatures == [(1.75, 0.875), (1.5, 0.75), (1.25, 0.625), (1.0, 0.5)]


@pytest.mark.parametrize("schedule, calls", [("one_shot", 1), ("linear", 6)])
def test_steps_with_nothing_left_to_do_do_not_ask_the_model(schedule, calls):
    model = Table()
    states = states_of(model, *a_batch(), steps=6, schedule=schedule)
    assert len(states) == 7 and len(model.asked) == calls
    assert_states_repeat_when_done(states)


def test_without_a_hole_the_model_is_never_asked():
    model = Table()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, torch.zeros_like(unknown))
    assert not model.asked and all(torch.equal(state.filled, tokens) for state in states)


def test_the_halton_order_keeps_its_beginning_through_all_steps_and_passes_over_what_is_known():
    tokens, unknown = torch.zeros(40, POSITIONS, dtype=torch.int64), torch.arange(POSITIONS).expand(40, -1) % 3 > 0
    settings = {"schedule": "linear", "steps": POSITIONS, "order": "halton"}
    states = states_of(Table(), tokens, unknown, **settings)
    rotations = [halton_order(4)[start:] + halton_order(4)[:start] for start in range(POSITIONS)]
    right = {tuple(n for n in rotation if n % 3) for rotation in rotations}
    found = set()
    for image in range(40):
        changes = [(a.masked ^ b.masked)[image].nonzero().flatten().tolist() for a, b in pairwise(states)]
        found.add(tuple(n for change in changes for n in change))
    assert found <= right and len(found) > 5


def test_no_score_brings_a_known_position_under_the_mask(monkeypatch):
    tokens, unknown = a_batch()
    spiteful = lambda proposal, _: torch.where(proposal.unknown, 1e30, -torch.inf)  # noqa: E731
    monkeypatch.setitem(decoder.ORDERS, "random", spiteful)
    for state in states_of(Table(), tokens, unknown, order="random"):
        assert torch.equal(state.tokens[~unknown], tokens[~unknown])


@pytest.mark.parametrize("order", ORDERS)
def test_confidence_is_the_log_probability_of_each_code_when_it_was_proposed(order):
    tokens, unknown = a_batch()
    model = Table()
    states = states_of(model, tokens, unknown, steps=5, temperature=2.0, order=order)
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


def test_without_settings_a_decoding_follows_the_labs_rule():
    right = states_of(Table(), *a_batch(), schedule="cosine", steps=8, codes="sample", order="confidence",
                      temperature=1.0, choice_temperature=4.5)  # fmt: skip
    for state, expected in zip(decode_steps(Table(), *a_batch(), generator=seeded()), right, strict=True):
        assert torch.equal(state.filled, expected.filled) and torch.equal(state.masked, expected.masked)
    assert torch.equal(inpaint(Table(), *a_batch(), generator=seeded()), right[-1].tokens)


def test_every_setting_of_a_run_reaches_the_decoder(monkeypatch):
    given = []
    monkeypatch.setattr(filling, "dilate", lambda unknown, rings: unknown)  # this grid is a small one
    monkeypatch.setattr(filling, "decode", lambda *batch, **_: given.append(batch[-1]) or iter(()))
    transformer = torch.nn.Linear(1, 1)
    transformer.mask_id = K
    transformer.config = SimpleNamespace(hints=0)
    pair = Pair(SimpleNamespace(encode=lambda _: a_batch()[0]), transformer, "stub")
    changed = DecodeConfig(
        schedule="linear", steps=3, stop_at=2, codes="argmax", order="halton", temperature=0.5, choice_temperature=2.0,
        temperature_end=0.0, choice_temperature_end=1.0, rounding="ceil", budget="entropy", limit=0.1, rounds=4,
        redo=0.3,
    )  # fmt: skip
    images, holes = torch.zeros(IMAGES, 3, 64, 64, dtype=torch.uint8), torch.ones(IMAGES, 64, 64, dtype=torch.bool)
    for decoding in (changed, DecodeConfig(remask=0.2)):
        filling._decode_batch(pair, images, holes, decoding, per_image())
    assert given == [changed, DecodeConfig(remask=0.2)]


@pytest.mark.parametrize("stop_at", [None, 0, 8])
def test_a_stop_that_is_not_named_is_after_all_the_steps(stop_at):
    """None is a name for 0 where settings are keywords."""
    right = inpaint(Table(), *a_batch(), steps=8, generator=seeded())
    assert torch.equal(inpaint(Table(), *a_batch(), steps=8, stop_at=stop_at, generator=seeded()), right)


# --- the model


def test_a_real_transformer_fills_a_hole_and_is_left_as_it_was():
    config = TransformerConfig(codes=K, positions=POSITIONS, width=8, layers=1, heads=2, hidden=8)
    model = BidirectionalTransformer(config, generator=seeded()).eval()
    tokens, unknown = a_batch()
    states = states_of(model, tokens, unknown)
    assert (states[-1].tokens < K).all() and torch.equal(states[-1].tokens[~unknown], tokens[~unknown])
    assert not any(field.requires_grad for state in states for field in state[1:6])
    assert torch.is_grad_enabled() and not model.training
    model.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        decode_steps(model, tokens, unknown, generator=seeded())


def test_half_precision_logits_are_decoded_in_float32():
    tokens, unknown = a_batch()
    half = named(lambda tokens: Table()(tokens).bfloat16())
    rounded = named(lambda tokens: half(tokens).float())
    states = states_of(half, tokens, unknown)
    for state, right in zip(states, states_of(rounded, tokens, unknown), strict=True):
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
    ours = inpaint(Table(), tokens, unknown, generator=seeded(), prior=zeros)
    assert torch.equal(ours, inpaint(Table(), tokens, unknown, generator=seeded()))
    with pytest.raises(ValueError, match="prior must have shape"):
        decode_steps(Table(), tokens, unknown, generator=seeded(), prior=zeros[..., :-1])


def test_a_model_has_to_say_its_mask_id():
    with pytest.raises(ValueError, match="^the model needs an attribute mask_id"):
        decode_steps(lambda tokens: Table()(tokens), *a_batch(), generator=seeded())


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
        inpaint(Table(columns), *a_batch(), generator=seeded())


# --- bad input


BAD_SETTINGS = [
    ({"schedule": "cosin"}, "decode.schedule must be one of linear, .*'cosin'"),
    ({"codes": "beam"}, "decode.codes must be one of argmax, .*'beam'"),
    ({"order": "best"}, "decode.order must be one of confidence, .*'best'"),
    ({"rounding": "up"}, "decode.rounding must be one of floor, ceil, not 'up'"),
    ({"steps": 0}, "decode.steps must be at least 1, not 0"),
    ({"steps": 8, "stop_at": 9}, r"decode.stop_at = 9 must lie in 0\.\.8"),
    ({"stop_at": -1}, "decode.stop_at must be at least 0, not -1"),
    ({"temperature": -0.1}, "decode.temperature must be at least 0, not -0.1"),
    ({"choice_temperature": torch.nan}, "decode.choice_temperature must be at least 0, not nan"),
    ({"temperature_end": torch.inf}, "decode.temperature_end must be a finite number, not inf"),
    ({"choice_temperature_end": torch.inf}, "decode.choice_temperature_end must be at least 0, not inf"),
    ({"limit": -1.0}, "decode.limit must be at least 0, not -1.0"),
    ({"redo": torch.nan}, "decode.redo must be at least 0 and at most 1, not nan"),
]


@pytest.mark.parametrize("settings, sentence", BAD_SETTINGS)
def test_bad_settings_are_refused_at_the_call(settings, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        decode_steps(Table(), *a_batch(), DecodeConfig(**settings), generator=seeded())
    with pytest.raises(ValueError, match=f"^{sentence}"):
        inpaint(Table(), *a_batch(), generator=seeded(), **settings)


@pytest.mark.parametrize("settings", [{"budget": "entropy"}, {"remask": 0.5}, {"rounds": 1}])
def test_what_goes_beyond_a_schedule_is_refused_with_where_it_is(settings):
    with pytest.raises(ValueError, match="^decode_steps follows a schedule alone: lab5.variants.decode has "):
        decode_steps(Table(), *a_batch(), DecodeConfig(**settings), generator=seeded())


def test_a_setting_that_there_is_not_is_refused_by_its_name():
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        inpaint(Table(), *a_batch(), generator=seeded(), steps=2, temprature=0.5)


@pytest.mark.parametrize("setting", ["fill", "hints", "evidence", "passes", "paste", "dilate", "batch"])
def test_a_setting_that_needs_pixels_is_not_silently_ignored(setting):
    default = DecodeConfig.__dataclass_fields__[setting].default
    with pytest.raises(TypeError, match=f"inpaint has tokens only; lab5.inpaint_images takes {setting}"):
        inpaint(Table(), *a_batch(), generator=seeded(), **{setting: default})


def test_generators_are_one_or_one_per_image():
    with pytest.raises(ValueError, match="^generator must be one .*, but there are 3 generators for 4 images"):
        decode_steps(Table(), *a_batch(), generator=[seeded()] * 3)


def test_bad_batches_are_refused_at_the_call():
    tokens, unknown = a_batch()
    already_masked = tokens.masked_fill(unknown, K)
    with pytest.raises(ValueError, match=r"known tokens must be codes in 0\.\.5, but they span 0\.\.6"):
        decode_steps(Table(), already_masked, torch.zeros_like(unknown), generator=seeded())
    # Where the annotations are checked, as in these tests, a TypeError comes first.
    with pytest.raises((ValueError, TypeError)):
        decode_steps(Table(), tokens, unknown[:, :8], generator=seeded())
    with pytest.raises((ValueError, TypeError)):
        decode_steps(Table(), tokens, unknown.long(), generator=seeded())


def test_bad_batches_are_refused_in_a_sentence_where_nobody_checks_shapes():
    tokens, unknown = a_batch()

    def check(tokens, unknown, prior=None, generator=None):
        decoder._check_batch(Table(), tokens, unknown, prior, K, generator or per_image())

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
    right = inpaint(constant(Table().table), tokens, unknown, generator=seeded())
    model = constant(Table().table.cuda())
    assert torch.equal(inpaint(model, tokens.cuda(), unknown.cuda(), generator=seeded()).cpu(), right)
