"""The documents of a report: a page for each executed notebook, and the index that tells all of them in one.

The index follows the order that the lab asks a report to have: introduction, implementation details (attention,
training, inference), discussion (study, pitfalls), experiment score; what stands in it comes from the chapters.
Nothing on a page is loaded from elsewhere.

It does not know how a notebook is executed, nor what the numbers of `metrics.json` mean.
"""

from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from pygments.formatters import HtmlFormatter

from lab5 import overview
from lab5.chapters import Chapter, answer, inline
from lab5.overview import COVER, described, figure
from lab5.progress import duration

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
