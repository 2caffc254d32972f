"""Settings come from a profile and changes to it; what cannot be is refused with a sentence that names it."""

from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest
import torch

from lab5 import trainer
from lab5.config import (
    ClassifierConfig,
    Config,
    DecodeConfig,
    Stage1Config,
    Stage2Config,
    StudyConfig,
    TrainConfig,
    VQGANConfig,
    all_settings,
    allowed,
    check,
    check_decoding,
    meanings,
)
from lab5.data.holes import FILLS, PASTES
from lab5.gamma import SCHEDULES
from lab5.objectives import LOSSES
from lab5.profiles import PROFILES, configure
from lab5.runtime import folders
from lab5.runtime.folders import data_folder, pretrained_folder
from lab5.samplers import CODES, ORDERS
from lab5.trainer import OPTIMISERS, learning_rate
from lab5.variants import BUDGETS

NAN, INF = float("nan"), float("inf")
SECTIONS = [f.name for f in fields(Config) if is_dataclass(getattr(PROFILES["quick"], f.name))]


def value_of(config: Config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_passes_its_own_check(profile):
    config = configure(profile, device="cpu")
    assert config == PROFILES[profile] and config.profile == profile


def test_profiles_and_sections_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        PROFILES["quick"].seed = 1
    with pytest.raises(FrozenInstanceError):
        PROFILES["quick"].decode.steps = 1


def test_a_change_touches_its_setting_alone_and_no_profile():
    before = asdict(PROFILES["quick"])
    changed = asdict(configure("quick", device="cpu", seed=7, **{"decode.steps": 12}))
    assert changed == before | {"seed": 7, "decode": before["decode"] | {"steps": 12}}
    assert asdict(PROFILES["quick"]) == before


@pytest.mark.parametrize(("cuda", "profile", "device"), [(True, "full", "cuda"), (False, "quick", "cpu")])
def test_auto_is_full_on_a_gpu_and_quick_without_one(monkeypatch, cuda, profile, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert (configure().profile, configure().device) == (profile, device)
    assert configure("smoke").device == device


def test_auto_follows_a_device_that_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert configure(device="cpu").profile == "quick"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert configure(device="cuda:1").profile == "full"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "3", 3),
        ("device", "cpu", "cpu"),
        ("decode.schedule", "linear", "linear"),
        ("data.path", "7", "7"),  # a folder may well be called 7
        ("stage2.lr", "3e-4", 3e-4),
        ("stage2.lr", "1", 1.0),
        ("vqgan.attention", "true", True),
        ("vqgan.attention", "False", False),
        ("study.steps", "1,4,16", (1, 4, 16)),
        ("study.steps", "8", (8,)),
        ("study.steps", "[2, 3]", (2, 3)),
        ("study.schedules", "cosine, linear", ("cosine", "linear")),
        ("stage1.betas", "0.9,0.95", (0.9, 0.95)),
        ("vqgan.decoder", "[[64, 64], [32], [16]]", ((64, 64), (32,), (16,))),
    ],
)
def test_strings_of_a_command_line_become_values_of_the_settings_type(name, text, value):
    found = value_of(configure("quick", **{"device": "cpu", name: text}), name)
    assert found == value
    assert type(found) is type(value)
    if isinstance(found, tuple):
        assert [type(item) for item in found] == [type(item) for item in value]


def test_lists_become_tuples_so_that_settings_can_be_hashed():
    config = configure("quick", device="cpu", **{"vqgan.encoder": [[8, 8], [16]], "stage1.betas": [0.9, 0]})
    assert config.vqgan.encoder == ((8, 8), (16,))
    assert config.stage1.betas == (0.9, 0.0) and type(config.stage1.betas[1]) is float
    assert hash(config) != hash(PROFILES["quick"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sed": 3}, "'sed'"),
        ({"decode.step": 3}, "'decode.step'"),
        ({"decod.steps": 3}, "'decod.steps'"),
        ({"decode": 3}, "'decode'"),
        ({"seed.steps": 3}, "'seed.steps'"),
        ({"decode.steps.now": 3}, "'decode.steps.now'"),
    ],
)
def test_a_misspelt_setting_is_refused_by_its_name(changes, named):
    with pytest.raises(ValueError, match=named):
        configure("quick", device="cpu", **changes)


def test_a_misspelt_setting_is_answered_with_those_that_exist():
    with pytest.raises(ValueError, match="DecodeConfig has schedule, steps, stop_at"):
        configure("quick", device="cpu", **{"decode.step": 3})
    with pytest.raises(ValueError, match=f"'qick'; there are auto, {', '.join(PROFILES)}"):
        configure("qick")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "three"),
        ("seed", 3.5),
        ("seed", True),
        ("seed", None),
        ("decode.steps", "8.0"),
        ("stage2.lr", "fast"),
        ("stage2.lr", True),
        ("decode.schedule", 3),
        ("vqgan.attention", 1),
        ("vqgan.attention", "yes"),
        ("study.steps", 8),
        ("study.steps", (1, "four")),
        ("study.steps", "1,four"),
        ("study.schedules", (1, 2)),
        ("vqgan.encoder", (16, 48)),
    ],
)
def test_a_value_of_another_type_is_refused_by_the_settings_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} takes"):
        configure("quick", device="cpu", **{name: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vqgan.codes": 300}, "vqgan.codes = 300 .* transformer.codes"),
        ({"transformer.codes": 300}, "vqgan.codes .* transformer.codes = 300"),
        ({"transformer.positions": 100}, "transformer.positions = 100"),
        ({"transformer.heads": 3}, "transformer.width .* heads = 3"),
        ({"transformer.heads": 0}, "transformer.heads"),
        ({"decode.steps": 8, "decode.stop_at": 9}, "decode.stop_at = 9 .*8"),
        ({"decode.stop_at": -1}, "decode.stop_at must be at least 0, not -1"),
        ({"decode.remask": 0.5, "decode.budget": "entropy"}, "decode.remask keeps a schedule's .*, not entropy"),
        ({"decode.steps": 0}, "decode.steps"),
        ({"stage1.steps": 0}, "stage1.steps"),
        ({"stage2.batch": 0}, "stage2.batch"),
        ({"classifier.accumulate": 0}, "classifier.accumulate"),
        ({"data.train": 10}, "stage1.batch .* 10 images"),
        ({"data.train": 40, "stage2.batch": 41}, "stage2.batch = 41 .* 40 images"),
        ({"classifier.images": 10}, "classifier.batch .* 10 images"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(changes, named):
    with pytest.raises(ValueError, match=named):
        configure("quick", device="cpu", **changes)


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("stage1.lr", (1e-12, 3.0), (0.0, -1e-3, NAN, INF)),
        ("stage2.betas", ((0.0, 0.999),), ((0.9, 1.0), (-0.1, 0.9), (NAN, 0.9))),
        ("classifier.ema", (0.0, 0.9999), (1.0, -0.1, NAN)),
        ("transformer.dropout", (0.0, 0.9), (1.0, -0.1, NAN)),
        ("transformer.attention_dropout", (0.0, 0.9), (1.0, -0.1, NAN)),
        ("stage2.label_smoothing", (0.0, 0.9), (1.0, -0.1, NAN)),
        ("stage2.warmup", (0, 9999), (-1,)),
        ("stage1.clip", (0.0, 5.0), (-1.0, NAN)),
        ("stage2.weight_decay", (0.0, 0.1), (-0.1, INF)),
        ("stage1.autoencoder_share", (0.0, 1.0), (-0.1, 1.1, NAN)),
        ("stage1.beta", (0.0, 2.0), (-1.0, NAN, INF)),
        ("stage1.code_decay", (0.0, 0.9), (1.0, -0.1, NAN)),
        ("stage1.perceptual", (0.0, 2.0), (-1.0, NAN)),
        ("stage1.adversarial", (0.0, 2.0), (-1.0, NAN)),
        ("stage2.decay", (0.1, 0.9), (0.0, 1.0, NAN)),
        ("stage2.decay_every", (1, 99), (0, -1)),
        ("stage2.milestones", ((), (1, 9)), ((0,), (3, -1))),
        ("classifier.images", (64,), (1, 0)),
        ("decode.evidence", (0.0, 2.0), (-1.0, NAN)),
        ("decode.temperature", (0.0, 2.0), (-1.0, NAN, INF)),
        ("decode.temperature_end", (0.0, -1.0), (NAN, INF)),  # below 0 it stays as at the first step
        ("decode.choice_temperature", (0.0, 9.0), (-1.0, NAN)),
        ("decode.choice_temperature_end", (0.0, 9.0), (-1.0, NAN)),
        ("decode.limit", (0.0, 9.0), (-1.0, NAN, INF)),
        ("decode.remask", (0.0, 1.0), (-0.1, 1.1, NAN)),
        ("decode.redo", (0.0, 1.0), (-0.1, 1.1, NAN)),
        ("decode.rounds", (0, 9), (-1,)),
        ("decode.dilate", (0, 3), (-1,)),
        ("decode.passes", (1, 2), (0,)),
        ("decode.batch", (1,), (0,)),
        ("data.seed", (0, 10**12), (-1, 10**12 + 1)),
        ("data.train", (32, 10**6), (0, -5)),
        ("data.val", (1,), (0,)),
        ("data.test", (1,), (0,)),
        ("threads", (0, 4), (-1,)),
        ("seed", (0, 10**12), (-1, 10**12 + 1)),
        ("study.seeds", (1,), (0,)),
        ("study.images", (8,), (7, 0)),
        ("study.steps", ((1,), (8, 1)), ((8, 0), (-1,), ())),
        ("study.schedules", (("linear",),), ((),)),
        ("vqgan.groups", (0, 16), (-16, 5, 32)),
        ("vqgan.middle", ((64, 48),), ((), (0,))),
        ("vqgan.encoder", (((16,), (8,)),), (((16,), (-8,)),)),
    ],
)
def test_every_range_ends_where_it_should(name, accepted, refused):
    for value in accepted:
        assert value_of(configure("quick", device="cpu", **{name: value}), name) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{name} .*(must|needs)"):
            configure("quick", device="cpu", **{name: value})


@pytest.mark.parametrize("name", [name for name, one in meanings().items() if one.metadata["choices"]])
def test_of_choices_all_are_taken_and_no_other_and_the_refusal_names_them(name):
    choices = meanings()[name].metadata["choices"]
    together = {"decode.budget": {"decode.remask": 0.0}}.get(name, {})
    for choice in choices:
        wanted = (choice,) if name.startswith("study.") else choice
        assert value_of(configure("quick", device="cpu", **{name: wanted}, **together), name) == wanted
    wrong = ("nonsense",) if name.startswith("study.") else "nonsense"
    with pytest.raises(ValueError, match=rf"^{name} must be one of {', '.join(choices)}, not 'nonsense'$"):
        configure("quick", device="cpu", **{name: wrong})


def test_the_choices_are_the_names_in_the_tables_that_they_are_of():
    """Written out there, because reading settings needs no torch."""
    tables = {
        (DecodeConfig, "schedule"): SCHEDULES,
        (DecodeConfig, "codes"): CODES,
        (DecodeConfig, "order"): ORDERS,
        (DecodeConfig, "fill"): FILLS,
        (DecodeConfig, "paste"): PASTES,
        (DecodeConfig, "budget"): ("schedule", *BUDGETS),
        (StudyConfig, "schedules"): SCHEDULES,
        (Stage2Config, "loss"): LOSSES,
    }
    for stage in (TrainConfig, Stage1Config, Stage2Config, ClassifierConfig):
        tables[stage, "optimiser"] = OPTIMISERS
        tables[stage, "amp"] = ("bf16", "fp16", "off")
    for (section, name), table in tables.items():
        choices = section.__dataclass_fields__[name].metadata["choices"]
        assert set(choices) == set(table) and len(set(choices)) == len(choices), f"{section.__name__}.{name}"


def test_every_schedule_of_a_training_is_one_of_its_own():
    """The choices and the schedules that the trainer has: none of them is another's under a second name."""
    names = TrainConfig.__dataclass_fields__["schedule"].metadata["choices"]
    settings = {"steps": 40, "warmup": 4, "milestones": (10, 30), "decay_every": 8}
    rates = {name: tuple(trainer.learning_rates(TrainConfig(schedule=name, **settings))) for name in names}
    assert len(set(rates.values())) == len(names) == 5
    with pytest.raises(ValueError, match="^schedule must be one of constant, .*, not 'plateau'"):
        learning_rate(TrainConfig(schedule="plateau"), 1)


# --- what is said of a setting ----------------------------------------------------------------------------------------


def test_every_setting_has_one_line_that_says_what_it_means():
    assert meanings().keys() == all_settings(PROFILES["full"]).keys()
    for name, one in meanings().items():
        about = one.metadata["about"]
        assert about and "\n" not in about and about == about.strip() and len(about) <= 100, name
        assert not about.endswith("."), name
    bare = [one.name for one in fields(Config) if not one.metadata and not is_dataclass(one.default_factory)]
    assert bare == ["profile"]


def test_what_is_allowed_is_said_in_words():
    words = {
        "stage1.lr": "above 0", "stage1.ema": "at least 0 and below 1", "decode.remask": "at least 0 and at most 1",
        "decode.steps": "at least 1", "stage2.loss": "masked, all", "decode.temperature_end": "", "vqgan.attention": "",
        "data.path": "", "seed": "at least 0 and at most 1 000 000 000 000",
    }  # fmt: skip
    assert {name: allowed(meanings()[name]) for name in words} == words


@pytest.mark.parametrize("name", [name for name, one in meanings().items() if isinstance(one.default, float)])
def test_no_number_may_be_endless_or_none_at_all(name):
    for value in (NAN, INF, -INF):
        with pytest.raises(ValueError, match=rf"^{name} must be .*, not {value}$"):
            configure("quick", device="cpu", **{name: value})


def test_a_section_is_checked_by_its_own_name_or_without_one():
    with pytest.raises(ValueError, match="^decode.steps must be at least 1, not 0$"):
        check(DecodeConfig(steps=0), "decode")
    with pytest.raises(ValueError, match="^steps must be at least 1, not 0$"):
        check(DecodeConfig(steps=0))
    with pytest.raises(ValueError, match="^decode.steps must be at least 1, not 0$"):
        check(replace(PROFILES["quick"], decode=DecodeConfig(steps=0)))
    with pytest.raises(ValueError, match=r"^decode.stop_at = 9 must lie in 0\.\.8; 0 means all decode.steps$"):
        check_decoding(DecodeConfig(steps=8, stop_at=9))


def test_items_of_a_setting_that_is_empty_are_counts(monkeypatch):
    """The items of a tuple have the type of its first; an empty one has none."""
    quick = PROFILES["quick"]
    empty = replace(quick, stage2=replace(quick.stage2, milestones=()))
    monkeypatch.setitem(PROFILES, "quick", empty)
    assert configure("quick", device="cpu", **{"stage2.milestones": "3,7"}).stage2.milestones == (3, 7)
    with pytest.raises(ValueError, match="^stage2.milestones takes"):
        configure("quick", device="cpu", **{"stage2.milestones": "soon"})


def test_changes_are_judged_together_and_not_one_by_one():
    config = configure("quick", device="cpu", **{"vqgan.codes": 300, "transformer.codes": 300})
    assert config.vqgan.codes == config.transformer.codes == 300


def test_a_decoding_may_stop_at_any_of_its_steps():
    for stop_at in (0, 1, 8):
        settings = {"decode.steps": 8, "decode.stop_at": stop_at}
        assert configure("quick", device="cpu", **settings).decode.stop_at == stop_at


def test_the_sections_are_all_dataclasses_of_their_own():
    assert set(SECTIONS) == {"data", "vqgan", "transformer", "stage1", "stage2", "classifier", "decode", "study"}


def test_the_full_profile_has_the_labs_networks():
    full = PROFILES["full"]
    assert full.vqgan == VQGANConfig()
    shape = full.transformer
    assert (shape.codes, shape.width, shape.layers, shape.heads, shape.hidden) == (1024, 768, 15, 16, 1536)


def test_data_can_live_elsewhere_but_the_committed_weights_cannot(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("LAB5_DATA")
    assert data_folder() == folders.ROOT / "data"
    assert pretrained_folder() == folders.ROOT / "data" / "pretrained"
