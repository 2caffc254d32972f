"""The command `inpaint`: holes of test images to pictures in files, and a table of scores where the truth is known.

Everything that can be refused is refused before anything is decoded or written. The pictures follow the lab's rule:
known tokens stay, and known pixels come out of the decoder like all others, unless pasting is asked for, which moves
them to a folder that says so.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from lab5.cli import tables
from lab5.cli.datasets import get_dataset
from lab5.cli.tables import Picture, to_image
from lab5.cli.train import Networks, choose_pair, learned_from
from lab5.config import SEEDS, Config, DecodeConfig
from lab5.data.dataset import Dataset, open_masked
from lab5.data.toycats import random_holes
from lab5.decoder import DecodeStep
from lab5.inpainting.fill import baselines, decode_holes, keep_known, to_pictures
from lab5.inpainting.pair import Pair
from lab5.scoring.classifier import get_features
from lab5.scoring.scores import Scorer
from lab5.training.networks import VAL_HOLES, name_of

STEPS = ("mask_scheduling", "imga")


class Job(NamedTuple):
    """Which images are filled, and where they go."""

    out: Path
    split: str = "test"  # or "val", with holes drawn for them
    folders: tuple[Path | None, Path | None] = (None, None)  # the lab's, of test images and masks
    n: int | None = None  # only so many of the first
    share: float | None = None  # or this share of them
    seed: int | None = None
    show_steps: int | None = 0  # how many have their steps drawn, None = all
    overwrite: bool = False  # results that are in `out` already are replaced with it and refused without


def inpaint(config: Config, job: Job, networks: Networks) -> None:
    """Fill the holes of the images, write the pictures, and print their scores where the truth is known."""
    decode, seed, out = config.decode, config.seed if job.seed is None else job.seed, job.out
    if not 0 <= seed <= SEEDS:
        raise ValueError(f"--seed must lie in 0..{SEEDS}, not {seed}")
    if job.show_steps is not None and job.show_steps < 0:
        raise ValueError(f"--show-steps takes the number of images to show, at least 1, not {job.show_steps}")
    results = f"{job.split}_results{'' if decode.paste == 'none' else '_pasted'}"
    earlier = tables.existing(out, [results] if job.show_steps == 0 else [results, *STEPS])
    if earlier and not job.overwrite:
        raise ValueError(f"{earlier} holds results already: choose another --out, or replace them with --overwrite")
    data = _open_images(config, job)
    n = _how_many(len(data.test), job.split, job.n, job.share)
    pair = choose_pair(config, data, networks)
    scorer, known = None, int(data.whole[:n].sum())
    if known > 1:
        scorer = Scorer(data, get_features(config, pair.tokenizer), known, tokenizer=pair.tokenizer)
    decoding = decode_holes(pair, data.masked_test[:n], data.holes[:n], decode, seed)
    next(decoding)  # the input: from here on the settings are known to be good
    out.mkdir(parents=True, exist_ok=True)  # complain now, not after the decoding
    filled = _fill(pair, data, n, decoding, decode)
    named = zip(filled.numbers, filled.pictures, strict=True)
    pictures = (Picture(f"{results}/image_{i:03d}.png", to_image(picture), filled.pasted) for i, picture in named)
    drawn = n if job.show_steps is None else min(job.show_steps, n)
    tables.write_pictures(out, chain(pictures, _steps_of(filled, pair, drawn)))
    if earlier and not drawn:  # the steps of another decoding than the results would be beside them
        tables.remove_pictures(out, STEPS)
    trained = f"weights {pair.weights}, trained on {_describe_training(config, networks, data)}"
    print(f"{n} pictures in {out / results}: {trained}, seed {seed}, device {config.device}")
    if job.split == "test" and n == len(data.test) < (given := data.given.get("test", 0)):
        print(f"these are the first {n} of {given} test images: --set data.test={given} takes all")
    print(f"decoded with {_describe(decode)}{filled.pasted and f'; {filled.pasted}'}")
    if drawn:
        print(f"the steps of {drawn} in {out / 'mask_scheduling'} and {out / 'imga'}, without any pasting")
    if scorer is None:
        print("no scores: they need at least two of these images whose truth under the hole is known")
    else:
        _print_scores(scorer, filled, pair)


# --- which images -----------------------------------------------------------------------------------------------


def _open_images(config: Config, job: Job) -> Dataset:
    """A dataset whose test images are those to fill; of the lab's two folders nothing is known under the hole."""
    if job.folders == (None, None):
        data = get_dataset(config)
        return data if job.split == "test" else _validation_as_test(data)
    masked, masks = job.folders
    if masked is None or masks is None:
        raise ValueError("--test-maskedimage-path and --test-mask-path belong together: give both folders, or --data")
    if job.split != "test":
        raise ValueError(f"--split {job.split} takes its images from --data, not from --test-maskedimage-path")
    images, holes, numbers = open_masked(masked, masks)
    unknown, none = torch.zeros(len(images), dtype=torch.bool), images[:0]
    return Dataset(masked.name, none, none, images, holes, unknown, unknown, {}, {}, tuple(numbers))


def _validation_as_test(data: Dataset) -> Dataset:
    n = len(data.val)
    everything = torch.ones(n, dtype=torch.bool)
    return replace(
        data, test=data.val, holes=random_holes(VAL_HOLES, n), whole=everything, leaked=~everything,
        attributes={"test": {}} if data.attributes else {}, hidden={}, numbers=tuple(range(n)),
    )  # fmt: skip


def _how_many(there: int, split: str, n: int | None, share: float | None) -> int:
    if n is not None and share is not None:
        raise ValueError("--n and --partial both say how many images to fill: give one of them")
    n = n if n is not None else there if share is None else max(1, int(share * there))
    if not 1 <= n <= there:
        raise ValueError(f"--n must lie in 1..{there}, the number of {split} images, not {n}")
    return n


# --- what is made of them ---------------------------------------------------------------------------------------


class Filled(NamedTuple):
    """Images after decoding, of t states each."""

    images: UInt8[Tensor, "n 3 64 64"]  # with grey holes
    holes: Bool[Tensor, "n 64 64"]
    numbers: tuple[int, ...]
    masked: Bool[Tensor, "t n 256"]
    tokens: Int[Tensor, "t n 256"]  # with the proposals of every step
    decode: DecodeConfig  # without pasting
    plain: UInt8[Tensor, "n 3 64 64"]  # decoded
    pictures: UInt8[Tensor, "n 3 64 64"]  # with known pixels pasted, where that was asked for
    pasted: str  # what to say of it


def _fill(pair: Pair, data: Dataset, n: int, decoding: Iterator[DecodeStep], decode: DecodeConfig) -> Filled:
    images, holes, plan = data.masked_test[:n], data.holes[:n], replace(decode, paste="none")
    steps = tqdm(decoding, total=(decode.stop_at or decode.steps) + decode.rounds, desc="decoding", unit="step")
    states = [(state.masked.cpu(), state.filled.cpu()) for state in steps]
    masked, tokens = (torch.stack(parts) for parts in zip(*states, strict=True))
    plain = to_pictures(pair.tokenizer, tokens[-1], images, holes, plan)
    pictures = keep_known(pair.tokenizer, plain, images, holes, decode.paste)
    pasted = "" if decode.paste == "none" else f"known pixels pasted back ({decode.paste}): not by the lab's rule"
    return Filled(images, holes, data.numbers[:n], masked, tokens, plan, plain, pictures, pasted)


def _steps_of(filled: Filled, pair: Pair, count: int) -> Iterator[Picture]:
    """Masks and pictures of every step, each as if the decoding had ended there, for the first images."""
    of_masks, of_images = STEPS
    for i, number in enumerate(filled.numbers[:count]):
        pictures = filled.plain[i][None]
        if (before := len(filled.tokens) - 1) > 0:
            image, hole = (x[i].expand(before, *x[i].shape) for x in (filled.images, filled.holes))
            earlier = to_pictures(pair.tokenizer, filled.tokens[:-1, i], image, hole, filled.decode)
            pictures = torch.cat([earlier, pictures])
        yield Picture(f"{of_masks}/test_{number}.png", tables.draw_masks(filled.masked[:, i]))
        yield Picture(f"{of_images}/test_{number}.png", tables.draw_steps(filled.images[i], pictures))


def _describe_training(config: Config, networks: Networks, data: Dataset) -> str:
    """What the networks were trained on, and that it is not what they fill."""
    learned, filled = learned_from(config, networks), name_of(data)
    other = f", not on {data.name}" if learned and learned != [filled] else ""
    return (" and ".join(learned) or "images that their files do not name") + other


def _describe(decode: DecodeConfig) -> str:
    """The plan, and what differs from the lab's rule."""
    lab, plan = DecodeConfig(), ("schedule", "steps", "stop_at")
    differing = {name: value for name, value in asdict(decode).items() if name in plan or value != getattr(lab, name)}
    return ", ".join(f"{name} {value}" for name, value in differing.items())


def _print_scores(scorer: Scorer, filled: Filled, pair: Pair) -> None:
    print(f"score: {scorer.score_name}, lower is better; it grows as n falls, so compare it within a group of images")
    methods = {f"this run{filled.pasted and ', pasted'}": filled.pictures[scorer.places]}
    methods |= baselines(scorer.truth, scorer.holes, pair.tokenizer)
    scores = {method: scorer.by_group(pictures) for method, pictures in methods.items()}
    tables.print_table([
        {"images": group, "method": method} | groups[group]._asdict()
        for group in scorer.groups for method, groups in scores.items()
    ])  # fmt: skip
