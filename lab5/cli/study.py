"""The command study: many ways of decoding, each with its interval, and what they say to the reports' claims.

It computes nothing itself: it trains what a grid asks for, runs it over processes, and writes its tables.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from lab5.cli.tables import print_table
from lab5.cli.train import choose_pair
from lab5.config import Config, data_folder
from lab5.data.dataset import get_dataset
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import decode_holes, to_pictures
from lab5.inpainting.pair import Pair
from lab5.scoring.classifier import get_features
from lab5.scoring.scores import Scorer
from lab5.show.figures import decode_grid
from lab5.show.study_figures import save_figure, study_figures
from lab5.study import plans as grids
from lab5.study.findings import Findings, baseline_rows, claim_rows, effect_rows, find, luck, network_rows
from lab5.study.networks import train_all
from lab5.study.plans import Grid
from lab5.study.recipes import RECIPES
from lab5.study.run import (
    CODE,
    GIVEN,
    Result,
    Row,
    kept_results,
    len_study,
    ordered,
    run_study,
    summary,
    write_table,
)

LEAST = 8  # images; of fewer, a resample may hold one alone, and KID needs two


def study(
    config: Config, table: Path | None, *, grid: str, jobs: int, weights: str, vqgan: Path | None,
    transformer: Path | None,
) -> None:  # fmt: skip
    """Run the "quick", the "wide" or the "claims" grid, and print and write its rows, effects and claims.

    Every finished decoding is kept on disk, whatever becomes of the rest: given again, the command goes on from them.
    """
    table = table or data_folder() / "runs" / f"study-{grid}.csv"
    data = get_dataset(config)
    if (known := int(data.whole.sum())) < LEAST:
        raise ValueError(f"a study needs at least {LEAST} test images whose truth is known; {data.name} has {known}")
    pair = choose_pair(config, data, weights, vqgan, transformer)
    features = get_features(config, pair.tokenizer)
    parts = {
        "quick": lambda: [grids.quick(config.study, config.decode)],
        "wide": lambda: grids.wide(config),
        "claims": lambda: [grids.claims(config)],
    }[grid]()
    pairs = {GIVEN: pair}
    networks = [network for part in parts for network in part.networks]
    trainings = train_all(config, data, pair.tokenizer, networks, jobs)
    for trained in tqdm(trainings, total=len(networks), desc="trainings", disable=not networks):
        pairs |= trained
    found: list[Findings] = []
    results: list[Result] = []
    for part in parts:
        scorer = Scorer(data, features, config.study.images * part.images, tokenizer=pair.tokenizer)
        if (asked := config.study.images * part.images) > (there := len(scorer.truth)):
            print(f"{asked} images asked for, {there} are there: data.test has more of them", file=sys.stderr)
        decoded = _decoded(part, pairs, scorer, config.study.seeds, jobs)
        found.append(find(part, decoded, scorer, pair))
        results += decoded
    told = {"score_name": scorer.score_name, "weights": pair.weights, "profile": config.profile}
    told |= {"device": config.device, "code": CODE}
    tables = {
        "baselines": [row for one in found for row in baseline_rows(one)],
        "effects": [row for one in found for row in effect_rows(one)],
        "claims": claim_rows(*found),
        "networks": network_rows(pairs, results, data, config.stage2.steps),
    }
    _print(grid, config, results, found, tables)
    write_table(table, [row for result in results for row in result.rows])
    for name, rows in tables.items():
        if rows:
            write_table(table.with_name(f"{table.stem}-{name}.csv"), [row | told for row in rows])
    made = "weights {weights}, {profile}, device {device}, code {code}".format(**told)
    figures = study_figures(tables["effects"], tables["claims"], tables["networks"], made)
    if pairs.keys() >= RECIPES.keys():
        figures["recipes"] = _recipes(pairs, scorer)
    for name, figure in figures.items():
        save_figure(figure, table.with_name(f"{table.stem}-{name}"))
    beside = ", ".join(dict.fromkeys([*(name for name in tables if tables[name]), *figures]))
    print(f"{table}: {sum(len(result.rows) for result in results)} rows; beside it {beside}")


def _decoded(part: Grid, pairs: dict[str, Pair], scorer: Scorer, seeds: int, jobs: int) -> list[Result]:
    """What a part of the study decodes, in its order."""
    running = run_study(pairs, scorer, part.plans, seeds=seeds, folder=kept_results(), jobs=jobs)
    total = len_study(part.plans, seeds)
    results = list(tqdm(running, total=total, desc=f"decodings of {len(scorer.truth)} images"))
    return ordered(results, part.plans)


def _made(results: Sequence[Result]) -> str:
    """By what the results were made."""
    row = results[0].rows[0]
    n = " and ".join(map(str, dict.fromkeys(result.rows[0]["n"] for result in results)))
    seeds = 1 + max(result.seed for result in results)
    return f"n = {n}, {seeds} seeds, weights {row['weights']}, device {row['device']}, code {row['code']}"


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
    number = int(scorer.places[image])
    caption = f"test image {number} of {scorer.dataset}, every recipe's own decoding in {max(at)} steps, seed 0"
    return decode_grid(rows, titles, caption=caption)


def _print(
    grid: str, config: Config, results: Sequence[Result], found: Sequence[Findings], tables: dict[str, list[Row]]
) -> None:
    rows = [row for result in results for row in result.rows]
    print(f"score: {rows[0]['score_name']}, lower is better; mean and SD over seeds")
    print(f"{_made(results)}, profile {config.profile}")
    if grid == "quick":  # in which nothing differs but schedule, T and t
        lines = []
        for line in summary(rows, ("schedule", "steps", "stop_at"), ("kid", "score", "hole_psnr_db")):
            values = {name: _with_sd(line, name) for name in ("kid", "score", "hole_psnr_db")}
            lines.append({"schedule": line["schedule"], "T": line["steps"], "t": line["stop_at"]} | values)
        print_table(lines)
    if tables["effects"]:
        names = {"question": "question", "comparison": "first − second", "verdict": "KID is"}
        print_table([{name: row[key] for key, name in names.items()} | _interval(row) for row in tables["effects"]])
        chance = luck(*found)
        print(
            f"{chance.excluded} of {chance.comparisons} intervals exclude 0, {chance.by_chance:.1f} would by chance; "
            f"{chance.holm} hold all together (Holm)"
        )
    names = ("claim", "reports", "verdict")
    print_table([{name: row[name] for name in names} | _interval(row) for row in tables["claims"]])


def _interval(row: Row) -> dict[str, str]:
    known = row.get("kid") is not None
    return {"KID": f"{row['kid']:+.4f} ({row['kid_low']:+.4f} .. {row['kid_high']:+.4f})" if known else "-"}


def _with_sd(line: dict[str, Any], column: str) -> str:
    mean = f"{line[f'{column}_mean']:.4f}"
    return f"{mean} ± {line[f'{column}_sd']:.4f}" if line["seeds"] > 1 else mean
