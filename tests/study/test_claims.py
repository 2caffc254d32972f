"""Claims against studies whose answer is known: better, worse, equal, or too noisy to tell."""

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
    direction,
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
PARTS = plans.wide(configure("quick", device="cpu"))
WIDE = Grid([], [p for part in PARTS for p in part.plans], [c for part in PARTS for c in part.comparisons])
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
    """What the study says to each claim, and what is so."""
    judgements = judge_all(grid.comparisons, study(grid, shift_of, noise), 0.05)
    return {one.claim.says: (one.verdict, one.direction) for one in judgements}


def test_the_best_schedule_is_found_whichever_it_is():
    for best in ("cosine", "linear", "square"):
        verdict = verdicts(QUICK, lambda point, best=best: 0.2 if point.decode.schedule == best else 0.9)
        for name in ("cosine", "linear", "square"):
            assert verdict[f"{name} is the best schedule"] == (HOLDS_BETTER if name == best else FAILS_WORSE)


def test_the_best_is_better_than_each_of_the_others_and_not_on_average_alone():
    far = {"linear": 0.2, "cosine": 0.4, "square": 2.0}
    verdict = verdicts(QUICK, lambda point: far.get(point.decode.schedule, 0.3))
    assert verdict["linear is the best schedule"] == HOLDS_BETTER
    assert verdict["cosine is the best schedule"] == FAILS_WORSE
    alike = verdicts(QUICK, lambda point: 0.2 if point.decode.schedule != "square" else 2.0)
    assert alike["linear is the best schedule"] == alike["cosine is the best schedule"] == FAILS_NONE


def test_where_nothing_differs_no_direction_holds_and_equality_does():
    verdict = verdicts(QUICK, lambda point: 0.3)
    for name in ("cosine", "linear", "square"):
        assert verdict[f"{name} is the best schedule"] == FAILS_NONE
    assert verdict["a sweet spot changes nothing"] == HOLDS_NONE
    assert verdict["iterating is not needed: all at once is as good"] == HOLDS_NONE
    assert verdict["iterating hurts: all at once is better"] == FAILS_NONE
    assert verdict["a loss on all tokens trains better"] == (Verdict.NOT_MEASURED, UNKNOWN)


def test_a_sweet_spot_and_iterating_are_told_apart_from_their_opposites():
    early = verdicts(QUICK, lambda point: 0.2 if point.stop < point.decode.steps else 0.9)
    assert early["stopping early, at a sweet spot, helps"] == HOLDS_BETTER
    assert early["a sweet spot changes nothing"] == FAILS_BETTER
    hurts = verdicts(QUICK, lambda point: 0.2 if point.decode.steps == 1 else 0.9)
    assert hurts["iterating hurts: all at once is better"] == HOLDS_WORSE
    assert hurts["iterating is not needed: all at once is as good"] == FAILS_WORSE
    more = verdicts(QUICK, lambda point: 0.9 - 0.08 * point.decode.steps)
    assert more["more steps are better"] == HOLDS_BETTER
    assert more["iterating hurts: all at once is better"] == FAILS_BETTER


def test_noise_leaves_a_claim_undecided():
    assert verdicts(QUICK, lambda point: 0.3, noise=3.0)["cosine is the best schedule"] == (Verdict.OPEN, UNKNOWN)


def test_the_wide_grid_decides_every_claim():
    good = {"40 to 50 % masked", "loss on all tokens"}
    verdict = verdicts(WIDE, lambda point: 0.2 if point.network in good or point.decode.codes == "sample" else 0.9)
    assert len(verdict) == len(CLAIMS) and Verdict.NOT_MEASURED not in {one for one, _ in verdict.values()}
    assert verdict["sampled codes are better than the likeliest"] == HOLDS_BETTER
    # The trainings' decodings are all sampled: 0.2 everywhere.
    assert verdict["masking 40 to 50 % trains best"] == FAILS_NONE
    late = verdicts(WIDE, lambda point: 0.9 if point.network == plans.CONTROL else 0.2)
    assert late["masking half of the tokens trains best"] == HOLDS_BETTER
    assert late["a lower loss is not a lower score"] == HOLDS_WORSE


@pytest.mark.parametrize("name, says", [
    ("half masked", "masking half of the tokens trains best"),
    ("40 to 50 % masked", "masking 40 to 50 % trains best"),
    ("any share masked", "masking any share trains best"),
    ("loss on all tokens", "a loss on all tokens trains better"),
])  # fmt: skip
def test_a_claim_about_a_training_is_about_that_network_alone(name, says):
    verdict = verdicts(WIDE, lambda point: 0.2 if point.network == name else 0.9)
    trained = {claim for claim in verdict if "train" in claim}
    assert {claim for claim in trained if verdict[claim] == HOLDS_BETTER} == {says} < trained


def test_a_judgement_counts_its_comparisons_and_the_clear_ones():
    far = {"linear": 0.2, "cosine": 0.2, "square": 2.0}
    differences = study(QUICK, lambda point: far.get(point.decode.schedule, 0.3))
    judgements = {one.claim.says: one for one in judge_all(QUICK.comparisons, differences, 0.05)}
    square = judgements["square is the best schedule"]
    assert (square.comparisons, square.clear) == (4, 4), "two rivals at two T, in either place of the pair"
    assert square.effect.kid.low > 0 and square.effect.label == square.claim.says
    missing = judgements["a loss on all tokens trains better"]
    assert (missing.effect, missing.comparisons, missing.clear) == (None, 0, 0)


def test_effects_are_first_minus_second_and_only_of_what_is_there():
    differences = study(QUICK, lambda point: 0.2 if point.decode.schedule == "linear" else 0.9)
    by_label = {effect.label: effect for effect in effects(QUICK.comparisons, differences)}
    assert len(by_label) == len(QUICK.comparisons)
    clear = by_label["cosine − linear, T = 8"]
    assert clear.kid.low > 0 and clear.score.low > 0 and clear.hole_psnr_db.high < 0
    assert (clear.seeds, clear.n) == (3, N)
    assert clear.hole_psnr_db.mean == pytest.approx(10 * torch.tensor(1.2 / 1.9).log10().item())
    some = Differences({p: o for p, o in differences.outcomes.items() if p.decode.schedule != "linear"}, TRUTH)
    assert {e.label for e in effects(QUICK.comparisons, some)} == {name for name in by_label if "linear" not in name}


def interval(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, 0.1, low, high, 0.5)


def test_an_interval_has_a_direction_unless_it_reaches_over_zero_and_the_margin():
    assert direction(interval(-0.3, -0.1), 0.05) == BETTER and direction(interval(0.01, 0.2), 0.05) == WORSE
    assert direction(interval(-0.04, 0.04), 0.05) == NONE == direction(interval(0.01, 0.04), 0.05)
    assert direction(interval(-0.04, 0.2), 0.05) == UNKNOWN


def test_what_is_expected_holds_fails_or_is_open():
    assert judge((BETTER,), interval(-0.3, -0.1), 0.05) == HOLDS_BETTER
    assert judge((WORSE,), interval(-0.3, -0.1), 0.05) == FAILS_BETTER
    assert judge((NONE,), interval(0.1, 0.3), 0.05) == FAILS_WORSE
    assert judge((NONE,), interval(0.01, 0.3), 0.05) == FAILS_WORSE
    assert judge((WORSE, NONE), interval(-0.04, 0.04), 0.05) == HOLDS_NONE
    assert judge((WORSE, NONE), interval(0.1, 0.2), 0.05) == HOLDS_WORSE
    assert judge((BETTER,), interval(-0.2, 0.04), 0.05) == (Verdict.OPEN, UNKNOWN)


def test_the_margin_is_a_share_of_what_there_is_to_gain():
    levels = {name: Scores(1.0, kid, *[0.0] * 5, 9) for name, kid in {"do_nothing": 0.5, "reconstruction": 0.1}.items()}
    assert margin(levels) == pytest.approx(NEGLIGIBLE * 0.4)
