"""What moves in a notebook: a slider over the steps of a decoding, live and in an exported page; a training.

In JupyterLab it is an ipywidgets box. As HTML it is a strip of all pictures that a few lines of script fold into
a slider: each picture is in the page once, nothing is loaded, and without script the strip stays readable.

It does not know what the pictures show, nor where they come from: uint8 RGB arrays in, one object out; and of a
training no more than that it yields steps.
"""

import base64
import io
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets
import numpy as np
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from lab5.trainer import TrainStep

STYLE = """
#ID { margin: 1em 0; font-size: .9rem; }
#ID .rows { display: flex; flex-wrap: wrap; gap: .8em 1.2em; }
#ID figure { margin: 0; display: flex; flex-direction: column; gap: .3em; }
#ID .strip { display: flex; flex-wrap: wrap; gap: 3px; }
#ID img { width: 64px; image-rendering: pixelated; border-radius: 3px; margin: 0; }
#ID.live img { display: none; width: SIZEpx; max-width: 100%; border-radius: 8px; }
#ID.live img.now { display: block; }
#ID .bar { display: none; align-items: center; gap: .7em; margin: .7em 0; max-width: 34em; }
#ID.live .bar { display: flex; }
#ID input { flex: 1; accent-color: var(--accent, #b4501f); }
#ID button { width: 2.4em; height: 2.4em; border: 1px solid; border-radius: 50%; background: none; color: inherit;
  cursor: pointer; font: inherit; line-height: 1; }
#ID output { min-width: 8em; font-variant-numeric: tabular-nums; }
"""

SCRIPT = """
(() => {
  const box = document.getElementById("ID"), range = box.querySelector("input");
  const button = box.querySelector("button"), label = box.querySelector("output");
  const strips = [...box.querySelectorAll(".strip")].map(strip => [...strip.children]);
  const labels = JSON.parse(box.dataset.labels);
  let timer = null;
  const show = () => {
    strips.forEach(strip => strip.forEach((image, i) => image.classList.toggle("now", i == range.value)));
    label.value = range.ariaValueText = labels[range.value];
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "\\u25b6"; button.ariaLabel = "play"; };
  const step = () => {
    if (+range.value >= +range.max) return stop();
    range.value++; show();
  };
  button.onclick = () => {
    if (timer) return stop();
    if (range.value == range.max) { range.value = 0; show(); }
    timer = setInterval(step, 500); button.textContent = "\\u275a\\u275a"; button.ariaLabel = "pause";
  };
  range.oninput = () => { stop(); show(); };
  box.classList.add("live"); stop(); show();
})();
"""


class Scrub:
    """What `scrub` returns: a notebook shows it as a widget if there is a kernel to move it, else as HTML."""

    def __init__(self, rows: dict[str, list[np.ndarray]], labels: list[str], caption: str, alt: str, size: int):
        self.rows, self.labels, self.caption, self.alt, self.size = rows, labels, caption, alt, size

    def html(self) -> str:
        """A self-contained snippet; it begins at the first step and moves with the mouse or the arrow keys."""
        name = f"scrub-{uuid.uuid4().hex[:8]}"
        figures = "".join(self._figure(row, frames) for row, frames in self.rows.items())
        labels = escape(json.dumps(self.labels))
        caption = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        return (
            f"<style>{STYLE.replace('ID', name).replace('SIZE', str(self.size))}</style>"
            f'<div id="{name}" data-labels="{labels}"><div class="rows">{figures}</div>'
            f'<div class="bar"><button type="button" aria-label="play"></button>'
            f'<input type="range" min="0" max="{len(self.labels) - 1}" value="0" aria-label="{escape(self.alt)}">'
            f"<output></output></div>{caption}</div><script>{SCRIPT.replace('ID', name)}</script>"
        )

    def live(self) -> ipywidgets.Widget:
        """The same with ipywidgets, for a notebook with a running kernel."""
        play = ipywidgets.Play(max=len(self.labels) - 1, interval=500)
        slider = ipywidgets.IntSlider(max=len(self.labels) - 1, readout=False)
        label = ipywidgets.Label(self.labels[0])
        ipywidgets.jslink((play, "value"), (slider, "value"))
        width = ipywidgets.Layout(width=f"{self.size}px")
        pictures = {row: [_png(frame, self.size) for frame in frames] for row, frames in self.rows.items()}
        images = {row: ipywidgets.Image(value=frames[0], layout=width) for row, frames in pictures.items()}

        def move(change: dict[str, Any]) -> None:
            label.value = self.labels[change["new"]]
            for row, image in images.items():
                image.value = pictures[row][change["new"]]

        slider.observe(move, "value")
        columns = [ipywidgets.VBox([ipywidgets.Label(row), image]) for row, image in images.items()]
        bar = ipywidgets.HBox([play, slider, label])
        return ipywidgets.VBox([ipywidgets.HBox(columns), bar, ipywidgets.Label(self.caption)])

    def _figure(self, row: str, frames: list[np.ndarray]) -> str:
        pictures = "".join(
            f'<img alt="{escape(f"{self.alt}: {row}, {label}")}" '
            f'src="data:image/png;base64,{base64.b64encode(_png(frame)).decode()}">'
            for frame, label in zip(frames, self.labels, strict=True)
        )
        return f'<figure><figcaption>{escape(row)}</figcaption><div class="strip">{pictures}</div></figure>'

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        bundle = {"text/plain": self.alt, "text/html": self.html()}
        kernel = getattr(get_ipython(), "kernel", None)
        if kernel is not None and "LAB5_HEADLESS" not in os.environ:
            bundle |= self.live()._repr_mimebundle_()
        return bundle


def scrub(
    rows: Mapping[str, Sequence[np.ndarray]],
    *,
    alt: str,
    step_labels: Sequence[str] | None = None,
    caption: str = "",
    size: int = 256,
) -> Scrub:
    """Show the steps of one or more decodings on one slider.

    `rows` are named sequences of pictures, uint8 (H, W, 3), one a step, as many in each row; `alt`
    says in a sentence what they show; `step_labels` default to "step 0", "step 1", …; `size` is the width in
    pixels at which a picture is shown, its own pixels staying sharp. Raises ValueError for anything else.
    """
    rows = {name: [np.asarray(frame) for frame in frames] for name, frames in rows.items()}
    counts = {name: len(frames) for name, frames in rows.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"scrub needs rows with the same number of steps, at least one; got {counts or 'no rows'}")
    for name, frames in rows.items():
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(
                    f"scrub needs pictures of shape (H, W, 3) and type uint8; "
                    f"row {name!r} has one of shape {frame.shape} and type {frame.dtype}"
                )
    steps = next(iter(counts.values()))
    labels = [f"step {step}" for step in range(steps)] if step_labels is None else [str(x) for x in step_labels]
    if len(labels) != steps:
        raise ValueError(f"scrub needs one label a step: {steps} steps, {len(labels)} labels")
    if not alt.strip():
        raise ValueError("scrub needs a text alternative, a sentence that says what the pictures show; got none")
    return Scrub(rows, labels, caption, alt, size)


def _png(frame: np.ndarray, width: int = 0) -> bytes:
    """The picture as PNG, enlarged by the whole factor that brings it nearest below `width`."""
    factor = max(width // frame.shape[1], 1)
    buffer = io.BytesIO()
    Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1)).save(buffer, "png")
    return buffer.getvalue()


def watch(
    training: Iterable[TrainStep], draw: Callable[[list[TrainStep]], Figure] | None = None, every: float = 4.0
) -> list[TrainStep]:
    """Run a training to its end behind a progress bar; live, also with a figure redrawn every few seconds.

    `draw` makes the figure of the steps so far. In an executed report the bar goes to the terminal and no figure
    is drawn on the way: the notebook shows the final one. Interrupting keeps what was trained and says so.
    """
    steps: list[TrainStep] = []
    live = draw is not None and getattr(get_ipython(), "kernel", None) is not None and "LAB5_HEADLESS" not in os.environ
    handle = display(HTML(""), display_id=True) if live else None
    drawn = time.monotonic()
    name = getattr(training, "name", "training")
    bar = tqdm(training, total=len(training), desc=name, file=sys.stderr, mininterval=1)
    try:
        for step in bar:
            steps.append(step)
            bar.set_postfix(loss=f"{step.loss:.3f}", lr=f"{step.lr:.1e}", refresh=False)
            if handle and time.monotonic() - drawn > every:
                handle.update(draw(steps))
                drawn = time.monotonic()
    except KeyboardInterrupt:
        print(f"interrupted after {len(steps)} steps: run the cell again to go on")
    if handle:
        handle.update(HTML(""))
    return steps or list(getattr(training, "history", []))
