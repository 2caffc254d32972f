"""What a study decodes, and which two of its results a question compares.

The quick grid is notebook 04's: schedules, T and every t. The wide one has what the five reports disagree about, in
their way of decoding and in this project's; samplers, orders, temperatures; what is done around the hole; recipes,
and trainings that differ in one thing. The grid of claims has their claims alone, and images enough to decide them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import combinations
from typing import NamedTuple

from lab5.config import Config, DecodeConfig, StudyConfig
from lab5.data.holes import PASTES
from lab5.study.networks import Network
from lab5.study.recipes import RECIPES, changes
from lab5.study.run import GIVEN, Plan, Point, last_step

LAB_SCHEDULES = ("cosine", "linear", "square")
# The lab's way: a grey hole, tokens alone, one pass; its order is random in truth, as pitfall 10 shows.
SAMPLED = DecodeConfig(order="lab", choice_temperature=4.5)
ARGMAX = replace(SAMPLED, codes="argmax")
FEWER = 3  # seeds for what no report claims
# Of the budgets. On 128 cats of seed 11, which no table has, tighter ones took up to 80 steps and scored no better.
LIMITS = {"entropy": 8.0, "threshold": 0.1}
ALONE = {"remask": 0.0, "rounds": 0}  # which need a schedule
# Trainings that differ from the paper's, which masks gamma(u) of the tokens, in one thing.
CONTROL = "paper"
CONTROLLED = {
    "half masked": {"stage2.masking": "bernoulli:0.5"},
    "40 to 50 % masked": {"stage2.masking": "count:0.4:0.5"},
    "any share masked": {"stage2.masking": "bernoulli:0:1"},
    "loss on all tokens": {"stage2.loss": "all"},
}
# Settings that concern the surroundings of a hole, and what is tried of each.
AROUND = {
    "dilate": (0, 1, 2),
    "fill": ("grey", "mean", "navier_stokes"),
    "passes": (1, 2),
    "paste": tuple(PASTES),
}


class Question(StrEnum):
    """What a comparison is about."""

    SCHEDULE = "schedule"
    STEPS = "steps"
    ITERATING = "iterating"
    STOPPING = "sweet spot"
    CODES = "codes"
    ORDER = "order"
    TEMPERATURE = "temperature"
    CHOICE_TEMPERATURE = "choice temperature"
    SEEN = "seen"
    BUDGET = "budget"
    REMASKING = "re-masking"
    ROUNDS = "correcting rounds"
    AROUND_BEST = "around the hole, best"
    AROUND_LAB = "around the hole, lab"
    RECIPES = "recipes"
    SCHEDULE_OF_RECIPE = "schedule of a recipe"
    MASKING = "training: mask ratio"
    LOSS = "training: loss"
    ALONG = "along a training"
    LATE = "late in a training"


class Comparison(NamedTuple):
    """Two results of which a question asks whether the first is better."""

    question: Question
    label: str
    first: Point
    second: Point
    way: str = ""  # of decoding, where a grid has several


class Grid(NamedTuple):
    """A study: what to train, what to decode, and what to compare."""

    networks: list[Network]
    plans: list[Plan]
    comparisons: list[Comparison]
    images: int = 1  # times as many as the settings say


def quick(study: StudyConfig, decode: DecodeConfig) -> Grid:
    """Every schedule with every T of the settings, all t of it scored. At T = 1 all schedules are one: one_shot."""
    base = _scheduled(decode)
    several = [steps for steps in study.steps if steps > 1]
    points = [end(one_shot(base))] if 1 in study.steps else []
    for steps in several:
        for schedule in study.schedules:
            last = end(replace(base, schedule=schedule, steps=steps))
            points += [last._replace(stop=t) for t in range(1, last.stop + 1)]
    compared = _schedules({"": base}, study.schedules, several)
    if several:
        longest = max(several)
        compared += _steps({"": base}, study.schedules, several) if 1 in study.steps else []
        compared += _stops({"": base}, study.schedules[0], longest, longest // 2)
    return Grid([], plans(points), compared)


def wide(config: Config) -> list[Grid]:
    """What the reports claim about decoding, on twice as many images; and everything else, with a dozen trainings.

    Its best way of decoding is `config.decode`, with a network that it suits; the lab's ways use tokens alone.
    """
    ways = _ways(config)
    best, claimed = ways["best"], _claimed(ways)
    curves = [Point(replace(way, schedule="cosine", steps=12), t) for way in ways.values() for t in (1, 2, 3, 4, 8)]
    curves += [end(replace(SAMPLED, schedule=name, steps=8)) for name in ("raised_cosine", "cubic", "stair")]
    others, trainings = _one_at_a_time(best) + _trainings(config), config.study.trainings
    around = {Question.AROUND_BEST: replace(best, schedule="cosine", steps=8)}
    around[Question.AROUND_LAB] = replace(SAMPLED, steps=8)
    for question, base in around.items():
        for name, values in AROUND.items():
            variants = {f"{name}: {value}": replace(base, **{name: value}) for value in values}
            others += [
                Comparison(question, label, end(decode), end(base))
                for label, decode in variants.items() if decode != base
            ]  # fmt: skip
    return [
        Grid([], plans(_points(claimed) + curves), claimed, images=2),
        Grid(networks(config), plans([], _points(others), trainings), others),
    ]


def claims(config: Config) -> Grid:
    """What the reports claim and nothing else, with the trainings that it takes, on four times as many images."""
    claimed = _claimed(_ways(config))
    claimed_of_training = (Question.MASKING, Question.LOSS, Question.LATE)
    trained = [c for c in _trainings(config) if c.question in claimed_of_training]
    used = {point.network for point in _points(trained)}
    trainings = [network for network in networks(config) if used & {*network.names()}]
    decoded = plans(_points(claimed), _points(trained), config.study.trainings)
    return Grid(trainings, decoded, claimed + trained, images=4)


def in_precision(grid: Grid, amp: str) -> Grid:
    """The same grid, decoded with `decode.amp` at this value whatever the way."""

    def at(one: Plan | Point) -> Plan | Point:
        return one._replace(decode=replace(one.decode, amp=amp))

    compared = [c._replace(first=at(c.first), second=at(c.second)) for c in grid.comparisons]
    return grid._replace(plans=[at(plan) for plan in grid.plans], comparisons=compared)


def plans(points: Sequence[Point], fewer: Sequence[Point] = (), trainings: int = 0) -> list[Plan]:
    """One plan for all stops of a way of decoding; those that only `fewer` has get no more than FEWER seeds, and
    networks that are trained one for each of their trainings."""
    stops: dict[tuple[DecodeConfig, str], set[int]] = {}
    for point in (*points, *fewer):
        stops.setdefault((point.decode, point.network), set()).add(point.stop)
    whole = {(point.decode, point.network) for point in points}
    return [
        Plan(decode, tuple(sorted(at)), network, seeds)
        for (decode, network), at in stops.items()
        for seeds in [trainings if network != GIVEN else None if (decode, network) in whole else FEWER]
    ]


def _points(comparisons: Iterable[Comparison]) -> list[Point]:
    return [point for comparison in comparisons for point in (comparison.first, comparison.second)]


# --- what is trained --------------------------------------------------------------------------------------------


def networks(config: Config) -> list[Network]:
    """The recipes, of which the paper's is also looked at on its way, and those that differ from it in one thing."""
    steps = config.stage2.steps
    stops = tuple(sorted({max(1, steps * part // 6) for part in range(1, 6)} - {steps}))
    once = [Network(name, changes(config, name), stops if name == CONTROL else ()) for name in RECIPES]
    paper = changes(config, CONTROL)
    once += [Network(name, paper | settings) for name, settings in CONTROLLED.items()]
    return [one._replace(training=n) for n in range(min(config.study.trainings, config.study.seeds)) for one in once]


def _trainings(config: Config) -> list[Comparison]:
    """Recipes against the paper's, each with its own decoding; one thing at a time; and earlier against later."""
    if not config.study.trainings:
        return []
    paper = RECIPES[CONTROL].decoding
    comparisons = []
    for name, recipe in RECIPES.items():
        own = replace(recipe.decoding, stop_at=0)
        if name != CONTROL:
            stop = recipe.decoding.stop_at or own.steps
            first, second = Point(own, stop, name), end(paper, CONTROL)
            comparisons.append(Comparison(Question.RECIPES, f"{name} − {CONTROL}", first, second))
        way = {f"recipe {name}": replace(own, steps=8)}
        of_recipe = _schedules(way, LAB_SCHEDULES, (8,), name)
        comparisons += [c._replace(question=Question.SCHEDULE_OF_RECIPE) for c in of_recipe]
    same = replace(SAMPLED, steps=8)
    control = end(same, CONTROL)
    maskings = [name for name in CONTROLLED if "stage2.masking" in CONTROLLED[name]]
    for name in CONTROLLED:
        question = Question.MASKING if name in maskings else Question.LOSS
        comparisons.append(Comparison(question, f"{name} − {CONTROL}", end(same, name), control))
    for one, other in combinations(maskings, 2):
        points = end(same, one), end(same, other)
        comparisons.append(Comparison(Question.MASKING, f"{one} − {other}", *points))
    watched = next(network for network in networks(config) if network.stops)
    steps = zip((*watched.stops, config.stage2.steps), watched.names(), strict=True)
    for (before, earlier), (after, later) in combinations(steps, 2):
        late = later == watched.name and 2 * before >= after
        question = Question.LATE if late else Question.ALONG
        comparisons.append(Comparison(question, f"{later} − {earlier}", end(same, later), end(same, earlier)))
    return comparisons


# --- what is compared -------------------------------------------------------------------------------------------


def _ways(config: Config) -> dict[str, DecodeConfig]:
    """This project's way of decoding, and the lab's two."""
    return {"best": _scheduled(config.decode), "sampled": SAMPLED, "argmax": ARGMAX}


def _scheduled(decode: DecodeConfig) -> DecodeConfig:
    """The same way of decoding, by all steps of a schedule."""
    return replace(decode, budget="schedule", stop_at=0)


def _claimed(ways: Mapping[str, DecodeConfig]) -> list[Comparison]:
    """What the reports claim about decoding."""
    comparisons = _schedules(ways, LAB_SCHEDULES, (4, 8, 12)) + _steps(ways, LAB_SCHEDULES, (4, 12)) + _reports()
    for t in (6, 10):
        comparisons += _stops(ways, "cosine", 12, t)
    return comparisons


def _schedules(
    ways: Mapping[str, DecodeConfig], schedules: Iterable[str], steps: Iterable[int], network: str = GIVEN
) -> list[Comparison]:
    comparisons = []
    for way, base in ways.items():
        for T in steps:
            for one, other in combinations(schedules, 2):
                a, b = (end(replace(base, schedule=name, steps=T), network) for name in (one, other))
                label = _label(f"{one} − {other}, T = {T}", way)
                comparisons.append(Comparison(Question.SCHEDULE, label, a, b, way))
    return comparisons


def _steps(ways: Mapping[str, DecodeConfig], schedules: Iterable[str], steps: Iterable[int]) -> list[Comparison]:
    """The most steps against the fewest, and against one."""
    few, many = min(steps), max(steps)
    comparisons = []
    for way, base in ways.items():
        one = end(one_shot(base))
        for name in schedules:
            a, b = (end(replace(base, schedule=name, steps=T)) for T in (many, few))
            if few < many:
                label = _label(f"T = {many} − T = {few}, {name}", way)
                comparisons.append(Comparison(Question.STEPS, label, a, b, way))
            label = _label(f"T = {many} − one shot, {name}", way)
            comparisons.append(Comparison(Question.ITERATING, label, a, one, way))
    return comparisons


def _stops(ways: Mapping[str, DecodeConfig], schedule: str, T: int, t: int) -> list[Comparison]:
    comparisons = []
    for way, base in ways.items():
        decode = replace(base, schedule=schedule, steps=T)
        label = _label(f"stop at {t} − all {T}, {schedule}", way)
        comparisons.append(Comparison(Question.STOPPING, label, Point(decode, t), end(decode), way))
    return comparisons


def _label(text: str, way: str) -> str:
    return f"{text}, {way}" if way else text


def _reports() -> list[Comparison]:
    """What reports A, C and D decoded, with this project's network in the place of theirs."""
    a = replace(ARGMAX, schedule="cosine", steps=100)
    d = replace(ARGMAX, schedule="raised_cosine", steps=12)
    one = end(one_shot(ARGMAX))
    pairs = [
        (Question.STOPPING, "stop at 7 − all 100, cosine, argmax (A)", Point(a, 7), end(a)),
        (Question.STOPPING, "stop at 6 − all 12, raised_cosine, argmax (D)", Point(d, 6), end(d)),
        (Question.ITERATING, "stop at 6 of 12 − one shot, raised_cosine, argmax (D)", Point(d, 6), one),
    ]
    for name in ("square", "stair"):
        c = end(replace(ARGMAX, schedule=name, steps=20))
        pairs.append((Question.ITERATING, f"T = 20 − one shot, {name}, argmax (C)", c, one))
    comparisons = [Comparison(*pair, way="argmax") for pair in pairs]
    for T in (8, 12):
        first, second = (end(replace(way, schedule="cosine", steps=T)) for way in (SAMPLED, ARGMAX))
        comparisons.append(Comparison(Question.CODES, f"sampled − argmax, cosine, T = {T}", first, second))
    return comparisons


def _one_at_a_time(best: DecodeConfig) -> list[Comparison]:
    """Other samplers, orders, temperatures and budgets than the recommended ones."""
    base = replace(best, schedule="cosine", steps=8)
    orders = ("lab", "random", "max_probability", "margin", "entropy", "rings", "moment", "halton")
    others = [(Question.ORDER, name, {"order": name}) for name in orders]
    others += [(Question.CODES, name, {"codes": name}) for name in ("argmax", "top_k", "nucleus")]
    others += [(Question.TEMPERATURE, str(t), {"temperature": t}) for t in (0.25, 0.75, 1.0)]
    others += [(Question.CHOICE_TEMPERATURE, f"{t:g}", {"choice_temperature": t}) for t in (0.0, 1.0, 10.0)]
    others += [(Question.SEEN, "no hints", {"hints": False}), (Question.SEEN, "no evidence", {"evidence": 0.0})]
    others += [(Question.BUDGET, name, {"budget": name, "limit": LIMITS[name]} | ALONE) for name in LIMITS]
    others += [(Question.REMASKING, "0.1", {"remask": 0.1})]
    others += [(Question.ROUNDS, "2", {"rounds": 2})]
    pairs = [(question, f"{question}: {name}", replace(base, **settings)) for question, name, settings in others]
    return [Comparison(question, label, end(decode), end(base)) for question, label, decode in pairs if decode != base]


def end(decode: DecodeConfig, network: str = GIVEN) -> Point:
    """The result of all steps and rounds."""
    return Point(decode, last_step(decode), network)


def one_shot(decode: DecodeConfig) -> DecodeConfig:
    """All at once: the schedule makes no difference, and neither does the order."""
    return replace(decode, schedule="one_shot", steps=1, stop_at=0)
