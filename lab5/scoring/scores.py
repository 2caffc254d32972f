"""Pictures to a row of numbers: two scores of the whole set, and what came back under the holes.

The first two compare sets; hole PSNR, SSIM, tokens and attributes compare each picture with its original. Every row
can stand beside its baselines: the truth, the reconstruction floor, doing nothing, a mean colour, the classical
inpainters. A method is whatever made the pictures.
"""

import hashlib
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from lab5.data.dataset import Dataset, token_mask
from lab5.fid import Features, frechet_distance, kid
from lab5.inpainting.tokenizer import Tokenizer
from lab5.scoring.resampling import Outcome


class Scores(NamedTuple):
    """One method on n test images."""

    score: float  # Fréchet distance to the truth
    kid: float  # of pairs: 0 for the truth itself
    hole_psnr_db: float  # over the missing pixels of all images together; it rewards blur
    ssim: float  # the mean of `ssim_map` over the same pixels: its windows reach 5 pixels out of the hole, to the seam
    seam: float  # `across_edge` of all pictures over the truth's: 1 = no seam, above it one shows, below it is blurred
    token_accuracy: float | None  # of tokens that the hole hides; None without a tokenizer
    attribute_accuracy: float | None  # of attributes that the hole hides; None for photographs
    n: int


# --- picture by picture -------------------------------------------------------------------------------------------


def psnr_db(images: UInt8[Tensor, "n 3 64 64"], truth: UInt8[Tensor, "n 3 64 64"]) -> float:
    """Peak signal-to-noise ratio over all pixels of all images together."""
    return hole_psnr_db(images, truth, torch.ones(len(images), *images.shape[2:], dtype=torch.bool))


def hole_psnr_db(
    images: UInt8[Tensor, "n 3 64 64"], truth: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"]
) -> float:
    """Peak signal-to-noise ratio over the missing pixels of all images together."""
    return _decibels(_errors(images, truth, holes), holes.sum((1, 2)))


def _errors(images: Tensor, truth: Tensor, holes: Tensor) -> Float[Tensor, " n"]:
    """Of each image, the squared errors of the missing pixels, summed over these, and the mean of the colours."""
    return ((images.double() - truth.double()).square().mean(1) * holes).sum((1, 2))


def _decibels(errors: Float[Tensor, " n"], missing: Int[Tensor, " n"]) -> float:
    """PSNR; without any error it is 138 dB, a number where infinity would be none."""
    error = errors.sum() / missing.sum()
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-9)))


def _ssims(images: Tensor, truth: Tensor, holes: Tensor) -> Float[Tensor, " n"]:
    """Of each image, the mean over its missing pixels; 0 where none are missing."""
    parts = zip(images.split(64), truth.split(64), holes.split(64), strict=True)
    sums = torch.cat([(ssim_map(image, true) * hole).double().sum((1, 2)) for image, true, hole in parts])
    return sums / holes.sum((1, 2)).clamp(min=1)


def ssim_map(images: UInt8[Tensor, "n 3 H W"], truth: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n H W"]:
    """Structural similarity around every pixel, the mean of the three colours: 1 where both agree, at least -1.

    Wang et al. 2004, section III: Gaussian windows of 11x11 pixels with SD 1.5, K1 = 0.01, K2 = 0.03, L = 255.
    Beyond its border an image goes on as its mirror image.
    """
    blur = partial(gaussian_filter, sigma=1.5, radius=5, axes=(2, 3))
    x, y = images.float().numpy(), truth.float().numpy()
    mean_x, mean_y = blur(x), blur(y)
    variances = (blur(x * x) - mean_x**2) + (blur(y * y) - mean_y**2)
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return torch.from_numpy(luminance * (2 * covariance + c2) / (variances + c2)).mean(1)


def across_edge(pictures: UInt8[Tensor, "n 3 H W"], holes: Bool[Tensor, "n H W"]) -> Float[Tensor, " n"]:
    """Of each picture, the sum of |a - b| over all pairs of neighbours a and b of which one is in the hole.

    Neighbours are so horizontally or vertically; |a - b| is in grey levels, 0..255, the mean of the three colours. Less
    than one level a pair, over a whole picture, is no contrast that anyone sees, and counts as one.
    """
    total, pairs = torch.zeros(2, len(pictures), dtype=torch.float64)
    for side in (1, 2):
        edge = holes.diff(dim=side)
        total += (pictures.double().diff(dim=side + 1).abs().mean(1) * edge).sum((1, 2))
        pairs += edge.sum((1, 2))
    return torch.maximum(total, pairs)


# --- a row of scores ----------------------------------------------------------------------------------------------


class Scorer:
    """Compares pictures with test images of a dataset, whose features and tokens are computed once.

    These are the first `n` of which the truth is known under the hole too; `places` are their numbers in the test
    set. Attributes are read by the network, if it can. With a `tokenizer` pictures are encoded, whatever made them, and
    the tokens that the hole hides are compared with those of the encoded truth: all methods are counted alike, and even
    the reconstruction floor loses a few.

    Raises ValueError where the truth of fewer than two images is known.
    """

    def __init__(self, dataset: Dataset, network: Features, n: int | None = None, tokenizer: Tokenizer | None = None):
        self.places = dataset.whole.nonzero()[:, 0][:n]
        if len(self.places) < 2:
            raise ValueError(f"scores need at least 2 test images whose truth is known, found {len(self.places)}")
        self.truth, self.holes = dataset.test[self.places], dataset.holes[self.places]
        self.leaked = dataset.leaked[self.places]
        self.labels = {name: value[self.places] for name, value in dataset.attributes.get("test", {}).items()}
        self.hidden = {name: value[self.places] for name, value in dataset.hidden.items()}
        self.network = network
        self.read = getattr(network, "predict", None)
        self.reference = network.features(self.truth.float() / 255)
        self.tokenizer = tokenizer
        self.tokens = None if tokenizer is None else tokenizer.encode(self.truth)
        self.natural = across_edge(self.truth, self.holes)
        self.dataset = dataset.name
        self.data = f"{dataset.name} {_digest(self.truth, self.holes, network)}"

    @property
    def score_name(self) -> str:
        return self.network.score_name

    @property
    def groups(self) -> dict[str, Bool[Tensor, " n"]]:
        """The scored images that are "leaked", because training saw the original, and the "unseen"; and "all".

        Only "all" where they are of one kind; a group of one image is none, because it has no covariance.
        """
        apart = {"leaked": self.leaked, "unseen": ~self.leaked}
        both = all(bool(members.any()) for members in apart.values())
        everyone = {"all": torch.ones_like(self.leaked)}
        return everyone | {name: members for name, members in apart.items() if both and members.sum() > 1}

    def __call__(self, pictures: UInt8[Tensor, "n 3 64 64"]) -> Scores:
        return self.scores(self.outcome(pictures))

    def by_group(self, pictures: UInt8[Tensor, "n 3 64 64"]) -> dict[str, Scores]:
        """A row for each of `groups`, against the truth of its own images.

        The Fréchet distance grows as n falls, so that it cannot be compared across groups; the other columns can.
        """
        outcome = self.outcome(pictures)
        return {name: self.scores(outcome, members) for name, members in self.groups.items()}

    def outcome(self, pictures: UInt8[Tensor, "n 3 64 64"], tokens: Int[Tensor, "n _"] | None = None) -> Outcome:
        """What there is to know of each picture by itself; `tokens` are those it was decoded from, to be kept."""
        if pictures.shape != self.truth.shape:
            raise ValueError(f"expected {tuple(self.truth.shape)} pictures to score, found {tuple(pictures.shape)}")
        error, ssim = _errors(pictures, self.truth, self.holes), _ssims(pictures, self.truth, self.holes)
        images = pictures.float() / 255
        right, hidden = self._tokens(pictures)
        read, asked = self._attributes(images)
        return Outcome(
            features=self.network.features(images).float(),
            error=error,
            missing=self.holes.sum((1, 2)),
            ssim=ssim,
            right=right,
            hidden=hidden,
            tokens=torch.empty(len(pictures), 0, dtype=torch.int16) if tokens is None else tokens.cpu().short(),
            edge=across_edge(pictures, self.holes),
            natural=self.natural,
            read=read,
            asked=asked,
        )

    def scores(self, outcome: Outcome, members: Bool[Tensor, " n"] | None = None) -> Scores:
        """The numbers of all pictures together, or of those that are `members`."""
        members = torch.ones_like(self.leaked) if members is None else members
        ours = Outcome(*(value[members] for value in outcome))
        features, reference = ours.features, self.reference[members]
        return Scores(
            score=frechet_distance(features, reference),
            kid=kid(features, reference, paired=True),
            hole_psnr_db=_decibels(ours.error, ours.missing),
            ssim=float((ours.ssim * ours.missing).sum() / ours.missing.sum()),
            seam=float(ours.edge.sum() / ours.natural.sum()) if ours.natural.any() else 1.0,
            token_accuracy=_share(ours.right, ours.hidden),
            attribute_accuracy=_share(ours.read, ours.asked),
            n=len(features),
        )

    def _tokens(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Of each picture, how many hidden tokens are the truth's, and how many are hidden."""
        nothing = torch.zeros(len(pictures), dtype=torch.long)
        if self.tokenizer is None:
            return nothing, nothing
        hidden = token_mask(self.holes)
        return ((self.tokenizer.encode(pictures) == self.tokens) & hidden).sum(1), hidden.sum(1)

    def _attributes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of each picture, how many hidden attributes are read rightly, and how many are hidden."""
        right = torch.zeros(len(images), dtype=torch.long)
        if not self.hidden or self.read is None:
            return right, right
        read = self.read(images)
        for name, hidden in self.hidden.items():
            right = right + ((read[name] == self.labels[name]) & hidden)
        return right, torch.stack(list(self.hidden.values())).sum(0)


def _share(right: Int[Tensor, " n"], asked: Int[Tensor, " n"]) -> float | None:
    """The share that is right of what is asked for in these pictures; None where nothing is."""
    return int(right.sum()) / int(asked.sum()) if asked.any() else None


def _digest(truth: Tensor, holes: Tensor, network: Features) -> str:
    """Changes with any pixel and any weight: rows of equal digest can be compared."""
    digest = hashlib.sha256(network.score_name.encode())
    weights = network.state_dict().values() if isinstance(network, nn.Module) else ()
    for tensor in (truth, holes, *weights):
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()[:12]
