"""Files appear whole or not at all, one run at a time works in a folder, and no signal cuts a step in two."""

import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab5.runtime.files import defer_signals, locked, replacing, write

ROOT = Path(__file__).parents[2]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"one", b"another", b""):
        write(path, content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_until_the_block_ends_everybody_sees_the_old_file(tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_on_the_way_leaves_the_old_file_and_nothing_beside_it(error, tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_file_and_leaves_the_old_one(disk_of, tmp_path):
    path = tmp_path / "file"
    write(path, b"old")
    with disk_of(1000), pytest.raises(OSError, match=r"/file could not be written and is as it was before: \[Errno"):
        write(path, bytes(5000))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_told_and_left_alone(tmp_path):
    (tmp_path / "no folder").write_bytes(b"a file")
    with pytest.raises(OSError, match="no folder/file could not be written and is as it was before: .*exist|Not a dir"):
        write(tmp_path / "no folder" / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["no folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_leave_to_write_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match="could not be written and is as it was before: .*Permission denied"):
            write(tmp_path / "file", b"new")
    finally:
        tmp_path.chmod(0o700)


def test_what_a_killed_process_leaves_is_removed_and_what_others_are_writing_is_not(tmp_path):
    path, here = tmp_path / "file", platform.node()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, writing, elsewhere, another = (
        tmp_path / name
        for name in (
            f".file.{here}.{ended.pid}.part", f".file.{here}.{os.getppid()}.part",
            f".file.far-away.{ended.pid}.part", f".file-2.{here}.{ended.pid}.part",
        )
    )  # fmt: skip
    for part in (left, writing, elsewhere, another):
        part.write_bytes(b"half")
    write(path, b"new")
    assert sorted(tmp_path.iterdir()) == sorted([path, writing, elsewhere, another])


def test_two_processes_that_write_the_same_file_leave_one_of_the_two_whole(tmp_path):
    code = "import sys; from lab5.runtime.files import write; from pathlib import Path\n" \
           "for _ in range(50): write(Path(sys.argv[1]), sys.argv[2].encode() * 200_000)"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file"), x], cwd=ROOT) for x in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "file").exists():
            seen.add((tmp_path / "file").read_bytes())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {b"a" * 200_000, b"b" * 200_000} and seen
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- folders ----------------------------------------------------------------------------------------------------------


HOLD = """
import sys, time; from lab5.runtime.files import locked; from pathlib import Path
with locked(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(folder: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"here\n"
            yield holder
        finally:
            holder.kill()


def test_a_second_run_is_told_who_is_there_and_what_to_do(tmp_path):
    folder = tmp_path / "run"
    with held_elsewhere(folder) as holder:
        sentence = f"run is in use by process {holder.pid} on {platform.node()}: wait for it, or stop it"
        with pytest.raises(OSError, match=sentence), locked(folder):
            pass


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    with held_elsewhere(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert (tmp_path / ".lock").exists(), "it had no time to tidy up"
        with locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_given_back_after_an_error_and_leaves_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError), locked(tmp_path):
            raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_this_very_process_is_told_that_it_is_itself(tmp_path):
    with locked(tmp_path), pytest.raises(OSError, match=r"this one: leave its loop first"), locked(tmp_path):
        pass


def test_of_many_that_want_a_folder_only_one_is_in_it(tmp_path):
    """Each holder writes its number, waits and reads: nobody else may have been there."""
    code = """
import sys, time; from lab5.runtime.files import locked; from pathlib import Path
folder, done = Path(sys.argv[1]), 0
while done < 20:
    try:
        with locked(folder):
            (folder / "who").write_text(sys.argv[2])
            time.sleep(0.001)
            assert (folder / "who").read_text() == sys.argv[2]
            done += 1
    except OSError:
        pass
"""
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)], cwd=ROOT) for i in range(3)]
    assert [process.wait(timeout=60) for process in several] == [0, 0, 0]


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block_and_handlers_are_as_before(number):
    came = []
    before = signal.signal(number, lambda *_: came.append(number))
    try:
        with defer_signals() as waiting:
            signal.raise_signal(number)
            assert waiting == [number] and came == []
        signal.raise_signal(waiting[0])
        assert came == [number]
    finally:
        signal.signal(number, before)


def test_a_second_signal_does_not_wait():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), defer_signals() as waiting:
            signal.raise_signal(signal.SIGINT)
            assert waiting
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with defer_signals() as waiting:
            signal.raise_signal(signal.SIGINT)
        assert waiting == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_waits_and_nothing_fails():
    found = []

    def work():
        with defer_signals() as waiting:
            found.append(waiting)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


