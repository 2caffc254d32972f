"""What the parts of profile cats-cpu are worth at equal time: `python -m bench.worth --data lab5_dataset.zip`.

Stage one with and without its judges; fills as they are and as a refiner corrects them that was trained on fills of
their kind. Every training has the same CPU seconds, of one thread, and is judged on clean validation photographs. Then
the profile's own networks on the test images, beside the classical methods; on these and validation photographs
together; and on holes that are wide. The judges are the last layer of the network whose first blocks the perceptual
loss reads, and another network, of which no loss has seen anything.
"""

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lab5.cli.tables import print_table
from lab5.config import Config, TrainConfig
from lab5.data.dataset import Dataset, get_dataset
from lab5.data.holes import fill_holes, paste_known
from lab5.data.toycats import random_holes
from lab5.fid import Features, frechet_distance, kid
from lab5.inpainting.fill import baselines, best_paste, inpaint_images, keep_known
from lab5.inpainting.pair import Pair
from lab5.inpainting.refiner import Refiner, refine
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import VQGANObjective
from lab5.profiles import configure
from lab5.scoring.imagenet import ImageNetFeatures, early_stages
from lab5.scoring.intervals import estimate, gap
from lab5.scoring.resampling import Resampled, resample, resamples
from lab5.scoring.scores import Scorer, hole_psnr_db, psnr_db
from lab5.trainer import Objective, fit
from lab5.training.critics import PatchCritic, PerceptualDistance
from lab5.training.networks import VAL_HOLES, open_pair, training_holes
from lab5.training.refining import RefinerObjective, painted
from lab5.vqgan import VQGAN

PARTS = ("stage1", "refiner", "test", "more", "wide")
TRIED = 8  # steps that are timed before a training
CRITIC = 0.1  # weight of stage1.adversarial
GOAL = 0.55  # times the best classical method's distance


def judges() -> dict[str, Features]:
    """By the name of their column; the second one where its package is installed."""
    found: dict[str, Features] = {"imagenet": ImageNetFeatures()}
    try:
        found["imagenet-lite1"] = ImageNetFeatures(1)
    except ImportError as error:
        print(f"without the second judge: {error}", file=sys.stderr)
    return found


def stage_one(config: Config, data: Dataset, seconds: float, n: int) -> Iterator[dict[str, Any]]:
    """A row for stage one with no judge, with the perceptual distance, and with a critic too."""
    truth, holes = data.val[:n], random_holes(VAL_HOLES, len(data.val))[:n]
    weight, referees = config.stage1.perceptual or 0.5, judges()
    references = features_of(truth, referees)
    perceptual = {"perceptual": (weight, PerceptualDistance(early_stages()))}
    tried: dict[str, Callable[[], dict]] = {
        "no judge": dict,
        f"perceptual {weight:g}": lambda: perceptual,
        f"perceptual {weight:g}, critic {CRITIC:g}": lambda: perceptual | {"adversarial": (CRITIC, PatchCritic())},
    }
    for name, chosen in tried.items():

        def begin(stage: TrainConfig, chosen: Callable = chosen) -> tuple[torch.nn.Module, Objective]:
            torch.manual_seed(config.seed)
            model = VQGAN(config.vqgan).to(memory_format=torch.channels_last)
            return model, VQGANObjective(data.train, config.vqgan, stage, config.seed, chosen())

        model, stage, spent = at_equal_time(begin, config.stage1, seconds)
        tokenizer = Tokenizer(model)
        pictures = tokenizer.decode(tokenizer.encode(truth))
        kept = paste_known(pictures, truth, holes, "poisson")
        row = {"stage one": name, "steps": stage.steps, "CPU s": round(spent), "PSNR (dB)": psnr_db(pictures, truth)}
        yield (
            row
            | {f"decoded, {k}": v for k, v in distances(pictures, references, referees).items()}
            | {f"known kept, {k}": v for k, v in distances(kept, references, referees).items()}
        )


def refiners(config: Config, data: Dataset, seconds: float, n: int) -> Iterator[dict[str, Any]]:
    """Rows for fills as they are and as a refiner corrects them that was trained on fills of that kind alone."""
    pair, referees = open_pair(replace(config, refiner=replace(config.refiner, steps=0)), data, "trained"), judges()
    truth, val_holes = data.val[:n], random_holes(VAL_HOLES, len(data.val))[:n]
    references = features_of(truth, referees)
    some = training_holes(config)
    holes = some.repeat(-(-len(data.train) // len(some)), 1, 1)[: len(data.train)]
    weight = config.refiner.perceptual or 0.5
    perceptual = {"perceptual": (weight, PerceptualDistance(early_stages()))}
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "navier_stokes": lambda images, missing: fill_holes(images, missing, "navier_stokes"),
        "the pair, one step": lambda images, missing: painted(pair, images, missing, config.decode, config.seed),
    }
    for name, way in ways.items():
        before, fills = way(truth, val_holes), way(data.train, holes)

        def begin(stage: TrainConfig, fills: Tensor = fills) -> tuple[torch.nn.Module, Objective]:
            torch.manual_seed(config.seed)
            model = Refiner().to(memory_format=torch.channels_last)
            return model, RefinerObjective(fills, data.train, holes, stage, config.seed, perceptual)

        model, stage, spent = at_equal_time(begin, config.refiner, seconds)
        for label, pictures in {name: before, f"{name}, refined": refine(model, before, val_holes)}.items():
            trained = {"steps": stage.steps, "CPU s": round(spent)} if pictures is not before else {}
            row = {"fill": label} | (trained or {"steps": None, "CPU s": None})
            row |= {"hole PSNR (dB)": hole_psnr_db(pictures, truth, val_holes)}
            yield row | distances(pictures, references, referees)


def on_test(config: Config, data: Dataset) -> Iterator[dict[str, Any]]:
    """A row for each judge and way to fill the test images whose truth is known, with known pixels kept.

    The last column is how much less than the best classical method's distance it is, times GOAL, with a 95 % interval
    for other images.
    """
    pair = open_pair(config, data, "trained")
    masked, holes = data.masked_test[data.whole], data.holes[data.whole]
    fills = {way: fill_holes(masked, holes, way) for way in ("navier_stokes", "telea")}
    decoded = inpaint_images(pair, masked, holes, config.decode, config.seed)
    fills["poisson"] = paste_known(decoded, masked, holes, "poisson")
    if pair.tokenizer.refiner is not None:
        once = replace(config.decode, steps=1, paste="refined")
        fills |= {f"{way}, refined": refine(pair.tokenizer.refiner, fills[way], holes) for way in list(fills)}
        fills["one shot, refined"] = inpaint_images(pair, masked, holes, once, config.seed)
    for name, judge in judges().items():
        scorer = Scorer(data, judge)
        outcomes = {way: scorer.outcome(pictures) for way, pictures in fills.items()}
        weights = resamples(len(masked), 200, torch.Generator().manual_seed(config.seed))
        measured = {way: resample({0: one}, "score", weights, scorer.reference) for way, one in outcomes.items()}
        best = min(("navier_stokes", "telea"), key=lambda way: measured[way].value.item())
        bar = Resampled((0,), *(GOAL * part for part in measured[best][1:4]))
        for way, outcome in outcomes.items():
            groups = {group: scorer.scores(outcome, who).score for group, who in scorer.groups.items()}
            gain = estimate(gap(measured[way], bar))
            yield (
                {"judge": name, "fill": way}
                | groups
                | {
                    "hole PSNR (dB)": scorer.scores(outcome).hole_psnr_db,
                    f"less {GOAL} {best}": f"{gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})",
                }
            )


def on_more(config: Config, data: Dataset, n: int) -> Iterator[dict[str, Any]]:
    """A row for each way to fill n photographs: the test images whose truth is known, and the last of validation.

    For zips that have the truth of fewer test images than others: a Fréchet distance falls as n grows.
    """
    pair = open_pair(config, data, "trained")
    lacking = max(0, n - int(data.whole.sum()))
    if lacking > len(data.val):
        raise ValueError(f"--more {n} is more than there are: {n - lacking} known and {len(data.val)} of validation")
    last = slice(len(data.val) - lacking, None)
    val_holes = random_holes(VAL_HOLES, len(data.val))[last]
    masked = torch.cat([data.masked_test[data.whole], fill_holes(data.val[last], val_holes, "grey")])
    truth = torch.cat([data.test[data.whole], data.val[last]])
    yield from _by_fill(config, pair, masked, truth, torch.cat([data.holes[data.whole], val_holes]))


def on_wide(config: Config, data: Dataset, n: int) -> Iterator[dict[str, Any]]:
    """A row for each way to fill a square of 32 x 32 pixels in the middle of n validation photographs.

    The test's holes are strokes, whose pixels lie by an edge; the middle of a square has to be invented.
    """
    truth = data.val[:n]
    holes = torch.zeros(len(truth), 64, 64, dtype=torch.bool)
    holes[:, 16:48, 16:48] = True
    pair = open_pair(config, data, "trained")
    yield from _by_fill(config, pair, fill_holes(truth, holes, "grey"), truth, holes)


def _by_fill(config: Config, pair: Pair, masked: Tensor, truth: Tensor, holes: Tensor) -> Iterator[dict[str, Any]]:
    """Rows for the baselines, and for the pair in one step and in all, as decoded and with known pixels kept."""
    referees, fills = judges(), baselines(truth, holes, pair.tokenizer)
    if pair.tokenizer.refiner is not None:
        for way in ("telea", "navier_stokes"):
            fills[f"{way}, refined"] = refine(pair.tokenizer.refiner, fills[way], holes)
    references = features_of(truth, referees)
    for name, steps in {"one shot": 1, f"T = {config.decode.steps}": config.decode.steps}.items():
        decoded = inpaint_images(pair, masked, holes, replace(config.decode, steps=steps, paste="none"), config.seed)
        fills[f"{name}, decoder only"] = decoded
        for way in dict.fromkeys(("poisson", best_paste(pair.tokenizer))):
            fills[f"{name}, {way}"] = keep_known(pair.tokenizer, decoded, masked, holes, way)
    for name, pictures in fills.items():
        row = {"fill": name, "hole PSNR (dB)": hole_psnr_db(pictures, truth, holes)}
        yield row | distances(pictures, references, referees)


def at_equal_time(
    begin: Callable[[TrainConfig], tuple[torch.nn.Module, Objective]], stage: TrainConfig, seconds: float
) -> tuple[torch.nn.Module, TrainConfig, float]:
    """A network trained for as many steps as fit into `seconds` of the CPU, its settings, and what it took."""
    lengths = {}
    for share in {getattr(stage, "autoencoder_share", 0.0), 0.0}:  # a plain autoencoder has no judges
        plan = replace(stage, steps=TRIED, warmup=0)
        if share:
            plan = replace(plan, autoencoder_share=1.0)
        elif hasattr(stage, "autoencoder_share"):
            plan = replace(plan, autoencoder_share=0.0)
        clock = [time.process_time() for _ in fit(*begin(plan), plan, seed=0)]
        lengths[share] = (clock[-1] - clock[1]) / (TRIED - 2)  # the first step makes what stays
    share = getattr(stage, "autoencoder_share", 0.0)
    length = share * lengths[share] + (1 - share) * lengths[0.0]
    steps = max(TRIED, round(seconds / length))
    stage = replace(stage, steps=steps, warmup=min(stage.warmup, steps // 10))
    model, objective = begin(stage)
    began = time.process_time()
    for step in fit(model, objective, stage, seed=0):
        if step.step % 100 == 0:
            print(f"    step {step.step} of {steps}, loss {step.loss:.3f}", file=sys.stderr, flush=True)
    return model, stage, time.process_time() - began


def features_of(pictures: Tensor, referees: dict[str, Features]) -> dict[str, Tensor]:
    return {name: judge.features(pictures.float() / 255) for name, judge in referees.items()}


def distances(pictures: Tensor, references: dict[str, Tensor], referees: dict[str, Features]) -> dict[str, float]:
    """The Fréchet distance on each judge's features, and the first one's KID of pairs."""
    row = {}
    for name, features in features_of(pictures, referees).items():
        row[name] = frechet_distance(features, references[name])
        if name == "imagenet":
            row["KID"] = kid(features, references[name], paired=True)
    return row


def main(words: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m bench.worth", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the lab's zip or folder, or any folder of photographs")
    parser.add_argument("--profile", default="cats-cpu")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the CPU for each training (default: 300)")
    parser.add_argument("--n", type=int, default=286, help="validation images (default: 286)")
    parser.add_argument("--more", type=int, default=570, help="test and validation photographs together (default: 570)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args(words)
    try:
        config = configure(args.profile, device="cpu", **{"data.path": args.data})
        data = get_dataset(config)
        if data.attributes:
            raise ValueError("--data must name photographs: toy cats have a network of their own to judge with")
        torch.set_num_threads(1)
        n = min(args.n, len(data.val))
        parts = {
            "stage1": stage_one(config, data, args.seconds, n),
            "refiner": refiners(config, data, args.seconds, n),
            "test": on_test(config, data),
            "more": on_more(config, data, args.more),
            "wide": on_wide(config, data, n),
        }
        known = int(data.whole.sum())
        more = max(known, args.more)
        images = dict.fromkeys(parts, f"{n} validation images") | {
            "test": f"{known} test images",
            "more": f"{more}, {known} test images and the last {more - known} of validation",
        }
        for part, rows in parts.items():  # nothing is computed before it is asked for
            if part in args.only:
                print_table(list(rows))
                print(f"n = {images[part]}, seed {config.seed}, profile {args.profile}, cpu\n", flush=True)
    except (ValueError, OSError) as error:
        print(f"bench.worth: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
