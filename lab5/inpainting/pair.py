"""The pair of frozen networks that inpaints: a tokenizer and a transformer of its tokens."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from torch import nn

from lab5 import checkpoint
from lab5.config import Config
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.attentions import Reading
from lab5.runtime.files import load_tensors
from lab5.transformer import BidirectionalTransformer


class Pair(NamedTuple):
    """The two frozen networks that inpaint, and where they are from."""

    tokenizer: Tokenizer
    transformer: BidirectionalTransformer
    weights: str  # for captions: "pretrained 1a2b3c4d5e6f", of both networks


def load_pair(
    config: Config, vqgan: Path, transformer: Path, name: str, reading: Reading | None = None
) -> Pair:
    """Two files of ours or of the lab's, called `name` in captions; `reading` as in `checkpoint.load_transformer`.

    Raises ValueError where the transformer predicts another number of codes, or is known to have learned
    another VQGAN's tokens.
    """
    tokenizer = Tokenizer(checkpoint.load_vqgan(vqgan).to(config.device))
    model = checkpoint.load_transformer(transformer, reading).to(config.device)
    if model.codes != tokenizer.codes:
        raise ValueError(f"{transformer} predicts {model.codes} codes, but {vqgan} has {tokenizer.codes}")
    trained_on = _tokenizer_of(transformer)
    if trained_on not in (None, tokenizer.weights_hash):
        raise ValueError(
            f"{transformer} was trained on tokens of a VQGAN {trained_on}, but {vqgan} is {tokenizer.weights_hash}"
        )
    return make_pair(tokenizer, model, name)


def _tokenizer_of(transformer: Path) -> str | None:
    """The hash of the VQGAN whose tokens it learned, where its file says so; the lab's do not."""
    try:
        return load_tensors(transformer)[1].get("settings", {}).get("tokenizer")
    except ValueError:
        return None


def make_pair(tokenizer: Tokenizer, transformer: BidirectionalTransformer, name: str) -> Pair:
    """The two networks, called `name` and a hash of both."""
    both = tokenizer.weights_hash + weights_digest(transformer)
    return Pair(tokenizer, transformer, f"{name} {hashlib.sha256(both.encode()).hexdigest()[:12]}")


def weights_digest(model: nn.Module) -> str:
    """The first 12 digits of the SHA-256 of all weights, without their names."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:12]
