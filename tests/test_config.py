"""Settings come from a profile and changes to it; what cannot be is refused with a sentence that names it."""

from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest
import torch

from lab5 import config as config_module
from lab5.config import Config, VQGANConfig, data_folder, pretrained_folder
from lab5.profiles import PROFILES, configure

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
        ({"decode.stop_at": -1}, "decode.stop_at = -1"),
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
        ("decode.evidence", (0.0, 2.0), (-1.0, NAN)),
        ("decode.temperature", (0.0, 2.0), (-1.0, NAN, INF)),
        ("decode.temperature_end", (0.0, -1.0), ()),  # below 0 it stays as at the first step
        ("decode.choice_temperature", (0.0, 9.0), (-1.0, NAN)),
        ("decode.choice_temperature_end", (0.0, 9.0), (-1.0, NAN)),
        ("data.train", (32, 10**6), (0, -5)),
        ("data.val", (1,), (0,)),
        ("data.test", (1,), (0,)),
        ("threads", (0, 4), (-1,)),
        ("seed", (0, 10**6), (-1,)),
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


def test_the_ranges_are_those_of_settings_that_exist():
    known = {f"{section}.{f.name}" for section in SECTIONS for f in fields(getattr(PROFILES["quick"], section))}
    known |= {name.rpartition(".")[2] for name in known} | {f.name for f in fields(Config)}
    assert set().union(*(names for _, names in config_module.RANGES.values())) <= known


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
    assert data_folder() == config_module.ROOT / "data"
    assert pretrained_folder() == config_module.ROOT / "data" / "pretrained"
