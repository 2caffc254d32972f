"""What outlives a crash: files that appear whole or not at all, folders for one run at a time, steps never cut."""

import glob
import hashlib
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # Windows: two runs on one folder are not told apart there
    fcntl = None

STOPS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what a machine sends before it is taken away


# --- files --------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    """All of it, or what was there before. Raises OSError where it cannot be written."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which takes the place of `path` once it is complete and on the disk.

    Whatever happens before that leaves what was there, and nothing beside it: what a process leaves that is killed
    on the way, the next one to write there removes. Raises OSError where it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync(path.parent)
    except OSError as error:
        raise OSError(f"{path} could not be written and is as it was before: {error}") from error
    finally:
        with suppress(NotADirectoryError):  # a file where the folder should be
            part.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove the parts that processes of this machine have left which are no more."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(platform.node())}.*.part"):
        number = part.name.split(".")[-2]
        if number.isdigit() and not _is_running(int(number)):
            part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # asks, and does nothing else
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    return True


def _sync(folder: Path) -> None:
    """A new name is on the disk when its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_full: set[Path] = set()  # folders of which it has been said


@contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """Writing a file that only saves time later: where that fails, a line on stderr says so, once a folder."""
    try:
        yield
    except OSError as error:
        if path.parent not in _full:
            _full.add(path.parent)
            with suppress(OSError):  # a log on the same full disk
                print(f"lab5: {error}; going on without: LAB5_DATA can name another folder", file=sys.stderr)


# --- folders ------------------------------------------------------------------------------------------------------


class InUseError(OSError):
    """Another run is at work in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder for one run at a time; it is made if need be. The lock of a process that dies dies with it.

    Raises InUseError where another run is at work there, and OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    file = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _lock(path: Path) -> BinaryIO:
    while True:
        file = path.open("a+b")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().decode() or "another process"
            file.close()
            mine = " (this one: leave its loop first)" if owner == _me() else ""
            raise InUseError(f"{path.parent} is in use by {owner}{mine}: wait for it, or stop it") from error
        # Whoever had it may have removed the file between the two lines above: then this is no lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(_me().encode())
                file.flush()
                return file
        file.close()


def _me() -> str:
    return f"process {os.getpid()} on {platform.node()}"


# --- steps --------------------------------------------------------------------------------------------------------


@contextmanager
def defer_signals() -> Iterator[list[int]]:
    """A block that Ctrl-C and SIGTERM do not cut in two: the first one waits in the list, for `signal.raise_signal`.

    A second one is not kept waiting. In other threads than the main one, which alone handles signals, none waits.
    """
    waiting: list[int] = []
    handlers = {}

    def wait(number: int, frame: object) -> None:
        if waiting:
            signal.signal(number, handlers[number])
            signal.raise_signal(number)
        waiting.append(number)

    if threading.current_thread() is threading.main_thread():
        installed = {number: signal.getsignal(number) for number in STOPS}
        handlers = {number: handler for number, handler in installed.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in handlers:
            signal.signal(number, wait)
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


# --- tensors: safetensors files with a header of JSON and a checksum of it all; opening one never executes anything ---

State = dict[str, Tensor]

CHECKSUM = "sha256 of this file with 64 zeros here"  # an entry of the header
BLANK = 64 * "0"
ENTRY = f'"{CHECKSUM}":"'.encode()  # how it stands there


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts about them; a crash or a full disk leaves what was at `path` before.

    Raises OSError where the file cannot be written and TypeError for a `meta` that is not JSON.
    """
    # Copies: safetensors wants every tensor contiguous, on the CPU and in memory of its own.
    dense = torch.contiguous_format
    copies = {name: tensor.detach().cpu().clone(memory_format=dense) for name, tensor in tensors.items()}
    header = {name: json.dumps(value) for name, value in meta.items()} | {CHECKSUM: BLANK}
    content = memoryview(safetensors.torch.save(copies, header))
    at = bytes(content[: _header_end(content)]).index(ENTRY + BLANK.encode()) + len(ENTRY)
    with replacing(Path(path)) as file:
        file.write(content[:at])
        file.write(hashlib.sha256(content).hexdigest().encode())
        file.write(content[at + len(BLANK) :])


def _header_end(start: bytes | memoryview) -> int:
    return 8 + int.from_bytes(start[:8], "little")


def load_tensors(path: str | Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the meta that `save_tensors` wrote, on the CPU.

    Raises FileNotFoundError for a missing file, ValueError for one that is truncated or not by `save_tensors`, and
    for one that has changed since. What another program wrote has no checksum, and is taken without.
    """
    with _opened(path) as (file, given, meta):
        state = {name: file.get_tensor(name) for name in file.keys()}
    if given is not None and _checksum(Path(path), given) != given:
        raise ValueError(f"{path} was damaged after it was written: its checksum does not fit")
    return state, meta


def load_meta(path: str | Path) -> dict[str, Any]:
    """The meta alone, without reading the tensors or checking them. Raises like `load_tensors`."""
    with _opened(path) as (_, _, meta):
        return meta


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[safetensors.safe_open, str | None, dict[str, Any]]]:
    """The file, the checksum in its header, if any, and the rest of the header."""
    try:
        with safetensors.safe_open(existing_file(path), framework="pt") as file:
            header = file.metadata() or {}
            given = header.pop(CHECKSUM, None)
            yield file, given, {name: json.loads(value) for name, value in header.items()}
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:  # the last two are of the JSON
        raise ValueError(f"{path} is truncated or is not one of our safetensors files: {error}") from error


def _checksum(path: Path, given: str) -> str:
    """Of the file as it was before the checksum was put in."""
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(_header_end(start) - 8)
        digest = hashlib.sha256(start + header.replace(ENTRY + given.encode(), ENTRY + BLANK.encode(), 1))
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights with their names, in hex."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def existing_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    return path
