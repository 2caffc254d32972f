"""What the command line does: train, inpaint, fid and study, from settings to files and lines of text.

Results are printed on stdout, progress on stderr. Files appear whole or not at all. Bad input raises ValueError
or FileNotFoundError, with one sentence, before anything is computed where that is possible.

It knows no arguments, and computes nothing itself: each command is a few calls of the rooms below.
"""

import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lab5.config import Config
from lab5.data import Dataset
from lab5.fid import InceptionFeatures, ToyFeatures, frechet_distance, kid, with_spread
from lab5.files import list_images
from lab5.objectives import validate
from lab5.pipeline import (
    Pair,
    get_dataset,
    get_features,
    load_classifier,
    load_pair,
    open_pair,
    train_classifier,
    train_transformer,
    train_vqgan,
    validation_tokens,
)
from lab5.scores import Scorer
from lab5.study import baselines, decode_holes, len_study, run_study, summary, to_pictures
from lab5.tokenizer import Tokenizer, reconstruction_psnr_db
from lab5.toycats import render
from lab5.training import Training

TOYCATS_TEST = "toycats-test"


# --- train ------------------------------------------------------------------------------------------------------------


def train(config: Config, stage: str, out: Path | None) -> None:
    """Train the "vqgan", with it the "transformer" or the "classifier", or "all"; or find them trained.

    Each is measured on images it has not seen. With `out` the files are copied there at the end, all together.
    For photographs "all" goes without the classifier, which reads toy cats.
    """
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # complain now, not after the training
        _read_entries(out)
    data = get_dataset(config)
    trained = [watched(train_vqgan(config, data))]
    tokenizer = Tokenizer(trained[0].model)
    psnr = reconstruction_psnr_db(tokenizer.vqgan, data.val)
    quality: dict[str, dict[str, float]] = {"vqgan": {"val_psnr_db": psnr, "n": len(data.val)}}
    if stage in ("transformer", "all"):
        trained.append(watched(train_transformer(config, data, tokenizer)))
        tokens, masked = validation_tokens(tokenizer, data)
        found = validate(trained[-1].model, tokens, masked)
        quality["transformer"] = {f"val_{name}": value for name, value in found.items()} | {"n": len(tokens)}
    if stage == "classifier" or stage == "all" and data.name == "toycats":
        trained.append(watched(train_classifier(config, tokenizer)))
        quality["classifier"] = attribute_accuracy(trained[-1].model)
    for training in trained:
        print(f"{training.name}: {training.file}")
        reached = ", ".join(f"{name} {value:.4g}" for name, value in quality[training.name].items())
        print(textwrap.fill(reached, 100, initial_indent="    ", subsequent_indent="    "))
    if out is not None:
        _hand_over(trained, quality, config, out)


def watched(training: Training) -> Training:
    """Train behind a progress bar, or say that there was nothing to train."""
    if training.reused:
        print(f"{training.name}: reused, trained before with the same settings", file=sys.stderr)
        return training.run()
    with tqdm(total=len(training), desc=training.name, unit="step", mininterval=1) as bar:
        for step in training:
            if bar.n == 0:
                bar.initial = bar.n = step.step - 1  # a run that was cut short begins further on
            bar.set_postfix(loss=f"{step.loss:.4f}", lr=f"{step.lr:.1e}", refresh=False)
            bar.update()
    return training


def attribute_accuracy(classifier: ToyFeatures, n: int = 512) -> dict[str, float]:
    """The share of n unseen cats of whom an attribute is read rightly, for each, and the mean of all."""
    cats = render(4_000_000, n)
    read = classifier.predict(cats.images.float() / 255)
    right = {name: (read[name] == classes).float().mean().item() for name, classes in cats.attributes.items()}
    return right | {"mean": sum(right.values()) / len(right), "n": n}


def _hand_over(trained: list[Training], quality: dict[str, dict[str, float]], config: Config, out: Path) -> None:
    """Copy the networks, and put into training.json how they came about; entries of others stay."""
    entries = _read_entries(out)
    for training in trained:
        content = training.file.read_bytes()
        _replace(out / f"{training.name}.safetensors", content)
        entries[training.name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "seed": config.seed,
            "seconds": round(training.seconds, 1),
            "device": config.device,
            "torch": torch.__version__,
            "quality": {name: round(value, 4) for name, value in quality[training.name].items()},
            "config": dataclasses.asdict(config),
        }
    _replace(out / "training.json", (json.dumps(entries, indent=2) + "\n").encode())
    print(f"copied to {out}")


def _read_entries(out: Path) -> dict[str, Any]:
    file = out / "training.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON any more (line {error.lineno}): remove it and run again") from error


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --- inpaint and study ------------------------------------------------------------------------------------------------


def inpaint(
    config: Config, out: Path, *, n: int | None, seed: int | None, overwrite: bool,
    weights: str, vqgan: Path | None, transformer: Path | None,
) -> None:  # fmt: skip
    """Fill the holes of the first `n` test images into `out`/test_results, and score them where truth is known."""
    folder = out / "test_results"
    if not overwrite and any(folder.glob("image_*.png")):
        raise ValueError(f"{folder} holds results already: choose another --out, or replace them with --overwrite")
    data = get_dataset(config)
    n = len(data.test) if n is None else n
    if not 1 <= n <= len(data.test):
        raise ValueError(f"--n must lie in 1..{len(data.test)}, the number of test images, not {n}")
    pair = _pair(config, data, weights, vqgan, transformer)
    known = int(data.whole[:n].sum())
    scorer = Scorer(data, get_features(config, pair.tokenizer), known) if known > 1 else None
    seed = config.seed if seed is None else seed
    images, holes = data.masked_test[:n], data.holes[:n]
    out.mkdir(parents=True, exist_ok=True)  # complain now, not after the decoding
    states = decode_holes(pair, images, holes, config.decode, seed)
    for state in tqdm(states, total=(config.decode.stop_at or config.decode.steps) + 1, desc="decoding"):
        filled = state.filled
    pictures = to_pictures(pair.tokenizer, filled, images, holes, config.decode.passes)
    _write_pictures(pictures, folder)
    print(f"{n} pictures in {folder}: weights {pair.weights}, seed {seed}, device {config.device}, {config.decode}")
    if scorer is None:
        print("no scores: they need at least two of these images whose truth under the hole is known")
        return
    print(f"score: {scorer.score_name}, lower is better")
    rows = {"this run": pictures[scorer.places]} | baselines(scorer.truth, scorer.holes, pair.tokenizer)
    print_table([{"method": name} | scorer(images)._asdict() for name, images in rows.items()])


def _pair(config: Config, data: Dataset, weights: str, vqgan: Path | None, transformer: Path | None) -> Pair:
    if (vqgan is None) != (transformer is None):
        raise ValueError("--vqgan and --transformer belong together: give both files, or neither")
    if vqgan is not None and transformer is not None:
        return load_pair(config, vqgan, transformer, transformer.stem)
    if weights == "trained":  # here, where progress is shown; open_pair then finds them
        tokenizer = Tokenizer(watched(train_vqgan(config, data)).model)
        watched(train_transformer(config, data, tokenizer))
    return open_pair(config, data, weights)


def _write_pictures(pictures: UInt8[Tensor, "n 3 H W"], folder: Path) -> None:
    """`image_000.png` and so on in place of earlier ones, once all of them are on disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
        for i, picture in enumerate(pictures):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(Path(part) / f"image_{i:03d}.png")
        folder.mkdir(exist_ok=True)
        for old in folder.glob("image_*.png"):
            old.unlink()
        for file in sorted(Path(part).iterdir()):
            os.replace(file, folder / file.name)


def study(config: Config, table: Path, *, weights: str, vqgan: Path | None, transformer: Path | None) -> None:
    """Run the study of `config`, rows kept in `table`; print mean and SD over seeds for every schedule, T and t."""
    data = get_dataset(config)
    pair = _pair(config, data, weights, vqgan, transformer)
    scorer = Scorer(data, get_features(config, pair.tokenizer), config.study.images)
    decodings = run_study(pair, scorer, config.study, config.decode, table=table)
    rows = [row for part in tqdm(decodings, total=len_study(config.study), desc="decodings") for row in part]
    print(f"score: {scorer.score_name}, lower is better; mean ± SD over seeds")
    print(
        f"n = {len(scorer.truth)}, seeds {config.study.seeds}, weights {pair.weights}, profile {config.profile}, "
        f"device {config.device}"
    )
    lines = []
    for line in summary(rows, ("schedule", "steps", "stop_at")):
        values = {name: _with_sd(line, name) for name in ("score", "hole_psnr_db")}
        lines.append({"schedule": line["schedule"], "T": line["steps"], "t": line["stop_at"]} | values)
    print_table(lines)


def _with_sd(line: dict[str, Any], column: str) -> str:
    mean = f"{line[f'{column}_mean']:.3f}"
    return f"{mean} ± {line[f'{column}_sd']:.3f}" if line["seeds"] > 1 else mean


def print_table(rows: list[dict[str, Any]]) -> None:
    """A column per key of the first row; texts to the left, numbers to the right, floats with three decimals."""
    cells = [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(list(rows[0]), *cells, strict=True)]
    left = [isinstance(value, str) for value in rows[0].values()]
    for line in [list(rows[0]), *cells]:
        padded = (c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(line, widths, left, strict=True))
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


# --- fid --------------------------------------------------------------------------------------------------------------


def fid(first: str, second: str, features: str, config: Config, n: int | None = None) -> None:
    """The Fréchet distance and the KID of two sets of images: folders, or "toycats-test".

    `features` is "inception" or "toy". The toy test images are cut to the number of the other set; two folders
    of unequal numbers are refused, because the distance grows as n falls.
    """
    a, b = (_image_set(name, config)[:n] for name in (first, second))
    if first == TOYCATS_TEST:
        a = a[: len(b)]
    if second == TOYCATS_TEST:
        b = b[: len(a)]
    if len(a) != len(b):
        raise ValueError(
            f"{first} has {len(a)} images and {second} has {len(b)}, but the distance grows as n falls: "
            "compare equal numbers, such as the first ones of each with --n"
        )
    if len(a) < 4:
        raise ValueError(f"a set needs at least 4 images, found {len(a)}")
    if features == "toy" and {a.shape[2:], b.shape[2:]} != {(64, 64)}:
        raise ValueError("toy features are those of 64x64 images; other sizes need --features inception")
    network = (InceptionFeatures() if features == "inception" else load_classifier()).to(config.device)
    x, y = (network.features(images.float() / 255) for images in (a, b))
    value, spread = with_spread(kid, x, y, generator=torch.Generator().manual_seed(0))
    print(f"n = {len(a)}")
    print(f"{network.score_name} = {frechet_distance(x, y):.4f}")
    print(f"KID = {value:.6f} ± {spread:.6f} (SD owed to the choice of the images)")


def _image_set(name: str, config: Config) -> UInt8[Tensor, "n 3 H W"]:
    """The toy cats' test images, or all images of a folder, in the order of their names."""
    if name == TOYCATS_TEST:
        return get_dataset(config).test
    folder = Path(name)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; a set is a folder of images or {TOYCATS_TEST}")
    images = []
    for file in list_images(folder)[0]:
        try:
            images.append(np.asarray(Image.open(folder / file).convert("RGB")))
        except OSError as error:
            raise ValueError(f"{file} in {folder} is not a readable image") from error
    if len(sizes := {f"{image.shape[1]}x{image.shape[0]}" for image in images}) > 1:
        raise ValueError(f"{folder} holds images of several sizes ({', '.join(sorted(sizes))}); a set needs one size")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
