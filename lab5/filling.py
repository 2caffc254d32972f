"""From images with holes to filled ones: the chain of tokenizer, transformer and paste-back, by a `DecodeConfig`.

It does not know what a result is worth, nor which settings are good.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lab5.budgets import BUDGETS
from lab5.config import DecodeConfig
from lab5.data import token_mask
from lab5.decoder import DecodeStep, decode_steps
from lab5.gamma import SCHEDULES
from lab5.memory import naming
from lab5.pasting import PASTES, paste_known
from lab5.pipeline import Pair
from lab5.samplers import CODES, ORDERS
from lab5.surroundings import dilate
from lab5.tokenizer import FILLS, Fill, Tokenizer, fill_holes

CHOICES = {
    "schedule": SCHEDULES, "codes": CODES, "order": ORDERS, "fill": FILLS, "paste": PASTES,
    "budget": ("schedule", *BUDGETS), "rounding": ("floor", "ceil"), "count_base": ("hole", "current"),
}  # fmt: skip


def check_decode(decode: DecodeConfig) -> None:
    """Raise ValueError for a name that there is not, before anything is trained, decoded or written."""
    for setting, known in CHOICES.items():
        if (name := getattr(decode, setting)) not in known:
            raise ValueError(f"decode.{setting} must be one of {', '.join(known)}, not {name!r}")
    if decode.batch < 1:
        raise ValueError(f"decode.batch must be at least 1, not {decode.batch}")


def decode_holes(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decode: DecodeConfig, seed: int
) -> Iterator[DecodeStep]:
    """The T + 1 states of filling the holes; `pair.tokenizer.decode(state.filled)` is the picture from step 1 on.

    Each image has a generator of its own, from (seed, its number): its noise is the same in any batch and under
    any schedule. `decode.refills` first decodes the whole, and then again with that in the hole.

    Raises ValueError for settings that cannot be, and MemoryError that names the setting where a GPU's memory is full.
    """
    check_decode(decode)
    fill: Fill = decode.fill
    if decode.refills:
        before = replace(decode, refills=decode.refills - 1, stop_at=0, paste="poisson")  # without a seam
        fill = inpaint_images(pair, images, holes, before, seed)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(len(images))]
    with naming("decode.batch", decode.batch):
        decodings = []
        for start in range(0, len(images), decode.batch):
            part = slice(start, start + decode.batch)
            shown = fill[part] if isinstance(fill, Tensor) else fill
            decodings.append(_decode_batch(pair, images[part], holes[part], shown, decode, generators[part]))
        # All batches take the same steps, so their states are one state: a batch at a time stays in the cache.
        for states in zip(*decodings, strict=True):
            _, *tensors = zip(*states, strict=True)
            yield DecodeStep(states[0].step, *(torch.cat(parts) for parts in tensors))


def _decode_batch(
    pair: Pair, images: Tensor, holes: Tensor, fill: Fill, decode: DecodeConfig, generators: list[torch.Generator]
) -> Iterator[DecodeStep]:
    tokens, unknown = pair.tokenizer.encode_holed(images, holes, fill)
    unknown = dilate(unknown, decode.dilate)
    device = next(pair.transformer.parameters()).device
    prior = None
    if decode.evidence:
        prior = pair.tokenizer.evidence(images, holes, fill, decode.evidence).to(device)
    model = pair.transformer
    if decode.hints and model.config.hints:
        model = partial(model, hints=pair.tokenizer.hints(images, holes, fill).to(device))
    return decode_steps(
        model,
        tokens.to(device),
        unknown.to(device),
        schedule=decode.schedule,
        steps=decode.steps,
        stop_at=decode.stop_at or None,
        codes=decode.codes,
        order=decode.order,
        temperature=decode.temperature,
        choice_temperature=decode.choice_temperature,
        temperature_end=decode.temperature_end if decode.temperature_end >= 0 else None,
        choice_temperature_end=decode.choice_temperature_end,
        rounding=decode.rounding,
        count_base=decode.count_base,
        budget=decode.budget,
        limit=decode.limit,
        remask=decode.remask,
        rounds=decode.rounds,
        redo=decode.redo,
        prior=prior,
        mask_id=pair.transformer.mask_id,
        generator=generators,
    )


def inpaint_images(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decode: DecodeConfig, seed: int
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures at the end of `decode_holes`."""
    for state in decode_holes(pair, images, holes, decode, seed):
        filled = state.filled
    return to_pictures(pair.tokenizer, filled, images, holes, decode)


def to_pictures(
    tokenizer: Tokenizer,
    filled: Int[Tensor, "n N"],
    images: UInt8[Tensor, "n 3 64 64"],
    holes: Bool[Tensor, "n 64 64"],
    decode: DecodeConfig,
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures of decoded tokens, after `decode.passes` passes.

    A second pass puts the picture of the first into the hole, without a seam, and encodes that: the unknown tokens are
    then taken from an image whose visible pixels are true to the last one. Known tokens stay. What is returned is the
    decoder's own picture unless `decode.paste` says otherwise.
    """
    filled, unknown = filled.cpu(), dilate(token_mask(holes), decode.dilate)
    pictures = tokenizer.decode(filled)
    for _ in range(decode.passes - 1):
        together = paste_known(pictures, images, holes, "poisson")
        filled = torch.where(unknown, tokenizer.encode(together), filled)
        pictures = tokenizer.decode(filled)
    return paste_known(pictures, images, holes, decode.paste)


def baselines(
    images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], tokenizer: Tokenizer
) -> dict[str, UInt8[Tensor, "n 3 64 64"]]:
    """What every result has to stand beside, from the same images.

    The reconstruction floor encodes and decodes the true image; doing nothing encodes and decodes the grey hole;
    the others fill pixels and leave the known ones exactly as they are.
    """
    return {
        "reconstruction": tokenizer.decode(tokenizer.encode(images)),
        "do_nothing": tokenizer.decode(tokenizer.encode(fill_holes(images, holes, "grey"))),
        "grey_fill": fill_holes(images, holes, "grey"),
        "mean_colour": fill_holes(images, holes, "mean"),
        "telea": fill_holes(images, holes, "telea"),
        "navier_stokes": fill_holes(images, holes, "navier_stokes"),
    }
