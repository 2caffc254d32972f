"""Feature networks against known labels and the encoder's own latents, and the objective that trains one of them."""

import pytest
import torch
from stubs import seeded
from torch.nn import functional as F

from lab5.data.dataset import normalise
from lab5.data.toycats import render
from lab5.objectives import epoch_batch
from lab5.profiles import configure
from lab5.runtime.machine import _float32_ways
from lab5.scoring.classifier import AttributeObjective, EncoderFeatures, ToyFeatures
from lab5.vqgan import VQGAN


def toy(classes: dict[str, int], features: int = 96) -> ToyFeatures:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ToyFeatures(classes, features).eval()


# --- as networks of features ------------------------------------------------------------------------------------------


def test_toy_features_are_what_the_heads_read():
    model, images = toy({"left": 3, "right": 2}), torch.rand(5, 3, 64, 64, generator=seeded())
    features = model.features(images, batch=2)
    assert features.shape == (5, 96) and not features.requires_grad
    predicted = model.predict(images, batch=3)
    for name, logits in model(images).items():
        torch.testing.assert_close(F.linear(features, model.heads[name].weight, model.heads[name].bias), logits)
        assert predicted[name].dtype == torch.int64 and torch.equal(predicted[name], logits.argmax(1))


def test_toy_features_tell_left_from_right():
    """Averages over the last map would be the same: the spot is moved by one of its pixels, which are 16 wide."""
    images = torch.zeros(2, 3, 64, 64)
    images[0, :, 26:34, 16:24] = images[1, :, 26:34, 32:40] = 1
    left, right = toy({"eye": 2}).features(images)
    assert (left - right).abs().mean() > 0.1 * left.abs().mean()


@pytest.mark.parametrize("network", ["toy", "encoder"])
def test_features_are_of_exact_float32_whatever_has_been_chosen(network):
    seen, images = [], torch.rand(2, 3, 64, 64, generator=seeded())
    model = toy({"eye": 2}) if network == "toy" else VQGAN(configure("smoke", device="cpu").vqgan).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda *_: seen.extend(way.fp32_precision for way in _float32_ways()))
    features = (model if network == "toy" else EncoderFeatures(model)).features
    expected = features(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(images), expected)
    assert seen and set(seen) == {"ieee"}


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_images_outside_the_unit_range_are_refused(wrong):
    images = torch.full((2, 3, 64, 64), 0.5)
    images[1, 0, 5, 5] = wrong
    with pytest.raises(ValueError, match=r"images must be in \[0,1\]"):
        toy({"eye": 2}).features(images)


def test_encoder_features_are_the_means_of_latents_over_4x4_tokens():
    vqgan = VQGAN(configure("smoke", device="cpu").vqgan).eval()
    images = torch.rand(3, 3, 64, 64, generator=seeded(1))
    with torch.no_grad():
        expected = vqgan.latents(normalise(images)).view(3, -1, 4, 4, 4, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(EncoderFeatures(vqgan).features(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [ToyFeatures, EncoderFeatures])
def test_a_stand_ins_score_is_not_called_fid(network):
    assert network.score_name.startswith("Frechet distance on ") and "FID" not in network.score_name


# --- the training of the classifier -----------------------------------------------------------------------------------


def spoiled(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Blurred twice, made noisy and dimmed, each by an amount of its own."""
    blur, noise, gain = torch.rand(3, len(images), 1, 1, 1, generator=draws)
    kernel, same = torch.ones(3, 1, 3, 3), dict(padding=1, groups=3)
    for _ in range(2):
        mean = F.conv2d(images, kernel, **same) / F.conv2d(torch.ones_like(images), kernel, **same)
        images = (1 - blur) * images + blur * mean
    images = images + 0.06 * noise * torch.randn(images.shape, generator=draws)
    return (images * (0.94 + 0.12 * gain)).clamp(0, 1)


@pytest.mark.parametrize("draw, seed", [(1, 1), (2, 1), (1, 2)])
def test_a_classifier_step_is_of_the_spoiled_images_of_its_number_with_the_noise_of_its_generator(draw, seed):
    cats, shown, model = render(5, 12), [], toy({"mouth": 3, "fur": 8}, 8)
    before = cats.images.clone()
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    loss, metrics = AttributeObjective(cats.images, cats.attributes, batch=4, seed=1)(model, draw, seeded(seed))
    pick = epoch_batch(12, 4, draw, seed=1)
    expected = spoiled(cats.images[pick] / 255, seeded(seed))
    torch.testing.assert_close(shown[0], expected)
    assert torch.equal(cats.images, before)
    answers = [(logits, cats.attributes[name][pick]) for name, logits in model(expected).items()]
    cross_entropies = [F.cross_entropy(logits, labels) for logits, labels in answers]
    assert loss.item() == pytest.approx(sum(cross_entropies).item() / 2, rel=1e-4)
    right = torch.stack([logits.argmax(1) == labels for logits, labels in answers])
    assert metrics == {"accuracy": pytest.approx(right.float().mean().item())}
