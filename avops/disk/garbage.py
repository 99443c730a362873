"""Python's collector of cycles, paused while very many objects are made that form none.

It would walk through all tensors of a model each time their number has grown by a quarter.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Pause the collector, if it is on. May be nested, and entered by several threads."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
