"""Attention as other people store it, written as the four matrices of ours.

What a matrix is for follows from the words in its name, its shape, and the order in which it appears; it may be fused
with others, cut up by heads, a layer within a module, a parameter of its own. What the tensors leave open, a `Reading`
says.
"""

import math
import re
from dataclasses import dataclass, replace
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from lab5.runtime.files import State
from lab5.runtime.pickles import check_weights, printable

ROLES = {"q": "query", "k": "key", "v": "value", "o": "out"}
ROWS = ("3hd", "h3d", "hd3", "d3h", "3dh", "dh3")  # how fused rows may run, outermost first
HEADS = 16  # the lab's

# A name is one of these words, with any of the others around it that say nothing.
Q, K, V = "q(?:uery|ueries|s)?", "k(?:eys|ey|s)?", "v(?:alues|alue|als|al|s)?"
OUT = "o|outputs?|outs?|unify|final|last|concat|combine|merge|result"
NOISE = (
    "linears?|lin|layers?|proj|projections?|weights?|matrix|mat|transform|transfer|dense|fc|to|w|b|bias|heads?|multi|c|"
    "attention|attn|att|mha|self|input|inputs|in|conv|embedding|emb|net|map|param|module|block|fn"
)
WORD = re.compile(rf"(?:{NOISE})*?(?P<role>(?:{Q}|{K}|{V}|and)+|{OUT}|)(?:{NOISE})*")
LETTER = re.compile(rf"{Q}|{K}|{V}")

IN_ATTENTION = re.compile(r"(blocks\.\d+)\.(?!LayerNorm[12]\.|MLP\.)(.+)")


@dataclass(frozen=True)
class Reading:
    """What a person may say of a checkpoint, because its tensors do not.

    entry                  the entry of the file, or the prefix, with the state dict
    rows                   how a matrix that fuses query, key and value stacks its rows, outermost first: 3 = the three,
                           h = heads, d = the dimensions of a head; "3hd" is q, k, v one below another, "h3d" head by
                           head. Matrices of one role alone take it without the 3
    heads                  how many, 0 = as the tensors say, or the lab's 16
    query key value out    names of the matrices, of a fused one the same; `out` may be a,b: first a, then b

    Raises ValueError for other rows.
    """

    entry: str = ""
    rows: str = ROWS[0]
    heads: int = 0
    query: str = ""
    key: str = ""
    value: str = ""
    out: str = ""

    def __post_init__(self):
        if self.rows not in ROWS or self.heads < 0:
            raise ValueError(f"rows must be one of {', '.join(ROWS)} and heads a number, not {self.rows}, {self.heads}")


class Plain(NamedTuple):
    """A state dict with our four linears, weights and biases, and what was not certain about it."""

    state: State
    heads: int
    doubt: str  # why it could be read otherwise, "" where it could not
    others: list[Reading]  # how


@dataclass(eq=False)
class _Matrix:
    """A linear layer, or several of the same name for a head each, from the full width to `rows` of it."""

    name: str  # of its weight, else its bias, in the file
    place: str  # the name without the kind, with the numbers
    key: tuple[str, ...]  # its parts without numbers
    letters: str | None  # of its roles, in order; "" where the name says nothing, None where it has other words
    weight: Tensor | None = None  # (rows, width)
    bias: Tensor | None = None  # (rows,)
    heads: int = 0  # as its tensors say
    rows: str = ""  # likewise

    @property
    def rows_in_all(self) -> int:
        return len(self.bias if self.weight is None else self.weight)

    def is_called(self, name: str) -> bool:
        return any(f".{place}".endswith(f".{name}") for place in (self.place, ".".join(self.key)))


def plain_attention(state: State, path: object, reading: Reading | None = None) -> Plain:
    """Our four linears with bias in every block; a bias that is not there is zero.

    All of a block that is neither LayerNorm nor MLP counts as its attention. Raises ValueError for one that cannot be
    written so, or not without being told more.
    """
    reading = reading or Reading()
    # A factor of the scores may come without an axis.
    factors = {name for name, x in state.items() if x.ndim == 0 and IN_ATTENTION.fullmatch(name)}
    check_weights({name: x[None] if name in factors else x for name, x in state.items()}, path)
    table = state.get("tok_emb.weight", torch.empty(0))
    plain: State = {}
    blocks: dict[str, State] = {}
    for name, tensor in state.items():
        match = IN_ATTENTION.fullmatch(name) if table.ndim == 2 else None
        (blocks.setdefault(match[1], {}) if match else plain)[name] = tensor
    width, heads, doubt, others = table.shape[-1], reading.heads or HEADS, "", {}
    for block, tensors in blocks.items():
        if not any(tensor.ndim > 1 for tensor in tensors.values()):
            plain |= tensors  # of no attention: whoever builds the network will miss it
            continue
        try:
            matrices, scale = _matrices(tensors, len(block) + 1, width)
            heads = _heads(matrices, reading, heads)
            factor = 1.0 if scale is None else _scale(scale, width, heads)
            chosen, doubts = _assign(matrices, reading, width)
            plain |= _written(chosen, f"{block}.Attention", reading, heads, factor)
        except _UnknownError as error:
            if width % heads:
                plain |= tensors  # whoever builds the network will say so
                continue
            raise ValueError(f"{path} has {printable(error)[:220]}") from error
        doubt, others = doubt or "; ".join(doubts), others | doubts
    return Plain(plain, heads, doubt, [other for several in others.values() for other in several])


class _UnknownError(ValueError):
    """What an attention has that is none of ours."""


SAY = "; say which is which by --read query=NAME, key=, value=, out="


def _unknown(name: str) -> _UnknownError:
    return _UnknownError(f"an attention of unknown layout: {name[:60]} is no query, key, value or out{SAY}")


# --- from names and shapes to matrices --------------------------------------------------------------------------------


def _matrices(tensors: State, start: int, width: int) -> tuple[list[_Matrix], Tensor | None]:
    """The matrices of one block in the order in which they appear, and a factor of its scores, if it keeps one."""
    groups: dict[tuple[str, ...], dict[str, _Matrix]] = {}
    scale = None
    for name, tensor in tensors.items():
        if tensor.numel() == 1:
            if scale is not None:
                raise _unknown(name)
            scale = tensor
            continue
        place, kind, bare = _kind(name[start:], tensor)
        parts = place.split(".")
        key = tuple(part for part in parts if not part.isdigit())
        one = groups.setdefault(key, {}).setdefault(place, _Matrix(name, place, key, _letters(key)))
        if getattr(one, kind) is not None:
            raise _unknown(name)
        if kind == "bias":
            one.bias = tensor.flatten()
        else:
            one.name = name
            one.weight, one.heads, one.rows = _as_rows(tensor, width, bare, one.letters == "o", name)
    return [matrix for group in groups.values() for matrix in _joined(list(group.values()), width)], scale


def _kind(name: str, tensor: Tensor) -> tuple[str, str, bool]:
    """Where a tensor is, whether it is a weight or a bias, and whether it is a parameter without a layer."""
    if match := re.fullmatch(r"(.+)[._](weight|bias)", name):
        return match[1], match[2], False
    *_, last = name.split(".")
    is_bias = tensor.ndim == 1 or last.startswith(("bias", "b_"))
    return name, "bias" if is_bias else "weight", True


def _letters(key: tuple[str, ...]) -> str | None:
    """What a name says, from its last part to the first: letters of roles, "" for nothing, None for strange words."""
    strange = False
    for part in reversed(key):
        words = re.sub("[^a-z]", "", part.lower())
        match = WORD.fullmatch(words) if len(words) < 40 else None
        if match is None:
            strange = True
        elif role := match["role"]:
            letters = "".join(word[0] for word in LETTER.findall(role)) if not re.fullmatch(OUT, role) else "o"
            if len(set(letters)) == len(letters) > 0:
                return letters
    return None if strange else ""


def _as_rows(tensor: Tensor, width: int, bare: bool, out: bool, name: str) -> tuple[Tensor, int, str]:
    """A weight as (rows, width), and what its axes say of heads and rows.

    A layer's is so already, but for a convolution's last axes and for layers that hold the transpose. A parameter
    without a layer is multiplied from the right, x @ W, and may have axes for heads and for the three.
    """
    while not bare and tensor.ndim > 2 and tensor.shape[-1] == 1:
        tensor = tensor[..., 0]
    shape = tuple(tensor.shape)
    if width not in shape or len(shape) < 2:
        raise _unknown(name)
    if len(shape) == 2:
        return (tensor.T if shape[1] != width or bare and shape[0] == width else tensor), 0, ""
    if out:  # (heads, d, width)
        return tensor.flatten(0, -2).T, shape[0] if len(shape) == 3 else 0, ""
    axis = shape.index(width) if shape.count(width) == 1 else len(shape) - 2
    rest = shape[:axis] + shape[axis + 1 :]
    heads = 0 if rest == (3, width) else rest[0] if len(rest) == 2 else rest[1]
    rows = "h3d" if len(rest) == 2 and heads * rest[1] == 3 * width else "3hd"
    return tensor.movedim(axis, -1).flatten(0, -2), heads, rows


def _joined(group: list[_Matrix], width: int) -> list[_Matrix]:
    """Layers whose names differ in a number: one for each head become one matrix, others stay."""
    sizes = {None if one.weight is None else len(one.weight) for one in group}
    (size,) = sizes if len(sizes) == 1 else (None,)
    if size is None or size >= width or len(group) * size not in (width, 2 * width, 3 * width):
        return group
    if any((one.bias is None) != (group[0].bias is None) for one in group):
        raise _unknown(group[0].name)
    group.sort(key=lambda one: [int(part) for part in one.place.split(".") if part.isdigit()])
    biases = [one.bias for one in group if one.bias is not None]
    weight, bias = torch.cat([one.weight for one in group]), torch.cat(biases) if biases else None
    return [replace(group[0], weight=weight, bias=bias, heads=len(group), rows="h3d")]


def _heads(matrices: list[_Matrix], reading: Reading, before: int) -> int:
    numbers = {matrix.heads for matrix in matrices} - {0}
    if len(numbers) > 1 or reading.heads and numbers - {reading.heads}:
        raise _UnknownError(f"an attention whose tensors say {' and '.join(map(str, sorted(numbers)))} heads")
    return numbers.pop() if numbers else before


def _scale(scale: Tensor, width: int, heads: int) -> float:
    """By how much a stored factor of the scores differs from 1/√d: it is that of a head, or of the whole width."""
    value, size = abs(float(scale)), width / heads
    for dimensions in (size, width):
        if any(math.isclose(value, dimensions**power, rel_tol=2e-3) for power in (0.5, -0.5)):
            return 1.0 if dimensions == size else math.sqrt(size / dimensions)
    raise _UnknownError(f"an attention with a factor of {value:.4g}, which is not 1/√d of its {heads} heads")


# --- from matrices to roles -------------------------------------------------------------------------------------------

Doubts = dict[str, list[Reading]]  # why something could be read otherwise -> how


def _assign(matrices: list[_Matrix], reading: Reading, width: int) -> tuple[list[_Matrix], Doubts]:
    """The matrices that count, with the letters of their roles, and what is not certain about that."""
    matrices = _named(matrices, reading)
    if odd := next((one for one in matrices if one.letters and _size(one, width) != len(one.letters)), None):
        stacked = " and ".join(ROLES[letter] for letter in odd.letters)
        raise _UnknownError(f"{odd.rows_in_all} rows in {odd.name[:60]}, which should stack {stacked}")
    doubts: Doubts = {}
    taken = "".join(one.letters for one in matrices if one.letters)
    missing = "".join(letter for letter in ROLES if letter not in taken)
    nameless = [one for one in matrices if not one.letters]
    if nameless and sum(_size(one, width) for one in nameless) == len(missing):
        for one in sorted(nameless, key=lambda one: -_size(one, width)):  # fused ones are of query, key and value
            one.letters, missing = missing[: _size(one, width)], missing[_size(one, width) :]
        singles = [one.place for one in nameless if one.letters in ("q", "k", "v")]
        if len(singles) > 1:
            orders = [dict(zip(("query", "key", "value"), order, strict=False)) for order in permutations(singles)]
            doubts["names do not say which matrix is which"] = [replace(reading, **order) for order in orders[1:]]
    elif set("qkv") <= set(taken):  # what mixes the heads comes last, and the outermost is the last
        for one in nameless:
            one.letters = "o" if one.letters == "" and _size(one, width) == 1 else None
        if reading.out:  # whoever names the last one knows that this is none
            matrices = [one for one in matrices if one not in nameless or one.letters is None]
    if odd := next((one for one in matrices if not one.letters), None):
        raise _unknown(odd.name)
    outs = sorted((one for one in matrices if one.letters == "o" and one.weight is not None), key=lambda o: len(o.key))
    if len(outs) > 1 and len(outs[0].key) < len(outs[1].key):
        matrices = [one for one in matrices if one not in outs[1:]]
        turns = (outs[1].place, f"{outs[1].place},{outs[0].place}")
        doubts["of two matrices that could come last the outermost is taken"] = [
            replace(reading, out=name) for name in turns
        ]
    if any(len(one.letters) > 1 and not one.rows for one in matrices):
        doubts["it fuses query, key and value in one matrix, whose rows may be stacked in several ways"] = [
            replace(reading, rows=rows) for rows in ROWS if rows != reading.rows
        ]
    return matrices, doubts


def _named(matrices: list[_Matrix], reading: Reading) -> list[_Matrix]:
    """The matrices with the roles that were given, without others of those roles; all, where nothing was given."""
    given = {letter: name for letter, role in ROLES.items() if (name := getattr(reading, role))}
    if inner_outer := reading.out.split(",") if "," in reading.out else []:
        first, second = (next((one for one in matrices if one.is_called(name)), None) for name in inner_outer[:2])
        if first is None or second is None or first.weight is None or second.weight is None:
            raise _UnknownError(f"an attention without two matrices called {reading.out[:60]}")
        given["o"] = second.place
        zero = torch.zeros(len(second.weight))
        bias = (zero if second.bias is None else second.bias).float()
        if first.bias is not None:
            bias = bias + second.weight.float() @ first.bias.float()
        second.weight, second.bias = second.weight.float() @ first.weight.float(), bias
    for letter, name in given.items():
        if not any(one.is_called(name) for one in matrices):
            raise _UnknownError(f"an attention without a matrix called {name[:60]}, as {ROLES[letter]} was to be")
    kept = []
    for one in matrices:
        letters = "".join(letter for letter, name in given.items() if one.is_called(name))
        if letters:
            kept.append(replace(one, letters=letters))
        elif not (len(given) == len(ROLES) or one.letters and set(one.letters) <= set(given)):
            kept.append(one)
    return kept


def _size(matrix: _Matrix, width: int) -> int:
    """How many roles it fuses; 0 where its rows are no multiple of the width."""
    return 0 if matrix.rows_in_all % width else matrix.rows_in_all // width


def _written(matrices: list[_Matrix], block: str, reading: Reading, heads: int, factor: float) -> State:
    """Weights and biases by their names in our attention; the factor is for the scores."""
    written: State = {}
    for one in matrices:
        for kind in ("weight", "bias"):
            if (tensor := getattr(one, kind)) is None:
                continue
            parts = [tensor]
            if one.letters != "o":
                parts = _parts(tensor, len(one.letters), heads, one.rows or reading.rows)
            for letter, part in zip(one.letters, parts, strict=True):
                if (name := f"{block}.{ROLES[letter]}.{kind}") in written:
                    raise _UnknownError(f"more than one tensor for {name}, the last is {one.name[:60]}{SAY}")
                written[name] = part.float() * factor if letter == "q" and factor != 1 else part
    for name, tensor in list(written.items()):
        if name.endswith("weight"):
            written.setdefault(f"{name.removesuffix('weight')}bias", torch.zeros(len(tensor)))
    return written


def _parts(tensor: Tensor, count: int, heads: int, rows: str) -> list[Tensor]:
    """The roles that are stacked in the first axis, each of them head by head as in ours."""
    if len(tensor) % (count * heads):
        return list(tensor.chunk(count))  # whoever builds the network will complain of the heads
    sizes = {"3": count, "h": heads, "d": len(tensor) // (count * heads)}
    axes = tensor.unflatten(0, [sizes[axis] for axis in rows])
    order = [rows.index(axis) for axis in ROWS[0]]
    return list(axes.movedim(order, [0, 1, 2]).flatten(1, 2))
