"""The losses are the closed forms, look only where they should, and the codes follow their latents."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab5.config import Stage1Config, Stage2Config, VQGANConfig
from lab5.data.dataset import TRAIN_STATS, normalise
from lab5.data.toycats import render
from lab5.masking import MASKINGS
from lab5.objectives import (
    LOSSES,
    MVTMObjective,
    VQGANObjective,
    all_cross_entropy,
    epoch_batch,
    masked_cross_entropy,
    mvtm_loss,
    mvtm_mask,
    validate,
    vqgan_loss,
)
from lab5.training.critics import PerceptualDistance
from lab5.vqgan import VQGAN, CodeAverages

K, N = 20, 256
SMALL = VQGANConfig(
    codes=16, latent=4, stem=4, encoder=((4,), (6,)), middle=(8,), decoder=((8,), (6,), (4,)), groups=0, attention=False
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens_of(n, seed=0):
    return torch.randint(K, (n, N), generator=seeded(seed))


def holes_of(n, seed=0):
    """Token masks of 60 to 120 positions in a row."""
    start, length = torch.randint(130, (2, n), generator=seeded(seed))
    place = torch.arange(N)
    return (place >= start[:, None]) & (place < (start + 60 + length % 61)[:, None])


class Stub(nn.Module):
    """Answers with logits made by a function of what it is shown; remembers that and its mode."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.mask_id = answer, K
        self.weight = nn.Parameter(torch.zeros(()))
        self.shown, self.modes = [], []

    def forward(self, tokens, where=None):
        self.shown.append(tokens)
        self.modes.append(self.training)
        logits = self.answer(tokens) + self.weight
        return logits if where is None else logits[where]


def uniform(tokens):
    return torch.zeros(*tokens.shape, K + 1)


def sure_of(right):
    """A model that is certain of the tokens `right` wherever it is asked."""
    return Stub(lambda tokens: 50.0 * F.one_hot(right, K + 1).float())


# --- batches ----------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_example_once_in_another_order_each_time():
    epochs = [torch.cat([epoch_batch(30, 6, 5 * e + i, seed=3) for i in range(1, 6)]) for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(30))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    assert not torch.equal(epochs[0][:6], epoch_batch(30, 6, 1, seed=4))


def test_an_epoch_that_does_not_come_out_even_leaves_the_rest_out_and_repeats_none():
    seen = [torch.cat([epoch_batch(10, 4, 2 * e + i, seed=0) for i in (1, 2)]) for e in range(40)]
    assert all(len(epoch.unique()) == 8 for epoch in seen)
    assert torch.cat(seen).unique().tolist() == list(range(10))  # not always the same rest


def test_the_order_of_the_examples_is_what_it_has_always_been():
    """Written down when there were trainings to go on with: a draw outside the loop must find the same examples."""
    drawn = {1: [4, 5, 0, 1], 2: [2, 8, 3, 6], 3: [1, 9, 5, 6], 5: [4, 6, 9, 0]}
    assert {draw: epoch_batch(10, 4, draw, seed=3).tolist() for draw in drawn} == drawn


@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_that_the_examples_cannot_fill_is_refused(batch):
    with pytest.raises(ValueError, match=rf"1\.\.10, the number of examples; found {batch}"):
        epoch_batch(10, batch, 1, seed=0)
    assert len(epoch_batch(10, 1, 1, seed=0)) == 1 and len(epoch_batch(10, 10, 1, seed=0)) == 10


# --- the loss of stage two --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masking", MASKINGS)
def test_a_uniform_model_loses_the_logarithm_of_the_number_of_codes(masking, loss):
    loss = mvtm_loss(Stub(uniform), tokens_of(6), masking=masking, generator=seeded(), holes=holes_of(4), loss=loss)
    assert loss.item() == pytest.approx(math.log(K), rel=1e-6)
    # With classes and positions confused it would be ln(N) / 4 at N = 256.
    assert loss.item() != pytest.approx(math.log(N) / 4, rel=0.1)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mask_id_is_never_a_class(loss):
    tokens = tokens_of(4)

    def eager(shown):
        logits = uniform(shown)
        logits[..., K] = 1e4
        return logits

    losses = [mvtm_loss(Stub(answer), tokens, generator=seeded(), loss=loss).item() for answer in (uniform, eager)]
    assert losses[0] == losses[1] == pytest.approx(math.log(K))


def test_nothing_is_smoothed_unless_asked_for():
    tokens, masked, model = tokens_of(4), holes_of(4), Stub(lambda shown: torch.randn(4, N, K + 1, generator=seeded(1)))
    for cross_entropy in (masked_cross_entropy, LOSSES["masked"], LOSSES["all"]):
        assert torch.equal(cross_entropy(model, tokens, masked)[0], cross_entropy(model, tokens, masked, 0.0)[0])
    plain, unsmoothed = (mvtm_loss(model, tokens, generator=seeded(), **more) for more in ({}, {"label_smoothing": 0}))
    assert torch.equal(plain, unsmoothed)


def test_the_loss_looks_only_at_masked_tokens():
    tokens = tokens_of(4)
    masked = mvtm_mask(tokens, "cosine", seeded())
    wrong_when_known = torch.where(masked, tokens, (tokens + 1) % K)
    wrong_when_masked = torch.where(masked, (tokens + 1) % K, tokens)
    loss, accuracy = masked_cross_entropy(sure_of(wrong_when_known), tokens, masked)
    assert loss.item() == pytest.approx(0, abs=1e-6) and accuracy == 1
    loss, accuracy = masked_cross_entropy(sure_of(wrong_when_masked), tokens, masked)
    assert loss.item() == pytest.approx(50, rel=1e-3) and accuracy == 0


def test_the_loss_on_all_tokens_looks_at_known_ones_too_and_its_accuracy_does_not():
    tokens = tokens_of(4)
    masked = mvtm_mask(tokens, "cosine", seeded())
    share = masked.float().mean().item()
    for right, loss_of_it, accuracy_of_it in ((masked, 1 - share, 1), (~masked, share, 0)):
        answer = torch.where(right, tokens, (tokens + 1) % K)
        loss, accuracy = all_cross_entropy(sure_of(answer), tokens, masked)
        assert loss.item() == pytest.approx(50 * loss_of_it, rel=1e-3) and accuracy == accuracy_of_it


def test_a_masking_by_holes_needs_some():
    with pytest.raises(ValueError, match="masking 'hole' needs holes"):
        mvtm_loss(Stub(uniform), tokens_of(1), masking="hole", generator=seeded())


def test_an_unknown_masking_or_loss_is_refused_before_the_first_step():
    """A loss that there is not is refused in a sentence where settings are made; here it is no key of LOSSES."""
    with pytest.raises(ValueError, match="masking 'cosin'"):
        MVTMObjective(tokens_of(4), replace(Stage2Config(), masking="cosin"), seed=0)
    with pytest.raises(KeyError, match="hidden"):
        MVTMObjective(tokens_of(4), replace(Stage2Config(), loss="hidden"), seed=0)
    with pytest.raises(KeyError, match="hidden"):
        mvtm_loss(Stub(uniform), tokens_of(1), generator=seeded(), loss="hidden")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_model_is_shown_known_tokens_and_the_mask_id_and_never_the_answer(loss):
    tokens, model = tokens_of(4), Stub(uniform)
    before = tokens.clone()
    mvtm_loss(model, tokens, masking="linear", generator=seeded(), loss=loss)
    masked = mvtm_mask(tokens, "linear", seeded())
    assert torch.equal(model.shown[0], torch.where(masked, K, tokens))
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_closed_form_over_the_positions_that_it_is_on(loss, smoothing):
    tokens, masked = tokens_of(5), mvtm_mask(tokens_of(5), "uniform", seeded(1))
    logits = torch.randn(5, N, K + 1, generator=seeded(2))
    found, accuracy = LOSSES[loss](Stub(lambda shown: logits), tokens, masked, smoothing)
    over = masked if loss == "masked" else torch.ones_like(masked)
    total, right = 0.0, 0
    for image, position in over.nonzero().tolist():
        log_p = logits[image, position, :K].double().log_softmax(0)
        total -= (1 - smoothing) * log_p[tokens[image, position]] + smoothing * log_p.mean()
        right += int(masked[image, position] and log_p.argmax() == tokens[image, position])
    assert found.item() == pytest.approx(total.item() / over.sum().item(), rel=1e-5)
    assert accuracy.item() == pytest.approx(right / masked.sum().item())


def test_a_stage_two_step_is_a_function_of_its_number_and_the_generator():
    tokens, holes = tokens_of(40).to(torch.int16), holes_of(6)
    objective = MVTMObjective(tokens, Stage2Config(batch=8, masking="mixed"), seed=2, holes=holes)
    model = Stub(lambda shown: torch.randn(*shown.shape, K + 1, generator=seeded(9)))
    found = [objective(model, draw, seeded(seed)) for draw, seed in ((3, 1), (3, 1), (4, 1), (3, 2))]
    losses = [loss.item() for loss, _ in found]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    chosen = tokens[epoch_batch(40, 8, 3, seed=2)].long()
    masked = mvtm_mask(chosen, "mixed", seeded(1), holes)
    assert torch.equal(model.shown[0], chosen.masked_fill(masked, K))
    best = torch.randn(8, N, K + 1, generator=seeded(9))[..., :K].argmax(-1)
    assert found[0][1] == {"accuracy": pytest.approx((best == chosen)[masked].float().mean().item())}


class Hinted(Stub):
    """One that takes hints as well, and remembers them."""

    def forward(self, tokens, where=None, hints=None):
        self.hints = hints
        return super().forward(tokens, where)


@pytest.mark.parametrize("loss", LOSSES)
def test_with_hints_nine_of_ten_images_come_with_a_part_of_a_hole_and_its_hints(loss):
    tokens, holes = tokens_of(300), holes_of(5)
    config = Stage2Config(batch=300, masking="count:1", loss=loss)  # without a hole, all is masked

    def hints(image, hole):
        return torch.stack([image, hole], 1)[:, None].expand(-1, N, -1) + 1.0

    model = Hinted(uniform)
    MVTMObjective(tokens, config, 2, holes, hints)(model, 1, seeded())
    masked = model.shown[0] == K
    without = masked.all(1)
    assert without.float().mean() == pytest.approx(0.1, abs=0.05)
    assert (model.hints[without] == 0).all()
    image, hole = model.hints[:, 0].long().unbind(1)
    assert torch.equal(image[~without] - 1, epoch_batch(300, 300, 1, seed=2)[~without])
    assert (masked <= holes[hole - 1])[~without].all()


SHOWN = {  # of four images, written down when there were trainings to go on with: theirs must stay what they were
    ("mixed", False): "...x.x.......... .x..x......x.... xx.xxxxxxxxxxx.x .........x......",
    ("mixed", True): "......x.xxx..... ...........x.... .........xxx.... ...........x....",
    ("cosine", False): "xxxxxxxxxx.xxxxx xxxxxxxxxxx.xxxx ..x......xx...x. xx..x..xx.xx..xx",
    ("cosine", True): ".........xxx.... ..........x..... .........xxx.... .....xxxxxxxxxx.",
}


@pytest.mark.parametrize(("masking", "hinted"), SHOWN)
def test_the_default_training_draws_what_it_has_always_drawn(masking, hinted):
    tokens, place = torch.randint(K, (5, 16), generator=seeded()), torch.arange(16)
    holes = (place >= torch.tensor([[2], [5], [9]])) & (place < torch.tensor([[8], [15], [12]]))
    hints = (lambda image, hole: torch.zeros(len(image), 16, 1)) if hinted else None
    model, generator = Hinted(uniform), seeded(7)
    MVTMObjective(tokens, Stage2Config(batch=4, masking=masking), 1, holes, hints)(model, 1, generator)
    rows = ["".join("x" if masked else "." for masked in row) for row in (model.shown[0] == K).tolist()]
    assert " ".join(rows) == SHOWN[masking, hinted]


# --- validation -------------------------------------------------------------------------------------------------------


def noisy_model():
    """A model with dropout, whose answers to the same tokens differ in training mode."""
    dropout = nn.Dropout(0.5)
    table = torch.randn(N, K + 1, generator=seeded(8))
    model = Stub(lambda shown: dropout(F.one_hot(shown, K + 1).float().roll(1, 1) + table))
    model.dropout = dropout
    return model


def test_validation_hands_every_image_its_own_hints():
    hints, seen = torch.randn(10, N, 3, generator=seeded(4)), []
    model = noisy_model()
    answer = model.forward
    model.forward = lambda tokens, where=None, hints=None: seen.append(hints) or answer(tokens, where)
    validate(model, tokens_of(10), holes_of(10), hints, batch=4)
    assert torch.equal(torch.cat(seen), hints)


@pytest.mark.parametrize("training", [True, False])
def test_validation_says_the_same_twice_and_leaves_the_mode_as_it_was(training):
    tokens, masked, model = tokens_of(10), holes_of(10), noisy_model().train(training)
    state = torch.get_rng_state()
    first, second = validate(model, tokens, masked, batch=4), validate(model, tokens, masked, batch=4)
    assert first == second
    assert model.training is training and not any(model.modes)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():  # and the check can fail: in training mode the answers differ
        noisy = [masked_cross_entropy(model.train(), tokens, masked)[0].item() for _ in range(2)]
    assert noisy[0] != noisy[1]


def test_validation_is_a_mean_over_tokens_whatever_the_batches():
    tokens, masked, model = tokens_of(10), holes_of(10), noisy_model().eval()
    masked[8:] = torch.arange(N) < 3  # with few tokens in the last batch, a mean of means would show
    with torch.no_grad():
        loss, accuracy = masked_cross_entropy(model, tokens, masked)
    for batch in (1, 4, 64):
        found = validate(model, tokens, masked, batch=batch)
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert found["accuracy"] == pytest.approx(accuracy.item(), rel=1e-5)


# --- the loss of stage one --------------------------------------------------------------------------------------------


@torch.no_grad()
def vqgan(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VQGAN(SMALL)
    model.quant_conv.weight.mul_(30)  # latents of a size that shows in the loss
    latents = flat(model.latents(pictures(2, 9)))
    model.codebook.embedding.weight.copy_(latents[torch.randperm(len(latents), generator=seeded(1))[: SMALL.codes]])
    return model


def pictures(n, seed=0):
    return torch.randn(n, 3, 64, 64, generator=seeded(seed))


def flat(latents):
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("learn_codes", [True, False])
def test_the_terms_of_the_vqgan_loss_are_the_papers(learn_codes):
    model, images = vqgan(), pictures(2)
    loss, terms, latents, tokens = vqgan_loss(model, images, beta=0.25, learn_codes=learn_codes)
    with torch.no_grad():
        error = model.decode(model.encode(images)) - images
        distance = (model.look_up(tokens) - model.latents(images)).square().mean()
        in_images = error * torch.tensor(TRAIN_STATS.std)[:, None, None]
    expected = {
        "absolute": error.abs().mean(),
        "squared": error.square().mean(),
        "image_squared": in_images.square().mean(),
        "commitment": distance,
    } | ({"codebook": distance} if learn_codes else {})
    assert terms.keys() == expected.keys()
    for name in terms:
        assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name
    total = expected["absolute"] + expected["squared"] + (1.25 if learn_codes else 0.25) * distance
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    assert latents.shape == (2, 4, 16, 16) and torch.equal(tokens, model.encode(images))


def test_commitment_moves_latents_and_the_codebook_term_moves_codes_each_alone():
    for term, moved in (("commitment", "quant_conv.weight"), ("codebook", "codebook.embedding.weight")):
        model = vqgan()
        _, terms, _, _ = vqgan_loss(model, pictures(2))
        terms[term].backward()
        grads = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert moved in grads
        assert ("codebook.embedding.weight" in grads) == (term == "codebook")
        assert any(name.startswith("encoder") for name in grads) == (term == "commitment")
        assert not any(name.startswith(("decoder", "post_quant")) for name in grads)


def test_without_codes_of_its_own_to_learn_the_codebook_has_no_gradient():
    model = vqgan()
    vqgan_loss(model, pictures(1), learn_codes=False)[0].backward()
    assert model.codebook.embedding.weight.grad is None


def test_without_quantisation_it_is_a_plain_autoencoder():
    model, images = vqgan(), pictures(2)
    loss, terms, latents, tokens = vqgan_loss(model, images, quantised=False)
    with torch.no_grad():
        error = model.decode_latents(model.latents(images)) - images
    expected = error.abs().mean() + error.square().mean() + 1e-3 * latents.square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert tokens.numel() == 0 and "commitment" not in terms
    loss.backward()
    assert model.codebook.embedding.weight.grad is None
    small = model.latents  # latents so large that holding them back is most of the loss
    model.latents = lambda images: 1000 * small(images)
    loss, terms, latents, _ = vqgan_loss(model, images, quantised=False)
    held_back = loss - terms["absolute"] - terms["squared"]
    assert held_back.item() == pytest.approx(1e-3 * latents.square().mean().item(), rel=1e-3) and held_back > 1


# --- codes that follow their latents ----------------------------------------------------------------------------------


def clusters(n, seed=0, spread=0.05):
    """n latents in SMALL.codes tight clusters, and their centres."""
    centres = 4 * torch.randn(SMALL.codes, SMALL.latent, generator=seeded(77))
    which = torch.arange(n) % SMALL.codes
    return centres[which] + spread * torch.randn(n, SMALL.latent, generator=seeded(seed)), centres


def averages(decay=0.9):
    return CodeAverages(SMALL.codes, SMALL.latent, decay)


def test_the_start_by_k_means_uses_every_code_and_beats_a_random_choice():
    model, (latents, _) = vqgan(), clusters(1600)
    averages().start(model.codebook, latents, seeded(3))
    codes = model.codebook.embedding.weight.data
    assert len(model.codebook.nearest(latents).unique()) == SMALL.codes
    chosen = latents[torch.randint(1600, (SMALL.codes,), generator=seeded(3))]
    error, at_random = (torch.cdist(latents, c).amin(1).square().mean() for c in (codes, chosen))
    assert error < 0.5 * at_random


def test_more_rounds_of_k_means_fit_no_worse():
    latents = torch.randn(2000, SMALL.latent, generator=seeded(4))
    errors = []
    for rounds in (1, 4, 12):
        model = vqgan()
        averages().start(model.codebook, latents, seeded(3), rounds=rounds)
        errors.append(torch.cdist(latents, model.codebook.embedding.weight.data).amin(1).square().mean().item())
    assert errors[0] > errors[1] > errors[2]


def test_one_update_is_the_closed_form_of_the_moving_average():
    model, (latents, _) = vqgan(), clusters(1600)
    average = averages(decay=0.9)
    average.start(model.codebook, latents, seeded(3))
    count, total = average.count.clone(), average.total.clone()
    codes = model.codebook.embedding.weight.data.clone()
    torch.testing.assert_close(total, codes * count[:, None])  # as started, the codes are where they were
    assert count.sum() == 1600

    batch, _ = clusters(400, seed=1, spread=0.3)
    tokens = model.codebook.nearest(batch)
    average.update(model.codebook, batch, tokens, seeded(0))
    for code in range(SMALL.codes):
        mine = batch[tokens == code]
        expected_count = 0.9 * count[code] + 0.1 * len(mine)
        expected_total = 0.9 * total[code] + 0.1 * mine.sum(0)
        assert average.count[code].item() == pytest.approx(expected_count.item(), rel=1e-5)
        torch.testing.assert_close(average.total[code], expected_total, rtol=1e-4, atol=1e-4)
        new = model.codebook.embedding.weight.data[code]
        torch.testing.assert_close(new, expected_total / expected_count, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.codebook.embedding.weight.data, codes)


def test_codes_that_nobody_uses_come_back_to_life():
    model, (latents, _) = vqgan(), clusters(1600)
    average = averages(decay=0.9)
    average.start(model.codebook, latents, seeded(3))
    lost = torch.arange(SMALL.codes) % 4 == 0
    model.codebook.embedding.weight.data[lost] = 1e3  # far away from every latent
    average.total[lost] = 1e3 * average.count[lost, None]
    assert len(model.codebook.nearest(latents).unique()) == SMALL.codes - 4
    for step in range(80):
        average.update(model.codebook, latents, model.codebook.nearest(latents), seeded(step))
    assert len(model.codebook.nearest(latents).unique()) == SMALL.codes
    assert model.codebook.embedding.weight.abs().max() < 50


def test_codes_in_use_are_not_thrown_about():
    """On latents that do not change, used codes stay the means of their latents."""
    model, (latents, _) = vqgan(), clusters(1600)
    average = averages(decay=0.5)
    average.start(model.codebook, latents, seeded(3))
    for step in range(60):
        average.update(model.codebook, latents, model.codebook.nearest(latents), seeded(step))
    before = model.codebook.embedding.weight.data.clone()
    tokens = model.codebook.nearest(latents)
    average.update(model.codebook, latents, tokens, seeded(99))
    torch.testing.assert_close(model.codebook.embedding.weight.data, before, rtol=1e-3, atol=1e-3)
    means = torch.stack([latents[tokens == code].mean(0) for code in range(SMALL.codes)])
    torch.testing.assert_close(before, means, rtol=1e-2, atol=1e-2)


def test_stage_one_is_first_an_autoencoder_and_then_quantised_from_a_start_by_k_means():
    half = torch.randint(0, 256, (1, 3, 64, 32), generator=seeded(5), dtype=torch.uint8)
    image = torch.cat([half, half.flip(3)], 3)  # its own mirror image, so that every batch is four of it
    config = Stage1Config(steps=5, batch=4, lr=1e-3, autoencoder_share=0.4, accumulate=2, beta=0.7)
    objective, model = VQGANObjective(image.expand(12, 3, 64, 64), SMALL, config, seed=1), vqgan()
    batch, as_new = normalise(image.expand(4, 3, 64, 64)), model.codebook.embedding.weight.data.clone()
    for draw in range(1, 11):
        before = copy.deepcopy(model)
        loss, metrics = objective(model, draw, seeded(draw))
        quantised = draw > 4  # 40 % of 5 steps of 2 batches
        assert ("codes_used" in metrics) == quantised == bool(objective.averages.count.any())
        assert torch.equal(model.codebook.embedding.weight.data, as_new) != quantised
        if draw == 5:  # the codes have just been put among the latents
            continue
        expected, _, latents, tokens = vqgan_loss(before, batch, quantised=quantised, beta=0.7, learn_codes=False)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        with torch.no_grad():
            pictures = before.decode(tokens) if quantised else before.decode_latents(latents)
        error = ((pictures - batch) * torch.tensor(TRAIN_STATS.std)[:, None, None]).square().mean().item()
        assert metrics["psnr_db"] == pytest.approx(10 * math.log10(1 / error), abs=0.01)
        if quantised:
            assert metrics["codes_used"] == len(tokens.unique())


def test_codes_start_from_four_batches_and_then_follow_every_one(monkeypatch):
    seen: dict[str, list[int]] = {"start": [], "update": []}
    for name, rows in seen.items():
        real = getattr(CodeAverages, name)
        monkeypatch.setattr(CodeAverages, name, lambda self, codebook, flat, *rest, real=real, rows=rows: (
            rows.append(len(flat)), real(self, codebook, flat, *rest)
        ))  # fmt: skip
    config = Stage1Config(steps=3, batch=2, autoencoder_share=0.34)
    objective, model = VQGANObjective(render(1, 12).images, SMALL, config, seed=1), vqgan()
    draws, real = [], objective._batch
    monkeypatch.setattr(objective, "_batch", lambda draw, *rest: draws.append(draw) or real(draw, *rest))
    for draw in (1, 2, 3):
        objective(model, draw, seeded(draw))
    assert draws == [1, 2, *(2, 3, 4, 5), 3], "the start looks ahead"
    assert seen == {"start": [4 * 2 * N], "update": [2 * N, 2 * N]}


def test_a_perfect_picture_has_a_signal_to_noise_ratio_that_can_be_plotted(monkeypatch):
    def perfect(model, images, **settings):
        zero = images.sum() * 0
        return zero, {"image_squared": zero}, images, torch.zeros(1)

    monkeypatch.setattr("lab5.objectives.vqgan_loss", perfect)
    config = Stage1Config(steps=1, batch=2, autoencoder_share=1.0)
    _, metrics = VQGANObjective(render(1, 4).images, SMALL, config, seed=1)(vqgan(), 1, seeded())
    assert metrics == {"psnr_db": pytest.approx(120)}


def test_the_state_of_the_codes_is_part_of_the_objectives():
    objective = VQGANObjective(
        torch.zeros(4, 3, 64, 64, dtype=torch.uint8), SMALL, replace(Stage1Config(), batch=4), seed=0
    )
    assert objective.state_dict().keys() == {"averages.count", "averages.total"}


def test_judges_are_weighed_and_asked_only_once_the_network_quantises():
    class Judge(nn.Module):
        def forward(self, pictures, images):
            return (pictures - images).abs().amax()

    model, images = vqgan(), pictures(2)
    alone = vqgan_loss(model, images)[0]
    loss, terms, _, _ = vqgan_loss(model, images, judges={"worst": (0.5, Judge())})
    with torch.no_grad():
        worst = (model(images).images - images).abs().amax()
    assert terms["worst"].item() == pytest.approx(worst.item(), rel=1e-5)
    assert loss.item() == pytest.approx((alone + 0.5 * worst).item(), rel=1e-5)
    assert "worst" not in vqgan_loss(model, images, quantised=False, judges={"worst": (0.5, Judge())})[1]


def test_half_of_the_images_are_mirrored():
    left = torch.zeros(400, 3, 64, 64, dtype=torch.uint8)
    left[..., :32] = 255
    objective = VQGANObjective(left, SMALL, replace(Stage1Config(), batch=400), seed=0)
    shown = objective._batch(1, torch.device("cpu"), seeded(1))
    mirrored = shown[:, 0, 0, 0] < shown[:, 0, 0, -1]
    assert 160 < mirrored.sum() < 240
    drawn = "".join(".x"[flip] for flip in mirrored[:24].tolist())
    assert drawn == ".xx.x.x..x...xxx.x..xxxx", "as ever: trainings go on from where they were"
    assert (shown[mirrored].flip(3) == shown[~mirrored][:1]).all()


class Constant(PerceptualDistance):
    """A judge that is always of one mind."""

    def __init__(self, verdict):
        nn.Module.__init__(self)
        self.verdict, self.asked = verdict, []

    def forward(self, made, images):
        self.asked.append((made, images))
        return made.sum() * 0 + self.verdict


def test_a_training_asks_its_judges_and_weighs_them():
    images, judges = render(2, 8).images, {"perceptual": (0.5, Constant(7.0)), "adversarial": (0.25, Constant(3.0))}
    config = Stage1Config(steps=2, batch=4, autoencoder_share=0.0)
    objective = VQGANObjective(images, SMALL, config, seed=3, judges=judges)
    model = vqgan()
    objective(model, 1, seeded(1))  # the codes are put among the latents, and move
    before = copy.deepcopy(model)
    loss, metrics = objective(model, 2, seeded(2))
    assert metrics["perceptual"] == 7 and metrics["adversarial"] == 3
    made, shown = judges["perceptual"][1].asked[-1]
    assert made.shape == shown.shape == (4, 3, 64, 64) and shown.is_contiguous(memory_format=torch.channels_last)
    alone = vqgan_loss(before, shown, learn_codes=False)[0]
    assert loss.item() == pytest.approx(alone.item() + 0.5 * 7 + 0.25 * 3, rel=1e-4)
    silent = VQGANObjective(images, SMALL, config, 3)
    assert not {"perceptual", "adversarial"} & silent(vqgan(), 1, seeded(1))[1].keys()


def test_what_a_judge_learns_is_part_of_the_trainings_state():
    images = render(2, 8).images
    config = Stage1Config(steps=2, batch=4, autoencoder_share=0.0)
    objective = VQGANObjective(images, SMALL, config, seed=3, judges={"adversarial": (0.1, nn.Linear(2, 3))})
    names = {name for name in objective.state_dict() if name.startswith("judges.")}
    assert names == {"judges.adversarial.weight", "judges.adversarial.bias"}
