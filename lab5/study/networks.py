"""The transformers that a study compares: each learns the same tokens under other settings.

They are trained once, and found on disk from then on. One that is looked at on the way of its training is kept as it
was after so many steps: training goes on from there, as it does after an interruption.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from lab5 import checkpoint
from lab5.config import Config, all_settings
from lab5.data.dataset import Dataset
from lab5.inpainting.pair import Pair, make_pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.objectives import validate
from lab5.profiles import configure
from lab5.runtime.files import load_tensors
from lab5.runtime.processes import run_parallel
from lab5.runtime.ranks import here
from lab5.runtime.states import differences
from lab5.study.run import of_training
from lab5.training.networks import token_cache, train_transformer, validation
from lab5.training.session import Training


class Network(NamedTuple):
    """A transformer by name, and what is changed in a run's settings to train it.

    Several that differ in `training` alone have the same name: one training each, whose seed is the run's + `training`.
    """

    name: str
    changes: Mapping[str, Any]
    stops: tuple[int, ...] = ()  # rising, within the training: steps after which it is kept too, as `name @ step`
    training: int = 0

    def kept(self) -> list[tuple[str, int | None]]:
        """(name, step) of the networks that come of its training, in order; of the finished one the step is None."""
        return [*((f"{self.name} @ {step}", step) for step in self.stops), (self.name, None)]

    def names(self) -> list[str]:
        return [name for name, _ in self.kept()]


def train_networks(config: Config, data: Dataset, tokenizer: Tokenizer, network: Network) -> dict[str, Pair]:
    """The finished transformer, and those on the way to it, behind the tokenizer that they have learned from."""
    changes = dict(network.changes) | {"seed": config.seed + network.training}
    config = configure(config.profile, **(all_settings(config) | changes))
    training = train_transformer(config, data, tokenizer)
    files = {step: training.folder / f"after-{step}.safetensors" for step in network.stops}
    for stop, file in files.items():
        settings = training.settings | {"after": stop}
        if _is_of(file, settings):
            continue
        if not _train_to(training, stop):
            training.forget()  # it is beyond: the same steps again give the same weights
            _train_to(training, stop)
        checkpoint.save_transformer(file, training.model, settings=settings)
    models = [checkpoint.load_transformer(file).to(config.device) for file in files.values()]
    models.append(training.run().model)
    names = [of_training(name, network.training) for name in network.names()]
    return {name: make_pair(tokenizer, model, name) for name, model in zip(names, models, strict=True)}


def train_all(
    config: Config, data: Dataset, tokenizer: Tokenizer, networks: Sequence[Network], jobs: int = 1
) -> Iterator[dict[str, Pair]]:
    """What `train_networks` gives for each of them, over `jobs` processes, as they are done."""
    if networks and here().world > 1:
        token_cache(config, data, tokenizer)  # once, before each has to have it
    for _, pairs in run_parallel(_train_one, (config, data, tokenizer), networks, jobs):
        yield pairs


def _train_one(shared: tuple[Config, Dataset, Tokenizer], network: Network) -> dict[str, Pair]:
    return train_networks(*shared, network)


def _is_of(file: Path, settings: dict[str, Any]) -> bool:
    """Whether a network is there, whole, and was trained by these settings and this version of the code."""
    try:
        return file.exists() and not differences(load_tensors(file)[1].get("settings", {}), settings)
    except ValueError:
        return False


def _train_to(training: Training, stop: int) -> bool:
    """Whether the training is now just there, with its averaged weights in the model and its state on disk."""
    with closing(iter(training)) as steps:
        return any(step.step == stop for step in takewhile(lambda step: step.step <= stop, steps))


def validation_loss(pair: Pair, data: Dataset) -> float:
    """Cross-entropy in nats on the masked tokens of validation images, under masks that stay the same."""
    tokens, *rest = validation(pair.tokenizer, data, bool(pair.transformer.config.hints))
    return validate(pair.transformer, tokens, *rest)["loss"]
