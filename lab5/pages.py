"""Executed notebooks become web pages that open without a network: chapters, and the index that leads to them.

Formulas are turned into MathML here, pictures are inside the page or beside it, widgets show the HTML that they
carry, and every picture has a text alternative. Nothing on a page is loaded from elsewhere.

It does not know how a notebook is executed, nor what the numbers of `metrics.json` mean: it lays them out.
"""

import datetime
import re
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from PIL import Image
from pygments.formatters import HtmlFormatter

from lab5.progress import duration

COVER = "03_inpainting-cover.png"  # the picture at the head of the index
OURS = ("pretrained", "trained_from_scratch")

_WIDGET = "application/vnd.jupyter.widget-view+json"
_NO_ALT = "No description has been provided for this image"  # nbconvert's filler


class _Renderer(IPythonRenderer):
    """Markdown whose formulas become MathML, which browsers lay out by themselves."""

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def _mathml(latex: str, display: str) -> str:
    try:
        return convert(latex.strip(), display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    except Exception:  # the converter's errors share no base class; a formula's source is still readable
        return f"<code>{escape(latex)}</code>"


def _markdown(source: str) -> str:
    """HTML of a markdown text that is not ours: tags in it are escaped."""
    return MarkdownWithMath(renderer=_Renderer(escape=True, exclude_anchor_links=True)).render(source)


def _inline(source: str) -> str:
    """The same for a title: without the paragraph around it."""
    return _markdown(source).strip().removeprefix("<p>").removesuffix("</p>")


class _Exporter(HTMLExporter):
    """nbconvert's exporter with its barest template: the page around it, style and fonts, is ours."""

    def __init__(self):
        super().__init__(template_name="basic", embed_images=True)
        self.exclude_input_prompt = self.exclude_output_prompt = True

    @pass_context
    def markdown2html(self, context, source):
        path = context["resources"]["metadata"]["path"]
        return MarkdownWithMath(renderer=_Renderer(escape=False, embed_images=True, path=path)).render(source)


def export_page(
    executed: Path, page: Path, *, source_folder: Path, chapters: list[tuple[str, str]], stopped: str = ""
) -> None:
    """Write one executed notebook as a page.

    `chapters` are (file stem, title) of all pages, in order, for the links; pictures that markdown cells name
    are sought in `source_folder`; `stopped` says, on a partial page, why it ends early.
    """
    notebook = nbformat.read(executed, as_version=4)
    _leave_out_live_parts(notebook)
    body, _ = _Exporter().from_notebook_node(notebook, {"metadata": {"path": str(source_folder)}})
    links = "".join(
        f'<a href="{escape(stem)}.html"{" aria-current=page" if stem == page.stem else ""}>'
        f"{escape(stem.replace('_', ' '))}</a>"
        for stem, _ in chapters
    )
    following = [chapter for chapter in chapters if chapter[0] > page.stem][:1] or [("index", "the report")]
    onward = f'<footer>Next: <a href="{escape(following[0][0])}.html">{_inline(following[0][1])}</a></footer>'
    banner = f'<p class="stopped">{escape(stopped)} What follows is partial.</p>' if stopped else ""
    content = f'<nav><a href="index.html">report</a>{links}</nav>{banner}{_with_alternatives(body)}{onward}'
    page.write_text(_document(title(notebook) or page.stem, content), encoding="utf-8")


def _leave_out_live_parts(notebook: NotebookNode) -> None:
    """Drop what only a running kernel or terminal can show: widget views, their states, progress bars."""
    notebook.metadata.pop("widgets", None)
    marker = "papermill-error-cell-tag"  # the page says it in its own words
    notebook.cells = [cell for cell in notebook.cells if marker not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        outputs = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"(?m)^.*\r.*\n?", "", output.text)  # rewritten lines: a progress bar
                if not output.text.strip():
                    continue
            elif _WIDGET in output.get("data", {}):
                del output.data[_WIDGET]
                if set(output.data) <= {"text/plain"}:  # a bare "IntSlider(value=0)"
                    continue
            outputs.append(output)
        if "outputs" in cell:
            cell.outputs = outputs


def _with_alternatives(body: str) -> str:
    """Give each picture without a text alternative the sentence that stands before it."""
    soup = BeautifulSoup(body, "html.parser")
    for image in soup.find_all("img"):
        if image.get("alt", "").strip() in ("", _NO_ALT):
            before = image.find_previous(["p", "h1", "h2", "h3", "li"])
            text = re.sub(r"\s+", " ", before.get_text(" ").replace("¶", "")).strip() if before else ""
            image["alt"] = f"Figure: {text[:200]}" if text else "Figure of this notebook"
    return str(soup)


def title(notebook: NotebookNode) -> str:
    """The first heading of a notebook, or nothing."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"(?m)^#\s+(.+)$", cell.source)):
            return heading[1].strip()
    return ""


def answer(notebook: NotebookNode) -> str:
    """HTML of the answer that a notebook ends with: the text of its last cell, or what that cell prints."""
    last = notebook.cells[-1]
    if last.cell_type == "markdown":
        return _markdown(re.sub(r"(?m)^#+ .*$", "", last.source).strip())
    printed = [output.text for output in last.outputs if output.get("name") == "stdout"]
    shown = [output.data["text/markdown"] for output in last.outputs if "text/markdown" in output.get("data", {})]
    if shown:
        return _markdown("\n\n".join(shown))
    return f'<p class="pre-line">{escape("".join(printed).strip())}</p>'


def write_index(out: Path, metrics: dict[str, Any], chapters: list[tuple[str, str]]) -> Path:
    """Write `out/index.html` from the metrics, the executed notebooks and `out/figures/`."""
    versions = "".join(f"<li>{escape(k)} {escape(str(v))}</li>" for k, v in metrics["versions"].items())
    content = f"""
<h1>What is behind the hole?</h1>
<p class="lead">MaskGIT inpainting, taught, trained and measured in {len(chapters)} chapters.</p>
<ul class="facts"><li>profile <b>{escape(metrics["profile"])}</b></li><li>device <b>{escape(metrics["device"])}</b></li>
<li>took <b>{duration(metrics["total_seconds"])}</b></li><li>{datetime.date.today():%d %B %Y}</li></ul>
{_stopped(metrics.get("failed"))}{_figure(out / "figures" / COVER)}
{_scores(metrics.get("inpainting", {}))}
<h2>Chapters</h2>
<div class="cards">{"".join(_card(out, metrics, stem, name) for stem, name in chapters)}</div>
<footer><ul class="facts">{versions}<li><a href="metrics.json">metrics.json</a></li></ul></footer>"""
    index = out / "index.html"
    index.write_text(_document("lab5 report", content), encoding="utf-8")
    return index


def _stopped(failed: dict[str, str] | None) -> str:
    return f'<p class="stopped">{escape(failed["message"])}</p>' if failed else ""


def _figure(path: Path) -> str:
    if not path.exists():
        return ""
    alt = escape(_described(path))
    picture = f'<img src="figures/{escape(path.name)}" alt="{alt}">'
    return f'<figure class="cover">{picture}<figcaption>{alt}</figcaption></figure>'


def _described(path: Path) -> str:
    """The description that `report.show` left in the file, else its name in words."""
    with Image.open(path) as image:
        return image.info.get("Description") or path.stem.replace("-", ": ").replace("_", " ")


def _scores(inpainting: dict[str, Any]) -> str:
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
        f'<td>{_number(row["score"], form)}</td>'
        f'<td class="bar"><i style="width:{100 * (row["score"] or 0) / largest:.1f}%"></i></td>'
        f'<td>{_number(row.get("attribute_accuracy"), ".1%")}</td><td>{_number(row.get("hole_psnr_db"), ".1f")}</td>'
        f'<td>{_number(row.get("n"), "d")}</td></tr>'
        for name, row in rows
    )
    score = escape(str(inpainting.get("score_name", "score")))
    return f"""<h2>How good are the fills?</h2>
<div class="scroll"><table class="scores"><thead><tr><th>fill</th><th colspan="2" style="text-align:left">{score}</th>
<th>attributes read right</th><th>hole PSNR, dB</th><th>n</th></tr></thead><tbody>{body}</tbody>
<caption>{score}: lower is better. PSNR rewards blur and is printed for completeness.</caption></table></div>"""


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def _card(out: Path, metrics: dict[str, Any], stem: str, name: str) -> str:
    """A chapter: its question, a figure, its answer. One that did not run to its end has only the question."""
    if stem not in metrics["seconds"]:
        partial = metrics.get("failed", {}).get("notebook") == stem
        what = f'<a href="{escape(stem)}.html">stopped: the partial page</a>' if partial else "not run"
        return f'<article class="card"><h3>{_inline(name)}</h3><p>{what}</p></article>'
    figures = [path for path in sorted((out / "figures").glob(f"{stem}-*.png")) if path.name != COVER]
    figures.sort(key=lambda path: not path.stem.endswith("-cover"))
    picture = "".join(
        f'<img src="figures/{escape(path.name)}" alt="{escape(_described(path))}">' for path in figures[:1]
    )
    executed = nbformat.read(out / f"{stem}.ipynb", as_version=4)
    return (
        f'<article class="card"><h3><a href="{escape(stem)}.html">{_inline(name)}</a></h3>{picture}'
        f'<div class="answer">{answer(executed)}</div><p>{duration(metrics["seconds"][stem])}</p></article>'
    )


def _document(name: str, content: str) -> str:
    day, night = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "nord-darker"))
    sheet = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(name)}</title><link rel="icon" href="data:,">
<style>{day}\n@media (prefers-color-scheme: dark) {{ {night} }}\n{sheet}\n.highlight {{ background: none; }}</style>
</head><body><main>{content}</main></body></html>
"""
