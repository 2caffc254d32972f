"""Every number of a run, in one place: the profiles, changes to them, the folders.

`configure("quick", **{"decode.steps": 12})` is how everything else gets its settings. A name that does not
exist, a value of another type and two settings that contradict each other are refused with one sentence.

It does not know what the numbers are used for. The settings themselves are the dataclasses of `lab5.settings`.
"""

import json
import os
from dataclasses import fields, is_dataclass, replace
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
        stage1=Stage1Config(steps=450, batch=16, lr=1e-3, warmup=50, amp="off", ema=0.99),
        stage2=Stage2Config(steps=300, batch=32, lr=1e-3, warmup=50, amp="off", ema=0.99),
        decode=INPAINTING,
        study=StudyConfig(steps=(1, 4, 8), seeds=5, images=48),
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
        return tuple(_typed(name, old[0], item) for item in value)
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
    vqgan, transformer, decode = config.vqgan, config.transformer, config.decode
    counts = {"transformer.heads": transformer.heads, "decode.steps": decode.steps, "decode.passes": decode.passes}
    images = {"stage1": config.data.train, "stage2": config.data.train, "classifier": config.classifier.images}
    for name, n in images.items():
        stage: TrainConfig = getattr(config, name)
        counts |= {f"{name}.{count}": getattr(stage, count) for count in ("steps", "batch", "accumulate")}
        if stage.batch > n:
            raise ValueError(f"{name}.batch = {stage.batch} is more than the {n} images that there are to train on")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
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


# --- folders ----------------------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Datasets, caches and runs; LAB5_DATA moves it, `data/` of the repository otherwise."""
    return Path(os.environ.get("LAB5_DATA") or ROOT / "data")


def pretrained_folder() -> Path:
    """The committed weights for the embedded dataset."""
    return ROOT / "data" / "pretrained"
