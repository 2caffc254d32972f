"""From images with holes to filled ones: fill, encode, decode the tokens, paint, paste, by a `DecodeConfig`."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lab5.config import DecodeConfig, check, check_decoding
from lab5.data.dataset import token_mask
from lab5.data.holes import dilate, fill_holes, paste_known
from lab5.decoder import DecodeStep, ask
from lab5.inpainting.answers import Answer, Remembering
from lab5.inpainting.pair import Pair
from lab5.inpainting.refiner import refine
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.machine import oom_hint
from lab5.runtime.transfers import Noise, places, sent
from lab5.transformer import BidirectionalTransformer
from lab5.variants import decode


class Holed(NamedTuple):
    """What a decoding begins with: of images with holes, whatever the schedule and the seed."""

    tokens: Int[Tensor, "n N"]  # of the filled images
    unknown: Bool[Tensor, "n N"]
    prior: Float[Tensor, "n N K"] | None
    hints: Float[Tensor, "n N hints"] | None
    answer: Answer | None = None  # of the transformer to the masked tokens, where it is known already

    def of_images(self, chosen: slice) -> "Holed":
        """The same for some of the images."""
        tensors = (None if x is None else x[chosen] for x in self[:-1])
        return Holed(*tensors, None if self.answer is None else self.answer.of_images(chosen))


PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_COPIES: WeakKeyDictionary[BidirectionalTransformer, tuple[tuple, BidirectionalTransformer]] = WeakKeyDictionary()
BEGINS = ("fill", "dilate", "evidence", "hints")  # the settings that `prepare` looks at


def prepare(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decoding: DecodeConfig
) -> Holed:
    """Fill the holes, encode, and look at what is visible of half-hidden tokens."""
    tokenizer, filled = pair.tokenizer, fill_holes(images, holes, decoding.fill)
    prior = tokenizer.evidence(filled, holes, decoding.evidence) if decoding.evidence else None
    hints = tokenizer.hints(filled, holes) if decoding.hints and pair.transformer.config.hints else None
    return Holed(tokenizer.encode(filled), dilate(token_mask(holes), decoding.dilate), prior, hints)


def decode_holes(
    pair: Pair,
    images: UInt8[Tensor, "n 3 64 64"],
    holes: Bool[Tensor, "n 64 64"],
    decoding: DecodeConfig,
    seed: int,
    holed: Holed | None = None,
) -> Iterator[DecodeStep]:
    """The T + 1 states of filling the holes; `pair.tokenizer.decode(state.filled)` is the picture from step 1 on.

    Each image has a generator of its own, from (seed, its number): its noise is the same in any batch and under
    any schedule. `holed` is what `prepare` gives for the same images, where it is at hand.

    Raises ValueError for settings that cannot be, and MemoryError that names the setting where a GPU's memory is full.
    """
    check(decoding, "decode")
    check_decoding(decoding)
    if decoding.paste == "refined" and pair.tokenizer.refiner is None:
        raise ValueError("decode.paste = refined needs a refiner, which these networks come without: take poisson")
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(len(images))]
    with oom_hint("decode.batch", decoding.batch):
        transformer, decodings = in_precision(pair.transformer, decoding.amp), []
        for start in range(0, len(images), decoding.batch):
            part = slice(start, start + decoding.batch)
            if holed is None:  # by batches: the evidence of an image takes half a megabyte
                begin = prepare(pair, images[part], holes[part], decoding)
            else:
                begin = holed.of_images(part)
            decodings.append(_decode_batch(transformer, begin, decoding, generators[part]))
        # All batches take their steps together, so their states are one state: a batch at a time stays in the cache.
        for states in _in_step(decodings):
            first, *_ = states
            joined = [
                None if values[0] is None else torch.cat(values) for values in list(zip(*states, strict=True))[1:]
            ]
            yield DecodeStep(first.step, *joined)


def _decode_batch(
    model: BidirectionalTransformer, begin: Holed, decoding: DecodeConfig, generators: list[torch.Generator]
) -> Iterator[DecodeStep]:
    device = next(model.parameters()).device
    tokens, unknown, prior, hints = (None if x is None else sent(x, device) for x in begin[:-1])
    if device.type == "cpu":
        model = Remembering(model, _like(model, hints), begin.answer)
    elif hints is not None:
        model = _with(model, hints)
    return decode(model, tokens, unknown, decoding, generator=Noise(generators), prior=prior)


def answered(pair: Pair, holed: Holed, decoding: DecodeConfig) -> Holed:
    """The same with the transformer's answer to the masked tokens, which all decodings that begin so ask for."""
    transformer, answers = in_precision(pair.transformer, decoding.amp), []
    asked = holed.tokens.masked_fill(holed.unknown, transformer.mask_id)
    for start in range(0, len(asked), decoding.batch):
        part = slice(start, start + decoding.batch)
        model = Remembering(transformer, _like(transformer, holed.of_images(part).hints), None)
        ask(model, asked[part], where=places(holed.unknown[part]))
        answers.append(model.answer)
    return holed._replace(answer=Answer(*(torch.cat(parts) for parts in zip(*answers, strict=True))))


def _in_step(decodings: list[Iterator[DecodeStep]]) -> Iterator[list[DecodeStep]]:
    """A state of each, until all have ended: under a budget one may take fewer steps, and repeats its last state."""
    states: list[DecodeStep] = []
    while any(following := [next(decoding, None) for decoding in decodings]):
        pairs = zip(following, states or following, strict=True)
        states = [new or old._replace(step=old.step + 1) for new, old in pairs]
        yield states


def with_hints(pair: Pair, filled: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"]) -> partial:
    """The pair's transformer, shown at every step what is visible in these filled images."""
    device = next(pair.transformer.parameters()).device
    return _with(pair.transformer, pair.tokenizer.hints(filled, holes).to(device))


def in_precision(transformer: BidirectionalTransformer, amp: str) -> BidirectionalTransformer:
    """The transformer itself, or a copy that computes with numbers of half the size, for `decode.amp`.

    The copy is kept as long as the transformer, until that is trained on, moved, or asked for in another precision.
    On a CPU the copy's attention is the one written by hand: torch's fused one gains nothing from bfloat16 there.
    """
    if amp == "off":
        return transformer
    weights = list(transformer.parameters())
    of = amp, transformer.training, *((p.device, p.dtype, p._version) for p in weights)
    if of != _COPIES.get(transformer, ((), None))[0]:
        model = deepcopy(transformer).to(PRECISIONS[amp])
        for block in model.blocks:
            block.Attention.fused = weights[0].device.type != "cpu"
        _COPIES[transformer] = of, model
    return _COPIES[transformer][1]


def _like(transformer: BidirectionalTransformer, hints: Tensor | None) -> Tensor | None:
    return None if hints is None else hints.to(transformer.tok_emb.weight.dtype)


def _with(transformer: BidirectionalTransformer, hints: Float[Tensor, "B N hints"]) -> partial:
    model = partial(transformer, hints=_like(transformer, hints))
    model.mask_id, model.takes_where = transformer.mask_id, True
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
    return keep_known(tokenizer, pictures, images, holes, decoding.paste)


def keep_known(
    tokenizer: Tokenizer,
    pictures: UInt8[Tensor, "n 3 64 64"],
    images: UInt8[Tensor, "n 3 64 64"],
    holes: Bool[Tensor, "n 64 64"],
    paste: str,
) -> UInt8[Tensor, "n 3 64 64"]:
    """`paste_known`, and with "refined" what the tokenizer's refiner makes of the hole after "poisson"."""
    if paste != "refined":
        return paste_known(pictures, images, holes, paste)
    return refine(tokenizer.refiner, paste_known(pictures, images, holes, "poisson"), holes)


def best_paste(tokenizer: Tokenizer) -> str:
    """What keeps known pixels best with these networks."""
    return "poisson" if tokenizer.refiner is None else "refined"


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
