"""Mistakes in attention and training, written as public solutions of the lab make them, with checks and effects.

A check takes the mistake or the package's own function for the same job: it complains with a sentence about the one
and is silent about the other. An effect is a number that shows what the mistake does.

`lab5.pitfalls.catalogue` says which mistake is where from, and puts the pairs together.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.attention import MultiHeadAttention, scaled_dot_product_attention
from lab5.config import TrainConfig
from lab5.objectives import masked_cross_entropy, validate
from lab5.runtime.transfers import Places
from lab5.trainer import TrainStep, fit, learning_rate, learning_rates

K, N = 1024, 256


class Stub(nn.Module):
    """In the place of the transformer: its logits are a function of the tokens that it is shown."""

    def __init__(self, answer: Callable[[Tensor], Tensor]):
        super().__init__()
        self.answer, self.mask_id, self.weight = answer, K, nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, where: Tensor | Places | None = None) -> Tensor:
        logits = self.answer(tokens) + self.weight
        return logits if where is None else logits[where]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_tokens(images: int = 2) -> Tensor:
    return torch.randint(K, (images, N), generator=seeded(1))


def without_opinion(tokens: Tensor) -> Tensor:
    """The same logit for every code."""
    return torch.zeros(*tokens.shape, K + 1)


# --- 4, 5, 6: attention ---------------------------------------------------------------------------------------------


class BareView(MultiHeadAttention):
    """Heads cut out by a view alone: the shape is right, but a head holds pieces of neighbouring tokens."""

    def _split(self, x):
        images, positions, width = x.shape
        return x.view(images, self.heads, positions, width // self.heads)


class NoTransposeBack(MultiHeadAttention):
    """Heads laid side by side without the transpose: a token gets a head's answers to other tokens."""

    def forward(self, x):
        attended, _ = scaled_dot_product_attention(*(self._split(f(x)) for f in (self.query, self.key, self.value)))
        return self.out(attended.reshape(x.shape))


@torch.no_grad()
def permutation_gaps(attention: Callable[[int, int], nn.Module]) -> Tensor:
    """How far attn(x[perm]) is from attn(x)[perm] at each token: positions mean nothing to attention, so not at all."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = attention(768, 16).eval()
    x, permutation = torch.randn(1, N, 768, generator=seeded()), torch.randperm(N, generator=seeded())
    return (layer(x[:, permutation]) - layer(x)[:, permutation])[0].abs().amax(-1)


def check_permutation(attention: Callable[[int, int], nn.Module]) -> None:
    gap = float(permutation_gaps(attention).max())
    assert gap < 1e-5, f"permuted positions give another answer than the permuted answer: {gap:.2g} apart"


def softmax_over_queries(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-2)
    return weights @ value, weights


class SoftmaxOverQueries(MultiHeadAttention):
    """The whole layer with this softmax."""

    def forward(self, x):
        attended, _ = softmax_over_queries(*(self._split(f(x)) for f in (self.query, self.key, self.value)))
        return self.out(attended.transpose(1, 2).flatten(2))


def row_sums(attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """What each query's weights sum to."""
    return attend(*torch.randn(3, 1, N, 48, generator=seeded()))[1].sum(-1)[0]


def check_row_sums(attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    low, high = map(float, row_sums(attend).aminmax())
    assert abs(low - 1) + abs(high - 1) < 1e-4, f"a query's weights must sum to 1, but sums run {low:.2f} to {high:.2f}"


class DropoutInForward(MultiHeadAttention):
    """A dropout made anew in every call is in training mode, whatever the network's mode is."""

    def forward(self, x):
        return nn.Dropout(self.dropout)(super().forward(x))


@torch.no_grad()
def gaps_between_calls(attention: Callable[..., nn.Module]) -> Tensor:
    """How far two answers to the same tokens are apart in evaluation mode, for each token, as a share of the first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer, x = attention(96, 2, dropout=0.1).eval(), torch.randn(1, N, 96)
        first, second = layer(x), layer(x)
    return ((first - second).norm(dim=-1) / first.norm(dim=-1))[0]


def check_evaluation(attention: Callable[..., nn.Module]) -> None:
    gap = float(gaps_between_calls(attention).mean())
    assert gap == 0, f"two calls in evaluation mode must agree, but they differ by {gap:.0%}"


# --- 7, 8: the loss -------------------------------------------------------------------------------------------------


def class_axis_on_positions(model: nn.Module, tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """torch wants the classes on axis 1. One-hot targets have the shape of the logits, so nothing complains."""
    codes = model.mask_id
    logits = model(tokens.masked_fill(masked, codes))[..., :codes]
    loss = F.cross_entropy(logits, F.one_hot(tokens, codes).float())
    return loss, (logits.argmax(-1) == tokens)[masked].float().mean()


def ignore_nothing(model: nn.Module, tokens: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """ignore_index=-1 among targets none of which is -1."""
    logits = model(tokens.masked_fill(masked, model.mask_id))[..., : model.mask_id]
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=-1)
    return loss, (logits.argmax(-1) == tokens)[masked].float().mean()


@torch.no_grad()
def uniform_loss(loss: Callable[..., tuple[Tensor, Tensor]]) -> float:
    """Of a model without opinion: the logarithm of the number of classes, whatever the tokens are."""
    return float(loss(Stub(without_opinion), some_tokens(), torch.ones(2, N, dtype=torch.bool))[0])


def check_uniform_loss(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    value = uniform_loss(loss)
    assert abs(value - math.log(K)) < 1e-3, f"a model without opinion must lose {math.log(K):.2f}, not {value:.3f}"


@torch.no_grad()
def loss_of_a_copyist(loss: Callable[..., tuple[Tensor, Tensor]]) -> float:
    """Of a model that copies what it is shown and knows nothing else, with half of the tokens masked."""
    masked = torch.arange(N).expand(2, N) % 2 == 0
    copyist = Stub(lambda tokens: 50.0 * F.one_hot(tokens, K + 1).float().masked_fill((tokens == K)[..., None], 0.0))
    return float(loss(copyist, some_tokens(), masked)[0])


def check_only_masked_count(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    value = loss_of_a_copyist(loss)
    assert abs(value - math.log(K)) < 1e-3, f"copying known tokens must earn nothing, but the loss is {value:.2f}"


# --- 9: the mask ----------------------------------------------------------------------------------------------------


def masked_shares(masking: Callable[..., Tensor]) -> Tensor:
    """The share of each of 2000 images that is masked."""
    return masking(2000, N, None, seeded()).float().mean(1)


def check_masked_share(masking: Callable[..., Tensor]) -> None:
    mean = float(masked_shares(masking).mean())
    assert abs(mean - 2 / math.pi) < 0.03, f"cos(pi u / 2) masks 64 % of the tokens on average, not {mean:.0%}"


# --- 16: validation -------------------------------------------------------------------------------------------------


def fresh_masks(model: nn.Module, tokens: Tensor, masked: Tensor) -> dict[str, float]:
    return validate(model, tokens, torch.rand(tokens.shape) < torch.rand(()))


@torch.no_grad()
def dropout_on(model: nn.Module, tokens: Tensor, masked: Tensor) -> dict[str, float]:
    return {"loss": float(masked_cross_entropy(model.train(), tokens, masked)[0])}


@torch.no_grad()
def wrong_count(model: nn.Module, tokens: Tensor, masked: Tensor, batch: int = 10) -> dict[str, float]:
    """Each batch's mean is multiplied by its images, but the sum is divided by the number of batches."""
    parts = list(zip(tokens.split(batch), masked.split(batch), strict=True))
    total = sum(float(masked_cross_entropy(model.eval(), *part)[0]) * len(part[0]) for part in parts)
    return {"loss": total / len(parts)}


def validations(judge: Callable[..., dict[str, float]], times: int) -> list[float]:
    """Of one network on the same images, several times. It knows some positions better than others."""
    tokens, masked = some_tokens(1).expand(10, N), torch.rand(10, N, generator=seeded()) < 0.5
    dropout, logits = nn.Dropout(0.1), torch.linspace(0, 12, N)[:, None] * F.one_hot(tokens[0], K + 1)
    model = Stub(lambda tokens: dropout(logits.expand(len(tokens), N, K + 1)))
    model.dropout = dropout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [judge(model, tokens, masked)["loss"] for _ in range(times)]


def check_validation(judge: Callable[..., dict[str, float]]) -> None:
    first, second = validations(judge, 2)
    assert first == second, f"validated twice, one network must get one loss, not {first:.3f} and {second:.3f}"
    value = judge(Stub(without_opinion), some_tokens(10), torch.ones(10, N, dtype=torch.bool))["loss"]
    assert abs(value - math.log(K)) < 1e-3, f"a model without opinion must get {math.log(K):.2f}, not {value:.1f}"


def validation_effect() -> str:
    means = []
    for judge in (validate, fresh_masks, dropout_on, wrong_count):
        losses = torch.tensor(validations(judge, 5))
        means.append(f"{judge.__name__.replace('_', ' ')} {float(losses.mean()):.2f} ± {float(losses.std()):.3f}")
    return "five looks at one network: " + ", ".join(means)


# --- 17: the loop ---------------------------------------------------------------------------------------------------


def _loop(model: nn.Module, objective: Callable, config: TrainConfig, seed: int, rate: Callable, shift: int = 0):
    """A plain training loop; it makes a step whenever `accumulate` divides the batch's number, plus a `shift`."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=config.betas, weight_decay=0.0)
    for draw in range(1, config.steps * config.accumulate + 1):
        loss, metrics = objective(model, draw, seeded(seed * 1_000_003 + draw))
        (loss / config.accumulate).backward()
        if (draw + shift) % config.accumulate == 0:
            step = -(-draw // config.accumulate)
            optimiser.param_groups[0]["lr"] = rate(config, step)
            optimiser.step()
            optimiser.zero_grad()
            yield TrainStep(step, config.steps, float(loss.detach()), rate(config, step), 0.0, metrics)


def never_stepped(model: nn.Module, objective: Callable, config: TrainConfig, *, seed: int) -> Iterator[TrainStep]:
    """A scheduler that is made and never called."""
    return _loop(model, objective, config, seed, lambda config, step: config.lr)


def stepped_per_batch(model: nn.Module, objective: Callable, config: TrainConfig, *, seed: int) -> Iterator[TrainStep]:
    """A scheduler that counts batches where it was told steps."""

    def rate(config: TrainConfig, step: int) -> float:
        return learning_rate(config, min(config.steps, step * config.accumulate))

    return _loop(model, objective, config, seed, rate)


def first_batch_alone(model: nn.Module, objective: Callable, config: TrainConfig, *, seed: int) -> Iterator[TrainStep]:
    """`if i % accumulate == 0` with i from 0: the first step has seen one batch, the last batches come to nothing."""
    return _loop(model, objective, config, seed, learning_rate, shift=-1)


LOOP = TrainConfig(
    steps=12, batch=1, lr=0.1, accumulate=3, schedule="warmup_linear", warmup=3, ema=0.0, clip=0.0, amp="off"
)


def tug_of_war(model: nn.Module, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Of every three batches the first pulls the weight down, the others pull it up, harder."""
    return model.weight * (1.0 if draw % 3 == 1 else -2.0), {}


def check_loop(train: Callable[..., Iterator[TrainStep]]) -> None:
    model = Stub(without_opinion)
    steps = train(model, tug_of_war, LOOP, seed=0)
    rates = [next(steps).lr]
    assert float(model.weight.detach()) > 0, "the first step must follow all batches in it, not the first alone"
    rates += [step.lr for step in steps]
    for step, (rate, expected) in enumerate(zip(rates, learning_rates(LOOP), strict=True), start=1):
        assert rate == expected, f"the learning rate of step {step} must be {expected:.3f}, not {rate:.3f}"


def loop_effect() -> str:
    config = replace(LOOP, steps=80, warmup=8, accumulate=4, lr=1e-3)
    numbers = []
    for name, train in {"planned": fit, "never stepped": never_stepped, "counts batches": stepped_per_batch}.items():
        rates = [step.lr for step in train(Stub(without_opinion), tug_of_war, config, seed=0)]
        numbers.append(f"{name} {rates[19]:.0e} and {rates[-1]:.0e}")
    return "learning rate after a quarter and at the end: " + ", ".join(numbers)
