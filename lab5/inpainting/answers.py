"""A transformer that is not asked the same thing twice: what it answered is kept for as long as tokens stay the same.

The answer at an image's masked positions depends on that image's tokens and hints alone. A step that commits nothing
of an image, such as many of the first ones of a hundred, asks nothing new about it; and all decodings of a study that
begin with the same tokens ask the same at first.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.runtime.transfers import Places
from lab5.transformer import BidirectionalTransformer


class Answer(NamedTuple):
    """What was asked, and what came back."""

    tokens: Int[Tensor, "B N"]
    where: Bool[Tensor, "B N"]
    logits: Float[Tensor, "M ids"]  # image by image, at the positions of `where`

    def of_images(self, chosen: slice) -> "Answer":
        """The same for some of the images."""
        before, here = (int(self.where[part].sum()) for part in (slice(chosen.start), chosen))
        return Answer(self.tokens[chosen], self.where[chosen], self.logits[before : before + here])


class Remembering:
    """A model for `lab5.decoder`: the transformer, shown `hints` (B, N, hints), which keeps its last `answer`.

    It looks which images changed, for which a GPU would have to be waited for: meant for a CPU.
    """

    takes_where = True
    training = False

    def __init__(
        self, transformer: BidirectionalTransformer, hints: Float[Tensor, "B N hints"] | None, answer: Answer | None
    ):
        self.transformer, self.hints, self.answer = transformer, hints, answer
        self.mask_id = transformer.mask_id

    def __call__(
        self, tokens: Int[Tensor, "B N"], where: Bool[Tensor, "B N"] | Places | None = None
    ) -> Float[Tensor, "B N ids"] | Float[Tensor, "M ids"]:
        """As the transformer's own."""
        if where is None:
            return self.transformer(tokens, hints=self.hints)
        if not isinstance(where, Tensor):
            where = torch.zeros_like(tokens, dtype=torch.bool).index_put_(where, torch.tensor(True))
        old, asked = self.answer, where.any(dim=1)
        if old is None:
            logits = self._ask(tokens, where, asked)
        else:
            new = asked & ((tokens != old.tokens) | (where != old.where)).any(dim=1)
            logits = old.logits.new_empty(int(where.sum()), old.logits.shape[1])
            logits[_rows(asked & ~new, where)] = old.logits[_rows(asked & ~new, old.where)]
            if new.any():
                logits[_rows(new, where)] = self._ask(tokens, where, new)
        self.answer = Answer(tokens, where, logits)
        return logits

    def _ask(self, tokens: Tensor, where: Tensor, images: Bool[Tensor, "B"]) -> Float[Tensor, "M ids"]:
        if images.all():
            return self.transformer(tokens, where, self.hints)
        hints = None if self.hints is None else self.hints[images]
        return self.transformer(tokens[images], where[images], hints)


def _rows(images: Bool[Tensor, "B"], where: Bool[Tensor, "B N"]) -> Bool[Tensor, " M"]:
    """Of the logits at `where`, those of these images."""
    return images.repeat_interleave(where.sum(dim=1))
