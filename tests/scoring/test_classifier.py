"""Feature networks against known labels and the encoder's own latents, and the objective that trains one of them."""

import pytest
import torch
from torch.nn import functional as F

from lab5.data.dataset import normalise
from lab5.data.toycats import render
from lab5.objectives import epoch_batch
from lab5.profiles import configure
from lab5.scoring.classifier import AttributeObjective, EncoderFeatures, ToyFeatures, _spoiled
from lab5.vqgan import VQGAN


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the toy classifier -----------------------------------------------------------------------------------------

CORNERS = {"left": 3, "right": 2}


def corner_images(n: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Noise with a square at the left and one at the right, whose independent colours are the labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 64, 64, generator=generator) * 0.3
    labels = {name: torch.randint(classes, (n,), generator=generator) for name, classes in CORNERS.items()}
    for name, column in (("left", 16), ("right", 40)):
        images[torch.arange(n), labels[name], 26:34, column : column + 8] += 0.6
    return images, labels


def test_toy_classifier_learns_left_and_right_apart():
    torch.manual_seed(0)
    model = ToyFeatures(CORNERS, features=32, channels=(8, 16, 16, 16))
    images, labels = corner_images(256, seed=25)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(30):
        optimiser.zero_grad()
        sum(F.cross_entropy(logits, labels[name]) for name, logits in model(images).items()).backward()
        optimiser.step()
    unseen, truth = corner_images(100, seed=26)
    predicted = model.predict(unseen)
    for name in CORNERS:
        assert predicted[name].dtype == torch.int64
        assert (predicted[name] == truth[name]).float().mean() > 0.95, name


def test_toy_features_are_what_the_heads_read():
    model = ToyFeatures(CORNERS)
    images, _ = corner_images(5, seed=27)
    features = model.features(images, batch=2)
    assert features.shape == (5, 96) and not features.requires_grad
    for name, logits in model(images).items():
        torch.testing.assert_close(F.linear(features, model.heads[name].weight, model.heads[name].bias), logits)
        assert torch.equal(model.predict(images, batch=3)[name], logits.argmax(1))


def test_the_toy_score_is_not_called_fid():
    assert ToyFeatures.score_name == "Frechet distance on toy-attribute features"


def test_the_toy_classifier_is_small():
    classes = dict.fromkeys("abcdefghijklmno", 4)
    assert 100_000 < sum(p.numel() for p in ToyFeatures(classes).parameters()) < 200_000


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_images_outside_the_unit_range_are_refused(wrong):
    images = torch.full((2, 3, 64, 64), 0.5)
    images[1, 0, 5, 5] = wrong
    with pytest.raises(ValueError, match=r"images must be in \[0,1\]"):
        ToyFeatures(CORNERS).features(images)


# --- the VQGAN's encoder as a network of features ----------------------------------------------------------------


def test_encoder_features_are_the_means_of_latents_over_4x4_tokens():
    vqgan = VQGAN(configure("smoke", device="cpu").vqgan).eval()
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = EncoderFeatures(vqgan).features(images)
    with torch.no_grad():
        latents = vqgan.latents(normalise(images))
    expected = latents.view(3, -1, 4, 4, 4, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert not EncoderFeatures.score_name.startswith("FID")


# --- its training -----------------------------------------------------------------------------------------------


def test_a_classifier_step_is_a_function_of_its_number_and_the_generator():
    cats, shown = render(5, 12), []
    before = cats.images.clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ToyFeatures({"mouth": 3, "fur": 8}, 8).eval()
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    objective = AttributeObjective(cats.images, cats.attributes, batch=4, seed=1)
    found = [objective(model, draw, seeded(seed)) for draw, seed in ((1, 1), (1, 1), (2, 1), (1, 2))]
    losses = [loss.item() for loss, _ in found]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    assert torch.equal(cats.images, before)
    # What it is shown are its images, a little spoilt and still in [0,1].
    for draw, images in ((1, shown[0]), (2, shown[2])):
        pick = epoch_batch(12, 4, draw, seed=1)
        assert images.min() >= 0 and images.max() <= 1
        assert 0.003 < (images - cats.images[pick] / 255).abs().mean() < 0.06
    pick = epoch_batch(12, 4, 2, seed=1)
    logits, labels = (torch.stack(x) for x in zip(*(
        (F.pad(logits, (0, 8 - logits.shape[1]), value=-1e9), cats.attributes[name][pick])
        for name, logits in model(shown[2]).items()
    ), strict=True))  # fmt: skip
    assert losses[2] == pytest.approx(F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item(), rel=1e-5)
    assert found[2][1] == {"accuracy": pytest.approx((logits.argmax(2) == labels).float().mean().item())}


def test_classifier_images_are_blurred_twice_made_noisy_and_dimmed_by_amounts_of_their_own():
    images, draws = render(3, 4).images.float() / 255, seeded(9)
    blur, noise, gain = torch.rand(3, 4, 1, 1, 1, generator=draws)
    expected = images.clone()
    kernel = torch.ones(3, 1, 3, 3)
    for _ in range(2):
        shape = dict(padding=1, groups=3)
        mean = F.conv2d(expected, kernel, **shape) / F.conv2d(torch.ones_like(expected), kernel, **shape)
        expected = (1 - blur) * expected + blur * mean
    expected = expected + 0.06 * noise * torch.randn(images.shape, generator=draws)
    torch.testing.assert_close(_spoiled(images, seeded(9)), (expected * (0.94 + 0.12 * gain)).clamp(0, 1))


def test_white_is_one_before_it_is_spoiled(monkeypatch):
    seen = []
    monkeypatch.setattr("lab5.scoring.classifier._spoiled", lambda images, generator: seen.append(images) or images)
    objective = AttributeObjective(torch.full((4, 3, 64, 64), 255, dtype=torch.uint8),
                                   {"mouth": torch.zeros(4, dtype=torch.int64)}, batch=4, seed=0)  # fmt: skip
    objective(ToyFeatures({"mouth": 3}, 8).eval(), 1, seeded())
    assert torch.equal(seen[0], torch.ones(4, 3, 64, 64))
