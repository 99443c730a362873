"""Where the base and the alignment vectors of a device's tensors stay: chosen by free memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from avops.errors import UserError

_GIB = 1 << 30
# Left alone on the device, for activations and caches: a tenth of it, and at least this much.
_DEVICE_SPARE = _GIB
# Left alone of the host's available memory: a tenth, and at least this much.
_HOST_SPARE = 2 * _GIB


@dataclass(frozen=True)
class Choice:
    """kind: ``device``, ``pinned`` or ``disk``. reason: why, with figures."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True)
class Need:
    """Bytes that holding takes. held: base and vectors. buffers: beside them, on either side."""

    held: int
    buffers: int


@dataclass(frozen=True)
class Room:
    """Bytes there are: free on the device, all of the device, available on the host."""

    free: int
    total: int
    host: int

    @property
    def device(self) -> int:
        """What may be taken of the device."""
        return self.free - max(_DEVICE_SPARE, self.total // 10)

    @property
    def pinned(self) -> int:
        """What may be pinned of the host."""
        return self.host - max(_HOST_SPARE, self.host // 10)


def choose(wanted: str, need: Need, room: Room) -> Choice:
    """The residency: ``wanted``, or where it is ``auto`` the fastest one that there is room for.

    Raises UserError where what is wanted cannot fit at all.
    """
    total = need.held + need.buffers
    size = f"base and alignment vectors take {_gib(need.held)}"
    device = f"{_gib(room.free)} of device memory are free"
    host = f"{_gib(room.host)} of host memory are available"
    if wanted != "auto":
        there = {"device": room.free, "pinned": room.host}.get(wanted, total)
        if total > there:
            free = device if wanted == "device" else host
            raise UserError(
                f"residency={wanted!r}: {size}, but only {free}; use residency='auto', or free "
                "some memory"
            )
        return Choice(wanted, f"asked for; {size}")
    if total <= room.device:
        return Choice("device", f"{size}, {device}")
    spare = f"too little with {_gib(room.free - room.device)} kept for activations"
    if total <= room.pinned:
        return Choice("pinned", f"{size}, {device}, {spare}; {host}")
    return Choice("disk", f"{size}, {device}, {spare}; {host}, too little as well")


def host_memory(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: of the machine, and of its control group."""
    machine = _meminfo(meminfo)
    limit = _number(group / "memory.max")
    used = _number(group / "memory.current")
    if limit is None or used is None:
        return machine
    # Its page cache counts as used, and goes when memory is needed.
    return max(0, min(machine, limit - used + _cached(group / "memory.stat")))


def _meminfo(path: Path) -> int:
    for line in _lines(path):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cached(path: Path) -> int:
    found = [line for line in _lines(path) if line.startswith("inactive_file ")]
    return sum(int(line.split()[1]) for line in found)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _gib(nbytes: int) -> str:
    return f"{nbytes / _GIB:.2f} GiB"
