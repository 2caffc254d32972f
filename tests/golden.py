"""Results as they are to stay: `python tests/golden.py` computes them anew and writes tests/golden.json.

Whoever changes results on purpose counts up the constant beside what was changed (`toycats.VERSION`, `session.CODE`,
`run.CODE`), so that what is kept on disk is made again, and then runs this. test_golden.py notices a change without.
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from lab5.config import DecodeConfig
from lab5.data import toycats
from lab5.data.dataset import get_dataset, token_mask
from lab5.data.toycats import random_holes, render
from lab5.inpainting.fill import decode_holes, to_pictures
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import INPAINTING, configure
from lab5.scoring.classifier import load_classifier
from lab5.scoring.scores import Scorer
from lab5.study import run
from lab5.training import session
from lab5.training.networks import open_pair, train_classifier, train_transformer, train_vqgan

FILE = Path(__file__).parent / "golden.json"
N = 4
LAB = DecodeConfig(order="lab", choice_temperature=4.5)
DECODINGS = {
    "ours, two passes with hints": INPAINTING,
    "the lab's, sampled": LAB,
    "the lab's, argmax": replace(LAB, codes="argmax"),
    "halton": replace(INPAINTING, order="halton"),
    "entropy budget": replace(INPAINTING, budget="entropy"),
    "re-masking and correcting rounds": replace(INPAINTING, remask=0.1, rounds=1),
}
TINY = {
    "data.train": 32, "data.val": 8, "data.test": N, "classifier.images": 32, "seed": 1,
    **{f"{stage}.{name}": value for stage in ("stage1", "stage2", "classifier")
       for name, value in {"steps": 8, "batch": 8, "warmup": 2}.items()},
}  # fmt: skip


def versions() -> dict[str, int]:
    """The constants by which results on disk are named."""
    return {"toy cats": toycats.VERSION, "trainings": session.CODE, "decodings and scores": run.CODE}


def cats() -> dict:
    """Means of pictures and the sizes of holes."""
    return {
        "images": render(11, N).images.double().mean((2, 3)).flatten().tolist(),
        "holes": random_holes(12, N).sum((1, 2)).tolist(),
    }


def decodings() -> dict:
    """The hidden tokens at the end of each way of decoding, and the scores of the first."""
    config = configure("quick", device="cpu", **{"data.train": 1, "data.val": 1, "data.test": N, "stage1.batch": 1,
                                                 "stage2.batch": 1})  # fmt: skip
    data = get_dataset(config)
    pair = open_pair(config, data)
    unknown = token_mask(data.holes)
    results: dict = {"tokens": {}}
    for name, decoding in DECODINGS.items():
        *_, last = decode_holes(pair, data.masked_test, data.holes, decoding, 3)
        results["tokens"][name] = last.filled[unknown].tolist()
        if "scores" not in results:
            pictures = to_pictures(pair.tokenizer, last.filled, data.masked_test, data.holes, decoding)
            scores = Scorer(data, load_classifier(), tokenizer=pair.tokenizer)(pictures)
            results["scores"] = {key: getattr(scores, key) for key in ("kid", "score", "hole_psnr_db", "ssim", "seam")}
    return results


def trainings() -> dict:
    """Losses and the size of the weights after a few steps of each training."""
    config = configure("smoke", device="cpu", **TINY)
    data = get_dataset(config)
    vqgan = train_vqgan(config, data).run()
    tokenizer = Tokenizer(vqgan.model)
    done = [vqgan, train_transformer(config, data, tokenizer).run(), train_classifier(config, tokenizer).run()]
    return {
        training.name: {
            "losses": [step.loss for step in training.history],
            "weights": sum(float(p.detach().double().abs().sum()) for p in training.model.parameters()),
        }
        for training in done
    }


PARTS = {"toy cats": cats, "trainings": trainings, "decodings and scores": decodings}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LAB5_DATA"] = folder
        torch.set_num_threads(2)
        content = {name: {"version": versions()[name], "results": part()} for name, part in PARTS.items()}
    FILE.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(f"{FILE}: {', '.join(f'{name} {number}' for name, number in versions().items())}", file=sys.stderr)
