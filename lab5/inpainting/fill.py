"""From images with holes to filled ones: fill, encode, decode the tokens, paint, paste, by a `DecodeConfig`."""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lab5.config import DecodeConfig, check, check_decoding
from lab5.data.dataset import token_mask
from lab5.data.holes import dilate, fill_holes, paste_known
from lab5.decoder import DecodeStep
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.machine import oom_hint
from lab5.variants import decode


def decode_holes(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decoding: DecodeConfig, seed: int
) -> Iterator[DecodeStep]:
    """The T + 1 states of filling the holes; `pair.tokenizer.decode(state.filled)` is the picture from step 1 on.

    Each image has a generator of its own, from (seed, its number): its noise is the same in any batch and under
    any schedule.

    Raises ValueError for settings that cannot be, and MemoryError that names the setting where a GPU's memory is full.
    """
    check(decoding, "decode")
    check_decoding(decoding)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(len(images))]
    with oom_hint("decode.batch", decoding.batch):
        decodings = []
        for start in range(0, len(images), decoding.batch):
            part = slice(start, start + decoding.batch)
            decodings.append(_decode_batch(pair, images[part], holes[part], decoding, generators[part]))
        # All batches take the same steps, so their states are one state: a batch at a time stays in the cache.
        for states in zip(*decodings, strict=True):
            first, *_ = states
            joined = [
                None if values[0] is None else torch.cat(values) for values in list(zip(*states, strict=True))[1:]
            ]
            yield DecodeStep(first.step, *joined)


def _decode_batch(
    pair: Pair, images: Tensor, holes: Tensor, decoding: DecodeConfig, generators: list[torch.Generator]
) -> Iterator[DecodeStep]:
    tokenizer, model = pair.tokenizer, pair.transformer
    device = next(model.parameters()).device
    filled = fill_holes(images, holes, decoding.fill)
    tokens, unknown = tokenizer.encode(filled), dilate(token_mask(holes), decoding.dilate)
    prior = tokenizer.evidence(filled, holes, decoding.evidence).to(device) if decoding.evidence else None
    if decoding.hints and model.config.hints:
        model = with_hints(pair, filled, holes)
    return decode(model, tokens.to(device), unknown.to(device), decoding, generator=generators, prior=prior)


def with_hints(pair: Pair, filled: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"]) -> partial:
    """The pair's transformer, shown at every step what is visible in these filled images."""
    device = next(pair.transformer.parameters()).device
    model = partial(pair.transformer, hints=pair.tokenizer.hints(filled, holes).to(device))
    model.mask_id = pair.transformer.mask_id
    return model


def inpaint_images(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decoding: DecodeConfig, seed: int
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures at the end of `decode_holes`."""
    for state in decode_holes(pair, images, holes, decoding, seed):
        filled = state.filled
    return to_pictures(pair.tokenizer, filled, images, holes, decoding)


def to_pictures(
    tokenizer: Tokenizer,
    filled: Int[Tensor, "n N"],
    images: UInt8[Tensor, "n 3 64 64"],
    holes: Bool[Tensor, "n 64 64"],
    decoding: DecodeConfig,
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures of decoded tokens, after `decoding.passes` passes.

    A second pass puts the picture of the first into the hole, without a seam, and encodes that: the unknown tokens are
    then taken from an image whose visible pixels are true to the last one. Known tokens stay. What is returned is the
    decoder's own picture unless `decoding.paste` says otherwise.
    """
    filled, unknown = filled.cpu(), dilate(token_mask(holes), decoding.dilate)
    pictures = tokenizer.decode(filled)
    for _ in range(decoding.passes - 1):
        together = paste_known(pictures, images, holes, "poisson")
        filled = torch.where(unknown, tokenizer.encode(together), filled)
        pictures = tokenizer.decode(filled)
    return paste_known(pictures, images, holes, decoding.paste)


def baselines(
    images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], tokenizer: Tokenizer
) -> dict[str, UInt8[Tensor, "n 3 64 64"]]:
    """What every result has to stand beside, from the same images.

    The reconstruction floor encodes and decodes the true image; doing nothing encodes and decodes the grey hole;
    the others fill pixels and leave the known ones exactly as they are.
    """
    grey = fill_holes(images, holes, "grey")
    return {
        "reconstruction": tokenizer.decode(tokenizer.encode(images)),
        "do_nothing": tokenizer.decode(tokenizer.encode(grey)),
        "grey_fill": grey,
        "mean_colour": fill_holes(images, holes, "mean"),
        "telea": fill_holes(images, holes, "telea"),
        "navier_stokes": fill_holes(images, holes, "navier_stokes"),
    }
