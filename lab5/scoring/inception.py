"""Features of the Inception network, the only ones on which a Fréchet distance is called FID."""

import hashlib
import os
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lab5.runtime.machine import exact_float32

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_HASH = "6726825d"  # start of the file's sha256
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"


class InceptionFeatures(nn.Module):
    """pool3 features of the Inception network that FID is defined by, as the pytorch-fid package computes them.

    `weights` is the file; without it the environment's LAB5_INCEPTION_WEIGHTS names it, and without that torch hub's
    cache is looked at. `download` fetches the file into that cache where neither names one and none is there, and
    keeps it only if its hash is right. Raises FileNotFoundError without weights, ValueError for those of another
    network. Other values of the same parameters are taken, but never called FID.

    `folded` lays the network out for speed: each normalisation in the convolution before it, channels last. That is
    the same function, 1.7 times as fast on a CPU.
    """

    def __init__(self, weights: str | Path | None = None, *, download: bool = False, folded: bool = True):
        super().__init__()
        file = _inception_file(weights, download)
        self.weights_hash = hashlib.sha256(file.read_bytes()).hexdigest()
        genuine = self.weights_hash.startswith(INCEPTION_HASH)
        label = f"Inception {self.weights_hash[:8]}"
        self.score_name = f"FID ({label})" if genuine else f"Frechet distance on features of {label}"
        self.network = _fid_inception(file).eval().requires_grad_(False)
        if folded:
            self.network = fold(self.network).to(memory_format=torch.channels_last)

    def features(self, images: Float[Tensor, "n 3 H W"], batch: int = 16) -> Float[Tensor, "n 2048"]:
        """Features of images in [0,1], on the CPU. Round them to 8 bits first if they stand for saved files."""
        return in_batches(self, images, batch)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 2048"]:
        large = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        return self.network(2 * large - 1)


@torch.no_grad()
def in_batches(network: nn.Module, images: Float[Tensor, "n 3 H W"], batch: int) -> Float[Tensor, "n F"]:
    """What a network makes of images in [0,1], so many at a time, in exact float32, on the CPU."""
    check_unit_range(images)
    device = next(network.parameters()).device
    with exact_float32(device):
        return torch.cat([network(part.to(device)).cpu() for part in images.split(batch)])


def _inception_file(weights: str | Path | None, download: bool) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    named = weights or os.environ.get("LAB5_INCEPTION_WEIGHTS")
    file = Path(named or cached)
    failed = _download(file) if download and not named and not file.is_file() else ""
    if not file.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {_from_home(file)}{failed}: LAB5_INCEPTION_WEIGHTS can name {INCEPTION_FILE}, "
            "a release file of pytorch-fid"
        )
    return file


def _from_home(file: Path) -> str:
    """A path that can be shown to others: without the name of the user."""
    return f"~/{file.relative_to(Path.home())}" if file.is_relative_to(Path.home()) else str(file)


def _download(file: Path) -> str:
    """The release file, whole and of the right hash, or no file and what went wrong."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix=INCEPTION_HASH)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError is torch's for a wrong hash
        return f", and the download from {INCEPTION_URL} failed with {error}"
    return ""


def fid_inception() -> nn.Module:
    """pytorch-fid's `fid_inception_v3`, weights as they happen to be in memory."""
    import torchvision  # takes a second to import, and only Inception needs it
    from pytorch_fid import inception as fid

    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = fid.FIDInceptionE_1(1280)
    network.Mixed_7c = fid.FIDInceptionE_2(2048)
    return network


def _fid_inception(file: Path) -> nn.Module:
    """The network with weights from a file, without the final classifier."""
    network = fid_inception()
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # a pickle that is damaged or asks for code fails in many ways
        raise ValueError(f"{file} does not hold the weights of pytorch-fid's Inception network") from error
    network.fc = nn.Identity()
    return network


def fold(network: nn.Module) -> nn.Module:
    """Every batch normalisation becomes part of the convolution before it: at rest it only scales and shifts.

    Before it is the one that its block declares before it.
    """
    for block in list(network.modules()):
        for (name, conv), (name_of_norm, norm) in pairwise(list(block.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(conv, norm))
                setattr(block, name_of_norm, nn.Identity())
    return network


def check_unit_range(images: Tensor) -> None:
    low, high = images.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"images must be in [0,1] for features; found {low.item():.3g} to {high.item():.3g}")
