"""One thread at a time: while avops runs a model, its attention and some forwards are not its own.

Scoring sets the attention implementation in a model's configs and other forwards on its modules,
and sets them back. A second thread that began meanwhile would take what the first has put there
for the model's own. So threads take turns, by config: models made from one config object share
what is set there.

Only avops's own calls take turns. To a thread that calls a model itself, replaced forwards are the
model's own (``forwards.replaced``), and the replaced attention is an error that says so. A thread
that holds ``knobs.lock`` takes it before its turn, never within.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from avops.errors import UserError
from avops.score.forwards import uncompiled

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Turn:
    """Whose turn it is: ``owner`` is a thread's number, or None."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: int | None = None


_TURNS: dict[int, _Turn] = {}
"""By the id of a config that lives."""

_TABLE = threading.Lock()


@contextmanager
def turn(model: Any) -> Iterator[None]:
    """Within the context, no other thread is in such a context of ``model``: it waits.

    Nor does the model run compiled code (``forwards.py``).
    Raises UserError where the thread itself is in one: what is set there would be taken for the
    model's own.
    """
    own = _turn_of(model.config)
    me = threading.get_ident()
    if own.owner == me:
        raise UserError(
            f"{type(model).__name__}: it is to be run by avops within a run of its own, as a "
            "progress callback would; expected one run after the other: begin when run() is done"
        )
    with own.lock:
        own.owner = me
        try:
            with uncompiled(model):
                yield
        finally:
            own.owner = None


def _turn_of(config: Any) -> _Turn:
    with _TABLE:
        found = _TURNS.get(id(config))
        if found is None:
            found = _TURNS[id(config)] = _Turn()
            # An id may come again when its object is gone.
            weakref.finalize(config, _TURNS.pop, id(config))
        return found
