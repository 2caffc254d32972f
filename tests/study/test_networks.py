"""Networks of a study: trained with their changes, and kept on the way as an interrupted training would be."""

from contextlib import closing

import pytest
import torch
from stubs import untrained_pair

from lab5.data.dataset import open_dataset
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.runtime.files import load_tensors, save_tensors
from lab5.study.networks import Network, train_networks, validation_loss
from lab5.training.networks import train_transformer


@pytest.fixture(scope="module")
def config():
    return configure("smoke", device="cpu", **{
        "data.train": 8, "data.val": 4, "data.test": 4, "transformer.width": 16, "transformer.hidden": 16,
        "transformer.layers": 1, "stage2.steps": 6, "stage2.batch": 2, "stage2.warmup": 1, "stage2.ema": 0.5,
    })  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_dataset("toycats", n_train=8, n_val=4, n_test=4, seed=0, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return untrained_pair().tokenizer


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_network_kept_on_the_way_is_the_averaged_one_and_disturbs_nothing(
    config, data, tokenizer, tmp_path, monkeypatch
):
    pairs = train_networks(config, data, tokenizer, Network("watched", {}, stops=(2, 4)))
    assert list(pairs) == ["watched @ 2 #0", "watched @ 4 #0", "watched #0"]
    two, four, end = (weights(pair.transformer) for pair in pairs.values())
    assert not torch.equal(two, four)
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    training = train_transformer(config, data, tokenizer)
    with closing(iter(training)) as steps:
        while next(steps).step < 4:
            pass
    assert torch.equal(four, weights(training.model)), "an interrupt leaves the averaged weights in the network"
    assert torch.equal(end, weights(training.run().model)), "looking on the way changes nothing"


def test_a_network_is_found_again_and_a_lost_stop_is_made_again(config, data, tokenizer):
    def trained() -> torch.Tensor:
        pairs = train_networks(config, data, tokenizer, Network("watched", {}, stops=(3,)))
        return torch.stack([weights(pair.transformer) for pair in pairs.values()])

    first = trained()
    folder = train_transformer(config, data, tokenizer).folder
    end, stop = folder / "transformer.safetensors", folder / "after-3.safetensors"
    made = end.stat().st_mtime_ns
    assert torch.equal(trained(), first) and end.stat().st_mtime_ns == made
    state, meta = load_tensors(stop)
    others = {name: torch.zeros_like(value) for name, value in state.items()}
    of_other_code = meta | {"settings": meta["settings"] | {"code": 0}}
    for spoil in (
        stop.unlink,
        lambda: save_tensors(stop, others, of_other_code),
        lambda: stop.write_bytes(b"damaged"),
    ):
        spoil()
        assert torch.equal(trained(), first)


def test_changes_reach_the_training_and_names_tell_networks_apart(config, data, tokenizer):
    (one,) = train_networks(config, data, tokenizer, Network("one", {})).values()
    (other,) = train_networks(config, data, tokenizer, Network("other", {"stage2.loss": "all"})).values()
    assert not torch.equal(weights(one.transformer), weights(other.transformer)) and one.weights != other.weights
    assert validation_loss(one, data) == validation_loss(one, data) > 0
    again = train_networks(config, data, tokenizer, Network("one", {}, training=1))
    assert list(again) == ["one #1"] and not torch.equal(weights(again["one #1"].transformer), weights(one.transformer))
