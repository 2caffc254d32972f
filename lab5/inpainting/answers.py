"""A transformer that is asked for no more than a decoding needs, and for nothing twice; for a CPU.

What it answered is kept for as long as tokens stay the same, and its last block works at masked positions alone.

The answer at an image's masked positions depends on that image's tokens and hints alone. A step that commits nothing
of an image, such as many of the first ones of a hundred, asks nothing new about it; and all decodings of a study that
begin with the same tokens ask the same at first.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lab5.attention import scaled_dot_product_attention
from lab5.runtime.transfers import Places
from lab5.transformer import BidirectionalTransformer, Block


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
            return logits_at(self.transformer, tokens, where, self.hints)
        hints = None if self.hints is None else self.hints[images]
        return logits_at(self.transformer, tokens[images], where[images], hints)


def _rows(images: Bool[Tensor, "B"], where: Bool[Tensor, "B N"]) -> Bool[Tensor, " M"]:
    """Of the logits at `where`, those of these images."""
    return images.repeat_interleave(where.sum(dim=1))


def logits_at(
    transformer: BidirectionalTransformer,
    tokens: Int[Tensor, "B N"],
    where: Bool[Tensor, "B N"],
    hints: Float[Tensor, "B N hints"] | None,
) -> Float[Tensor, "M ids"]:
    """What `transformer(tokens, where, hints)` gives; elsewhere its last block computes nothing but keys and values."""
    x = transformer._embed(tokens, hints)
    *blocks, last = transformer.blocks
    for block in blocks:
        x = block(x)
    x, bias = _block_at(last, x, where), transformer.bias[where.nonzero()[:, 1]]  # (B, N, D) -> (M, D)
    return F.linear(transformer.Token_Prediction(x), transformer.tok_emb.weight) + bias


def _block_at(block: Block, x: Float[Tensor, "B N D"], where: Bool[Tensor, "B N"]) -> Float[Tensor, "M D"]:
    """The block's output at the positions of `where`, which ask about all of their image."""
    attention, pre = block.Attention, block.norm == "pre"
    read = block.LayerNorm1(x) if pre else x
    query = attention.query(read[where]).unflatten(1, (attention.heads, -1)).transpose(0, 1)  # (M, D) -> (heads, M, d)
    key, value = attention._split(attention.key(read)), attention._split(attention.value(read))  # (B, heads, N, d)
    attended = [
        scaled_dot_product_attention(*of_image)[0]
        for of_image in zip(query.split(where.sum(dim=1).tolist(), dim=1), key, value, strict=True)
    ]
    attended = attention.out(torch.cat(attended, dim=1).transpose(0, 1).flatten(1))  # (heads, M, d) -> (M, D)
    x = x[where] + attended
    if pre:
        return x + block.MLP(block.LayerNorm2(x))
    x = block.LayerNorm1(x)
    return block.LayerNorm2(x + block.MLP(x))
