"""One writer for a run directory, held by the system: a killed process holds nothing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import ClassVar

from avops.errors import OutputError


class WriterLock:
    """The lock of a directory, from ``take`` to ``release``."""

    FILE: ClassVar[str] = "writer.lock"

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, directory: Path) -> WriterLock:
        """Raises OutputError while another process (or store of this one) holds it."""
        try:
            fd = os.open(directory / cls.FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(
                f"{directory}: cannot be written: {error.strerror}; give --run another name"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "?"
            os.close(fd)
            raise OutputError(
                f"{directory}: another run (process {holder}) is writing it; wait for it, or give "
                "--run another name"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd)

    def release(self) -> None:
        """Let others write."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
