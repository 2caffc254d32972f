"""The pages of a report: one for each executed notebook, and the index that has all of them in one.

The index follows the order that the lab asks a report to have: introduction, implementation details (attention,
training, inference), discussion (study, pitfalls), experiment score. The HTML is in `templates/`; here its values are
gathered. Nothing on a page is loaded from elsewhere.
"""

import datetime
from collections.abc import Collection
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from pygments.formatters import HtmlFormatter

from lab5.report.chapter import Chapter, inline, title
from lab5.show.faces import EYES, FILE, read_faces
from lab5.show.notebook import read_metrics

# The section of the index that a notebook fills, by the number that its name begins with; others have one of their own.
NOTEBOOKS = {"01": "attention", "02": "training", "03": "inference", "04": "study", "05": "pitfalls"}
PARTS = {
    "Implementation details": {"attention": "Attention", "training": "Training", "inference": "Inference"},
    "Discussion": {"study": "What the study says", "pitfalls": "Pitfalls"},
}
PDF = "report.pdf"
DOWNLOADS = (PDF, "metrics.json", "config.json")
COVER = "03_inpainting-cover.png"  # the picture at the head of the index
FACES = {"03_inpainting-faces.html": "Faces, not only scores", "03_inpainting-blind.html": "Which fill is better?"}

# In a row of the study: what was measured, and the setting that is always named. Others are named where rows differ.
MEASURED = {
    "seed", "seconds", "score", "kid", "hole_psnr_db", "ssim", "seam", "token_accuracy", "attribute_accuracy",
}  # fmt: skip
ALWAYS_NAMED = {"schedule", "steps", "stop_at"}


class Picture(NamedTuple):
    src: str
    alt: str


def write_pages(out: Path, notebooks: Collection[Path], private: dict[str, str]) -> Path:
    """Write a page for each of the `notebooks` that `out` has executed, and the index; return the path of the index.

    `out` has `metrics.json` and `figures/` too; `private` is as in `Chapter`. Where fills of photographs were kept to
    be looked at, FACES are written as well.
    """
    metrics = read_metrics(out)
    failed = metrics.get("failed", {"notebook": "", "message": ""})
    titles = {path.stem: title(nbformat.read(path, as_version=4)) or path.stem for path in notebooks}
    chapters = {
        path.stem: Chapter(out / path.name, path.parent, private, out / "figures")
        for path in notebooks
        if path.stem in (*metrics["seconds"], failed["notebook"]) and (out / path.name).exists()
    }
    for stem, chapter in chapters.items():
        stopped = failed["message"] if stem == failed["notebook"] else ""
        following = next((other for other in chapters if other > stem), "index")
        write_page(out / f"{stem}.html", "chapter.html", stem=stem, chapter=chapter, stems=list(chapters),
                   stopped=stopped, following=following, name=titles.get(following, "the report"))  # fmt: skip
    executed = {stem: chapter for stem, chapter in chapters.items() if stem != failed["notebook"]}
    faces = read_faces(out) if FILE.partition("-")[0] in executed else {}
    for name, heading in FACES.items() if faces else ():
        write_page(out / name, name.partition("-")[2], heading=heading, pages=FACES, kept=faces, eyes=EYES,
                   metrics=metrics)  # fmt: skip
    write_page(out / "index.html", "index.html", titles=titles, executed=executed, metrics=metrics, failed=failed,
               faces=FACES if faces else {}, **_index_values(out, metrics, executed))  # fmt: skip
    return out / "index.html"


def _index_values(out: Path, metrics: dict[str, Any], executed: dict[str, Chapter]) -> dict[str, Any]:
    section_of = {stem: NOTEBOOKS.get(stem[:2], stem) for stem in executed}
    sections = {*section_of.values(), *(tag for chapter in executed.values() for tag in chapter.sections)}
    parts = PARTS | {"More": {stem: executed[stem].title for stem in executed if section_of[stem] == stem}}
    scores = _score_rows(metrics.get("inpainting", {}))
    return {
        "section_of": section_of,
        "sections": sections,
        "parts": {part: {id: name for id, name in names.items() if id in sections} for part, names in parts.items()},
        "today": datetime.date.today(),
        "cover": picture(out, out / "figures" / COVER) if COVER.partition("-")[0] in executed else None,
        "covers": {stem: _card_picture(out, stem) for stem in executed},
        "scores": scores,
        "largest": max((row["score"] or 0 for _, row in scores), default=0) or 1,
        "best": _best_setting(metrics.get("study")),
        "downloads": [name for name in DOWNLOADS if (out / name).exists()],
    }


def _score_rows(inpainting: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The ways to fill the holes, the best score first. A row that names its `method` is another row once more, such
    as the best of the classical ones."""
    rows = [(name, row) for name, row in inpainting.items() if isinstance(row, dict) and "score" in row]
    rows = [(name, row) for name, row in rows if "method" not in row]
    return sorted(rows, key=lambda item: (item[1]["score"] is None, item[1]["score"]))


def _best_setting(study: Any) -> dict[str, Any] | None:
    """The setting with the best mean score of the study, in words, with its score for each seed."""
    rows = [row for row in study if isinstance(row.get("score"), int | float)] if isinstance(study, list) else []
    if not rows:
        return None
    names = [name for name in rows[0] if name not in MEASURED]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row.get(name)) for name in names), []).append(row["score"])
    best = min(groups, key=lambda setting: fmean(groups[setting]))
    varied = {name for name, values in zip(names, zip(*groups, strict=True), strict=True) if len(set(values)) > 1}
    setting = {name: value for name, value in zip(names, best, strict=True) if name in ALWAYS_NAMED | varied}
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items())
    return {"scores": groups[best], "mean": fmean(groups[best]), "setting": words, "row": rows[0]}


def _card_picture(out: Path, stem: str) -> Picture | None:
    """The figure `<notebook>-cover`, or else the first by name; what heads the index is not shown twice."""
    paths = [path for path in sorted((out / "figures").glob(f"{stem}-*.png")) if path.name != COVER]
    paths.sort(key=lambda path: not path.stem.endswith("-cover"))
    return picture(out, paths[0]) if paths else None


def picture(folder: Path, path: Path) -> Picture | None:
    """A figure for a page in `folder`, described as `show` wrote into the file, else by its name; None without one."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        alt = image.info.get("Description") or path.stem.replace("-", ": ").replace("_", " ")
    return Picture(path.relative_to(folder).as_posix(), alt)


# --- templates and how values are written in them -----------------------------------------------------------------


def write_page(page: Path, template: str, **values: Any) -> None:
    page.write_text(render(template, **values), encoding="utf-8")


def render(template: str, **values: Any) -> str:
    return _templates.get_template(template).render(values)


def duration(seconds: float) -> str:
    """`75` -> `"1 min 15 s"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def _decibels(value: Any) -> str:
    """Equal pictures have no error, which `scores` puts at 138 dB; a single value off by one leaves less than 130."""
    return "∞" if isinstance(value, float) and value > 130 else number(value, ".1f")


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_templates.filters |= {
    "inline": lambda text: Markup(inline(text)), "duration": duration, "number": number, "decibels": _decibels,
}  # fmt: skip
_templates.globals["code_style"] = lambda name: Markup(HtmlFormatter(style=name).get_style_defs(".highlight"))
