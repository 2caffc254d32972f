"""Which features to score with, and two kinds of our own: an attribute classifier's for toy cats, the VQGAN encoder's.

Every network carries the name that a score on its features must have: neither of these is FID.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.checkpoint import with_weights
from lab5.config import Config
from lab5.data.dataset import normalise
from lab5.fid import Features
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import epoch_batch
from lab5.runtime.files import load_tensors, save_tensors
from lab5.runtime.folders import pretrained_folder
from lab5.runtime.machine import exact_float32
from lab5.runtime.transfers import sent
from lab5.scoring.imagenet import PACKAGES, ImageNetFeatures
from lab5.scoring.inception import InceptionFeatures, check_unit_range
from lab5.vqgan import VQGAN

# --- stand-ins: not FID ---------------------------------------------------------------------------------------


class ToyFeatures(nn.Module):
    """A small classifier of the toy cats' attributes; its last hidden layer stands in for Inception's.

    `attributes` maps a name to its number of classes; each has a linear head on the same F features. The last
    map is flattened, not averaged, so that heads can tell the left eye from the right one. 64x64 images only.
    """

    score_name = "Frechet distance on toy-attribute features"

    def __init__(self, attributes: dict[str, int], features: int = 96, channels: tuple[int, ...] = (24, 48, 64, 64)):
        super().__init__()
        self.attributes = dict(attributes)
        layers: list[nn.Module] = []
        for wide_in, wide_out in zip((3, *channels), channels, strict=False):  # 64 -> 32 -> 16 -> 8 -> 4
            convolution = nn.Conv2d(wide_in, wide_out, 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(8, wide_out), nn.SiLU()]
        side = 64 >> len(channels)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, features), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(features, classes) for name, classes in attributes.items()})
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "n 3 64 64"]) -> None:
        """Make every feature of unit variance over these images, so that none rules a distance by its scale."""
        hidden = self.body(2 * images.to(self.mean.device) - 1)
        self.mean.copy_(hidden.mean(0))
        self.scale.copy_(hidden.std(0).clamp(min=0.05 * hidden.std(0).mean()))

    def forward(self, images: Float[Tensor, "n 3 64 64"]) -> dict[str, Float[Tensor, "n _"]]:
        """Logits of every attribute for images in [0,1]."""
        hidden = self.body(2 * images - 1)
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def features(self, images: Float[Tensor, "n 3 64 64"], batch: int = 256) -> Float[Tensor, "n F"]:
        """The penultimate layer for images in [0,1], standardised as `calibrate` found it, on the CPU."""
        return (self._hidden(images, batch) - self.mean.cpu()) / self.scale.cpu()

    def _hidden(self, images: Float[Tensor, "n 3 64 64"], batch: int) -> Float[Tensor, "n F"]:
        check_unit_range(images)
        device = next(self.parameters()).device
        with exact_float32(device):
            return torch.cat([self.body(2 * part.to(device) - 1).cpu() for part in images.split(batch)])

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "n 3 64 64"], batch: int = 256) -> dict[str, Int[Tensor, " n"]]:
        """The likeliest class of every attribute, on the CPU."""
        hidden = self._hidden(images, batch).to(next(self.parameters()).device)
        return {name: head(hidden).argmax(1).cpu() for name, head in self.heads.items()}


class EncoderFeatures:
    """What the VQGAN's encoder sees, averaged over 4x4 neighbourhoods: for photographs where no other network is."""

    score_name = "Frechet distance on VQGAN-encoder features"

    def __init__(self, vqgan: VQGAN):
        self.vqgan = vqgan

    @torch.no_grad()
    def features(self, images: Float[Tensor, "n 3 64 64"]) -> Float[Tensor, "n F"]:
        device = next(self.vqgan.parameters()).device
        with exact_float32(device):
            maps = [self.vqgan.latents(normalise(part).to(device)) for part in images.split(64)]
        return torch.cat([F.adaptive_avg_pool2d(part, 4).flatten(1).cpu() for part in maps])


class AttributeObjective:
    """The attribute classifier for `fit`: cross-entropy of every attribute, on images as cameras spoil them.

    Each image is blurred, made noisy and brightened or dimmed by amounts of its own, all small: features should tell
    a green eye from a blue one, not a sharp picture from one that is a little soft.
    """

    def __init__(self, images: UInt8[Tensor, "n 3 64 64"], attributes: dict[str, Tensor], batch: int, seed: int):
        self.images, self.attributes, self.batch, self.seed = images, attributes, batch, seed

    def __call__(self, model: ToyFeatures, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pick = epoch_batch(len(self.images), self.batch, draw, self.seed)
        images = _spoiled(self.images[pick].float() / 255, generator)
        device = next(model.parameters()).device
        labels = {name: sent(value[pick], device) for name, value in self.attributes.items()}
        logits = model(sent(images, device))
        right = [(logits[name].argmax(1) == labels[name]).float().mean() for name in logits]
        losses = [F.cross_entropy(logits[name], labels[name]) for name in logits]  # in nats
        return torch.stack(losses).mean(), {"accuracy": torch.stack(right).mean()}


def _spoiled(images: Float[Tensor, "n 3 64 64"], generator: torch.Generator) -> Float[Tensor, "n 3 64 64"]:
    blur, noise, gain = torch.rand(3, len(images), 1, 1, 1, generator=generator).unbind(0)
    for _ in range(2):
        images = torch.lerp(images, F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False), blur)
    images = images + 0.06 * noise * torch.randn(images.shape, generator=generator)
    return (images * (0.94 + 0.12 * gain)).clamp(0, 1)


def save_classifier(path: Path, model: ToyFeatures, **meta: Any) -> None:
    shape = {"attributes": model.attributes, "features": model.heads[next(iter(model.heads))].in_features}
    save_tensors(path, model.state_dict(), {"kind": "classifier", "shape": shape} | meta)


def load_classifier(path: Path | None = None) -> ToyFeatures:
    """The attribute classifier of a file, or the committed one. Raises ValueError for another kind of file."""
    path = path or pretrained_folder() / "classifier.safetensors"
    state, meta = load_tensors(path)
    if meta.get("kind") != "classifier":
        raise ValueError(f"{path} is not an attribute classifier but {meta.get('kind', 'something else')!r}")
    shape = meta.get("shape")
    if not isinstance(shape, dict) or shape.keys() != {"attributes", "features"}:
        raise ValueError(f"{path} must say in its header what shape the classifier has: its attributes and features")
    return with_weights(lambda: ToyFeatures(**shape), state, path)


def get_features(config: Config, tokenizer: Tokenizer) -> Features:
    """The features to score with: the attribute classifier for toy cats, else Inception if its weights are here.

    Without them those of an ImageNet network, and of the VQGAN's own encoder where its packages are not here either;
    `score_name` says which it is, and only Inception's is FID.
    """
    if config.data.path == "toycats":
        return load_classifier().to(config.device)
    try:
        return InceptionFeatures().to(config.device)
    except FileNotFoundError:
        absent = "which is not FID: LAB5_INCEPTION_WEIGHTS names no file here"
    try:
        network = ImageNetFeatures().to(config.device)
        print(f"Scored on ImageNet features, {absent}.")
        return network
    except ImportError:
        print(f"Scored on features of the VQGAN's encoder, {absent}. Better: pip install {PACKAGES}")
        return EncoderFeatures(tokenizer.vqgan)
