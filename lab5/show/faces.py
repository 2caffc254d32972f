"""Photographs to look at: the test images with the largest holes over the eyes, and pairs of fills to choose from.

A notebook keeps them in a file of the report's folder, from which the report makes two pages (`report/pages.py`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from lab5.config import DecodeConfig
from lab5.data.dataset import Dataset
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import inpaint_images
from lab5.inpainting.pair import Pair
from lab5.runtime.files import write
from lab5.scoring.scores import Scorer
from lab5.show.scrub import png_url

FILE = "03_inpainting-faces.json"
FACES, PAIRS = 20, 40  # images on the page of faces; pairs to choose from: an interval of at most ± 15 points

# Both eyes of the lab's cats: (top, bottom, left, right) in pixels, the bottom row and the right column left out.
# Nobody has marked eyes in the photographs, but the faces are aligned. In the mean of the 8,244 distinct training
# images both irises with their lids and inner corners lie in these boxes, pupils at row 25, columns 18 and 46; among 48
# training images drawn at random they held nearly every eye of a cat that looks ahead.
EYES = ((21, 32, 12, 26), (21, 32, 39, 53))

Pictures = UInt8[Tensor, "n 3 64 64"]


def hidden_of_eyes(holes: Bool[Tensor, "n 64 64"]) -> Int[Tensor, " n"]:
    """How many pixels of `EYES` each hole covers."""
    return torch.stack([holes[:, top:bottom, left:right].sum((1, 2)) for top, bottom, left, right in EYES]).sum(0)


def keep_faces(
    folder: Path, scorer: Scorer, fills: dict[str, Pictures], *, pair: Pair, data: Dataset, decoding: DecodeConfig,
    seed: int,
) -> None:  # fmt: skip
    """Write FILE into `folder`: the FACES test images with most of the eyes hidden, and at most PAIRS pairs of fills.

    `fills` are ours and the classical method's, in this order, by their names: the pictures of the scored images.
    Images whose original is not known are filled here, ours by `pair` as `decoding` says. `seed` also draws the pairs
    and their sides. Images that training has not seen are taken first: memory is no skill.
    """
    ours, classical = fills
    chosen = hidden_of_eyes(data.holes).argsort(descending=True, stable=True)[:FACES]
    places, rest = scorer.places, chosen[~data.whole[chosen]]
    if len(rest):
        images, holes = data.test[rest], data.holes[rest]
        filled = {ours: inpaint_images(pair, images, holes, decoding, seed),
                  classical: fill_holes(images, holes, classical)}  # fmt: skip
        places, fills = torch.cat([places, rest]), {name: torch.cat([fills[name], filled[name]]) for name in fills}
    row, given = {place: i for i, place in enumerate(places.tolist())}, data.masked_test

    def shown(place: int) -> dict[str, Any]:
        return {
            "number": data.numbers[place],
            "leaked": bool(data.leaked[place]),
            "given": png_url(given[place, None]),
            "ours": png_url(fills[ours][row[place], None]),
            "classical": png_url(fills[classical][row[place], None]),
        }

    faces = [
        shown(place) | {
            "hidden": int(hidden_of_eyes(data.holes[place, None])),
            "truth": png_url(data.test[place, None]) if data.whole[place] else None,
        }
        for place in chosen.tolist()
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(scorer.places), generator=generator)
    order = order[scorer.leaked[order].long().argsort(stable=True)][:PAIRS]
    left = torch.randint(2, (len(order),), generator=generator).tolist()
    pairs = [
        shown(place) | {"left": ("ours", "classical")[side]}
        for place, side in zip(scorer.places[order].tolist(), left, strict=True)
    ]
    refined = decoding.paste == "refined"
    kept = {"ours": ours, "classical": classical, "refined": refined, "faces": faces, "pairs": pairs}
    write(folder / FILE, json.dumps(kept).encode())


def read_faces(folder: Path) -> dict[str, Any]:
    """What `keep_faces` wrote, empty if there is nothing."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
