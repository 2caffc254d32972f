"""The profiles: settings that go together, from a check in a minute to the lab's sizes on a GPU.

`configure("quick", **{"decode.steps": 12})` is how everything else gets its settings. A name that does not
exist, a value that a setting may not have and two that contradict each other are refused with one sentence.
"""

from dataclasses import replace
from typing import Any

from lab5.config import (
    ClassifierConfig,
    Config,
    DataConfig,
    DecodeConfig,
    Stage1Config,
    Stage2Config,
    StudyConfig,
    TransformerConfig,
    VQGANConfig,
    check,
    check_together,
)
from lab5.runtime.changes import changed
from lab5.runtime.machine import fast_precision

SMALL_VQGAN = VQGANConfig(
    codes=512, latent=32, stem=16, encoder=((16,), (48,)), middle=(128,), decoder=((64,), (32,), (16,)), groups=0,
    attention=False,
)  # fmt: skip
SMALL_TRANSFORMER = TransformerConfig(
    codes=512, width=128, layers=6, heads=2, hidden=256, dropout=0.0, attention_dropout=0.0, norm="pre", hints=48
)

# What fills holes best; the defaults of DecodeConfig are MaskGIT's rule.
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


def configure(profile: str = "auto", **changes: Any) -> Config:
    """The settings of a profile, with changes such as `**{"decode.steps": 12}` or `seed=3`.

    "auto" is full on a GPU and quick without one. On a GPU `decode.amp` is the precision that it computes fast with,
    unless it is among the changes. Values may be strings, as a command line gives them.
    Raises ValueError for an unknown profile or setting, a value of another type, and contradictions.
    """
    device = str(changes.pop("device", None) or _device())
    if profile == "auto":
        profile = "full" if device.startswith("cuda") else "quick"
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are auto, {', '.join(PROFILES)}")
    config = replace(PROFILES[profile], device=device)
    changes = {"decode.amp": fast_precision(device)} | changes
    for name, value in changes.items():
        config = changed(config, name, value)
    check(config)
    check_together(config)
    return config


def _device() -> str:
    import torch  # here alone: reading settings needs no torch

    return "cuda" if torch.cuda.is_available() else "cpu"
