"""What a report opens with: on what it ran, the main table, the pictures, and the lab's score with its setting.

It is handed `metrics.json` and a folder of figures. It knows the names of some of its numbers, and how none of them
came about.
"""

import datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from lab5.progress import duration

COVER = "03_inpainting-cover.png"  # the picture at the head of the index
OURS = ("pretrained", "trained_from_scratch")
# In a row of the study: what was measured, and the setting that is always told. Others are told where rows differ.
MEASURED = {
    "seed", "seconds", "score", "kid", "hole_psnr_db", "ssim", "seam", "token_accuracy", "attribute_accuracy",
}  # fmt: skip
TOLD = {"schedule", "steps", "stop_at"}
KEPT = {True: "kept", False: "redrawn", None: "–"}


def facts(metrics: dict[str, Any]) -> str:
    """A list of what the result was made on and with."""
    inpainting = metrics.get("inpainting", {})
    repeat = metrics.get("repeat", {})
    found = {
        "profile": metrics["profile"],
        "device": metrics["device"],
        "took": duration(metrics["total_seconds"]),
        "weights": inpainting.get("weights"),
        "data": inpainting.get("data"),
        "images": next((str(row["n"]) for row in inpainting.values() if isinstance(row, dict) and "n" in row), None),
        "seed": inpainting.get("seed"),
        "commit": repeat.get("commit", "")[:10] + (" with changes" if repeat.get("changed") else ""),
        "date": f"{datetime.date.today():%d %B %Y}",
    }
    lines = (f"<li>{name} <b>{escape(str(value))}</b></li>" for name, value in found.items() if value not in (None, ""))
    return f'<ul class="facts">{"".join(lines)}</ul>'


def figure(path: Path, classes: str = "", caption: str = "") -> str:
    """A figure beside the page with what is written in it for those who cannot see it; nothing if it is not there."""
    if not path.exists():
        return ""
    alt = escape(described(path))
    picture = f'<img class="zoom" src="figures/{escape(path.name)}" alt="{alt}">'
    return f'<figure class="{classes}">{picture}<figcaption>{escape(caption) or alt}</figcaption></figure>'


def described(path: Path) -> str:
    """The description that `results.show` left in the file, else its name in words."""
    with Image.open(path) as image:
        return image.info.get("Description") or path.stem.replace("-", ": ").replace("_", " ")


def scores(inpainting: dict[str, Any]) -> str:
    """The main table: one row per way to fill the holes, the best score first. A row that names its `method` is
    another row once more, such as the best of the classical ones."""
    rows = [(name, row) for name, row in inpainting.items() if isinstance(row, dict) and "score" in row]
    rows = [(name, row) for name, row in rows if "method" not in row]
    if not rows:
        return ""
    rows.sort(key=lambda item: (item[1]["score"] is None, item[1]["score"]))
    largest = max((row["score"] or 0 for _, row in rows), default=0) or 1
    form = ".2f" if largest < 10 else ".1f"
    body = "".join(
        f'<tr{" class=ours" if name in OURS else ""}><td>{escape(name.replace("_", " "))}</td>'
        f'<td>{KEPT[row.get("keeps_known_pixels")]}</td>'
        f'<td>{_number(row["score"], form)}</td>'
        f'<td class="bar"><i style="width:{100 * (row["score"] or 0) / largest:.1f}%"></i></td>'
        f'<td>{_number(row.get("attribute_accuracy"), ".1%")}</td><td>{_decibels(row.get("hole_psnr_db"))}</td>'
        f'<td>{_number(row.get("n"), "d")}</td></tr>'
        for name, row in rows
    )
    score = escape(str(inpainting.get("score_name", "score")))
    return f"""<figure><div class="scroll" tabindex="0"><table class="scores"><thead><tr><th scope="col">fill</th>
<th scope="col">known pixels</th><th scope="col" colspan="2">{score}</th><th scope="col">attributes read right</th>
<th scope="col">hole PSNR, dB</th><th scope="col">n</th></tr></thead><tbody>{body}</tbody></table></div>
<figcaption>{score}: lower is better. PSNR rewards blur and is printed for completeness. Known pixels are kept as the
photograph has them, or redrawn from tokens by the decoder, which is how the lab wants the pictures that it scores:
rows of one kind compare with each other.</figcaption></figure>"""


def best_setting(study: Any) -> str:
    """A sentence with the best score of the study and the setting that reached it, its mean and range over seeds."""
    rows = [row for row in study if isinstance(row.get("score"), int | float)] if isinstance(study, list) else []
    if not rows:
        return ""
    setting = [key for key in rows[0] if key not in MEASURED]
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(key)) for key in setting), []).append(row["score"])
    best, values = min(groups.items(), key=lambda item: sum(item[1]) / len(item[1]))
    told = [key for i, key in enumerate(setting) if key in TOLD or len({group[i] for group in groups}) > 1]
    values_told = ((key.replace("_", " "), value) for key, value in zip(setting, best, strict=True) if key in told)
    words = ", ".join(f"{key} {value}" for key, value in values_told)
    seeds = f"mean of {len(values)} seeds, {min(values):.2f} to {max(values):.2f}" if len(values) > 1 else "one seed"
    score = f"{rows[0].get('score_name', 'score')}; n = {rows[0].get('n', '?')}; {seeds}"
    return (
        f"<p>Best score of the study: <b>{sum(values) / len(values):.2f}</b> ({escape(score)}) with {escape(words)}. "
        "Numbers of another n cannot be compared with it.</p>"
    )


def _decibels(value: Any) -> str:
    """Equal pictures have no error, which `scores` puts at 138 dB; a single value off by one leaves less than 130."""
    return "∞" if isinstance(value, float) and value > 130 else _number(value, ".1f")


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"
