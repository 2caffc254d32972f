"""The losses are the closed forms, look only where they should, and the codes follow their latents."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from stubs import seeded
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
    epoch_batch,
    masked_cross_entropy,
    mvtm_loss,
    mvtm_mask,
    validate,
    vqgan_loss,
)
from lab5.vqgan import VQGAN, CodeAverages

K, N = 20, 256
SMALL = VQGANConfig(
    codes=16, latent=4, stem=4, encoder=((4,), (6,)), middle=(8,), decoder=((8,), (6,), (4,)), groups=0, attention=False
)
STD = torch.tensor(TRAIN_STATS.std)[:, None, None]


def tokens_of(n):
    return torch.randint(K, (n, N), generator=seeded())


def holes_of(n):
    """Token masks of 60 to 120 positions in a row."""
    start, length = torch.randint(130, (2, n), generator=seeded())
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


class Hinted(Stub):
    """One that takes hints as well, and remembers them."""

    def forward(self, tokens, where=None, hints=None):
        self.hints = [*getattr(self, "hints", []), hints]
        return super().forward(tokens, where)


def uniform(tokens):
    return torch.zeros(*tokens.shape, K + 1)


def noise(tokens):
    return torch.randn(*tokens.shape, K + 1, generator=seeded(9))


# --- batches; that each epoch shows every example once is in test_properties.py ---------------------------------------


def test_the_order_of_the_examples_is_what_it_has_always_been():
    """Written down when there were trainings to go on with: a draw outside the loop must find the same examples."""
    drawn = {1: [4, 5, 0, 1], 2: [2, 8, 3, 6], 3: [1, 9, 5, 6], 5: [4, 6, 9, 0]}
    assert {draw: epoch_batch(10, 4, draw, seed=3).tolist() for draw in drawn} == drawn
    assert epoch_batch(10, 4, 1, seed=4).tolist() != drawn[1]


@pytest.mark.parametrize("batch", [0, 11])
def test_a_batch_that_the_examples_cannot_fill_is_refused(batch):
    with pytest.raises(ValueError, match=rf"1\.\.10, the number of examples; found {batch}"):
        epoch_batch(10, batch, 1, seed=0)
    assert len(epoch_batch(10, 1, 1, seed=0)) == 1 and len(epoch_batch(10, 10, 1, seed=0)) == 10


# --- the loss of stage two --------------------------------------------------------------------------------------------


def test_without_settings_the_loss_is_that_of_the_paper():
    plain, named = (
        mvtm_loss(Stub(noise), tokens_of(6), generator=seeded(), **settings).item()
        for settings in ({}, {"masking": "cosine", "loss": "masked", "label_smoothing": 0.0})
    )
    assert plain == named and list(LOSSES) == ["masked", "all"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sure_of_the_mask_id", [False, True])
def test_a_uniform_model_loses_the_logarithm_of_the_number_of_codes(sure_of_the_mask_id, loss):
    """With classes and positions confused it would be ln(N) / 4."""
    model = Stub(lambda shown: F.pad(uniform(shown)[..., :K], (0, 1), value=1e4 * sure_of_the_mask_id))
    for masking in MASKINGS:
        found = mvtm_loss(model, tokens_of(6), masking=masking, generator=seeded(), holes=holes_of(4), loss=loss)
        assert found.item() == pytest.approx(math.log(K), rel=1e-6)


@pytest.mark.parametrize("smoothing", [(), (0.1,)], ids=["plain", "smoothed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_closed_form_over_the_positions_that_it_is_on(loss, smoothing):
    tokens, masked = tokens_of(5), mvtm_mask(tokens_of(5), "uniform", seeded(1))
    found, accuracy = LOSSES[loss](Stub(noise), tokens, masked, *smoothing)
    over, smooth = masked if loss == "masked" else torch.ones_like(masked), sum(smoothing)
    log_p = noise(tokens)[..., :K].double().log_softmax(-1)
    expected = -(1 - smooth) * log_p.gather(2, tokens[..., None])[..., 0] - smooth * log_p.mean(-1)
    assert found.item() == pytest.approx(expected[over].mean().item(), rel=1e-5)
    assert accuracy.item() == pytest.approx((log_p.argmax(-1) == tokens)[masked].double().mean().item())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_model_is_shown_known_tokens_and_the_mask_id_and_never_the_answer(loss):
    tokens, model = tokens_of(4), Stub(noise)
    before, masked = tokens.clone(), mvtm_mask(tokens, "linear", seeded())
    for smoothing in (0.0, 0.2):
        settings = {"label_smoothing": smoothing} if smoothing else {}
        found = mvtm_loss(model, tokens, masking="linear", generator=seeded(), loss=loss, **settings)
        assert torch.equal(found, LOSSES[loss](model, tokens, masked, smoothing)[0])
        assert torch.equal(model.shown[0], torch.where(masked, K, tokens))
    assert torch.equal(tokens, before)


def test_an_unknown_masking_or_loss_is_refused_before_the_first_step():
    """A loss that there is not is refused in a sentence where settings are made; here it is no key of LOSSES."""
    with pytest.raises(ValueError, match="masking 'cosin'"):
        MVTMObjective(tokens_of(4), replace(Stage2Config(), masking="cosin"), seed=0)
    with pytest.raises(KeyError, match="hidden"):
        MVTMObjective(tokens_of(4), replace(Stage2Config(), loss="hidden"), seed=0)


def test_a_stage_two_step_is_a_function_of_its_number_and_the_generator():
    tokens, holes, model = tokens_of(40).to(torch.int16), holes_of(6), Stub(noise)
    objective = MVTMObjective(tokens, Stage2Config(batch=8, masking="mixed"), seed=2, holes=holes)
    found = [objective(model, draw, seeded(seed)) for draw, seed in ((3, 1), (3, 1), (4, 1), (3, 2))]
    losses = [loss.item() for loss, _ in found]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    chosen = tokens[epoch_batch(40, 8, 3, seed=2)].long()
    masked = mvtm_mask(chosen, "mixed", seeded(1), holes)
    assert torch.equal(model.shown[0], chosen.masked_fill(masked, K))
    best = noise(chosen)[..., :K].argmax(-1)
    accuracy = pytest.approx((best == chosen)[masked].float().mean().item())
    assert found[0][1] == {"accuracy": accuracy, "weight": int(masked.sum())}


@pytest.mark.parametrize("loss", LOSSES)
def test_with_hints_nine_of_ten_images_come_with_a_part_of_a_hole_and_its_hints(loss):
    tokens, holes, model = tokens_of(300), holes_of(5), Hinted(uniform)
    config = Stage2Config(batch=300, masking="count:1", loss=loss)  # without a hole, all is masked

    def hints(image, hole):
        return torch.stack([image, hole], 1)[:, None].expand(-1, N, -1) + 1.0

    MVTMObjective(tokens, config, 2, holes, hints)(model, 1, seeded())
    masked, given = model.shown[0] == K, model.hints[0]
    without = masked.all(1)
    assert without.float().mean() == pytest.approx(0.1, abs=0.05) and masked.any(1).all()
    assert (given[without] == 0).all()
    image, hole = given[:, 0].long().unbind(1)
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
    model = Hinted(uniform) if hinted else Stub(uniform)
    MVTMObjective(tokens, Stage2Config(batch=4, masking=masking), 1, holes, hints)(model, 1, seeded(7))
    rows = ["".join("x" if masked else "." for masked in row) for row in (model.shown[0] == K).tolist()]
    assert " ".join(rows) == SHOWN[masking, hinted]


# --- validation -------------------------------------------------------------------------------------------------------


def with_dropout(build=Stub):
    """A model whose answers to the same tokens differ in training mode."""
    dropout, table = nn.Dropout(0.5), torch.randn(N, K + 1, generator=seeded(8))
    model = build(lambda shown: dropout(F.one_hot(shown, K + 1).float().roll(1, 1) + table))
    model.dropout = dropout
    return model


@pytest.mark.parametrize("training", [True, False])
def test_validation_says_the_same_twice_and_leaves_the_mode_as_it_was(training):
    tokens, masked, model = tokens_of(10), holes_of(10), with_dropout().train(training)
    state = torch.get_rng_state()
    first, second = validate(model, tokens, masked, batch=4), validate(model, tokens, masked, batch=4)
    assert first == second
    assert model.training is training and not any(model.modes)
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_is_a_mean_over_tokens_whatever_the_batches_and_hands_each_image_its_own_hints():
    tokens, masked, hints = tokens_of(10), holes_of(10), torch.randn(10, N, 3, generator=seeded(4))
    masked[8:] = torch.arange(N) < 3  # with few tokens in the last batch, a mean of means would show
    with torch.no_grad():
        loss, accuracy = masked_cross_entropy(with_dropout().eval(), tokens, masked)
    for batch in (1, 4, 64):
        model = with_dropout(Hinted)
        found = validate(model, tokens, masked, hints, batch=batch)
        assert found == pytest.approx({"loss": loss.item(), "accuracy": accuracy.item()}, rel=1e-5)
        assert torch.equal(torch.cat(model.hints), hints)


# --- the loss of stage one --------------------------------------------------------------------------------------------


@torch.no_grad()
def vqgan():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VQGAN(SMALL)
    model.quant_conv.weight.mul_(30)  # latents of a size that shows in the loss
    latents = model.latents(pictures(9)).permute(0, 2, 3, 1).flatten(0, 2)
    model.codebook.embedding.weight.copy_(latents[torch.randperm(len(latents), generator=seeded(1))[: SMALL.codes]])
    return model


def pictures(seed=0):
    return torch.randn(2, 3, 64, 64, generator=seeded(seed))


@pytest.mark.parametrize("learn_codes", [True, False])
def test_the_terms_of_the_vqgan_loss_are_the_papers(learn_codes):
    model, images = vqgan(), pictures()
    loss, terms, latents, tokens = vqgan_loss(model, images, beta=0.25, learn_codes=learn_codes)
    with torch.no_grad():
        error = model.decode(model.encode(images)) - images
        distance = (model.look_up(tokens) - model.latents(images)).square().mean().item()
    expected = {
        "absolute": error.abs().mean().item(),
        "squared": error.square().mean().item(),
        "image_squared": (error * STD).square().mean().item(),
        "commitment": distance,
    } | ({"codebook": distance} if learn_codes else {})
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    total = expected["absolute"] + expected["squared"] + (1.25 if learn_codes else 0.25) * distance
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert latents.shape == (2, 4, 16, 16) and torch.equal(tokens, model.encode(images))
    loss.backward()
    assert (model.codebook.embedding.weight.grad is not None) == learn_codes


def test_commitment_moves_latents_and_the_codebook_term_moves_codes_each_alone():
    for term, moved in (("commitment", "quant_conv.weight"), ("codebook", "codebook.embedding.weight")):
        model = vqgan()
        _, terms, _, _ = vqgan_loss(model, pictures())
        terms[term].backward()
        grads = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert moved in grads
        assert ("codebook.embedding.weight" in grads) == (term == "codebook")
        assert any(name.startswith("encoder") for name in grads) == (term == "commitment")
        assert not any(name.startswith(("decoder", "post_quant")) for name in grads)


def test_without_quantisation_it_is_a_plain_autoencoder_whose_latents_are_held_back():
    model, images = vqgan(), pictures()
    small = model.latents  # made so large that holding them back shows
    model.latents = lambda images: 1000 * small(images)
    loss, terms, latents, tokens = vqgan_loss(model, images, quantised=False)
    with torch.no_grad():
        error = model.decode_latents(model.latents(images)) - images
    assert terms["absolute"].item() == pytest.approx(error.abs().mean().item(), rel=1e-4)
    assert terms["squared"].item() == pytest.approx(error.square().mean().item(), rel=1e-4)
    held_back = loss - terms["absolute"] - terms["squared"]
    assert held_back.item() == pytest.approx(1e-3 * latents.square().mean().item(), rel=1e-3) and held_back > 1
    assert tokens.numel() == 0 and "commitment" not in terms
    loss.backward()
    assert model.codebook.embedding.weight.grad is None


# --- codes that follow their latents ----------------------------------------------------------------------------------


def clusters(n, seed=0, spread=0.05):
    """n latents in SMALL.codes tight clusters."""
    centres = 4 * torch.randn(SMALL.codes, SMALL.latent, generator=seeded(77))
    return centres[torch.arange(n) % SMALL.codes] + spread * torch.randn(n, SMALL.latent, generator=seeded(seed))


def started(latents, decay=0.9, **settings):
    """Averages, and a codebook that they have put among the latents."""
    averages, codebook = CodeAverages(SMALL.codes, SMALL.latent, decay), vqgan().codebook
    averages.start(codebook, latents, seeded(3), **settings)
    return averages, codebook, codebook.embedding.weight.data


def test_the_start_by_k_means_uses_every_code_and_each_round_brings_them_closer_to_the_latents():
    latents = torch.randn(2000, SMALL.latent, generator=seeded(4))
    codebooks = [started(latents, rounds=rounds)[1] for rounds in (0, 1, 4, 12)]
    errors = [torch.cdist(latents, book.embedding.weight.data).amin(1).square().mean().item() for book in codebooks]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert torch.equal(started(latents)[2], codebooks[-1].embedding.weight.data)
    assert len(codebooks[-1].nearest(latents).unique()) == SMALL.codes


def test_one_update_is_the_closed_form_of_the_moving_average():
    averages, codebook, codes = started(clusters(1600))
    count, total = averages.count.clone(), averages.total.clone()
    torch.testing.assert_close(total, codes * count[:, None])  # as started, the codes are where they were
    assert count.sum() == 1600

    batch = clusters(400, seed=1, spread=0.3)
    tokens = codebook.nearest(batch)
    averages.update(codebook, batch, tokens, seeded(0))
    mine = F.one_hot(tokens, SMALL.codes).float().T
    expected_count, expected_total = 0.9 * count + 0.1 * mine.sum(1), 0.9 * total + 0.1 * mine @ batch
    torch.testing.assert_close(averages.count, expected_count)
    torch.testing.assert_close(averages.total, expected_total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(codes, expected_total / expected_count[:, None], rtol=1e-4, atol=1e-4)


def test_codes_that_nobody_uses_come_back_to_life():
    latents = clusters(1600)
    averages, codebook, codes = started(latents)
    lost = torch.arange(SMALL.codes) % 4 == 0
    codes[lost] = 1e3  # far away from every latent
    averages.total[lost] = 1e3 * averages.count[lost, None]
    assert len(codebook.nearest(latents).unique()) == SMALL.codes - 4
    for step in range(80):
        averages.update(codebook, latents, codebook.nearest(latents), seeded(step))
    assert len(codebook.nearest(latents).unique()) == SMALL.codes
    assert codes.abs().max() < 50


# --- the training of stage one ----------------------------------------------------------------------------------------


@pytest.fixture
def draws(monkeypatch):
    """The numbers of the batches that are drawn."""
    seen = []

    def remembered(n, batch, draw, seed):
        seen.append(draw)
        return epoch_batch(n, batch, draw, seed)

    monkeypatch.setattr("lab5.objectives.epoch_batch", remembered)
    return seen


def test_stage_one_is_first_an_autoencoder_and_then_quantised_from_a_start_by_k_means(draws):
    half = torch.randint(0, 256, (1, 3, 64, 32), generator=seeded(5), dtype=torch.uint8)
    image = torch.cat([half, half.flip(3)], 3)  # its own mirror image, so that every batch is four of it
    config = Stage1Config(steps=5, batch=4, lr=1e-3, autoencoder_share=0.4, accumulate=2, beta=0.7, code_decay=0.9)
    objective, model = VQGANObjective(image.expand(12, 3, 64, 64), SMALL, config, seed=1), vqgan()
    batch, as_new = normalise(image.expand(4, 3, 64, 64)), model.codebook.embedding.weight.data.clone()
    latents_counted = 0.0
    for draw in range(1, 11):
        before = copy.deepcopy(model)
        loss, metrics = objective(model, draw, seeded(draw))
        quantised = draw > 4  # 40 % of 5 steps of 2 batches
        assert ("codes_used" in metrics) == quantised
        assert torch.equal(model.codebook.embedding.weight.data, as_new) != quantised
        if draw == 5:  # the codes have just been put among the latents of four batches
            latents_counted = 4 * 4 * N
        if quantised and draw % 2 == 0:  # the codes follow at the end of a step
            latents_counted = 0.9 * latents_counted + 0.1 * 8 * N
        assert objective.averages.count.sum().item() == pytest.approx(latents_counted)
        if draw != 5:
            expected, terms, _, tokens = vqgan_loss(before, batch, quantised=quantised, beta=0.7, learn_codes=False)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
            assert metrics["psnr_db"] == pytest.approx(-10 * math.log10(terms["image_squared"].item()), abs=0.01)
            assert metrics.get("codes_used", 0) == len(tokens.unique())
    assert draws == [1, 2, 3, 4, 5, *(5, 6, 7, 8), 6, 7, 8, 9, 10], "the start looks ahead"


class Judge(nn.Module):
    """Is of one mind, and remembers what it was asked."""

    def __init__(self, verdict):
        super().__init__()
        self.verdict, self.asked = verdict, []

    def forward(self, made, images):
        self.asked.append((made, images))
        return made.sum() * 0 + self.verdict


def test_judges_are_weighed_and_asked_of_what_was_made_only_once_the_network_quantises():
    images, judges = render(2, 8).images, {"perceptual": (0.5, Judge(7.0)), "adversarial": (0.25, Judge(3.0))}
    config, model = Stage1Config(steps=3, batch=4, autoencoder_share=0.34), vqgan()
    objective = VQGANObjective(images, SMALL, config, seed=3, judges=judges)
    _, metrics = objective(model, 1, seeded(1))
    assert metrics.keys() == {"psnr_db"} and not judges["perceptual"][1].asked
    objective(model, 2, seeded(2))  # the codes are put among the latents, and move
    before = copy.deepcopy(model)
    loss, metrics = objective(model, 3, seeded(3))
    assert metrics["perceptual"] == 7 and metrics["adversarial"] == 3
    made, shown = judges["perceptual"][1].asked[-1]
    torch.testing.assert_close(made, before(shown).images)
    assert shown.shape == (4, 3, 64, 64) and shown.is_contiguous(memory_format=torch.channels_last)
    alone = vqgan_loss(before, shown, learn_codes=False)[0]
    assert loss.item() == pytest.approx(alone.item() + 0.5 * 7 + 0.25 * 3, rel=1e-4)


def shown_to_a_perfect_network(monkeypatch, images):
    """The batch of a first draw with all images, and the metrics of one that reproduces it exactly."""
    shown = []

    def perfect(model, images, **settings):
        shown.append(images)
        zero = images.sum() * 0
        return zero, {"image_squared": zero}, images, torch.zeros(1)

    monkeypatch.setattr("lab5.objectives.vqgan_loss", perfect)
    config = Stage1Config(steps=1, batch=len(images), autoencoder_share=1.0)
    _, metrics = VQGANObjective(images, SMALL, config, seed=0)(vqgan(), 1, seeded(1))
    return shown[0], metrics


def test_a_perfect_picture_has_a_signal_to_noise_ratio_that_can_be_plotted(monkeypatch):
    assert shown_to_a_perfect_network(monkeypatch, render(1, 4).images)[1] == {"psnr_db": pytest.approx(120)}


def test_half_of_the_images_are_mirrored(monkeypatch):
    left = torch.zeros(400, 3, 64, 64, dtype=torch.uint8)
    left[..., :32] = 255
    shown, _ = shown_to_a_perfect_network(monkeypatch, left)
    mirrored = shown[:, 0, 0, 0] < shown[:, 0, 0, -1]
    assert 160 < mirrored.sum() < 240
    drawn = "".join(".x"[flip] for flip in mirrored[:24].tolist())
    assert drawn == ".xx.x.x..x...xxx.x..xxxx", "as ever: trainings go on from where they were"
    assert (shown[mirrored].flip(3) == shown[~mirrored][:1]).all()


def test_the_state_of_the_codes_and_what_judges_learn_are_part_of_the_trainings():
    judges = {"adversarial": (0.1, nn.Linear(2, 3))}
    objective = VQGANObjective(render(2, 8).images, SMALL, Stage1Config(batch=4), seed=3, judges=judges)
    codes, judge = {"averages.count", "averages.total"}, {"judges.adversarial.weight", "judges.adversarial.bias"}
    assert objective.state_dict().keys() == codes | judge
