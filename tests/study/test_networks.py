"""Networks of a study: trained with their changes, and kept on the way as an interrupted training would be."""

import pytest
import torch

from lab5.data.dataset import get_dataset
from lab5.inpainting.tokenizer import Tokenizer
from lab5.profiles import configure
from lab5.runtime.files import load_tensors, save_tensors
from lab5.study.networks import Network, train_networks, validation_loss
from lab5.training.networks import train_transformer
from lab5.vqgan import VQGAN


@pytest.fixture(scope="module")
def config():
    return configure("smoke", device="cpu", **{"data.train": 8, "data.val": 4, "data.test": 4, "stage2.steps": 6,
                                               "stage2.batch": 2, "stage2.warmup": 1, "stage2.ema": 0.5})  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqgan = VQGAN(config.vqgan)
        torch.nn.init.normal_(vqgan.codebook.embedding.weight)
    return Tokenizer(vqgan)


def weights(pair) -> torch.Tensor:
    return flat(pair.transformer)


def flat(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_network_kept_on_the_way_is_the_averaged_one_and_disturbs_nothing(config, tokenizer, tmp_path, monkeypatch):
    data = get_dataset(config)
    plain = train_networks(config, data, tokenizer, Network("plain", {}))["plain"]
    monkeypatch.setenv("LAB5_DATA", str(tmp_path))
    pairs = train_networks(config, data, tokenizer, Network("watched", {}, stops=(2, 4)))
    assert list(pairs) == ["watched @ 2", "watched @ 4", "watched"]
    assert torch.equal(weights(pairs["watched"]), weights(plain)), "looking on the way changes nothing"
    assert not torch.equal(weights(pairs["watched @ 2"]), weights(pairs["watched @ 4"]))
    monkeypatch.setenv("LAB5_DATA", str(tmp_path / "again"))
    training = train_transformer(config, data, tokenizer)
    steps = iter(training)
    while next(steps).step < 4:
        pass
    steps.close()  # an interrupt leaves the averaged weights in the network
    assert torch.equal(weights(pairs["watched @ 4"]), flat(training.model))


def test_a_network_is_found_again_and_a_lost_stop_is_made_again(config, tokenizer):
    data, network = get_dataset(config), Network("watched", {}, stops=(3,))
    first = train_networks(config, data, tokenizer, network)
    folder = train_transformer(config, data, tokenizer).folder
    made = (folder / "transformer.safetensors").stat().st_mtime_ns
    again = train_networks(config, data, tokenizer, network)
    assert (folder / "transformer.safetensors").stat().st_mtime_ns == made
    (folder / "after-3.safetensors").unlink()
    third = train_networks(config, data, tokenizer, network)
    state, meta = load_tensors(folder / "after-3.safetensors")
    others = {name: torch.zeros_like(value) for name, value in state.items()}
    old = meta["settings"] | {"code": 0}
    save_tensors(folder / "after-3.safetensors", others, meta | {"settings": old})  # of another version of the code
    fourth = train_networks(config, data, tokenizer, network)
    (folder / "after-3.safetensors").write_bytes(b"damaged")
    fifth = train_networks(config, data, tokenizer, network)
    for name in first:
        for pairs in (again, third, fourth, fifth):
            assert torch.equal(weights(first[name]), weights(pairs[name]))


def test_changes_reach_the_training_and_names_tell_networks_apart(config, tokenizer):
    data = get_dataset(config)
    (one,) = train_networks(config, data, tokenizer, Network("one", {})).values()
    (other,) = train_networks(config, data, tokenizer, Network("other", {"stage2.loss": "all"})).values()
    assert not torch.equal(weights(one), weights(other)) and one.weights != other.weights
    assert validation_loss(one, data) == validation_loss(one, data) > 0
