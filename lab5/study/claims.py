"""What the five reports claim, and what a study says to each claim: the effect, its interval and a verdict.

A claim is about pairs of results; its effect is the mean difference of all of them, first minus second, so that below
zero the first is better. A verdict is given on KID, whose mean does not depend on n; the Fréchet distance and the hole
PSNR stand beside it.

It decodes nothing, and does not know how the intervals come about.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lab5.scoring.intervals import Difference, average, estimate, excluded, gap
from lab5.scoring.resampling import Outcome, Resampled, resample, resamples
from lab5.scoring.scores import Scores
from lab5.study.plans import Comparison
from lab5.study.run import Point

METRICS = ("kid", "score", "hole_psnr_db")
RESAMPLES = 200
# An effect within this share of the way from doing nothing to the reconstruction floor is none. On the lab's
# photographs the way to the best report is about 22 FID, so this is 1 FID: the reports argue about 0.3 to 1.4.
NEGLIGIBLE = 0.05


class Claim(NamedTuple):
    """One sentence of a report."""

    says: str
    reports: str
    expects: str  # of the first of each pair: "better", "worse", or "equal" within the margin
    sign: Callable[[Comparison], int]  # 1: the comparison is about it; -1: the other way round; 0: it is not
    rival: Callable[[Comparison], str] | None = None  # to be the best is to be better than each of these
    pitfall: int = 0  # a mistake in the reports' code that makes such an effect by itself


def _about(question: str, word: str = "") -> Callable[[Comparison], int]:
    return lambda c: int(c.question == question and word in c.label)


def _iterating(c: Comparison) -> int:
    """With the likeliest codes, as reports C and D decode, where a grid tells ways of decoding apart."""
    return int(c.question == "iterating" and c.way in ("argmax", ""))


def _schedule(name: str) -> Callable[[Comparison], int]:
    """The schedule `name` against others; recipes are left out, whose networks differ."""

    def sign(c: Comparison) -> int:
        if c.question != "schedule" or "recipe" in c.label:
            return 0
        return (c.first.decode.schedule == name) - (c.second.decode.schedule == name)

    return sign


def _other(name: str) -> Callable[[Comparison], str]:
    """The schedule that `name` is compared with."""
    return lambda c: next(s for s in (c.second.decode.schedule, c.first.decode.schedule) if s != name)


CLAIMS: list[Claim] = [
    Claim("cosine is the best schedule", "A, D", "better", _schedule("cosine"), _other("cosine")),
    Claim("linear is the best schedule", "B, E", "better", _schedule("linear"), _other("linear")),
    Claim("square is the best schedule", "C", "better", _schedule("square"), _other("square")),
    Claim("stopping early, at a sweet spot, helps", "A", "better", _about("sweet spot"), pitfall=1),
    Claim("a sweet spot changes nothing", "E", "equal", _about("sweet spot"), pitfall=14),
    Claim("iterating hurts: all at once is better", "D", "worse", _iterating, pitfall=3),
    Claim("iterating is not needed: all at once is as good", "C", "equal", _iterating),
    Claim("more steps are better", "A", "better", _about("steps"), pitfall=1),
    Claim("sampled codes are better than the likeliest", "E", "better", _about("codes", "sampled")),
    Claim("masking half of the tokens trains best", "B, E", "better", _about("training: mask ratio", "half")),
    Claim("masking 40 to 50 % trains best", "C", "better", _about("training: mask ratio", "40 to 50 %")),
    Claim("masking any share trains best", "D", "better", _about("training: mask ratio", "any share")),
    Claim("a loss on all tokens trains better", "B, C, E", "better", _about("training: loss")),
    Claim("a lower loss is not a lower score", "A", "not better", _about("late in a training")),
]
"""In the order of the disagreements: schedules, stopping, iterating, training."""


class Effect(NamedTuple):
    """A comparison, or the mean of several: first minus second, of each of METRICS, with a 95 % interval."""

    question: str
    label: str
    kid: Difference
    score: Difference
    hole_psnr_db: Difference


class Verdict(NamedTuple):
    """What a study says to a claim."""

    claim: Claim
    verdict: str
    effect: Effect | None  # the mean over its comparisons; None where the study has none
    comparisons: int = 0
    clear: int = 0  # of which that many intervals of KID exclude zero, whatever the sign


class Measured:
    """The outcomes of a study, each resampled once, with the same images for all."""

    def __init__(self, outcomes: Mapping[Point, Mapping[int, Outcome]], reference: Float[Tensor, "n F"]):
        """`reference`: the features of the true images."""
        self.outcomes, self.reference = outcomes, reference
        self._weights = resamples(len(reference), RESAMPLES, torch.Generator().manual_seed(0))
        self._found: dict[tuple[Point, str], Resampled] = {}

    def has(self, comparison: Comparison) -> bool:
        """Whether both of its results have been decoded."""
        return comparison.first in self.outcomes and comparison.second in self.outcomes

    def gap(self, comparison: Comparison, metric: str, sign: int = 1) -> Resampled:
        first, second = (self._resampled(point, metric) for point in (comparison.first, comparison.second))
        return gap(first, second) if sign > 0 else gap(second, first)

    def _resampled(self, point: Point, metric: str) -> Resampled:
        if (point, metric) not in self._found:
            self._found[point, metric] = resample(self.outcomes[point], metric, self._weights, self.reference)
        return self._found[point, metric]


def forest(comparisons: Iterable[Comparison], measured: Measured) -> list[Effect]:
    """Of the comparisons whose results are there."""
    return [
        Effect(c.question, c.label, *(estimate(measured.gap(c, metric)) for metric in METRICS))
        for c in comparisons
        if measured.has(c)
    ]


def verdicts(comparisons: Sequence[Comparison], measured: Measured, margin: float) -> list[Verdict]:
    """One for each of CLAIMS; an effect within ± `margin` of KID is none."""
    found = []
    for claim in CLAIMS:
        about = [(c, claim.sign(c)) for c in comparisons if claim.sign(c) and measured.has(c)]
        if not about:
            found.append(Verdict(claim, NOT_MEASURED, None))
            continue
        gaps = {metric: [measured.gap(c, metric, sign) for c, sign in about] for metric in METRICS}
        effect = Effect("claim", claim.says, *(estimate(average(gaps[metric])) for metric in METRICS))
        clear = sum(excluded(estimate(one)) for one in gaps["kid"])
        verdict = judge(claim.expects, effect.kid, margin)
        if verdict == HOLDS and claim.rival:  # on average over its rivals; and beside each of them?
            apart: dict[str, list[Resampled]] = {}
            for (c, _), one in zip(about, gaps["kid"], strict=True):
                apart.setdefault(claim.rival(c), []).append(one)
            beside = [judge(claim.expects, estimate(average(several)), margin) for several in apart.values()]
            verdict = max(beside, key=lambda one: (one.startswith(FAILS), one != HOLDS))
        found.append(Verdict(claim, verdict, effect, len(about), clear))
    return found


NOT_MEASURED, HOLDS, FAILS = "not measured by this grid", "holds", "does not hold"


def judge(expects: str, found: Difference, margin: float) -> str:
    """What is expected of a difference, "better" (below 0), "worse", "equal" or "not better", against its interval.

    The word after a colon says what is so instead. An interval that reaches from less than the margin to more than it
    decides nothing.
    """
    is_so = describe(found, margin)
    holds = {
        "better": ("better",),
        "worse": ("worse",),
        "equal": ("no effect",),
        "not better": ("worse", "no effect"),
    }[expects]
    if is_so == UNDECIDED:
        return f"{UNDECIDED} at this n"
    return HOLDS if is_so in holds else f"{FAILS}: {is_so}"


UNDECIDED = "not decided"


def describe(found: Difference, margin: float) -> str:
    """A difference in words: "better", "worse", "no effect" (all of the interval within the margin), or undecided."""
    if -margin < found.low and found.high < margin:
        return "no effect"
    if excluded(found):
        return "better" if found.high < 0 else "worse"
    return UNDECIDED


def margin(baselines: Mapping[str, Scores]) -> float:
    """The KID that counts as none: see NEGLIGIBLE."""
    return NEGLIGIBLE * abs(baselines["do_nothing"].kid - baselines["reconstruction"].kid)
