"""Multi-head self-attention, softmax(Q Kᵀ / √d) V, by hand.

The same function stands here in three forms: heads cut out of joint matrices (`MultiHeadAttention`), one
small set of matrices per head (`PerHeadAttention`), and PyTorch's own module (`MultiHeadAttention.to_torch`).
Weights can be carried from the first to the others; nothing but their layout differs.
Source: Vaswani et al. 2017, "Attention is all you need", sections 3.2.1 and 3.2.2.

Attention knows no order and no grid: permuted input gives permuted output.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lab5.runtime.dropout import dropout as drop_out


def scaled_dot_product_attention(
    query: Float[Tensor, "*batch N d"],
    key: Float[Tensor, "*batch M d"],
    value: Float[Tensor, "*batch M e"],
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "*batch N e"], Float[Tensor, "*batch N M"]]:
    """Every query takes the average of the values, weighted by how well their keys match it.

    Returns the averages and the weights, whose rows sum to 1. `dropout` is the probability with which a
    weight is left out of the average (those returned are whole); the caller sets it to 0 outside training.
    """
    # A sum of d products of unit variance has variance d; divided by √d, the softmax does not saturate at the start.
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)  # (N, d) x (d, M) -> (N, M)
    weights = scores.softmax(dim=-1)  # over the keys
    return drop_out(weights, dropout) @ value, weights  # (N, M) x (M, e) -> (N, e)


class MultiHeadAttention(nn.Module):
    """Self-attention in `heads` subspaces of `width // heads` dimensions each.

    With `fused=True` PyTorch's fused kernel does the same arithmetic without ever storing the N x N weights.
    The parameters are the same, and `fused` may be switched at any time. The CPU's kernel cannot drop weights:
    training with dropout > 0 falls back to the function above, and the setting that avoids it is
    `transformer.attention_dropout=0`.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, fused: bool = False):
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.dropout = dropout
        self.fused = fused
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B N D"], return_weights: bool = False
    ) -> Float[Tensor, "B N D"] | tuple[Float[Tensor, "B N D"], Float[Tensor, "B heads N N"]]:
        """The attended x; with `return_weights` also the weights (B, heads, from N, to N), by hand."""
        query = self._split(self.query(x))  # (B, N, D) -> (B, heads, N, d)
        key = self._split(self.key(x))
        value = self._split(self.value(x))
        dropout = self.dropout if self.training else 0.0
        if self.fused and not return_weights and (dropout == 0 or x.device.type != "cpu"):
            attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
            return self.out(_join(attended))
        attended, weights = scaled_dot_product_attention(query, key, value, dropout)  # weights (B, heads, N, N)
        output = self.out(_join(attended))  # (B, heads, N, d) -> (B, N, D)
        return (output, weights) if return_weights else output

    def _split(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N d"]:
        """Cut the width into heads. A bare view to (B, heads, N, d) has the right shape but mixes tokens."""
        images, positions, width = x.shape
        return x.view(images, positions, self.heads, width // self.heads).transpose(1, 2)

    @torch.no_grad()
    def to_torch(self) -> nn.MultiheadAttention:
        """PyTorch's own module with a copy of these weights, query, key and value stacked into one matrix."""
        linears = (self.query, self.key, self.value)
        weight = self.query.weight
        twin = nn.MultiheadAttention(weight.shape[0], self.heads, self.dropout, batch_first=True)
        twin.to(weight.device, weight.dtype)
        twin.in_proj_weight.copy_(torch.cat([linear.weight for linear in linears]))
        twin.in_proj_bias.copy_(torch.cat([linear.bias for linear in linears]))
        twin.out_proj.load_state_dict(self.out.state_dict())
        return twin.train(self.training)


class AttentionHead(nn.Module):
    """One head with matrices of its own, from the full width down to `size` dimensions."""

    def __init__(self, width: int, size: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.query = nn.Linear(width, size)
        self.key = nn.Linear(width, size)
        self.value = nn.Linear(width, size)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N d"]:
        dropout = self.dropout if self.training else 0.0
        return scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), dropout)[0]


class PerHeadAttention(nn.Module):
    """Multi-head attention as its equation reads: run each head, lay the results side by side, mix them."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        _check_heads(width, heads)
        self.heads = nn.ModuleList(AttentionHead(width, width // heads, dropout) for _ in range(heads))
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.out(torch.cat([head(x) for head in self.heads], dim=-1))

    @classmethod
    @torch.no_grad()
    def from_fused(cls, attention: MultiHeadAttention) -> "PerHeadAttention":
        """The same function with copied weights: head h owns rows h*d to (h+1)*d of each joint matrix."""
        weight = attention.query.weight
        split = cls(weight.shape[0], attention.heads, attention.dropout).to(weight.device, weight.dtype)
        for name in ("query", "key", "value"):
            joint = getattr(attention, name)
            weights, biases = joint.weight.chunk(attention.heads), joint.bias.chunk(attention.heads)
            for head, head_weight, head_bias in zip(split.heads, weights, biases, strict=True):
                getattr(head, name).weight.copy_(head_weight)
                getattr(head, name).bias.copy_(head_bias)
        split.out.load_state_dict(attention.out.state_dict())
        return split.train(attention.training)


def _join(attended: Float[Tensor, "B heads N d"]) -> Float[Tensor, "B N D"]:
    """Lay the heads side by side again; without the transpose, positions and heads would be mixed."""
    return attended.transpose(1, 2).flatten(start_dim=2)


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"width must be divisible by heads, but width is {width} and heads is {heads}.")
