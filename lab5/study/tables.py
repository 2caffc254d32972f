"""A finished study as tables: results, effects with their intervals, claims, baselines, and the networks beside them.

Tables are pandas frames, a row for each result or comparison. Only what tells of a network alone is computed here: its
loss, its bits per token, its calibration.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from lab5.config import DecodeConfig
from lab5.data.dataset import Dataset, token_mask
from lab5.data.holes import fill_holes
from lab5.fid import frechet_distance, kid
from lab5.inpainting.fill import baselines, to_pictures, with_hints
from lab5.inpainting.pair import Pair
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.files import write
from lab5.scoring.intervals import Family, family, floor_of_halves
from lab5.scoring.predictions import (
    Bin,
    bits_per_token,
    calibration,
    calibration_error,
    disagreement,
    hidden_predictions,
)
from lab5.scoring.scores import Scorer, Scores
from lab5.study.claims import (
    CLAIMS,
    METRICS,
    Differences,
    Direction,
    Effect,
    Judgement,
    Verdict,
    direction,
    effects,
    judge_all,
    margin,
)
from lab5.study.networks import Network, validation_loss
from lab5.study.plans import Grid
from lab5.study.run import GIVEN, Plan, Result, Row, by_point, of_training

WAY = ["codes", "order", "schedule", "stop_at"]  # of decoding, in a row


class Findings(NamedTuple):
    """All that a study's tables and figures show."""

    effects: list[Effect]
    judgements: list[Judgement]
    baselines: dict[str, Scores]
    margin: float  # an effect of KID within ± this is none


def find(grid: Grid, results: Sequence[Result], scorer: Scorer, pair: Pair) -> Findings:
    """The effects and verdicts of the results that are there; a study that is not finished has fewer."""
    differences = Differences(by_point(results), scorer.reference)
    levels = {name: scorer(x) for name, x in baselines(scorer.truth, scorer.holes, pair.tokenizer).items()}
    none = margin(levels)
    comparisons = grid.comparisons
    return Findings(effects(comparisons, differences), judge_all(comparisons, differences, none), levels, none)


# --- results --------------------------------------------------------------------------------------------------------


def result_table(results: Sequence[Result]) -> pd.DataFrame:
    """A row for each stop of each decoding."""
    return pd.DataFrame([row for result in results for row in result.rows])


def summary(table: pd.DataFrame, by: Sequence[str], of: Sequence[str] = ("score", "hole_psnr_db")) -> pd.DataFrame:
    """Mean and standard deviation over the rows that agree in the columns `by`, in order of appearance."""
    groups = table.groupby(list(by), sort=False)
    columns = {"seeds": groups.size()}
    for name in of:
        columns |= {f"{name}_mean": groups[name].mean(), f"{name}_sd": groups[name].std().fillna(0.0)}
    return pd.DataFrame(columns).reset_index()


def schedule_differences(table: pd.DataFrame) -> pd.DataFrame:
    """For every two schedules and every T: the mean over seeds of the scores' difference, first minus second.

    With the same seed they were decoded with the same noise. The standard error is not a number for a single seed.
    """
    rows = []
    for steps, part in table.groupby("steps", sort=False):
        scores = part.pivot(index="seed", columns="schedule", values="score")
        for first, second in combinations(part["schedule"].unique(), 2):
            gaps = (scores[first] - scores[second]).dropna()
            row = {"steps": steps, "first": first, "second": second, "seeds": len(gaps)}
            rows.append(row | {"mean": gaps.mean(), "standard_error": gaps.sem()})
    return pd.DataFrame(rows)


def write_table(file: Path, table: pd.DataFrame) -> None:
    """A CSV, all of it or none."""
    write(file, table.to_csv(index=False, lineterminator="\n").encode())


def read_table(file: Path) -> pd.DataFrame:
    """A CSV of a study; an empty field is not a number, but for a `way` that is all of them."""
    table = pd.read_csv(file, dtype={"code": str, "way": str})
    return table.assign(way=table["way"].fillna("")) if "claim" in table else table


def ranking(results: Sequence[Result], also: Scorer, tokenizer: Tokenizer) -> pd.DataFrame:
    """For each result of seed 0 its KID, and `kid_also` by another network's features, of the same pictures."""
    rows = []
    for result in results:
        for row, outcome in zip(result.rows, result.outcomes, strict=True):
            if result.seed == 0:
                pictures = to_pictures(tokenizer, outcome.tokens.long(), also.truth, also.holes, result.plan.decode)
                names = ("network", *WAY, "steps", "n", "kid")
                rows.append({name: row[name] for name in names} | {"kid_also": also(pictures).kid})
    return pd.DataFrame(rows)


# --- effects and claims ---------------------------------------------------------------------------------------------


def effect_table(findings: Findings) -> pd.DataFrame:
    """A row for each effect; the verdict is about the first, on KID."""
    return pd.DataFrame([
        {"question": str(effect.question), "comparison": effect.label}
        | {"verdict": str(direction(effect.kid, findings.margin)), "margin": findings.margin}
        | _numbers(effect)
        for effect in findings.effects
    ])  # fmt: skip


def claim_table(*findings: Findings) -> pd.DataFrame:
    """For each claim a row for all ways of decoding, whose `way` is "", and one for each where there are several.

    Of the first of the findings that has measured the claim; without numbers where none has.
    """
    rows = []
    for claim in CLAIMS:
        own = [[(j, one.margin) for j in one.judgements if j.claim == claim] for one in findings]
        measured = [several for several in own if several[0][0].effect] or own
        for judged, none in measured[0]:
            rows.append(_claim_row(judged, none))
    table = pd.DataFrame(rows)
    counts = {"n", "seeds", "trainings"} & {*table}  # which may be missing in a row
    return table.astype(dict.fromkeys(counts, "Int64"))


def _claim_row(judged: Judgement, none: float) -> Row:
    row: Row = {"claim": judged.claim.says, "reports": judged.claim.reports, "way": judged.way}
    row |= {"verdict": str(judged.verdict), "direction": str(judged.direction), "pitfall": 0}
    row |= {"comparisons": judged.comparisons, "clear": judged.clear, "margin": none}
    return row | (_numbers(judged.effect) if judged.effect else {})


def artefacts(claims: pd.DataFrame, made_by: Mapping[int, bool]) -> pd.DataFrame:
    """`claim_table` in which a claim that does not hold is an artefact, where its report has a mistake that makes it.

    `made_by` says of a pitfall, by its number, whether it made the claimed effect when it was tried.
    """
    claims = claims.copy()
    pitfalls = claims["claim"].map({claim.says: claim.pitfall for claim in CLAIMS})
    artefact = (claims["verdict"] == Verdict.FAILS) & pitfalls.map(lambda number: made_by.get(number, False))
    claims.loc[artefact, "verdict"], claims.loc[artefact, "pitfall"] = str(Verdict.ARTEFACT), pitfalls[artefact]
    return claims


def verdict_text(row: Mapping) -> str:
    """The verdict of a row of `claim_table` as a person reads it."""
    more = {
        Verdict.FAILS: "" if row["direction"] == Direction.UNKNOWN else f": {row['direction']}",
        Verdict.OPEN: " at this n",
        Verdict.NOT_MEASURED: " by this grid",
        Verdict.ARTEFACT: f" of pitfall {row['pitfall']}",
        Verdict.SPLIT: " in all ways of decoding",
    }
    return row["verdict"] + more.get(row["verdict"], "")


def luck(*findings: Findings) -> Family:
    """How many of the effects on KID are more than chance makes of so many comparisons."""
    return family([effect.kid for one in findings for effect in one.effects])


def baseline_table(findings: Findings) -> pd.DataFrame:
    """A row for each baseline."""
    return pd.DataFrame([{"method": name} | scores._asdict() for name, scores in findings.baselines.items()])


def _numbers(effect: Effect) -> Row:
    row: Row = {"n": effect.n, "seeds": effect.seeds, "trainings": effect.trainings}
    for metric in METRICS:
        difference = getattr(effect, metric)
        row |= {metric: difference.mean, f"{metric}_low": difference.low, f"{metric}_high": difference.high}
    return row


def halves(scorer: Scorer) -> pd.DataFrame:
    """What disjoint halves of the true images score against each other, mean and SD over random splits."""
    rows = []
    for name, distance in {"kid": kid, "score": frechet_distance}.items():
        mean, sd = floor_of_halves(distance, scorer.reference, generator=torch.Generator().manual_seed(0))
        rows.append({"distance": name, "mean": mean, "SD": sd, "images in a half": len(scorer.truth) // 2})
    return pd.DataFrame(rows)


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
    device = next(pair.transformer.parameters()).device
    parts, bits = [], {1: 0.0, 8: 0.0}
    for start in range(0, len(tokens), decode.batch):
        part = slice(start, start + decode.batch)
        asked, model = (tokens[part].to(device), unknown[part].to(device)), pair.transformer
        if decode.hints and model.config.hints:
            model = with_hints(pair, filled[part], scorer.holes[part])
        for steps in bits:
            own = [torch.Generator().manual_seed(start + i) for i in range(len(tokens[part]))]  # the same in any batch
            mean = bits_per_token(model, *asked, generator=own, steps=steps, order="random")
            bits[steps] += mean * int(unknown[part].sum()) / int(unknown.sum())
        parts.append([x.cpu() for x in hidden_predictions(model, *asked)])
    log_p, true = (torch.cat(columns) for columns in zip(*parts, strict=True))
    bins = calibration(log_p, true)
    return Predictions(bits[1], bits[8], calibration_error(bins), bins)


def prediction_table(networks: Mapping[str, Predictions]) -> pd.DataFrame:
    """A row for each network, or what it is shown."""
    return pd.DataFrame([
        {"the network sees": name, "bits per token, one shot": one.bits_one_shot, "in 8 steps": one.bits_in_steps}
        | {"calibration error": one.calibration_error}
        for name, one in networks.items()
    ])  # fmt: skip


def network_table(
    networks: Sequence[Network], pairs: Mapping[str, Pair], results: Sequence[Result], data: Dataset, steps: int
) -> pd.DataFrame:
    """Every network that a study has trained: its validation loss and its scores in each way of decoding, mean and
    standard deviation over its trainings.

    `steps` are those of a whole training; a network that was looked at on the way has a row for each look.
    """
    losses = {name: validation_loss(pair, data) for name, pair in pairs.items() if name != GIVEN}
    looks = {name: (network.name, step or steps) for network in networks for name, step in network.kept()}
    table = []
    for plan, several in _by_plan(results).items():
        if plan.network in looks:
            training, step = looks[plan.network]
            row = {"network": plan.network, "training": training, "steps": step}
            row |= {name: several[0].rows[-1][name] for name in WAY}
            means = pd.DataFrame([result.rows[-1] for result in several])[[*METRICS]]
            means.insert(0, "val_loss_nats", [losses[of_training(plan.network, result.seed)] for result in several])
            spread = means.std().add_suffix("_sd")  # over trainings
            table.append(row | {"trainings": len(several)} | means.mean().to_dict() | spread.to_dict())
    return pd.DataFrame(table)


def losses_along(networks: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of `network_table`, the trainings that were looked at on their way, in the way of decoding of the looks."""
    if networks.empty:
        return {}
    looks = networks.groupby(["training", *WAY], sort=False).filter(lambda rows: rows["steps"].nunique() > 1)
    return {name: rows.sort_values("steps") for name, rows in looks.groupby("training", sort=False)}


def diversity(results: Sequence[Result], scorer: Scorer) -> pd.DataFrame:
    """The share of hidden tokens in which two seeds differ, of every plan that has two or more, at its last stop."""
    unknown = token_mask(scorer.holes)
    rows = []
    for plan, several in _by_plan(results).items():
        if len(several) > 1:
            tokens = torch.stack([result.outcomes[-1].tokens.long() for result in several])
            row = {"schedule": plan.decode.schedule, "T": plan.decode.steps, "seeds": len(several)}
            rows.append(row | {"share of tokens that differ": disagreement(tokens, unknown)})
    return pd.DataFrame(rows)


def _by_plan(results: Sequence[Result]) -> dict[Plan, list[Result]]:
    """The results of every seed of a plan."""
    plans: dict[Plan, list[Result]] = {}
    for result in results:
        plans.setdefault(result.plan, []).append(result)
    return plans
