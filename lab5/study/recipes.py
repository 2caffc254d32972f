"""Whole recipes by name: what five reports of the lab, MaskGIT's paper and this project train and decode with.

A recipe is named by what it does. It is made of ordinary settings, and any of them can still be changed.

What goes with the size of a run stays the profile's: the networks, the steps, the images in a step and the mixed
precision. Learning rates are multiples of the profile's, which is the lab's 1e-4 in the full one; warm-up and decays
are shares of its steps. So recipes that are compared have had the same number of images, which the reports had not:
50 to 300 epochs, in batches of 10 to 200. What the reports did by mistake is in `lab5.pitfalls`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lab5.config import Config, DecodeConfig
from lab5.profiles import INPAINTING


@dataclass(frozen=True)
class Recipe:
    """Settings of stage two and of decoding, and those that depend on the profile."""

    about: str  # one line
    source: str
    training: Mapping[str, Any]  # settings of `stage2`
    decoding: DecodeConfig
    lr: float = 1.0  # times the profile's
    warmup: float | None = 0.0  # of the steps, as are the next two; None = the profile's
    milestones: tuple[float, ...] = ()
    decay_every: float = 0.0
    parts: int = 1  # that the images of a step are divided into; their gradients are added up
    hints: bool = False  # whether the transformer sees more than tokens; then as much as the profile says


# What the reports share. They neither clip gradients nor average weights, and their transformer sees tokens alone;
# betas and weight decay are PyTorch's where a report names none.
ADAM = {"optimiser": "adam", "betas": (0.9, 0.999), "weight_decay": 0.0}
ADAM |= {"clip": 0.0, "ema": 0.0, "label_smoothing": 0.0}
ADAMW = ADAM | {"optimiser": "adamw", "weight_decay": 0.01}
# Argmax, and noise of 4.5 on the probability: the lab's decoding, whatever the schedule.
LAB = {"codes": "argmax", "order": "lab", "choice_temperature": 4.5}

RECIPES: dict[str, Recipe] = {
    "kept-ratio-warmup": Recipe(
        "gamma(u) of the tokens kept, a warm-up and a linear decay; the first 7 of 100 small steps",
        "report A",
        training=ADAM | {"masking": "cosine_kept", "loss": "all", "schedule": "warmup_linear"},
        warmup=10 / 50,
        decoding=DecodeConfig(schedule="cosine", steps=100, stop_at=7, **LAB),
    ),
    "half-mask-multistep": Recipe(
        "half of the tokens masked, a learning rate that falls to a hundredth in the first tenth; ten linear steps",
        "report B",
        training=ADAM | {"masking": "bernoulli:0.5", "loss": "all", "schedule": "multi_step", "decay": 0.1},
        milestones=(2 / 100, 10 / 100),
        decoding=DecodeConfig(schedule="linear", steps=10, **LAB),
    ),
    "narrow-mask-long": Recipe(
        "40 to 50 % masked, a constant learning rate to the end; a tenth of the hole at a time",
        "report C",
        training=ADAMW | {"masking": "count:0.4:0.5", "loss": "all", "schedule": "constant"},
        decoding=DecodeConfig(schedule="stair", steps=20, **LAB),
    ),
    "uniform-mask-steplr": Recipe(
        "any share masked, a tenth of the learning rate after every fifth; the first 6 of 12 raised-cosine steps",
        "report D",
        training=ADAMW | {"masking": "bernoulli:0:1", "loss": "masked", "schedule": "step", "decay": 0.1},
        decay_every=10 / 50,
        decoding=DecodeConfig(schedule="raised_cosine", steps=12, stop_at=6, **LAB),
    ),
    "bernoulli-sampling": Recipe(
        "half of the tokens masked, half the learning rate in a cosine, batches in five parts; 7 sampled steps",
        "report E",
        training=ADAMW | {"masking": "bernoulli:0.5", "loss": "all", "schedule": "warmup_cosine"},
        lr=0.5,
        parts=5,
        decoding=DecodeConfig(schedule="cosine", steps=7, **LAB | {"codes": "sample"}),
    ),
    "paper": Recipe(
        "gamma(u) of the tokens masked, smoothed labels, averaged weights; 8 sampled steps by noisy log-probability",
        "Chang et al. 2022, and maskgit_class_cond_config.py of its code",
        training={"masking": "cosine", "loss": "masked", "label_smoothing": 0.1, "schedule": "constant"}
        | {"optimiser": "adamw", "betas": (0.9, 0.96), "weight_decay": 0.045, "clip": 0.0},
        warmup=5_000 / 2_000_000,
        decoding=DecodeConfig(schedule="cosine", steps=8, codes="sample", order="confidence", choice_temperature=4.5),
    ),
    "best": Recipe(
        "holes like the test's among the masks, a warm-up and a cosine; half-hidden tokens are not wasted",
        "this project",
        training={"masking": "mixed", "loss": "masked", "label_smoothing": 0.0, "schedule": "warmup_cosine"}
        | {"optimiser": "adamw", "betas": (0.9, 0.96), "weight_decay": 0.03, "clip": 1.0},
        warmup=None,
        decoding=INPAINTING,
        hints=True,
    ),
}


def changes(config: Config, name: str) -> dict[str, Any]:
    """What a recipe sets, as `configure` takes it, with the shares of the steps and rates that are in `config`.

    For settings that shall have the last word: `configure(profile, **(changes(config, name) | own))`. Raises ValueError
    for an unknown recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    recipe, stage2 = RECIPES[name], config.stage2

    def steps(share: float) -> int:
        return max(1, round(share * stage2.steps)) if share else 0

    training = dict(recipe.training) | {"lr": recipe.lr * stage2.lr}
    if recipe.warmup is not None:
        training["warmup"] = steps(recipe.warmup)
    if recipe.milestones:
        training["milestones"] = tuple(sorted({steps(share) for share in recipe.milestones}))
    if recipe.decay_every:
        training["decay_every"] = steps(recipe.decay_every)
    if recipe.parts > 1:
        training["accumulate"] = stage2.accumulate * recipe.parts
        training["batch"] = max(1, stage2.batch // recipe.parts)
    decoding = asdict(recipe.decoding)
    del decoding["batch"], decoding["amp"]  # which go with the machine
    sections = {"stage2": training, "decode": decoding}
    settings = {f"{section}.{key}": value for section, items in sections.items() for key, value in items.items()}
    return settings if recipe.hints else settings | {"transformer.hints": 0}
