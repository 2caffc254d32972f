"""How a toy cat is painted: attributes and a pose in, 64x64 pixels out.

A cat is a stack of soft-edged shapes (signed distances, in pixels) painted over each other in the axes of its
own tilted head, so the halves of a face mirror each other and a hidden half can be told from the visible one.
Nothing is noise: given the attributes and the pose, every pixel follows.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

SIZE = 64

FURS = {  # coat, and the darker tone of its stripes, spots and points
    "black": ((46, 44, 50), (18, 17, 22)),
    "grey": ((134, 139, 150), (72, 77, 92)),
    "blue": ((92, 106, 132), (46, 56, 82)),
    "orange": ((232, 148, 66), (178, 84, 26)),
    "cream": ((238, 214, 172), (188, 142, 92)),
    "brown": ((136, 92, 62), (70, 42, 28)),
    "white": ((240, 236, 230), (168, 160, 158)),
    "cinnamon": ((192, 116, 82), (118, 58, 38)),
}
EYES = {"green": (116, 196, 70), "amber": (246, 186, 40), "blue": (88, 176, 240), "copper": (206, 96, 34)}
BACKGROUNDS = {  # top and bottom of the gradient
    "sky": ((120, 176, 220), (206, 228, 236)),
    "meadow": ((170, 206, 150), (92, 140, 84)),
    "dusk": ((88, 72, 128), (206, 132, 128)),
    "sand": ((226, 204, 164), (178, 142, 104)),
    "night": ((34, 40, 76), (66, 84, 130)),
    "rose": ((236, 186, 196), (186, 110, 134)),
}
PATTERNS = ("solid", "tabby", "blaze", "points", "spots")
EARS = ("pointed", "round", "folded")
GAZES = ("left", "ahead", "right")
LIDS = ("wide", "half")
MOUTHS = ("calm", "smile", "open")
LIGHTS = ("left", "above", "right")


# --- shapes: distances in pixels, negative inside ---------------------------------------------------------------------


def _length(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(x² + y²), of small numbers: three times as fast as torch.hypot, which also guards huge ones."""
    return (x * x).addcmul_(y, y).sqrt_()


def _ellipse(x: Tensor, y: Tensor, rx, ry) -> Tensor:
    """Distance to an ellipse at the origin, first order: f / |grad f| of f = |(x/rx, y/ry)| - 1."""
    px, py = x * (1 / rx), y * (1 / ry)
    length = _length(px, py).add_(1e-3)
    return (length - 1).mul_(length).div_(_length(px.mul_(1 / rx), py.mul_(1 / ry)).add_(1e-4))


def _discs(x: Tensor, y: Tensor, discs) -> Tensor:
    """Distance to the nearest of some discs (x, y, radius)."""
    return _nearest(_length(x - cx, y - cy).sub_(radius) for cx, cy, radius in discs)


def _lines(x: Tensor, y: Tensor, lines, thickness: float) -> Tensor:
    """Distance to the nearest of some lines from a to b with round ends."""

    def distance(ax, ay, bx, by):
        dx, dy = bx - ax, by - ay
        square = dx * dx + dy * dy
        along = (x * (dx / square)).add_(y, alpha=dy / square).sub_((ax * dx + ay * dy) / square).clamp_(0, 1)
        return _length((x - ax).sub_(along, alpha=dx), (y - ay).sub_(along, alpha=dy))

    return _nearest(distance(*a, *b) for a, b in lines) - thickness


def _triangle(x: Tensor, y: Tensor, a, b, c) -> Tensor:
    """Distance to the triangle abc, exact inside and near its edges; the corners turn either way."""
    turn = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    edges = []
    for p, q in ((a, b), (b, c), (c, a)):
        ex, ey = q[0] - p[0], q[1] - p[1]
        length = (ex * ex + ey * ey) ** 0.5 * (1 if turn > 0 else -1)
        edges.append((x * (ey / length)).sub_(y, alpha=ex / length).add_((p[1] * ex - p[0] * ey) / length))
    return torch.maximum(torch.maximum(edges[0], edges[1]), edges[2])


def _nearest(distances) -> Tensor:
    first, *rest = distances
    for other in rest:
        first = torch.minimum(first, other)
    return first


def _cover(distance: Tensor, softness: float = 0.7) -> Tensor:
    """How much of each pixel a shape covers: 1 inside, 0 outside, a soft edge of about a pixel."""
    return (distance * (-0.5 / softness)).add_(0.5).clamp_(0, 1)


def _over(canvas: Tensor, colour, alpha: Tensor) -> Tensor:
    """Paint `colour`, one (3 bytes) or one per image (n,3) or pixel (n,3,64,64), over `canvas` where alpha is 1."""
    if not isinstance(colour, Tensor):
        colour = torch.tensor(colour, dtype=torch.float32)[None, :, None, None] / 255
    elif colour.dim() == 2:
        colour = colour[:, :, None, None]
    return canvas.lerp_(colour.expand_as(canvas), alpha[:, None])


def _palette(colours, index: Tensor) -> Tensor:
    return (torch.tensor(list(colours), dtype=torch.float32) / 255)[index]


# --- a cat ----------------------------------------------------------------------------------------------------------


def head_axes(pose: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "n 64 64"], Float[Tensor, "n 64 64"]]:
    """Every pixel in the head's own axes: x to the picture's right and y down, from between the eyes, in pixels."""
    dx, dy = _upright_axes(pose)
    tilt = pose[:, 0, None, None]
    return dx * torch.cos(tilt) + dy * torch.sin(tilt), dy * torch.cos(tilt) - dx * torch.sin(tilt)


def _upright_axes(pose: Tensor) -> tuple[Tensor, Tensor]:
    _, scale, cx, cy = (p[:, None, None] for p in pose.unbind(1))
    place = torch.arange(SIZE, dtype=torch.float32)
    return ((place - cx) / scale).expand(-1, SIZE, -1), ((place[:, None] - cy) / scale).expand(-1, -1, SIZE)


def paint(classes: dict[str, Int[Tensor, " n"]], pose: Float[Tensor, "n 4"]) -> UInt8[Tensor, "n 3 64 64"]:
    """Cats of the given classes (indices into the tables above; `_left` and `_right` where a side has its own).

    `pose` is tilt in radians, scale, and the x and y of the head's centre in pixels.
    """
    dx, dy = _upright_axes(pose)
    x, y = head_axes(pose)
    ax = x.abs()
    right = x > 0

    def side(name: str) -> Tensor:
        """The class of a sided attribute at every pixel, (n,64,64)."""
        left, other = classes[f"{name}_left"][:, None, None], classes[f"{name}_right"][:, None, None]
        return torch.where(right, other, left)

    coat = _palette([c for c, _ in FURS.values()], classes["fur"])
    dark = _palette([d for _, d in FURS.values()], classes["fur"])
    pale = torch.lerp(coat, torch.tensor([0.98, 0.96, 0.93]).expand_as(coat), 0.72)
    pattern = side("pattern")

    canvas = _background(classes["background"])
    canvas = _body(canvas, coat, dark, pale, dx, dy, classes)
    canvas = _ears(canvas, coat, dark, side("ear"), pattern == PATTERNS.index("points"), ax, y)

    # The head: a broad ellipse with fluffed cheeks.
    angle = torch.atan2(y, ax)
    fluff = 0.9 * torch.sin(9 * angle).abs() * torch.exp(-(((angle - 0.55) / 0.42) ** 2))
    head = torch.minimum(_ellipse(x, y, 19.5, 16.5), _ellipse(ax - 9.5, y - 6.0, 11.0, 9.3)) - fluff
    inside = _cover(head, 0.9)
    canvas = _over(canvas, dark, 0.35 * _cover(head - 0.9, 0.9))
    canvas = _over(canvas, coat, inside)
    canvas = _markings(canvas, FACE, dark, pale, inside, pattern, x, y)
    canvas = _light(canvas, classes["light"], inside, x, y)
    canvas = _eyes(canvas, dark, side("eye"), side("lid"), side("gaze"), right, ax, y)
    canvas = _muzzle(canvas, coat, pale, classes["mouth"], classes["whiskers"], ax, y)
    return (canvas * 255).round_().clamp_(0, 255).to(torch.uint8)


def _background(index: Tensor) -> Tensor:
    top = _palette([t for t, _ in BACKGROUNDS.values()], index)[:, :, None, None]
    bottom = _palette([b for _, b in BACKGROUNDS.values()], index)[:, :, None, None]
    height = torch.linspace(0, 1, SIZE)[:, None].expand(SIZE, SIZE)
    return torch.lerp(top, bottom, height)


def _body(canvas, coat, dark, pale, dx, dy, classes) -> Tensor:
    """Neck and shoulders, upright whatever the head's tilt, with the coat's own pattern."""
    width = 11.5 + 0.42 * (dy - 12).clamp(min=0)
    body = torch.maximum(dx.abs() - width, 8 - dy)
    inside = _cover(body, 0.9)
    shade = (1 - 0.2 * torch.exp(-(((dy - 15) / 5) ** 2)))[:, None]
    canvas = torch.lerp(canvas, 0.9 * coat[:, :, None, None] * shade, inside[:, None])
    pattern = classes["pattern_left"][:, None, None].expand_as(dx)
    return _markings(canvas, BODY, dark, pale, inside, pattern, dx, dy)


def _ears(canvas, coat, dark, ear, points, ax, y) -> Tensor:
    pointed = _triangle(ax, y, (4.5, -12.0), (19.0, -25.5), (19.0, -5.0)) - 0.8
    round_ = torch.minimum(_ellipse(ax - 13.2, y + 15.2, 6.6, 7.4), _triangle(ax, y, (5.0, -11), (12, -22), (19, -6)))
    folded = _triangle(ax, y, (4.5, -12.5), (14.5, -20.0), (20.5, -6.5)) - 0.8
    outer = torch.where(ear == 0, pointed, torch.where(ear == 1, round_, folded))
    canvas = _over(canvas, dark, 0.45 * _cover(outer - 0.8))
    canvas = _over(canvas, coat, _cover(outer))
    canvas = _over(canvas, dark, 0.85 * _cover(outer) * points)
    inner_pointed = _triangle(ax, y, (8.6, -13.0), (17.5, -22.0), (17.4, -8.5))
    inner_round = _ellipse(ax - 13.0, y + 14.6, 3.9, 4.8)
    flap = _triangle(ax, y, (7.5, -14.5), (14.8, -19.0), (17.6, -7.0))  # a folded ear shows its dark flap, no inside
    inner = torch.where(ear == 1, inner_round, inner_pointed)
    canvas = _over(canvas, (226, 146, 146), 0.85 * _cover(inner) * (ear != 2))
    return _over(canvas, dark, 0.5 * _cover(flap) * (ear == 2))


def _markings(canvas, coats, dark, pale, inside, pattern, x, y) -> Tensor:
    """Paint each pattern over the cats, or the halves, that wear it."""
    for name, (tone, strength, cover) in coats.items():
        worn = pattern == PATTERNS.index(name)
        who = worn.flatten(1).any(1).nonzero()[:, 0]
        alpha = strength * cover(x[who], y[who]) * inside[who] * worn[who]
        canvas[who] = _over(canvas[who], (pale if tone == "pale" else dark)[who], alpha)
    return canvas


def _tabby(x: Tensor, y: Tensor) -> Tensor:
    """Three stripes down the forehead and three on each cheek."""
    stripes = (
        ((0, -17), (0, -8.5)), ((4.6, -16.0), (3.6, -9.0)),
        ((19, -2), (13.5, -0.5)), ((19.5, 3.2), (13.0, 3.6)), ((18, 8.4), (12.5, 7.2)),
    )  # fmt: skip
    return _cover(_lines(x.abs(), y, stripes, 0.95))


def _blaze(x: Tensor, y: Tensor) -> Tensor:
    """A wedge from the forehead that widens to the muzzle."""
    return _cover(x.abs() - (1.6 + 0.36 * (y + 15).clamp(min=0)).clamp(max=8.0), 0.9)


def _points(x: Tensor, y: Tensor) -> Tensor:
    """The soft mask of a Siamese."""
    return 1 - (_ellipse(x, y - 3.0, 10.0, 10.5) / 6.0 + 0.5).clamp(0, 1)


def _spots(x: Tensor, y: Tensor) -> Tensor:
    discs = ((3.2, -13.0, 1.7), (8.6, -11.4, 1.9), (15.6, -3.6, 1.8), (16.2, 3.6, 1.9), (12.6, 9.4, 1.7))
    return _cover(_discs(x.abs(), y, discs))


def _bands(x: Tensor, y: Tensor) -> Tensor:
    """Curved bands across a tabby's chest."""
    return _cover(torch.sin((y - 0.0125 * x * x) * 1.05) * 1.6 + 0.5, 0.9)


def _bib(x: Tensor, y: Tensor) -> Tensor:
    return _cover(_ellipse(x, y - 21, 6.5, 11.0), 1.2)


def _chest_spots(x: Tensor, y: Tensor) -> Tensor:
    return _cover(_discs(x.abs(), y, ((5.5, 20.0, 1.6), (10.5, 23.0, 1.7), (3.0, 26.0, 1.5))), 0.9)


FACE = {
    "tabby": ("dark", 0.9, _tabby),
    "blaze": ("pale", 1.0, _blaze),
    "points": ("dark", 0.85, _points),
    "spots": ("dark", 0.9, _spots),
}
BODY = {"tabby": ("dark", 0.6, _bands), "blaze": ("pale", 1.0, _bib), "spots": ("dark", 0.8, _chest_spots)}


def _light(canvas, light, inside, x, y) -> Tensor:
    """Shade the head as a dome lit from one side."""
    lx = (light.float() - 1)[:, None, None] * 0.85
    ly = torch.where(light == 1, -0.9, -0.35)[:, None, None]
    dome = (x / 20 * lx + y / 17 * ly).clamp(-1, 1) * inside
    canvas = _over(canvas, (255, 255, 255), 0.26 * dome.clamp(min=0))
    return canvas.mul_(1 + 0.36 * dome.clamp(max=0)[:, None])


def _eyes(canvas, dark, colour, lid, gaze, right, ax, y) -> Tensor:
    ex, ey = ax - 8.0, y + 1.5  # mirrored about each eye's centre
    opening = torch.where(lid == 0, 5.1, 3.1)
    slant = ey + 0.16 * ex
    eye = _ellipse(ex, slant, 5.6, opening)
    canvas = _over(canvas, (24, 18, 20), _cover(eye - 0.9))
    iris = _palette(EYES.values(), colour).permute(0, 3, 1, 2)
    glow = (1.05 - 0.05 * (ey + 4).clamp(0, 8))[:, None]
    canvas = _over(canvas, iris * glow, _cover(eye + 0.35))
    # The gaze is in picture coordinates, so it must not be mirrored.
    outward = torch.where(right, 1.0, -1.0)
    shift = (gaze.float() - 1) * 2.5 * outward
    pupil = _ellipse(ex - shift, ey, 1.9, 3.9)
    canvas = _over(canvas, (12, 10, 14), _cover(pupil) * _cover(eye + 0.3))
    glint = _length(ex - shift + outward, ey + 1.7) - 0.95
    return _over(canvas, (255, 255, 255), 0.95 * _cover(glint) * _cover(eye + 0.3))


def _muzzle(canvas, coat, pale, mouth, whiskers, ax, y) -> Tensor:
    mouth, whiskers = mouth[:, None, None], whiskers[:, None, None]
    pad = torch.minimum(_ellipse(ax - 3.4, y - 9.2, 5.0, 4.0), _ellipse(ax, y - 11.5, 4.2, 3.4))
    canvas = _over(canvas, torch.lerp(coat, pale, 0.8), 0.92 * _cover(pad, 1.0))
    gape = _ellipse(ax, y - 12.4, 2.6, 2.4)
    canvas = _over(canvas, (122, 40, 48), _cover(gape) * (mouth == 2))
    canvas = _over(canvas, (238, 138, 144), _cover(_ellipse(ax, y - 13.6, 1.6, 1.1)) * (mouth == 2))
    # The mouth: a line down from the nose and an arc to each side, flat or lifted.
    lift = torch.where(mouth == 1, 2.6, 0.9)
    arc = y - (11.4 - lift * ((ax - 1.6).clamp(0, 5) / 5) ** 2) - 0.5 * torch.sin((ax / 3.4).clamp(0, 1) * 3.1416)
    line = torch.maximum(arc.abs() - 0.42, ax - 4.8)
    line = torch.minimum(line, _lines(ax, y, [((0, 8.0), (0, 11.2))], 0.42))
    canvas = _over(canvas, (58, 34, 36), 0.85 * _cover(line))
    nose = _triangle(ax, y, (-2.9, 5.6), (2.9, 5.6), (0.0, 8.6)) - 0.3
    canvas = _over(canvas, (216, 108, 116), _cover(nose))
    hairs = _lines(ax, y, [((7.2, 8.2), (23, 4.6)), ((7.4, 9.4), (23.5, 9.6)), ((7.0, 10.6), (22, 14.6))], 0.25)
    return _over(canvas, (250, 248, 244), 0.7 * _cover(hairs, 0.6) * (whiskers == 1))
