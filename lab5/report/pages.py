"""The documents of a report: a page for each executed notebook, and the index that tells all of them in one.

The index follows the order that the lab asks a report to have: introduction, implementation details (attention,
training, inference), discussion (study, pitfalls), experiment score; what stands in it comes from the chapters.
Nothing on a page is loaded from elsewhere.

It does not know how a notebook is executed, nor what the numbers of `metrics.json` mean.
"""

import datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from pygments.formatters import HtmlFormatter

from lab5.report import pages as overview
from lab5.report.chapter import Chapter, answer, inline
from lab5.report.progress import duration

# Where the notebooks are told, by the number that they begin with, and under which name; tagged cells go elsewhere.
NOTEBOOKS = {"01": "attention", "02": "training", "03": "inference", "04": "study"}
PARTS = {
    "Implementation details": {"attention": "Attention", "training": "Training", "inference": "Inference"},
    "Discussion": {"study": "What the study says", "pitfalls": "Pitfalls"},
}
PDF = "report.pdf"
DOWNLOADS = ("metrics.json", "config.json")


def write_chapter(page: Path, chapter: Chapter, chapters: list[tuple[str, str]], stopped: str = "") -> None:
    """Write one executed notebook as a page.

    `chapters` are (file stem, title) of all pages, in order, for the links; `stopped` says, on a partial page, why it
    ends early.
    """
    following = [other for other in chapters if other[0] > page.stem][:1] or [("index", "the report")]
    onward = f'<footer>Next: <a href="{escape(following[0][0])}.html">{inline(following[0][1])}</a></footer>'
    banner = f'<p class="stopped">{escape(stopped)} What follows is partial.</p>' if stopped else ""
    contents = '<a href="index.html">The report</a>'
    for stem, _ in chapters:
        here = stem == page.stem
        contents += f'<a href="{escape(stem)}.html"{" aria-current=page" * here}>{escape(stem.replace("_", " "))}</a>'
        inside = chapter.headings() if here else ()
        contents += "".join(f'<a class="sub" href="#{escape(name)}">{escape(text)}</a>' for name, text in inside)
    page.write_text(document(chapter.title, contents, f"{banner}{chapter.html()}{onward}"), encoding="utf-8")


def write_index(
    out: Path, metrics: dict[str, Any], chapters: list[tuple[str, str]], executed: dict[str, Chapter]
) -> Path:
    """Write `out/index.html` from the metrics, `out/figures/` and the chapters that were executed, by file stem."""
    failed = metrics.get("failed")
    stopped = f'<p class="stopped">{escape(failed["message"])}</p>' if failed else ""
    cover = figure(out / "figures" / COVER, "cover") if COVER.partition("-")[0] in executed else ""
    opening = f"""<h1 id="result">What is behind the hole?</h1>
<p class="lead">MaskGIT inpainting, taught, trained and measured in {len(chapters)} chapters.</p>
{overview.facts(metrics)}{stopped}{cover}"""
    if table := overview.scores(metrics.get("inpainting", {})):
        opening += f"<h2>How good are the fills?</h2>{table}"
    cards = "".join(_card(out, metrics, executed, stem, name) for stem, name in chapters)
    score = overview.best_setting(metrics.get("study")) + _tagged("score", executed)
    parts = {
        "Introduction": [Section("introduction", "", _INTRODUCTION.format(cards))],
        **{part: [_section(*name, executed) for name in names.items()] for part, names in PARTS.items()},
        "More": [_untagged(stem, chapter) for stem, chapter in executed.items() if stem[:2] not in NOTEBOOKS],
        "Experiment score": [Section("experiment-score", "", score)],
    }
    contents, told = '<a href="#result">Result</a>', opening
    for part, sections in parts.items():
        links, html = _part(part, [section for section in sections if section.html])
        contents, told = contents + links, told + html
    index = out / "index.html"
    index.write_text(document("lab5 report", contents, told + _footer(out, metrics)), encoding="utf-8")
    return index


_FILES = "<!-- the printed report -->"
_INTRODUCTION = """<p>A VQGAN writes an image of 64x64 pixels as 16x16 tokens. A bidirectional transformer learns to
guess tokens that are hidden from it. To fill a hole, its tokens are guessed, the surest are kept, and the rest is asked
again, a few steps long; a mask schedule says how many are kept at each (Chang et al. 2022, "MaskGIT"). Each chapter
asks one question, and ends with what the run has found.</p><div class="cards">{}</div>"""


class Section(NamedTuple):
    """What is told under one heading, or under that of its part alone; without html there is nothing to tell."""

    id: str
    heading: str
    html: str


def _part(name: str, sections: list[Section]) -> tuple[str, str]:
    """A part of the index: its links for the bar of contents, and its html."""
    if not sections:
        return "", ""
    links, html = f'<a href="#{escape(sections[0].id)}">{name}</a>', f"<h2>{name}</h2>"
    for section in sections:
        if section.heading:
            links += f'<a class="sub" href="#{escape(section.id)}">{inline(section.heading)}</a>'
        heading = f"<h3>{inline(section.heading)}</h3>" if section.heading else ""
        html += f'<section id="{escape(section.id)}">{heading}{section.html}</section>'
    return links, html


def _section(name: str, heading: str, executed: dict[str, Chapter]) -> Section:
    """What the notebook of this name says that is not tagged, and what any says that is tagged so."""
    ours = [_untagged(stem, chapter).html for stem, chapter in executed.items() if NOTEBOOKS.get(stem[:2]) == name]
    return Section(name, heading, "".join(ours) + _tagged(name, executed))


def _untagged(stem: str, chapter: Chapter) -> Section:
    alone = f'<p class="more"><a href="{escape(stem)}.html">The whole chapter on a page of its own</a></p>'
    return Section(stem, chapter.title, chapter.html("", deeper=2, prefix=f"{stem}-") + alone)


def _tagged(section: str, executed: dict[str, Chapter]) -> str:
    return "".join(
        chapter.html(section, deeper=2, prefix=f"{stem}-{section}-")
        for stem, chapter in executed.items()
        if section in chapter.sections
    )


def _footer(out: Path, metrics: dict[str, Any]) -> str:
    links = "".join(f'<li><a href="{name}">{name}</a></li>' for name in DOWNLOADS if (out / name).exists())
    versions = "".join(f"<li>{escape(k)} {escape(str(v))}</li>" for k, v in metrics["versions"].items())
    return f'<footer><ul class="facts">{_FILES}{links}</ul><ul class="facts">{versions}</ul></footer>'


def add_pdf(index: Path) -> None:
    """Link the printed report, which is made from the index and so comes after it."""
    link = f'<li><a href="{PDF}">{PDF}</a></li>'
    index.write_text(index.read_text(encoding="utf-8").replace(_FILES, link), encoding="utf-8")


def _card(out: Path, metrics: dict[str, Any], executed: dict[str, Chapter], stem: str, name: str) -> str:
    """A chapter: its question, a figure, its answer. One that did not run to its end has only the question."""
    if stem not in executed:
        partial = metrics.get("failed", {}).get("notebook") == stem
        what = f'<a href="{escape(stem)}.html">stopped: the partial page</a>' if partial else "not run"
        return f'<article class="card"><h3>{inline(name)}</h3><p>{what}</p></article>'
    figures = [path for path in sorted((out / "figures").glob(f"{stem}-*.png")) if path.name != COVER]
    figures.sort(key=lambda path: not path.stem.endswith("-cover"))
    picture = "".join(
        f'<img class="zoom" src="figures/{escape(path.name)}" alt="{escape(described(path))}">' for path in figures[:1]
    )
    return (
        f'<article class="card"><h3><a href="{escape(stem)}.html">{inline(name)}</a></h3>{picture}'
        f'<div class="answer">{answer(executed[stem].notebook)}</div><p>{duration(metrics["seconds"][stem])}</p>'
        "</article>"
    )


def document(name: str, contents: str, content: str) -> str:
    """A whole page: `contents` are the links of the bar beside the `content`."""
    day, night = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "nord-darker"))
    sheet, script = (Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}</title><link rel="icon" href="data:,">
<style>{day}\n@media screen and (prefers-color-scheme: dark) {{ {night} }}
{sheet}\n.highlight {{ background: none; }}</style>
</head><body><nav aria-label="contents">{contents}<button type="button" id="unfold" hidden>Show all code</button></nav>
<main>{content}</main><dialog aria-label="enlarged figure"><button type="button">Close</button></dialog>
<script>{script}</script></body></html>
"""

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
