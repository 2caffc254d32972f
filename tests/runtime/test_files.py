"""Files appear whole or not at all, one run works in a folder, no signal cuts a step in two, no bit changes unseen."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lab5.runtime import files
from lab5.runtime.files import defer_signals, load_meta, load_tensors, locked, replacing, save_tensors, write

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


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_and_meta_come_back(tmp_path):
    grid = torch.arange(12.0).view(3, 4)
    tensors = {
        "float": grid,
        "transposed": grid.T,
        "part": grid[1],
        "int": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "half": grid.to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "nan": torch.tensor(float("nan")),  # a training state may hold anything
    }
    meta = {"step": 12, "psnr": 30.5, "betas": [0.9, 0.96], "name": "Fréchet", "nothing": None, "a": {"b": True}}
    save_tensors(tmp_path / "new" / "state.safetensors", tensors, meta)
    state, again = load_tensors(tmp_path / "new" / "state.safetensors")
    assert again == meta and state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert state[name].dtype == tensor.dtype
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_the_header_is_readable_without_loading_tensors(tmp_path):
    save_tensors(tmp_path / "state", {"x": torch.zeros(2)}, {"seed": 5, "device": "cpu"})
    with safetensors.safe_open(tmp_path / "state", framework="pt") as file:
        header = file.metadata()
    assert len(header.pop(files.CHECKSUM)) == 64
    assert {name: json.loads(value) for name, value in header.items()} == {"seed": 5, "device": "cpu"}
    assert load_meta(tmp_path / "state") == {"seed": 5, "device": "cpu"}


@pytest.mark.parametrize("culprit", ["write", "fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, culprit):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"x": torch.ones(3)}, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    if culprit == "write":  # a disk that fills up half way

        class HalfWritten(type(path)):
            def open(self, mode):
                file = super().open(mode)
                file.write(b"half")
                file.flush()
                full()

        monkeypatch.setattr(files, "Path", HalfWritten)
    else:
        monkeypatch.setattr(os, culprit, full)
    with pytest.raises(OSError, match="state.safetensors could not be written and is as it was before: .*No space"):
        save_tensors(path, {"x": torch.zeros(3)}, {"step": 2})
    monkeypatch.undo()
    state, meta = load_tensors(path)
    assert state["x"].eq(1).all() and meta == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_before_it_replaces_the_old_file(tmp_path, monkeypatch):
    calls, path = [], tmp_path / "state"
    fsync, move = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(("fsync", os.fstat(file).st_size)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append(("replace", old.parent)) or move(old, new))
    save_tensors(path, {"x": torch.zeros(100)}, {})
    of_file, renamed, of_folder = calls
    assert (of_file, renamed) == (("fsync", path.stat().st_size), ("replace", tmp_path))
    assert of_folder == ("fsync", tmp_path.stat().st_size)


def test_no_single_bit_can_change_unnoticed(tmp_path):
    """In the length, the header, its padding, the checksum or the tensors."""
    path = tmp_path / "state"
    save_tensors(path, {"x": torch.ones(3, 2)}, {"step": 3, "zeros": files.BLANK})
    whole = path.read_bytes()
    assert load_tensors(path)[1] == {"step": 3, "zeros": files.BLANK}
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
    save_tensors(tmp_path / "state", {"x": torch.ones(3)}, {"step": 1})
    with pytest.raises(TypeError):
        save_tensors(tmp_path / "state", {"x": torch.zeros(3)}, {"step": object()})
    assert load_tensors(tmp_path / "state")[1] == {"step": 1}


def test_missing_truncated_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    for read in (load_tensors, load_meta):
        with pytest.raises(FileNotFoundError, match="there is no checkpoint at .*state.safetensors"):
            read(path)
    save_tensors(path, {"x": torch.ones(1000)}, {"step": 1})
    whole = path.read_bytes()
    for length in (0, 4, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        for read in (load_tensors, load_meta):
            with pytest.raises(ValueError, match="state.safetensors is truncated or is not one of our"):
                read(path)
    safetensors.torch.save_file({"x": torch.ones(2)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="is not one of our"):
        load_tensors(path)
