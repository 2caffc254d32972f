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
    RefinerConfig,
    Stage1Config,
    Stage2Config,
    StudyConfig,
    TransformerConfig,
    VQGANConfig,
    check,
    check_together,
)
from lab5.runtime.changes import changed
from lab5.runtime.machine import half_precision

SMALL_VQGAN = VQGANConfig(
    codes=512, latent=32, stem=16, encoder=((16,), (48,)), middle=(128,), decoder=((64,), (32,), (16,)), groups=0,
    attention=False,
)  # fmt: skip
SMALL_TRANSFORMER = TransformerConfig(
    codes=512, width=128, layers=6, heads=2, hidden=256, dropout=0.0, attention_dropout=0.0, norm="pre", hints=48
)
MEDIUM_VQGAN = replace(
    SMALL_VQGAN, codes=1024, stem=32, encoder=((32,), (96,)), middle=(256,), decoder=((128,), (64,), (32,))
)
MEDIUM_TRANSFORMER = replace(SMALL_TRANSFORMER, codes=1024, width=256, layers=8, heads=4, hidden=768)

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
    # The lab's photographs on two cores, in about an hour: --data names the lab's zip or folder.
    "cats-cpu": Config(
        "cats-cpu",
        data=DataConfig(train=12000, val=1024, test=747),
        vqgan=SMALL_VQGAN,
        transformer=SMALL_TRANSFORMER,
        stage1=Stage1Config(steps=14000, batch=8, lr=1e-3, warmup=100, amp="off", ema=0.998, perceptual=0.5),
        stage2=Stage2Config(steps=3000, batch=32, lr=2e-3, warmup=100, amp="off", ema=0.998),
        refiner=RefinerConfig(steps=3000),
        decode=INPAINTING,
        study=StudyConfig(steps=(1, 4, 8), seeds=3, images=128),
    ),
    # Both stages and the study in ten minutes on a GPU of 8 GB and 25 TFLOP/s in half precision, by the cost model.
    "gpu": Config(
        "gpu",
        data=DataConfig(train=12000, val=512, test=747),
        vqgan=MEDIUM_VQGAN,
        transformer=MEDIUM_TRANSFORMER,
        stage1=Stage1Config(steps=3000, batch=32, lr=1e-3, warmup=100, ema=0.998),
        stage2=Stage2Config(steps=3000, batch=64, lr=1e-3, warmup=100, ema=0.998),
        decode=INPAINTING,
        study=StudyConfig(images=128),
    ),
    # The lab's sizes, on a GPU, in hours.
    "full": Config("full", data=DataConfig(train=12000, val=1024, test=747), study=StudyConfig(images=747)),
}


def configure(profile: str = "auto", **changes: Any) -> Config:
    """The settings of a profile, with changes such as `**{"decode.steps": 12}` or `seed=3`.

    "auto" is gpu on a GPU and quick without one. On a GPU decoding is in half precision too, and what would be in
    bfloat16 is in float16 on one that is too old for it. Values may be strings, as a command line gives them.
    Raises ValueError for an unknown profile or setting, a value of another type, and contradictions.
    """
    device = str(changes.pop("device", None) or _device())
    if profile == "auto":
        profile = "gpu" if device.startswith("cuda") else "quick"
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are auto, {', '.join(PROFILES)}")
    config = replace(PROFILES[profile], device=device)
    if device.startswith("cuda"):
        config = _in_half(config, half_precision(device))
    for name, value in changes.items():
        config = changed(config, name, value)
    check(config)
    check_together(config)
    return config


def _device() -> str:
    import torch  # here alone: reading settings needs no torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _in_half(config: Config, half: str) -> Config:
    """Trainings of a profile that are in mixed precision at all, and its decoding."""
    trained = {name: getattr(config, name) for name in ("stage1", "stage2")}
    stages = {name: replace(stage, amp=half) for name, stage in trained.items() if stage.amp != "off"}
    return replace(config, decode=replace(config.decode, amp=half), **stages)
