"""The bidirectional transformer of MaskGIT: from tokens, some of them the mask id, to logits of the codes everywhere.

Built as the lab builds it, parameter names included, so that a lab checkpoint fits without translation.
Source: Chang et al. 2022, "MaskGIT", section 3; post-norm blocks as in BERT (Devlin et al. 2018).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lab5.attention import MultiHeadAttention
from lab5.config import TransformerConfig
from lab5.runtime.dropout import Dropout
from lab5.runtime.transfers import Places, places

EPS = 1e-12  # of every LayerNorm


class Block(nn.Module):
    """Attention, then a two-layer network, each added to its input.

    norm "post" normalises after the addition, as the lab does: x = LN(x + f(x)). norm "pre" normalises what
    the branch reads: x = x + f(LN(x)), which leaves the sum untouched from the first block to the last and
    trains without a long warm-up (Xiong et al. 2020, "On layer normalization in the transformer
    architecture").
    """

    def __init__(self, config: TransformerConfig, fused: bool):
        super().__init__()
        self.norm = config.norm
        self.Attention = MultiHeadAttention(config.width, config.heads, config.attention_dropout, fused)
        self.LayerNorm1 = nn.LayerNorm(config.width, eps=EPS)
        self.LayerNorm2 = nn.LayerNorm(config.width, eps=EPS)
        self.MLP = nn.Sequential(
            nn.Linear(config.width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.width),
            Dropout(config.dropout),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if self.norm == "pre":
            x = x + self.dropout(self.Attention(self.LayerNorm1(x)))
            return x + self.MLP(self.LayerNorm2(x))
        x = self.LayerNorm1(x + self.dropout(self.Attention(x)))
        return self.LayerNorm2(x + self.MLP(x))

    def attention_weights(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N N"]:
        """Who looks at whom in this block, given the block's input."""
        return self.Attention(self.LayerNorm1(x) if self.norm == "pre" else x, return_weights=True)[1]


class BidirectionalTransformer(nn.Module):
    """Masked tokens to logits.

    `fused` chooses PyTorch's attention kernel or the one written by hand: same parameters, same function.
    `generator` makes the initial weights a function of its seed; without one, torch's global state is used.
    Raises ValueError for a `norm` other than "post" and "pre" and for a width that heads do not divide.
    """

    takes_where = True  # so that a decoder asks about masked positions alone

    def __init__(
        self, config: TransformerConfig, *, fused: bool = True, generator: torch.Generator | None = None
    ):
        super().__init__()
        if config.norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', but it is {config.norm!r}.")
        self.config = config
        self.codes = config.codes
        self.mask_id = config.codes  # the id after the last code
        self.pos_emb = nn.Parameter(torch.empty(config.positions, config.width))
        self.bias = nn.Parameter(torch.zeros(config.positions, config.codes + 1))
        self.tok_emb = nn.Embedding(config.codes + 1, config.width)
        self.hint_emb = nn.Linear(config.hints, config.width, bias=False) if config.hints else None
        self.blocks = nn.ModuleList(Block(config, fused) for _ in range(config.layers))
        self.Token_Prediction = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.LayerNorm(config.width, eps=EPS)
        )
        self.LN = nn.LayerNorm(config.width, eps=EPS)
        self.dropout = Dropout(config.dropout)
        self._initialise(generator)

    def forward(
        self,
        tokens: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"] | Places | None = None,
        hints: Float[Tensor, "B N hints"] | None = None,
    ) -> Float[Tensor, "B N ids"] | Float[Tensor, "M ids"]:
        """Logits of the K codes and, in a last column, of the mask id, which no decoder may choose.

        `hints` are more than tokens can say about each position, such as what is visible of a half-hidden one; none
        and zeros are the same. With `where`, a mask or the rows and columns of M positions, only those get logits, in
        the order of `tokens[where]`: a loss on masked tokens needs no more. Raises ValueError for tokens of another
        length than the position table's and, on a CPU, for tokens outside 0..K.
        """
        x = self._embed(tokens, hints)  # (B, N) -> (B, N, D)
        for block in self.blocks:
            x = block(x)
        bias = self.bias
        if where is not None:
            where = places(where) if isinstance(where, Tensor) else where
            x, bias = x[where], bias[where[1]]  # (B, N, D) -> (M, D)
        return F.linear(self.Token_Prediction(x), self.tok_emb.weight) + bias  # (..., D) -> (..., K + 1)

    @torch.no_grad()
    def attention_weights(
        self, tokens: Int[Tensor, "B N"], hints: Float[Tensor, "B N hints"] | None = None
    ) -> Float[Tensor, "layers B heads N N"]:
        """The attention weights of every layer. Large: at the lab's size 63 MB for one image."""
        x = self._embed(tokens, hints)
        weights = []
        for block in self.blocks:
            weights.append(block.attention_weights(x))
            x = block(x)
        return torch.stack(weights)

    def _embed(self, tokens: Int[Tensor, "B N"], hints: Tensor | None) -> Float[Tensor, "B N D"]:
        if tokens.shape[1] != self.config.positions:
            expected, positions = self.config.positions, tokens.shape[1]
            raise ValueError(f"tokens must have {expected} positions per image, but they have {positions}.")
        # On a GPU the look would cost a synchronisation per call, and CUDA stops at a bad index by itself.
        if tokens.device.type == "cpu" and tokens.numel():
            low, high = (int(end) for end in tokens.aminmax())
            if low < 0 or high > self.mask_id:
                span = f"0..{self.mask_id}, the last being the mask id"
                raise ValueError(f"tokens must lie in {span}, but they span {low}..{high}.")
        x = self.tok_emb(tokens) + self.pos_emb
        if hints is not None:
            if self.hint_emb is None:
                raise ValueError("this transformer was built for tokens alone (hints = 0), but it was given hints.")
            x = x + self.hint_emb(hints)
        return self.dropout(self.LN(x))

    def _initialise(self, generator: torch.Generator | None) -> None:
        nn.init.trunc_normal_(self.pos_emb, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.hint_emb is not None:
            nn.init.zeros_(self.hint_emb.weight)  # so that hints added to a trained network change nothing at first
