"""A stand-in GPU: tensors that say `cuda:0` and compute on the CPU, for looking at what a GPU would be asked to do.

    with stand_in_gpu() as gpu:
        model.to("cuda")
        ...
        print(gpu.waits, gpu.transfers)

Every operation on them is carried out on the CPU, and so gives the CPU's numbers. A mix of devices raises RuntimeError
as on a GPU. Counted, with the line of ours that caused it, are the waits (whatever keeps Python until the GPU has done
all that it was asked before) and the transfers (tensors that cross from one memory to the other). All is counted by the
rules of torch 2.11 on CUDA, and nothing is timed: the stand-in says nothing about speed or memory.

It changes what torch says of CUDA while the region lasts, and in this thread alone what tensors do; afterwards torch is
as before, and tensors that are left over can no longer be computed with. torch.compile is not covered.
"""

import linecache
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(f"{ROOT / folder}/" for folder in ("lab5", "bench", "tests"))
NAME = torch.device("cuda:0")
# Not the cause of what they do: this file, and what carries others' tensors.
BETWEEN = (__file__, str(ROOT / "lab5/runtime/transfers.py"))
# To torch's own code the tensors are on the device without memory: for CUDA it would ask the driver.
INNER = torch.device("meta")

# Operations whose result has a size or a type of error that only the GPU knows.
WAITING = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique", "_unique2",
        "unique_dim", "unique_consecutive", "_linalg_svd", "_linalg_eigh", "_linalg_det", "linalg_eig", "linalg_lstsq",
    )
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
# Here a number on the CPU cannot stand for a tensor.
NO_NUMBERS = {"aten::cat", "aten::stack", "aten::mm", "aten::bmm", "aten::addmm", "aten::gather", "aten::scatter"}

# What autocast does on CUDA, of the functions that this repository calls (torch, autocast_mode.h).
LOWER = {"linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv2d",
         "scaled_dot_product_attention"}  # fmt: skip
FULL = {"layer_norm", "group_norm", "softmax", "log_softmax", "logsumexp", "cross_entropy", "cumsum", "sum", "exp",
        "log", "pow", "softplus", "mse_loss"}  # fmt: skip
WIDEST = {"cat", "stack", "index_put", "scatter_add"}


class StandIn:
    """What the stand-in has counted: line of ours -> how often."""

    def __init__(self):
        self.waits: Counter[str] = Counter()
        self.transfers: Counter[str] = Counter()
        self._pinned: dict[int, StorageWeakRef] = {}

    def clear(self) -> None:
        self.waits.clear()
        self.transfers.clear()

    def wait(self) -> None:
        self.waits[_line()] += 1

    # --- operations -------------------------------------------------------------------------------------------------

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """An operation, on the CPU; its results are where a GPU would have them."""
        name, leaves = func._schema.name, tree_leaves((args, kwargs))
        if name == "aten::_to_copy":
            return self._moved(func, args[0], kwargs)
        if name == "aten::copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
            return self._copied(func, *args, **kwargs)
        if name == "aten::_pin_memory":
            return self._pin(args[0])
        if name == "aten::is_pinned":
            return self._is_pinned(args[0])
        here = any(isinstance(x, OnGpu) for x in leaves)
        device = kwargs.get("device")
        if not (here if device is None else device == INNER):
            if here:
                raise _mix(name)
            return func(*args, **kwargs)
        self._look(name, args, kwargs, leaves)
        kwargs = {key: tree_map(_inner, value) for key, value in kwargs.items()}
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        results = func(*tree_map(_inner, args), **kwargs)
        return _wrapped(func, args, results) if func._schema.is_mutable else tree_map(_on_gpu, results)

    def _look(self, name: str, args: tuple, kwargs: dict[str, Any], leaves: list[Any]) -> None:
        """Count the waits and the transfers of an operation on the GPU; refuse what a GPU would refuse."""
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
        indices = args[1] if name in INDEXING and isinstance(args[0], OnGpu) else ()
        values = args[2] if len(args) > 2 and name in INDEXING else None
        by_index = [index for index in indices if isinstance(index, Tensor)]
        for x in leaves:
            if not isinstance(x, Tensor) or isinstance(x, OnGpu):
                continue
            if any(x is index for index in by_index):  # fetched for the occasion
                self._transfer(True)
            elif x.dim() > 0 or name in NO_NUMBERS:
                raise _mix(name)
        number = isinstance(values, Tensor) and values.numel() == 1 and not isinstance(values, OnGpu)
        if not (number and name != "aten::index"):  # a number put where a mask is true fills, and counts nothing
            for index in by_index:
                if index.dtype in (torch.bool, torch.uint8):
                    self.wait()
        sized = name == "aten::repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or sized:
            self.wait()
        if name == "aten::_local_scalar_dense":
            self.transfers[_line()] += 1

    # --- transfers --------------------------------------------------------------------------------------------------

    def _moved(self, func: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        there, device = isinstance(source, OnGpu), kwargs.get("device")
        here = there if device is None else device == INNER
        if there != here:
            self._transfer(there or not (kwargs.get("non_blocking") and self._is_pinned(source)))
        if device is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        copy = func(_inner(source), **kwargs)
        return _on_gpu(copy) if here else copy

    def _copied(self, func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        waits = isinstance(source, OnGpu) or not (non_blocking and self._is_pinned(source))
        self._transfer(waits)
        func(_inner(target), _inner(source))
        return target

    def _transfer(self, waits: bool) -> None:
        """To the CPU a transfer is waited for, because its values can be used at no earlier time; so is one of memory
        that is not pinned."""
        self.transfers[_line()] += 1
        if waits:
            self.wait()

    def _pin(self, x: Tensor) -> Tensor:
        if isinstance(x, OnGpu):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        pinned = x.clone()
        storage = pinned.untyped_storage()
        self._pinned[storage._cdata] = StorageWeakRef(storage)
        return pinned

    def _is_pinned(self, x: Tensor) -> bool:
        known = not isinstance(x, OnGpu) and self._pinned.get(x.untyped_storage()._cdata)
        return bool(known) and not known.expired()


class OnGpu(Tensor):
    """A tensor of the stand-in; `inner` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor):
        shape = inner.size(), inner.stride(), inner.storage_offset()
        room = shape[2] + sum((n - 1) * step for n, step in zip(*shape[:2], strict=True)) + 1
        empty = torch.empty(room, dtype=inner.dtype, device=INNER).as_strided(*shape)
        # What torch decides by the kind of device, such as autocast, it decides as for CUDA.
        self = Tensor._make_subclass(cls, empty, False, device_for_backend_keys=NAME)
        self.inner = inner
        return self

    device = property(lambda self: NAME)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r}, on the stand-in GPU"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise RuntimeError(f"{func}: the stand-in GPU of this tensor is gone")


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnGpu) else x


def _on_gpu(x: Any) -> Any:
    return OnGpu(x) if isinstance(x, Tensor) else x


def _wrapped(func: Any, args: tuple, results: Any) -> Any:
    """Results of an operation that changes some of its arguments: those are returned themselves."""
    changed = [
        args[i] for i, argument in enumerate(func._schema.arguments[: len(args)])
        if argument.alias_info is not None and argument.alias_info.is_write
    ]  # fmt: skip
    for x in tree_leaves(changed):
        if isinstance(x, OnGpu) and (x.shape, x.stride()) != (x.inner.shape, x.inner.stride()):
            raise NotImplementedError(f"{func}: the stand-in GPU cannot change the shape of a tensor in place")
    returns = func._schema.returns
    several = list(results) if len(returns) > 1 else [results]
    same = iter(changed)
    final = [
        next(same) if one.alias_info is not None and one.alias_info.is_write else tree_map(_on_gpu, value)
        for one, value in zip(returns, several, strict=False)
    ]
    return tuple(final) if len(returns) > 1 else final[0] if returns else None


def _mix(name: str) -> RuntimeError:
    places = "but found at least two devices, cuda:0 and cpu!"
    return RuntimeError(f"Expected all tensors to be on the same device, {places} ({name} at {_line()})")


def _line() -> str:
    """The innermost line of this repository that is being carried out, of none of BETWEEN."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(OURS) and file not in BETWEEN:
            text = linecache.getline(file, frame.f_lineno).strip()
            return f"{Path(file).relative_to(ROOT)}:{frame.f_lineno} {text[:80]}"
        frame = frame.f_back
    return "?"


# --- the region -------------------------------------------------------------------------------------------------------


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: StandIn):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return self.gpu.run(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """Before torch reads the arguments of a call, and would ask the driver for a GPU: its name becomes INNER's."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return Tensor.to(args[0], INNER, non_blocking=kwargs.get("non_blocking", False))
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(_translated(device))
        if func is Tensor.new_tensor and isinstance(args[0], OnGpu):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(INNER)
        if func is Tensor.to:
            args = args[:1] + tuple(_translated(x) if isinstance(x, str) else x for x in args[1:])
        args = tuple(_translated(x) if isinstance(x, torch.device) else x for x in args)
        if "device" in kwargs:
            kwargs["device"] = _translated(kwargs["device"])
        if torch.is_autocast_enabled(NAME.type):
            args, kwargs = _autocast(getattr(func, "__name__", "").strip("_"), args, kwargs)
        return func(*args, **kwargs)


def _autocast(name: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """torch's own autocast looks at the kind of memory, so that it passes these tensors by."""
    kinds = {x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, OnGpu) and x.is_floating_point()}
    if name in LOWER:
        to = torch.get_autocast_dtype(NAME.type)
    elif name in FULL or name in WIDEST and torch.float32 in kinds:
        to = torch.float32
    else:
        return args, kwargs
    kinds -= {to, torch.float64}

    def cast(x: Any) -> Any:
        return x.to(to) if isinstance(x, OnGpu) and x.dtype in kinds else x

    return tree_map(cast, args), tree_map(cast, kwargs)


def _translated(device: Any) -> Any:
    return INNER if device is not None and torch.device(device).type == NAME.type else device


class _Properties:
    """As `torch.cuda.get_device_properties` says it of a small card."""

    name, major, minor, total_memory, multi_processor_count = "stand-in GPU", 8, 0, 8 << 30, 1


@contextmanager
def stand_in_gpu(capability: tuple[int, int] = (8, 0)) -> Iterator[StandIn]:
    """Within it the device `cuda` is the stand-in; from `capability` (8, 0) on it has bfloat16."""
    gpu = StandIn()
    says = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "is_bf16_supported": lambda *_, **__: capability >= (8, 0),
        "get_device_capability": lambda *_: capability, "get_device_name": lambda *_: _Properties.name,
        "get_device_properties": lambda *_: _Properties, "mem_get_info": lambda *_: (8 << 30, 8 << 30),
        "synchronize": lambda *_: gpu.wait(), "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.zeros(0), "set_rng_state": lambda *_: None,
        "manual_seed": lambda *_: None, "manual_seed_all": lambda *_: None, "empty_cache": lambda: None,
    }  # fmt: skip
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, value in says.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a module's tensors change their type
        stack.enter_context(_Operations(gpu))
        stack.enter_context(_Names())
        yield gpu
