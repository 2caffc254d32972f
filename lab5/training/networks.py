"""The networks of a run, each trained once and from then on found on disk: VQGAN, transformer, refiner, classifier.

The functions `train_...` give a `Training`: iterate it to train, or to learn that it is done already. `open_pair`
gives the two networks that a notebook decodes with, and says where they are from.
"""

import dataclasses
import hashlib
import json
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from lab5 import checkpoint
from lab5.config import Config
from lab5.data.dataset import Dataset, token_mask
from lab5.data.holes import fill_holes
from lab5.data.layouts import dataset_root, split_holes
from lab5.data.toycats import ATTRIBUTES, random_holes, render
from lab5.inpainting.pair import Pair, load_pair, make_pair, weights_digest
from lab5.inpainting.refiner import Refiner, load_refiner, refine, save_refiner
from lab5.inpainting.tokenizer import Tokenizer, reconstruction_psnr_db
from lab5.objectives import MVTMObjective, VQGANObjective, validate
from lab5.runtime.files import load_meta
from lab5.runtime.folders import data_folder, pretrained_folder
from lab5.runtime.ranks import here
from lab5.scoring.classifier import AttributeObjective, ToyFeatures, load_classifier, save_classifier
from lab5.scoring.imagenet import early_stages
from lab5.scoring.scores import hole_psnr_db
from lab5.training.critics import PatchCritic, PerceptualDistance
from lab5.training.refining import RefinerObjective, in_one_step, painted
from lab5.training.session import Given, Kind, Training
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

VAL_HOLES = 3_000_000  # seed of the holes in validation images
TOYS = "toycats"


def train_vqgan(config: Config, data: Dataset) -> Training | Given:
    """Stage one; with `stage1.file` it is that file's, and nothing is trained."""
    stage = config.stage1
    if stage.file:
        return given_vqgan(config, Path(stage.file))
    settings = {"vqgan": dataclasses.asdict(config.vqgan), "data": data.fingerprint}
    if stage.accumulate > 1:  # until then they did with each batch
        settings["codes"] = "follow at the end of a step"
    if stage.adversarial and here().world > 1:
        raise ValueError("stage1.adversarial trains a critic batch after batch, as only one process can: set it to 0")
    judges = _judges(stage.perceptual, data, settings)

    def objective() -> VQGANObjective:
        if stage.adversarial:
            judges["adversarial"] = (stage.adversarial, PatchCritic())
        return VQGANObjective(data.train, config.vqgan, stage, config.seed, judges)

    kind = Kind(
        "vqgan",
        build=lambda: VQGAN(config.vqgan),
        objective=objective,
        save=partial(checkpoint.save_vqgan, dataset=name_of(data)),
        load=checkpoint.load_vqgan,
        check=lambda model: {"val_psnr_db": reconstruction_psnr_db(model, data.val[:128], min(64, stage.batch))},
        best_by="val_psnr_db",
    )
    return Training(kind, stage, settings, seed=config.seed, device=config.device)


def _judges(weight: float, data: Dataset, settings: dict[str, Any]) -> dict[str, tuple[float, nn.Module]]:
    """With a weight, the perceptual distance by a network that knows such images; `settings` get its hash."""
    if not weight:
        return {}
    toys = load_classifier().body if data.attributes else ()
    judge = PerceptualDistance([toys[i : i + 3] for i in (0, 3, 6)] if toys else early_stages())
    settings["judge"] = weights_digest(judge)
    return {"perceptual": (weight, judge)}


def given_vqgan(config: Config, file: Path) -> Given:
    """A stage one that is trained already. Raises ValueError where the transformer's settings do not fit it."""
    model = checkpoint.load_vqgan(file).to(config.device)
    if model.codes != config.transformer.codes:
        raise ValueError(f"{file} has {model.codes} codes, but transformer.codes = {config.transformer.codes}")
    hints = model.config.latent + 16
    if config.transformer.hints not in (0, hints):
        raise ValueError(f"transformer.hints = {config.transformer.hints} must be 0 or {hints} for {file}")
    return Given("vqgan", file, model)


def token_cache(config: Config, tokenizer: Tokenizer, data: Dataset) -> Int[Tensor, "n N"]:
    """Tokens of the training images and of their mirror images, from disk where they are valid."""
    folder = data_folder() / "cache"
    with here().in_turn():
        return torch.cat([tokenizer.cached(images, folder, "train") for images in (data.train, data.train.flip(3))])


def train_transformer(config: Config, data: Dataset, tokenizer: Tokenizer) -> Training:
    settings = {
        "transformer": dataclasses.asdict(config.transformer),
        "data": data.fingerprint,
        "tokenizer": tokenizer.weights_hash,
    }
    if config.stage2.start:
        start = Path(config.stage2.start)
        if not start.is_file():
            raise FileNotFoundError(f"stage2.start = {start} is no file; it names a transformer to begin with")
        settings["start"] = hashlib.sha256(start.read_bytes()).hexdigest()[:12]
    hinted = bool(config.transformer.hints)
    held_out = cache(lambda: validation(tokenizer, data, hinted))  # looked at ten times in a training

    def objective() -> MVTMObjective:
        images, holes = torch.cat([data.train, data.train.flip(3)]), training_holes(config)

        def hints(image: Tensor, hole: Tensor) -> Tensor:
            return tokenizer.hints_there(fill_holes(images[image], holes[hole], "navier_stokes"), holes[hole])

        tokens = token_cache(config, tokenizer, data)
        return MVTMObjective(tokens, config.stage2, config.seed, token_mask(holes), hints if hinted else None)

    kind = Kind(
        "transformer",
        build=lambda: _begin_transformer(config),
        objective=objective,
        save=partial(checkpoint.save_transformer, dataset=name_of(data)),
        load=checkpoint.load_transformer,
        check=lambda model: {
            f"val_{k}": v for k, v in validate(model, *held_out(), batch=min(64, config.stage2.batch)).items()
        },
        best_by="-val_loss",
    )
    return Training(kind, config.stage2, settings, seed=config.seed, device=config.device)


def _begin_transformer(config: Config) -> BidirectionalTransformer:
    """Random weights, or those of `stage2.start`, which may know nothing of hints yet."""
    model = BidirectionalTransformer(config.transformer)
    if config.stage2.start:
        model.load_state_dict(model.state_dict() | load_start(config).state_dict())
    return model


def load_start(config: Config) -> BidirectionalTransformer:
    """The network of `stage2.start`. Raises ValueError where it is of another shape than the one to train."""
    model = checkpoint.load_transformer(Path(config.stage2.start))
    theirs, ours = (dataclasses.asdict(one) for one in (model.config, config.transformer))
    fixed = ["codes", "positions", "width", "layers", "heads", "hidden", "norm"] + ["hints"] * bool(theirs["hints"])
    if differ := [f"{name} = {theirs[name]}, not {ours[name]}" for name in fixed if theirs[name] != ours[name]]:
        others = "; ".join(differ)
        raise ValueError(f"{config.stage2.start} does not fit and is no transformer to begin with: it has {others}")
    return model


def validation(tokenizer: Tokenizer, data: Dataset, hinted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens of 256 validation images, masks and hints of holes that stay the same whenever they are asked for.

    Known tokens are those that decoding meets, encoded from images with holes: some of a whole image's tokens have
    seen what lies in the hole beside them. Hidden ones are those of the whole image.
    """
    images, folder = data.val[:256], data_folder() / "cache"
    holes = random_holes(VAL_HOLES, len(images))
    filled, hidden = fill_holes(images, holes, "navier_stokes" if hinted else "grey"), token_mask(holes)
    whole, met = (tokenizer.cached(x, folder, name) for x, name in ((images, "val"), (filled, "val-filled")))
    return torch.where(hidden, whole, met), hidden, tokenizer.hints(filled, holes) if hinted else None


def training_holes(config: Config) -> Tensor:
    """Holes like the test's, from a seed of their own."""
    return random_holes(1_000_000 + config.seed, min(4096, config.data.train))


def train_refiner(config: Config, data: Dataset, pair: Pair) -> Training:
    """What corrects the pair's fills, on those of training images with known pixels kept."""
    n, val = len(data.train), data.val[:128]
    some = training_holes(config)
    holes = torch.cat([some, some.flip(2)]).repeat(-(-n // (2 * len(some))), 1, 1)[:n]
    val_holes = random_holes(VAL_HOLES, len(val))
    decode = dataclasses.asdict(in_one_step(config.decode))
    settings = {"pair": pair.weights, "data": data.fingerprint, "decode": decode}
    judges = _judges(config.refiner.perceptual, data, settings)
    val_painted = cache(lambda: painted(pair, val, val_holes, config.decode, config.seed))

    def objective() -> RefinerObjective:
        with here().in_turn():
            fills = painted(pair, data.train, holes, config.decode, config.seed)
        return RefinerObjective(fills, data.train, holes, config.refiner, config.seed, judges)

    kind = Kind(
        "refiner",
        build=Refiner,
        objective=objective,
        save=partial(save_refiner, dataset=name_of(data)),
        load=load_refiner,
        check=lambda model: {"val_hole_psnr_db": hole_psnr_db(refine(model, val_painted(), val_holes), val, val_holes)},
        best_by="val_hole_psnr_db",
    )
    return Training(kind, config.refiner, settings, seed=config.seed, device=config.device)


def given_refiner(file: Path, pair: Pair) -> Refiner:
    """A refiner that is trained already. Raises ValueError where it has learned from fills of another pair."""
    refiner, settings = load_refiner(file), load_meta(file).get("settings")
    learned = settings.get("pair") if isinstance(settings, dict) else None
    theirs = str(learned or "").split()[-1:]
    if theirs not in ([], pair.weights.split()[-1:]):
        raise ValueError(f"{file} was trained on fills of the networks {theirs[0]}, not of these, {pair.weights}")
    return refiner


def train_classifier(config: Config, tokenizer: Tokenizer | None = None) -> Training:
    """The attribute classifier, on cats whose halves differ and on ordinary ones, from seeds of their own.

    With a tokenizer a share of the cats, `classifier.returned`, is seen as they return from their tokens: features then
    tell what is in a picture, not whether it was compressed, as Inception's do, which was trained on JPEG files.
    """
    settings = {"images": config.classifier.images, "tokenizer": tokenizer and tokenizer.weights_hash}

    def objective() -> AttributeObjective:
        half = config.classifier.images // 2
        both = [render(2_000_000 + config.seed + i, half, chimera=bool(i)) for i in (0, 1)]
        labels = {name: torch.cat([cats.attributes[name] for cats in both]) for name in ATTRIBUTES}
        images = torch.cat([cats.images for cats in both])
        if tokenizer is not None and (share := config.classifier.returned):
            evenly = torch.arange(len(images)) * share % 1 < share
            images[evenly] = tokenizer.decode(tokenizer.encode(images[evenly]))
        return AttributeObjective(images, labels, config.classifier.batch, config.seed)

    def save(path: Path, model: ToyFeatures, **meta: Any) -> None:
        model.calibrate(render(2_000_002 + config.seed, 2048).images.float() / 255)
        save_classifier(path, model, **meta)

    kind = Kind(
        "classifier",
        build=lambda: ToyFeatures({n: len(v) for n, v in ATTRIBUTES.items()}, config.classifier.features),
        objective=objective,
        save=save,
        load=load_classifier,
    )
    return Training(kind, config.classifier, settings, seed=config.seed, device=config.device)


def open_pair(config: Config, data: Dataset, weights: str = "pretrained") -> Pair:
    """The committed pair ("pretrained"), or the one that this profile trains ("trained"), training it if need be."""
    if weights == "pretrained":
        if not data.attributes:
            raise ValueError(f"the pretrained pair knows toy cats only: for {data.name} take weights 'trained'")
        folder = pretrained_folder()
        return load_pair(config, folder / "vqgan.safetensors", folder / "transformer.safetensors", weights)
    if weights == "trained":
        tokenizer = Tokenizer(_trained(train_vqgan(config, data)))
        pair = make_pair(tokenizer, _trained(train_transformer(config, data, tokenizer)), weights)
        if config.refiner.steps:
            tokenizer.refiner = _trained(train_refiner(config, data, pair))
        return pair
    raise ValueError(f"weights must be 'pretrained' or 'trained', not {weights!r}")


def _trained(training: Training | Given) -> nn.Module:
    """Its network. Where that takes minutes there is a bar: whoever asked for a pair did not ask for a training."""
    if training.reused:
        return training.run().model
    for _ in tqdm(training, desc=f"training {training.name} first", file=sys.stderr, mininterval=1):
        pass
    return training.model


# --- what a network has learned from ----------------------------------------------------------------------------


def name_of(data: Dataset) -> str:
    """Of a dataset, as its networks keep it: a folder of one's own may be called toycats too."""
    return TOYS if data.attributes else f"the images of {data.name}"


def name_of_path(path: str) -> str:
    """The same by the path of a dataset that has not been opened."""
    if path == TOYS:
        return TOYS
    return f"the images of {dataset_root(Path(split_holes(path)[0]).expanduser()).resolve().stem}"


def learned_from(file: Path) -> str:
    """The dataset that the network of a file was trained on; "" where neither the file nor a training.json says so."""
    try:
        if dataset := load_meta(file).get("dataset"):
            return str(dataset)
    except ValueError:  # a file of the lab's
        pass
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for folder in (file.parent, pretrained_folder()):
        try:
            entries = json.loads((folder / "training.json").read_text(encoding="utf-8")).values()
            for entry in entries:
                if entry["sha256"] == digest:
                    return name_of_path(entry["config"]["data"]["path"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # without the record nothing is known
            continue
    return ""
