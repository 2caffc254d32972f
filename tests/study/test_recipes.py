"""A recipe is ordinary settings on top of a profile, and each of them trains and decodes."""

from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from stubs import untrained_pair

from lab5.config import Config, DecodeConfig, all_settings
from lab5.data.dataset import open_dataset
from lab5.data.toycats import random_holes
from lab5.inpainting.fill import decode_holes, inpaint_images
from lab5.inpainting.pair import Pair
from lab5.masking import read_masking
from lab5.objectives import LOSSES
from lab5.profiles import INPAINTING, PROFILES, configure
from lab5.study.recipes import RECIPES, changes
from lab5.trainer import learning_rate, learning_rates
from lab5.training.networks import train_transformer

REPORTS = ["kept-ratio-warmup", "half-mask-multistep", "narrow-mask-long", "uniform-mask-steplr", "bernoulli-sampling"]
NAMES = [*REPORTS, "paper", "best"]


def profile(name="full", **changes):
    return configure(name, device="cpu", **changes)


def apply(config: Config, name: str) -> Config:
    return configure(config.profile, **(all_settings(config) | changes(config, name)))


def test_the_five_reports_the_paper_and_the_best_are_there_by_what_they_do():
    assert list(RECIPES) == NAMES and all(recipe.about for recipe in RECIPES.values())
    assert [RECIPES[name].source for name in REPORTS] == [f"report {letter}" for letter in "ABCDE"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", ["smoke", "quick", "full"])
def test_a_recipe_changes_nothing_but_training_decoding_and_hints(base, name):
    before, after = profile(base), apply(profile(base), name)
    same = replace(after, stage2=before.stage2, decode=before.decode, transformer=before.transformer)
    assert same == before == PROFILES[base]
    assert replace(after.transformer, hints=0) == replace(before.transformer, hints=0)
    assert after.transformer.hints == (before.transformer.hints if name == "best" else 0)
    assert after.stage2.steps == before.stage2.steps and after.stage2.amp == before.stage2.amp
    assert after.decode.batch == before.decode.batch
    read_masking(after.stage2.masking)
    assert after.stage2.loss in LOSSES
    assert 0 < learning_rate(after.stage2, 1) <= after.stage2.lr  # the schedule is one that can be had


@pytest.mark.parametrize(("name", "own", "rates", "decoding"), [
    ("kept-ratio-warmup", {"masking": "cosine_kept", "loss": "all", "optimiser": "adam", "warmup": 7200},
     {3600: 0.5e-4, 7200: 1e-4, 7200 + 14400: 0.5e-4},  # 10 of 50 epochs
     ("cosine", 100, 7, "argmax")),
    ("half-mask-multistep", {"masking": "bernoulli:0.5", "loss": "all", "milestones": (720, 3600)},
     {1: 1e-4, 720: 1e-4, 721: 1e-5, 3600: 1e-5, 3601: 1e-6, 36000: 1e-6},  # 2 and 10 of 100
     ("linear", 10, 0, "argmax")),
    ("narrow-mask-long", {"masking": "count:0.4:0.5", "loss": "all", "optimiser": "adamw", "weight_decay": 0.01},
     {1: 1e-4, 36000: 1e-4}, ("stair", 20, 0, "argmax")),
    ("uniform-mask-steplr", {"masking": "bernoulli:0:1", "loss": "masked", "decay_every": 7200},
     {7200 * k + 1: 0.1**k * 1e-4 for k in range(5)},  # 10 of 50
     ("raised_cosine", 12, 6, "argmax")),
    ("bernoulli-sampling", {"masking": "bernoulli:0.5", "loss": "all", "batch": 20, "accumulate": 5},
     {1: 5e-5, 18000: 0.505 * 5e-5, 36000: 0.01 * 5e-5}, ("cosine", 7, 0, "sample")),
], ids=REPORTS)  # fmt: skip
def test_at_full_size_the_reports_rates_and_decodings_are_the_reports(name, own, rates, decoding):
    """36000 steps of 100 images are the 300 epochs of report C; the others' epochs are shares of their own length."""
    config = apply(profile(), name)
    stage2, decode = config.stage2, config.decode
    assert own.items() <= asdict(stage2).items()
    assert {step: learning_rate(stage2, step) for step in rates} == pytest.approx(rates)
    assert (stage2.clip, stage2.ema, stage2.label_smoothing) == (0, 0, 0)
    assert (decode.schedule, decode.steps, decode.stop_at, decode.codes) == decoding
    assert (decode.order, decode.choice_temperature) == ("lab", 4.5)
    changed = {name for name, value in asdict(DecodeConfig()).items() if getattr(decode, name) != value}
    assert changed <= {"schedule", "steps", "stop_at", "codes", "order", "batch"}, "the rest is the lab's rule"


def test_the_paper_decodes_by_default_and_the_best_as_the_profiles_do():
    assert apply(profile(), "paper").decode == DecodeConfig() and apply(profile(), "best").decode == INPAINTING


def test_shares_follow_the_steps_that_a_run_has():
    for steps in (10, 100, 5000):
        config = profile("quick", **{"stage2.steps": steps})
        assert apply(config, "kept-ratio-warmup").stage2.warmup == steps // 5
        assert apply(config, "uniform-mask-steplr").stage2.decay_every == steps // 5
        milestones = apply(config, "half-mask-multistep").stage2.milestones
        assert milestones[-1] == steps // 10 and all(1 <= milestone <= steps for milestone in milestones)
    assert learning_rates(apply(profile("quick", **{"stage2.steps": 1}), "half-mask-multistep").stage2) == [1e-3]


def test_what_was_changed_before_stays_and_what_is_changed_after_has_the_last_word():
    own = {"stage2.lr": 0.5, "data.train": 99, "stage2.batch": 10, "decode.steps": 3, "decode.batch": 5}
    config = profile("quick", seed=7, **own)
    after = apply(config, "bernoulli-sampling")
    assert (after.seed, after.data.train, after.stage2.lr, after.stage2.batch) == (7, 99, 0.25, 2)
    assert (after.decode.steps, after.decode.batch) == (7, 5)  # the batch goes with the machine
    own = {"decode.steps": 3, "stage2.masking": "hole"}
    last = configure("quick", **({"device": "cpu"} | changes(config, "bernoulli-sampling") | own))
    assert (last.decode.steps, last.stage2.masking, last.stage2.accumulate) == (3, "hole", 5)


def test_an_unknown_recipe_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="unknown recipe 'worst'; there are kept-ratio-warmup, .*, best"):
        changes(profile(), "worst")


# --- each of them, from settings to pictures --------------------------------------------------------------------------


TINY = {"data.train": 48, "data.val": 8, "data.test": 4, "stage2.steps": 10, "stage2.batch": 8,
        "transformer.width": 16, "transformer.hidden": 16, "transformer.layers": 1}  # fmt: skip
holes_once = cache(random_holes)  # the walks that make them take a second


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Images and an untrained tokenizer, for all recipes."""
    cache = tmp_path_factory.mktemp("cache")
    return open_dataset("toycats", n_train=48, n_val=8, n_test=4, seed=0, cache=cache), untrained_pair().tokenizer


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_trains_and_decodes_by_name(name, tiny, monkeypatch):
    monkeypatch.setattr("lab5.training.networks.random_holes", holes_once)
    config, (data, tokenizer) = apply(profile("smoke", **TINY), name), tiny
    training = train_transformer(config, data, tokenizer)
    assert [step.lr for step in training] == learning_rates(config.stage2)
    assert all(torch.isfinite(p).all() for p in training.model.parameters())
    pair, images, holes = Pair(tokenizer, training.model, "tiny"), data.test[:3], holes_once(1, 3)
    *_, last = decode_holes(pair, images, holes, config.decode, seed=0)
    assert last.step == (config.decode.stop_at or config.decode.steps) and not last.masked.any()
    assert inpaint_images(pair, images, holes, config.decode, seed=0).shape == images.shape
