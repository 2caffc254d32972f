"""What a finished study found, as tables: every effect with its interval, the claims, and the networks beside it.

It decodes nothing anew but for what tells of a network alone: its loss, its bits per token, its calibration.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lab5.config import DecodeConfig
from lab5.data.dataset import Dataset, token_mask
from lab5.data.holes import fill_holes
from lab5.fid import floor_of_halves, frechet_distance, kid
from lab5.inpainting.fill import baselines, with_hints
from lab5.inpainting.pair import Pair
from lab5.scoring.intervals import Family, family
from lab5.scoring.predictions import (
    Bin,
    bits_per_token,
    calibration,
    calibration_error,
    disagreement,
    hidden_predictions,
)
from lab5.scoring.scores import Scorer, Scores
from lab5.study.claims import CLAIMS, METRICS, Effect, Measured, Verdict, describe, forest, margin, verdicts
from lab5.study.networks import validation_loss
from lab5.study.plans import Grid
from lab5.study.run import GIVEN, Plan, Result, Row, by_point


class Findings(NamedTuple):
    """All that a study's tables and figures show."""

    forest: list[Effect]
    verdicts: list[Verdict]
    baselines: dict[str, Scores]
    margin: float  # an effect of KID within ± this is none


def find(grid: Grid, results: Sequence[Result], scorer: Scorer, pair: Pair) -> Findings:
    """The effects and verdicts of the results that are there; a study that is not finished has fewer."""
    measured = Measured(by_point(results), scorer.reference)
    levels = {name: scorer(x) for name, x in baselines(scorer.truth, scorer.holes, pair.tokenizer).items()}
    none = margin(levels)
    return Findings(
        forest(grid.comparisons, measured),
        verdicts(grid.comparisons, measured, none),
        levels,
        none,
    )


def halves(scorer: Scorer) -> list[Row]:
    """What disjoint halves of the true images score against each other, mean and SD over random splits."""
    found = []
    for name, distance in {"kid": kid, "score": frechet_distance}.items():
        mean, sd = floor_of_halves(distance, scorer.reference, generator=torch.Generator().manual_seed(0))
        found.append({"distance": name, "mean": mean, "SD": sd, "images in a half": len(scorer.truth) // 2})
    return found


# --- a network by itself --------------------------------------------------------------------------------------------


class Predictions(NamedTuple):
    """What a network's probabilities are worth on the hidden tokens of the scored images."""

    bits_one_shot: float  # per hidden token, all told at once
    bits_in_steps: float  # told in 8 steps of a cosine, in random order
    calibration_error: float
    bins: list[Bin]


def predictions(pair: Pair, scorer: Scorer, decode: DecodeConfig) -> Predictions:
    """Of one-shot predictions and of teacher-forced ones, given the known tokens and the hints that `decode` shows."""
    filled, unknown = fill_holes(scorer.truth, scorer.holes, decode.fill), token_mask(scorer.holes)
    tokens = torch.where(unknown, pair.tokenizer.encode(scorer.truth), pair.tokenizer.encode(filled))
    device, mask_id = next(pair.transformer.parameters()).device, pair.transformer.mask_id
    parts, bits = [], {1: 0.0, 8: 0.0}
    for start in range(0, len(tokens), decode.batch):
        part = slice(start, start + decode.batch)
        asked, model = (tokens[part].to(device), unknown[part].to(device)), pair.transformer
        if decode.hints and model.config.hints:
            model = with_hints(pair, filled[part], scorer.holes[part])
        for steps in bits:
            own = [torch.Generator().manual_seed(start + i) for i in range(len(tokens[part]))]  # the same in any batch
            told = bits_per_token(model, *asked, generator=own, steps=steps, order="random", mask_id=mask_id)
            bits[steps] += told * int(unknown[part].sum()) / int(unknown.sum())
        parts.append([found.cpu() for found in hidden_predictions(model, *asked, mask_id=mask_id)])
    log_p, true = (torch.cat(columns) for columns in zip(*parts, strict=True))
    bins = calibration(log_p, true)
    return Predictions(bits[1], bits[8], calibration_error(bins), bins)


def prediction_rows(told: Mapping[str, Predictions]) -> list[Row]:
    return [
        {"the network sees": name, "bits per token, one shot": one.bits_one_shot, "in 8 steps": one.bits_in_steps}
        | {"calibration error": one.calibration_error}
        for name, one in told.items()
    ]


def network_rows(pairs: Mapping[str, Pair], results: Sequence[Result], data: Dataset, steps: int) -> list[Row]:
    """Every network that a study has trained: its validation loss, and its mean scores in each way of decoding.

    `steps` are those of a whole training; the networks on its way have theirs in their names.
    """
    losses = {name: validation_loss(pair, data) for name, pair in pairs.items() if name != GIVEN}
    found: dict[Plan, list[Row]] = {}
    for result in results:
        if result.plan.network in losses:
            found.setdefault(result.plan, []).append(result.rows[-1])
    return [
        {"network": name, "steps": int(name.partition(" @ ")[2] or steps), "val_loss_nats": losses[name]}
        | {column: rows[0][column] for column in ("codes", "order", "schedule", "stop_at")}
        | {"seeds": len(rows)}
        | {column: statistics.fmean(row[column] for row in rows) for column in ("kid", "score", "hole_psnr_db")}
        for (_, _, name, _), rows in found.items()
    ]


def losses_along(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """Of `network_rows`, the trainings that were looked at on their way: (step, loss, KID) of each look and the end.

    All of a training are decoded in the same way, that of the looks.
    """

    def way(row: Mapping[str, Any]) -> tuple:
        return row["network"].split(" @ ")[0], *(row[name] for name in ("codes", "order", "schedule", "stop_at"))

    looks = dict.fromkeys(way(row) for row in rows if " @ " in row["network"])
    return {
        look[0]: sorted((row["steps"], row["val_loss_nats"], row["kid"]) for row in rows if way(row) == look)
        for look in looks
    }


def diversity(results: Sequence[Result], scorer: Scorer) -> list[Row]:
    """The share of hidden tokens in which two seeds differ, of every plan that has two or more, at its last stop."""
    unknown = token_mask(scorer.holes)
    decoded: dict[Plan, list[Tensor]] = {}
    for result in results:
        decoded.setdefault(result.plan, []).append(result.outcomes[-1].tokens.long())
    return [
        {"schedule": plan.decode.schedule, "T": plan.decode.steps, "seeds": len(tokens)}
        | {"share of tokens that differ": disagreement(torch.stack(tokens), unknown)}
        for plan, tokens in decoded.items()
        if len(tokens) > 1
    ]


# --- as rows --------------------------------------------------------------------------------------------------------


def effect_rows(found: Findings) -> list[Row]:
    """A row for each effect; the verdict is about the first, on KID."""
    return [
        {"question": effect.question, "comparison": effect.label, "verdict": describe(effect.kid, found.margin)}
        | {"margin": found.margin}
        | _numbers(effect)
        for effect in found.forest
    ]


def claim_rows(*found: Findings) -> list[Row]:
    """A row for each claim, of the first of the findings that has measured it; without numbers where none has."""
    rows = []
    for several in zip(*(one.verdicts for one in found), strict=True):
        measured = [(v, one.margin) for v, one in zip(several, found, strict=True) if v.effect]
        verdict, none = measured[0] if measured else (several[0], found[0].margin)
        row: Row = {"claim": verdict.claim.says, "reports": verdict.claim.reports, "verdict": verdict.verdict}
        row |= {"comparisons": verdict.comparisons, "clear": verdict.clear, "margin": none}
        rows.append(row | (_numbers(verdict.effect) if verdict.effect else {}))
    return rows


def artefacts(rows: Sequence[Row], made_by: Mapping[int, bool]) -> list[Row]:
    """`claim_rows` in which a claim that does not hold is an artefact, where its report has a mistake that makes it.

    `made_by` says of a pitfall, by its number, whether it made the claimed effect when it was tried.
    """
    pitfalls = {claim.says: claim.pitfall for claim in CLAIMS}
    found = []
    for row in rows:
        number = pitfalls[row["claim"]]
        artefact = row["verdict"].startswith("does not hold") and made_by.get(number, False)
        found.append(row | ({"verdict": f"artefact of pitfall {number}"} if artefact else {}))
    return found


def luck(*found: Findings) -> Family:
    """How many of the effects on KID are more than chance makes of so many comparisons."""
    return family([effect.kid for one in found for effect in one.forest])


def baseline_rows(found: Findings) -> list[Row]:
    return [{"method": name} | scores._asdict() for name, scores in found.baselines.items()]


def _numbers(effect: Effect) -> Row:
    row: dict[str, Any] = {"n": effect.kid.n, "seeds": effect.kid.seeds}
    for metric in METRICS:
        difference = getattr(effect, metric)
        row |= {metric: difference.mean, f"{metric}_low": difference.low, f"{metric}_high": difference.high}
    return row
