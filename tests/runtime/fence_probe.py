"""What a process within the fence is asked to try; it writes down how each attempt ended."""

import ctypes
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path


def main(kept: list[str], deed: str, outside: str) -> None:
    deeds = {
        "write": lambda: Path(outside).write_text("gone"),
        "append": lambda: open(outside, "a").close(),
        "remove": lambda: os.remove(outside),
        "rename": lambda: os.rename(outside, "mine"),
        "folder": lambda: shutil.rmtree(Path(outside).parent),
        "link out": lambda: (os.symlink(Path(outside).parent, "link"), Path("link", "new").write_text("x")),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        "program": lambda: subprocess.run(["true"], check=True),
        "fork": os.fork,
        "parent": lambda: os.kill(os.getppid(), 9),
        "write in C": lambda: _in_c(outside),
        "memory": lambda: bytearray(1 << 40),
        "large file": lambda: Path("large").write_bytes(bytes(3 << 20)),
    }
    if deed == "exit":
        os._exit(7)
    if deed == "loop":
        while True:
            time.sleep(0.01)
    answers = {"kept": kept, "environment": sorted(os.environ)}
    for name, attempt in deeds.items():
        try:
            attempt()
            answers[name] = "done"
        except BaseException as error:
            answers[name] = f"{type(error).__name__}: {error}"
    Path("answers.json").write_text(json.dumps(answers))  # inside, it may
    print("the end")


def _in_c(path: str) -> None:
    """Past Python's audit events."""
    file = ctypes.CDLL(None, use_errno=True).open(path.encode(), os.O_WRONLY | os.O_TRUNC)
    if file < 0:
        raise OSError(ctypes.get_errno(), "not in C either")
