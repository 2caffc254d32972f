"""The command train, and the networks that the commands inpaint and study decode with.

Bad input raises ValueError or FileNotFoundError, with one sentence, before anything is computed where possible.
"""

import dataclasses
import hashlib
import json
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from lab5.cli.datasets import check_training, get_dataset
from lab5.config import Config
from lab5.data.dataset import Dataset
from lab5.data.toycats import render
from lab5.inpainting.pair import Pair, load_pair, make_pair
from lab5.inpainting.tokenizer import Tokenizer, reconstruction_psnr_db
from lab5.masking import read_masking
from lab5.objectives import validate
from lab5.pitfalls.fitting import fit_reading
from lab5.runtime.attentions import Reading
from lab5.runtime.files import existing_file, write
from lab5.runtime.pickles import is_pickle
from lab5.runtime.ranks import here
from lab5.scoring.classifier import ToyFeatures
from lab5.trainer import learning_rate
from lab5.training import networks
from lab5.training.networks import TOYS
from lab5.training.session import Given, Training, logged

AFTER_STAGE_ONE = {
    "vqgan": (), "transformer": ("stage2",), "refiner": ("stage2", "refiner"), "classifier": ("classifier",),
    "all": ("stage2", "refiner", "classifier"),
}  # fmt: skip
"""By --stage, the settings of what is trained on top of stage one."""


def train(config: Config, stage: str, out: Path | None, vqgan: Path | None, log: Path | None) -> None:
    """Train the "vqgan", with it the "transformer", both and the "refiner", the "classifier", or "all"; or find them.

    A `vqgan` that is given takes the place of the one that would be trained. Each is measured on images it has not
    seen. With `out` the files are copied there at the end, all together; `log` is as in `watched`. For photographs
    "all" goes without the classifier, which reads toy cats.
    """
    ranks = here()
    _check_training(config, stage, vqgan)
    later = [name for name in AFTER_STAGE_ONE[stage] if getattr(config, name).steps]
    for name in later:  # stage one may be trained already
        ranks.share(getattr(config, name).accumulate, f"{name}.accumulate")
    given = None if vqgan is None else networks.given_vqgan(config, vqgan)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # complain now, not after the training
        _read_entries(out)
    with ranks.in_turn():
        data = get_dataset(config)
    check_training(config, data, stage)
    log = log if ranks.first else None
    trained = [watched(networks.train_vqgan(config, data), log) if given is None else given]
    tokenizer = Tokenizer(trained[0].model)
    if "stage2" in later:
        trained.append(watched(networks.train_transformer(config, data, tokenizer), log))
    if "refiner" in later:
        pair = make_pair(tokenizer, trained[1].model, "trained")
        trained.append(watched(networks.train_refiner(config, data, pair), log))
    if "classifier" in later and (stage != "all" or data.attributes):
        trained.append(watched(networks.train_classifier(config, tokenizer), log))
    if not ranks.first:
        return
    quality = {training.name: _quality(training, config, data, tokenizer) for training in trained}
    for training in trained:
        print(f"{training.name}: {training.file}")
        reached = ", ".join(f"{measure} {value:.4g}" for measure, value in quality[training.name].items())
        print(textwrap.fill(reached, 100, initial_indent="    ", subsequent_indent="    "))
    if out is not None:
        _hand_over([training for training in trained if isinstance(training, Training)], quality, config, out)


def _quality(training: Training | Given, config: Config, data: Dataset, tokenizer: Tokenizer) -> dict[str, float]:
    """Of a trained network, on images that it has not seen."""
    if training.name == "vqgan":
        return {"val_psnr_db": reconstruction_psnr_db(tokenizer.vqgan, data.val), "n": len(data.val)}
    if training.name == "refiner":
        best = [step.metrics["val_hole_psnr_db"] for step in training.history if "val_hole_psnr_db" in step.metrics]
        return {"val_hole_psnr_db": best[-1], "n": min(128, len(data.val))}
    if training.name == "classifier":
        return attribute_accuracy(training.model)
    tokens, *rest = networks.validation(tokenizer, data, bool(config.transformer.hints))
    scores = validate(training.model, tokens, *rest)
    return {f"val_{name}": value for name, value in scores.items()} | {"n": len(tokens)}


def _check_training(config: Config, stage: str, vqgan: Path | None) -> None:
    """What would otherwise be refused only when the stages before it are trained."""
    if stage == "refiner" and not config.refiner.steps:
        raise ValueError(f"profile {config.profile} has no refiner: --set refiner.steps=N trains one in N steps")
    if vqgan is not None and stage == "vqgan":
        raise ValueError("--stage vqgan trains stage one, and --vqgan says that it is trained already: give one")
    checks = {f"{name}.schedule": partial(learning_rate, getattr(config, name), 1)
              for name in ("stage1", "stage2", "refiner", "classifier")}  # fmt: skip
    checks["stage2.masking"] = partial(read_masking, config.stage2.masking)
    for setting, check in checks.items():
        try:
            check()
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from error
    if config.stage2.start:
        networks.load_start(config)


def watched(training: Training | Given, log: Path | None) -> Training | Given:
    """Train behind a progress bar, or say that there was nothing to train; `log` is a folder for TensorBoard."""
    if training.reused:
        print(f"{training.name}: reused, trained before with the same settings", file=sys.stderr)
        return training.run()
    steps = training if log is None else logged(training, log / training.name)
    with tqdm(total=len(training), desc=training.name, unit="step", mininterval=1) as bar:
        for step in steps:
            bar.set_postfix(loss=f"{step.loss:.4f}", lr=f"{step.lr:.1e}", refresh=False)
            bar.update(step.step - bar.n)  # a run that was cut short begins further on
    return training


def attribute_accuracy(classifier: ToyFeatures) -> dict[str, float]:
    """The share of unseen cats of whom an attribute is read rightly, for each attribute, and the mean of all."""
    cats = render(4_000_000, 512)
    read = classifier.predict(cats.images.float() / 255)
    right = {name: (read[name] == classes).float().mean().item() for name, classes in cats.attributes.items()}
    return right | {"mean": sum(right.values()) / len(right), "n": len(cats.images)}


def _hand_over(trained: list[Training], quality: dict[str, dict[str, float]], config: Config, out: Path) -> None:
    """Copy the networks, and put into training.json how they came about; entries of others stay."""
    entries = _read_entries(out)
    for training in trained:
        content = training.file.read_bytes()
        write(out / f"{training.name}.safetensors", content)
        entries[training.name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "seed": config.seed,
            "seconds": round(training.seconds, 1),
            "device": config.device,
            "torch": torch.__version__,
            "quality": {name: round(value, 4) for name, value in quality[training.name].items()},
            "config": dataclasses.asdict(config),
        }
    write(out / "training.json", (json.dumps(entries, indent=2) + "\n").encode())
    print(f"copied to {out}")


def _read_entries(out: Path) -> dict[str, Any]:
    file = out / "training.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON any more (line {error.lineno}): remove it and run again") from error


class Networks(NamedTuple):
    """Which networks decode: two files, the "pretrained" pair, or the one that the profile has "trained"."""

    weights: str = "pretrained"
    vqgan: Path | None = None
    transformer: Path | None = None
    reading: Reading = Reading()  # of the transformer, where its file leaves something open
    refiner: Path | None = None  # of the two files


def choose_pair(config: Config, data: Dataset, chosen: Networks) -> Pair:
    """The networks for the images of `data`; the profile's are trained on the run's own dataset, if need be.

    Raises ValueError, before anything is trained, for photographs that networks of toy cats would fill.
    """
    weights, vqgan, transformer, reading, refiner = chosen
    if (vqgan is None) != (transformer is None):
        raise ValueError(
            "--vqgan and --transformer belong together: give both files, or neither; LAB5_VQGAN can name the vqgan"
        )
    if refiner is not None and vqgan is None:
        raise ValueError("--refiner belongs to the networks of --vqgan and --transformer: give all three")
    if reading != Reading() and (transformer is None or not is_pickle(existing_file(transformer))):
        raise ValueError("--read says how a PyTorch file of the lab's is read: give one as --transformer")
    if TOYS in learned_from(config, chosen) and not data.attributes:
        way = f"for {data.name} "
        if vqgan is None and weights == "pretrained":
            way += "take weights 'trained' (--weights trained) and "
        raise ValueError(
            f"the {weights if vqgan is None else 'given'} pair knows toy cats only: {way}name the dataset to train on "
            "with --data, or networks of such pictures with --vqgan and --transformer"
        )
    if vqgan is not None and transformer is not None:
        pair, notes = fit_reading(
            load_pair(config, vqgan, transformer, transformer.stem, reading), transformer, data, reading
        )
        if refiner is not None:
            pair.tokenizer.refiner = networks.given_refiner(refiner, pair).to(config.device)
        for note in notes:
            print(f"lab5: {note}", file=sys.stderr)
        return pair
    if weights == "trained":
        data = get_dataset(config)
        check_training(config, data)
    return networks.open_pair(config, data, weights)


def learned_from(config: Config, chosen: Networks) -> list[str]:
    """The datasets that the chosen networks were trained on, by name, as far as that is known."""
    weights, *files = chosen[:3]
    if files[0] is None and weights == "pretrained":
        return [TOYS]
    names = [networks.learned_from(file) for file in files if file is not None]
    if files[0] is None:
        names = [networks.name_of_path(config.data.path)]
        names += [networks.learned_from(Path(config.stage1.file))] if config.stage1.file else []
    return list(dict.fromkeys(name for name in names if name))
