"""The Fréchet distance, and scoring two sets of images from pixels to number.

Inception has random weights here: they cost as much as the real ones, which are not in the repository.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench import naive
from bench.cost import counted
from bench.measure import Compared, interleaved, timed, waiting
from bench.plans import Plan
from bench.rows import Figure, Parity, Ratio, compared
from lab5.data.toycats import render
from lab5.fid import frechet_distance
from lab5.scoring.inception import InceptionFeatures, fid_inception

Featuriser = Callable[..., Tensor]  # of images in [0,1], and of how many at a time


def distance(plan: Plan) -> list[Ratio | Figure]:
    """Of two sets of made-up features whose spectrum falls as those of photographs do."""
    a, b = made_up_features(plan.score_images, plan.features, 1), made_up_features(plan.score_images, plan.features, 2)
    by_root = naive.frechet_distance(a, b)
    apart = abs(frechet_distance(a, b) - by_root) / by_root
    times = interleaved(
        lambda: naive.frechet_distance(a, b), lambda: frechet_distance(a, b), plan.distance_rounds, warm_up=False,
    )  # fmt: skip
    what = f"Frechet distance, n = {plan.score_images}, F = {plan.features}"
    return [
        compared(what, "distance", times, check(a), 60.0),
        Figure("relative difference of the two", apart, "", "SciPy takes roots of zero eigenvalues"),
    ]


def check(features: np.ndarray, scale: float = 1.3, shift: float = 0.02) -> Parity:
    """Against a distance that is known: to the same set scaled and shifted, whose covariance is scale² times as large.

    |m1 - m2|² + (1 - scale)² Tr S. The matrix square root of the naive way is itself off by a millionth where n < F.
    """
    apart = features.mean(0) - (scale * features.mean(0) + shift)
    known = apart @ apart + (1 - scale) ** 2 * features.var(0, ddof=1).sum()
    found = frechet_distance(features, scale * features + shift)
    return Parity("relative error where the distance is known", float(abs(found - known) / known), 1e-6)


def made_up_features(n: int, features: int, seed: int) -> np.ndarray:
    """Gaussian, of variance 1/i along the i-th of random directions that all seeds share."""
    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((features, features)))[0]
    draw = np.random.default_rng(seed)
    scale = np.arange(1, features + 1) ** -0.5
    return (draw.standard_normal((n, features)) * scale) @ directions + 0.01 * seed


def end_to_end(plan: Plan, device: torch.device, peak: float) -> list[Ratio | Figure]:
    """Both sets through Inception, and their distance."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inception.pth"
        torch.save(random_inception().state_dict(), file)
        slow, fast = (InceptionFeatures(file, folded=folded).to(device) for folded in (False, True))
    flops = counted(lambda: fast(torch.zeros(1, 3, 64, 64, device=device)))
    return score(plan, slow.features, fast.features, waiting(device), flops, peak)


def score(
    plan: Plan, slow: Featuriser, fast: Featuriser, wait: Callable[[], None], flops: float, peak: float
) -> list[Ratio | Figure]:
    """The two ways take turns after every batch of images, because a whole scoring takes minutes.

    `flops` are those of an image's features.
    """
    n = plan.score_images
    sets = [render(seed, n).images.float() / 255 for seed in (9, 10)]
    parts = [part for images in sets for part in images.split(plan.score_batch)]
    made: tuple[list[Tensor], list[Tensor]] = ([], [])
    slow(parts[0][:2], plan.score_batch), fast(parts[0][:2])  # they warm up here
    spent: list[tuple[float, float]] = []
    for number, part in enumerate(parts):
        works = (
            lambda part=part: made[0].append(slow(part, plan.score_batch)),
            lambda part=part: made[1].append(fast(part)),
        )
        seconds = {i: timed(works[i], wait=wait) for i in ((0, 1) if number % 2 == 0 else (1, 0))}
        spent.append((seconds[0], seconds[1]))
    values, last, found = [], [], [torch.cat(features)[:, : plan.features].double().numpy() for features in made]
    for features, measure in zip(found, (naive.frechet_distance, frechet_distance), strict=True):
        a, b = features.reshape(2, n, -1)
        last.append(timed(lambda m=measure, a=a, b=b: values.append(m(a, b))))
    of_slow = frechet_distance(*found[0].reshape(2, n, -1))  # which the matrix square root adds an error of its own to
    featurising = [sum(column) for column in zip(*spent, strict=True)]
    totals = [featurising[0] + last[0], featurising[1] + last[1]]
    ratios = [before / after for before, after in spent]
    times = Compared(totals[0], totals[1], totals[0] / totals[1], min(ratios), max(ratios), len(ratios))
    parity = Parity("distance by either side's features, relative", abs(values[1] - of_slow) / of_slow, 1e-4)
    row = compared(
        f"scoring {n} images end to end, both sets featurised", "score", times, parity, 2.5,
        flops=2 * n * flops, peak=peak, note="the spread is that of the batches' features, without the distance",
    )  # fmt: skip
    kept = totals[1] - featurising[1] / 2
    return [
        row,
        Figure("relative difference of the two", abs(values[1] - values[0]) / values[0], "", "SciPy's root included"),
        Figure("features", 2 * n / featurising[1], "images/s"),
        Figure("scoring against a reference whose features are kept", totals[0] / kept, "times as fast"),
    ]


def random_inception() -> nn.Module:
    """Weights that keep the activations in a sensible range, statistics that are not trivial to fold."""
    network, generator = fid_inception(), torch.Generator().manual_seed(23)
    for name, tensor in network.state_dict().items():
        if tensor.dim() > 1:
            nn.init.kaiming_normal_(tensor, generator=generator)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.copy_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return network
