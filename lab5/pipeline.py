"""The chain of a run: dataset, VQGAN, tokens, transformer, classifier; each trained once and then found on disk.

The functions `train_...` give a `Training`: iterate it to train, or to learn that it is done already. `open_pair`
gives the two networks that a notebook decodes with, and says where they are from.

It does not know how anything is trained, decoded or drawn.
"""

import dataclasses
import hashlib
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from lab5 import checkpoint
from lab5.config import Config, data_folder, pretrained_folder
from lab5.critics import PerceptualDistance
from lab5.data import Dataset, open_dataset, token_mask
from lab5.features import EncoderFeatures, Features, InceptionFeatures, ToyFeatures
from lab5.objectives import AttributeObjective, MVTMObjective, VQGANObjective, validate
from lab5.tokenizer import Tokenizer, reconstruction_psnr_db
from lab5.toycats import ATTRIBUTES, random_holes, render
from lab5.training import Given, Training
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN


def get_dataset(config: Config) -> Dataset:
    """The dataset of a run, rendered or decoded once and cached."""
    data = config.data
    sizes = {"n_train": data.train, "n_val": data.val, "n_test": data.test}
    return open_dataset(data.path, **sizes, seed=data.seed, cache=data_folder() / "cache")


def train_vqgan(config: Config, data: Dataset) -> Training | Given:
    """Stage one; with `stage1.file` it is that file's, and nothing is trained."""
    if config.stage1.file:
        return given_vqgan(config, Path(config.stage1.file))
    settings = {"vqgan": dataclasses.asdict(config.vqgan), "data": data.fingerprint}
    perceptual = None
    if config.stage1.perceptual and data.attributes:
        perceptual = PerceptualDistance(load_classifier().body[:9])  # its three finest maps
        settings["judge"] = _weights_hash(perceptual)
    return Training(
        "vqgan",
        config.stage1,
        settings,
        build=lambda: VQGAN(config.vqgan),
        objective=lambda: VQGANObjective(data.train, config.vqgan, config.stage1, config.seed, perceptual),
        save=checkpoint.save_vqgan,
        load=checkpoint.load_vqgan,
        seed=config.seed,
        device=config.device,
        check=lambda model: {"val_psnr_db": reconstruction_psnr_db(model, data.val[:128])},
        best_by="val_psnr_db",
    )


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
    return torch.cat([tokenizer.cached(images, folder, "train") for images in (data.train, data.train.flip(3))])


def train_transformer(config: Config, data: Dataset, tokenizer: Tokenizer) -> Training:
    settings = {
        "transformer": dataclasses.asdict(config.transformer),
        "data": data.fingerprint,
        "tokenizer": tokenizer.weights_hash,
    }
    if config.stage2.start:
        settings["start"] = _file_hash(Path(config.stage2.start))
    hinted = bool(config.transformer.hints)
    held_out = cache(lambda: validation(tokenizer, data, hinted))  # looked at ten times in a training

    def objective() -> MVTMObjective:
        images, holes = torch.cat([data.train, data.train.flip(3)]), training_holes(config)

        def hints(image: Tensor, hole: Tensor) -> Tensor:
            return tokenizer.hints(images[image], holes[hole])

        tokens = token_cache(config, tokenizer, data)
        return MVTMObjective(tokens, config.stage2, config.seed, token_mask(holes), hints if hinted else None)

    return Training(
        "transformer",
        config.stage2,
        settings,
        build=lambda: _begin_transformer(config),
        objective=objective,
        save=checkpoint.save_transformer,
        load=checkpoint.load_transformer,
        seed=config.seed,
        device=config.device,
        check=lambda model: {f"val_{k}": v for k, v in validate(model, *held_out()).items()},
        best_by="-val_loss",
    )


def _file_hash(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"stage2.start = {path} is no file; it names a transformer to begin with")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _begin_transformer(config: Config) -> BidirectionalTransformer:
    """Random weights, or those of `stage2.start`, which may know nothing of hints yet."""
    model = BidirectionalTransformer(config.transformer)
    if config.stage2.start:
        model.load_state_dict(model.state_dict() | load_start(config).state_dict())
    return model


def load_start(config: Config) -> BidirectionalTransformer:
    """The network of `stage2.start`. Raises ValueError where it is of another shape than the one to train."""
    model = checkpoint.load_transformer(Path(config.stage2.start))
    theirs, ours = model.config, config.transformer
    fixed = ["codes", "positions", "width", "layers", "heads", "hidden", "norm"] + ["hints"] * bool(theirs.hints)
    differ = [
        f"{name} = {getattr(theirs, name)}, not {getattr(ours, name)}"
        for name in fixed if getattr(theirs, name) != getattr(ours, name)
    ]  # fmt: skip
    if differ:
        found = "; ".join(differ)
        raise ValueError(f"{config.stage2.start} does not fit and is no transformer to begin with: it has {found}")
    return model


def validation(
    tokenizer: Tokenizer, data: Dataset, hinted: bool, n: int = 256
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens of validation images, masks and hints of holes that stay the same whenever they are asked for."""
    tokens = tokenizer.cached(data.val[:n], data_folder() / "cache", "val")
    holes = random_holes(3_000_000, len(tokens))
    return tokens, token_mask(holes), tokenizer.hints(data.val[:n], holes) if hinted else None


def training_holes(config: Config, n: int = 4096) -> Tensor:
    """Holes like the test's, from a seed of their own."""
    return random_holes(1_000_000 + config.seed, min(n, config.data.train))


def train_classifier(config: Config, tokenizer: Tokenizer | None = None) -> Training:
    """The attribute classifier, on cats whose halves differ and on ordinary ones, from seeds of their own.

    With a tokenizer every other cat is seen as it returns from its tokens: features then tell what is in a picture,
    not whether it was compressed, as Inception's do, which was trained on JPEG files.
    """
    settings = {"images": config.classifier.images, "tokenizer": tokenizer and tokenizer.weights_hash}

    def objective() -> AttributeObjective:
        half = config.classifier.images // 2
        both = [render(2_000_000 + config.seed + i, half, chimera=bool(i)) for i in (0, 1)]
        labels = {name: torch.cat([cats.attributes[name] for cats in both]) for name in ATTRIBUTES}
        images = torch.cat([cats.images for cats in both])
        if tokenizer is not None:
            images[::2] = tokenizer.decode(tokenizer.encode(images[::2]))
        return AttributeObjective(images, labels, config.classifier.batch, config.seed)

    def save(path: Path, model: ToyFeatures, **meta: Any) -> None:
        model.calibrate(render(2_000_002 + config.seed, 2048).images.float() / 255)
        save_classifier(path, model, **meta)

    return Training(
        "classifier",
        config.classifier,
        settings,
        build=lambda: ToyFeatures({n: len(v) for n, v in ATTRIBUTES.items()}, config.classifier.features),
        objective=objective,
        save=save,
        load=load_classifier,
        seed=config.seed,
        device=config.device,
    )


def save_classifier(path: Path, model: ToyFeatures, **meta: Any) -> None:
    shape = {"attributes": model.attributes, "features": model.heads[next(iter(model.heads))].in_features}
    checkpoint.save(path, model.state_dict(), {"kind": "classifier", "shape": shape} | meta)


def load_classifier(path: Path | None = None) -> ToyFeatures:
    """The attribute classifier of a file, or the committed one. Raises ValueError for another kind of file."""
    path = path or pretrained_folder() / "classifier.safetensors"
    state, meta = checkpoint.load(path)
    if meta.get("kind") != "classifier":
        raise ValueError(f"{path} is not an attribute classifier but {meta.get('kind', 'something else')!r}")
    shape = meta.get("shape")
    if not isinstance(shape, dict) or shape.keys() != {"attributes", "features"}:
        raise ValueError(f"{path} must say in its header what shape the classifier has: its attributes and features")
    return checkpoint.fill(lambda: ToyFeatures(**shape), state, path)


def get_features(config: Config, tokenizer: Tokenizer) -> Features:
    """The features to score with: the attribute classifier for toy cats, else Inception if its weights are here.

    Without them the VQGAN's own encoder stands in; `score_name` says which it is, and only Inception's is FID.
    """
    if config.data.path == "toycats":
        return load_classifier().to(config.device)
    try:
        return InceptionFeatures().to(config.device)
    except FileNotFoundError:
        print("Scored on features of the VQGAN's encoder, which is not FID: LAB5_INCEPTION_WEIGHTS names no file here.")
        return EncoderFeatures(tokenizer.vqgan)


# --- the pair that decodes ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """The two frozen networks that inpaint, and where they are from."""

    tokenizer: Tokenizer
    transformer: BidirectionalTransformer
    weights: str  # for captions: "pretrained 1a2b3c4d5e6f", of both networks


def open_pair(config: Config, data: Dataset, weights: str = "pretrained") -> Pair:
    """The committed pair ("pretrained"), or the one that this profile trains ("trained"), training it if need be."""
    if weights == "pretrained":
        if not data.attributes:
            raise ValueError(f"the pretrained pair knows toy cats only: for {data.name} take weights 'trained'")
        folder = pretrained_folder()
        return load_pair(config, folder / "vqgan.safetensors", folder / "transformer.safetensors", weights)
    if weights == "trained":
        tokenizer = Tokenizer(_trained(train_vqgan(config, data)))
        return make_pair(tokenizer, _trained(train_transformer(config, data, tokenizer)), weights)
    raise ValueError(f"weights must be 'pretrained' or 'trained', not {weights!r}")


def _trained(training: Training | Given) -> nn.Module:
    """Its network. Where that takes minutes there is a bar: whoever asked for a pair did not ask for a training."""
    if training.reused:
        return training.run().model
    for _ in tqdm(training, desc=f"training {training.name} first", file=sys.stderr, mininterval=1):
        pass
    return training.model


def load_pair(config: Config, vqgan: Path, transformer: Path, name: str) -> Pair:
    """Two files of ours or of the lab's, called `name` in captions.

    Raises ValueError where the transformer predicts another number of codes, or is known to have learned
    another VQGAN's tokens.
    """
    tokenizer = Tokenizer(checkpoint.load_vqgan(vqgan).to(config.device))
    model = checkpoint.load_transformer(transformer).to(config.device)
    if model.codes != tokenizer.codes:
        raise ValueError(f"{transformer} predicts {model.codes} codes, but {vqgan} has {tokenizer.codes}")
    trained_on = _tokenizer_of(transformer)
    if trained_on not in (None, tokenizer.weights_hash):
        raise ValueError(
            f"{transformer} was trained on tokens of a VQGAN {trained_on}, but {vqgan} is {tokenizer.weights_hash}"
        )
    return make_pair(tokenizer, model, name)


def _tokenizer_of(transformer: Path) -> str | None:
    """The hash of the VQGAN whose tokens it learned, where its file says so; the lab's do not."""
    try:
        return checkpoint.load(transformer)[1].get("settings", {}).get("tokenizer")
    except ValueError:
        return None


def make_pair(tokenizer: Tokenizer, transformer: BidirectionalTransformer, name: str) -> Pair:
    """The two networks, called `name` and a hash of both."""
    both = tokenizer.weights_hash + _weights_hash(transformer)
    return Pair(tokenizer, transformer, f"{name} {hashlib.sha256(both.encode()).hexdigest()[:12]}")


def _weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:12]
