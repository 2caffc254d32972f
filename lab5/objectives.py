"""What is minimised: the VQGAN's loss, and masked visual token modelling (MVTM).

`VQGANObjective` and `MVTMObjective` are objectives for `lab5.trainer.fit`: each holds its data and draws its own batch
for the step at hand.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.config import Stage1Config, Stage2Config, VQGANConfig
from lab5.data.dataset import channel_stats, normalise
from lab5.masking import mvtm_mask, part_of, read_masking
from lab5.runtime.ranks import here
from lab5.runtime.transfers import places, sent
from lab5.vqgan import VQGAN, CodeAverages


def epoch_batch(n: int, batch: int, draw: int, seed: int) -> Int[Tensor, " batch"]:
    """Indices of the 1-based `draw` when n examples are visited in a new random order every epoch."""
    if not 0 < batch <= n:
        raise ValueError(f"a batch must lie in 1..{n}, the number of examples; found {batch}")
    epoch, place = divmod(draw - 1, n // batch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[place * batch : (place + 1) * batch]


# --- stage one ------------------------------------------------------------------------------------------------------


def vqgan_loss(
    model: VQGAN,
    images: Float[Tensor, "B 3 64 64"],
    *,
    quantised: bool = True,
    beta: float = 0.25,
    learn_codes: bool = True,
    judges: Mapping[str, tuple[float, nn.Module]] = MappingProxyType({}),
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Reconstruction (absolute and squared error alike) + commitment + codebook term + weighted judges.

    `learn_codes` adds the codebook term |sg(z) - e|^2; without it the codes are left to `CodeAverages`.
    `judges` are named (weight, module), called with (pictures, images) where the network quantises.
    Returns the loss, its terms and with them `image_squared`, the squared error of pixels in [0, 1], the latents
    (B,C,16,16) and the tokens (B,N). With `quantised=False` the network is a plain autoencoder.
    """
    if quantised:
        out = model(images)
        pictures, latents, tokens = out.images, out.latents, out.tokens
    else:
        latents = model.latents(images)
        pictures, tokens = model.decode_latents(latents), torch.zeros(len(images), 0, dtype=torch.int64)
    error = pictures.float() - images
    terms = {"absolute": error.abs().mean(), "squared": error.square().mean()}
    loss = terms["absolute"] + terms["squared"]
    terms["image_squared"] = (error.detach() * channel_stats(error)[1]).square().mean()
    if quantised:
        terms["commitment"] = (latents.float() - out.codes.detach()).square().mean()
        loss = loss + beta * terms["commitment"]
        if learn_codes:
            terms["codebook"] = (latents.detach().float() - out.codes).square().mean()
            loss = loss + terms["codebook"]
        for name, (weight, judge) in judges.items():
            terms[name] = judge(pictures, images)
            loss = loss + weight * terms[name]
    else:  # keep the latents near the unit scale that k-means will find
        loss = loss + 1e-3 * latents.float().square().mean()
    return loss, terms, latents, tokens


class VQGANObjective(nn.Module):
    """Stage one for `fit`: batches of flipped images; first a plain autoencoder, then quantised.

    `judges` are named (weight, module) as in `vqgan_loss`; what they learn on the way is part of the training's state.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n 3 64 64"],
        model: VQGANConfig,
        config: Stage1Config,
        seed: int,
        judges: Mapping[str, tuple[float, nn.Module]] = MappingProxyType({}),
    ):
        super().__init__()
        self.images, self.config, self.seed = images, config, seed
        self.averages, self._started = CodeAverages(model.codes, model.latent, config.code_decay), False
        self.weights = {name: weight for name, (weight, _) in judges.items()}
        self.judges = nn.ModuleDict({name: judge for name, (_, judge) in judges.items()})

    def forward(self, model: VQGAN, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        device = next(model.parameters()).device
        images = self._batch(draw, device, generator)
        self.to(device)
        quantised = (draw - 1) // config.accumulate + 1 > config.autoencoder_share * config.steps
        if quantised and not self._started:  # a GPU is asked once
            if not self.averages.count.any():
                self._start(model, draw, device, generator)
            self._started = True
        judges = {name: (weight, self.judges[name]) for name, weight in self.weights.items()}
        loss, terms, latents, tokens = vqgan_loss(
            model, images, quantised=quantised, beta=config.beta, learn_codes=False, judges=judges
        )
        metrics = {"psnr_db": -10 * (terms["image_squared"] + 1e-12).log10()}
        if quantised:
            flat = latents.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
            last = here().is_last(draw, config.accumulate)  # of the step, at the end of which the codes follow
            self.averages.update(model.codebook, flat, tokens.flatten(), generator, last)
            metrics["codes_used"] = torch.zeros_like(self.averages.count).index_fill_(0, tokens.flatten(), 1.0).sum()
            metrics |= {name: terms[name].detach() for name in judges}
        return loss, metrics

    def _batch(self, draw: int, device, generator: torch.Generator) -> Tensor:
        chosen = epoch_batch(len(self.images), self.config.batch, draw, self.seed)
        images = self.images.index_select(0, chosen)  # whole rows at once: six times as fast as [chosen]
        flip = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        return sent(normalise(images), device).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _start(self, model: VQGAN, draw: int, device, generator: torch.Generator) -> None:
        if here().first:
            latents = [model.latents(self._batch(draw + k, device, generator)).float() for k in range(4)]
            self.averages.start(model.codebook, torch.cat(latents).permute(0, 2, 3, 1).flatten(0, 2), generator)
        here().from_first([*model.codebook.parameters(), *self.averages.buffers()])


# --- stage two ------------------------------------------------------------------------------------------------------


def mvtm_loss(
    model: nn.Module,
    tokens: Int[Tensor, "B N"],
    *,
    masking: str = "cosine",
    generator: torch.Generator,
    holes: Bool[Tensor, "m N"] | None = None,
    label_smoothing: float = 0.0,
    loss: str = "masked",
) -> Float[Tensor, ""]:
    """Masked visual token modelling: cross-entropy, in nats per token, of hidden tokens given the others.

    `masking` is written as `lab5.masking` says, `loss` is a name in LOSSES.
    """
    return LOSSES[loss](model, tokens, mvtm_mask(tokens, masking, generator, holes), label_smoothing)[0]


def masked_cross_entropy(
    model: nn.Module,
    tokens: Int[Tensor, "B N"],
    masked: Bool[Tensor, "B N"],
    label_smoothing: float = 0.0,
    hints: Float[Tensor, "B N hints"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy over the masked tokens, in nats, and the share of them that argmax gets right.

    The mask id is cut off before the softmax: it is never an answer. `masked` may be on the CPU in any case; where it
    is on a GPU, that is waited for.
    """
    mask_id = model.mask_id
    more = () if hints is None else (hints,)
    where = places(masked, tokens.device)  # (M,), (M,)
    shown = tokens.index_put(where, tokens.new_full((), mask_id))
    logits = model(shown, where, *more)[..., :mask_id].float()  # (B, N) -> (M, K)
    target = tokens[where]
    loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    return loss, (logits.detach().argmax(-1) == target).float().mean()


def all_cross_entropy(
    model: nn.Module,
    tokens: Int[Tensor, "B N"],
    masked: Bool[Tensor, "B N"],
    label_smoothing: float = 0.0,
    hints: Float[Tensor, "B N hints"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy over all tokens, in nats: a model that copies those it is shown has most of it for nothing.

    Still the share of the masked tokens that argmax gets right, so that both losses can be compared by it.
    """
    mask_id = model.mask_id
    more = {} if hints is None else {"hints": hints}
    where = places(masked, tokens.device)
    shown = tokens.index_put(where, tokens.new_full((), mask_id))
    logits = model(shown, **more)[..., :mask_id].float()
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), label_smoothing=label_smoothing)
    return loss, (logits.detach().argmax(-1) == tokens)[where].float().mean()


LOSSES = {"masked": masked_cross_entropy, "all": all_cross_entropy}
"""Name -> function (model, tokens, masked, label_smoothing, hints) -> loss, accuracy."""


class MVTMObjective:
    """Stage two for `fit`: batches of cached tokens, masked anew at every draw.

    With `hints`, a function (indices of images, of holes) -> (B, N, hints), nine of ten images come with a hole,
    what is visible around it, and part of its tokens masked: what decoding will meet. Only the tenth is masked as the
    config says.
    Raises ValueError for a masking that there is not.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "n N"],
        config: Stage2Config,
        seed: int,
        holes: Bool[Tensor, "m N"] | None = None,
        hints: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        self.tokens, self.config, self.seed, self.holes, self.hints = tokens, config, seed, holes, hints
        self.masking, self.cross_entropy = read_masking(config.masking), LOSSES[config.loss]
        self._ahead = (), ()  # (its draw, its seed), the batch

    def __call__(self, model: nn.Module, draw: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if self._ahead[0] != (draw, generator.initial_seed()):
            self.prepare(draw, next(model.parameters()).device, generator)
        tokens, masked, hints = self._ahead[1]
        over = masked.numel() if self.config.loss == "all" else int(masked.sum())
        loss, accuracy = self.cross_entropy(model, tokens, masked, self.config.label_smoothing, hints)
        return loss, {"accuracy": accuracy, "weight": over}

    def prepare(self, draw: int, device: torch.device, generator: torch.Generator) -> None:
        """Make a batch ahead, while a GPU is at the one before: tokens and hints on the device, the mask on the CPU."""
        batch = epoch_batch(len(self.tokens), self.config.batch, draw, self.seed)
        tokens = self.tokens[batch].long()
        masked = self.masking(*tokens.shape, self.holes, generator)
        hints = None
        if self.hints is not None:
            chosen = torch.randint(len(self.holes), (len(batch),), generator=generator)
            hinted = torch.rand(len(batch), 1, generator=generator) < 0.9
            masked = torch.where(hinted, part_of(self.holes[chosen], generator), masked)
            hints = sent(self.hints(batch, chosen), device) * sent(hinted, device)[:, :, None]
        self._ahead = (draw, generator.initial_seed()), (sent(tokens, device), masked, hints)


@torch.no_grad()
def validate(
    model: nn.Module,
    tokens: Int[Tensor, "n N"],
    masked: Bool[Tensor, "n N"],
    hints: Float[Tensor, "n N hints"] | None = None,
    batch: int = 64,
) -> dict[str, float]:
    """Loss and accuracy on masks fixed in advance, so that two moments of a training can be compared.

    The model is put into evaluation mode for the time of it. Means over tokens, not over batches.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    loss = right = count = 0.0
    for start in range(0, len(tokens), batch):
        part, hidden = (x[start : start + batch].to(device) for x in (tokens, masked))
        more = None if hints is None else hints[start : start + batch].to(device)
        mean, accuracy = masked_cross_entropy(model, part.long(), hidden, hints=more)
        n = int(hidden.sum())
        loss, right, count = loss + float(mean) * n, right + float(accuracy) * n, count + n
    model.train(training)
    return {"loss": loss / count, "accuracy": right / count}
