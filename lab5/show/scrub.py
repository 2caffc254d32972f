"""A slider over the steps of a decoding: picture, latent mask and confidence, cell by cell, live and on a page.

Each of the three is one film: all steps side by side in one embedded picture. A small script shows one step of every
film at a time, moves them together and says what is in the cell under the pointer. Nothing is loaded and no kernel is
asked, so that it also moves in an exported page, or while the kernel trains; without script, and in print, the films
are seen whole.
"""

import base64
import io
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import torch
from IPython import get_ipython
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from lab5.decoder import DecodeStep
from lab5.show.figures import TONES

SCRIPT, STYLE = (Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".js", ".css"))
VIRIDIS = torch.tensor(colormaps["viridis"](np.linspace(0, 1, 101))[:, :3])  # a colour for each per cent
CONFIDENCE = (255 * VIRIDIS).round().to(torch.uint8)
OWN_KEYS = 'data-lm-suppress-shortcuts="true"'  # JupyterLab has other uses for arrow keys and the space bar
DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


class Reel(NamedTuple):
    """One image on its way, S = T + 1 states; the first has everything masked that is to be decoded."""

    pictures: UInt8[Tensor, "S 3 H W"]
    tokens: Int[Tensor, "S N"]  # committed and proposed; of state 0 only the known ones mean anything
    masked: Bool[Tensor, "S N"]
    confidence: Float[Tensor, "S N"]  # log-probability of the code committed or proposed

    @property
    def fixed(self) -> Int[Tensor, " N"]:
        """The step from which on a token was no longer masked: 0 for the known, -1 where it never was."""
        last = (self.masked * torch.arange(1, len(self.masked) + 1)[:, None]).amax(0)  # states up to the last mask
        return last.masked_fill(self.masked[-1], -1)

    @property
    def percent(self) -> Int[Tensor, "S N"]:
        return (100 * self.confidence.exp()).round().long().clamp(0, 100)


def reel(
    states: Sequence[DecodeStep],
    decode: Callable[[Tensor], Tensor],
    first: UInt8[Tensor, "3 H W"],
    image: int = 0,
) -> Reel:
    """The reel of one image of decoded states; `decode` makes pictures of tokens, `first` is that of state 0."""
    filled, masked, confidence = (
        torch.stack([getattr(state, name)[image].cpu() for state in states])
        for name in ("filled", "masked", "confidence")
    )
    return Reel(torch.cat([first[None], decode(filled[1:])]), filled, masked, confidence.float())


class Scrub:
    """The steps of one or more decodings, of the same or of several images, on one slider.

    `reels` have names and equally many states of 256 tokens; `alt` says in a sentence what they show; `step_labels`
    default to "t = 0", "t = 1", …; `size` is the width in pixels at which a picture is shown, its own pixels staying
    sharp; it begins at the state `start`, -1 for the last. A notebook shows it as a widget if there is a kernel, else
    as HTML.
    """

    def __init__(
        self, reels: Mapping[str, Reel], *, alt: str, step_labels: Sequence[str] = (), caption: str = "",
        size: int = 220, start: int = 0,
    ):  # fmt: skip
        states = len(next(iter(reels.values())).pictures)
        self.reels, self.alt, self.caption, self.size, self.start = reels, alt, caption, size, start % states
        self.labels = list(step_labels) or [f"t = {step}" for step in range(states)]

    def html(self) -> str:
        """A self-contained snippet."""
        name = f"scrub-{uuid.uuid4().hex[:8]}"
        return f'{self._box(name)}<script>{SCRIPT.strip()}(document.getElementById("{name}"))</script>'

    def live(self) -> ipywidgets.Widget:
        """The same as a widget, to stand in a box with others."""
        return ipywidgets.HTML(self._box(f"scrub-{uuid.uuid4().hex[:8]}") + started(SCRIPT))

    def _box(self, name: str) -> str:
        data = {
            "labels": self.labels,
            "reels": [
                {"tokens": reel.tokens.tolist(), "percent": reel.percent.tolist(), "fixed": reel.fixed.tolist()}
                for reel in self.reels.values()
            ],
        }
        figures = "".join(self._figure(title, reel) for title, reel in self.reels.items())
        colours = ", ".join(f"rgb{tuple(CONFIDENCE[p].tolist())}" for p in range(0, 101, 20))
        known, decoded, masked = (f"rgb{tuple(tone)}" for tone in TONES.tolist())
        scale = f'<i class="scale" style="background:linear-gradient(90deg, {colours})"></i>'
        keys = "Arrow keys step, space plays; a click on a cell, or shift with arrow keys, frames it; escape lets go."
        caption = f'<p class="caption">{escape(self.caption)}</p>' if self.caption else ""
        return (
            f'<div class="lab5-scrub" id="{name}" style="--steps:{len(self.labels)};--size:{self.size}px"'
            f' data-reels="{escape(json.dumps(data, separators=(",", ":")))}"><style>{STYLE}</style>'
            f'<div class="bar"><button type="button" aria-label="play" {OWN_KEYS}></button>'
            f'<input type="range" min="0" max="{len(self.labels) - 1}" value="{self.start}" {OWN_KEYS}'
            f' aria-label="{escape(self.alt)}"><output aria-live="off"></output></div>'
            f'<div class="reels">{figures}</div>'
            f'<p class="note">steps {escape(self.labels[0])} to {escape(self.labels[-1])}; latent mask:'
            f"{_swatch(known)} known,{_swatch(decoded)} decoded,{_swatch(masked)} masked; confidence: 0 {scale} 1"
            f'<span class="keys">{keys}</span></p>{caption}</div>'
        )

    def _figure(self, title: str, reel: Reel) -> str:
        films = {"picture": reel.pictures, "latent mask": _mask_film(reel), "confidence": _confidence_film(reel)}
        panels = "".join(
            f'<div class="panel"><div class="window"><img class="film" src="{png_url(film)}" alt="'
            f'{escape(f"{self.alt}: {title}, {what}, {len(film)} steps side by side")}"><i class="frame"></i></div>'
            f"<span>{what}</span></div>"
            for what, film in films.items()
        )
        return (
            f'<figure class="reel"><figcaption>{escape(title)}</figcaption><div class="panels">{panels}</div>'
            '<output class="cell" aria-live="polite"></output></figure>'
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        bundle = {"text/plain": self.alt, "text/html": self.html()}
        return bundle | self.live()._repr_mimebundle_() if is_live() else bundle


def is_live() -> bool:
    """Is a person at a kernel to be expected? Not where a report is made."""
    return getattr(get_ipython(), "kernel", None) is not None and "LAB5_HEADLESS" not in os.environ


def started(script: str) -> str:
    """HTML that calls `script` with the element before it: scripts in widgets do not run, a picture's `onload` does."""
    call = escape(f"{script.strip()}(this.previousElementSibling)")
    return f'<img src="{DOT}" alt="" width="1" height="1" onload="{call}">'


def _mask_film(reel: Reel) -> UInt8[Tensor, "S 3 16 16"]:
    """In the tones of `figures.mask_pictures`."""
    index = reel.masked.long() + reel.masked[0].long()
    return TONES[index].unflatten(1, (16, 16)).permute(0, 3, 1, 2)


def _confidence_film(reel: Reel) -> UInt8[Tensor, "S 3 16 16"]:
    """How probable the model found what stands there; white where it is known, dark where nothing was proposed yet."""
    colours = CONFIDENCE[reel.percent]
    colours[0] = TONES[2]
    colours[:, ~reel.masked[0]] = TONES[0]
    return colours.unflatten(1, (16, 16)).permute(0, 3, 1, 2)


def _swatch(colour: str) -> str:
    return f' <i class="scale" style="width:.8em;background:{colour};outline:1px solid #999"></i>'


def png_url(film: UInt8[Tensor, "S 3 H W"]) -> str:
    """Steps side by side in one picture."""
    png = io.BytesIO()
    Image.fromarray(torch.cat(list(film), dim=2).permute(1, 2, 0).numpy()).save(png, "png", optimize=True)
    return data_url(png.getvalue())


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
