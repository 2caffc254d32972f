"""What a notebook hands over: numbers with `record`, figures with `show`, tables, and a training to watch.

Numbers are merged into `metrics.json` of the report's folder; figures are displayed with a text alternative and kept as
files.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, display
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from lab5.config import DecodeConfig
from lab5.data.dataset import Dataset
from lab5.inpainting.pair import Pair
from lab5.runtime.files import write
from lab5.runtime.folders import ROOT
from lab5.scoring.scores import Scorer, Scores, psnr_db
from lab5.show.faces import keep_faces
from lab5.show.figures import save_figure
from lab5.show.scrub import is_live
from lab5.trainer import TrainStep

OWN_KEYS = ("profile", "device", "seconds", "total_seconds", "expected_seconds", "versions", "repeat", "failed")
OURS = ("pretrained", "trained_from_scratch")  # of ways to fill the holes, the first that a run has is its own


def show(figure: Figure, alt: str, name: str) -> None:
    """Display a figure with a text alternative, and keep it under a name such as `03_inpainting-steps`.

    The files are `figures/<name>.png` and `.svg` (`LAB5_FIGURES_DIR` names another folder). The card of a
    notebook in the index shows the figure `<notebook>-cover`, or else the first by name.
    """
    if not alt.strip():
        raise ValueError("a figure needs a text alternative, a sentence that says what it shows; got none")
    png = save_figure(figure, _figures() / name, alt)
    pyplot.close(figure)  # or the inline backend shows it once more when the cell ends
    display({"image/png": png.read_bytes(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def table(rows: pd.DataFrame | Sequence[dict[str, Any]], caption: str = "") -> None:
    """Display a frame, or rows of which the first has all columns, as a table with a caption below.

    Floats have three decimals; a column of small ones has four. A column of which no row knows anything is left out.
    """
    if isinstance(rows, pd.DataFrame):
        rows = rows.to_dict("records")
    if not rows:
        raise ValueError("a table needs at least one row, got none")
    columns = {column: [row.get(column) for row in rows] for column in rows[0]}
    decimals = {column: _decimals(values) for column, values in columns.items() if not all(map(pd.isna, values))}
    sides = {str(column).replace("_", " "): _side(rows[0][column]) for column in decimals}
    head = "".join(f"<th style='{side}'>{escape(name)}</th>" for name, side in sides.items())
    cells = [[(row.get(column), _text(row.get(column), n)) for column, n in decimals.items()] for row in rows]
    body = "".join(f"<tr>{''.join(_cell(*cell) for cell in row)}</tr>" for row in cells)
    note = f"<caption style='caption-side:bottom'>{escape(caption)}</caption>" if caption else ""
    html = f"<table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    plain = "\n".join("  ".join(text for _, text in row) for row in cells)
    display({"text/html": html, "text/plain": plain}, raw=True)


def _cell(value: Any, text: str) -> str:
    wide = ";white-space:normal;min-width:13em" if isinstance(value, str) and len(value) > 30 else ""
    return f"<td style='{_side(value)}{wide}'>{escape(text)}</td>"


def _side(value: Any) -> str:
    return f"text-align:{'left' if isinstance(value, str) else 'right'}"


def _decimals(column: Sequence[Any]) -> int:
    """Three decimals of 0.0086 and its like would hide what tells one row from the next."""
    sizes = [abs(value) for value in column if isinstance(value, float) and math.isfinite(value)]
    return 4 if sizes and max(sizes) < 0.05 else 3


def _text(value: Any, decimals: int) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def _figures() -> Path:
    return Path(os.environ.get("LAB5_FIGURES_DIR") or ROOT / "figures")


def _report() -> Path:
    return Path(os.environ.get("LAB5_REPORT_DIR") or ROOT / "report")


def copy_figures(notebook: str, folder: Path, since: float) -> None:
    """Copy the figures that a notebook kept after the time `since` into `folder`, in place of earlier ones."""
    for old in folder.glob(f"{notebook}-*.png"):
        old.unlink()
    for path in _figures().glob(f"{notebook}-*.png"):
        if path.stat().st_mtime >= since - 1:  # a file system may count in whole seconds
            shutil.copy(path, folder)


def record(section: str, data: dict[str, Any] | list[Any] | pd.DataFrame) -> None:
    """Put numbers into `metrics.json` under `section`: a dict is merged into what is there, others replace it.

    The file is in `report/` (`LAB5_REPORT_DIR` names another folder). Numbers of NumPy and torch are taken as
    they are; what is not finite becomes null, because JSON has no word for it.
    """
    if section in OWN_KEYS:
        raise ValueError(f"section {section!r} of metrics.json belongs to the report itself; choose another name")
    folder = _report()
    folder.mkdir(parents=True, exist_ok=True)
    metrics = read_metrics(folder)
    metrics[section] = _merged(metrics.get(section), _plain(data))
    write_metrics(folder, metrics)


def record_sections(**sections: dict[str, Any] | list[Any] | pd.DataFrame) -> None:
    """`record` for each."""
    for section, data in sections.items():
        record(section, data)


def record_fills(
    scorer: Scorer, pictures: dict[str, Tensor], groups: dict[str, dict[str, Scores]], *, pair: Pair, data: Dataset,
    decoding: DecodeConfig, seed: int,
) -> None:  # fmt: skip
    """Put ways to fill the holes into `metrics.json`: the section `inpainting`, with a row for each of them, for the
    truth and for the better one of OpenCV's two, and `tokenizer`, the reconstruction floor.

    `pictures` are by the name of the way, `groups` what `Scorer.by_group` says of them. Of photographs ours, by `pair`
    and as `decoding` says, and the better classical one are also kept to be looked at: see `faces.keep_faces`.
    """
    rows: dict[str, Any] = {}
    for name, images in pictures.items():
        by_group = {group: row._asdict() for group, row in groups[name].items()}
        kept = bool(((images == scorer.truth) | scorer.holes[:, None]).all())
        rows[name] = by_group.pop("all") | by_group | {"keeps_known_pixels": kept}
    classical = min(("telea", "navier_stokes"), key=lambda name: rows[name]["score"])
    rows |= {"truth": scorer(scorer.truth)._asdict(), "classical": rows[classical] | {"method": classical}}
    made = {"score_name": scorer.score_name, "weights": pair.weights, "seed": seed, "data": scorer.dataset}
    record("inpainting", rows | made)
    floor = psnr_db(pictures["reconstruction"], scorer.truth)
    record("tokenizer", {"psnr_db": floor, "n": len(scorer.truth), "weights": pair.weights})
    if not data.attributes:
        ours = next(name for name in OURS if name in pictures)
        fills = {name: pictures[name] for name in (ours, classical)}
        keep_faces(_report(), scorer, fills, pair=pair, data=data, decoding=decoding, seed=seed)


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old.get(key), value) for key, value in new.items()}
    return new


def _plain(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        value = value.to_dict("records")
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(folder: Path) -> dict[str, Any]:
    """The contents of `metrics.json`, empty if there is none. Raises ValueError if it is damaged."""
    path = folder / "metrics.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON any more (line {error.lineno}): remove it and run again") from error


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    write_json(folder / "metrics.json", metrics)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file as a whole: a reader, or a full disk, never meets half of it."""
    write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def watch(
    training: Iterable[TrainStep], draw: Callable[[list[TrainStep]], Figure] | None = None, every: float = 4.0
) -> list[TrainStep]:
    """Run a training to its end behind a progress bar; live, also with a figure redrawn every few seconds.

    What is trained already is found on disk, which is printed. `draw` makes the figure of the steps so far. An
    interrupt keeps what was trained, in the network and on disk: the notebook goes on with it, and the same cell goes
    on from there. Returns the training's whole history.
    """
    print(f"{training.name}: {'found on disk' if training.reused else f'training for {len(training)} steps'}")
    steps: list[TrainStep] = []
    curves = display(HTML(""), display_id=True) if draw is not None and is_live() else None
    drawn = time.monotonic()
    running = iter(training)
    with tqdm(total=len(training), desc=training.name, file=sys.stderr, mininterval=1) as bar:
        try:
            for step in running:
                steps.append(step)
                bar.set_postfix(loss=f"{step.loss:.3f}", lr=f"{step.lr:.1e}", refresh=False)
                bar.update(step.step - bar.n)  # a run that was cut short begins further on
                if curves and time.monotonic() - drawn > every:
                    curves.update(draw(steps))
                    drawn = time.monotonic()
        except KeyboardInterrupt:
            print(f"Interrupted; {training.name} is kept as it is by now. Run the cell again to go on from there.")
        finally:
            if hasattr(running, "close"):
                running.close()  # now, so that what it saves is saved
    if curves:
        curves.update(HTML(""))  # the notebook shows the final ones
    return list(training.history)
