"""Claims against studies whose answer is known: better, worse, equal, or too noisy to tell."""

from collections.abc import Callable

import pytest
import torch

from lab5.config import DecodeConfig, StudyConfig
from lab5.profiles import configure
from lab5.scoring.intervals import Difference
from lab5.scoring.resampling import Outcome
from lab5.scoring.scores import Scores
from lab5.study import plans
from lab5.study.claims import (
    CLAIMS,
    NEGLIGIBLE,
    Differences,
    Direction,
    Verdict,
    effects,
    judge,
    judge_all,
    margin,
)
from lab5.study.plans import Grid
from lab5.study.run import Point

N, F = 32, 6
TRUTH = torch.randn(N, F, generator=torch.Generator().manual_seed(0))
QUICK = plans.quick(StudyConfig(schedules=("cosine", "linear", "square"), steps=(1, 4, 8), seeds=3), DecodeConfig())
ALL = plans.claims(configure("quick", device="cpu"))  # which asks about every claim what the wide grid asks
BETTER, WORSE, NONE, UNKNOWN = Direction
HOLDS_BETTER, HOLDS_WORSE, HOLDS_NONE = ((Verdict.HOLDS, is_so) for is_so in (BETTER, WORSE, NONE))
FAILS_BETTER, FAILS_WORSE, FAILS_NONE = ((Verdict.FAILS, is_so) for is_so in (BETTER, WORSE, NONE))


def outcome(shift: float, seed: int, noise: float = 0.05) -> Outcome:
    """Features that lie `shift` beside the truth's."""
    generator = torch.Generator().manual_seed(seed)
    ones, images = torch.ones(N), torch.ones(N, dtype=torch.long)
    return Outcome(
        TRUTH + shift + noise * torch.randn(N, F, generator=generator), ones * (1 + shift), images, ones, images,
        images, torch.zeros(N, 0, dtype=torch.int16), ones, ones, images, images,
    )  # fmt: skip


def study(grid: Grid, shift_of, noise: float = 0.05) -> Differences:
    """Every point of the grid, as far from the truth as `shift_of` says; all with noise of their own."""
    points = [Point(plan.decode, stop, plan.network) for plan in grid.plans for stop in plan.scored()]
    outcomes = {p: {s: outcome(shift_of(p), 100 * i + s, noise) for s in range(3)} for i, p in enumerate(points)}
    return Differences(outcomes, TRUTH)


def verdicts(grid: Grid, shift_of, noise: float = 0.05) -> dict[str, tuple[Verdict, Direction]]:
    """What the study says to each claim, and what is so, in all ways of decoding together."""
    judgements = judge_all(grid.comparisons, study(grid, shift_of, noise), 0.05)
    return {one.claim.says: (one.verdict, one.direction) for one in judgements if not one.way}


SWEET, EQUAL_SWEET = "stopping early, at a sweet spot, helps", "a sweet spot changes nothing"
HURTS, NOT_NEEDED = "iterating hurts: all at once is better", "iterating is not needed: all at once is as good"
ALL_TOKENS = "a loss on all tokens trains better"


def schedules(default: float = 0.3, **shifts: float) -> Callable[[Point], float]:
    return lambda point: shifts.get(point.decode.schedule, default)


def best(**verdicts: tuple[Verdict, Direction]) -> dict[str, tuple[Verdict, Direction]]:
    return {f"{name} is the best schedule": verdict for name, verdict in verdicts.items()}


@pytest.mark.parametrize(("shift_of", "expected"), [
    (schedules(0.9, cosine=0.2), best(cosine=HOLDS_BETTER, linear=FAILS_WORSE, square=FAILS_WORSE)),
    (schedules(0.9, linear=0.2), best(cosine=FAILS_WORSE, linear=HOLDS_BETTER, square=FAILS_WORSE)),
    (schedules(0.9, square=0.2), best(cosine=FAILS_WORSE, linear=FAILS_WORSE, square=HOLDS_BETTER)),
    # The best is better than each of the others, and not on average alone.
    (schedules(linear=0.2, cosine=0.4, square=2.0), best(linear=HOLDS_BETTER, cosine=FAILS_WORSE)),
    (schedules(0.2, square=2.0), best(linear=FAILS_NONE, cosine=FAILS_NONE)),
    (schedules(), best(cosine=FAILS_NONE, linear=FAILS_NONE, square=FAILS_NONE) | {
        EQUAL_SWEET: HOLDS_NONE, NOT_NEEDED: HOLDS_NONE, HURTS: FAILS_NONE, ALL_TOKENS: (Verdict.NOT_MEASURED, UNKNOWN),
    }),
    (lambda point: 0.2 if point.stop < point.decode.steps else 0.9, {SWEET: HOLDS_BETTER, EQUAL_SWEET: FAILS_BETTER}),
    (lambda point: 0.2 if point.decode.steps == 1 else 0.9, {HURTS: HOLDS_WORSE, NOT_NEEDED: FAILS_WORSE}),
    (lambda point: 0.9 - 0.08 * point.decode.steps, {"more steps are better": HOLDS_BETTER, HURTS: FAILS_BETTER}),
], ids=["cosine", "linear", "square", "than each", "two", "alike", "stopping", "one shot", "more"])  # fmt: skip
def test_claims_and_their_opposites_are_told_apart(shift_of, expected):
    assert expected.items() <= verdicts(QUICK, shift_of).items()


def test_what_is_best_on_average_alone_has_the_effect_beside_the_one_that_it_does_not_beat():
    shift_of = schedules(linear=0.2, cosine=0.4, square=2.0)
    judged = judge_all(QUICK.comparisons, study(QUICK, shift_of), 0.05)
    by_claim = {one.claim.says: one for one in judged}
    cosine, linear = (by_claim[f"{name} is the best schedule"] for name in ("cosine", "linear"))
    assert cosine.direction == Direction.WORSE and cosine.effect.kid.low > 0 and cosine.comparisons < linear.comparisons
    assert linear.effect.kid.high < 0 and linear.comparisons == 2 * cosine.comparisons


def test_noise_leaves_a_claim_undecided():
    assert best(cosine=(Verdict.OPEN, UNKNOWN)).items() <= verdicts(QUICK, schedules(), noise=3.0).items()


def test_the_grid_of_claims_decides_every_claim():
    good = {"40 to 50 % masked", "loss on all tokens"}
    verdict = verdicts(ALL, lambda point: 0.2 if point.network in good or point.decode.codes == "sample" else 0.9)
    assert len(verdict) == len(CLAIMS) and Verdict.NOT_MEASURED not in {one for one, _ in verdict.values()}
    assert verdict["sampled codes are better than the likeliest"] == HOLDS_BETTER
    # The trainings' decodings are all sampled: 0.2 everywhere.
    assert verdict["masking 40 to 50 % trains best"] == FAILS_NONE
    late = verdicts(ALL, lambda point: 0.9 if point.network == plans.CONTROL else 0.2)
    assert late["masking half of the tokens trains best"] == FAILS_NONE, "better than the paper's, as others are"
    assert late["a lower loss is not a lower score"] == HOLDS_WORSE


@pytest.mark.parametrize("name, says", [
    ("half masked", "masking half of the tokens trains best"),
    ("40 to 50 % masked", "masking 40 to 50 % trains best"),
    ("any share masked", "masking any share trains best"),
    ("loss on all tokens", "a loss on all tokens trains better"),
])  # fmt: skip
def test_a_claim_about_a_training_is_about_that_network_alone(name, says):
    verdict = verdicts(ALL, lambda point: 0.2 if point.network == name else 0.9)
    trained = {claim for claim in verdict if "train" in claim}
    assert {claim for claim in trained if verdict[claim] == HOLDS_BETTER} == {says} < trained
    differences = study(ALL, lambda point: 0.2 if point.network == name else 0.9)
    effect = next(j.effect for j in judge_all(ALL.comparisons, differences, 0.05) if j.claim.says == says)
    assert effect.trainings == effect.seeds == 3, "their own luck is in the interval"


def test_a_claim_has_a_verdict_for_each_way_of_decoding_and_one_for_all_where_they_agree():
    def shift(point: Point) -> float:
        """One shot is worse, but for the likeliest codes, where it is better."""
        return 0.9 if (point.decode.steps == 1) != (point.decode.codes == "argmax") else 0.2

    judged = [one for one in judge_all(ALL.comparisons, study(ALL, shift), 0.05) if one.claim.says == HURTS]
    assert {one.way: (one.verdict, one.direction) for one in judged} == {
        "": (Verdict.SPLIT, UNKNOWN), "best": FAILS_BETTER, "sampled": FAILS_BETTER, "argmax": HOLDS_WORSE,
    }  # fmt: skip
    assert judged[0].comparisons == sum(one.comparisons for one in judged[1:])
    alike = [one for one in judge_all(ALL.comparisons, study(ALL, schedules()), 0.05) if one.claim.says == HURTS]
    assert {(one.verdict, one.direction) for one in alike} == {FAILS_NONE} and len(alike) == 4


def test_a_judgement_counts_its_comparisons_and_the_clear_ones():
    differences = study(QUICK, schedules(linear=0.2, cosine=0.2, square=2.0))
    judgements = {one.claim.says: one for one in judge_all(QUICK.comparisons, differences, 0.05)}
    square = judgements["square is the best schedule"]
    assert (square.comparisons, square.clear) == (4, 4), "two rivals at two T, in either place of the pair"
    assert square.effect.kid.low > 0 and square.effect.label == square.claim.says
    assert judgements[ALL_TOKENS][4:] == (None, 0, 0), "not measured"


def test_effects_are_first_minus_second_and_only_of_what_is_there():
    differences = study(QUICK, schedules(0.9, linear=0.2))
    by_label = {effect.label: effect for effect in effects(QUICK.comparisons, differences)}
    assert len(by_label) == len(QUICK.comparisons)
    clear = by_label["cosine − linear, T = 8"]
    assert clear.kid.low > 0 and clear.score.low > 0 and clear.hole_psnr_db.high < 0
    assert (clear.trainings, clear.seeds, clear.n) == (0, 3, N)
    assert clear.hole_psnr_db.mean == pytest.approx(10 * torch.tensor(1.2 / 1.9).log10().item())
    some = Differences({p: o for p, o in differences.outcomes.items() if p.decode.schedule != "linear"}, TRUTH)
    assert {e.label for e in effects(QUICK.comparisons, some)} == {name for name in by_label if "linear" not in name}


@pytest.mark.parametrize(("expects", "low", "high", "verdict"), [
    ((BETTER,), -0.3, -0.1, HOLDS_BETTER), ((WORSE,), -0.3, -0.1, FAILS_BETTER),
    ((NONE,), 0.1, 0.3, FAILS_WORSE), ((NONE,), 0.01, 0.3, FAILS_WORSE),
    ((WORSE, NONE), -0.04, 0.04, HOLDS_NONE), ((WORSE, NONE), 0.01, 0.04, HOLDS_NONE),
    ((WORSE, NONE), 0.1, 0.2, HOLDS_WORSE),
    ((BETTER,), -0.2, 0.04, (Verdict.OPEN, UNKNOWN)), ((NONE,), -0.04, 0.2, (Verdict.OPEN, UNKNOWN)),
])  # fmt: skip
def test_what_is_expected_holds_fails_or_is_open_where_the_interval_reaches_over_zero_and_the_margin(
    expects, low, high, verdict
):
    assert judge(expects, Difference((low + high) / 2, 0.1, low, high, 0.5), 0.05) == verdict


def test_the_margin_is_a_share_of_what_there_is_to_gain():
    levels = {name: Scores(1.0, kid, *[0.0] * 5, 9) for name, kid in {"do_nothing": 0.5, "reconstruction": 0.1}.items()}
    assert margin(levels) == pytest.approx(NEGLIGIBLE * 0.4)
