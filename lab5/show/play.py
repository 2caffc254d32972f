"""A cat to play with: draw a hole, choose how it is filled, watch several fillings of it, within a second or two.

Live only: the drawing goes to the kernel, which decodes. Where a report is made, a picture stands in.
"""

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from lab5.config import DecodeConfig
from lab5.data.dataset import Dataset
from lab5.data.toycats import random_holes
from lab5.gamma import SCHEDULES
from lab5.inpainting.fill import best_paste, decode_holes, inpaint_images, to_pictures
from lab5.inpainting.pair import Pair
from lab5.samplers import CODES, ORDERS
from lab5.show.figures import decode_grid
from lab5.show.scrub import Reel, Scrub, data_url, is_live, png_url, reel, started

SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
BOARD = """<div class="lab5-board" data-hole="{hole}"><div style="position:relative;width:256px;height:256px">
<img src="{picture}" alt="the picture to draw on" style="width:100%;height:100%;image-rendering:pixelated;margin:0">
<canvas width="64" height="64" aria-label="draw the hole here" style="position:absolute;inset:0;width:100%;height:100%;
image-rendering:pixelated;touch-action:none;cursor:crosshair"></canvas></div>
<label>brush <select><option value="2">small</option><option value="4" selected>medium</option>
<option value="8">large</option></select></label> <label><input type="checkbox"> erase</label></div>
"""


class Play:
    """Draw holes on test images and see them filled by `pair`; the settings begin with those of `decode`.

    A notebook shows controls if there is a kernel, else a picture and a sentence.
    """

    def __init__(self, pair: Pair, data: Dataset, decode: DecodeConfig, seed: int = 0):
        self.pair, self.data, self.decode, self.seed = pair, data, decode, seed
        whole = data.whole.nonzero()[:, 0]
        self.places = whole if len(whole) else torch.arange(len(data.test))  # where a hole can be anywhere
        self.image, self.hole = self.of_dataset(0)

    def of_dataset(self, number: int) -> tuple[UInt8[Tensor, "3 64 64"], Bool[Tensor, "64 64"]]:
        """The test image of this number among those whose truth is known, and its own hole."""
        place = int(self.places[number])
        return self.data.test[place], self.data.holes[place]

    def fill(self, samples: int = 3) -> Scrub:
        """As many fillings of the hole by the settings of the moment; the last step shows the finished pictures.

        Raises ValueError for a hole without a pixel.
        """
        if not bool(self.hole.any()):
            raise ValueError("there is no hole yet: draw one on the picture")
        images, holes = self.image.expand(samples, -1, -1, -1), self.hole.expand(samples, -1, -1)
        states = list(decode_holes(self.pair, images, holes, self.decode, self.seed))
        finished = to_pictures(self.pair.tokenizer, states[-1].filled, images, holes, self.decode)
        first = self.image.masked_fill(self.hole, 128)
        reels = {}
        for number in range(samples):
            one = reel(states, self.pair.tokenizer.decode, first, number)
            last = Reel(finished[number][None], *(part[-1:] for part in one[1:]))
            reels[f"sample {number + 1}"] = Reel(*map(torch.cat, zip(one, last, strict=True)))
        labels = [f"t = {state.step}" for state in states] + ["finished"]
        return Scrub(reels, alt="the hole being filled", step_labels=labels, size=200, start=-1)

    def html(self, samples: int = 4) -> str:
        """A picture of what it can do, and a sentence."""
        images, holes = self.image.expand(samples, -1, -1, -1), self.hole.expand(samples, -1, -1)
        filled = inpaint_images(self.pair, images, holes, self.decode, self.seed)
        row = torch.cat([self.image.masked_fill(self.hole, 128)[None], filled, self.image[None]])
        columns = ["hole", *(f"sample {number + 1}" for number in range(samples)), "truth"]
        png = io.BytesIO()
        decode_grid({"": row}, columns).savefig(png, format="png", dpi=110)
        alt = f"A picture with a hole, {samples} fillings of it, and the truth"
        return (
            f'<p><em>Live only: with a running kernel, as in JupyterLab, a hole can be drawn here and filled.</em></p>'
            f'<p><img src="{data_url(png.getvalue())}" alt="{alt}"></p>'
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        if is_live():
            return {"text/plain": "a hole to draw and to fill"} | _Controls(self).box._repr_mimebundle_()
        return {"text/plain": "live only: a hole to draw and to fill", "text/html": self.html()}


class _Controls:
    """The widgets of one `Play`, which fill anew whenever one is touched."""

    def __init__(self, game: Play):
        self.game, decode = game, game.decode
        self.number = ipywidgets.BoundedIntText(0, 0, len(game.places) - 1, description="image")
        self.drawn = ipywidgets.Textarea(_digits(game.hole), layout={"display": "none"})
        self.drawn.add_class("lab5-hole")
        own, other, clear, dice = (
            ipywidgets.Button(description=name) for name in ("its own hole", "another hole", "no hole", "other dice")
        )
        self.settings: dict[str, ipywidgets.Widget] = {
            "schedule": ipywidgets.Dropdown(options=list(SCHEDULES), value=decode.schedule, description="schedule"),
            "steps": ipywidgets.IntSlider(decode.steps, 1, 16, description="steps T"),
            "stop_at": ipywidgets.IntSlider(decode.stop_at, 0, 16, description="stop after", tooltip="0: never"),
            "codes": ipywidgets.Dropdown(options=list(CODES), value=decode.codes, description="codes"),
            "order": ipywidgets.Dropdown(options=list(ORDERS), value=decode.order, description="order"),
            "temperature": ipywidgets.FloatSlider(decode.temperature, max=2, step=0.1, description="temperature"),
            "choice_temperature": ipywidgets.FloatSlider(decode.choice_temperature, max=10, description="of the order"),
        }
        self.paste = ipywidgets.Checkbox(True, description="keep known pixels at the end", layout={"width": "26em"})
        self.samples = ipywidgets.IntSlider(3, 1, 4, description="samples")
        self.board, self.result, self.message = ipywidgets.HTML(), ipywidgets.VBox(), ipywidgets.Label()
        own.on_click(lambda _: self._choose(self.game.of_dataset(self.number.value)[1]))
        other.on_click(lambda _: self._choose(random_holes(int(time.time_ns() % 1_000_000), 1)[0]))
        clear.on_click(lambda _: self._choose(torch.zeros(64, 64, dtype=torch.bool)))
        dice.on_click(lambda _: self._roll())
        self.number.observe(lambda _: self._open(), "value")
        self.drawn.observe(lambda change: self._draw(change["new"]), "value")
        for widget in (*self.settings.values(), self.paste, self.samples):
            widget.continuous_update = False  # of a slider, its end is what counts
            widget.style.description_width = "7em"
            widget.observe(lambda _: self.refill(), "value")
        left = ipywidgets.VBox([self.number, self.board, ipywidgets.HBox([own, other, clear]), self.drawn])
        right = ipywidgets.VBox([*self.settings.values(), self.samples, self.paste, dice])
        self.box = ipywidgets.VBox([ipywidgets.HBox([left, right]), self.message, self.result])
        self.box.add_class("lab5-play")
        self._show_board()
        self.refill()

    def refill(self) -> None:
        """Decode, and show the result with the time that it took; or what is wrong in its place."""
        changes = {name: widget.value for name, widget in self.settings.items()}
        paste = best_paste(self.game.pair.tokenizer) if self.paste.value else "none"
        changes["stop_at"] = min(changes["stop_at"], changes["steps"])
        self.game.decode = replace(self.game.decode, **changes, paste=paste)
        began = time.monotonic()
        try:
            scrubber = self.game.fill(self.samples.value)
        except (ValueError, MemoryError) as error:
            self.message.value = str(error)
            self._show()
            return
        self._show(scrubber.live())
        took, share = time.monotonic() - began, float(self.game.hole.double().mean())
        self.message.value = f"{share:.0%} of the pixels missing, filled {self.samples.value} times in {took:.1f} s"

    def _open(self) -> None:
        self.game.image, hole = self.game.of_dataset(self.number.value)
        self._choose(hole)

    def _show(self, *results: ipywidgets.Widget) -> None:
        """In place of the earlier ones, which kernel and browser would otherwise keep, with all their pictures."""
        before, self.result.children = self.result.children, results
        for widget in before:
            widget.close()

    def _choose(self, hole: Bool[Tensor, "64 64"]) -> None:
        self.game.hole = hole
        self._show_board()
        self.drawn.value = _digits(hole)  # so that a stroke back to what was drawn before is a change too
        self.refill()

    def _draw(self, digits: str) -> None:
        hole = _hole(digits)
        if not torch.equal(hole, self.game.hole):  # else it was chosen, not drawn
            self.game.hole = hole
            self.refill()

    def _roll(self) -> None:
        self.game.seed += 1
        self.refill()

    def _show_board(self) -> None:
        """Anew in any case: what was drawn on the old one is known to the browser alone."""
        self.board.value = ""
        self.board.value = board(self.game.image, self.game.hole)


def board(image: UInt8[Tensor, "3 64 64"], hole: Bool[Tensor, "64 64"]) -> str:
    """HTML of a picture to draw a hole on; it writes into the text field of class lab5-hole in the same lab5-play."""
    return BOARD.format(hole=_digits(hole), picture=png_url(image[None])) + started(SCRIPT)


def _digits(hole: Bool[Tensor, "64 64"]) -> str:
    """A hole as 1024 hexadecimal digits, row by row."""
    return np.packbits(hole.numpy()).tobytes().hex()


def _hole(digits: str) -> Bool[Tensor, "64 64"]:
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).reshape(64, 64).astype(bool))
