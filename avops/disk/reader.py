"""Positioned reads that are complete or fail."""

from __future__ import annotations

import os

from avops.errors import AvopsError, CheckpointError

# Linux moves at most 2 GiB - 4 KiB per call.
_MAX_CALL = 1 << 30


def read_exactly(fd: int, buffer: bytearray | memoryview, offset: int, where: str) -> None:
    """Fill ``buffer`` from ``fd`` at ``offset`` bytes, whatever the system call returns at once.

    Raises CheckpointError when the file ends early, AvopsError on an I/O error; both name
    ``where``.
    """
    view = memoryview(buffer).cast("B")
    done = 0
    while done < len(view):
        try:
            got = os.preadv(fd, [view[done : done + _MAX_CALL]], offset + done)
        except OSError as error:
            raise AvopsError(
                f"{where}: reading at byte {offset + done} failed: {error.strerror}; "
                "check the disk, then run the command again"
            ) from None
        if got == 0:
            raise CheckpointError(
                f"{where}: ended at byte {offset + done}, expected {offset + len(view)}: "
                "the file changed while it was read; run the command again"
            )
        done += got
