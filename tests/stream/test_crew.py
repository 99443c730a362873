"""A crew of threads: every item once, the first error ends it, an interrupt gets through."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from avops.stream.crew import work_off


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_every_item_once(threads: int, count: int) -> None:
    done: list[int] = []
    makers: list[int] = []
    seen: list[tuple[int, int]] = []

    def worker() -> Callable[[int], int]:
        makers.append(threading.get_ident())

        def do(item: int) -> int:
            done.append(item)
            return item

        return do

    total = sum(range(count))
    work_off(
        range(count), worker, threads=threads, total=total, progress=lambda *now: seen.append(now)
    )
    assert sorted(done) == list(range(count))
    assert 1 <= len(makers) <= threads
    assert len(seen) == count
    assert seen == sorted(seen)
    assert not count or seen[-1] == (total, total)


def test_the_first_error_ends_it() -> None:
    done: list[int] = []

    def do(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        done.append(item)
        time.sleep(0.001)
        return 0

    with pytest.raises(ValueError, match="three"):
        work_off(iter(range(100_000)), lambda: do, threads=3)
    assert len(done) < 1000


def test_errors_of_the_list_and_of_the_maker() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("list")

    def broken() -> Callable[[int], int]:
        raise KeyError("maker")

    with pytest.raises(KeyError, match="list"):
        work_off(items(), lambda: lambda item: item, threads=2)
    with pytest.raises(KeyError, match="maker"):
        work_off([1, 2], broken, threads=2)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where it is ignored: a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_gets_through() -> None:
    begun = threading.Event()

    def do(_item: int) -> int:
        begun.set()
        time.sleep(0.005)
        return 0

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        work_off(iter(range(100_000)), lambda: do, threads=2)
    thread.join()
    # All items would take 250 s, and a wait between two looks at signals takes 0.2 s.
    assert time.perf_counter() - start < 60
