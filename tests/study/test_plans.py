"""What the grids decode and compare: every comparison has its results, and each differs in what it is about."""

from dataclasses import fields, replace
from itertools import combinations

import pytest
from stubs import Chain, a_batch, seeded

from lab5 import variants
from lab5.config import DecodeConfig, StudyConfig
from lab5.data.holes import FILLS, PASTES
from lab5.profiles import configure
from lab5.study import plans
from lab5.study.claims import CLAIMS
from lab5.study.plans import ARGMAX, AROUND, CONTROL, CONTROLLED, LIMITS, SAMPLED, Grid, Question, end, one_shot
from lab5.study.recipes import RECIPES
from lab5.study.run import GIVEN, Point

Q = Question
CONFIG = configure("quick", device="cpu")
CLAIMED, OTHERS = plans.wide(CONFIG)
STUDY = StudyConfig(schedules=("cosine", "linear"), steps=(1, 3, 4), seeds=2, images=8)
CLAIMS_ALONE = plans.claims(CONFIG)
QUICK = plans.quick(STUDY, DecodeConfig(stop_at=2))


def points(grid: Grid) -> set[Point]:
    return {Point(plan.decode, stop, plan.network) for plan in grid.plans for stop in plan.scored()}


@pytest.mark.parametrize("grid", [QUICK, CLAIMED, OTHERS, CLAIMS_ALONE, plans.quick(CONFIG.study, CONFIG.decode)])
def test_every_comparison_is_of_two_results_that_the_plans_decode(grid):
    there = points(grid)
    assert all({c.first, c.second} <= there and c.first != c.second for c in grid.comparisons)
    assert len(set(grid.plans)) == len(grid.plans)
    names = {GIVEN, *(name for network in grid.networks for name in network.names())}
    assert {plan.network for plan in grid.plans} <= names
    labels = [(c.question, c.label) for c in grid.comparisons]
    assert len(set(labels)) == len(labels), "a label is of one comparison"


def test_without_trainings_nothing_is_trained_and_the_rest_stays():
    config = configure("quick", device="cpu", **{"study.trainings": 0})
    for alone, whole in ((plans.claims(config), CLAIMS_ALONE), (plans.wide(config)[1], OTHERS)):
        assert not alone.networks and {plan.network for plan in alone.plans} == {GIVEN}
        assert alone.plans == [plan for plan in whole.plans if plan.network == GIVEN]
        assert alone.comparisons == [c for c in whole.comparisons if c.first.network == c.second.network == GIVEN]
    five = plans.claims(configure("quick", device="cpu", **{"study.trainings": 5}))
    assert len(five.networks) == 5 / 3 * len(CLAIMS_ALONE.networks)
    assert {plan.seeds for plan in five.plans if plan.network != GIVEN} == {5}


def test_a_precision_is_that_of_every_way_and_nothing_else():
    low = plans.in_precision(CLAIMS_ALONE, "bf16")
    assert points(low) == {point._replace(decode=replace(point.decode, amp="bf16")) for point in points(CLAIMS_ALONE)}
    assert {c.first for c in low.comparisons} | {c.second for c in low.comparisons} <= points(low)
    assert plans.in_precision(low, "off") == CLAIMS_ALONE


def test_the_quick_grid_is_every_schedule_and_t_and_one_shot_once():
    assert [(p.decode.schedule, p.decode.steps, p.scored()) for p in QUICK.plans] == [
        ("one_shot", 1, (1,)),
        ("cosine", 3, (1, 2, 3)), ("linear", 3, (1, 2, 3)),
        ("cosine", 4, (1, 2, 3, 4)), ("linear", 4, (1, 2, 3, 4)),
    ]  # fmt: skip
    assert all(plan.seeds is None and plan.decode.stop_at == 0 for plan in QUICK.plans)
    assert {c.question for c in QUICK.comparisons} == {Q.SCHEDULE, Q.STEPS, Q.ITERATING, Q.STOPPING}
    only = plans.quick(replace(STUDY, schedules=("square",), steps=(2,)), DecodeConfig())
    assert [(p.decode.schedule, p.scored()) for p in only.plans] == [("square", (1, 2))]
    shot = plans.quick(replace(STUDY, steps=(1,)), DecodeConfig())
    assert [p.decode.schedule for p in shot.plans] == ["one_shot"] and not shot.comparisons


def test_the_wide_grid_asks_all_that_the_reports_disagree_about():
    assert {c.question for c in CLAIMED.comparisons + OTHERS.comparisons} == set(Question)
    for name in RECIPES:  # the lab's three schedules for each recipe, besides its own decoding
        schedules = {plan.decode.schedule for plan in OTHERS.plans if plan.network == name}
        assert schedules >= {"cosine", "linear", "square", RECIPES[name].decoding.schedule}
        of_recipe = [c for c in OTHERS.comparisons if c.question == Q.SCHEDULE_OF_RECIPE and c.first.network == name]
        assert len(of_recipe) == 3 and all(c.second.network == name for c in of_recipe)
    assert {c.question for c in CLAIMED.comparisons} == {Q.SCHEDULE, Q.STEPS, Q.ITERATING, Q.STOPPING, Q.CODES}
    assert {point.network for c in CLAIMED.comparisons for point in (c.first, c.second)} == {GIVEN}
    assert CLAIMED.images == 2 and OTHERS.images == 1 and not CLAIMED.networks
    assert all(plan.seeds is None for plan in CLAIMED.plans), "as many as the study has"
    assert all(plan.seeds == plans.FEWER for plan in OTHERS.plans)


@pytest.mark.parametrize("changes", [{"decode.budget": "entropy"}, {"decode.remask": 0.1}])
def test_whatever_one_begins_with_the_decoder_takes_every_plan_of_the_wide_grid(changes):
    for part in plans.wide(configure("smoke", **changes)):
        for plan in part.plans:
            variants.decode(Chain(), *a_batch(), plan.decode, generator=seeded())  # which refuses at the call


def test_the_grid_of_claims_asks_what_the_wide_one_asks_about_every_claim():
    for claim in CLAIMS:
        about = [c for c in CLAIMS_ALONE.comparisons if claim.sign(c)]
        assert about == [c for c in CLAIMED.comparisons + OTHERS.comparisons if claim.sign(c)] != [], claim.says
    assert {network.name for network in CLAIMS_ALONE.networks} == {CONTROL, *CONTROLLED}
    assert CLAIMS_ALONE.images == 2 * CLAIMED.images


def test_what_is_trained_is_trained_three_times_and_decoded_once_each():
    for grid in (OTHERS, CLAIMS_ALONE):
        trainings = [(network.name, network.training) for network in grid.networks]
        names = dict.fromkeys(name for name, _ in trainings)
        assert trainings == [(name, n) for n in range(3) for name in names]
        assert {plan.seeds for plan in grid.plans if plan.network != GIVEN} == {3}
    fewer = plans.claims(configure("quick", device="cpu", **{"study.seeds": 2})).networks
    assert {network.training for network in fewer} == {0, 1}


@pytest.mark.parametrize("budget", ["entropy", "threshold"])
def test_grids_decode_by_schedules_whatever_one_begins_with_and_a_budget_to_its_end(budget):
    config = configure("quick", device="cpu", **{"decode.budget": budget})
    for grid in (plans.quick(config.study, config.decode), *plans.wide(config)):
        of_budget = [plan for plan in grid.plans if plan.decode.budget != "schedule"]
        assert all(plan.scored() == (0,) and plan.decode.limit == LIMITS[plan.decode.budget] for plan in of_budget)
        assert len(of_budget) == 2 * any(c.question == Q.BUDGET for c in grid.comparisons)


def test_comparisons_change_one_thing_at_a_time():
    for c in CLAIMED.comparisons + OTHERS.comparisons:
        if c.question in {Q.ORDER, Q.TEMPERATURE, Q.CHOICE_TEMPERATURE, Q.BUDGET, Q.REMASKING, Q.SEEN, Q.CODES}:
            first, second = c.first.decode, c.second.decode
            changed = {f.name for f in fields(first) if getattr(first, f.name) != getattr(second, f.name)}
            assert len(changed - {"limit"}) == 1 and ("limit" in changed) == (c.question == Q.BUDGET), c.label
        if c.question in (Q.SCHEDULE, Q.SCHEDULE_OF_RECIPE):
            assert c.first.network == c.second.network
            assert replace(c.first.decode, schedule="") == replace(c.second.decode, schedule="")
        if c.question in (Q.MASKING, Q.LOSS):
            assert c.first.decode == c.second.decode and c.first.network != c.second.network
    maskings = {frozenset((c.first.network, c.second.network)) for c in OTHERS.comparisons if c.question == Q.MASKING}
    trained = [CONTROL, *(name for name in CONTROLLED if name != "loss on all tokens")]
    assert maskings == {frozenset(pair) for pair in combinations(trained, 2)}, "each against each"
    assert replace(ARGMAX, codes="sample") == SAMPLED


@pytest.mark.parametrize("question", [Q.AROUND_BEST, Q.AROUND_LAB])
def test_around_the_hole_all_is_tried_that_differs_from_a_base_in_one_setting_that_there_is(question):
    compared = [c for c in OTHERS.comparisons if c.question == question]
    (base,) = {c.second.decode for c in compared}
    others = {c.first.decode for c in compared}
    assert len(others) == len(compared) == sum(map(len, AROUND.values())) - len(AROUND)
    for variant in others:
        (name,) = [name for name, value in vars(variant).items() if value != getattr(base, name)]
        assert getattr(variant, name) in AROUND[name]
    assert set(AROUND["fill"]) <= set(FILLS) and AROUND["paste"] == tuple(PASTES)


def test_trainings_differ_from_the_paper_in_one_setting():
    by_name = {network.name: dict(network.changes) for network in OTHERS.networks}
    for name in CONTROLLED:
        assert len({key for key, _ in by_name[name].items() ^ by_name[CONTROL].items()}) == 1
    watched, *again = (network for network in OTHERS.networks if network.stops)
    assert watched.name == CONTROL and len(watched.stops) == 5
    assert again == [watched._replace(training=n) for n in (1, 2)]
    assert list(watched.stops) == sorted(watched.stops) and watched.stops[-1] < CONFIG.stage2.steps


def test_ends_and_one_shot():
    assert end(DecodeConfig(steps=3, rounds=2)) == Point(DecodeConfig(steps=3, rounds=2), 5)
    assert one_shot(DecodeConfig(steps=9, stop_at=2)) == DecodeConfig(schedule="one_shot", steps=1)
