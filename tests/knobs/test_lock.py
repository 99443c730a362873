"""The shared lock: forwards together, set alone, no deadlock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from avops.errors import AvopsError
from avops.knobs.lock import SharedLock


def start(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_forwards_are_inside_together() -> None:
    lock, together = SharedLock(), threading.Barrier(3, timeout=30)

    def forward() -> None:
        with lock:
            together.wait()

    threads = [start(forward) for _ in range(2)]
    with lock:
        together.wait()
    for thread in threads:
        thread.join(30)


def test_one_that_wants_it_alone_waits_for_the_others_and_goes_before_new_ones() -> None:
    lock, order, leave = SharedLock(), [], threading.Event()

    def forward() -> None:
        with lock:
            order.append("in")
            leave.wait(30)
            order.append("out")

    def alone() -> None:
        with lock.alone():
            order.append("alone")

    def late() -> None:
        with lock:
            order.append("late")

    first = start(forward)
    until(lambda: order == ["in"])
    second = start(alone)
    until(lambda: bool(lock._waiting))
    third = start(late)
    time.sleep(0.02)
    assert order == ["in"]
    leave.set()
    for thread in (first, second, third):
        thread.join(30)
    assert order == ["in", "out", "alone", "late"]


def test_a_thread_that_is_inside_may_have_it_alone() -> None:
    lock = SharedLock()
    with lock, lock, lock.alone(), lock.alone(), lock:
        pass
    done = []

    def alone() -> None:
        with lock.alone():
            done.append(1)

    start(alone).join(30)
    assert done


def test_two_threads_that_would_wait_for_each_other_are_told() -> None:
    lock, inside = SharedLock(), threading.Barrier(2, timeout=30)
    failed: list[str] = []

    def upgrade() -> None:
        try:
            with lock:
                inside.wait()
                with lock.alone():
                    pass
        except AvopsError as error:
            failed.append(str(error))

    threads = [start(upgrade) for _ in range(2)]
    for thread in threads:
        thread.join(30)
    assert len(failed) == 1
    assert "call set() outside of `with knobs.lock`" in failed[0]


def test_an_error_inside_leaves_it_free() -> None:
    lock = SharedLock()
    for held in (lock, lock.alone()):
        with pytest.raises(ZeroDivisionError), held:
            raise ZeroDivisionError
    entered = []

    def enter() -> None:
        with lock.alone():
            entered.append(1)

    start(enter).join(30)
    assert entered


def test_an_interrupt_while_it_is_taken_leaves_it_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between taking it and the block: it would be nobody's for ever."""
    lock = SharedLock()
    notify = lock._changed.notify_all

    def interrupted() -> None:
        monkeypatch.setattr(lock._changed, "notify_all", notify)
        raise KeyboardInterrupt

    monkeypatch.setattr(lock._changed, "notify_all", interrupted)
    with pytest.raises(KeyboardInterrupt), lock.alone():
        raise AssertionError("the block was entered")
    entered = []

    def enter() -> None:
        with lock:
            entered.append(1)

    start(enter).join(30)
    assert entered
