"""Training of the refiner: on pictures that the pair has painted itself, beside the photographs that they were."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor, nn

from lab5.config import DecodeConfig, TrainConfig
from lab5.data.archives import Arrays, cached
from lab5.data.dataset import normalise
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import inpaint_images
from lab5.inpainting.pair import Pair
from lab5.inpainting.refiner import Refiner
from lab5.objectives import epoch_batch
from lab5.runtime.folders import data_folder
from lab5.runtime.transfers import sent

PIECE = 256  # images that are painted at a time: the evidence of an image takes half a megabyte


class RefinerObjective(nn.Module):
    """For `fit`: batches of painted pictures with their holes and the images as they were, flipped at random.

    The loss is the mean absolute error of the missing pixels and whatever `judges` add, named (weight, module) as in
    `lab5.objectives.vqgan_loss`.
    """

    def __init__(
        self,
        painted: UInt8[Tensor, "n 3 64 64"],
        images: UInt8[Tensor, "n 3 64 64"],
        holes: Bool[Tensor, "n 64 64"],
        config: TrainConfig,
        seed: int,
        judges: Mapping[str, tuple[float, nn.Module]] = MappingProxyType({}),
    ):
        super().__init__()
        self.painted, self.images, self.holes, self.config, self.seed = painted, images, holes, config, seed
        self.weights = {name: weight for name, (weight, _) in judges.items()}
        self.judges = nn.ModuleDict({name: judge for name, (_, judge) in judges.items()})

    def forward(self, model: Refiner, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        self.to(device)
        chosen = epoch_batch(len(self.images), self.config.batch, draw, self.seed)
        flip = torch.rand(len(chosen), generator=generator) < 0.5
        painted, images, holes = (
            sent(torch.where(flip.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x), device)
            for x in (self.painted[chosen], self.images[chosen], self.holes[chosen])
        )
        made, images = model(normalise(painted).contiguous(memory_format=torch.channels_last), holes), normalise(images)
        loss = ((made.float() - images).abs().mean(1) * holes).sum() / holes.sum().clamp(min=1)
        metrics = {"absolute": loss.detach()}
        for name, judge in self.judges.items():
            metrics[name] = judge(made, images)
            loss = loss + self.weights[name] * metrics[name]
            metrics[name] = metrics[name].detach()
        return loss, metrics


def in_one_step(decode: DecodeConfig) -> DecodeConfig:
    """The settings with which fills to learn from are painted: known pixels kept, and all that takes time left out."""
    return replace(
        decode, schedule="one_shot", steps=1, stop_at=0, budget="schedule", remask=0.0, rounds=0, passes=1,
        paste="poisson",
    )  # fmt: skip


def painted(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decode: DecodeConfig, seed: int
) -> UInt8[Tensor, "n 3 64 64"]:
    """The images as the pair fills their holes `in_one_step`; found on disk, once they were made."""
    once = in_one_step(decode)
    digest = hashlib.sha256(images.contiguous().numpy())
    digest.update(holes.contiguous().numpy())

    def make() -> Arrays:
        parts = enumerate(zip(images.split(PIECE), holes.split(PIECE), strict=True))
        filled = [inpaint_images(pair, fill_holes(*part, "grey"), part[1], once, seed + i) for i, part in parts]
        return {"pictures": torch.cat(filled).numpy()}

    key = ["painted", pair.weights, digest.hexdigest(), repr(once), seed]
    return torch.from_numpy(cached(data_folder() / "cache", key, make)["pictures"])
