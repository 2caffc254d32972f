"""What the five reports claim, and what a study says to each claim: the effect, its interval and a verdict.

A claim is about pairs of results; its effect is the mean difference of all of them, first minus second, so that below
zero the first is better. A verdict is given on KID, whose mean does not depend on n; the Fréchet distance and the hole
PSNR stand beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lab5.scoring.intervals import Difference, average, estimate, excluded, gap
from lab5.scoring.resampling import Outcome, Resampled, resample, resamples
from lab5.scoring.scores import Scores
from lab5.study.plans import Comparison, Question
from lab5.study.run import GIVEN, Point

METRICS = ("kid", "score", "hole_psnr_db")
RESAMPLES = 200
# An effect within this share of the way from doing nothing to the reconstruction floor is none. On the lab's
# photographs the way to the best report is about 22 FID, so this is 1 FID: the reports argue about 0.3 to 1.4.
NEGLIGIBLE = 0.05


class Direction(StrEnum):
    """Of the first of a pair."""

    BETTER = "better"
    WORSE = "worse"
    NONE = "no effect"  # all of the interval lies within the margin
    UNKNOWN = "not decided"


class Verdict(StrEnum):
    """What a study says to a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "not decided"
    NOT_MEASURED = "not measured"
    ARTEFACT = "artefact"  # it does not hold, and a mistake in the report's code makes it
    SPLIT = "not the same"  # in all ways of decoding


class Claim(NamedTuple):
    """One sentence of a report."""

    says: str
    reports: str
    expects: tuple[Direction, ...]  # of the first of each pair; any of these
    sign: Callable[[Comparison], int]  # 1: the comparison is about it; -1: the other way round; 0: it is not
    best: str = ""  # the schedule or network that is the best if it is better than each of the others
    pitfall: int = 0  # a mistake in the reports' code that makes such an effect by itself


def _about(question: Question) -> Callable[[Comparison], int]:
    return lambda c: int(c.question == question)


def _sampling(c: Comparison) -> int:
    """In the lab's way of decoding."""
    lab = c.first.decode.order == "lab" and c.first.decode.codes == "sample"
    return int(c.question == Question.CODES and lab)


def _schedule(name: str) -> Callable[[Comparison], int]:
    """The schedule `name` against others, with one network."""

    def sign(c: Comparison) -> int:
        here = c.question == Question.SCHEDULE
        return here * ((c.first.decode.schedule == name) - (c.second.decode.schedule == name))

    return sign


def _masking(name: str) -> Callable[[Comparison], int]:
    """The network `name` against those whose training masks other shares."""

    def sign(c: Comparison) -> int:
        return (c.question == Question.MASKING) * ((c.first.network == name) - (c.second.network == name))

    return sign


_BETTER, _WORSE, _EQUAL = (Direction.BETTER,), (Direction.WORSE,), (Direction.NONE,)

CLAIMS: list[Claim] = [
    Claim("cosine is the best schedule", "A, D", _BETTER, _schedule("cosine"), best="cosine"),
    Claim("linear is the best schedule", "B, E", _BETTER, _schedule("linear"), best="linear"),
    Claim("square is the best schedule", "C", _BETTER, _schedule("square"), best="square"),
    Claim("stopping early, at a sweet spot, helps", "A", _BETTER, _about(Question.STOPPING), pitfall=1),
    Claim("a sweet spot changes nothing", "E", _EQUAL, _about(Question.STOPPING), pitfall=14),
    Claim("iterating hurts: all at once is better", "D", _WORSE, _about(Question.ITERATING), pitfall=3),
    Claim("iterating is not needed: all at once is as good", "C", _EQUAL, _about(Question.ITERATING)),
    Claim("more steps are better", "A", _BETTER, _about(Question.STEPS), pitfall=1),
    Claim("sampled codes are better than the likeliest", "E", _BETTER, _sampling),
    Claim("masking half of the tokens trains best", "B, E", _BETTER, _masking("half masked"), best="half masked"),
    Claim("masking 40 to 50 % trains best", "C", _BETTER, _masking("40 to 50 % masked"), best="40 to 50 % masked"),
    Claim("masking any share trains best", "D", _BETTER, _masking("any share masked"), best="any share masked"),
    Claim("a loss on all tokens trains better", "B, C, E", _BETTER, _about(Question.LOSS)),
    Claim("a lower loss is not a lower score", "A", _WORSE + _EQUAL, _about(Question.LATE)),
]
"""In the order of the disagreements: schedules, stopping, iterating, training."""


class Effect(NamedTuple):
    """A comparison, or the mean of several: first minus second, of each of METRICS, with a 95 % interval."""

    question: str
    label: str
    trainings: int  # of each network, decoded with a seed each; 0 = it is the one that was given
    seeds: int
    n: int  # images
    kid: Difference
    score: Difference
    hole_psnr_db: Difference


class Judgement(NamedTuple):
    claim: Claim
    way: str  # of decoding that it is about; "" = all that there are
    verdict: Verdict
    direction: Direction  # what is so, in the claim's own pairs
    effect: Effect | None  # the mean over its comparisons; None where the study has none
    comparisons: int = 0
    clear: int = 0  # of which that many intervals of KID exclude zero, whatever the sign


class Differences:
    """The outcomes of a study, each resampled once, with the same images for all."""

    def __init__(self, outcomes: Mapping[Point, Mapping[int, Outcome]], reference: Float[Tensor, "n F"]):
        """`reference`: the features of the true images."""
        self.outcomes = outcomes
        weights = resamples(len(reference), RESAMPLES, torch.Generator().manual_seed(0))


        @cache
        def resampled(point: Point, metric: str) -> Resampled:
            of_point = resample(outcomes[point], metric, weights, reference)
            return of_point._replace(trained=point.network != GIVEN)

        self._resampled = resampled

    def has(self, comparison: Comparison) -> bool:
        """Whether both of its results have been decoded."""
        return comparison.first in self.outcomes and comparison.second in self.outcomes

    def gap(self, comparison: Comparison, metric: str, sign: int = 1) -> Resampled:
        """First minus second, or with a sign below 0 second minus first."""
        first, second = (self._resampled(point, metric) for point in (comparison.first, comparison.second))
        return gap(first, second) if sign > 0 else gap(second, first)


def effects(comparisons: Iterable[Comparison], differences: Differences) -> list[Effect]:
    """Of the comparisons whose results are there."""
    return [
        _effect(c.question, c.label, [differences.gap(c, metric) for metric in METRICS])
        for c in comparisons
        if differences.has(c)
    ]


def _effect(question: str, label: str, gaps: Sequence[Resampled]) -> Effect:
    """`gaps` are those of METRICS."""
    seeds, n = gaps[0].influence.shape
    return Effect(question, label, seeds * gaps[0].trained, seeds, n, *map(estimate, gaps))


def judge_all(comparisons: Sequence[Comparison], differences: Differences, margin: float) -> list[Judgement]:
    """For each of CLAIMS one for all ways of decoding, and one for each of them where several are compared.

    An effect within ± `margin` of KID is none. Where the ways do not say the same, there is no verdict for all.
    """
    judgements = []
    for claim in CLAIMS:
        about = [(c, claim.sign(c)) for c in comparisons if claim.sign(c) and differences.has(c)]
        if not about:
            judgements.append(Judgement(claim, "", Verdict.NOT_MEASURED, Direction.UNKNOWN, None))
            continue
        ways = dict.fromkeys(c.way for c in comparisons)  # in one order for all claims
        by_way = {way: several for way in ways if (several := [one for one in about if one[0].way == way])}
        whole = _judgement(claim, "", about, differences, margin)
        own = [_judgement(claim, way, several, differences, margin) for way, several in by_way.items()]
        verdicts, directions = {one.verdict for one in own}, {one.direction for one in own}
        verdict = verdicts.pop() if len(verdicts) == 1 else Verdict.SPLIT
        is_so = directions.pop() if len(directions) == 1 and verdict != Verdict.SPLIT else Direction.UNKNOWN
        judgements.append(whole._replace(verdict=verdict, direction=is_so))
        judgements += own if len(own) > 1 else []
    return judgements


def _judgement(
    claim: Claim, way: str, about: Sequence[tuple[Comparison, int]], differences: Differences, margin: float
) -> Judgement:
    """Of these comparisons, each with the sign by which the claim is about it.

    What is the best on average over the others, but not beside each of them, has the effect beside that one.
    """
    gaps = {metric: [differences.gap(c, metric, sign) for c, sign in about] for metric in METRICS}
    effect = _effect("claim", claim.says, [average(gaps[metric]) for metric in METRICS])
    verdict = judge(claim.expects, effect.kid, margin)
    if verdict[0] == Verdict.HOLDS and claim.best:
        by_rival: dict[tuple[str, str], list[tuple[Comparison, int]]] = {}
        for c, sign in about:
            rival = c.second if sign > 0 else c.first
            by_rival.setdefault((rival.network, rival.decode.schedule), []).append((c, sign))
        if len(by_rival) > 1:
            beside = [_judgement(claim, way, several, differences, margin) for several in by_rival.values()]
            worst = max(beside, key=lambda one: (one.verdict == Verdict.FAILS, one.verdict != Verdict.HOLDS))
            if worst.verdict != Verdict.HOLDS:
                return worst
    clear = sum(excluded(estimate(one)) for one in gaps["kid"])
    return Judgement(claim, way, *verdict, effect, len(about), clear)


def judge(expects: Sequence[Direction], difference: Difference, margin: float) -> tuple[Verdict, Direction]:
    """Whether a difference is as expected, and what it is."""
    is_so = direction(difference, margin)
    if is_so == Direction.UNKNOWN:
        return Verdict.OPEN, is_so
    return (Verdict.HOLDS if is_so in expects else Verdict.FAILS), is_so


def direction(difference: Difference, margin: float) -> Direction:
    """What an interval says: no effect where all of it lies within the margin; otherwise nothing if it includes 0."""
    if -margin < difference.low and difference.high < margin:
        return Direction.NONE
    if excluded(difference):
        return Direction.BETTER if difference.high < 0 else Direction.WORSE
    return Direction.UNKNOWN


def margin(baselines: Mapping[str, Scores]) -> float:
    """The KID that counts as none: see NEGLIGIBLE."""
    return NEGLIGIBLE * abs(baselines["do_nothing"].kid - baselines["reconstruction"].kid)
