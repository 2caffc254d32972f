"""Every number of a run, in one place: the profiles, changes to them, the folders.

`configure("quick", **{"decode.steps": 12})` is how everything else gets its settings. A name that does not
exist, a value of another type and two settings that contradict each other are refused with one sentence.

It does not know what the numbers are used for. The settings themselves are the dataclasses of `lab5.settings`.
"""

import json
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from lab5.settings import (
    ClassifierConfig,
    Config,
    DataConfig,
    DecodeConfig,
    Stage1Config,
    Stage2Config,
    StudyConfig,
    TrainConfig,
    TransformerConfig,
    VQGANConfig,
)

ROOT = Path(__file__).resolve().parent.parent

SMALL_VQGAN = VQGANConfig(
    codes=512,
    latent=32,
    stem=16,
    encoder=((16,), (48,)),
    middle=(128,),
    decoder=((64,), (32,), (16,)),
    groups=0,
    attention=False,
)
SMALL_TRANSFORMER = TransformerConfig(
    codes=512, width=128, layers=6, heads=2, hidden=256, dropout=0.0, attention_dropout=0.0, norm="pre", hints=48
)

# What fills holes best; the defaults of DecodeConfig are the lab's rule.
INPAINTING = DecodeConfig(fill="navier_stokes", hints=True, evidence=1.0, temperature=0.5, passes=2)

PROFILES: dict[str, Config] = {
    # The whole chain in under two minutes, for tests: it learns next to nothing.
    "smoke": Config(
        "smoke",
        data=DataConfig(train=256, val=32, test=32),
        vqgan=replace(SMALL_VQGAN, codes=64, encoder=((8,), (16,)), stem=8, middle=(32,), decoder=((32,), (16,), (8,))),
        transformer=replace(SMALL_TRANSFORMER, codes=64, width=64, layers=2, heads=1, hidden=128),
        stage1=Stage1Config(steps=60, batch=8, lr=1e-3, warmup=5, amp="off", ema=0.9),
        stage2=Stage2Config(steps=40, batch=16, lr=1e-3, warmup=5, amp="off", ema=0.9),
        classifier=ClassifierConfig(steps=30, batch=16, warmup=5, images=256),
        study=StudyConfig(steps=(1, 4), seeds=2, images=16),
    ),
    # Both stages from scratch in a few minutes on two cores.
    "quick": Config(
        "quick",
        data=DataConfig(train=4000, val=256, test=256),
        vqgan=SMALL_VQGAN,
        transformer=SMALL_TRANSFORMER,
        stage1=Stage1Config(steps=380, batch=16, lr=1e-3, warmup=50, amp="off", ema=0.99),
        stage2=Stage2Config(steps=220, batch=32, lr=1e-3, warmup=40, amp="off", ema=0.99),
        decode=INPAINTING,
        study=StudyConfig(steps=(1, 4, 8), seeds=5, images=32),
    ),
    # How the committed weights were made, in about three hours on one core: `make pretrained` says in which two steps.
    "pretrained": Config(
        "pretrained",
        data=DataConfig(train=12000, val=256, test=256),
        vqgan=SMALL_VQGAN,
        transformer=SMALL_TRANSFORMER,
        stage1=Stage1Config(steps=4500, batch=16, lr=1e-3, warmup=200, amp="off", ema=0.998),
        stage2=Stage2Config(steps=4200, batch=32, lr=1e-3, warmup=100, amp="off"),
        classifier=ClassifierConfig(steps=1800),
        decode=INPAINTING,
    ),
    # The lab's photographs on two cores, within an hour: --data names the lab's zip or folder.
    "cats-cpu": Config(
        "cats-cpu",
        data=DataConfig(train=12000, val=1024, test=747),
        vqgan=SMALL_VQGAN,
        transformer=SMALL_TRANSFORMER,
        stage1=Stage1Config(steps=2500, batch=16, lr=1e-3, warmup=100, amp="off", ema=0.998),
        stage2=Stage2Config(steps=3000, batch=32, lr=1e-3, warmup=100, amp="off", ema=0.998),
        decode=INPAINTING,
        study=StudyConfig(steps=(1, 4, 8), seeds=3, images=128),
    ),
    # The lab's sizes, on a GPU.
    "full": Config("full", data=DataConfig(train=12000, val=1024, test=747), study=StudyConfig(images=747)),
}


SEEDS = 10**12  # times a million, for a seed of each step and image, it is still a number of 64 bits

# What values settings of these names may have, in whichever section; of a tuple, each item. NaN passes none.
RANGES: dict[str, tuple[Callable[[Any], bool], set[str]]] = {
    "at least 1": (
        lambda x: x >= 1,
        {"steps", "batch", "accumulate", "passes", "seeds", "train", "val", "test"}
        | {"latent", "stem", "encoder", "middle", "decoder", "width", "layers", "heads", "hidden", "features"}
        | {"vqgan.codes", "transformer.codes"},
    ),
    "at least 2": (lambda x: x >= 2, {"classifier.images"}),
    "at least 8": (lambda x: x >= 8, {"study.images"}),  # of fewer, a resample may hold one alone
    "above 0 and finite": (lambda x: 0 < x < inf, {"lr"}),
    "at least 0 and finite": (
        lambda x: 0 <= x < inf,
        {"threads", "warmup", "weight_decay", "clip", "groups", "hints", "dilate", "refills"}
        | {"evidence", "temperature", "choice_temperature", "choice_temperature_end"},
    ),
    "from 0 to a million million": (lambda x: 0 <= x <= SEEDS, {"seed"}),
    "at least 0 and below 1": (
        lambda x: 0 <= x < 1,
        {"betas", "ema", "dropout", "attention_dropout", "label_smoothing"},
    ),
}


def configure(profile: str = "auto", **changes: Any) -> Config:
    """The settings of a profile, with changes such as `**{"decode.steps": 12}` or `seed=3`.

    "auto" is full on a GPU and quick without one. Values may be strings, as a command line gives them.
    Raises ValueError for an unknown profile or setting, a value of another type, and contradictions.
    """
    device = str(changes.pop("device", None) or _device())
    if profile == "auto":
        profile = "full" if device.startswith("cuda") else "quick"
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are auto, {', '.join(PROFILES)}")
    config = replace(PROFILES[profile], device=device)
    for name, value in changes.items():
        config = _changed(config, name, name.split("."), value)
    _check(config)
    return config


def _device() -> str:
    import torch  # here alone: reading settings needs no torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _changed(section: Any, name: str, path: list[str], value: Any) -> Any:
    known = [f.name for f in fields(section)]
    if path[0] not in known:
        raise ValueError(f"there is no setting {name!r}; {type(section).__name__} has {', '.join(known)}")
    old = getattr(section, path[0])
    if is_dataclass(old):
        if len(path) == 1:
            raise ValueError(f"{name!r} is a section; set one of {', '.join(f.name for f in fields(old))} in it")
        return replace(section, **{path[0]: _changed(old, name, path[1:], value)})
    if len(path) > 1:
        raise ValueError(f"there is no setting {name!r}; {path[0]!r} is a single value")
    return replace(section, **{path[0]: _typed(name, old, value)})


def _typed(name: str, old: Any, value: Any) -> Any:
    """`value` as the type of `old`, a tuple's items as that of its first; what fits no type is refused."""
    if isinstance(value, str) and not isinstance(old, str):
        value = _read(value, isinstance(old, tuple))
    if isinstance(old, tuple) and isinstance(value, list | tuple):
        return tuple(_typed(name, old[0] if old else 0, item) for item in value)  # an empty one is of counts
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise ValueError(f"{name} takes values such as {old!r} ({type(old).__name__}), not {value!r}")
    return value


def _read(text: str, is_tuple: bool) -> Any:
    """A command line's text: JSON, Python's True and False, and tuples with commas alone, as in 1,4,8."""
    if is_tuple and not text.startswith("["):
        return [part.strip() for part in text.split(",")]
    try:
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


def _check(config: Config) -> None:
    """Refuse what cannot work together, before anything is trained or written."""
    for name, value in _settings(config).items():
        for words, (fits, settings) in RANGES.items():
            if settings & {name, name.rpartition(".")[2]} and not all(map(fits, _flat(value))):
                raise ValueError(f"{name} must be {words}, not {value}")
        if value == () and not name.endswith(".milestones"):
            raise ValueError(f"{name} needs at least one value")
    vqgan, transformer, decode = config.vqgan, config.transformer, config.decode
    images = {"stage1": config.data.train, "stage2": config.data.train, "classifier": config.classifier.images}
    for name, n in images.items():
        stage: TrainConfig = getattr(config, name)
        if len(stage.betas) != 2:
            raise ValueError(f"{name}.betas must be two values, not {stage.betas}")
        if stage.batch > n:
            raise ValueError(f"{name}.batch = {stage.batch} is more than the {n} images that there are to train on")
    widths = _flat((vqgan.stem, vqgan.encoder, vqgan.middle, vqgan.decoder))
    if vqgan.groups and (odd := [width for width in widths if width % vqgan.groups]):
        raise ValueError(f"vqgan.groups = {vqgan.groups} must divide every width of the vqgan, but not {odd[0]}")
    if vqgan.codes != transformer.codes:
        raise ValueError(f"vqgan.codes = {vqgan.codes} must equal transformer.codes = {transformer.codes}")
    if transformer.positions != 256:
        raise ValueError(f"transformer.positions = {transformer.positions} must be 256: an image is 16x16 tokens")
    if transformer.hints not in (0, vqgan.latent + 16):
        expected = f"0 or vqgan.latent + 16 = {vqgan.latent + 16}"
        raise ValueError(f"transformer.hints = {transformer.hints} must be {expected}")
    if transformer.width % transformer.heads:
        raise ValueError(f"transformer.width = {transformer.width} must be a multiple of heads = {transformer.heads}")
    if not 0 <= decode.stop_at <= decode.steps:
        raise ValueError(f"decode.stop_at = {decode.stop_at} must lie in 0..{decode.steps}; 0 means all decode.steps")


def _settings(config: Config) -> dict[str, Any]:
    """Every setting under its full name."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        found |= {f"{name}.{key}": item for key, item in vars(value).items()} if is_dataclass(value) else {name: value}
    return found


def _flat(value: Any) -> list:
    """The single values of a setting."""
    return [single for item in value for single in _flat(item)] if isinstance(value, tuple) else [value]


# --- folders ----------------------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Datasets, caches and runs; LAB5_DATA moves it, `data/` of the repository otherwise."""
    return Path(os.environ.get("LAB5_DATA") or ROOT / "data")


def pretrained_folder() -> Path:
    """The committed weights for the embedded dataset."""
    return ROOT / "data" / "pretrained"
