"""Where things stay: chosen by free memory, said with figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from avops.errors import UserError
from avops.knobs.residency import Need, Room, choose, host_memory

G = 1 << 30
NEED = Need(held=50 * G, buffers=G)


@pytest.mark.parametrize(
    ("free", "host", "kind"),
    [
        (80, 0, "device"),
        (59, 0, "device"),  # 51 and a tenth of 80
        (58, 200, "pinned"),
        (10, 57, "pinned"),  # 51 and a tenth of 57
        (10, 56, "disk"),
        (10, 0, "disk"),
    ],
)
def test_the_fastest_one_there_is_room_for(free: int, host: int, kind: str) -> None:
    found = choose("auto", NEED, Room(free * G, 80 * G, host * G))
    assert found.kind == kind
    assert "base and alignment vectors take 50.00 GiB" in found.reason
    assert f"{free}.00 GiB of device memory are free" in found.reason
    assert ("8.00 GiB kept for activations" in found.reason) == (kind != "device")


def test_little_is_left_alone_on_small_machines() -> None:
    need = Need(held=G, buffers=0)
    assert choose("auto", need, Room(2 * G, 4 * G, 0)).kind == "device"
    assert choose("auto", need, Room(2 * G - 1, 4 * G, 3 * G)).kind == "pinned"
    assert choose("auto", need, Room(2 * G - 1, 4 * G, 3 * G - 1)).kind == "disk"


def test_what_is_asked_for_is_done_or_refused() -> None:
    room = Room(51 * G, 80 * G, 50 * G)
    assert choose("device", NEED, room).kind == "device"
    assert choose("disk", NEED, Room(0, 0, 0)).kind == "disk"
    with pytest.raises(
        UserError, match=r"residency='pinned': base .* 50.00 GiB, but only 50.00 GiB of host"
    ):
        choose("pinned", NEED, room)
    with pytest.raises(UserError, match=r"residency='device': .* of device memory are free; use"):
        choose("device", NEED, Room(51 * G - 1, 80 * G, 0))


def test_the_hosts_memory_is_the_lesser_of_machine_and_control_group(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       9999 kB\nMemAvailable:       5000 kB\n")
    group = tmp_path / "group"
    assert host_memory(meminfo, group) == 5000 * 1024
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert host_memory(meminfo, group) == 5000 * 1024
    (group / "memory.max").write_text("3000\n")
    assert host_memory(meminfo, group) == 2000
    (group / "memory.stat").write_text("anon 7\ninactive_file 500\n")
    assert host_memory(meminfo, group) == 2500
    (group / "memory.current").write_text("9000\n")
    assert host_memory(meminfo, group) == 0
    assert host_memory(tmp_path / "none", tmp_path) > 0
    assert host_memory() > 0
