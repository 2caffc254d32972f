"""Which schedule, how many steps, where to stop: decodings of test images, scored, as one tidy table.

One decoding in T steps gives the T results of stopping after t = 1..T, because a state's proposals are what a
decoding stopped there would return: all sweet spots of a plan cost one decoding. Rows already in the table on
disk are not computed again.

It knows no plot, and does not say which schedule is best.
"""

import csv
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lab5.config import DecodeConfig, StudyConfig
from lab5.data import token_mask
from lab5.decoder import DecodeStep, decode_steps
from lab5.gamma import SCHEDULES
from lab5.pasting import paste_known
from lab5.pipeline import Pair
from lab5.scores import Scorer, Scores
from lab5.tokenizer import Tokenizer, fill_holes

Row = dict[str, Any]
SETTINGS = tuple(field.name for field in fields(DecodeConfig) if field.name not in ("stop_at", "batch"))
KEY = (*SETTINGS, "seed", "n", "weights", "data", "score_name")
COLUMNS = (*KEY, "device", "stop_at", "seconds", *(name for name in Scores._fields if name != "n"))


def decode_holes(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decode: DecodeConfig, seed: int
) -> Iterator[DecodeStep]:
    """The T + 1 states of filling the holes; `pair.tokenizer.decode(state.filled)` is the picture from step 1 on.

    Each image has a generator of its own, from (seed, its number): its noise is the same in any batch and under
    any schedule.
    """
    if decode.batch < 1:
        raise ValueError(f"decode.batch must be at least 1, not {decode.batch}")
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(len(images))]
    decodings = []
    for start in range(0, len(images), decode.batch):
        part = slice(start, start + decode.batch)
        decodings.append(_decode_batch(pair, images[part], holes[part], decode, generators[part]))
    # All batches take the same steps, so their states are one state: a batch at a time stays in the cache.
    for states in zip(*decodings, strict=True):
        _, *tensors = zip(*states, strict=True)
        yield DecodeStep(states[0].step, *(torch.cat(parts) for parts in tensors))


def _decode_batch(
    pair: Pair, images: Tensor, holes: Tensor, decode: DecodeConfig, generators: list[torch.Generator]
) -> Iterator[DecodeStep]:
    tokens, unknown = pair.tokenizer.encode_holed(images, holes, decode.fill)
    device = next(pair.transformer.parameters()).device
    prior = None
    if decode.evidence:
        prior = pair.tokenizer.evidence(images, holes, decode.fill, decode.evidence).to(device)
    model = pair.transformer
    if decode.hints and model.config.hints:
        model = partial(model, hints=pair.tokenizer.hints(images, holes, decode.fill).to(device))
    return decode_steps(
        model,
        tokens.to(device),
        unknown.to(device),
        schedule=decode.schedule,
        steps=decode.steps,
        stop_at=decode.stop_at or None,
        codes=decode.codes,
        order=decode.order,
        temperature=decode.temperature,
        choice_temperature=decode.choice_temperature,
        temperature_end=decode.temperature_end if decode.temperature_end >= 0 else None,
        choice_temperature_end=decode.choice_temperature_end,
        rounding=decode.rounding,
        count_base=decode.count_base,
        budget=decode.budget,
        limit=decode.limit,
        remask=decode.remask,
        rounds=decode.rounds,
        redo=decode.redo,
        prior=prior,
        mask_id=pair.transformer.mask_id,
        generator=generators,
    )


def inpaint_images(
    pair: Pair, images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], decode: DecodeConfig, seed: int
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures at the end of `decode_holes`."""
    for state in decode_holes(pair, images, holes, decode, seed):
        filled = state.filled
    return to_pictures(pair.tokenizer, filled, images, holes, decode)


def to_pictures(
    tokenizer: Tokenizer,
    filled: Int[Tensor, "n N"],
    images: UInt8[Tensor, "n 3 64 64"],
    holes: Bool[Tensor, "n 64 64"],
    decode: DecodeConfig,
) -> UInt8[Tensor, "n 3 64 64"]:
    """The pictures of decoded tokens, after `decode.passes` passes.

    A second pass puts the picture of the first into the hole, without a seam, and encodes that: the unknown tokens are
    then taken from an image whose visible pixels are true to the last one. Known tokens stay. What is returned is the
    decoder's own picture unless `decode.paste` says otherwise.
    """
    filled = filled.cpu()
    pictures = tokenizer.decode(filled)
    for _ in range(decode.passes - 1):
        together = paste_known(pictures, images, holes, "poisson")
        filled = torch.where(token_mask(holes), tokenizer.encode(together), filled)
        pictures = tokenizer.decode(filled)
    return paste_known(pictures, images, holes, decode.paste)


def baselines(
    images: UInt8[Tensor, "n 3 64 64"], holes: Bool[Tensor, "n 64 64"], tokenizer: Tokenizer
) -> dict[str, UInt8[Tensor, "n 3 64 64"]]:
    """What every result has to stand beside, from the same images.

    The reconstruction floor encodes and decodes the true image; doing nothing encodes and decodes the grey hole;
    the others fill pixels and leave the known ones exactly as they are.
    """
    return {
        "reconstruction": tokenizer.decode(tokenizer.encode(images)),
        "do_nothing": tokenizer.decode(tokenizer.encode(fill_holes(images, holes, "grey"))),
        "grey_fill": fill_holes(images, holes, "grey"),
        "mean_colour": fill_holes(images, holes, "mean"),
        "telea": fill_holes(images, holes, "telea"),
        "navier_stokes": fill_holes(images, holes, "navier_stokes"),
    }


def run_study(
    pair: Pair,
    scorer: Scorer,
    study: StudyConfig,
    decode: DecodeConfig,
    *,
    table: Path | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[list[Row]]:
    """For every schedule, T and seed of the study, the rows of t = 1..T; `len_study` says how many lists.

    With `table` rows are put into that CSV file as they come, and decodings that are in it are not repeated.
    Raises ValueError for an unknown schedule and for a table of other columns.
    """
    done = _read(table)
    for seed in seeds if seeds is not None else range(study.seeds):
        for schedule, steps in plans(study):
            setting = replace(decode, schedule=schedule, steps=steps, stop_at=0)
            common = _common(pair, scorer, setting, seed)
            rows = [row for row in done if all(str(row[key]) == str(common[key]) for key in KEY)]
            if len(rows) != steps + decode.rounds:
                done = [row for row in done if row not in rows]  # those of a decoding of which some are missing
                rows = _decode_and_score(pair, scorer, setting, seed, common)
                done += rows
                _write(table, done)
            yield rows


def plans(study: StudyConfig) -> list[tuple[str, int]]:
    """Every (schedule, T). At T = 1 all schedules are one: it is called one_shot."""
    if unknown := [schedule for schedule in study.schedules if schedule not in SCHEDULES]:
        raise ValueError(f"study.schedules must be among {', '.join(SCHEDULES)}, but it has {', '.join(unknown)}")
    several = [(schedule, steps) for steps in study.steps if steps > 1 for schedule in study.schedules]
    return [("one_shot", 1)] * (1 in study.steps) + several


def len_study(study: StudyConfig) -> int:
    return study.seeds * len(plans(study))


def _common(pair: Pair, scorer: Scorer, decode: DecodeConfig, seed: int) -> Row:
    return {name: getattr(decode, name) for name in SETTINGS} | {
        "seed": seed,
        "n": len(scorer.truth),
        "weights": pair.weights,
        "data": scorer.data,
        "score_name": scorer.score_name,
        "device": str(next(pair.transformer.parameters()).device),
    }


def _decode_and_score(pair: Pair, scorer: Scorer, decode: DecodeConfig, seed: int, common: Row) -> list[Row]:
    """`seconds` are those of a decoding that stops there: encoding, t steps, and the picture, without the scoring."""
    rows = []
    spent, began = 0.0, time.monotonic()
    for state in decode_holes(pair, scorer.truth, scorer.holes, decode, seed):
        spent += time.monotonic() - began
        if state.step:
            began = time.monotonic()
            pictures = to_pictures(pair.tokenizer, state.filled, scorer.truth, scorer.holes, decode)
            seconds = round(spent + time.monotonic() - began, 3)
            rows.append(common | {"stop_at": state.step, "seconds": seconds} | scorer(pictures)._asdict())
        began = time.monotonic()
    return rows


def _read(table: Path | None) -> list[Row]:
    if table is None or not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{table} is no table of this study: its columns differ; choose another file")
        return [{key: _value(text) for key, text in line.items()} for line in lines]


def _value(text: str) -> Any:
    """A table's field as it was before it became text."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text or None


def _write(table: Path | None, rows: list[Row]) -> None:
    """The table as a whole: a reader, or a run that is stopped, never meets half a row."""
    if table is None:
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    part = table.with_name(f".{table.name}.{os.getpid()}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(table)
    finally:
        part.unlink(missing_ok=True)


# --- what a table says ----------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row], by: Sequence[str], of: Sequence[str] = ("score", "hole_psnr_db")) -> list[Row]:
    """Mean and standard deviation over the rows that agree in the columns `by`, in order of appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    table = []
    for key, group in groups.items():
        line: Row = dict(zip(by, key, strict=True)) | {"seeds": len(group)}
        for column in of:
            values = [row[column] for row in group]
            line[f"{column}_mean"] = statistics.fmean(values)
            line[f"{column}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
        table.append(line)
    return table


def paired_differences(rows: Sequence[Row], column: str, *, within: str, of: str = "score") -> list[Row]:
    """For every two values of `column`: the mean over seeds of the difference, first minus second, and its error.

    Two rows are a pair if seed and `within` agree: they were decoded with the same noise. The error is the
    standard error of the mean, null for a single seed.
    """
    table = []
    for level in dict.fromkeys(row[within] for row in rows):
        values: dict[Any, dict[int, float]] = {}
        for row in rows:
            if row[within] == level:
                values.setdefault(row[column], {})[row["seed"]] = row[of]
        for first, second in combinations(values, 2):
            shared = sorted(values[first].keys() & values[second].keys())
            gaps = [values[first][seed] - values[second][seed] for seed in shared]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
            pair = {within: level, "first": first, "second": second, "seeds": len(gaps)}
            table.append(pair | {"mean": statistics.fmean(gaps), "standard_error": error})
    return table
