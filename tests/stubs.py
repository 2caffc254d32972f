"""Small stand-ins that several test files decode and score with."""

from pathlib import Path

import torch

from lab5.data.dataset import Dataset, open_dataset
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN


class Blocks:
    """Stub features: the means of 16x16 blocks."""

    score_name = "Frechet distance on block means"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2)).flatten(1)


def cats(n: int, cache: Path) -> Dataset:
    return open_dataset("toycats", n_train=1, n_val=1, n_test=n, seed=0, cache=cache)


def untrained_pair() -> Pair:
    """Untrained, but with codes far apart and logits far from flat: each token shows in the picture."""
    config = configure("smoke", device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqgan = VQGAN(config.vqgan)
        torch.nn.init.normal_(vqgan.codebook.embedding.weight)
    transformer = BidirectionalTransformer(config.transformer, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(transformer.bias, generator=torch.Generator().manual_seed(2))
    return Pair(Tokenizer(vqgan), transformer.eval(), "stub 1")
