"""The lock between forwards, which share it, and ``set``, which has it alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from avops.errors import AvopsError


class SharedLock:
    """``with lock:`` around a forward. Any number of threads may be inside; ``set`` waits for them.

    Re-entrant. A thread that is inside may call ``set`` itself: it then waits for the others only.
    A waiting ``set`` goes before forwards that have not begun, so that it is not put off for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._owner: int | None = None
        self._depth = 0
        self._waiting: list[int] = []

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while not self._may_share(me):
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
            self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The lock for one thread alone.

        Raises AvopsError where two threads that are both inside wait for each other to leave.
        """
        me, mine = threading.get_ident(), False
        try:
            with self._changed:
                if me in self._inside and any(other in self._inside for other in self._waiting):
                    raise AvopsError(
                        "two threads call Knobs.set() while both hold knobs.lock, so each would "
                        "wait for the other for ever; call set() outside of `with knobs.lock`"
                    )
                self._waiting.append(me)
                try:
                    while not self._may_own(me):
                        self._changed.wait()
                    self._owner, self._depth, mine = me, self._depth + 1, True
                finally:
                    self._waiting.remove(me)
                    self._changed.notify_all()
            yield
        finally:
            # Also where Ctrl-C comes between the two: it would be nobody's for ever.
            if mine:
                with self._changed:
                    self._depth -= 1
                    self._owner = me if self._depth else None
                    self._changed.notify_all()

    def _may_share(self, me: int) -> bool:
        if me in self._inside or self._owner == me:
            return True
        return self._owner is None and not self._waiting

    def _may_own(self, me: int) -> bool:
        return self._owner in (None, me) and not any(other != me for other in self._inside)
