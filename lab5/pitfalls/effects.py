"""What the mistakes do, as rows of a table, numbers, pictures and scores.

The pictures are filled in by the committed networks, which know toy cats.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from lab5.checkpoint import load_transformer
from lab5.data.dataset import token_mask
from lab5.data.holes import fill_holes
from lab5.inpainting.pair import Pair
from lab5.pitfalls import decoding, training
from lab5.pitfalls.catalogue import PITFALLS
from lab5.runtime.folders import pretrained_folder
from lab5.samplers import ORDERS
from lab5.scoring.scores import Scorer


def table_rows(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The pitfalls of these numbers: whether the mistake and the package's own pass its check, and what it does."""
    return [
        {
            "pitfall": pitfall.number,
            "mistake": pitfall.title,
            "its check": verdict(pitfall.check, pitfall.wrong),
            "ours": verdict(pitfall.check, pitfall.right),
            "effect": pitfall.effect(),
        }
        for pitfall in PITFALLS.values()
        if pitfall.number in numbers
    ]


def verdict(check: Callable[[Callable[..., Any]], None], function: Callable[..., Any]) -> str:
    """Whether a function "passes" a check or "fails" it."""
    try:
        check(function)
    except AssertionError:
        return "fails"
    return "passes"


def training_numbers() -> dict[str, tuple[str, Tensor, Tensor]]:
    """What the checks of pitfalls 4 to 9 measure: for each its name, of the package's own, and of the mistake.

    One number or many: of each token, of each query, of each image. The arguments of `lesson_figures.mistakes`.
    """
    measured: dict[str, tuple[str, Callable[..., Any]]] = {
        "missing-transpose": ("|attn(x[π]) − attn(x)[π]| of each token", training.permutation_gaps),
        "softmax-axis": ("sum of each query's weights", training.row_sums),
        "dropout-in-forward": ("difference of two calls, of each token", training.gaps_between_calls),
        "class-axis": ("loss of a model without opinion", training.uniform_loss),
        "ignore-nothing": ("loss of a model that copies", training.loss_of_a_copyist),
        "inverted-mask": ("masked share of each image", training.masked_shares),
    }
    numbers = {}
    for name, (label, measure) in measured.items():
        own, wrong = (torch.as_tensor(measure(f)).flatten() for f in (PITFALLS[name].right, PITFALLS[name].wrong))
        numbers[f"{PITFALLS[name].number} {name.replace('-', ' ')}"] = (label, own, wrong)
    return numbers


def decoding_numbers() -> dict[str, dict[str, Any]]:
    """Right tokens and masked tokens after each of 10 steps, and orders by their rank correlation with probability.

    Of a hole of 85 tokens and a model that knows them all: the arguments of `lesson_figures.pitfall_curves`.
    """
    count, order = ("cosine", decoding.STEPS, decoding.HOLE), decoding.rank_correlation
    return {
        "right": {
            "ours": decoding.right_in_hole(decoding.package),
            "shrinking mask (1)": decoding.right_in_hole(decoding.shrinking_mask),
            "original tokens (2)": decoding.right_in_hole(decoding.original_tokens),
        },
        "masked": {
            "ours": decoding.package_counts(*count),
            "compounding count (11)": decoding.of_the_current_mask(*count),
            "counted from step 0 (12)": decoding.from_step_zero(*count),
        },
        "correlation": {
            "ours: noise of 4.5 on the log-probability": order(ORDERS["confidence"], 4.5),
            "noise of 4.5 on the probability (10)": order(ORDERS["lab"], 4.5),
            "noise of 0.1 on the probability": order(ORDERS["lab"], 0.1),
        },
    }


# --- pictures -------------------------------------------------------------------------------------------------------

AT = (1, 2, 4, 6, 8, 10)  # steps after which a picture is taken
LIFT = 12.0  # on the logit of the mask id: about what the best code is ahead in the committed network

SHOWN: dict[str, decoding.Decoding] = {
    "ours": decoding.package,
    "shrinking mask": decoding.shrinking_mask,
    "original tokens": decoding.original_tokens,
    "known redrawn": decoding.nothing_restored,
    "compounding count": decoding.compounding_count,
    "mask id as a class": decoding.mask_id_as_a_class,
}


class Tempted:
    """The network, with the logit of the mask id lifted: one trained by its own loss never finds it likely."""

    def __init__(self, model: Callable[[Tensor], Tensor], mask_id: int):
        self.model, self.mask_id = model, mask_id

    def __call__(self, tokens: Int[Tensor, "B N"]) -> Tensor:
        logits = self.model(tokens)
        return logits + LIFT * F.one_hot(torch.tensor(self.mask_id), logits.shape[-1])


@torch.no_grad()
def pictures() -> dict[str, UInt8[Tensor, "m 3 64 64"]]:
    """One hole, by each decoding of SHOWN: what is given, the pictures after the steps AT of 10, and the truth.

    As in the lab, the hole is encoded as grey, the network sees tokens alone, and pictures are the decoder's own.
    """
    tokenizer, images, holes = decoding.cats()
    model = load_transformer(pretrained_folder() / "transformer.safetensors")
    truth, holes = images[5:6], holes[5:6]
    grey = fill_holes(truth, holes, "grey")
    tokens, unknown = tokenizer.encode(grey), token_mask(holes)
    rows = {}
    for name, decode in SHOWN.items():
        network = Tempted(model, model.mask_id) if name == "mask id as a class" else model
        states = decode(network, tokens, unknown, generator=training.seeded(), schedule="cosine", steps=10)
        rows[name] = torch.cat([grey, tokenizer.decode(torch.cat([states[t - 1] for t in AT])), truth])
    return rows


# --- scores ---------------------------------------------------------------------------------------------------------

SCORED: dict[str, tuple[int, decoding.Decoding]] = {  # with the number of the pitfall, 0 for none
    "ours": (0, decoding.package),
    "shrinking mask": (1, decoding.shrinking_mask),
    "known redrawn": (3, decoding.nothing_restored),
}


@torch.no_grad()
def scored(pair: Pair, scorer: Scorer, *, steps: int = 12, at: Sequence[int] = (1, 3, 6, 12)) -> pd.DataFrame:
    """A row for each decoding of SCORED and each t: its scores, decoded as the lab does, with a cosine and argmax.

    The same networks and images with the mistake and without: the hole is encoded as grey, the network sees tokens
    alone, and pictures are the decoder's own.
    """
    grey = fill_holes(scorer.truth, scorer.holes, "grey")
    tokens, unknown = pair.tokenizer.encode(grey), token_mask(scorer.holes)
    device = next(pair.transformer.parameters()).device
    rows = []
    for name, (number, decode) in SCORED.items():
        given = tokens.to(device), unknown.to(device)
        states = decode(pair.transformer, *given, generator=training.seeded(), schedule="cosine", steps=steps)
        for t in at:
            row = {"decoding": name, "pitfall": number, "steps": steps, "t": t, "seed": 0}
            rows.append(row | scorer(pair.tokenizer.decode(states[t - 1].cpu()))._asdict())
    return pd.DataFrame(rows)


def early_is_better(table: pd.DataFrame) -> dict[int, bool]:
    """Whether each mistake, by its number, makes stopping early look better than all the steps."""
    by_pitfall = table[table["pitfall"] > 0].groupby("pitfall")["kid"]
    return {number: bool(kids.iloc[:-1].min() < kids.iloc[-1]) for number, kids in by_pitfall}
