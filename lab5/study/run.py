"""Which schedule, how many steps, where to stop: decodings of test images, scored, one file for each.

A study is a list of plans, each decoded with every seed. One decoding in T steps gives the T results of stopping
after t = 1..T, because a state's proposals are what a decoding stopped there would return: all sweet spots of a plan
cost one decoding. Each finished decoding is a file of its own, so a study that is stopped, or killed, goes on from
there, and several processes can share the work.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab5.config import DecodeConfig
from lab5.decoder import DecodeStep
from lab5.inpainting.fill import BEGINS, Holed, decode_holes, prepare, to_pictures
from lab5.inpainting.pair import Pair
from lab5.runtime.files import dispensable, load_tensors, save_tensors
from lab5.runtime.folders import data_folder
from lab5.runtime.processes import run_parallel
from lab5.scoring.resampling import Outcome
from lab5.scoring.scores import Scorer

Row = dict[str, Any]
SETTINGS = tuple(field.name for field in fields(DecodeConfig) if field.name not in ("stop_at", "batch"))
GIVEN = "given"  # the network that a study is run with, beside which it may train others

Begun = dict[tuple, Holed]
MOST_BEGUN = 4  # of them, with evidence one of 512 images takes 270 MB

# Counts up whenever a decoding or its scores would come out differently: results of before are then computed again.
CODE = 3


class Plan(NamedTuple):
    """One way of decoding. Its own `stop_at` is not looked at: `stops` says after which t the result is scored."""

    decode: DecodeConfig
    stops: tuple[int, ...] = ()  # rising; () = at the end alone
    network: str = GIVEN
    seeds: int | None = None  # fewer seeds than the study's

    def scored(self) -> tuple[int, ...]:
        """The t of its rows; a decoding goes no further than the last of them. 0 = the end, whatever t it has."""
        return self.stops or (last_step(self.decode),)


def last_step(decode: DecodeConfig) -> int:
    """The t at which everything is done; 0 where a budget takes as many steps as it needs."""
    return decode.steps + decode.rounds if decode.budget == "schedule" else 0


def of_training(network: str, seed: int) -> str:
    """The name of one of several networks that were trained alike; decoding with this seed takes this one."""
    return f"{network} #{seed}"


class Point(NamedTuple):
    """What a row is about: a plan and one of its stops."""

    decode: DecodeConfig
    stop: int
    network: str = GIVEN


class Result(NamedTuple):
    """A plan decoded with one seed; `rows` and `outcomes` are those of its stops."""

    plan: Plan
    seed: int
    rows: list[Row]
    outcomes: list[Outcome]


def run_study(
    pairs: Pair | Mapping[str, Pair],
    scorer: Scorer,
    plans: Sequence[Plan],
    *,
    seeds: int,
    folder: Path | None = None,
    jobs: int = 1,
) -> Iterator[Result]:
    """The results of every seed and plan, seed by seed; with several `jobs` (processes) in the order of finishing.

    `pairs` are the networks that the plans name; where one was trained several times, each under its name
    `of_training`. With a `folder` each result is kept in it as a file, and one that is
    there is not computed again; its name depends on all that the result depends on.
    """
    pairs = {GIVEN: pairs} if isinstance(pairs, Pair) else dict(pairs)
    for _, result in run_parallel(_result, (pairs, scorer, folder, {}), _works(plans, seeds), jobs):
        yield result


def len_study(plans: Sequence[Plan], seeds: int) -> int:
    """How many results there will be."""
    return len(_works(plans, seeds))


def ordered(results: Iterable[Result], plans: Sequence[Plan]) -> list[Result]:
    """As `run_study` gives them in one process, however they came."""
    place = {plan: number for number, plan in enumerate(plans)}
    return sorted(results, key=lambda result: (result.seed, place[result.plan]))


def by_point(results: Iterable[Result]) -> dict[Point, dict[int, Outcome]]:
    """The outcomes of each point, by seed."""
    outcomes: dict[Point, dict[int, Outcome]] = {}
    for result in results:
        for stop, outcome in zip(result.plan.scored(), result.outcomes, strict=True):
            point = Point(result.plan.decode, stop, result.plan.network)
            outcomes.setdefault(point, {})[result.seed] = outcome
    return outcomes


def _works(plans: Sequence[Plan], seeds: int) -> list[tuple[Plan, int]]:
    return [(plan, seed) for seed in range(seeds) for plan in plans if plan.seeds is None or seed < plan.seeds]


def _result(shared: tuple[dict[str, Pair], Scorer, Path | None, Begun], work: tuple[Plan, int]) -> Result:
    """From its file, or else computed and kept there."""
    (pairs, scorer, folder, begun), (plan, seed) = shared, work
    pair = pairs.get(of_training(plan.network, seed)) or pairs[plan.network]
    common = _common(plan, pair, scorer, seed)
    if folder is None:
        return _decode_and_score(plan, pair, scorer, seed, common, begun)
    text = json.dumps(common | {"stops": plan.scored()}, sort_keys=True)
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    result = _read(file, plan, seed, common)
    if result is None:
        result = _decode_and_score(plan, pair, scorer, seed, common, begun)
        tensors = {}
        for number, outcome in enumerate(result.outcomes):
            tensors |= {f"{number}.{name}": value for name, value in outcome._asdict().items()}
        with dispensable(file):
            save_tensors(file, tensors, {"rows": result.rows})
    return result


def _common(plan: Plan, pair: Pair, scorer: Scorer, seed: int) -> Row:
    """All that a result depends on, which every row of it has."""
    return {"network": plan.network} | {name: getattr(plan.decode, name) for name in SETTINGS} | {
        "seed": seed,
        "n": len(scorer.truth),
        "weights": pair.weights,
        "data": scorer.data,
        "score_name": scorer.score_name,
        "code": str(CODE),  # as a table of before has it, whose code is a hash
        "device": next(pair.transformer.parameters()).device.type,  # whichever GPU it is
    }  # fmt: skip


def _decode_and_score(plan: Plan, pair: Pair, scorer: Scorer, seed: int, common: Row, begun: Begun) -> Result:
    """`seconds` are those of a decoding that stops there: t steps and the picture, without encoding and scoring;
    `steps_used` are those in which an image had something masked, on average over the images."""
    rows, outcomes = [], []
    # A stop makes the step the last one taken: what comes after the last stop need not be computed.
    decode = replace(plan.decode, stop_at=0)
    images = pair, scorer.truth, scorer.holes, decode
    states = decode_holes(*images, seed, _begin(begun, *images))
    for state, stop, spent, steps_used in _at_stops(states, plan.scored()):
        began = time.monotonic()
        pictures = to_pictures(pair.tokenizer, state.filled, scorer.truth, scorer.holes, plan.decode)
        seconds = round(spent + time.monotonic() - began, 3)
        outcomes.append(scorer.outcome(pictures, state.filled))
        measured = {"stop_at": stop, "seconds": seconds, "steps_used": steps_used}
        rows.append(common | measured | scorer.scores(outcomes[-1])._asdict())
    return Result(plan, seed, rows, outcomes)


def _begin(begun: Begun, pair: Pair, images: Tensor, holes: Tensor, decode: DecodeConfig) -> Holed:
    """What decodings begin with, made once for all schedules and seeds; the last few are kept in memory."""
    sees = bool(pair.transformer.config.hints)
    key = (id(pair.tokenizer), sees, *(getattr(decode, name) for name in BEGINS))
    if key not in begun:
        while len(begun) >= MOST_BEGUN:
            del begun[next(iter(begun))]
        begun[key] = prepare(pair, images, holes, decode)
    return begun[key]


def _at_stops(
    states: Iterator[DecodeStep], stops: tuple[int, ...]
) -> Iterator[tuple[DecodeStep, int, float, float]]:
    """The states at the stops, each with its stop, the seconds until then, and the mean number of steps used."""
    spent, used, began = 0.0, torch.zeros((), dtype=torch.float64), time.monotonic()
    for state in states:
        spent += time.monotonic() - began
        if state.step and state.step in stops:
            yield state, state.step, spent, round(float(used), 2)
        if state.step == stops[-1] > 0:
            return
        used = state.masked.any(dim=1).double().mean() + used  # these have to be asked about
        began = time.monotonic()
    if stops == (0,):
        yield state, 0, spent, round(float(used), 2)


# --- on disk --------------------------------------------------------------------------------------------------------


def kept_results() -> Path:
    """Where the finished decodings of all studies are kept."""
    return data_folder() / "runs" / "study"


def _read(file: Path, plan: Plan, seed: int, common: Row) -> Result | None:
    """None where there is no file; one that is damaged, or that is another's, is computed again."""
    try:
        tensors, meta = load_tensors(file)
    except (OSError, ValueError):
        return None
    rows = meta.get("rows", [])
    expected = [common | {"stop_at": stop} for stop in plan.scored()]
    if len(rows) != len(expected) or any(row | own != row for row, own in zip(rows, expected, strict=True)):
        return None
    outcomes = [Outcome(**{name: tensors[f"{i}.{name}"] for name in Outcome._fields}) for i in range(len(rows))]
    return Result(plan, seed, rows, outcomes)
