"""Work for a GPU without waiting for it: what is sent to it, where a mask is true, numbers that are fetched together.

A GPU works on while Python goes ahead, until Python asks for something that it does not know yet: a number, or how
large a result is. On a CPU nothing here is any different from the plain way.
"""

import torch
from jaxtyping import Bool, Int
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


def fetched(*values: float | Tensor) -> list[float]:
    """Numbers, and tensors of one number each as float32: those of a GPU are waited for once."""
    there = [value.detach().float() for value in values if _is_there(value)]
    numbers = iter(torch.stack(there).tolist() if there else ())
    return [next(numbers) if _is_there(value) else float(value) for value in values]


def _is_there(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"
