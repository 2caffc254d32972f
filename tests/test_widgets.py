"""The slider over decode steps: what it refuses, what its HTML holds, how the live one moves."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from lab5.widgets import scrub

FRAMES = [np.full((4, 6, 3), (10 * i, 0, 255), np.uint8) for i in range(3)]


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([^\"]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in found]


def test_html_holds_each_picture_once_and_unchanged():
    html = scrub({"a": FRAMES, "b": FRAMES[::-1]}, alt="Blue").html()
    assert [p.tolist() for p in pictures(html)] == [f.tolist() for f in FRAMES + FRAMES[::-1]]


def test_html_names_each_picture_and_escapes_what_it_is_given():
    html = scrub({"<b>": FRAMES}, alt='"Blue"', step_labels=["0", "</div>", "2"], caption="<i>x</i> & y").html()
    assert 'alt="&quot;Blue&quot;: &lt;b&gt;, &lt;/div&gt;"' in html
    assert "&lt;i&gt;x&lt;/i&gt; &amp; y" in html
    for raw in ("<b>", "<i>", '""Blue'):
        assert raw not in html
    assert html.count("</div>") == html.count("<div")


def test_html_asks_for_nothing_and_two_never_share_an_id():
    widget = scrub({"a": FRAMES}, alt="Blue")
    first, second = widget.html(), widget.html()
    assert not re.search(r"https?:|//\w|src=\"(?!data:)", first)
    ids = [re.findall(r'id="([^"]+)"', html) for html in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 1 and ids[0] != ids[1]


def test_without_a_kernel_it_is_html_and_text():
    bundle = scrub({"a": FRAMES}, alt="Blue")._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"} and bundle["text/plain"] == "Blue"


def test_with_a_kernel_it_is_a_widget_too_unless_nobody_watches(monkeypatch):
    monkeypatch.setattr("lab5.widgets.get_ipython", lambda: type("Shell", (), {"kernel": object()})())
    monkeypatch.delenv("LAB5_HEADLESS", raising=False)
    view = "application/vnd.jupyter.widget-view+json"
    assert view in scrub({"a": FRAMES}, alt="Blue")._repr_mimebundle_()
    monkeypatch.setenv("LAB5_HEADLESS", "1")
    assert view not in scrub({"a": FRAMES}, alt="Blue")._repr_mimebundle_()


def test_the_live_slider_moves_label_and_sharp_picture():
    box = scrub({"a": FRAMES}, alt="Blue", step_labels=["x", "y", "z"], size=20).live()
    columns, bar, _ = box.children
    _, slider, label = bar.children
    image = columns.children[0].children[1]
    slider.value = 2
    assert label.value == "z"
    shown = np.asarray(Image.open(io.BytesIO(image.value)))
    assert shown.tolist() == np.kron(FRAMES[2], np.ones((3, 3, 1), np.uint8)).tolist(), "enlarged 3 times"


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ({}, {}, "no rows"),
        ({"a": []}, {}, "at least one.*'a': 0"),
        ({"a": FRAMES, "b": FRAMES[:2]}, {}, "same number.*'a': 3, 'b': 2"),
        ({"a": [np.zeros((3, 4, 4), np.uint8)]}, {}, r"'a'.*\(3, 4, 4\)"),
        ({"a": [np.zeros((4, 4, 3))]}, {}, "uint8.*float64"),
        ({"a": FRAMES}, {"step_labels": ["x"]}, "3 steps, 1 labels"),
        ({"a": FRAMES}, {"alt": " "}, "text alternative"),
    ],
)
def test_what_is_not_a_strip_of_pictures_is_refused(rows, changes, words):
    with pytest.raises(ValueError, match=words):
        scrub(rows, **({"alt": "Blue"} | changes))
