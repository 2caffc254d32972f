"""What is not asked twice: the transformer's own answers, whatever changed since the last time; how often it ran."""

from dataclasses import replace

import pytest
import torch
from stubs import cats, untrained_pair

from lab5.config import DecodeConfig
from lab5.inpainting.answers import Remembering
from lab5.inpainting.fill import answered, decode_holes, prepare

B, N = 5, 256


@pytest.fixture(scope="module")
def pair():
    return untrained_pair()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return cats(B, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def asked(pair, monkeypatch) -> list[int]:
    """The number of images of every call of the transformer."""
    calls, real = [], type(pair.transformer).forward

    def spy(self, tokens, *rest, **named):
        calls.append(len(tokens))
        return real(self, tokens, *rest, **named)

    monkeypatch.setattr(type(pair.transformer), "forward", spy)
    return calls


@pytest.mark.parametrize("sees", [False, True])
@torch.no_grad()
def test_answers_are_the_transformers_own_and_only_changed_images_are_asked_about(pair, sees, asked):
    g = torch.Generator().manual_seed(0)
    model, mask_id = pair.transformer, pair.transformer.mask_id
    hints = torch.rand(B, N, model.config.hints, generator=g) if sees else None
    remembering = Remembering(model, hints, None)
    where = torch.rand(B, N, generator=g) < 0.4
    tokens = torch.randint(mask_id, (B, N), generator=g).masked_fill(where, mask_id)
    for changed in ([0, 1, 2, 3, 4], [], [1, 3], [0], [0, 1, 2, 3, 4]):
        for image in changed:  # a position is committed
            place = where[image].nonzero()[0]
            tokens, where = tokens.clone(), where.clone()
            tokens[image, place], where[image, place] = 7, False
        right = model(tokens, where, hints)
        asked.clear()
        torch.testing.assert_close(remembering(tokens, where), right)
        assert asked == [len(changed)] * bool(changed)


@torch.no_grad()
def test_an_image_with_nothing_masked_is_not_asked_about_and_one_masked_again_is(pair, asked):
    model, mask_id = pair.transformer, pair.transformer.mask_id
    remembering = Remembering(model, None, None)
    tokens = torch.zeros(3, N, dtype=torch.long)
    where = torch.zeros(3, N, dtype=torch.bool)
    for masked, images in (({0: 9, 1: 5}, [2]), ({1: 5}, []), ({0: 9, 1: 5}, [1]), ({0: 8, 2: 3}, [2])):
        where = torch.zeros_like(where)
        for image, count in masked.items():
            where[image, :count] = True
        now = tokens.masked_fill(where, mask_id)
        right = model(now, where)
        asked.clear()
        torch.testing.assert_close(remembering(now, where), right)
        assert asked == images


@pytest.mark.parametrize("settings", [{}, {"remask": 0.3}, {"rounds": 1}, {"budget": "entropy", "limit": 2.0}])
def test_a_first_answer_at_hand_changes_nothing_and_saves_a_step(pair, dataset, asked, settings):
    decode = DecodeConfig(steps=3, batch=2, **settings)
    images = pair, dataset.test, dataset.holes, decode
    holed = prepare(*images)
    plain = [state.filled for state in decode_holes(*images, 3, holed)]
    without = sum(asked)
    known = answered(pair, holed, decode)
    asked.clear()
    ours = [state.filled for state in decode_holes(*images, 3, known)]
    assert all(map(torch.equal, plain, ours))
    assert sum(asked) == without - B


def test_steps_that_commit_nothing_ask_nothing(pair, dataset, asked):
    holes = torch.zeros_like(dataset.holes)
    holes[:, :8, :8] = True  # four tokens
    many = DecodeConfig(steps=40, hints=False)
    *_, last = decode_holes(pair, dataset.test, holes, many, 0)
    assert sum(asked) <= 4 * B and not last.masked.any()
    asked.clear()
    *_, again = decode_holes(pair, dataset.test, holes, replace(many, amp="bf16"), 0)
    assert sum(asked) <= 4 * B and not again.masked.any()
