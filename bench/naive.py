"""The slow side: a plain, careful implementation of how the lab's template works.

Every image is encoded in every iteration, attention is written out in float32 with dropout on its weights, logits are
made for all positions, images are decoded one by one with a picture at every step, files are opened one by one in
every epoch, and the Fréchet distance takes the square root of a matrix. Nothing here is slow on purpose: these are
torch's and SciPy's own functions, called as one would call them at first. Weights have the names of lab5's networks,
so both sides compute the same function.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from lab5.config import TransformerConfig
from lab5.data.dataset import TRAIN_STATS, denormalise, normalise
from lab5.vqgan import VQGAN

EPS = 1e-12  # of every LayerNorm


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        images, positions, width = x.shape
        shape = images, positions, self.heads, width // self.heads
        query, key, value = (linear(x).view(shape).transpose(1, 2) for linear in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(shape[-1])
        attended = self.dropout(scores.softmax(dim=-1)) @ value
        return self.out(attended.transpose(1, 2).reshape(images, positions, width))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.Attention = Attention(config.width, config.heads, config.attention_dropout)
        self.LayerNorm1, self.LayerNorm2 = (nn.LayerNorm(config.width, eps=EPS) for _ in range(2))
        self.MLP = nn.Sequential(
            nn.Linear(config.width, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width),
            nn.Dropout(config.dropout),
        )  # fmt: skip
        self.dropout = nn.Dropout(config.dropout)
        self.norm = config.norm

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if self.norm == "pre":
            x = x + self.dropout(self.Attention(self.LayerNorm1(x)))
            return x + self.MLP(self.LayerNorm2(x))
        x = self.LayerNorm1(x + self.dropout(self.Attention(x)))
        return self.LayerNorm2(x + self.MLP(x))


class Transformer(nn.Module):
    """Logits of all positions and all ids."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.codes = self.mask_id = config.codes
        self.pos_emb = nn.Parameter(torch.empty(config.positions, config.width))
        self.bias = nn.Parameter(torch.zeros(config.positions, config.codes + 1))
        self.tok_emb = nn.Embedding(config.codes + 1, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.Token_Prediction = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.LayerNorm(config.width, eps=EPS)
        )
        self.LN = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B N ids"]:
        x = self.dropout(self.LN(self.tok_emb(tokens) + self.pos_emb))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.Token_Prediction(x), self.tok_emb.weight) + self.bias


# --- training -------------------------------------------------------------------------------------------------------


def loss_of(
    transformer: Transformer, vqgan: VQGAN, images: UInt8[Tensor, "B 3 64 64"], masked: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Encode the images, hide tokens, and take the cross-entropy over those."""
    device = masked.device
    with torch.no_grad():
        tokens = vqgan.encode(normalise(images).to(device))
    logits = transformer(tokens.masked_fill(masked, transformer.mask_id))[..., : transformer.codes]
    return F.cross_entropy(logits[masked], tokens[masked])


def train_step(
    transformer: Transformer, vqgan: VQGAN, images: UInt8[Tensor, "B 3 64 64"], masked: Bool[Tensor, "B N"],
    optimiser: torch.optim.Optimizer, clip: float,
) -> float:  # fmt: skip
    optimiser.zero_grad()
    loss = loss_of(transformer, vqgan, images, masked)
    loss.backward()
    nn.utils.clip_grad_norm_(transformer.parameters(), clip)
    optimiser.step()
    return loss.item()


# --- inpainting -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def inpaint(
    transformer: Transformer, vqgan: VQGAN, image: UInt8[Tensor, "3 64 64"], unknown: Bool[Tensor, " N"], steps: int
) -> tuple[list[UInt8[Tensor, "3 64 64"]], Int[Tensor, " N"]]:
    """One image whose hole is grey: its picture after every step, and its tokens in the end.

    The likeliest codes, the surest first.
    """
    device = unknown.device
    tokens = vqgan.encode(normalise(image[None]).to(device))[0]
    tokens[unknown] = transformer.mask_id
    masked, at_first = unknown.clone(), int(unknown.sum())
    pictures = []
    for step in range(1, steps + 1):
        probabilities = transformer(tokens[None])[0, :, : transformer.codes].softmax(dim=-1)
        confidence, codes = probabilities.max(dim=-1)
        filled = torch.where(masked, codes, tokens)
        left = math.floor(at_first * math.cos(math.pi / 2 * step / steps)) if step < steps else 0
        confidence[~masked] = math.inf
        masked = torch.zeros_like(masked)
        masked[confidence.argsort()[:left]] = True
        tokens = filled.masked_fill(masked, transformer.mask_id)
        pictures.append((denormalise(vqgan.decode(filled[None])[0]).cpu() * 255).round().to(torch.uint8))
    return pictures, tokens


# --- scoring --------------------------------------------------------------------------------------------------------


def frechet_distance(features_a: Float[np.ndarray, "n F"], features_b: Float[np.ndarray, "m F"]) -> float:
    """Means, covariances, and SciPy's square root of their product."""
    mean_a, mean_b = features_a.mean(axis=0), features_b.mean(axis=0)
    cov_a, cov_b = np.cov(features_a, rowvar=False), np.cov(features_b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    apart = mean_a - mean_b
    return float(apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root.real))


# --- loading --------------------------------------------------------------------------------------------------------


def load(files: Iterable[Path], batch: int) -> Iterator[Float[Tensor, "B 3 64 64"]]:
    """Every file opened, decoded and normalised by itself, then stacked."""
    mean, std = (torch.tensor(values)[:, None, None] for values in TRAIN_STATS)
    images: list[Tensor] = []
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        images.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - mean) / std)
        if len(images) == batch:
            yield torch.stack(images)
            images = []
    if images:
        yield torch.stack(images)
