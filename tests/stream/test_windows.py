"""Windows: every byte of every output belongs to exactly one, whatever straddles their borders."""

from __future__ import annotations

from pathlib import Path

import pytest

from avops.disk.source import Identity
from avops.dtypes import BF16, DTYPES, F32, DType
from avops.stream import windows as module
from avops.stream.plan import Input, Output, Plan, Range, Segment
from avops.stream.windows import windows

U8 = DTYPES["U8"]


def segment(name: str, count: int, offset: int, dtype: DType, output: int = 0) -> Segment:
    operation = "copy" if dtype == U8 else "combine"
    return Segment(operation, name, count, Range(0, 0, dtype), (), output, offset, dtype)


def plan_of(*segments: Segment, sizes: tuple[int, ...], head: int = 5) -> Plan:
    outputs = tuple(Output(f"{i}", b"h" * head, size) for i, size in enumerate(sizes))
    return Plan((Input(Path("x"), Identity(0, 0, 0, 0)),), outputs, segments)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64, 1000])
def test_every_byte_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Data starts at byte 5, so that elements of 2 and 4 bytes straddle windows of any size."""
    monkeypatch.setattr(module, "BLOCK", size)
    segments = (
        segment("a", 9, 5, BF16),
        segment("empty", 0, 23, F32),
        segment("b", 4, 23, F32),
        segment("c", 3, 39, U8),
        segment("d", 6, 5, F32, output=1),
    )
    plan = plan_of(*segments, sizes=(42, 29))
    covered = {(output, byte): 0 for output, end in ((0, 42), (1, 29)) for byte in range(5, end)}
    counted: dict[str, set[int]] = {s.tensor: set() for s in segments}
    total = dict.fromkeys(counted, 0)
    blocks = []
    for window in windows(plan):
        blocks.append((window.output, window.block))
        assert window.start == window.block * size
        assert window.start + window.nbytes == min(
            plan.outputs[window.output].size, window.start + size
        )
        for piece in window.pieces:
            item = piece.segment
            width = 1 if item.operation == "copy" else item.dtype.size
            first = item.offset + piece.first * width + piece.skip
            assert first == window.start + piece.at
            assert piece.skip + piece.nbytes <= piece.count * width
            for byte in range(first, first + piece.nbytes):
                covered[window.output, byte] += 1
            if piece.counted:
                counted[item.tensor] |= set(range(piece.first, piece.first + piece.count))
                total[item.tensor] += piece.count
    assert set(covered.values()) == {1}
    assert blocks == sorted(set(blocks))
    for item in segments:
        assert counted[item.tensor] == set(range(item.count))
        assert total[item.tensor] == item.count


def test_segments_come_in_the_order_of_the_file() -> None:
    plan = plan_of(segment("late", 4, 13, BF16), segment("early", 4, 5, BF16), sizes=(21,))
    (window,) = windows(plan)
    assert [piece.segment.tensor for piece in window.pieces] == ["early", "late"]


def test_an_empty_file_has_no_windows() -> None:
    assert list(windows(plan_of(sizes=(0,), head=0))) == []
