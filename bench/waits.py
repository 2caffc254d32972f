"""How often a GPU is waited for: in a step of training and in one of decoding, with the lines that wait.

On a GPU torch itself says when it waits. Without one the stand-in counts, and transfers too. Neither depends on the
size of the networks, so that these are small ones.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import torch

from bench.plans import QUICK
from bench.rows import Figure
from bench.standin import StandIn, line_of_ours, stand_in_gpu
from lab5.config import DecodeConfig, Stage1Config, Stage2Config
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import random_holes, render
from lab5.inpainting.fill import decode_holes, prepare
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import MVTMObjective, VQGANObjective
from lab5.profiles import INPAINTING, SMALL_TRANSFORMER
from lab5.trainer import fit
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

SYNCHRONISES = "called a synchronizing CUDA operation"  # torch's words
STEPS = 4  # that are counted, after the first few
DECODINGS = {
    "the lab's rule": DecodeConfig(steps=8),
    "ours, with hints": replace(INPAINTING, steps=8),
    "an entropy budget": DecodeConfig(budget="entropy", limit=200.0),
    "re-masking": DecodeConfig(steps=8, remask=0.5),
}


def run(device: torch.device) -> list[Figure]:
    """Waits per step; of the stand-in where the device is a CPU."""
    images, holes = render(7, 16).images, random_holes(7, 8)
    with stand_in_gpu() if device.type == "cpu" else on_a_gpu() as counts:
        return [*of_training(images, holes, counts), *of_decoding(images[:4], holes[:4], counts)]


@contextmanager
def on_a_gpu() -> Iterator[StandIn]:
    """The counts of a GPU by torch's warnings: of waits alone."""
    counts, shown, before = StandIn(), warnings.showwarning, torch.cuda.get_sync_debug_mode()

    def heard(message: Warning | str, *of, **more) -> None:
        if SYNCHRONISES in str(message):
            counts.waits[line_of_ours()] += 1
        else:
            shown(message, *of, **more)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{SYNCHRONISES}")
        warnings.showwarning = heard
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode(before)


def of_training(images: torch.Tensor, holes: torch.Tensor, counts: StandIn) -> Iterator[Figure]:
    first = Stage1Config(steps=10**6, batch=4, warmup=0, autoencoder_share=0.0)
    second = Stage2Config(steps=10**6, batch=4, warmup=0)
    vqgan = VQGAN(QUICK.vqgan)
    tokenizer = Tokenizer(VQGAN(QUICK.vqgan).to("cuda"))

    def hints(image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        return tokenizer.hints_there(fill_holes(images[image], holes[hole], "navier_stokes"), holes[hole])

    tokens, masks = tokenizer.encode(images), token_mask(holes)
    for name, model, objective, config in (
        ("stage one", vqgan, VQGANObjective(images, QUICK.vqgan, first, 0), first),
        ("stage two", transformer(0), MVTMObjective(tokens, second, 0, masks), second),
        ("stage two with hints", transformer(48), MVTMObjective(tokens, second, 0, masks, hints), second),
    ):
        steps = fit(model.to("cuda"), objective, config, seed=0)
        next(steps), next(steps)  # the first of stage one looks for codes
        yield counted(f"{name}, a training step", islice(steps, STEPS), counts)
        steps.close()


def of_decoding(images: torch.Tensor, holes: torch.Tensor, counts: StandIn) -> Iterator[Figure]:
    pair = Pair(Tokenizer(VQGAN(QUICK.vqgan).to("cuda")), transformer(48).eval().to("cuda"), "random")
    for name, decoding in DECODINGS.items():
        decoding = replace(decoding, amp="bf16")
        states = decode_holes(pair, images, holes, decoding, 0, prepare(pair, images, holes, decoding))
        next(states)  # plans
        yield counted(f"{name}, a step of decoding", states, counts)


def transformer(hints: int) -> BidirectionalTransformer:
    config = replace(SMALL_TRANSFORMER, codes=QUICK.vqgan.codes, width=32, layers=1, hidden=32, hints=hints)
    return BidirectionalTransformer(config, generator=torch.Generator().manual_seed(0))


def counted(name: str, steps: Iterator[object], counts: StandIn) -> Figure:
    """Of each of the steps, on average."""
    counts.clear()
    n = sum(1 for _ in steps)
    lines: Counter[str] = counts.waits
    notes = [f"{counts.transfers.total() / n:.3g} transfers"] if counts.transfers else []
    return Figure(name, lines.total() / n, "waits", "; ".join(notes + [f"at {line}" for line in lines]))
