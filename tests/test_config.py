"""Settings come from a profile and changes to it; what cannot be is refused with a sentence that names it."""

from dataclasses import asdict, fields, is_dataclass, replace

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
    flat,
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


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_passes_its_own_check(profile):
    config = configure(profile, device="cpu")
    assert config == PROFILES[profile] and config.profile == profile


def test_a_change_touches_its_setting_alone_and_no_profile():
    before = asdict(PROFILES["quick"])
    changed = asdict(configure("quick", device="cpu", seed=7, **{"decode.steps": 12}))
    assert changed == before | {"seed": 7, "decode": before["decode"] | {"steps": 12}}
    assert asdict(PROFILES["quick"]) == before


@pytest.mark.parametrize("cuda", [True, False])
def test_auto_is_gpu_on_a_gpu_and_quick_without_one_and_follows_a_device_that_is_named(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert (configure().profile, configure().device) == (("gpu", "cuda") if cuda else ("quick", "cpu"))
    assert configure("smoke").device == configure().device
    assert (configure(device="cpu").profile, configure(device="cuda:1").profile) == ("quick", "gpu")


@pytest.mark.parametrize(("capability", "half"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_on_a_gpu_what_is_in_half_precision_is_in_the_one_that_the_card_is_fast_at(monkeypatch, capability, half):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for profile, trained in (("gpu", half), ("full", half), ("quick", "off")):
        config = configure(profile)
        assert (config.stage1.amp, config.stage2.amp, config.decode.amp) == (trained, trained, half)
    assert configure("gpu", **{"decode.amp": "off"}).decode.amp == "off"
    assert configure("gpu", device="cpu") == PROFILES["gpu"]


@pytest.mark.parametrize(
    ("name", "given", "value"),
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
        ("stage1.betas", [0.9, 0], (0.9, 0.0)),
        ("vqgan.decoder", "[[64, 64], [32], [16]]", ((64, 64), (32,), (16,))),
        ("vqgan.encoder", [[8, 8], [16]], ((8, 8), (16,))),
    ],
)
def test_texts_and_lists_become_values_of_the_settings_type_which_can_be_hashed(name, given, value):
    config = configure("quick", **{"device": "cpu", name: given})
    found = all_settings(config)[name]
    assert found == value and type(found) is type(value)
    assert [type(item) for item in flat(found)] == [type(item) for item in flat(value)]
    assert hash(config) == hash(configure("quick", **{"device": "cpu", name: value}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sed", "there is no setting 'sed'; Config has profile, device, seed"),
        ("decode.step", "there is no setting 'decode.step'; DecodeConfig has schedule, steps, stop_at"),
        ("decod.steps", "there is no setting 'decod.steps'; Config has"),
        ("decode", "'decode' is a section; set one of schedule, steps"),
        ("seed.steps", "there is no setting 'seed.steps'; 'seed' is a single value"),
        ("decode.steps.now", "there is no setting 'decode.steps.now'; 'steps' is a single value"),
    ],
)
def test_a_misspelt_setting_is_answered_with_those_that_exist(name, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        configure("quick", device="cpu", **{name: 3})


WRONG = {
    "seed": ("three", 3.5, True, None, "[1, 2]"), "decode.steps": ("8.0",), "stage2.lr": ("fast", True),
    "decode.schedule": (3,), "vqgan.attention": (1, "yes"), "study.steps": (8, (1, "four"), "1,four"),
    "study.schedules": ((1, 2),), "vqgan.encoder": ((16, 48),),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_another_type_is_refused_by_the_settings_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} takes values such as .*, not "):
        configure("quick", device="cpu", **{name: value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vqgan.codes": 300}, "vqgan.codes = 300 must equal transformer.codes = 512"),
        ({"transformer.codes": 300}, "vqgan.codes = 512 must equal transformer.codes = 300"),
        ({"transformer.positions": 100}, "transformer.positions = 100 must be 256"),
        ({"transformer.heads": 3}, "transformer.width = 128 must be a multiple of heads = 3"),
        ({"transformer.hints": 7}, "transformer.hints = 7 must be 0 or vqgan.latent . 16 = 48"),
        ({"vqgan.groups": 5}, "vqgan.groups = 5 must divide every width of the vqgan, but not 16"),
        ({"decode.steps": 8, "decode.stop_at": 9}, r"decode.stop_at = 9 must lie in 0\.\.8; 0 means all decode.steps"),
        ({"decode.remask": 0.5, "decode.budget": "entropy"},
         "decode.remask = 0.5 needs a schedule, but decode.budget = entropy has none"),
        ({"data.train": 10}, "stage1.batch = 16 is more than the 10 images"),
        ({"data.train": 40, "stage2.batch": 41}, "stage2.batch = 41 is more than the 40 images"),
        ({"classifier.images": 10}, "classifier.batch = 64 is more than the 10 images"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(changes, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        configure("quick", device="cpu", **changes)


RANGES = [  # settings, what they may be, what they may not; no number may be NaN or infinite, see below
    (["stage1.lr"], (1e-12, 3.0), (0.0, -1e-3)),
    (["stage2.betas"], ((0.0, 0.999),), ((0.9, 1.0), (-0.1, 0.9), (NAN, 0.9))),
    (["classifier.ema", "transformer.dropout", "transformer.attention_dropout", "stage2.label_smoothing",
      "stage1.code_decay"], (0.0, 0.9999), (1.0, -0.1)),
    (["stage1.clip", "stage2.weight_decay", "stage1.beta", "stage1.perceptual", "stage1.adversarial", "decode.evidence",
      "decode.temperature", "decode.choice_temperature", "decode.choice_temperature_end", "decode.limit"],
     (0.0, 9.0), (-0.1,)),
    (["decode.temperature_end"], (0.0, -1.0), ()),  # below 0 it stays as at the first step
    (["stage1.autoencoder_share", "decode.remask", "decode.redo"], (0.0, 1.0), (-0.1, 1.1)),
    (["stage2.decay"], (0.1, 0.9), (0.0, 1.0)),
    (["stage2.warmup", "decode.rounds", "decode.dilate", "threads"], (0, 4), (-1,)),
    (["stage2.decay_every", "decode.steps", "decode.passes", "decode.batch", "data.val", "data.test", "study.seeds",
      "stage1.steps", "stage2.batch", "classifier.accumulate"], (1, 2), (0, -1)),
    (["decode.stop_at"], (0, 1, 8), (-1, 9)),
    (["transformer.heads"], (1, 2), (0,)),
    (["data.train"], (32, 10**6), (0, -5)),
    (["seed", "data.seed"], (0, 10**12), (-1, 10**12 + 1)),
    (["classifier.images"], (64,), (1, 0)),
    (["stage2.milestones"], ((), (1, 9)), ((0,), (3, -1))),
    (["study.images"], (8,), (7, 0)),
    (["study.steps"], ((1,), (8, 1)), ((8, 0), (-1,), ())),
    (["study.schedules"], (("linear",),), ((),)),
    (["vqgan.groups"], (0, 16), (-16, 32)),
    (["vqgan.middle"], ((64, 48),), ((), (0,))),
    (["vqgan.encoder"], (((16,), (8,)),), (((16,), (-8,)),)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "good", "bad"), [(name, *rest) for names, *rest in RANGES for name in names])
def test_every_range_ends_where_it_should(name, good, bad):
    for value in good:
        assert all_settings(configure("quick", device="cpu", **{name: value}))[name] == value
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{name} .*(must|needs)"):
            configure("quick", device="cpu", **{name: value})


@pytest.mark.parametrize("name", [name for name, one in meanings().items() if one.metadata["choices"]])
def test_of_choices_all_are_taken_and_no_other_and_the_refusal_names_them(name):
    choices = meanings()[name].metadata["choices"]
    for choice in choices:
        wanted = (choice,) if name.startswith("study.") else choice
        assert all_settings(configure("quick", device="cpu", **{name: wanted}))[name] == wanted
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
        (DecodeConfig, "paste"): {*PASTES, "refined"},
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
    for arguments, says in {
        (DecodeConfig(steps=0), "decode"): "decode.steps",
        (DecodeConfig(steps=0),): "steps",
        (replace(PROFILES["quick"], decode=DecodeConfig(steps=0)),): "decode.steps",
    }.items():
        with pytest.raises(ValueError, match=f"^{says} must be at least 1, not 0$"):
            check(*arguments)


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


def test_the_full_profile_has_the_labs_networks():
    full = PROFILES["full"]
    assert full.vqgan == VQGANConfig()
    shape = full.transformer
    assert (shape.codes, shape.width, shape.layers, shape.heads, shape.hidden) == (1024, 768, 15, 16, 1536)


def test_data_can_live_elsewhere_but_the_committed_weights_cannot(monkeypatch, tmp_path):
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setenv("LAB5_DATA", str(tmp_path / "elsewhere"))
    assert data_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("LAB5_DATA")
    assert data_folder() == tmp_path / "data" and pretrained_folder() == tmp_path / "data" / "pretrained"
