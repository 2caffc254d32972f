"""`python -m bench.day`: both networks of a profile trained for so many seconds each, its test images filled by them.

How many steps that is, is found out first, from a few of them; from then on it is a training as any other, by its
settings, which are printed and written. Cats are toy cats: nothing is downloaded.
"""

import json
import sys
import time
from argparse import ArgumentParser
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from bench.cost import profile_flops
from bench.measure import device_name
from lab5.config import Config, DecodeConfig, all_settings
from lab5.data.dataset import Dataset, get_dataset
from lab5.inpainting.fill import baselines, inpaint_images
from lab5.inpainting.pair import Pair, make_pair
from lab5.inpainting.tokenizer import Tokenizer, reconstruction_psnr_db
from lab5.profiles import PROFILES, configure
from lab5.runtime.files import write
from lab5.scoring.classifier import get_features
from lab5.scoring.scores import Scorer
from lab5.study.plans import one_shot
from lab5.training.networks import train_transformer, train_vqgan
from lab5.training.session import Training

LOOKED_AT = 15  # steps from which the speed of a training is told, the first five left out


def main(words: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m bench.day", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--device", help="else the one that the profile takes")
    parser.add_argument("--seconds", type=float, nargs=2, default=(120, 180), help="of stage one, of stage two")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="as in python -m lab5 train")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file of what is printed")
    parser.add_argument("--keep", type=Path, help="a folder for the weights of both")
    args = parser.parse_args(words)
    changes = dict(word.partition("=")[::2] for word in args.set)
    try:
        result = run(configure(args.profile, device=args.device, **changes), *args.seconds, args.keep)
    except (ValueError, OSError, MemoryError) as error:
        print(f"bench.day: {error}", file=sys.stderr)
        return 2
    write(args.out, (json.dumps(result, indent=2) + "\n").encode())
    return 0


def run(config: Config, first: float, second: float, keep: Path | None = None) -> dict[str, Any]:
    """Train, fill, score; every number is printed as soon as it is there."""
    result: dict[str, Any] = {"device": device_name(torch.device(config.device)), "profile": config.profile}

    def tell(name: str, value: Any) -> None:
        result[name] = value
        print(f"{name}: {value}", flush=True)

    data = get_dataset(config)
    print(f"{result['device']}, profile {config.profile}", flush=True)
    config = in_seconds(config, "stage1", first, lambda config: train_vqgan(config, data))
    vqgan = train_vqgan(config, data)
    tell("stage one", trained(vqgan, profile_flops(config)["stage one"]))
    tokenizer = Tokenizer(vqgan.model)
    tell("reconstruction_psnr_db", round(reconstruction_psnr_db(tokenizer.vqgan, data.val[:128]), 2))
    config = in_seconds(config, "stage2", second, lambda config: train_transformer(config, data, tokenizer))
    transformer = train_transformer(config, data, tokenizer)
    tell("stage two", trained(transformer, profile_flops(config)["stage two"]))
    pair = make_pair(tokenizer, transformer.model, "trained")
    result |= {"weights": pair.weights, "config": asdict(config)}
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for training in (vqgan, transformer):
            write(keep / training.file.name, training.file.read_bytes())
    fill(config, data, pair, tell)
    return result


def in_seconds(config: Config, stage: str, seconds: float, training: Any) -> Config:
    """The same settings with as many steps as fit, by the speed of the first ones of such a training."""
    steps = {"warmup": min(getattr(config, stage).warmup, 5)}
    probe = training(changed(config, stage, steps | {"steps": 10**6}))
    with closing(iter(probe)) as running:
        taken = [step.seconds for step in islice(running, LOOKED_AT)]
    probe.forget()
    each = (taken[-1] - taken[4]) / (len(taken) - 5)
    steps = max(20, int(seconds / each))
    return changed(config, stage, {"steps": steps, "warmup": min(getattr(config, stage).warmup, steps // 10)})


def changed(config: Config, stage: str, values: dict[str, Any]) -> Config:
    settings = {f"{stage}.{name}": value for name, value in values.items()}
    return configure(config.profile, **(all_settings(config) | settings))


def trained(training: Training, flops: float) -> dict[str, float]:
    """Train it, or find it trained."""
    training.run()
    images = training.config.steps * training.config.batch * training.config.accumulate
    return {
        "steps": training.config.steps,
        "batch": training.config.batch * training.config.accumulate,
        "seconds": round(training.seconds, 1),
        "images_per_second": round(images / training.seconds, 1),
        "tflops_per_second": round(flops / training.seconds / 1e12, 2),
        "last_loss": round(training.history[-1].loss, 4),
    }


def fill(config: Config, data: Dataset, pair: Pair, tell: Any) -> None:
    """All test images in the profile's way, in one shot, and the baselines, each with its scores."""
    scorer = Scorer(data, get_features(config, pair.tokenizer), tokenizer=pair.tokenizer)
    tell("score_name", scorer.score_name)
    ways: dict[str, DecodeConfig] = {f"T = {config.decode.steps}": config.decode, "one shot": one_shot(config.decode)}
    for name, decode in ways.items():
        inpaint_images(pair, scorer.truth[: decode.batch], scorer.holes[: decode.batch], decode, 0)  # it warms up
        began = time.perf_counter()
        pictures = inpaint_images(pair, scorer.truth, scorer.holes, decode, 0)
        seconds = time.perf_counter() - began
        tell(name, {"seconds": round(seconds, 3)} | rounded(scorer(pictures)._asdict()))
    for name, pictures in baselines(scorer.truth, scorer.holes, pair.tokenizer).items():
        tell(name, rounded(scorer(pictures)._asdict()))


def rounded(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in scores.items()}


if __name__ == "__main__":
    sys.exit(main())
