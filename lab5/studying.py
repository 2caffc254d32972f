"""The command study: many ways of decoding, each with its interval, and what they say to the reports' claims.

It computes nothing itself: it trains what a grid asks for, runs it over processes, and writes its tables.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from lab5 import grids
from lab5.commands import choose_pair
from lab5.config import Config, data_folder
from lab5.drawings import save_figure, study_figures
from lab5.filling import decode_holes, to_pictures
from lab5.findings import Findings, baseline_rows, claim_rows, effect_rows, find, network_rows
from lab5.networks import train_all
from lab5.outputs import print_table
from lab5.pipeline import Pair, get_dataset, get_features
from lab5.plots import decode_grid
from lab5.recipes import RECIPES
from lab5.scores import Scorer
from lab5.study import (
    GIVEN,
    Result,
    code_version,
    kept_results,
    len_study,
    ordered,
    run_study,
    summary,
    write_table,
)
from lab5.tokenizer import fill_holes
from lab5.uncertainty import Difference


def study(
    config: Config, table: Path | None, *, grid: str, jobs: int, weights: str, vqgan: Path | None,
    transformer: Path | None,
) -> Findings:  # fmt: skip
    """Run the "quick" or the "wide" grid, and print and write its rows, effects and claims.

    Every finished decoding is kept, whatever becomes of the rest; the rows of those are written even then.
    """
    table = table or data_folder() / "runs" / f"study-{grid}.csv"
    data = get_dataset(config)
    pair = choose_pair(config, data, weights, vqgan, transformer)
    scorer = Scorer(data, get_features(config, pair.tokenizer), config.study.images, tokenizer=pair.tokenizer)
    plan = grids.wide(config) if grid == "wide" else grids.quick(config.study, config.decode)
    pairs = {GIVEN: pair}
    trainings = train_all(config, data, pair.tokenizer, plan.networks, jobs)
    for trained in tqdm(trainings, total=len(plan.networks), desc="trainings", disable=not plan.networks):
        pairs |= trained
    running = run_study(pairs, scorer, plan.plans, seeds=config.study.seeds, folder=kept_results(), jobs=jobs)
    results: list[Result] = []
    try:
        for result in tqdm(running, total=len_study(plan.plans, config.study.seeds), desc="decodings"):
            results.append(result)
    finally:
        results = ordered(results, plan.plans)
        write_table(table, [row for result in results for row in result.rows])
    made = (
        f"n = {len(scorer.truth)}, seeds {config.study.seeds}, weights {pair.weights}, profile {config.profile}, "
        f"device {config.device}, code {code_version()}"
    )
    print(f"score: {scorer.score_name}, lower is better; mean and SD over seeds")
    print(made)
    found = find(plan, results, scorer, pair)
    _print(grid, results, found)
    told = {"score_name": scorer.score_name, "weights": pair.weights, "data": scorer.data, "profile": config.profile}
    told |= {"device": config.device, "code": code_version()}
    tables = {
        "baselines": baseline_rows(found),
        "effects": effect_rows(found),
        "claims": claim_rows(found),
        "networks": network_rows(pairs, results, data, config.stage2.steps),
    }
    tables = {name: [row | told for row in rows] for name, rows in tables.items()}
    for name, rows in tables.items():
        if rows:
            write_table(table.with_name(f"{table.stem}-{name}.csv"), rows)
    figures = study_figures(found, tables["networks"], made)
    if plan.networks:
        figures["recipes"] = _recipes(pairs, scorer)
    for name, figure in figures.items():
        save_figure(figure, table.with_name(f"{table.stem}-{name}"))
    print(f"{table}: {sum(len(result.rows) for result in results)} rows; beside it {', '.join([*tables, *figures])}")
    return found


def _recipes(pairs: dict[str, Pair], scorer: Scorer, image: int = 0, at: Sequence[int] = (1, 4, 8)) -> Figure:
    """One hole by every recipe, with its own decoding but for the lab's three schedules in eight steps."""
    one = scorer.truth[image][None], scorer.holes[image][None]
    given, truth = fill_holes(*one, "grey"), one[0]
    rows = {}
    for name, recipe in RECIPES.items():
        shown = []
        for schedule in grids.LAB_SCHEDULES:
            decode = replace(recipe.decoding, schedule=schedule, steps=max(at), stop_at=0)
            states = [state for state in decode_holes(pairs[name], *one, decode, 0) if state.step in at]
            shown += [to_pictures(pairs[name].tokenizer, state.filled, *one, decode) for state in states]
        rows[name] = torch.cat([given, *shown, truth])
    titles = ["given", *(f"{schedule}\nt = {t}" for schedule in grids.LAB_SCHEDULES for t in at), "truth"]
    return decode_grid(rows, titles, caption=f"toy cat {image}, every recipe's own decoding in 8 steps, seed 0")


def _print(grid: str, results: Sequence[Result], found: Findings) -> None:
    rows = [row for result in results for row in result.rows]
    lines = []
    for line in summary(rows, ("schedule", "steps", "stop_at"), ("kid", "score", "hole_psnr_db")):
        values = {name: _with_sd(line, name) for name in ("kid", "score", "hole_psnr_db")}
        lines.append({"schedule": line["schedule"], "T": line["steps"], "t": line["stop_at"]} | values)
    if grid == "quick":  # in which nothing else differs
        print_table(lines)
    if found.effects:
        lines = [{"question": e.question, "first − second": e.label, "KID": _interval(e.kid)} for e in found.effects]
        print_table(lines)
    lines = []
    for claim, verdict, effect, *_ in found.verdicts:
        kid = "-" if effect is None else _interval(effect.kid)
        lines.append({"claim": claim.says, "reports": claim.reports, "KID": kid, "verdict": verdict})
    print_table(lines)


def _interval(found: Difference) -> str:
    return f"{found.mean:+.4f} ({found.low:+.4f} .. {found.high:+.4f})"


def _with_sd(line: dict[str, Any], column: str) -> str:
    mean = f"{line[f'{column}_mean']:.4f}"
    return f"{mean} ± {line[f'{column}_sd']:.4f}" if line["seeds"] > 1 else mean
