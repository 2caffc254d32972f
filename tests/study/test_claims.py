"""Claims against studies whose answer is known: better, worse, equal, or too noisy to tell."""

import pytest
import torch

from lab5.config import DecodeConfig, StudyConfig
from lab5.profiles import configure
from lab5.scoring.intervals import Difference
from lab5.scoring.resampling import Outcome
from lab5.scoring.scores import Scores
from lab5.study import plans as grids
from lab5.study.claims import CLAIMS, NEGLIGIBLE, NOT_MEASURED, Measured, describe, forest, judge, margin, verdicts
from lab5.study.run import Point

N, F = 32, 6
TRUTH = torch.randn(N, F, generator=torch.Generator().manual_seed(0))
QUICK = grids.quick(StudyConfig(schedules=("cosine", "linear", "square"), steps=(1, 4, 8), seeds=3), DecodeConfig())
PARTS = grids.wide(configure("quick", device="cpu"))
WIDE = grids.Grid([], [p for part in PARTS for p in part.plans], [c for part in PARTS for c in part.comparisons])


def outcome(shift: float, seed: int, noise: float = 0.05) -> Outcome:
    """Features that lie `shift` beside the truth's."""
    generator = torch.Generator().manual_seed(seed)
    ones, images = torch.ones(N), torch.ones(N, dtype=torch.long)
    return Outcome(
        TRUTH + shift + noise * torch.randn(N, F, generator=generator), ones * (1 + shift), images, ones, images,
        images, torch.zeros(N, 0, dtype=torch.int16), ones, ones, images, images,
    )  # fmt: skip


def study(grid: grids.Grid, shift_of, noise: float = 0.05) -> Measured:
    """Every point of the grid, as far from the truth as `shift_of` says; all with noise of their own."""
    points = [Point(plan.decode, stop, plan.network) for plan in grid.plans for stop in plan.scored()]
    return Measured(
        {point: {s: outcome(shift_of(point), 100 * i + s, noise) for s in range(3)} for i, point in enumerate(points)},
        TRUTH,
    )


def said(grid: grids.Grid, shift_of, noise: float = 0.05) -> dict[str, str]:
    return {v.claim.says: v.verdict for v in verdicts(grid.comparisons, study(grid, shift_of, noise), 0.05)}


def test_the_best_schedule_is_found_whichever_it_is():
    for best in ("cosine", "linear", "square"):
        found = said(QUICK, lambda point, best=best: 0.2 if point.decode.schedule == best else 0.9)
        for name in ("cosine", "linear", "square"):
            assert found[f"{name} is the best schedule"] == ("holds" if name == best else "does not hold: worse")


def test_the_best_is_better_than_each_of_the_others_and_not_on_average_alone():
    far = {"linear": 0.2, "cosine": 0.4, "square": 2.0}
    found = said(QUICK, lambda point: far.get(point.decode.schedule, 0.3))
    assert found["linear is the best schedule"] == "holds"
    assert found["cosine is the best schedule"] == "does not hold: worse"
    alike = said(QUICK, lambda point: 0.2 if point.decode.schedule != "square" else 2.0)
    assert alike["linear is the best schedule"] == alike["cosine is the best schedule"] == "does not hold: no effect"


def test_where_nothing_differs_no_direction_holds_and_equality_does():
    found = said(QUICK, lambda point: 0.3)
    for name in ("cosine", "linear", "square"):
        assert found[f"{name} is the best schedule"] == "does not hold: no effect"
    assert found["a sweet spot changes nothing"] == "holds"
    assert found["iterating is not needed: all at once is as good"] == "holds"
    assert found["iterating hurts: all at once is better"] == "does not hold: no effect"
    assert found["a loss on all tokens trains better"] == NOT_MEASURED


def test_a_sweet_spot_and_iterating_are_told_apart_from_their_opposites():
    early = said(QUICK, lambda point: 0.2 if point.stop < point.decode.steps else 0.9)
    assert early["stopping early, at a sweet spot, helps"] == "holds"
    assert early["a sweet spot changes nothing"] == "does not hold: better"
    hurts = said(QUICK, lambda point: 0.2 if point.decode.steps == 1 else 0.9)
    assert hurts["iterating hurts: all at once is better"] == "holds"
    assert hurts["iterating is not needed: all at once is as good"] == "does not hold: worse"
    more = said(QUICK, lambda point: 0.9 - 0.08 * point.decode.steps)
    assert more["more steps are better"] == "holds"
    assert more["iterating hurts: all at once is better"] == "does not hold: better"


def test_noise_leaves_a_claim_undecided():
    found = said(QUICK, lambda point: 0.3, noise=3.0)
    assert found["cosine is the best schedule"] == "not decided at this n"


def test_the_wide_grid_decides_every_claim():
    good = {"40 to 50 % masked", "loss on all tokens"}
    found = said(WIDE, lambda point: 0.2 if point.network in good or point.decode.codes == "sample" else 0.9)
    assert NOT_MEASURED not in found.values() and len(found) == len(CLAIMS)
    assert found["sampled codes are better than the likeliest"] == "holds"
    # The trainings' decodings are all sampled: 0.2 everywhere.
    assert found["masking 40 to 50 % trains best"] == "does not hold: no effect"
    late = said(WIDE, lambda point: 0.9 if point.network == grids.CONTROL else 0.2)
    assert late["masking half of the tokens trains best"] == "holds"
    assert late["a lower loss is not a lower score"] == "holds"


def test_effects_are_first_minus_second_and_only_of_what_is_there():
    measured = study(QUICK, lambda point: 0.2 if point.decode.schedule == "linear" else 0.9)
    found = {effect.label: effect for effect in forest(QUICK.comparisons, measured)}
    assert len(found) == len(QUICK.comparisons)
    clear = found["cosine − linear, T = 8"]
    assert clear.kid.low > 0 and clear.score.low > 0 and clear.hole_psnr_db.high < 0 and clear.kid.seeds == 3
    assert clear.hole_psnr_db.mean == pytest.approx(10 * torch.tensor(1.2 / 1.9).log10().item())
    some = Measured({p: o for p, o in measured.outcomes.items() if p.decode.schedule != "linear"}, TRUTH)
    assert {e.label for e in forest(QUICK.comparisons, some)} == {name for name in found if "linear" not in name}


def interval(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, 0.1, low, high, 0.5, 0.1, 5, 32)


def test_words_for_intervals():
    assert describe(interval(-0.3, -0.1), 0.05) == "better" and describe(interval(0.01, 0.2), 0.05) == "worse"
    assert describe(interval(-0.04, 0.04), 0.05) == "no effect" == describe(interval(0.01, 0.04), 0.05)
    assert describe(interval(-0.04, 0.2), 0.05) == "not decided"
    assert judge("better", interval(-0.3, -0.1), 0.05) == "holds"
    assert judge("worse", interval(-0.3, -0.1), 0.05) == "does not hold: better"
    assert judge("equal", interval(0.1, 0.3), 0.05) == "does not hold: worse"
    assert judge("equal", interval(0.01, 0.3), 0.05) == "does not hold: worse"
    assert judge("not better", interval(-0.04, 0.04), 0.05) == "holds" == judge("not better", interval(0.1, 0.2), 0.05)
    assert judge("better", interval(-0.2, 0.04), 0.05) == "not decided at this n"


def test_the_margin_is_a_share_of_what_there_is_to_gain():
    levels = {name: Scores(1.0, kid, *[0.0] * 5, 9) for name, kid in {"do_nothing": 0.5, "reconstruction": 0.1}.items()}
    assert margin(levels) == pytest.approx(NEGLIGIBLE * 0.4)
