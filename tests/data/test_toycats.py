"""Toy cats are functions of their seed and their attributes; holes are like the lab's."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from lab5.data import toycats
from lab5.data.dataset import token_mask
from lab5.data.painter import GAZES, LIDS, LIGHTS, SIZE, head_axes, paint
from lab5.data.toycats import ATTRIBUTES, SIDED, hidden_attributes, random_holes, render

MANY = 320
UPRIGHT = torch.tensor([[0.0, 1.0, 31.5, 35.5]])  # tilt, scale and centre: the picture's middle is the face's
LEFT = torch.arange(SIZE) < SIZE // 2


def classes_of(n=1, **named):
    """Class 0 of everything but what is named: a value's name, or for sided attributes one name for both sides."""
    classes = {name: torch.zeros(n, dtype=torch.int64) for name in ATTRIBUTES}
    for name, value in named.items():
        for key in [name] if name in ATTRIBUTES else [f"{name}_left", f"{name}_right"]:
            classes[key] += ATTRIBUTES[key].index(value)
    return classes


def mirrored(classes):
    """The classes of the mirror image: sides swapped, left and right exchanged in gaze and light."""
    swapped = {}
    for name, value in classes.items():
        other = name.replace("_left", "_?").replace("_right", "_left").replace("_?", "_right")
        swapped[other] = len(ATTRIBUTES[name]) - 1 - value if name.startswith(("gaze", "light")) else value.clone()
    return swapped


def near_the_glints():
    """Where glints and their mirror images are, whatever the gaze: a band in the upper half of each eye."""
    x, y = head_axes(UPRIGHT)
    return (((x.abs() - 8).abs() < 5.3) & ((y + 3.2).abs() < 1.7))[0]


def on_the_head():
    """Inside the face's outline, away from its soft edge: the shoulders have one pattern from side to side."""
    x, y = head_axes(UPRIGHT)
    return (((x / 18) ** 2 + (y / 15) ** 2) < 1)[0]


def upright(classes):
    return paint(classes, UPRIGHT.expand(len(classes["fur"]), 4))


# --- cats -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cats():
    return render(7, MANY)


@pytest.fixture(scope="module")
def chimeras():
    return render(7, MANY, chimera=True)


@pytest.mark.parametrize("n", [1, 31, 32, 33])
def test_the_first_cats_depend_on_the_seed_alone(cats, n):
    state = torch.get_rng_state()
    few = render(7, n)
    assert torch.equal(torch.get_rng_state(), state), "of the draws of others"
    assert few.images.shape == (n, 3, SIZE, SIZE) and few.images.dtype == torch.uint8
    assert torch.equal(few.images, cats.images[:n]) and torch.equal(few.pose, cats.pose[:n])
    assert all(torch.equal(few.attributes[name], cats.attributes[name][:n]) for name in ATTRIBUTES)


def test_no_two_cats_are_the_same_picture_within_a_seed_or_across(cats):
    images = torch.cat([cats.images, render(8, 20).images])
    assert len({image.numpy().tobytes() for image in images}) == MANY + 20


def test_cats_are_painted_a_batch_at_a_time(monkeypatch):
    """Neither one by one, which is slow, nor thousands at once, which takes gigabytes."""
    sizes = []
    monkeypatch.setattr(toycats, "paint", lambda classes, pose: sizes.append(len(pose)) or paint(classes, pose))
    assert len(render(0, 70).images) == 70 and sizes == [toycats.BATCH] * 3


@pytest.mark.parametrize("kind", ["cats", "chimeras"])
def test_every_class_of_every_attribute_occurs_and_no_other(kind, request):
    attributes = request.getfixturevalue(kind).attributes
    assert set(attributes) == set(ATTRIBUTES)
    for name, values in ATTRIBUTES.items():
        assert attributes[name].shape == (MANY,)
        assert torch.equal(attributes[name].unique(), torch.arange(len(values))), name


def test_both_halves_of_a_cat_are_alike_and_those_of_a_chimera_are_drawn_apart(cats, chimeras):
    for name, values in SIDED.items():
        assert torch.equal(cats.attributes[f"{name}_left"], cats.attributes[f"{name}_right"])
        alike = (chimeras.attributes[f"{name}_left"] == chimeras.attributes[f"{name}_right"]).double().mean()
        assert abs(alike - 1 / len(values)) < 0.12  # four standard deviations or more


# --- how they are painted ---------------------------------------------------------------------------------------------


def some_classes(n, generator, chimera):
    classes = {name: torch.randint(len(values), (n,), generator=generator) for name, values in ATTRIBUTES.items()}
    if not chimera:
        classes |= {f"{name}_right": classes[f"{name}_left"] for name in SIDED}
    return classes


def differs_from_its_mirror_image(classes):
    """By more than one: all is exchanged that a mirror exchanges, but for the glints, which it would move."""
    return (upright(classes).int() - upright(mirrored(classes)).flip(3).int()).abs().amax(1) > 1


def test_an_upright_cat_in_the_middle_is_its_own_mirror_image(generator):
    different = differs_from_its_mirror_image(some_classes(40, generator, chimera=False))
    assert not different[:, ~near_the_glints()].any()
    assert different[:, near_the_glints()].any(1).all()  # the glints are on the same side in all


def test_the_mirror_image_of_a_chimera_has_its_sides_swapped(generator):
    different = differs_from_its_mirror_image(some_classes(40, generator, chimera=True))
    assert not different[:, on_the_head() & ~near_the_glints()].any()


def test_each_half_of_a_chimeras_face_is_that_of_the_cat_with_its_attributes(generator):
    classes = some_classes(40, generator, chimera=True)
    chimeras, face = upright(classes), on_the_head()
    for side, half in (("left", LEFT), ("right", ~LEFT)):
        both = {name: classes[f"{name.rsplit('_', 1)[0]}_{side}"] if "_" in name else classes[name] for name in classes}
        assert torch.equal(upright(both)[:, :, face & half], chimeras[:, :, face & half])


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_two_classes_differ_to_the_eye_and_on_their_own_side_alone(name):
    n = len(ATTRIBUTES[name])
    classes = classes_of(n, fur="grey", pattern="solid")
    classes[name] = torch.arange(n)
    pictures = upright(classes).int()
    differs = ((pictures[:, None] - pictures[None]).abs() > 10).any(2)  # (n,n,64,64)
    pixels = differs.sum((2, 3))[~torch.eye(n, dtype=torch.bool)]
    assert pixels.min() >= 8  # calm and smiling mouths differ the least
    if name.endswith(("_left", "_right")):
        assert not differs[:, :, on_the_head() & (~LEFT if name.endswith("_left") else LEFT)].any()


def test_the_gaze_moves_both_pupils_the_way_it_says():
    classes = classes_of(3, fur="white", eye="amber") | {f"gaze_{side}": torch.arange(3) for side in ("left", "right")}
    x, y = head_axes(UPRIGHT)
    dark = (upright(classes).float().mean(1) < 40) & (y.abs() < 2)
    for centre in (-8, 8):
        pupil = dark & ((x - centre).abs() < 4.2)  # and not the rim of the eye, which is dark too
        where = [x[0][pupil[i]].mean().item() - centre for i in range(3)]
        assert where[GAZES.index("left")] < -1 and where[GAZES.index("right")] > 1
        assert abs(where[GAZES.index("ahead")]) < 0.5


def test_the_side_that_the_light_comes_from_is_the_brighter():
    classes = classes_of(3, fur="grey") | {"light": torch.arange(3)}
    face = on_the_head() & ~near_the_glints()
    excess = [(p[face & LEFT].mean() - p[face & ~LEFT].mean()).item() for p in upright(classes).float().mean(1)]
    assert excess[LIGHTS.index("left")] > 10 and excess[LIGHTS.index("right")] < -10
    assert abs(excess[LIGHTS.index("above")]) < 1


def test_the_pose_moves_turns_and_scales_the_head():
    pose = torch.tensor([[0.0, 1.0, 32.0, 32.0], [0.3, 1.2, 30.0, 36.0]])
    x, y = head_axes(pose)
    assert (x[0, 32, 32], y[0, 32, 32]) == (0, 0) and (x[1, 36, 30], y[1, 36, 30]) == (0, 0)
    assert (x[0, 32, 42], y[0, 42, 32]) == (10, 10)
    # 12 pixels to the right of the centre, seen by a head 1.2 times as large and turned by 0.3 radians.
    np.testing.assert_allclose([x[1, 36, 42], y[1, 36, 42]], [10 * np.cos(0.3), -10 * np.sin(0.3)], rtol=1e-5)


def test_the_callers_classes_and_pose_are_not_modified(generator):
    classes, pose = some_classes(3, generator, chimera=True), UPRIGHT.expand(3, 4).clone()
    before = {name: value.clone() for name, value in classes.items()}, pose.clone()
    paint(classes, pose)
    assert all(torch.equal(classes[name], before[0][name]) for name in classes) and torch.equal(pose, before[1])


# --- holes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def holes():
    return random_holes(11, 1000)


def test_the_same_seed_gives_the_same_holes_and_the_first_do_not_depend_on_n(holes):
    assert torch.equal(random_holes(11, 257), holes[:257])
    assert torch.equal(random_holes(11, 1), holes[:1])
    assert not torch.equal(random_holes(12, 1), holes[:1])


def test_every_hole_is_of_one_piece(holes):
    assert holes.shape == (1000, SIZE, SIZE) and holes.dtype == torch.bool
    assert all(scipy.ndimage.label(hole)[1] == 1 for hole in holes.numpy())  # SciPy's default: 4 neighbours


def test_holes_are_as_large_as_the_labs(holes):
    missing = holes.double().mean((1, 2)) * 100
    assert abs(missing.mean() - 20.8) < 0.5
    # The smallest and the largest of 747 in the lab: of 1000, a few lie beyond.
    assert ((missing < 9.7) | (missing > 29.9)).double().mean() < 0.02
    assert missing.min() < 12 and missing.max() > 28


def test_holes_touch_as_many_tokens_as_the_labs(holes):
    tokens = token_mask(holes).sum(1).double()
    assert abs(tokens.mean() - 85.0) < 1.5
    for percent, lab in ((5, 52), (25, 70), (50, 85), (75, 98), (95, 119)):
        assert abs(torch.quantile(tokens, percent / 100) - lab) <= 3, percent


def test_holes_favour_no_side_of_the_picture_and_reach_every_pixel(holes):
    share = holes.double().mean(0)
    for mirror in (share.flip(0), share.flip(1), share.T):
        assert (share - mirror).abs().mean() < 0.02
    assert share.min() > 0.05


# --- what a hole hides ------------------------------------------------------------------------------------------------

EYE, SIDES = {"eye", "lid", "gaze"}, ("left", "right")
PLACES = {  # attribute or attributes -> box in the axes of the head that covers their place: x from, to, y from, to
    "mouth": ({"mouth"}, (-6.5, 6.5, 7, 17)),
    "left eye": ({f"{name}_left" for name in EYE}, (-15, -1, -8, 5)),
    "right eye": ({f"{name}_right" for name in EYE}, (1, 15, -8, 5)),
    "left ear": ({"ear_left"}, (-22, -6, -25, -8)),
    "right ear": ({"ear_right"}, (6, 22, -25, -8)),
    "left half": ({f"{name}_left" for name in SIDED}, (-99, 0, -99, 99)),
    "right half": ({f"{name}_right" for name in SIDED}, (0, 99, -99, 99)),
    "all": ({"mouth"} | {f"{name}_{side}" for name in SIDED for side in SIDES}, (-99, 99, -99, 99)),
    "nothing": (set(), (0, 0, 0, 0)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_hole_over_a_place_hides_exactly_the_attributes_of_that_place(place):
    attributes, (x0, x1, y0, y1) = PLACES[place]
    pose = torch.tensor([[0.0, 1.0, 31.5, 35.5], [0.2, 1.1, 29.0, 37.0], [-0.2, 0.95, 34.0, 34.0]])
    x, y = head_axes(pose)
    hole = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    hidden = hidden_attributes(hole, pose)
    assert {name for name, there in hidden.items() if there.all()} == attributes
    assert {name for name, there in hidden.items() if there.any()} == attributes


def test_a_place_is_hidden_from_the_share_that_is_asked_for():
    x, y = head_axes(UPRIGHT)
    hole = (x < -8) & (y.abs() < 20)  # the outer half of the left eye
    for share, expected in ((0.4, True), (0.6, False)):
        assert hidden_attributes(hole, UPRIGHT, share)["eye_left"].item() is expected


def test_what_is_hidden_cannot_be_read_from_the_visible_pixels():
    """Where a hole covers all of both eyes' places, cats that differ in the eyes alone look the same."""
    x, y = head_axes(UPRIGHT)
    hole = (x.abs() < 15) & (y > -8) & (y < 5)
    assert all(hidden_attributes(hole, UPRIGHT)[f"{name}_{side}"] for name in EYE for side in SIDES)
    pictures = [
        paint(classes_of(eye=eye, lid=lid, gaze=gaze), UPRIGHT)[:, :, ~hole[0]]
        for eye, lid, gaze in (("green", LIDS[0], GAZES[0]), ("copper", LIDS[1], GAZES[2]))
    ]
    assert torch.equal(*pictures)
