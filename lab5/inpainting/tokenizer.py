"""Images to tokens and back: the frozen VQGAN behind bytes, in batches, with a token cache on disk.

A test image has a hole, and the encoder has to be shown something there: it is filled once (`holes.fill_holes`), and
tokens, hints and evidence are read from the filled image. Tokens next to the hole depend a little on the fill, because
the encoder's convolutions look across.
"""

import hashlib
import math
import os
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from lab5.data.dataset import BLOCK, GRID, denormalise, normalise
from lab5.inpainting.refiner import Refiner
from lab5.runtime.files import dispensable, replacing, weights_hash
from lab5.runtime.machine import exact_float32
from lab5.runtime.transfers import sent
from lab5.vqgan import VQGAN

PIECE = 256  # images between files of a token cache: minutes, for the lab's VQGAN on a CPU


class Tokenizer:
    """Bytes to tokens and back with a frozen VQGAN, in float32 whatever else is running."""

    def __init__(self, vqgan: VQGAN, batch: int = 64):
        # The fastest layout for convolutions: up to a third of the time saved, to the last digits the same result.
        self.vqgan = vqgan.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.batch = batch
        self.refiner: Refiner | None = None  # for `decode.paste` "refined"

    @property
    def codes(self) -> int:
        return self.vqgan.codes

    @cached_property
    def weights_hash(self) -> str:
        """The first 12 digits of the SHA-256 of all weights, which do not change: looked at once."""
        return weights_hash(self.vqgan)[:12]

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "n 3 64 64"]) -> Int[Tensor, "n N"]:
        """Tokens 0..K-1 on the CPU."""
        device = next(self.vqgan.parameters()).device
        with exact_float32(device):
            return torch.cat([self.vqgan.encode(sent(normalise(p), device)).cpu() for p in images.split(self.batch)])

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "n N"]) -> UInt8[Tensor, "n 3 64 64"]:
        device = next(self.vqgan.parameters()).device
        with exact_float32(device):
            images = [denormalise(self.vqgan.decode(sent(part, device))).cpu() for part in tokens.split(self.batch)]
        return (torch.cat(images) * 255).round().to(torch.uint8)

    @torch.no_grad()
    def hints(
        self, filled: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"]
    ) -> Float[Tensor, "n N hints"]:
        """`hints_there`, on the CPU."""
        parts = zip(filled.split(self.batch), holes.split(self.batch), strict=True)
        return torch.cat([self.hints_there(*part).cpu() for part in parts])

    @torch.no_grad()
    def hints_there(
        self, filled: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"]
    ) -> Float[Tensor, "n N hints"]:
        """What a transformer may know of every token beside its code, for `TransformerConfig.hints`, of one batch, on
        the VQGAN's device.

        A token with a hole in it is unknown, but most of its pixels may be there. Each row holds the latent of the
        filled image before quantisation, in units of the codebook's spread, and the 16 pixels of the block, 1 =
        missing. (Liu et al. 2022, "PUT", feed un-quantised features of known patches, and tell partly visible
        patches from masked ones, for the same reason.)
        """
        device = next(self.vqgan.parameters()).device
        with exact_float32(device):
            latents = self.vqgan.latents(sent(normalise(filled), device)).flatten(2).transpose(1, 2)
        missing = F.pixel_unshuffle(sent(holes, device)[:, None].float(), BLOCK).flatten(2).transpose(1, 2)
        return torch.cat([latents / self.vqgan.codebook.embedding.weight.std(), missing], dim=2)

    @torch.no_grad()
    def evidence(
        self, filled: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], strength: float
    ) -> Float[Tensor, "n N K"]:
        """What the known pixels of half-hidden tokens say about their codes: log-weights for a decoder to add.

        A token with a hole in it is unknown, but most of its pixels may be there. The latent of the filled image is
        then a fair guess at the true one: a code at squared distance d from it weighs -strength/2 * (visible share)²
        * d / (mean d of known tokens to their codes). Tokens without a visible pixel weigh all codes alike.
        """
        device = next(self.vqgan.parameters()).device
        codes = self.vqgan.codebook.embedding.weight
        visible = F.avg_pool2d((~holes).float(), BLOCK).flatten(1)  # (n, N)
        rows = []
        for part, seen in zip(filled.split(self.batch), visible.split(self.batch), strict=True):
            with exact_float32(device):
                latents = self.vqgan.latents(normalise(part).to(device)).flatten(2).transpose(1, 2)
                distance = torch.cdist(latents, codes.expand(len(latents), -1, -1)).square().cpu()
            nearest, known = distance.amin(2), seen == 1
            known |= ~known.any(1, keepdim=True)  # without a known token, all count
            scale = ((nearest * known).sum(1) / known.sum(1)).clamp(min=1e-6)  # of each image by itself
            rows.append(-0.5 * strength * seen.square()[:, :, None] * distance / scale[:, None, None])
        return torch.cat(rows)

    def cached(self, images: UInt8[Tensor, "n 3 64 64"], folder: Path, name: str) -> Int[Tensor, "n N"]:
        """`encode`, kept in a file that is named by the images and the weights; int16, memory-mapped.

        Whether a file was found can be asked of `cache_file` beforehand; one that cannot be written is done without. On
        the way every PIECE images have a file of their own: who is killed goes on from there. A damaged file is warned
        of and made again.
        """
        path = self.cache_file(images, folder, name)
        shape = (len(images), GRID**2)
        if os.path.exists(path) and (tokens := self._read(path, shape)) is not None:
            return tokens
        pieces = images.split(PIECE) if len(images) > PIECE else ()
        parts = [self.cached(piece, folder, name) for piece in pieces] or [self.encode(images)]
        tokens = torch.cat(parts).numpy().astype(np.int16)
        with dispensable(path):
            with replacing(path) as file:
                np.save(file, tokens)
            for piece in pieces:
                self.cache_file(piece, folder, name).unlink(missing_ok=True)
            return self._read(path, shape)
        return torch.from_numpy(tokens)

    def _read(self, path: Path, shape: tuple[int, int]) -> Tensor | None:
        """The tokens of a file, or None and a warning where it is damaged."""
        try:
            tokens = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except Exception as error:  # damaged arrays fail in many ways
            problem = type(error).__name__
        else:
            if tokens.shape == shape and tokens.dtype == torch.int16 and 0 <= tokens.min() <= tokens.max() < self.codes:
                return tokens
            problem = f"it holds no {shape[0]} x {shape[1]} tokens in 0..{self.codes - 1}"
        warnings.warn(f"{path} is damaged and made again: {problem}", stacklevel=3)
        return None

    def cache_file(self, images: UInt8[Tensor, "n 3 64 64"], folder: Path, name: str) -> Path:
        digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:12]
        return Path(folder) / f"tokens-{name}-{digest}-{self.weights_hash}.npy"


@torch.no_grad()
def reconstruction_psnr_db(vqgan: VQGAN, images: UInt8[Tensor, "n 3 64 64"], batch: int = 64) -> float:
    """Peak signal-to-noise ratio of encoded and decoded images, all pixels together. Works while it is training."""
    device = next(vqgan.parameters()).device
    squared = 0.0
    for part in images.split(batch):
        with exact_float32(device):
            pictures = denormalise(vqgan.decode(vqgan.encode(normalise(part).to(device))))
        squared += float((pictures.cpu() - part / 255).square().sum(dtype=torch.float64))
    return -10 * math.log10(max(squared / images.numel(), 1e-12))
