"""The C library's heap: what was freed in it goes back to the system.

Large temporary tensors leave holes between small ones that last. The holes stay resident, and a run
with other sizes does not fill them all.
"""

from __future__ import annotations

import ctypes


def trim_heap() -> None:
    """Give the free pages of the heap back, where the C library can (glibc); nothing else moves."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return
    trim.argtypes = (ctypes.c_size_t,)
    trim(0)
