"""Is a checkpoint read as the function that was trained? No tensor shows it, but hidden tokens of images do.

A network that is read otherwise than it was trained predicts worse. So it predicts under each reading that its tensors
allow, and under the known mistakes of attention, and what fits clearly better is said. A network that has hardly begun
to look around may fit a mistake better by accident.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lab5.attention import MultiHeadAttention
from lab5.checkpoint import load_transformer, other_readings
from lab5.data.dataset import Dataset, token_mask
from lab5.data.holes import fill_holes
from lab5.inpainting.pair import Pair, make_pair
from lab5.pitfalls.training import BareView, NoTransposeBack, SoftmaxOverQueries, seeded
from lab5.runtime.attentions import Reading
from lab5.runtime.pickles import is_pickle
from lab5.transformer import BidirectionalTransformer

IMAGES = 16  # that are looked at
CLEARLY = 0.1, 4.0  # by how much another reading has to be better: of what it knows beyond chance; in standard errors


class BareViews(BareView):
    """Heads cut out by a bare view, and laid side by side by another."""

    def forward(self, x):
        attended = F.scaled_dot_product_attention(*(self._split(f(x)) for f in (self.query, self.key, self.value)))
        return self.out(attended.reshape(x.shape))


class SoftmaxOverHeads(MultiHeadAttention):
    """`softmax(dim=1)`, which was right as long as there was no axis of heads."""

    def forward(self, x):
        query, key, value = (self._split(f(x)) for f in (self.query, self.key, self.value))
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class NotScaled(MultiHeadAttention):
    """Scores that are not divided by √d."""

    scale = 1.0

    def forward(self, x):
        query, key, value = (self._split(f(x)) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.out(attended.transpose(1, 2).flatten(2))


class ScaledByWidth(NotScaled):
    """Scores that are divided by the square root of the whole width."""

    @property
    def scale(self):
        return self.out.weight.shape[0] ** -0.5


MISTAKES: dict[str, type[MultiHeadAttention]] = {
    "heads cut out by a bare view": BareView,
    "heads cut out and joined by bare views": BareViews,
    "heads joined without the transpose back": NoTransposeBack,
    "the softmax over the queries": SoftmaxOverQueries,
    "the softmax over the heads": SoftmaxOverHeads,
    "scores that are not scaled": NotScaled,
    "scores scaled by the whole width": ScaledByWidth,
}
"""What the attention of a solution may have done in place of softmax(QKᵀ/√d)V, with the same tensors."""


@contextmanager
def mistaken(model: BidirectionalTransformer, mistake: type[MultiHeadAttention]) -> Iterator[None]:
    """The network with this attention in every block, of the same weights."""
    attentions = [block.Attention for block in model.blocks]
    for attention in attentions:
        attention.__class__ = mistake
    try:
        yield
    finally:
        for attention in attentions:
            attention.__class__ = MultiHeadAttention


@torch.no_grad()
def hidden_losses(
    model: BidirectionalTransformer, tokens: Int[Tensor, "B N"], unknown: Bool[Tensor, "B N"]
) -> Float[Tensor, " B"]:
    """Each image's mean cross-entropy, in nats, on half of its known tokens, which are hidden together with the others.

    The same tokens are hidden whatever the model.
    """
    device = next(model.parameters()).device
    hidden = (torch.rand(tokens.shape, generator=seeded()) < 0.5) & ~unknown
    logits = model(tokens.masked_fill(unknown | hidden, model.mask_id).to(device))[..., : model.codes].cpu().float()
    losses = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    return (losses * hidden).sum(1) / hidden.sum(1).clamp(min=1)


def is_clearly_less(losses: Float[Tensor, " B"], than: Float[Tensor, " B"], codes: int) -> bool:
    """Whether images are predicted better, by more than luck explains, and than little training does."""
    gain, known = than - losses, math.log(codes) - float(losses.mean())
    share, errors = CLEARLY
    return known > 0 and float(gain.mean()) > max(share * known, errors * float(gain.std()) / math.sqrt(len(gain)))


def fit_reading(pair: Pair, file: Path, data: Dataset, reading: Reading) -> tuple[Pair, list[str]]:
    """The pair with its transformer as it predicts best, and what there is to say of that, each in a sentence.

    `file` is where the transformer is from, read by `reading`. Where that says nothing, another reading of the same
    tensors that fits clearly better takes its place; a mistake is told, because no reading can mend it. Files of ours
    are read in one way, and pass unseen.
    """
    if not is_pickle(file):
        return pair, []
    images, holes = data.masked_test[:IMAGES], data.holes[:IMAGES]
    tokens, unknown = pair.tokenizer.encode(fill_holes(images, holes, "grey")), token_mask(holes)
    losses, codes, sentences = hidden_losses(pair.transformer, tokens, unknown), pair.transformer.codes, []
    others: dict[Reading, Tensor] = {}
    for other in other_readings(file, reading):
        others[other] = hidden_losses(_read(file, other, pair), tokens, unknown)
    if others:
        best = min(others, key=lambda other: float(others[other].mean()))
        how, costs = _told(best, reading), _costs(others[best], losses)
        if not is_clearly_less(others[best], losses, codes):
            if not is_clearly_less(losses, others[best], codes):
                sentences.append(f"{file} could also be read by --read {how}, and these images do not tell: {costs}")
        elif reading == Reading():
            pair, losses = make_pair(pair.tokenizer, _read(file, best, pair), file.stem), others[best]
            sentences.append(f"{file} is read by --read {how}, which fits clearly better: {costs}")
        else:
            sentences.append(f"{file} would fit clearly better by --read {how}: {costs}")
    mistakes = {}
    for name, mistake in MISTAKES.items():
        with mistaken(pair.transformer, mistake):
            mistakes[name] = hidden_losses(pair.transformer, tokens, unknown)
    likeliest = min(mistakes, key=lambda name: float(mistakes[name].mean()))
    if is_clearly_less(mistakes[likeliest], losses, codes):
        sentences.append(
            f"{file} fits clearly better with a mistake in its attention, {likeliest}: "
            f"{_costs(mistakes[likeliest], losses)}; if its own code has that, it is read as another network"
        )
    return pair, sentences


def _costs(losses: Tensor, without: Tensor) -> str:
    return f"{losses.mean():.2f} nats for a hidden token, {without.mean():.2f} without"


def _read(file: Path, reading: Reading, pair: Pair) -> BidirectionalTransformer:
    return load_transformer(file, reading).to(next(pair.transformer.parameters()).device)


def _told(reading: Reading, usual: Reading) -> str:
    """What a reading says, as --read takes it."""
    usually = asdict(usual)
    return " ".join(f"{name}={value}" for name, value in asdict(reading).items() if value != usually[name])


def parse_reading(words: list[str]) -> Reading:
    """KEY=VALUE, KEY=VALUE ... Raises ValueError for what a reading has no place for."""
    given: dict[str, str | int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in asdict(Reading()) or not value:
            raise ValueError(f"--read takes {', '.join(asdict(Reading()))}, each as KEY=VALUE, not {word!r}")
        given[key] = value
    if not str(given.get("heads", 0)).isdecimal():
        raise ValueError(f"--read heads= takes a number, not {given['heads']!r}")
    return Reading(**(given | {"heads": int(given.get("heads", 0))}))
