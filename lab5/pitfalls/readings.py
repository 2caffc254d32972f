"""What is wrong with a learner's attention: which of the ways to write it gives the same answer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import permutations, product
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab5.pitfalls.training import N, seeded
from lab5.pitfalls.verdicts import Checks, Row, Verdict, at_seed, judged, not_tested, raised

SPLITS: dict[str, Callable[[Tensor, int], Tensor]] = {  # (B, N, D), heads -> (B, heads, N, d)
    "split": lambda x, heads: x.unflatten(-1, (heads, -1)).transpose(1, 2),
    "interleaved": lambda x, heads: x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2),
    "bare view": lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1),
}
JOINS: dict[str, Callable[[Tensor], Tensor]] = {  # and back
    "transpose": lambda x: x.transpose(1, 2).flatten(2),
    "interleaved": lambda x: x.permute(0, 2, 3, 1).flatten(2),
    "no transpose": lambda x: x.reshape(len(x), x.shape[2], -1),
}
AXES = {"keys": -1, "queries": -2, "heads": 1}
SCALES: dict[str, Callable[[int, int], float]] = {  # d of a head, D of all -> factor of the scores
    "1/√d": lambda d, width: d**-0.5,
    "1": lambda d, width: 1.0,
    "1/√D": lambda d, width: width**-0.5,
    "1/d": lambda d, width: 1 / d,
    "√d": lambda d, width: d**0.5,
}
MOST_HEADS = 32  # that are tried where a module does not say how many it has
ROUNDING = 1e-5  # of an answer: float32 may be summed in another order by each call


class Reading(NamedTuple):
    """One way to write attention; the first of each table is the right one."""

    split: str
    axis: str
    scale: str
    join: str

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        q, k, v = (SPLITS[self.split](x, heads) for x in (query, key, value))  # (B, heads, N, d)
        scores = q @ k.transpose(-2, -1) * SCALES[self.scale](q.shape[-1], query.shape[-1])
        return JOINS[self.join](scores.softmax(AXES[self.axis]) @ v)

    @property
    def departures(self) -> int:
        tables = (SPLITS, AXES, SCALES, JOINS)
        return sum(name != next(iter(table)) for name, table in zip(self, tables, strict=True))


READINGS = sorted((Reading(*names) for names in product(SPLITS, AXES, SCALES, JOINS)), key=lambda r: r.departures)


def _gap(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or not one.isfinite().all():
        return float("inf")
    return float((one - other).abs().max())


@torch.no_grad()
def check_attention(attend: Callable[..., Tensor] | nn.Module) -> Checks:
    """Of softmax(Q Kᵀ / √d) V in several heads.

    `attend(query, key, value, heads)` takes three projected tensors (B,N,D) to (B,N,D). Or it is a module (B,N,D) to
    (B,N,D) with linear layers, which are bypassed to see the same function.
    """
    try:
        with at_seed(0):
            if not isinstance(attend, nn.Module):
                call = _first_of(attend)
                qkv = torch.randn(3, 2, 6, 32)
                shape = _shape_row(call(*qkv, 4), qkv[0])
                return Checks(shape or (*_property_rows(call, *qkv, 4), *_reading_rows(call, qkv, [4], True)))
            training = attend.training
            try:
                return Checks(_module_rows(attend.eval()))
            finally:
                attend.train(training)
    except Exception as error:  # whatever a learner's code may raise
        return Checks((raised("answers", error),))


def _first_of(attend: Callable[..., Any]) -> Callable[..., Tensor]:
    """The same where it returns the weights too."""

    def first(*arguments: Any) -> Tensor:
        answer = attend(*arguments)
        return answer[0] if isinstance(answer, tuple) else answer

    return first


def _shape_row(answer: Any, x: Tensor) -> tuple[Row, ...]:
    """One row if the answer has not the shape of x, otherwise none."""
    found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if found == tuple(x.shape):
        return ()
    meaning, remedy = "The heads are not laid side by side again.", "attended.transpose(1, 2).reshape(B, N, D)"
    return (Row("shape", Verdict.FAILS, f"{found}, should be {tuple(x.shape)}", meaning, remedy),)


def _module_rows(module: nn.Module) -> tuple[Row, ...]:
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not linears:
        return (not_tested("answers", "the module has no linear layers, by which its query, key and value are seen"),)
    width, device, call = linears[0].in_features, linears[0].weight.device, _first_of(module)
    x = torch.randn(2, 6, width, device=device)
    try:
        answer = call(x)
    except Exception:  # 256 positions may be written into it
        x = torch.randn(2, N, width, device=device)
        answer = call(x)
    if shape := _shape_row(answer, x):
        return shape
    rows = _property_rows(call, x)
    given: dict[nn.Linear, Tensor] = {}

    def look(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given.setdefault(layer, inputs[0])

    with _hooked(linears, look):
        call(x)
    first = [layer for layer, seen in given.items() if seen.shape == x.shape and torch.equal(seen, x)]
    last = [layer for layer in given if layer not in first]
    if len(last) > 1 or sum(layer.out_features for layer in first) != 3 * width:
        return *rows, not_tested("agrees with torch", "its query, key and value are not seen at its linear layers")
    heads = named = _named_heads(module, width)
    if not named:
        heads = [count for count in range(1, MOST_HEADS + 1) if width % count == 0]
    parameters = sum(p.numel() for layer in given for p in layer.parameters())
    plain = bool(named) and len(first) == 3 and parameters == sum(p.numel() for p in module.parameters())
    best: tuple[Row, ...] = ()
    for layout, counts in _layouts(first, width, heads):
        attend = partial(_bypassed, call, layout, last)
        found = _reading_rows(attend, torch.randn(3, *x.shape, device=device), counts, plain)
        best = max(best, found, key=_closeness)
        if all(row.verdict is not Verdict.FAILS for row in found) and len(found) > 2:
            return *rows, *found
    return *rows, *best


def _named_heads(module: nn.Module, width: int) -> list[int]:
    """The numbers of heads that the module and its parts have by a usual name, the outermost first."""
    names = ("heads", "num_heads", "n_heads", "nhead", "n_head", "h")
    counts = [getattr(part, name, None) for part in module.modules() for name in names]
    return list(dict.fromkeys(n for n in counts if type(n) is int and n > 0 and width % n == 0))


def _closeness(rows: tuple[Row, ...]) -> tuple[int, bool]:
    """Where no reading is found there are fewer rows; of such, those in which weights sum to 1 are nearer."""
    return len(rows), bool(rows) and rows[0].verdict is Verdict.PASSES


Layout = dict[nn.Linear, Callable[[Tensor, Tensor, Tensor], Tensor]]  # what each projection is made to answer


def _layouts(first: Sequence[nn.Linear], width: int, heads: Sequence[int]) -> list[tuple[Layout, Sequence[int]]]:
    """The ways in which query, key and value may lie in the projections, the usual one first, each with the numbers of
    heads that there may be if they lie so."""
    if len(first) == 1:  # (3 heads d), (heads d 3), (heads 3 d)

        def by_head(count: int, *qkv: Tensor) -> Tensor:
            return torch.stack([x.unflatten(-1, (count, -1)) for x in qkv], dim=-2).flatten(2)

        return [
            ({first[0]: lambda *qkv: torch.cat(qkv, dim=-1)}, heads),
            ({first[0]: lambda *qkv: torch.stack(qkv, dim=-1).flatten(2)}, heads),
            *(({first[0]: partial(by_head, count)}, [count]) for count in heads),
        ]

    def piece(role: int, start: int, stop: int) -> Callable[..., Tensor]:
        return lambda *qkv: qkv[role][..., start:stop]

    layouts = []
    count = len(first) // 3
    for order, by_head in product(permutations(range(3)), (False, True)[: 1 + (count > 1)]):
        layout, at = {}, [0, 0, 0]
        for index, layer in enumerate(first):
            role = order[index % 3 if by_head else index // count if count else 0]
            layout[layer] = piece(role, at[role], at[role] + layer.out_features)
            at[role] += layer.out_features
        if at == [width] * 3:
            layouts.append((layout, heads))
    return layouts


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bypassed(call: Callable[..., Tensor], layout: Layout, last: Sequence[nn.Linear], *qkv: Any) -> Tensor:
    """What the module makes of this query, key and value between its linear layers; heads are its own."""
    query, key, value = qkv[:3]

    def answer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return inputs[0] if layer in last else layout[layer](query, key, value)

    with _hooked([*layout, *last], answer):
        return call(torch.zeros_like(query))


@contextmanager
def _no_dropout() -> Iterator[None]:
    with mock.patch.object(F, "dropout", lambda x, *_, **__: x):
        yield


def _property_rows(call: Callable[..., Tensor], *inputs: Any) -> tuple[Row, ...]:
    """What holds of any self-attention, whatever its weights; the tensors among its inputs are (B,N,D)."""

    def of(change: Callable[[Tensor], Tensor]) -> Tensor:
        return call(*(change(x) if isinstance(x, Tensor) else x for x in inputs))

    first, second = call(*inputs), call(*inputs)
    noise = float((first - second).norm() / first.norm())
    repeats = judged(
        "two calls agree", noise < ROUNDING, f"two calls differ by {100 * noise:.2g} %, should be 0 %",
        "A dropout is active in evaluation as well: every answer is noisy.",
        "Make the dropout once, in __init__, or give it training=self.training.", 6,
    )  # fmt: skip
    with _no_dropout():
        whole = call(*inputs)
        if not _gap(whole, call(*inputs)) < ROUNDING * max(1.0, float(whole.abs().max())):
            return repeats, not_tested("permutation", "its noise cannot be switched off")
        order = torch.randperm(whole.shape[1], generator=seeded(1)).to(whole.device)
        gap, alone = _gap(of(lambda x: x[:, order]), whole[:, order]), _gap(of(lambda x: x[:1]), whole[:1])
    small = 1e-4 * max(1.0, float(whole.abs().max()))
    return (
        repeats,
        judged(
            "permutation", gap < small, f"attn(x[perm]) and attn(x)[perm] are {gap:.1g} apart, should be 0",
            "Tokens are mixed with their neighbours, though attention knows no order.",
            "x.view(B, N, heads, d).transpose(1, 2) for the heads, .transpose(1, 2).reshape(B, N, D) back.", 4,
        ),
        judged(
            "images apart", alone < small, f"an image alone and in a batch of two are {alone:.1g} apart, should be 0",
            "Images of a batch see each other.", "Keep the batch as the first axis in every view and product.",
        ),
    )  # fmt: skip


def _reading_rows(call: Callable[..., Tensor], qkv: Tensor, heads: Sequence[int], plain: bool) -> tuple[Row, ...]:
    """Which reading gives the same answer. `plain`: right code could not give one that none of them gives."""
    ones = (qkv[0], qkv[1], torch.ones_like(qkv[2]))
    with _no_dropout():
        sums, answer = call(*ones, heads[0]), call(*qkv, heads[0])
    pairs = ((reading, count) for reading, count in product(READINGS, heads))
    reading, count = next((pair for pair in pairs if _gap(answer, pair[0](*qkv, pair[1])) < 1e-4), (None, heads[0]))
    low, high = float(sums.min()), float(sums.max())
    over = f"runs over the {reading.axis}" if reading else "is missing, or runs over another axis"
    sums_of = f"a query's weights sum to {low:.2f} .. {high:.2f}, should be 1"
    axis = judged(
        "softmax axis", max(abs(low - 1), abs(high - 1)) < 1e-3, sums_of,
        f"The softmax {over}: a query no longer takes an average of the values.",
        "scores.softmax(dim=-1), which is over the keys.", 5,
    )  # fmt: skip
    gap = _gap(answer, JOINS["transpose"](F.scaled_dot_product_attention(*(SPLITS["split"](x, count) for x in qkv))))
    evidence = f"{gap:.2g} from F.scaled_dot_product_attention, should be 0"
    if reading is None:
        if not plain and axis.verdict is Verdict.FAILS:  # what lies at the place of the values may be something else
            axis = not_tested("softmax axis", f"{sums_of}: its weights are seen only if a reading agrees")
        if not plain or axis.verdict is Verdict.FAILS:
            return axis, not_tested("agrees with torch", f"{evidence}; none of {len(READINGS)} readings agrees")
        meaning = "It is another function than softmax(Q Kᵀ / √d) V."
        return axis, judged(
            "agrees with torch", False, evidence, meaning, "Compare one head with torch's, line by line."
        )
    d, width = qkv.shape[-1] // count, qkv.shape[-1]
    off = SCALES[reading.scale](d, width) * d**0.5
    rows = (
        axis,
        judged(
            "scale", reading.scale == "1/√d", f"scores are multiplied by {reading.scale}, should be by 1/√d, d = {d}",
            f"Scores are {off:.2g} times what they should be: the softmax is too {'sharp' if off > 1 else 'flat'}.",
            "scores / math.sqrt(d), where d is the width of one head.",
        ),
        judged(
            "heads cut", reading.split != "bare view",
            f"cut: {reading.split}, {count} heads of {d}",
            "A head holds pieces of neighbouring tokens.", "x.view(B, N, heads, d).transpose(1, 2)", 4,
        ),
        judged(
            "heads joined", reading.join != "no transpose",
            f"joined: {reading.join}",
            "A token is given a head's answers to other tokens.", "attended.transpose(1, 2).reshape(B, N, D)", 4,
        ),
    )  # fmt: skip
    if any(row.verdict is Verdict.FAILS for row in rows):
        return rows  # they say why it does not agree
    if gap < 1e-4:
        return *rows, Row("agrees with torch", Verdict.PASSES, evidence)
    meaning = "The same function with its channels in another order, to which the weights adapt."
    return *rows, Row("agrees with torch", Verdict.CHOICE, evidence, meaning)
