"""Playing: a drawn hole reaches the decoder, settings too, and where nobody can draw a picture stands in."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from bs4 import BeautifulSoup
from stubs import cats, untrained_pair

from lab5.data.dataset import Dataset, token_mask
from lab5.inpainting.pair import Pair
from lab5.profiles import configure
from lab5.show import play as room
from lab5.show.play import Play
from lab5.show.scrub import Scrub

DECODE = replace(configure("smoke").decode, steps=3)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return untrained_pair()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return cats(3, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def game(pair, data):
    return Play(pair, data, DECODE, seed=4)


def test_several_fillings_of_one_hole_go_step_by_step_to_finished_pictures(game, data):
    game.decode = replace(game.decode, paste="poisson")
    one = game.fill(samples=3)
    assert list(one.reels) == ["sample 1", "sample 2", "sample 3"]
    assert one.labels == ["t = 0", "t = 1", "t = 2", "t = 3", "finished"]
    first, second, _ = one.reels.values()
    assert not torch.equal(first.tokens[-1], second.tokens[-1]), "other dice for each"
    assert torch.equal(first.masked[0], token_mask(game.hole))
    assert torch.equal(first.pictures[-1][:, ~game.hole], data.test[0][:, ~game.hole]), "known pixels are kept"
    assert torch.equal(game.fill(samples=1).reels["sample 1"].pictures, first.pictures), "the seed is the same"


def test_a_hole_goes_through_the_text_field_and_back(data):
    for hole in (*data.holes, torch.ones(64, 64, dtype=torch.bool)):
        assert torch.equal(room._hole(room._digits(hole)), hole)
    one = torch.zeros(64, 64, dtype=torch.bool)
    one[0, 1] = one[63, 60] = True
    assert room._digits(one) == "4" + 1022 * "0" + "8", "rows of 16 digits, the first pixel is the highest bit"


@pytest.fixture
def asked(game, monkeypatch) -> list[SimpleNamespace]:
    """What each filling is asked for; after the first they show the same, which takes no time."""
    scrub, fillings = game.fill(1), []

    def fill(samples: int) -> Scrub:
        fillings.append(SimpleNamespace(samples=samples, **vars(game)))
        return scrub if game.hole.any() else Play.fill(game, samples)

    monkeypatch.setattr(game, "fill", fill)
    return fillings


def test_whatever_is_touched_fills_anew(game, data, asked):
    controls = room._Controls(game)
    controls.settings["schedule"].value = "linear"
    assert (asked[-1].decode.schedule, asked[-1].decode.paste, asked[-1].samples) == ("linear", "poisson", 3)
    controls.settings["stop_at"].value = 9
    assert asked[-1].decode.stop_at == 3, "of the three steps that there are"
    controls.paste.value = False
    assert asked[-1].decode.paste == "none"
    controls.samples.value = 2
    assert asked[-1].samples == 2 and "filled 2 times" in controls.message.value
    assert len(controls.result.children) == 1
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[10:20, 10:20] = True
    controls.drawn.value = room._digits(hole)  # as the script in the page does
    assert torch.equal(asked[-1].hole, hole) and controls.message.value.startswith("2% of the pixels")
    controls.number.value = 2
    assert torch.equal(asked[-1].image, data.test[2]) and torch.equal(asked[-1].hole, data.holes[2])
    assert room._digits(data.holes[2]) in controls.board.value
    buttons = {button.description: button for button in controls.box.children[0].children[0].children[2].children}
    buttons["no hole"].click()
    assert "no hole yet" in controls.message.value and controls.result.children == ()
    buttons["another hole"].click()
    assert 0.05 < asked[-1].hole.float().mean() < 0.35 and controls.result.children
    controls.box.children[0].children[1].children[-1].click()
    assert asked[-1].seed == 5, "other dice"


def test_the_board_is_shown_anew_whenever_a_hole_is_chosen_and_strokes_back_are_seen(game, data, asked):
    controls, boards, results = room._Controls(game), [], []
    controls.board.observe(lambda change: boards.append(change["new"]), "value")
    controls.result.observe(lambda change: results.extend(change["old"]), "children")
    own, another, no, *_ = controls.box.children[0].children[0].children[2].children
    line = torch.zeros(64, 64, dtype=torch.bool)
    line[30] = True
    for button, hole in ((own, data.holes[0]), (no, torch.zeros_like(line)), (no, torch.zeros_like(line))):
        controls.drawn.value = room._digits(line)
        assert torch.equal(game.hole, line)
        boards.clear()
        button.click()
        assert room._digits(hole) in boards[-1] and torch.equal(game.hole, hole)
    controls.drawn.value = room._digits(line)
    another.click()
    controls.drawn.value = room._digits(line)  # all of it erased, and the same line drawn
    assert torch.equal(game.hole, line)
    assert results and all(widget.comm is None for widget in results), "closed, or kernel and browser keep them"


def test_a_full_gpu_is_told_in_place_of_the_result(game, monkeypatch):
    controls = room._Controls(game)

    monkeypatch.setattr(game, "fill", Mock(side_effect=MemoryError("lower decode.batch")))
    controls.samples.value = 1
    assert controls.message.value == "lower decode.batch" and controls.result.children == ()


def test_where_a_report_is_made_a_picture_and_a_sentence_stand_in(game, monkeypatch):
    bundle = game._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    assert "Live only" in page.get_text() and page.img["alt"] and page.img["src"].startswith("data:image/png")
    assert not page.find("script")
    monkeypatch.setattr(room, "is_live", lambda: True)
    assert "application/vnd.jupyter.widget-view+json" in game._repr_mimebundle_()


def test_photographs_of_which_only_the_outside_is_known_are_left_out(pair, data):
    partly = replace(data, whole=torch.tensor([False, False, True]))
    assert torch.equal(Play(pair, partly, DECODE).image, data.test[2])
    none = replace(data, whole=torch.zeros(3, dtype=torch.bool))
    assert torch.equal(Play(pair, none, DECODE).image, data.test[0]), "better than nothing to play with"
