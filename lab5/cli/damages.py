"""The command `fid --damages`: test images that are damaged more and more, and which numbers put them in that order."""

import sys
from pathlib import Path

from scipy.stats import spearmanr
from tqdm import tqdm

from lab5.checkpoint import load_vqgan
from lab5.cli.datasets import get_dataset
from lab5.cli.fid import Network
from lab5.cli.tables import print_table
from lab5.config import Config
from lab5.data.dataset import Dataset
from lab5.fid import Features
from lab5.inpainting.tokenizer import Tokenizer
from lab5.runtime.folders import pretrained_folder
from lab5.scoring.classifier import EncoderFeatures
from lab5.scoring.damages import FAMILIES, Subject, damaged_rows, out_of_order


def damages(config: Config, name: str, network: Network, *, n: int | None = None, vqgan: Path | None = None) -> None:
    """Print a row for each damage of the test images of `config.data.path`, then how far each number can be trusted.

    `network` is the features' by the `name` that its column has. Those of the encoder of `vqgan`, of toy cats the
    committed one, have a column beside it, and its decoder damages too; without one a line on stderr says so.
    """
    data = get_dataset(config)
    places = data.whole.nonzero()[:, 0][:n]
    if len(places) < 2:
        raise ValueError(f"damages need at least 2 test images whose truth is known, found {len(places)}")
    tokenizer = _tokenizer(config, data, vqgan)
    judges: dict[str, Features] = {name: network}
    if tokenizer is not None:
        judges["encoder"] = EncoderFeatures(tokenizer.vqgan)
    subject = Subject(data.test[places], data.holes[places], tokenizer)
    made, total = damaged_rows(subject, judges), sum(len(family.strengths) for family in FAMILIES.values())
    rows = list(tqdm(made, desc="damaged", total=total, file=sys.stderr, mininterval=1))
    print(f"n = {len(places)} test images of {data.name} whose truth is known, device {config.device}; paired")
    for column, judge in judges.items():
        print(f"{column}: {judge.score_name}")
    print_table(rows)
    families = {row["damage"] for row in rows}
    columns = [column for column in rows[0] if column not in ("damage", "strength")]
    for column in columns:
        wrong = out_of_order(rows, column)
        but = f", but not {', '.join(wrong)}" if wrong else ""
        print(f"{column} orders {len(families) - len(wrong)} of {len(families)} families by strength{but}")
    agreement = (f"{column} {spearmanr(*([row[key] for row in rows] for key in (name, column))).statistic:+.2f}"
                 for column in columns if column != name)  # fmt: skip
    print(f"rank correlation (Spearman) with {name} over all {len(rows)} rows: {', '.join(agreement)}")


def _tokenizer(config: Config, data: Dataset, vqgan: Path | None) -> Tokenizer | None:
    if vqgan is None and data.attributes:
        vqgan = pretrained_folder() / "vqgan.safetensors"
    if vqgan is None:
        print("lab5: without --vqgan there are no features of an encoder, and nothing is decoded", file=sys.stderr)
        return None
    return Tokenizer(load_vqgan(vqgan).to(config.device))
