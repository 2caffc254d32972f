"""Independent pieces of work, one after the other or over several processes, each of which takes the next GPU.

A piece has to keep its own result where it matters: when a process is killed, the pieces that were done stay done.
"""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from lab5.runtime.ranks import alone, here

Item = TypeVar("Item")
_shared: Any = None  # of a worker process: what all its pieces need, sent to it once


def run_parallel(
    work: Callable[[Any, Item], Any], shared: Any, items: Sequence[Item], jobs: int = 1
) -> Iterator[tuple[int, Any]]:
    """(number, work(shared, item)) of every item: in order in this process, or as they are done by `jobs` others.

    Among several ranks the items are dealt out; then each goes through all of them, and finds what `work` has kept.
    The threads are divided among the processes. `work` must be a function of a module, and everything picklable: it
    goes to and fro as bytes, because torch would pass each tensor as an open file, of which a shell allows 1024.
    Raises ValueError for jobs below 1, what `work` raises, and ChildProcessError where a process dies.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    ranks = here()
    if ranks.world > 1:
        for number in ranks.deal(len(items)):
            with alone():
                work(shared, items[number])
        ranks.wait()
        for number, item in enumerate(items):
            with alone():
                result = work(shared, item)
            yield number, result
        return
    if jobs == 1 or len(items) < 2:
        for number, item in enumerate(items):
            yield number, work(shared, item)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    # A fresh process each: a fork of one that has used threads or a GPU can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin,
        initargs=(pickle.dumps(shared), threads, visible_cards(), context.Value("i", 0)),
    )  # fmt: skip
    try:
        numbers = {pool.submit(_one, work, item): number for number, item in enumerate(items)}
        for future in as_completed(numbers):
            yield numbers.pop(future), pickle.loads(future.result())
    except BrokenProcessPool as error:
        again = "run again to go on from what is done, with fewer jobs if it recurs"
        raise ChildProcessError(f"a worker process died, perhaps for lack of memory: {again}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def visible_cards() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _begin(shared: bytes, threads: int, cards: list[str], begun: Any) -> None:
    global _shared
    with begun.get_lock():  # a number that the others have counted up
        first = begun.value % max(1, len(cards))
        begun.value += 1
    if len(cards) > 1:  # before CUDA looks: the first of them is what "cuda" means here, to tensors that come too
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(cards[first:] + cards[:first])
    _shared = pickle.loads(shared)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """Where a parent is killed, its workers would finish their pieces and then wait for others for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _one(work: Callable[[Any, Item], Any], item: Item) -> bytes:
    return pickle.dumps(work(_shared, item))
