"""Which photographs are kept to be looked at, and that their pictures are what they are called."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from stubs import Blocks, photographs, untrained_pair

from lab5.config import DecodeConfig
from lab5.data.holes import fill_holes
from lab5.inpainting.fill import inpaint_images
from lab5.scoring.scores import Scorer
from lab5.show.faces import EYES, FACES, FILE, hidden_of_eyes, keep_faces, read_faces

DECODING = DecodeConfig(steps=2, paste="poisson")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The originals of eight are not known, of the others ten are among the training images."""
    data = photographs(tmp_path_factory.mktemp("data"))
    whole, leaked = torch.arange(24) % 3 != 0, torch.arange(24) < 15
    return replace(data, whole=whole, leaked=whole & leaked, numbers=tuple(range(100, 124)))


def kept(folder, data, seed=0):
    scorer, pair = Scorer(data, Blocks()), untrained_pair()
    fills = {
        "trained_from_scratch": inpaint_images(pair, scorer.truth, scorer.holes, DECODING, seed),
        "telea": fill_holes(scorer.truth, scorer.holes, "telea"),
    }
    keep_faces(folder, scorer, fills, pair=pair, data=data, decoding=DECODING, seed=seed)
    return read_faces(folder), dict(zip(scorer.places.tolist(), fills["trained_from_scratch"], strict=True))


def opened(url: str) -> torch.Tensor:
    png = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1)


def test_hidden_pixels_of_both_eyes_are_counted_and_no_others():
    holes = torch.zeros(4, 64, 64, dtype=torch.bool)
    eyes = torch.zeros(64, 64, dtype=torch.bool)
    for top, bottom, left, right in EYES:
        eyes[top:bottom, left:right] = True
    holes[1], holes[2], holes[3, 21, 12] = eyes, ~eyes, True
    assert hidden_of_eyes(holes).tolist() == [0, 308, 0, 1]


def test_faces_are_those_with_most_of_the_eyes_hidden_with_known_pixels_kept_and_the_truth_where_it_is_known(
    data, tmp_path
):
    found, scored = kept(tmp_path, data)
    faces, hidden = found["faces"], hidden_of_eyes(data.holes)
    assert not found["refined"], "as DECODING says, which the pages repeat"
    assert len(faces) == FACES and [face["hidden"] for face in faces] == sorted(hidden.tolist())[::-1][:FACES]
    assert {face["truth"] is None for face in faces} == {True, False}
    for face in faces:
        place = data.numbers.index(face["number"])
        hole, known = data.holes[place], ~data.holes[place]
        assert face["hidden"] == hidden[place] and face["leaked"] == bool(data.leaked[place])
        assert torch.equal(opened(face["given"]), data.masked_test[place])
        for name in ("ours", "classical"):
            assert torch.equal(opened(face[name])[:, known], data.test[place][:, known])
        assert torch.equal(opened(face["classical"]), fill_holes(data.test[[place]], hole[None], "telea")[0])
        if data.whole[place]:
            assert torch.equal(opened(face["truth"]), data.test[place])
            assert torch.equal(opened(face["ours"]), scored[place]), "the very picture that is scored"
        else:
            assert face["truth"] is None and not torch.equal(opened(face["ours"]), opened(face["classical"]))


def test_what_lies_under_a_hole_of_unknown_original_is_not_looked_at(data, tmp_path):
    kept(tmp_path / "a", data)
    unknown = data.holes & ~data.whole[:, None, None]
    kept(tmp_path / "b", replace(data, test=data.test.masked_fill(unknown[:, None], 255)))
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_pairs_and_their_sides_are_drawn_by_the_seed_unseen_images_first(data, tmp_path):
    draws = [kept(tmp_path / name, data, seed)[0]["pairs"] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = ([(pair["number"], pair["left"]) for pair in pairs] for pairs in draws)
    assert first == again != other
    assert {number for number, _ in first} == {data.numbers[i] for i in data.whole.nonzero()[:, 0]}
    assert {left for _, left in first} == {"ours", "classical"}
    seen = [pair["leaked"] for pair in draws[0]]
    assert seen == sorted(seen) and set(seen) == {True, False}


def test_without_a_file_there_is_nothing_to_see(tmp_path):
    assert read_faces(tmp_path) == {}
