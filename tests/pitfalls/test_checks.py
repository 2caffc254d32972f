"""The checks of a learner's code name every mistake that they know, and accuse no right code of one."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab5.attention import MultiHeadAttention, PerHeadAttention, scaled_dot_product_attention
from lab5.config import DecodeConfig
from lab5.decoder import decode_steps
from lab5.gamma import SCHEDULES, gamma, masked_count, masked_counts
from lab5.masking import read_masking
from lab5.pitfalls import decoding, training
from lab5.pitfalls.checks import (
    Checks,
    Row,
    Verdict,
    check_attention,
    check_decoding,
    check_gamma,
    check_loss,
    check_masking,
)
from lab5.pitfalls.readings import READINGS


@pytest.fixture(autouse=True)
def no_check_touches_the_global_random_state():
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)


def failed(checks: Checks) -> set[str]:
    return {row.check for row in checks.failed}


def verdicts(checks: Checks) -> dict[str, Verdict]:
    return {row.check: row.verdict for row in checks}


# --- rows


def test_rows_show_as_text_and_as_a_table_with_what_is_to_be_done():
    rows = (Row("one", Verdict.PASSES, "1 < 2"), Row("two", Verdict.FAILS, "3, should be 4", "It is odd.", "Add 1.", 7))
    checks = Checks(rows)
    assert list(checks) == list(rows) and len(checks) == 2 and checks.failed == rows[1:] and not checks.ok
    assert str(checks).splitlines()[1:] == ["fails       two: 3, should be 4", " " * 12 + "It is odd.",
                                            " " * 12 + "Remedy: Add 1."]  # fmt: skip
    html = checks._repr_html_()
    assert html.count("<tr>") == 3 and "1 &lt; 2" in html and "<strong>fails</strong>" in html
    assert Checks(rows[:1]).ok and not Checks((Row("three", Verdict.NOT_TESTED, "no"),)).ok


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("draw", [torch.rand, torch.randn])
def test_a_random_order_that_draws_as_the_check_does_is_a_choice(draw, sign):
    def at_random(model, tokens, unknown, schedule, steps, generator):
        tokens = tokens.masked_fill(unknown, model.mask_id)
        for n in masked_counts(schedule, steps, unknown.sum(1)):
            masked = tokens == model.mask_id
            codes = model(tokens)[..., : model.mask_id].argmax(-1)
            score = (sign * draw(tokens.shape, generator=generator)).masked_fill(~masked, torch.inf)
            stays = score.argsort(1).argsort(1) < n[:, None]
            tokens = torch.where(masked, codes, tokens).masked_fill(stays, model.mask_id)
            yield tokens

    checks = check_decoding(at_random)
    assert checks.ok and verdicts(checks)["order"] is Verdict.CHOICE


@pytest.mark.parametrize("check", [check_attention, check_gamma, check_masking, check_loss, check_decoding])
def test_code_that_raises_is_not_tested_and_not_ok(check):
    def broken(*_):
        raise KeyError("there is no such thing")

    (row,) = check(broken)
    assert row.verdict is Verdict.NOT_TESTED and "KeyError: 'there is no such thing'" in row.evidence
    assert not check(broken).ok


# --- attention


def by_heads(query, key, value, heads):
    """Head by head."""
    parts = (x.chunk(heads, dim=-1) for x in (query, key, value))
    return torch.cat([scaled_dot_product_attention(*head)[0] for head in zip(*parts, strict=True)], dim=-1)


def by_einsum(query, key, value, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (query, key, value))
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(3)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)


def with_weights(query, key, value, heads):
    return by_heads(query, key, value, heads), None


class Fused(nn.Module):
    """One matrix for query, key and value, laid out in one of three ways."""

    def __init__(self, layout: str, heads: int = 4, width: int = 32):
        super().__init__()
        self.layout, self.num_heads = layout, heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        sizes = {"3hd": (3, self.num_heads, -1), "h3d": (self.num_heads, 3, -1), "hd3": (self.num_heads, -1, 3)}
        qkv = self.qkv(x).unflatten(-1, sizes[self.layout])
        q, k, v = (y.transpose(1, 2) for y in qkv.unbind(2 + self.layout.index("3")))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Unnamed(MultiHeadAttention):
    """Its number of heads has a name that nobody knows."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.__dict__["many"] = self.__dict__.pop("heads")

    def forward(self, x):
        return self.out(by_heads(self.query(x), self.key(x), self.value(x), self.many))


class Inner(nn.Module):
    """Attention of a layer's three in one, by 4 heads, laid out as (heads, 3, d)."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        setattr(self, name, 4)

    def forward(self, qkv):
        q, k, v = qkv.unflatten(-1, (getattr(self, self.name), 3, -1)).transpose(1, 2).unbind(3)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Outer(nn.Module):
    """Its heads are the affair of a module within it, which names their number well, or as nobody does."""

    def __init__(self, name: str):
        super().__init__()
        self.qkv, self.attention, self.proj = nn.Linear(32, 96), Inner(name), nn.Linear(32, 32)

    def forward(self, x):
        return self.proj(self.attention(self.qkv(x)))


@pytest.mark.parametrize("attend", [by_heads, by_einsum, with_weights])
def test_right_attention_passes_all_checks(attend):
    checks = check_attention(attend)
    assert checks.ok and set(verdicts(checks).values()) == {Verdict.PASSES} and len(checks) == 8


@pytest.mark.parametrize(
    "module",
    [
        partial(MultiHeadAttention, 32, 4), partial(MultiHeadAttention, 32, 4, dropout=0.3), partial(Unnamed, 32, 4),
        partial(PerHeadAttention, 32, 4), partial(Outer, "num_heads"), partial(Outer, "many"),
        partial(Fused, "3hd"), partial(Fused, "h3d"), partial(Fused, "hd3"),
    ],
)  # fmt: skip
def test_right_modules_pass_all_checks_however_they_lay_out_their_weights(module):
    with torch.random.fork_rng():
        attention = module().train()
    checks = check_attention(attention)
    assert set(verdicts(checks).values()) == {Verdict.PASSES} and len(checks) == 8 and attention.training
    assert not any(layer._forward_hooks for layer in attention.modules())


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: "-".join(reading))
def test_every_reading_of_attention_is_told_by_its_departures(reading):
    expected = {"scale"} if reading.scale != "1/√d" else set()
    expected |= {"softmax axis"} if reading.axis != "keys" else set()
    expected |= {"heads cut"} if reading.split == "bare view" else set()
    expected |= {"heads joined"} if reading.join == "no transpose" else set()
    checks = check_attention(lambda *arguments: reading(*arguments))
    # A bare view on both sides puts tokens back to where they were, but attends to the wrong ones.
    assert failed(checks) - {"permutation"} == expected
    assert ("permutation" in failed(checks)) == bool(expected & {"heads cut", "heads joined"})
    interleaved = "interleaved" in (reading.split, reading.join)
    assert expected or verdicts(checks)["agrees with torch"] is (Verdict.CHOICE if interleaved else Verdict.PASSES)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (training.BareView, {"permutation", "heads cut"}), (training.NoTransposeBack, {"permutation", "heads joined"}),
        (training.SoftmaxOverQueries, {"softmax axis"}),
        (partial(training.DropoutInForward, dropout=0.1), {"two calls agree"}),
    ],
)  # fmt: skip
def test_the_mistakes_of_public_modules_are_told(module, expected):
    with torch.random.fork_rng():
        attention = module(32, 4)
    assert failed(check_attention(attention)) == expected


def test_other_mistakes_in_attention_are_told():
    assert failed(check_attention(lambda q, k, v, heads: F.dropout(by_heads(q, k, v, heads), 0.1))) == {
        "two calls agree"
    }
    assert failed(check_attention(lambda q, k, v, heads: by_heads(q, k, v, heads)[:, :, :8])) == {"shape"}
    assert failed(check_attention(lambda q, k, v, heads: by_heads(q, k, v.roll(1, 0), heads))) == {
        "images apart", "agrees with torch"
    }  # fmt: skip
    assert failed(check_attention(lambda q, k, v, heads: by_heads(q, 2 * k, v, heads))) == {"agrees with torch"}


def test_a_module_whose_values_are_not_found_is_not_accused_of_its_softmax():
    class Gathered(Fused):
        """Its channels lie in the projection in an order that nobody would guess."""

        def forward(self, x):
            q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in self.qkv(x).roll(5, -1).chunk(3, -1))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    with torch.random.fork_rng():
        checks = check_attention(Gathered("3hd"))
    assert not checks.failed
    assert verdicts(checks)["softmax axis"] is verdicts(checks)["agrees with torch"] is Verdict.NOT_TESTED


def test_the_noise_between_two_calls_is_shown_however_small_and_rounding_is_none():
    def noisy(size):
        return lambda *given: by_heads(*given) + size * torch.randn(given[0].shape)

    assert failed(check_attention(noisy(1e-3))) >= {"two calls agree"}
    row = check_attention(noisy(1e-3))[0]
    assert 0 < float(row.evidence.split()[4]) < 1, row.evidence
    assert not check_attention(noisy(1e-8)).failed


def test_a_module_that_no_reading_gives_is_not_accused():
    class Normed(MultiHeadAttention):
        """Keys of length 1 and a learnt temperature, as some right networks have."""

        def __init__(self):
            super().__init__(32, 4)
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.out(by_heads(self.query(x), F.normalize(self.key(x)) * self.temperature, self.value(x), 4))

    with torch.random.fork_rng():
        checks = check_attention(Normed())
    assert checks.ok and verdicts(checks)["agrees with torch"] is Verdict.NOT_TESTED
    assert not check_attention(nn.Identity()).ok


# --- γ


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_right_and_told_by_name(name):
    checks = check_gamma(partial(gamma, name))
    assert checks.ok and "choice" not in str(checks) and f"; {name} is" in str(checks)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda x: math.cos(math.pi / 2 * x), lambda x: torch.cos(x * torch.pi / 2), lambda x: torch.tensor([1 - x]),
        lambda x: 1 - 256 ** (x - 1), lambda x: min(1.0, -math.log(x) / math.log(256)), lambda x: (1 - x) ** 3,
    ],
)  # fmt: skip
def test_right_schedules_in_other_styles_pass(schedule):
    assert check_gamma(schedule).ok


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda x: math.sin(math.pi / 2 * x + 1), {"starts at 1", "ends at 0", "falls"}),
        (lambda x: math.cos(x), {"ends at 0"}), (lambda x: 1 - x // 0.1 * 0.1, {"ends at 0"}),
        (lambda x: 1 - math.cos(math.pi / 2 * x), {"its name"}), (lambda x: x, {"its name"}),
        (lambda x: (1 - x) * (1 + math.sin(6 * x)), {"falls", "within 0..1"}),
        (lambda x: 1 - 1.5 * x, {"ends at 0", "within 0..1"}), (lambda x: 0.9 * (1 - x), {"starts at 1"}),
    ],
)  # fmt: skip
def test_mistakes_in_a_schedule_are_told(schedule, expected):
    assert failed(check_gamma(schedule)) == expected


def test_values_stand_in_the_evidence():
    (row,) = check_gamma(lambda x: 1 - gamma("cosine", x))
    assert row.pitfall == 9 and row.evidence == "at 0, ¼, ½, ¾, 1: 0 0.0761 0.293 0.617 1; 1 − cosine"


# --- masking


def masking(name):
    return lambda tokens, generator: read_masking(name)(*tokens.shape, None, generator)


def by_permutation(tokens, generator):
    """Image by image, drawn from torch's own stream."""
    hidden = torch.zeros(tokens.shape, dtype=torch.bool)
    for image in hidden:
        n = math.ceil(math.cos(math.pi / 2 * float(torch.rand(1))) * tokens.shape[1])
        image[torch.randperm(tokens.shape[1])[:n]] = True
    return hidden


def by_rank(share, scores):
    return scores.argsort(1).argsort(1) < (256 * share).ceil()[:, None]


def cosine_of_u(tokens, generator):
    return torch.cos(math.pi / 2 * torch.rand(len(tokens), generator=generator))


def one_share_for_a_batch(tokens, generator):
    return torch.rand(tokens.shape, generator=generator) < torch.rand(1, generator=generator)


@pytest.mark.parametrize(
    ("hide", "words"),
    [
        (masking("cosine"), ["64% are hidden", ": each image", ": exactly so many"]),
        (by_permutation, ["63% are hidden", ": each image", ": exactly so many", "one seed, two masks"]),
        (masking("bernoulli:0.5"), ["50% are hidden", ": none, or each token alone", ": a coin for each token"]),
        (masking("per_token:0:1"), ["50% are hidden", ": none, or each token alone", ": a coin for each token"]),
        (masking("bernoulli:0:1"), ["as linear of u", ": each image", ": a coin for each token"]),
        (masking("uniform"), ["as linear of u", ": each image", ": exactly so many"]),
        (masking("square_root"), ["as square_root of u", ": each image", ": exactly so many"]),
        (masking("count:0.1:0.9"), ["between 10% and 90%", ": each image", ": exactly so many"]),
        (masking("count:0.4"), ["40% are hidden", ": none, or each token alone", ": exactly so many"]),
        (lambda t, g: by_rank((1 - torch.rand(len(t), generator=g)) ** 2, torch.rand(t.shape, generator=g)),
         ["as 1 − square of u", ": exactly so many"]),
        (lambda t, g: by_rank(cosine_of_u(t, g), torch.rand(1, t.shape[1], generator=g)),
         [": each image", "one image's hidden positions lie within another's: each batch"]),
        (lambda t, g: masking("cosine")(t[:1], g).repeat(len(t), 1), ["in 100% of the batches one image's hidden"]),
        (one_share_for_a_batch, ["as linear of u", ": each batch", "have nothing hidden", ": a coin for each token"]),
    ],
)  # fmt: skip
def test_maskings_that_are_a_choice_are_told_and_not_accused(hide, words):
    checks = check_masking(hide)
    assert all(row.meaning for row in checks if row.verdict is Verdict.CHOICE)
    assert checks.ok and not [word for word in words if word not in str(checks)], checks


@pytest.mark.parametrize(
    "name", ["linear", "square", "cubic", "raised_cosine", "arccos", "count:0:0.8", "bernoulli:0:0.7"]
)
def test_no_other_masking_is_taken_for_one_that_keeps(name):
    assert check_masking(masking(name)).ok


def overwriting(tokens, generator):
    hidden = masking("cosine")(tokens, generator)
    tokens[hidden] = 1024
    return hidden


def first_tokens(tokens, generator):
    n = (torch.rand(len(tokens), generator=generator) * 256).ceil()
    return torch.arange(256) < n[:, None]


@pytest.mark.parametrize(
    ("hide", "expected"),
    [
        (masking("cosine_kept"), {"share"}), (lambda t, g: ~masking("cosine")(t, g), {"share"}),
        (lambda t, g: ~by_permutation(t, g), {"share"}), (lambda t, g: t < 0, {"share"}),
        (overwriting, {"tokens stay"}), (first_tokens, {"anywhere"}),
        (lambda t, g: masking("cosine")(t, training.seeded()), {"drawn anew"}),
        (lambda t, g: masking("cosine")(t, g).long(), {"shape and type"}),
        (lambda t, g: masking("cosine")(t, g)[0], {"shape and type"}),
    ],
)  # fmt: skip
def test_mistakes_in_masking_are_told(hide, expected):
    assert failed(check_masking(hide)) == expected


def test_positions_that_are_drawn_for_each_image_are_not_taken_for_shared_ones():
    checks = check_masking(masking("cosine"))
    assert set(verdicts(checks).values()) == {Verdict.PASSES} and "positions drawn for" not in verdicts(checks)


def test_an_inverted_mask_is_told_whatever_its_generator_draws():
    """Of these draws the shares come nearer than others to those of 1 − square."""
    generators = {}

    def inverted(tokens, generator):
        if generator not in generators:
            generators[generator] = torch.rand(11, generator=generator)
        return ~masking("cosine")(tokens, generator)

    (row,) = check_masking(inverted).failed
    assert row.check == "share" and row.pitfall == 9


# --- loss


def own_cross_entropy(logits, tokens, hidden):
    """By log_softmax, gather and a mean of its own."""
    log_p = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return -(log_p * hidden).sum() / hidden.sum()


def ignoring(logits, tokens, hidden):
    return F.cross_entropy(logits.transpose(1, 2), tokens.masked_fill(~hidden, -100))


RIGHT_LOSSES = {
    "plain": lambda logits, tokens, hidden: F.cross_entropy(logits[hidden], tokens[hidden]),
    "indexed": lambda logits, tokens, hidden: F.cross_entropy(logits[hidden][:, :1024], tokens[hidden]),
    "by hand": lambda logits, tokens, hidden: own_cross_entropy(logits[..., :1024], tokens, hidden),
    "ignoring": lambda logits, tokens, hidden: ignoring(logits[..., :1024], tokens, hidden),
}


@pytest.mark.parametrize("name", RIGHT_LOSSES)
def test_right_losses_pass_all_checks(name):
    checks = check_loss(RIGHT_LOSSES[name])
    assert set(verdicts(checks).values()) == {Verdict.PASSES} and len(checks) == 3
    assert "loses 6.931, should be 6.931 = ln 1024" in checks[0].evidence
    assert checks[2].evidence == "160 of 160 hidden and 0 of 352 known tokens count"


def all_tokens(logits, tokens, hidden):
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-1)


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        (all_tokens, "counted"),
        (lambda x, t, h: F.cross_entropy(x[h], t[h], reduction="sum"), "reduction"),
        (lambda x, t, h: F.cross_entropy(x[h], t[h], reduction="sum") / len(x), "reduction"),
        (lambda x, t, h: (F.cross_entropy(x.transpose(1, 2), t, reduction="none") * h).mean(), "reduction"),
        (lambda x, t, h: F.cross_entropy(x[h], t[h]) / math.log(2), "reduction"),
        (lambda x, t, h: F.cross_entropy(x[h], t[h], label_smoothing=0.1), "smoothing"),
        (lambda x, t, h: own_cross_entropy(x, t, 0.1 + 0.9 * h), "counted"),
    ],
)  # fmt: skip
def test_losses_that_are_a_choice_are_told_and_not_accused(loss, row):
    checks = check_loss(loss)
    assert checks.ok and verdicts(checks)[row] is Verdict.CHOICE, checks


@pytest.mark.parametrize(
    ("loss", "expected", "words"),
    [
        (lambda x, t, h: F.cross_entropy(x, F.one_hot(t, x.shape[-1]).float()), "class axis", "loses 1.386"),
        (lambda x, t, h: F.cross_entropy(x.reshape(len(x), -1, 256), t), "label", "0 of 512"),
        (lambda x, t, h: F.cross_entropy(x, t), "class axis", "Expected target size [2, 1024], got [2, 256]"),
        (lambda x, t, h: F.cross_entropy(x, t, reduction="none")[h].mean(), "class axis", "got [2, 256]"),
        (lambda x, t, h: F.cross_entropy(x[h].softmax(-1), t[h]), "softmax once", "0.00098 of what"),
        (lambda x, t, h: F.cross_entropy(x[~h], t[~h]), "counted", "0 of 160 hidden and 352 of 352 known"),
        (lambda x, t, h: F.cross_entropy(x[h], t.masked_fill(h, 1024)[h]), "label", "160 of 160 counted"),
        (lambda x, t, h: -F.cross_entropy(x[h], t[h]), "class axis", "-6.931"),
        (lambda x, t, h: F.cross_entropy(x[h], t[h]) / 10, "class axis", "0.693"),
        (lambda x, t, h: F.mse_loss(x, F.one_hot(t, x.shape[-1]).float()), "class axis", "0.001"),
        (lambda x, t, h: (x.argmax(-1) != t)[h].float().mean(), "gradient", "without a gradient"),
        (lambda x, t, h: own_cross_entropy(x, t, h & (t > 300)), "counted", "of 160 hidden and 0 of 352"),
        (lambda x, t, h: F.cross_entropy(x[h], t.roll(1, 1)[h]), "label", "of 160 counted"),
    ],
)  # fmt: skip
def test_mistakes_in_the_loss_are_told(loss, expected, words):
    checks = check_loss(loss)
    assert failed(checks) == {expected} and words in checks.failed[0].evidence


def test_a_loss_for_other_codes_is_told_how_many_there_are():
    (row,) = check_loss(lambda logits, tokens, hidden: F.cross_entropy(logits[hidden][:, :512], tokens[hidden]))
    assert row.verdict is Verdict.NOT_TESTED and "logits are (2, 256, 1024) here, codes 0..1023" in row.evidence


# --- decoding


def packages(yields="tokens", **settings):
    """The package's own with these settings."""

    def decode(model, tokens, unknown, schedule, steps, generator):
        config = DecodeConfig(schedule=schedule, steps=steps, **settings)
        states = decode_steps(model, tokens, unknown, config, generator=generator)
        return [getattr(state, yields) for state in states][yields == "filled" :]

    return decode


def by_hand(model, tokens, unknown, schedule, steps, generator, *, change=None, sign=1, in_place=False):
    """A learner's: topk of one image after the other, from a generator. `change` is a line that is wrong."""
    change = change or (lambda name, value, **_: value)
    tokens = tokens if in_place else tokens.clone()
    tokens[unknown] = model.mask_id
    for step in range(1, steps + 1):
        masked = tokens == model.mask_id
        p = change("logits", model(tokens)[..., : model.mask_id], model=model, tokens=tokens).softmax(-1)
        chosen = change("codes", torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(tokens.shape))
        proposed = torch.where(masked, chosen, tokens)
        score = p.gather(-1, chosen[..., None]).squeeze(-1).log().masked_fill(~masked, sign * math.inf)
        for image, hole in enumerate(unknown.sum(1).tolist()):
            n = change("count", masked_count(schedule, step, steps, hole), step=step, steps=steps, tokens=tokens)
            lowest = score[image].topk(n, largest=sign < 0).indices
            proposed[image, lowest] = model.mask_id
        tokens.copy_(change("kept", proposed, masked=masked, unknown=unknown, mask_id=model.mask_id))
        yield tokens


def stopping_early(model, tokens, unknown, schedule, steps, generator):
    for state in by_hand(model, tokens, unknown, schedule, steps, generator):
        yield state
        if not (state == model.mask_id).any():
            return


def one_image(model, tokens, unknown, schedule, steps, generator):
    if len(tokens) > 1:
        raise ValueError("one image at a time")
    return packages()(model, tokens, unknown, schedule, steps, generator)


@pytest.mark.parametrize(
    "decode",
    [
        packages(), packages("filled"), packages(codes="argmax"), packages(order="moment"), packages(temperature=0.7),
        packages(choice_temperature=0.0), by_hand, stopping_early, one_image,
    ],
)  # fmt: skip
def test_right_decodings_pass(decode):
    checks = check_decoding(decode)
    untested = {"two images"} if decode is one_image else {"the model sees"} if decode is stopping_early else set()
    assert checks.ok and {name for name, v in verdicts(checks).items() if v is not Verdict.PASSES} <= untested


@pytest.mark.parametrize(
    ("decode", "row", "words"),
    [
        (packages(rounding="ceil"), "counts", "Rounded up, as in the paper."),
        (packages(order="random"), "order", "at random, or by place"), (packages(order="halton"), "order", "by place"),
        (packages(order="margin"), "confidence", "not of the code drawn"),
        (packages(choice_temperature_end=4.5), "noise", "as loud at the end"),
        (partial(by_hand, in_place=True), "caller's tokens", "85 tokens of the caller changed"),
    ],
)  # fmt: skip
def test_decodings_that_are_a_choice_are_told_and_not_accused(decode, row, words):
    checks = check_decoding(decode)
    assert checks.ok and verdicts(checks)[row] is Verdict.CHOICE and words in str(checks)


def test_a_decoding_that_draws_from_torchs_own_stream_cannot_be_repeated():
    def decode(model, tokens, unknown, schedule, steps, generator):
        yield from packages()(model, tokens, unknown, schedule, steps, torch.default_generator)

    checks = check_decoding(decode)
    assert checks.ok and verdicts(checks)["its generator"] is Verdict.CHOICE


def of(decode):
    """One of `lab5.pitfalls.decoding`."""
    return lambda model, tokens, unknown, schedule, steps, generator: decode(
        model, tokens, unknown, schedule=schedule, steps=steps, generator=generator
    )


def line(name, value):
    """`by_hand` with one line changed."""
    return partial(by_hand, change=lambda at, right, **more: value(right, **more) if at == name else right)


def share_of_all(right, step, steps, tokens):
    return min(decoding.HOLE, math.floor(math.cos(math.pi / 2 * step / steps) * tokens.shape[1]))


def ceil_of_a_float(right, step, steps, tokens):
    return math.ceil(right) if step < steps else 1


def first_images(model, tokens, unknown, schedule, steps, generator):
    counts = decode_steps(
        model, tokens[:1], unknown[:1], DecodeConfig(schedule=schedule, steps=steps), generator=generator
    )
    left = [int((state.tokens == model.mask_id).sum()) for state in counts][1:]
    for state, n in zip(by_hand(model, tokens, unknown, schedule, steps, generator), left, strict=True):
        places = unknown & (unknown.cumsum(1) <= n)
        yield torch.where(places, model.mask_id, state.masked_fill(state == model.mask_id, 3))


def mixed_images(model, tokens, unknown, schedule, steps, generator):
    class Mixed:
        mask_id = model.mask_id

        def __call__(self, x):
            return model(x).roll(1, 0)

    return packages()(Mixed(), tokens, unknown, schedule, steps, generator)


def blind(model, tokens, unknown, schedule, steps, generator):
    """The network is shown the start at every step."""

    class Blind:
        mask_id = model.mask_id

        def __call__(self, x):
            return model(tokens.masked_fill(unknown, model.mask_id))

    return packages()(Blind(), tokens, unknown, schedule, steps, generator)


@pytest.mark.parametrize(
    ("decode", "expected", "pitfall"),
    [
        (of(decoding.shrinking_mask), {"committed is the answer"}, 1),
        (of(decoding.original_tokens), {"committed stays"}, 2), (blind, {"the model sees"}, 2),
        (of(decoding.nothing_restored), {"known tokens", "committed stays"}, 3),
        (packages(order="lab"), {"order"}, 10), (partial(by_hand, sign=-1), {"order"}, 10),
        (of(decoding.compounding_count), {"counts"}, 11),
        (line("count", lambda n, step, steps, tokens: masked_count("cosine", step - 1, steps, 85)),
         {"counts", "nothing left", "schedules"}, 12),
        (line("count", ceil_of_a_float), {"nothing left"}, 12), (line("count", share_of_all), None, 0),
        (of(decoding.mask_id_as_a_class), {"mask id"}, 13), (of(decoding.deaf_to_schedule), {"schedules"}, 15),
        (line("codes", lambda codes: (codes + 500) % 1024), {"committed is the answer", "order"}, 1),
        (mixed_images, {"two images"}, 0),
    ],
)  # fmt: skip
def test_mistakes_in_decoding_are_told(decode, expected, pitfall):
    checks = check_decoding(decode)
    assert expected is None or failed(checks) == expected, checks
    assert pitfall in {row.pitfall for row in checks.failed}, checks


def in_the_lesson(model, tokens, unknown, schedule, steps, generator, *, wrong):
    """As notebook 03 writes it, with a mistake."""
    start = tokens
    if wrong != "start":
        tokens = tokens.masked_fill(unknown, model.mask_id)
    hole = unknown.sum(1) if wrong != "grid" else torch.full((len(tokens),), 256)
    for t in range(1, steps + 1):
        masked = tokens == model.mask_id
        log_p = model(tokens)[..., : model.mask_id].log_softmax(-1)
        y = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view(tokens.shape)
        score = torch.rand(tokens.shape, generator=generator)  # for most mistakes any order will do
        if wrong == "greedy":
            score = log_p.max(-1).values + score
        if wrong != "finite":
            score = score.masked_fill(~masked, math.inf)
        n = masked_count(schedule, t, steps, hole)
        rank = score.argsort(1) if wrong == "one argsort" else score.argsort(1).argsort(1)
        stays = rank < (hole - n if wrong == "1 - gamma" else n)[:, None]
        filled = torch.where({"after": stays, "overwritten": unknown, "all": start >= 0}.get(wrong, masked), y, tokens)
        tokens = filled.masked_fill(stays, model.mask_id)
        yield tokens


@pytest.mark.parametrize(
    ("wrong", "check", "remedy"),
    [
        ("start", "start masked", "masked_fill(unknown, model.mask_id) before the loop"),
        ("finite", "known tokens", "masked_fill(~masked, inf), then rank = score.argsort(1).argsort(1)"),
        ("one argsort", "known tokens", "masked_fill(~masked, inf), then rank = score.argsort(1).argsort(1)"),
        ("grid", "counts", "times unknown.sum()"), ("1 - gamma", "counts", "stay masked"),
        ("after", "committed is the answer", "where the mask was before the step, not where it is after it"),
        ("overwritten", "committed stays", "torch.where(masked, proposed, tokens)"),
    ],
)  # fmt: skip
def test_of_a_mistake_with_many_effects_the_first_row_is_its_cause(wrong, check, remedy):
    checks = check_decoding(partial(in_the_lesson, wrong=wrong))
    (row,) = checks.failed
    assert row.check == check and remedy in row.remedy, checks
    assert row == checks[0] or wrong == "overwritten"


def test_what_is_written_over_known_tokens_is_not_put_down_to_their_rank():
    checks = check_decoding(partial(in_the_lesson, wrong="all"))
    assert failed(checks) == {"known tokens", "committed stays"}
    assert "infinity" not in checks.failed[0].remedy and "where(masked, proposed, tokens)" in checks.failed[0].remedy


def test_the_confidence_of_a_code_that_was_not_drawn_is_told_as_a_choice():
    checks = check_decoding(partial(in_the_lesson, wrong="greedy"))
    assert checks.ok and verdicts(checks)["confidence"] is Verdict.CHOICE


def test_redrawn_tokens_are_told_from_those_that_turn_grey():
    def redrawing(model, tokens, unknown, schedule, steps, generator):
        for state in packages("filled")(model, tokens, unknown, schedule, steps, generator):
            yield torch.where(unknown & (state < 1000), state + int(torch.randint(2, (1,), generator=generator)), state)

    def forgetting(model, tokens, unknown, schedule, steps, generator):
        for step, state in enumerate(packages()(model, tokens, unknown, schedule, steps, generator)[1:], 1):
            yield torch.where(unknown & (torch.arange(256) % 9 == step % 9), model.mask_id, state)

    assert "drawn again, 0 are masked again" in str(check_decoding(redrawing))
    row = next(row for row in check_decoding(forgetting) if row.check == "committed stays")
    assert row.verdict is Verdict.FAILS and "0 are drawn again" in row.evidence


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        (lambda tokens: [tokens] * 10, "append tokens.clone()"),
        (lambda tokens: [tokens.clone() for _ in range(10)], "no state says what is still masked"),
        (lambda tokens: [tokens.masked_fill(tokens == 7, 1024)[0]] * 10, "all states are one tensor"),
        (lambda tokens: [tokens.masked_fill(tokens == 7, 1024).clone() for _ in range(3)], "there are 3 states"),
        (lambda tokens: [tokens.flatten().clone() for _ in range(10)], "a state is (256,), should be (1, 256)"),
    ],
)
def test_states_that_cannot_be_read_are_not_tested(states, reason):
    (row,) = check_decoding(lambda model, tokens, *_: states(tokens))
    assert row.verdict is Verdict.NOT_TESTED and reason in row.evidence


def test_the_published_example_of_counts_stands_in_the_evidence():
    row = next(row for row in check_decoding(of(decoding.compounding_count)) if row.check == "counts")
    assert row.evidence == "cosine: 83 78 69 55 38 22 9 2 0 0, should be 83 80 75 68 60 49 38 26 13 0"
