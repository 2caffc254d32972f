"""An executed notebook becomes a chapter: HTML that needs no network, no kernel and no colours of its own.

Formulas turn into MathML, code is folded away but for what is written by hand, widgets show the HTML that they carry,
every picture has a text alternative, and paths of this computer are left out. Cells may be tagged with the section of
a report that they belong to, so that a chapter can be split over several.
"""

import base64
import re
from html import escape
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from lab5.report.provenance import replace_private

SECTION = "report-"  # begins the tag that moves a cell to another section of the report: report-pitfalls
BY_HAND = "by-hand"  # the tag of a cell that is the lesson itself

_WIDGET = "application/vnd.jupyter.widget-view+json"
_NO_ALT = "No description has been provided for this image"  # nbconvert's filler
_PNG = "data:image/png;base64,"


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


def markdown(source: str) -> str:
    """HTML of a markdown text that may be anybody's: tags in it are escaped."""
    return MarkdownWithMath(renderer=_Renderer(escape=True, exclude_anchor_links=True)).render(source)


def inline(source: str) -> str:
    """The same for a title: without the paragraph around it."""
    return markdown(source).strip().removeprefix("<p>").removesuffix("</p>")


class _Exporter(HTMLExporter):
    """nbconvert's exporter, with formulas as in `_Renderer`."""

    @pass_context
    def markdown2html(self, context, source):
        path = context["resources"]["metadata"]["path"]
        return MarkdownWithMath(renderer=_Renderer(escape=False, embed_images=True, path=path)).render(source)


class Chapter:
    """One executed notebook; pictures that its texts name are sought in `source_folder`.

    `private` maps texts, such as the path of a dataset, to what is written in their place. Figures are put into the
    folder `figures` beside the pages, each once, however many pages show it.
    """

    def __init__(self, executed: Path, source_folder: Path, private: dict[str, str], figures: Path):
        text = replace_private(executed.read_text(encoding="utf-8"), private)
        self.notebook = nbformat.reads(text, as_version=4)
        self.title = title(self.notebook) or executed.stem
        _remove_live_parts(self.notebook)
        exporter = _Exporter(
            template_name="basic", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True
        )
        body, _ = exporter.from_notebook_node(self.notebook, {"metadata": {"path": str(source_folder)}})
        soup = BeautifulSoup(body, "html.parser")
        _describe_pictures(soup)
        _fold_code(soup)
        for sign in soup.find_all(class_="anchor-link"):
            sign.decompose()
        for wide in soup.select("pre, .output_html, math[display=block]"):
            wide["tabindex"] = "0"  # what scrolls sideways must be reached by the keyboard
        _move_figures(soup, figures, executed.stem)
        full = [cell for cell in self.notebook.cells if cell.source or cell.get("outputs")]
        self._cells = list(zip(map(_section, full), soup.find_all(class_="cell", recursive=False), strict=True))
        self.sections = list(dict.fromkeys(name for name, _ in self._cells if name))  # that some cells are tagged with

    def html(self, section: str | None = None, *, deeper: int = 0, prefix: str = "") -> str:
        """The chapter as HTML; or of a `section` the cells with its tag, of "" those without a tag.

        With `deeper`, for a page that has its own title, headings are lower by so many levels, their ids begin with
        `prefix`, and the expected time is left out, because that page has the time that was taken.
        """
        html = "".join(str(cell) for name, cell in self._cells if section is None or name == section)
        if deeper:
            html = re.sub(r"<p>Expected time:.*?</p>", "", html, flags=re.DOTALL)

        def heading(match: re.Match) -> str:
            level, name, text = int(match[1]), match[2], match[3]
            if deeper and level == 1:
                return ""
            own = f' id="{prefix}{name}"' if name else ""
            return f"<h{min(6, level + deeper)}{own}>{text}</h{min(6, level + deeper)}>"

        return re.sub(r'<h([1-6])(?: id="([^"]*)")?>(.*?)</h\1>', heading, html, flags=re.DOTALL)

    def headings(self) -> list[tuple[str, str]]:
        """(id, text) of the headings of the second level, for a list of contents."""
        headings = [heading for _, cell in self._cells for heading in cell.find_all("h2", id=True)]
        return [(heading["id"], heading.get_text()) for heading in headings]

    def answer(self) -> str:
        """HTML of the answer that the notebook ends with: the text of its last cell, or what that cell prints."""
        last = self.notebook.cells[-1]
        if last.cell_type == "markdown":
            return markdown(re.sub(r"(?m)^#+ .*$", "", last.source).strip())
        texts = [output.data["text/markdown"] for output in last.outputs if "text/markdown" in output.get("data", {})]
        if texts:
            return markdown("\n\n".join(texts))
        printed = "".join(output.text for output in last.outputs if output.get("name") == "stdout")
        return f'<p class="pre-line">{escape(printed.strip())}</p>'


def title(notebook: NotebookNode) -> str:
    """The first heading of a notebook, or nothing."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.search(r"(?m)^#\s+(.+)$", cell.source)):
            return heading[1].strip()
    return ""


def _section(cell: NotebookNode) -> str:
    tags = cell.metadata.get("tags", [])
    return next((tag.removeprefix(SECTION) for tag in tags if tag.startswith(SECTION)), "")


def _remove_live_parts(notebook: NotebookNode) -> None:
    """Drop what only a running kernel or terminal can show: widget views, their states, progress bars."""
    notebook.metadata.pop("widgets", None)
    marker = "papermill-error-cell-tag"  # the page says in its own words that the notebook stopped
    notebook.cells = [cell for cell in notebook.cells if marker not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = _joined([output for output in cell.outputs if _strip(output)])


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """What is printed bit by bit is one text."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _strip(output: NotebookNode) -> bool:
    """Drop the live part of an output; whether anything is left."""
    if output.output_type == "stream":
        output.text = re.sub(r"(?m)^.*\r.*\n?", "", output.text)  # rewritten lines: a progress bar
        return bool(output.text.strip())
    is_widget = output.get("data", {}).pop(_WIDGET, None) is not None
    return not is_widget or not set(output.data) <= {"text/plain"}  # a bare "IntSlider(value=0)"


def _move_figures(soup: BeautifulSoup, folder: Path, stem: str) -> None:
    """Out of the page and into files, of which some are there already: what a notebook kept under a name."""
    names = {path.read_bytes(): path.name for path in sorted(folder.glob("*.png"))}
    for number, image in enumerate(soup.select(".output_png img"), start=1):
        if image["src"].startswith(_PNG):
            content = base64.b64decode(image["src"].removeprefix(_PNG))
            if content not in names:
                names[content] = f"{stem}.{number}.png"
                (folder / names[content]).write_bytes(content)
            image["src"] = f"{folder.name}/{names[content]}"


def _describe_pictures(soup: BeautifulSoup) -> None:
    """Give each picture without a text alternative the sentence that stands before it."""
    for image in soup.find_all("img"):
        if image.get("alt", "").strip() in ("", _NO_ALT):
            before = image.find_previous(["p", "h1", "h2", "h3", "li"])
            text = re.sub(r"\s+", " ", before.get_text(" ").replace("¶", "")).strip() if before else ""
            image["alt"] = f"Figure: {text[:200]}" if text else "Figure of this notebook"


def _fold_code(soup: BeautifulSoup) -> None:
    """Put each cell's code behind its first line that does something; what is written by hand stands open."""
    for area in soup.find_all(class_="input_area"):
        by_hand = area.find_parent(class_=f"celltag_{BY_HAND}") is not None
        lines = [line.strip() for line in area.get_text().splitlines() if line.strip()]
        active = [line for line in lines if not line.startswith(("#", "import ", "from ", "%"))]
        summary = soup.new_tag("summary")
        first = soup.new_tag("code", string=(active or lines or [""])[0][:80])
        summary.extend(["by hand " if by_hand else "code ", first])
        attributes = {"class": "code by-hand", "open": ""} if by_hand else {"class": "code"}
        area.wrap(soup.new_tag("details", attrs=attributes)).insert(0, summary)
