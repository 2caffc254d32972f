"""A training is done once, goes on where it was cut short, and is never taken for another; pairs belong together."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lab5 import checkpoint
from lab5.config import Config
from lab5.data.dataset import get_dataset, token_mask
from lab5.data.holes import fill_holes
from lab5.data.toycats import ATTRIBUTES
from lab5.inpainting.pair import load_pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import MVTMObjective, VQGANObjective
from lab5.profiles import configure
from lab5.runtime.files import load_meta
from lab5.scoring import classifier
from lab5.scoring.classifier import EncoderFeatures, ToyFeatures, get_features, load_classifier, save_classifier
from lab5.trainer import TrainStep
from lab5.training import networks as pipeline
from lab5.training import session as training
from lab5.training.networks import (
    open_pair,
    token_cache,
    train_classifier,
    train_transformer,
    train_vqgan,
    training_holes,
    validation,
)
from lab5.transformer import BidirectionalTransformer
from lab5.vqgan import VQGAN

TINY = {
    "device": "cpu",
    "data.train": 32, "data.val": 8, "data.test": 8,
    "stage1.steps": 8, "stage1.batch": 4, "stage1.warmup": 1,
    "stage2.steps": 5, "stage2.batch": 4, "stage2.warmup": 1,
    "classifier.steps": 3, "classifier.batch": 4, "classifier.images": 16, "classifier.features": 8,
}  # fmt: skip


def tiny(**changes) -> Config:
    return configure("smoke", **TINY | changes)


FINISHED = ["history.json", "settings.json", "vqgan.best.safetensors", "vqgan.safetensors"]


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Bit for bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def never(*_, **__):
    raise AssertionError("nothing should be trained")


def small_vqgan(seed: int = 0) -> VQGAN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VQGAN(tiny().vqgan).eval()


def small_transformer(config: Config, seed: int = 0) -> BidirectionalTransformer:
    return BidirectionalTransformer(config.transformer, generator=torch.Generator().manual_seed(seed)).eval()


# --- a training -------------------------------------------------------------------------------------------------


def test_a_training_changes_the_network_and_measures_it_on_unseen_images():
    config = tiny()
    run = train_vqgan(config, get_dataset(config))
    assert not run.reused and len(run) == 8
    steps = list(run)
    assert [step.step for step in steps] == list(range(1, 9)) and steps == run.history
    assert all("val_psnr_db" in step.metrics for step in steps), "with fewer steps than looks, at every step"
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        untrained = VQGAN(config.vqgan).state_dict()
    trained = run.model.state_dict()
    assert not torch.equal(trained["encoder.model.0.weight"], untrained["encoder.model.0.weight"])
    assert not run.model.training


def test_the_second_time_nothing_is_trained_and_history_and_weights_are_the_same(monkeypatch):
    config = tiny()
    data = get_dataset(config)
    first = train_vqgan(config, data).run()
    monkeypatch.setattr(training, "fit", never)
    again = train_vqgan(config, data)
    assert again.reused and list(again) == [] and again.history == first.history and len(first.history) == 8
    assert again.seconds == first.seconds > 0
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    assert first.run() is first and len(first.history) == 8, "nor is it when the same object is iterated again"


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"stage1.steps": 9}, {"stage1.lr": 0.1}, {"vqgan.latent": 16, "transformer.hints": 0},
    {"data.seed": 6}, {"data.train": 31},
])  # fmt: skip
def test_another_setting_is_another_folder(change):
    config, other = tiny(), tiny(**change)
    folder = train_vqgan(config, get_dataset(config)).folder
    assert train_vqgan(other, get_dataset(other)).folder != folder
    assert train_vqgan(tiny(), get_dataset(config)).folder == folder


def test_a_vqgan_judged_by_another_classifier_is_another_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(classifier, "pretrained_folder", lambda: tmp_path)
    config = tiny(**{"stage1.perceptual": 0.1})
    folders = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        save_classifier(tmp_path / "classifier.safetensors", ToyFeatures({"fur": 3}))
        folders.add(train_vqgan(config, get_dataset(config)).folder)
    assert len(folders) == 2


def test_a_perceptual_weight_without_a_network_to_judge_with_is_refused():
    config = tiny(**{"stage1.perceptual": 0.1})
    with pytest.raises(ValueError, match="stage1.perceptual needs a network to judge with"):
        train_vqgan(config, dataclasses.replace(get_dataset(config), attributes={}))


@pytest.mark.parametrize(("weights", "judges"), [
    ({}, set()), ({"stage1.perceptual": 0.1}, {"perceptual"}), ({"stage1.adversarial": 0.2}, {"adversarial"}),
    ({"stage1.perceptual": 0.1, "stage1.adversarial": 0.2}, {"perceptual", "adversarial"}),
])  # fmt: skip
def test_a_vqgan_is_judged_by_those_that_have_a_weight(monkeypatch, weights, judges):
    asked = {}

    class Remembered(VQGANObjective):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            asked.update(arguments[-1])

    monkeypatch.setattr(pipeline, "VQGANObjective", Remembered)
    config = tiny(**{"stage1.steps": 2, "stage1.autoencoder_share": 0.0} | weights)
    run = train_vqgan(config, get_dataset(config)).run()
    assert {name: weight for name, (weight, _) in asked.items()} == {
        name.removeprefix("stage1."): weight for name, weight in weights.items()
    }
    assert {"perceptual", "adversarial"} & run.history[-1].metrics.keys() == judges


def test_a_critic_begins_as_the_seed_says_whatever_was_drawn_before(monkeypatch, tmp_path):
    losses = []
    for state in (0, 1):
        monkeypatch.setenv("LAB5_DATA", str(tmp_path / str(state)))
        torch.manual_seed(state)
        config = tiny(**{"stage1.adversarial": 0.2, "stage1.steps": 3, "stage1.autoencoder_share": 0.0})
        losses.append([step.loss for step in train_vqgan(config, get_dataset(config))])
    assert losses[0] == losses[1]


def test_settings_of_another_network_change_nothing():
    config = tiny()
    other = tiny(**{"stage2.steps": 7, "decode.steps": 3, "classifier.steps": 9})
    assert train_vqgan(config, get_dataset(config)).folder == train_vqgan(other, get_dataset(other)).folder


def test_a_transformer_of_another_tokenizer_is_another_folder():
    config = tiny()
    data = get_dataset(config)
    folders = {train_transformer(config, data, Tokenizer(small_vqgan(seed))).folder for seed in (0, 0, 1)}
    assert len(folders) == 2


def test_a_run_that_was_cut_short_goes_on_to_the_same_end(monkeypatch, tmp_path):
    config = tiny()
    data = get_dataset(config)
    for step in train_vqgan(config, data):
        if step.step == 3:
            break
    resumed = train_vqgan(config, data)
    assert not resumed.reused and not resumed.file.exists()
    assert [step.step for step in resumed] == [4, 5, 6, 7, 8]
    assert [step.step for step in resumed.history] == list(range(1, 9)), "the history begins at the beginning"
    assert sorted(path.name for path in resumed.folder.iterdir()) == FINISHED
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    whole = train_vqgan(config, data).run()
    assert [(s.loss, s.lr, s.metrics) for s in whole.history] == [(s.loss, s.lr, s.metrics) for s in resumed.history]
    same_weights(whole.model, resumed.model)
    same_weights(checkpoint.load_vqgan(whole.best), checkpoint.load_vqgan(resumed.best))


def test_a_run_that_was_stopped_after_its_last_step_ends_as_if_it_had_not_been(monkeypatch, tmp_path):
    config = tiny()
    data = get_dataset(config)
    for step in train_vqgan(config, data):
        if step.step == 8:
            break
    resumed = train_vqgan(config, data)
    assert list(resumed) == [] and [step.step for step in resumed.history] == list(range(1, 9))
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    whole = train_vqgan(config, data).run()
    same_weights(whole.model, resumed.model)


def test_the_best_network_by_clean_validation_is_kept_as_it_was_then(monkeypatch):
    values = iter([20.0, 23.0, 21.0, 23.0, 22.0, 19.0, 18.0, 20.0])
    monkeypatch.setattr(pipeline, "reconstruction_psnr_db", lambda model, images: next(values))
    config, weights = tiny(), {}
    run = train_vqgan(config, get_dataset(config))
    for step in run:
        weights[step.step] = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    best = checkpoint.load_vqgan(run.best).state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in weights[2].items()), "the first of equals"
    meta = load_meta(run.best)
    assert (meta["step"], meta["metrics"]["val_psnr_db"], meta["settings"]) == (2, 23.0, run.settings)


def test_of_a_transformer_the_one_with_the_lowest_validation_loss_is_kept(monkeypatch):
    values = iter([3.0, 2.0, 2.5, 1.5, 1.75])
    monkeypatch.setattr(pipeline, "validate", lambda model, *_: {"loss": next(values), "accuracy": 0.1})
    config = tiny()
    run = train_transformer(config, get_dataset(config), Tokenizer(small_vqgan())).run()
    assert load_meta(run.best)["step"] == 4
    checkpoint.load_transformer(run.best)


def test_a_network_that_is_not_trained_yet_is_not_handed_out():
    config = tiny()
    run = train_vqgan(config, get_dataset(config))
    with pytest.raises(RuntimeError, match="vqgan is not trained yet"):
        run.model  # noqa: B018


def test_seconds_add_up_over_the_goes_of_a_run():
    run = train_classifier(tiny())
    run.history = [TrainStep(i, 5, 1.0, 0.1, seconds, {}) for i, seconds in enumerate((1.0, 2.5, 0.5, 1.0, 4.0), 1)]
    assert run.seconds == 2.5 + 4.0
    run.history = []
    assert run.seconds == 0


RECORDED = {
    "vqgan": [1.3945, 1.8375, 1.6678, 1.4734, 1.6435, 1.9118, 1.9864, 1.4303],
    "transformer": [4.1373, 3.5063, 3.5867, 3.2270, 3.3542],
    "classifier": [1.2541, 1.2329, 1.2635],
}


def test_trainings_come_out_as_the_version_of_the_code_says():
    """Otherwise those of before, which count as the same, are not: count `training.CODE` up and record new losses."""
    config = tiny()
    data = get_dataset(config)
    vqgan = train_vqgan(config, data).run()
    runs = [vqgan, train_transformer(config, data, Tokenizer(vqgan.model)).run(), train_classifier(config).run()]
    for run in runs:
        assert [step.loss for step in run.history] == pytest.approx(RECORDED[run.name], rel=0.02)
    assert training.CODE == 1


# --- the chain --------------------------------------------------------------------------------------------------


def test_token_cache_holds_the_images_and_their_mirror_images():
    config = tiny()
    data, tokenizer = get_dataset(config), Tokenizer(small_vqgan())
    tokens = token_cache(config, tokenizer, data)
    assert torch.equal(tokens.long(), torch.cat([tokenizer.encode(data.train), tokenizer.encode(data.train.flip(3))]))


def test_validation_holes_stay_the_same_and_are_not_those_of_training():
    config = tiny()
    data, tokenizer = get_dataset(config), Tokenizer(small_vqgan())
    tokens, masked, _ = validation(tokenizer, data, False)
    assert torch.equal(tokens.long(), tokenizer.encode(data.val))
    assert torch.equal(masked, validation(tokenizer, data, False)[1])
    training_set = {tuple(mask.tolist()) for mask in token_mask(training_holes(config))}
    assert not training_set & {tuple(mask.tolist()) for mask in masked}


def test_a_classifier_comes_back_from_its_file_and_other_files_are_refused(tmp_path):
    run = train_classifier(tiny()).run()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, found = run.model(images), load_classifier(run.file)(images)
    assert list(found) == list(ATTRIBUTES) and all(torch.equal(found[name], expected[name]) for name in found)
    checkpoint.save_vqgan(tmp_path / "vqgan.safetensors", small_vqgan())
    with pytest.raises(ValueError, match="vqgan.safetensors is not an attribute classifier"):
        load_classifier(tmp_path / "vqgan.safetensors")


def test_toy_cats_are_scored_by_the_classifier_and_photographs_never_by_a_false_fid(monkeypatch, tmp_path, capsys):
    save_classifier(tmp_path / "classifier.safetensors", ToyFeatures({"fur": 3}))
    monkeypatch.setattr(classifier, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setenv("LAB5_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    tokenizer = Tokenizer(small_vqgan())
    ours = get_features(tiny(), tokenizer)
    assert isinstance(ours, ToyFeatures) and ours.attributes == {"fur": 3}
    features = get_features(tiny(**{"data.path": "photographs"}), tokenizer)
    assert isinstance(features, EncoderFeatures) and not features.score_name.startswith("FID")
    said = capsys.readouterr().out
    assert "not FID" in said and str(Path.home()) not in said and "/" not in said and len(said) < 120


# --- pairs ------------------------------------------------------------------------------------------------------


def test_the_trained_pair_is_trained_once(monkeypatch):
    config = tiny()
    data = get_dataset(config)
    pair = open_pair(config, data, "trained")
    assert pair.tokenizer.codes == pair.transformer.codes == 64 and not pair.transformer.training
    monkeypatch.setattr(training, "fit", never)
    again = open_pair(config, data, "trained")
    assert again.weights == pair.weights and pair.weights.startswith("trained ")
    assert torch.equal(again.tokenizer.encode(data.test), pair.tokenizer.encode(data.test))


def write_pair(folder, trained_on: str | None, vqgan_seed: int = 0, transformer_seed: int = 0, codes: int = 64):
    config = tiny(**{"vqgan.codes": codes, "transformer.codes": codes})
    checkpoint.save_vqgan(folder / "vqgan.safetensors", small_vqgan(vqgan_seed))
    settings = {} if trained_on is None else {"settings": {"tokenizer": trained_on}}
    model = small_transformer(config, transformer_seed)
    checkpoint.save_transformer(folder / "transformer.safetensors", model, **settings)


def test_the_pretrained_pair_is_read_from_its_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "pretrained_folder", lambda: tmp_path)
    write_pair(tmp_path, Tokenizer(small_vqgan()).weights_hash)
    config = tiny()
    pair = open_pair(config, get_dataset(config))
    assert pair.weights.startswith("pretrained ") and not pair.transformer.training
    expected = small_transformer(config).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pair.transformer.state_dict().items())


def test_a_transformer_of_another_vqgan_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "pretrained_folder", lambda: tmp_path)
    config = tiny()
    write_pair(tmp_path, Tokenizer(small_vqgan(1)).weights_hash)
    with pytest.raises(ValueError, match="transformer.safetensors was trained on tokens of a VQGAN"):
        open_pair(config, get_dataset(config))
    write_pair(tmp_path, None)  # a file that does not say, such as the lab's, is taken at its word
    open_pair(config, get_dataset(config))


def test_a_transformer_of_another_number_of_codes_is_refused(tmp_path):
    write_pair(tmp_path, None, codes=32)
    with pytest.raises(ValueError, match="predicts 32 codes, but .*vqgan.safetensors has 64"):
        load_pair(tiny(), tmp_path / "vqgan.safetensors", tmp_path / "transformer.safetensors", "own")


def test_the_name_of_a_pair_tells_both_networks(tmp_path):
    names = []
    for vqgan_seed, transformer_seed in ((0, 0), (1, 0), (0, 1), (0, 0)):
        write_pair(tmp_path, None, vqgan_seed, transformer_seed)
        names.append(load_pair(tiny(), tmp_path / "vqgan.safetensors", tmp_path / "transformer.safetensors", "own")[2])
    assert len(set(names)) == 3 and names[0] == names[3] and all(name.startswith("own ") for name in names)


def test_weights_of_another_name_are_refused():
    config = tiny()
    with pytest.raises(ValueError, match="'pretrained' or 'trained', not 'best'"):
        open_pair(config, get_dataset(config), "best")


# --- hints and a start ------------------------------------------------------------------------------------------------


def hinted() -> Config:
    return tiny(**{"transformer.hints": tiny().vqgan.latent + 16})


def test_a_transformer_learns_from_hints_of_its_own_images_and_holes(monkeypatch):
    config = hinted()
    data, tokenizer = get_dataset(config), Tokenizer(small_vqgan())
    seen = []
    true_hints = Tokenizer.hints

    def spy(self, filled, holes):
        seen.append((filled, holes))
        return true_hints(self, filled, holes)

    monkeypatch.setattr(Tokenizer, "hints", spy)
    run = train_transformer(config, data, tokenizer).run()
    both = torch.cat([data.train, data.train.flip(3)])
    of_training = [pair for pair in seen if len(pair[0]) == config.stage2.batch]
    filled, holes = (torch.cat(parts) for parts in zip(*of_training, strict=True))
    assert len(filled) == 20 and ((filled[:, None] == both) | holes[:, None, None]).all((2, 3, 4)).any(1).all()
    assert (holes[:, None] == training_holes(config)).all((2, 3)).any(1).all()
    assert torch.equal(filled, fill_holes(filled, holes, "navier_stokes")), "nothing of what is under a hole"
    assert bool(run.model.hint_emb.weight.abs().sum() > 0), "it has moved from zero"


def test_nine_of_ten_images_come_with_hints_and_their_masked_tokens_lie_in_their_holes():
    config = hinted()
    holes = token_mask(training_holes(config))
    calls = []

    class Watcher(torch.nn.Module):
        mask_id = 4

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, tokens, where, hints):
            calls.append((where, hints))
            return torch.zeros(int(where.sum()), 5) + self.weight

    def hints(images, chosen):
        return holes[chosen][:, :, None].float() + 1  # 2 in the hole, 1 outside, never 0

    objective = MVTMObjective(torch.zeros(64, 256, dtype=torch.int64), config.stage2, 0, holes, hints)
    for draw in range(1, 101):
        objective(Watcher(), draw, torch.Generator().manual_seed(draw))
    where, given = (torch.cat(parts) for parts in zip(*calls, strict=True))
    with_hints = given.amax((1, 2)) > 0
    assert 0.85 < with_hints.float().mean() < 0.95
    assert bool((given[with_hints].squeeze(-1)[where[with_hints]] == 2).all()), "masked, but not in the hole"
    assert bool(where.any(1).all())


def test_a_training_can_begin_with_a_file_that_knows_no_hints(tmp_path):
    config = hinted()
    data, tokenizer = get_dataset(config), Tokenizer(small_vqgan())
    plain = small_transformer(tiny(**{"transformer.hints": 0}), seed=3)
    file = tmp_path / "start.safetensors"
    checkpoint.save_transformer(file, plain)
    change = {"transformer.hints": config.transformer.hints, "stage2.start": str(file), "stage2.lr": 1e-9}
    begun = train_transformer(tiny(**change), data, tokenizer)
    assert begun.folder != train_transformer(config, data, tokenizer).folder
    model = begun.run().model
    torch.testing.assert_close(model.pos_emb, plain.pos_emb, atol=1e-5, rtol=0)
    checkpoint.save_transformer(file, small_transformer(tiny(**{"transformer.hints": 0}), seed=4))
    assert train_transformer(tiny(**change), data, tokenizer).folder != begun.folder, "other weights under its name"


def test_a_start_that_is_missing_or_of_another_shape_is_refused(tmp_path):
    config = tiny(**{"stage2.start": str(tmp_path / "none.safetensors")})
    data, tokenizer = get_dataset(config), Tokenizer(small_vqgan())
    with pytest.raises(FileNotFoundError, match="none.safetensors is no file"):
        train_transformer(config, data, tokenizer)
    file = tmp_path / "start.safetensors"
    checkpoint.save_transformer(file, small_transformer(tiny(**{"transformer.layers": 1})))
    with pytest.raises(ValueError, match="start.safetensors does not fit"):
        train_transformer(tiny(**{"stage2.start": str(file)}), data, tokenizer).run()


def test_a_vqgan_that_is_given_is_used_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "given.safetensors"
    checkpoint.save_vqgan(file, small_vqgan(seed=5))
    monkeypatch.setattr(training, "fit", never)
    config = tiny(**{"stage1.file": str(file)})
    given = train_vqgan(config, get_dataset(config)).run()
    assert given.reused and len(given) == 0 and list(given) == given.history == [] and given.seconds == 0
    for name, tensor in small_vqgan(seed=5).state_dict().items():
        assert torch.equal(given.model.state_dict()[name], tensor)


@pytest.mark.parametrize(("change", "message"), [
    ({"vqgan.codes": 9, "transformer.codes": 9}, "given.safetensors has 64 codes, but transformer.codes = 9"),
    ({"vqgan.latent": 8, "transformer.hints": 24}, "transformer.hints = 24 must be 0 or 48 for"),
])  # fmt: skip
def test_a_vqgan_that_does_not_fit_the_transformer_is_refused(tmp_path, change, message):
    file = tmp_path / "given.safetensors"
    checkpoint.save_vqgan(file, small_vqgan())
    config = tiny(**{"stage1.file": str(file)} | change)
    with pytest.raises(ValueError, match=message):
        train_vqgan(config, get_dataset(config))


def test_the_pretrained_pair_is_not_for_photographs():
    config = tiny()
    with pytest.raises(ValueError, match="knows toy cats only: for toycats take weights 'trained'"):
        open_pair(config, dataclasses.replace(get_dataset(config), attributes={}))
