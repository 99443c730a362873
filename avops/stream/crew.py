"""A crew of threads that works off a list of independent items."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Progress = Callable[[int, int], None]
Item = TypeVar("Item")


def work_off(
    items: Iterable[Item],
    worker: Callable[[], Callable[[Item], int]],
    *,
    threads: int,
    progress: Progress | None = None,
    total: int = 0,
) -> None:
    """Hand ``items``, in order, to ``threads`` threads.

    ``worker()`` runs once in each thread and makes what does one item and returns its bytes.
    ``progress(done, total)`` gets their sum. The first error stops all threads and is raised; an
    interrupt does the same.
    """
    queue, lock, stop = iter(items), threading.Lock(), threading.Event()
    done = 0

    def run() -> None:
        nonlocal done
        do = worker()
        while not stop.is_set():
            with lock:
                try:
                    item = next(queue)
                except StopIteration:
                    return
            nbytes = do(item)
            with lock:
                done += nbytes
                if progress is not None:
                    progress(done, total)

    with ThreadPoolExecutor(threads, thread_name_prefix="avops") as pool:
        try:
            waiting = {pool.submit(run) for _ in range(threads)}
            while waiting:
                # A signal's handler runs between waits, however the threads are scheduled.
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
        except BaseException:
            stop.set()
            raise
