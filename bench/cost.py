"""The cost model: what an image costs in operations and in bytes, and the least time that a machine needs for it.

A multiplication and an addition are two operations. Only products of matrices and convolutions are counted: the rest
is less than a hundredth of the operations, though not of the time.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lab5.config import Config, TransformerConfig, VQGANConfig
from lab5.vqgan import VQGAN

FLOAT32 = 4  # bytes
TRAINING = 3  # forward, and backward once for the inputs and once for the weights of every product


class Cost(NamedTuple):
    """Of one image."""

    flops: float
    bytes: float  # read and written at the least: weights, their gradients and moments, divided by the batch

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least that a machine of so many operations and bytes per second needs: it may do both at once."""
        return max(self.flops / peak, self.bytes / bandwidth)


# --- operations -----------------------------------------------------------------------------------------------------


def transformer_flops(config: TransformerConfig, predicted: float | None = None) -> float:
    """Of one pass over one image, of which `predicted` positions get logits; all without it."""
    tokens, width = config.positions, config.width
    linear = 4 * width**2 + 2 * width * config.hidden  # query, key, value, out, and the two of the MLP
    attention = 2 * tokens * width  # scores, and the mix of the values, per token
    predicted = tokens if predicted is None else predicted
    head = width**2 + width * (config.codes + 1)
    hints = config.hints * width * tokens
    return 2 * (config.layers * tokens * (linear + attention) + predicted * head + hints)


def training_flops(config: TransformerConfig, predicted: float | None = None) -> float:
    """Of one image in a step of training, from its tokens."""
    return TRAINING * transformer_flops(config, predicted)


def vqgan_flops(config: VQGANConfig) -> tuple[float, float]:
    """Of encoding and of decoding one image, counted on tensors without memory."""
    with torch.device("meta"):
        network = VQGAN(config)
        image, latent = torch.empty(1, 3, 64, 64), torch.empty(1, config.latent, 16, 16)
    nearest = 2 * 256 * config.codes * config.latent
    return counted(lambda: network.latents(image)) + nearest, counted(lambda: network.decode_latents(latent))


def inpainting_flops(transformer: TransformerConfig, vqgan: VQGANConfig, steps: int, pictures: int = 1) -> float:
    """Of filling one hole: encode once, ask the transformer `steps` times, decode `pictures` times."""
    encode, decode = vqgan_flops(vqgan)
    return encode + steps * transformer_flops(transformer) + pictures * decode


def profile_flops(config: Config) -> dict[str, float]:
    """Of a profile's two trainings and of its study, for the least time that these need.

    A training of the tokenizer passes its images forth and back; the transformer's objective predicts half of the
    tokens. The study paints and encodes a picture after every step of every plan.
    """
    encode, decode = vqgan_flops(config.vqgan)
    stage1, stage2, study = config.stage1, config.stage2, config.study
    images1, images2 = (stage.steps * stage.batch * stage.accumulate for stage in (stage1, stage2))
    several = len(study.schedules) * sum(steps for steps in study.steps if steps > 1)
    asked = (several + (1 in study.steps)) * study.seeds * study.images
    picture = config.decode.passes * (encode + decode)  # of the last pass the score's tokens
    return {
        "stage one": images1 * TRAINING * (encode + decode),
        "stage two": images2 * training_flops(config.transformer, config.transformer.positions / 2),
        "study": asked * (transformer_flops(config.transformer) + picture),
    }


def counted(work: Callable[[], object]) -> float:
    """The operations in a call, as torch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


# --- bytes ----------------------------------------------------------------------------------------------------------


def parameters(config: TransformerConfig) -> int:
    width, hidden, ids = config.width, config.hidden, config.codes + 1
    block = 4 * (width**2 + width) + (2 * width * hidden + hidden + width) + 2 * 2 * width
    tables = config.positions * (width + ids) + (ids + config.hints) * width
    return tables + config.layers * block + (width**2 + width + 2 * width) + 2 * width


def training_cost(config: TransformerConfig, batch: int, predicted: float | None = None, size: int = FLOAT32) -> Cost:
    """Of an image in a step with one batch: the weights are read forward and backward at `size` bytes a number.

    The optimiser reads the gradient, the weight and two moments and writes three of them back; the average of the
    weights is read and written. All that is float32.
    """
    once = parameters(config) * (2 * size + 10 * FLOAT32)
    return Cost(training_flops(config, predicted), once / batch)


def decoding_cost(config: TransformerConfig, batch: int, steps: int, size: int = FLOAT32) -> Cost:
    """Of an image in a decoding of `steps` steps: the weights are read once a step for the whole batch."""
    return Cost(steps * transformer_flops(config), steps * parameters(config) * size / batch)


# --- memory ---------------------------------------------------------------------------------------------------------


def fixed_memory(config: TransformerConfig) -> int:
    """Bytes of a training whatever the batch: weight, gradient, two moments and the average of every parameter."""
    return 5 * FLOAT32 * parameters(config)


def kept_for_backward(model: nn.Module, work: Callable[[], torch.Tensor]) -> int:
    """Bytes of all that autograd keeps of a call until backward, each memory once, the parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # a freed tensor's address may come back as another's

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def largest_batch(memory: float, fixed: float, per_image: float, spare: float = 0.9) -> int:
    """Images that fit into so many bytes, of which a share `spare` is ours: the rest is the driver's and waste."""
    return max(0, int((spare * memory - fixed) // per_image))
