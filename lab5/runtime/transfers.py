"""Work for a GPU without waiting for it: what is sent to it, where a mask is true, numbers that are fetched together.

A GPU works on while Python goes ahead, until Python asks for something that it does not know yet: a number, or how
large a result is. On a CPU nothing here is any different from the plain way.
"""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Places = tuple[Int[Tensor, " M"], Int[Tensor, " M"]]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. A GPU fetches it by itself from pinned memory, while Python goes ahead."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def places(mask: Bool[Tensor, "B N"], device: torch.device | None = None, count: int | None = None) -> Places:
    """Rows and columns of the M places where a mask is true, row by row, for use as an index: `x[places(mask)]`.

    On `device`, or where the mask is. Of a mask on a GPU the GPU is asked, which waits, unless `count` says M.
    """
    if mask.device.type == "cpu":
        return sent(mask.nonzero(), device or mask.device).unbind(1)
    return (mask.nonzero() if count is None else torch.nonzero_static(mask, size=count)).unbind(1)


class Noise:
    """Uniform noise in [0, 1), float64, of a generator per image: the same numbers in the same order as one after
    another, drawn and sent `ahead` of each at a time. What is not taken in the end is lost to the generators."""

    def __init__(self, generators: Sequence[torch.Generator], ahead: int = 1024):
        self._generators, self._ahead = generators, ahead
        self._drawn: Tensor | None = None

    def __len__(self) -> int:
        return len(self._generators)

    def take(self, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
        """The next numbers of each image, as many as a shape without its first axis has."""
        n, drawn = prod(shape[1:]), self._drawn
        if drawn is None or drawn.shape[1] < n:
            size = max(self._ahead, n)
            rows = [torch.rand(size, dtype=torch.float64, generator=one) for one in self._generators]
            more = sent(torch.stack(rows), device)
            drawn = more if drawn is None else torch.cat([drawn, more], dim=1)
        self._drawn = drawn[:, n:]
        return drawn[:, :n].reshape(shape)


def fetched(*values: float | Tensor) -> list[float]:
    """Numbers, and tensors of one number each as float32: those of a GPU are waited for once."""
    there = [value.detach().float() for value in values if _is_there(value)]
    numbers = iter(torch.stack(there).tolist() if there else ())
    return [next(numbers) if _is_there(value) else float(value) for value in values]


def _is_there(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"
