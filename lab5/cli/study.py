"""The command study: many ways of decoding, each with its interval, and what they say to the reports' claims."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from lab5.cli.datasets import check_study, get_dataset
from lab5.cli.tables import print_table
from lab5.cli.train import Networks, choose_pair
from lab5.config import Config
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import decode_holes, to_pictures
from lab5.inpainting.pair import Pair
from lab5.runtime.folders import data_folder
from lab5.runtime.ranks import here
from lab5.scoring.classifier import get_features, load_classifier
from lab5.scoring.scores import Scorer
from lab5.show.figures import decode_grid, save_figure
from lab5.show.study_figures import study_figures
from lab5.study import plans, tables
from lab5.study.networks import train_all
from lab5.study.recipes import RECIPES
from lab5.study.run import CODE, GIVEN, Result, kept_results, len_study, of_training, ordered, run_study
from lab5.study.tables import Findings


def study(
    config: Config, file: Path | None, *, grid: str, jobs: int, networks: Networks, also: Path | None = None
) -> None:
    """Run the "quick", the "wide" or the "claims" grid, and print and write its rows, effects and claims.

    Every finished decoding is kept on disk, whatever becomes of the rest: given again, the command goes on from them.
    `also` is a classifier whose ranking of the results is compared.
    """
    file = file or data_folder() / "runs" / f"study-{grid}.csv"
    ranks = here()
    with ranks.in_turn():
        data = get_dataset(config)
        check_study(data)
        pair = choose_pair(config, data, networks)
    features = get_features(config, pair.tokenizer)
    other = None if also is None else load_classifier(also).to(config.device)
    if grid == "wide":
        parts = plans.wide(config)
    else:
        parts = [plans.quick(config.study, config.decode) if grid == "quick" else plans.claims(config)]
    parts = [plans.in_precision(part, config.decode.amp) for part in parts]
    pairs = {GIVEN: pair}
    wanted = [network for part in parts for network in part.networks]
    if wanted and (there := pair.tokenizer.codes) != (codes := config.transformer.codes):
        raise ValueError(
            f"profile {config.profile} trains transformers of {codes} codes, but the tokenizer has {there}: take "
            "--weights trained for its own tokenizer, or --set study.trainings=0 for no training"
        )
    trainings = train_all(config, data, pair.tokenizer, wanted, jobs)
    for trained in tqdm(trainings, total=len(wanted), desc="trainings", disable=not wanted):
        pairs |= {name: one._replace(tokenizer=pair.tokenizer) for name, one in trained.items()}  # in memory once
    findings: list[Findings] = []
    results: list[Result] = []
    ranked: list[pd.DataFrame] = []
    for part in parts:
        images = config.study.images * part.images
        scorer = Scorer(data, features, images, tokenizer=pair.tokenizer)
        if images > (known := len(scorer.truth)):
            print(f"{images} images asked for, {known} are there: data.test has more of them", file=sys.stderr)
        seeds = config.study.seeds
        running = run_study(pairs, scorer, part.plans, seeds=seeds, folder=kept_results(), jobs=jobs)
        bar = tqdm(running, total=len_study(part.plans, seeds), desc=f"decodings of {len(scorer.truth)} images")
        decoded = ordered(list(bar), part.plans)
        if not ranks.first:
            continue
        findings.append(tables.find(part, decoded, scorer, pair))
        results += decoded
        if other is not None:
            ranked.append(tables.ranking(decoded, Scorer(data, other, images), pair.tokenizer))
    if not ranks.first:
        return
    made_by = {"score_name": scorer.score_name, "weights": pair.weights, "profile": config.profile}
    made_by |= {"device": config.device, "code": CODE}
    beside = {
        "baselines": pd.concat([tables.baseline_table(finding) for finding in findings]),
        "effects": pd.concat([tables.effect_table(finding) for finding in findings]),
        "claims": tables.claim_table(*findings),
        "networks": tables.network_table(wanted, pairs, results, data, config.stage2.steps),
        "ranking": pd.concat(ranked) if ranked else pd.DataFrame(),
    }
    table = tables.result_table(results)
    _print(grid, config, table, findings, beside)
    tables.write_table(file, table)
    for name, rows in beside.items():
        if len(rows):
            tables.write_table(file.with_name(f"{file.stem}-{name}.csv"), rows.assign(**made_by))
    caption = "weights {weights}, {profile}, device {device}, code {code}".format(**made_by)
    figures = study_figures(beside["effects"], beside["claims"], beside["networks"], caption)
    if pairs.keys() >= {of_training(name, 0) for name in RECIPES}:
        figures["recipes"] = _recipes({name: pairs[of_training(name, 0)] for name in RECIPES}, scorer)
    for name, figure in figures.items():
        save_figure(figure, file.with_name(f"{file.stem}-{name}"))
    names = ", ".join(dict.fromkeys([*(name for name in beside if len(beside[name])), *figures]))
    print(f"{file}: {len(table)} rows; beside it {names}")


def _recipes(pairs: dict[str, Pair], scorer: Scorer) -> Figure:
    """One hole by every recipe, with its own decoding but for the lab's three schedules in eight steps."""
    one, at = (scorer.truth[:1], scorer.holes[:1]), (1, 4, 8)
    given, truth = fill_holes(*one, "grey"), one[0]
    rows = {}
    for name, recipe in RECIPES.items():
        pictures = []
        for schedule in plans.LAB_SCHEDULES:
            decode = replace(recipe.decoding, schedule=schedule, steps=max(at), stop_at=0)
            states = [state for state in decode_holes(pairs[name], *one, decode, 0) if state.step in at]
            pictures += [to_pictures(pairs[name].tokenizer, state.filled, *one, decode) for state in states]
        rows[name] = torch.cat([given, *pictures, truth])
    titles = ["given", *(f"{schedule}\nt = {t}" for schedule in plans.LAB_SCHEDULES for t in at), "truth"]
    image = f"test image {int(scorer.places[0])} of {scorer.dataset}"
    return decode_grid(rows, titles, caption=f"{image}, every recipe's own decoding in {max(at)} steps, seed 0")


def _print(
    grid: str, config: Config, table: pd.DataFrame, findings: Sequence[Findings], beside: Mapping[str, pd.DataFrame]
) -> None:
    first, n = table.iloc[0], " and ".join(map(str, table["n"].unique()))
    print(f"score: {first['score_name']}, lower is better; mean and SD over seeds")
    print(
        f"n = {n}, {1 + table['seed'].max()} seeds, weights {first['weights']}, device {first['device']}, "
        f"code {first['code']}, profile {config.profile}"
    )
    if grid == "quick":  # in which nothing differs but schedule, T and t
        columns = ("kid", "score", "hole_psnr_db")
        lines = tables.summary(table, ("schedule", "steps", "stop_at"), columns)
        print_table(pd.DataFrame(
            {"schedule": lines["schedule"], "T": lines["steps"], "t": lines["stop_at"]}
            | {name: [_with_sd(line, name) for line in lines.to_dict("records")] for name in columns}
        ))  # fmt: skip
    if len(effects := beside["effects"]):
        names = {"question": "question", "comparison": "first − second", "verdict": "KID is"}
        print_table(effects[[*names]].rename(columns=names).assign(KID=_intervals(effects)))
        chance = tables.luck(*findings)
        print(
            f"{chance.excluded} of {chance.comparisons} intervals exclude 0, {chance.by_chance:.1f} would by chance; "
            f"{chance.holm} hold all together (Holm)"
        )
    if len(ranking := beside["ranking"]):
        agreement = ranking["kid"].corr(ranking["kid_also"], method="spearman")
        print(f"KID by the other classifier: Spearman's rank correlation {agreement:.3f}, {len(ranking)} results")
    claims = beside["claims"]
    verdicts = [tables.verdict_text(row) for row in claims.to_dict("records")]
    print_table(claims[["claim", "reports", "way"]].assign(verdict=verdicts, KID=_intervals(claims)))


def _intervals(table: pd.DataFrame) -> list[str]:
    if "kid" not in table:
        return ["-"] * len(table)
    numbers = table[["kid", "kid_low", "kid_high"]].itertuples(index=False)
    return ["-" if pd.isna(mean) else f"{mean:+.4f} ({low:+.4f} .. {high:+.4f})" for mean, low, high in numbers]


def _with_sd(line: Mapping, column: str) -> str:
    mean = f"{line[f'{column}_mean']:.4f}"
    return f"{mean} ± {line[f'{column}_sd']:.4f}" if line["seeds"] > 1 else mean
