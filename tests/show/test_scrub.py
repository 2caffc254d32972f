"""The slider over decode steps: what its films and its cells hold, how a notebook gets it."""

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import torch
from bs4 import BeautifulSoup
from PIL import Image
from stubs import named

from lab5.config import DecodeConfig
from lab5.decoder import decode_steps
from lab5.show.figures import mask_pictures
from lab5.show.scrub import Reel, Scrub, reel

MASKED = torch.zeros(3, 256, dtype=torch.bool)
MASKED[0, :3], MASKED[1, 1:3] = True, True  # token 0 is fixed at step 1, tokens 1 and 2 at step 2
PICTURES = torch.stack([torch.full((3, 4, 6), 10 * i, dtype=torch.uint8) for i in range(3)])
TOKENS = torch.arange(3 * 256).view(3, 256)
REEL = Reel(PICTURES, TOKENS, MASKED, torch.log(torch.tensor([0.5, 0.25, 1.0]))[:, None].expand(3, 256))


def films(html: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))
        for image in BeautifulSoup(html, "html.parser").find_all("img", class_="film")
    ]


def data(html: str) -> dict:
    return json.loads(BeautifulSoup(html, "html.parser").find(class_="lab5-scrub")["data-reels"])


def test_each_film_holds_every_step_once_and_unchanged():
    pictures, masks, confidence = films(Scrub({"a": REEL}, alt="Grey").html())
    assert pictures.tolist() == np.concatenate([p.permute(1, 2, 0).numpy() for p in PICTURES], 1).tolist()
    small = mask_pictures(MASKED, MASKED[0])[:, :, ::4, ::4]
    assert masks.tolist() == np.concatenate([p.permute(1, 2, 0).numpy() for p in small], 1).tolist()
    assert confidence.shape == (16, 48, 3)
    assert (confidence[1:] == 255).all(), "what is known from the start is white at every step"
    assert confidence[0, 32].tolist() == [253, 231, 37] and confidence[0, 16].tolist() == [59, 82, 139]  # viridis


def test_a_cell_knows_its_token_its_confidence_and_the_step_that_fixed_it_if_one_did():
    assert REEL.fixed.tolist() == [1, 2, 2] + [0] * 253
    one = data(Scrub({"a": REEL}, alt="Grey").html())["reels"][0]
    assert one["fixed"] == REEL.fixed.tolist() and one["tokens"] == TOKENS.tolist()
    assert [row[0] for row in one["percent"]] == [50, 25, 100]
    masked = torch.zeros(4, 256, dtype=torch.bool)
    masked[:, 0], masked[:, 1] = torch.tensor([True, False, True, False]), True  # masked again, and to the end
    assert REEL._replace(masked=masked).fixed[:3].tolist() == [3, -1, 0]


def test_a_reel_is_one_image_of_a_decoding(generator):
    tokens, unknown = torch.zeros(2, 256, dtype=torch.int64), torch.zeros(2, 256, dtype=torch.bool)
    unknown[1, :40] = True
    model = named(lambda x: torch.zeros(*x.shape, 5), mask_id=5)
    states = list(decode_steps(model, tokens, unknown, DecodeConfig(steps=4), generator=generator))
    asked = []

    def decode(filled: torch.Tensor) -> torch.Tensor:
        asked.append(filled)
        return torch.ones(len(filled), 3, 64, 64, dtype=torch.uint8)

    one = reel(states, decode, torch.zeros(3, 64, 64, dtype=torch.uint8), image=1)
    assert int(asked[0].max()) < 5, "the first state, which has mask ids, is not decoded"
    assert one.pictures.float().mean((1, 2, 3)).tolist() == [0, 1, 1, 1, 1]
    assert one.masked.sum(1).tolist() == [int(s.masked[1].sum()) for s in states]
    assert (one.fixed[40:] == 0).all() and set(one.fixed[:40].tolist()) == {1, 2, 3, 4}
    assert (one.percent[1:, :40] == 20).all(), "five codes, alike"


def test_html_describes_each_film_and_escapes_what_it_is_given():
    html = Scrub({"<b>": REEL}, alt='"Grey"', step_labels=["0", "</div>", "2"], caption="<i>x</i> & y").html()
    alt = BeautifulSoup(html, "html.parser").find("img")["alt"]
    assert alt == '"Grey": <b>, picture, 3 steps side by side'
    assert "&lt;i&gt;x&lt;/i&gt; &amp; y" in html and data(html)["labels"][1] == "</div>"
    for raw in ("<b>", "<i>x", '""Grey'):
        assert raw not in html
    assert html.count("</div>") == html.count("<div")


def test_html_asks_for_nothing_and_two_never_share_an_id():
    widget = Scrub({"a": REEL}, alt="Grey")
    first, second = widget.html(), widget.html()
    assert not re.search(r"https?:|src=\"(?!data:)|url\(", first)
    ids = [re.findall(r' id="([^"]+)"', html) for html in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 1 and ids[0] != ids[1]


def test_with_a_kernel_it_is_a_widget_too_unless_nobody_watches(monkeypatch):
    plain, view = {"text/plain", "text/html"}, "application/vnd.jupyter.widget-view+json"
    scrub = Scrub({"a": REEL}, alt="Grey")
    assert set(scrub._repr_mimebundle_()) == plain and scrub._repr_mimebundle_()["text/plain"] == "Grey"
    monkeypatch.setattr("lab5.show.scrub.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.delenv("LAB5_HEADLESS", raising=False)
    assert view in scrub._repr_mimebundle_()
    monkeypatch.setenv("LAB5_HEADLESS", "1")
    assert set(scrub._repr_mimebundle_()) == plain


def test_it_begins_where_it_is_told():
    for start, first in ((0, "0"), (1, "1"), (-1, "2")):
        slider = BeautifulSoup(Scrub({"a": REEL}, alt="Grey", start=start).html(), "html.parser").find("input")
        assert slider["value"] == first and slider["max"] == "2"
