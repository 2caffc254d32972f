"""Files appear whole or not at all, one run works in a folder, no signal cuts a step in two, no bit changes unseen."""

import os
import platform
import re
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from stubs import PROCESSES, started

from lab5.runtime import files
from lab5.runtime.files import STOPS, defer_signals, load_meta, load_tensors, locked, replacing, save_tensors, write

# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    for content in (b"one", b"another", b""):
        write(path, content)
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


def test_until_the_block_ends_everybody_sees_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@contextmanager
def as_it_was(path: Path):
    """What goes wrong in the block leaves the old file, and nothing beside it."""
    path.write_bytes(b"old")
    yield
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_on_the_way_leaves_the_old_file_and_nothing_beside_it(error, tmp_path):
    with as_it_was(tmp_path / "file"), pytest.raises(type(error)), replacing(tmp_path / "file") as file:
        file.write(b"half of the n")
        raise error


@pytest.mark.parametrize("culprit", ["fsync", "replace"])
def test_a_failing_write_is_told_with_the_file_and_leaves_the_old_one(culprit, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, culprit, full)
    sentence = "/file could not be written and is as it was before: .*No space"
    with as_it_was(tmp_path / "file"), pytest.raises(OSError, match=sentence):
        write(tmp_path / "file", b"new")


def test_the_content_is_on_disk_before_it_replaces_the_old_file(tmp_path, monkeypatch):
    calls, path, fsync, move = [], tmp_path / "file", os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(("fsync", os.fstat(file).st_ino)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append(("replace", old.parent)) or move(old, new))
    write(path, bytes(100))
    assert calls == [("fsync", path.stat().st_ino), ("replace", tmp_path), ("fsync", tmp_path.stat().st_ino)]


def test_a_full_disk_is_told_with_the_file_and_leaves_the_old_one(disk_of, tmp_path):
    sentence = r"/file could not be written and is as it was before: \[Errno"
    with as_it_was(tmp_path / "file"), pytest.raises(OSError, match=sentence), disk_of(1000):
        write(tmp_path / "file", bytes(5000))


def test_a_folder_that_cannot_be_written_is_told_and_left_alone(tmp_path):
    with as_it_was(tmp_path / "no folder"), pytest.raises(OSError, match="file could not be written"):
        write(tmp_path / "no folder" / "file", b"new")


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_leave_to_write_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="could not be written and is as it was before: .*Permission denied"):
        write(tmp_path / "file", b"new")


def test_what_a_killed_process_leaves_is_removed_and_what_others_are_writing_is_not(tmp_path):
    here, ended = platform.node(), started(str)
    ended.join()
    left, *others = (tmp_path / f".{name}.part" for name in (
        f"file.{here}.{ended.pid}", f"file.{here}.{os.getppid()}", f"file.far-away.{ended.pid}",
        f"file-2.{here}.{ended.pid}",
    ))  # fmt: skip
    for part in (left, *others):
        part.write_bytes(b"half")
    write(tmp_path / "file", b"new")
    assert set(tmp_path.iterdir()) == {tmp_path / "file", *others}


def write_often(path: Path, content: bytes) -> None:
    for _ in range(50):
        write(path, content)


def test_two_processes_that_write_the_same_file_leave_one_of_the_two_whole(tmp_path):
    path, contents = tmp_path / "file", {b"a" * 200_000, b"b" * 200_000}
    writers = [started(write_often, path, content) for content in contents]
    running = True
    while running:  # and once more when they have ended
        running = any(writer.is_alive() for writer in writers)
        assert not path.exists() or path.read_bytes() in contents
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


# --- folders ----------------------------------------------------------------------------------------------------------


def hold(folder: Path, pipe) -> None:
    with locked(folder):
        pipe.send("here")
        pipe.recv()


@contextmanager
def held_elsewhere(folder: Path):
    ours, theirs = PROCESSES.Pipe()
    holder = started(hold, folder, theirs)
    theirs.close()
    try:
        assert ours.recv() == "here"
        yield holder
    finally:
        holder.kill()
        holder.join()


def test_a_second_run_is_told_who_is_there_and_what_to_do(tmp_path):
    with held_elsewhere(tmp_path / "run") as holder:
        sentence = f"run is in use by process {holder.pid} on {re.escape(platform.node())}: wait for it, or stop it"
        with pytest.raises(OSError, match=sentence), locked(tmp_path / "run"):
            pass


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    with held_elsewhere(tmp_path) as holder:
        holder.kill()
        holder.join()
        assert (tmp_path / ".lock").exists(), "it had no time to tidy up"
        with locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_given_back_after_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path), pytest.raises(OSError, match=r"this one: leave its loop first"), locked(tmp_path):
        pass


def take_turns(folder: Path, name: str) -> None:
    """Write a name, wait and read it: nobody else may have been there."""
    turns = 0
    while turns < 20:
        with suppress(OSError), locked(folder):
            (folder / "who").write_text(name)
            time.sleep(0.001)
            assert (folder / "who").read_text() == name
            turns += 1


def test_of_many_that_want_a_folder_only_one_is_in_it(tmp_path):
    several = [started(take_turns, tmp_path, name) for name in "abc"]
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0, 0, 0]


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def handle():
    """`handle(number, handler)`, until the test ends."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield signal.signal
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_waits_for_the_end_of_the_block_and_handlers_are_as_before(number, handle):
    came = []
    handle(number, lambda *_: came.append(number))
    with defer_signals() as waiting:
        signal.raise_signal(number)
        assert waiting == [number] and came == []
    signal.raise_signal(waiting[0])
    assert came == [number]


def test_a_second_signal_does_not_wait(handle):
    handle(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), defer_signals() as waiting:
        signal.raise_signal(signal.SIGINT)
        assert waiting
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored(handle):
    handle(signal.SIGINT, signal.SIG_IGN)
    with defer_signals() as waiting:
        signal.raise_signal(signal.SIGINT)
    assert waiting == []


def test_in_another_thread_nothing_waits_and_nothing_fails():
    found = []

    def work():
        with defer_signals() as waiting:
            found.append(waiting)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_and_meta_come_back(tmp_path):
    path, grid = tmp_path / "new" / "state.safetensors", torch.arange(12.0).view(3, 4)
    tensors = {
        "float": grid, "transposed": grid.T, "part": grid[1], "half": grid.to(torch.bfloat16), "int": torch.tensor(7),
        "bool": torch.tensor([True, False]), "empty": torch.zeros(0, 3),
        "nan": torch.tensor(float("nan")),  # a training state may hold anything
    }  # fmt: skip
    meta = {"step": 12, "psnr": 30.5, "betas": [0.9, 0.96], "name": "Fréchet", "nothing": None, "a": {"b": True}}
    save_tensors(path, tensors, meta)
    state, again = load_tensors(path)
    assert again == meta == load_meta(path)
    torch.testing.assert_close(state, tensors, rtol=0, atol=0, equal_nan=True)


def test_no_single_bit_can_change_unnoticed(tmp_path):
    """In the length, the header, its padding, the checksum or the tensors."""
    path, meta = tmp_path / "state", {"step": 3, "zeros": files.BLANK}
    save_tensors(path, {"x": torch.ones(3, 2)}, meta)
    assert load_tensors(path)[1] == meta
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):  # 7 and 8 have no common divisor: every bit of a byte has its turn
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="state (was damaged after it was written|is truncated or is not one)"):
            load_tensors(path)


def test_files_of_other_programs_have_no_checksum_and_are_taken(tmp_path):
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "state", {"format": '"pt"'})
    assert load_tensors(tmp_path / "state")[1] == {"format": "pt"}


def test_meta_that_is_not_json_leaves_the_old_file(tmp_path):
    with as_it_was(tmp_path / "state"), pytest.raises(TypeError):
        save_tensors(tmp_path / "state", {"x": torch.zeros(3)}, {"step": object()})


@pytest.mark.parametrize("read", [load_tensors, load_meta])
def test_missing_truncated_and_foreign_files_are_refused(read, tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at .*state.safetensors"):
        read(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path, {"format": "pt"})  # which is no JSON
    foreign = path.read_bytes()
    save_tensors(path, {"x": torch.ones(1000)}, {"step": 1})
    whole = path.read_bytes()
    for content in (foreign, *(whole[:length] for length in (0, 4, 40, len(whole) - 1))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="state.safetensors is truncated or is not one of our"):
            read(path)
