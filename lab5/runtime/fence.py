"""A process for somebody else's code: limits of time, memory and file size, no network, no writing outside a folder.

    outcome = run_fenced("lab5.pitfalls.drive", [...], folder, Limits(seconds=60))

The module's `main` is called with the words, in `folder`, with an environment that has none of the user's variables.
What holds depends on the system: Linux keeps the network out by a namespace of its own and writing by Landlock; where
it cannot, Python's audit events alone refuse both, which stops accidents and not somebody who means to get out.
Everything that the user may read, the process may read. `docs/command-line.md` says so too.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from lab5.runtime.folders import ROOT

try:
    import resource
except ImportError:  # Windows
    resource = None

LOG = "log.txt"
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
# Landlock's system calls have these numbers on all machines but Alpha.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
NO_NEW_PRIVILEGES, PATH_BENEATH = 38, 1
EXECUTE, WRITE_FILE = 1 << 0, 1 << 1
REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE = 1 << 13, 1 << 14  # of its versions 2 and 3
SCOPED = 0b11  # no abstract sockets and no signals to those outside, of version 6

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
STARTS = {"subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn",
          "os.startfile", "pty.spawn"}  # fmt: skip
NETWORK = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}


class Limits(NamedTuple):
    seconds: float = 80.0
    memory: int = 8 << 30  # bytes of address space: torch itself takes two to three gigabytes
    file_size: int = 256 << 20


class Outcome(NamedTuple):
    """How the process ended; `log` is the end of what it printed."""

    code: int
    seconds: float
    in_time: bool
    log: str


def run_fenced(module: str, words: list[str], folder: Path, limits: Limits, threads: int = 1) -> Outcome:
    """Call `module.main(*words)` in a process of its own, in `folder`, and wait until it has ended or is ended.

    `folder` is the only place where it may write; what it prints goes to LOG there.
    """
    environment = {
        "PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg", "MPLCONFIGDIR": str(folder), "WANDB_MODE": "disabled",
    }  # fmt: skip
    if os.name == "nt":  # without it Python does not start there
        environment["SYSTEMROOT"] = os.environ.get("SYSTEMROOT", "")
    command = [sys.executable, "-m", "lab5.runtime.fence", json.dumps([str(folder), *limits]), module, *words]
    begun = time.monotonic()
    with (folder / LOG).open("w+b") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limits.seconds)
            in_time = True
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            _end(process)
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
        tail = log.read().decode("utf-8", "replace")
    return Outcome(process.returncode, time.monotonic() - begun, in_time, tail)


def _end(process: subprocess.Popen) -> None:
    """End the process, and whatever it may have begun."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


# --- within the process -------------------------------------------------------------------------------------------


def enter(folder: Path, limits: Limits) -> list[str]:
    """Close the fence around this process, which has one thread yet; return what the system keeps out by itself."""
    if resource is not None:
        for kind, limit in (
            (resource.RLIMIT_AS, limits.memory), (resource.RLIMIT_FSIZE, limits.file_size),
            (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, round(4 * limits.seconds) + 1),
        ):  # fmt: skip
            with contextlib.suppress(ValueError, OSError):  # macOS does not know the first
                resource.setrlimit(kind, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an OSError instead
    kept = [name for name, close in {"network": _no_network, "files": lambda: _no_writing(folder)}.items() if close()]
    sys.addaudithook(_refusals(folder))
    return kept


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _no_network() -> bool:
    """A network namespace with nothing in it, which needs a user namespace where one is not root."""
    libc = _libc()
    return libc is not None and (libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def _no_writing(folder: Path) -> bool:
    """Landlock: files are made, changed and removed beneath `folder` alone."""
    libc = _libc()
    version = libc.syscall(CREATE_RULESET, None, 0, 1) if libc is not None else -1
    if version < 3:  # before, files could be truncated
        return False
    handled = WRITE_FILE | EXECUTE | REMOVE_AND_MAKE | REFER | TRUNCATE
    rules = struct.pack("QQQ", handled, 0, SCOPED) if version >= 6 else struct.pack("Q", handled)
    ruleset = libc.syscall(CREATE_RULESET, rules, len(rules), 0)
    if ruleset < 0:
        return False
    for path, allowed in ((folder, handled & ~EXECUTE), (Path(os.devnull), WRITE_FILE | TRUNCATE)):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, place)
        failed = libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
        os.close(place)
        if failed:
            return False
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    closed = libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return closed


def _refusals(folder: Path) -> Any:
    """The hook that refuses, with a sentence, what the system might let through."""
    inside = os.path.realpath(folder) + os.sep
    free = {os.devnull, os.path.realpath(os.devnull)}

    def outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):  # an open file by its number
            return False
        real = os.path.realpath(os.fsdecode(path))
        return real not in free and not f"{real}{os.sep}".startswith(inside)

    def refuse(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = bool(flags & WRITING) if isinstance(flags, int) else set(mode or "r") & set("wax+")
            if written and outside(path):
                raise PermissionError(f"it wants to write {os.fsdecode(path)}, outside its folder")
        elif event in CHANGES and any(outside(path) for path in arguments[:2]):
            raise PermissionError(f"it wants to change {arguments[0]}, outside its folder")
        elif event in STARTS:
            raise PermissionError("it wants to start another program")
        elif event in NETWORK:
            raise PermissionError("it wants to use the network")
        elif event == "os.kill" and arguments[0] != os.getpid():
            raise PermissionError("it wants to end another process")

    return refuse


def main() -> None:
    setting, module, *words = sys.argv[1:]
    folder, *limits = json.loads(setting)
    socket.getdefaulttimeout()  # imported before the fence is closed: later it is a file to be found
    kept = enter(Path(folder), Limits(*limits))
    importlib.import_module(module).main(kept, *words)


if __name__ == "__main__":
    main()
