"""The engine's native functions: what they are given is checked, and their digest is right."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from avops.kernels import extension
from avops.stream import engine

pytestmark = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("engine_work.h", f"kScratch = 1 << {engine.SCRATCH.bit_length() - 1}, "),
        ("engine_piece.h", "kStrip = 512, kDeltas = 1 << 15, kDeltasOfOne = 4 * kStrip;"),
        ("engine_plan.h", f"kGroup = {engine.GROUP};"),
    ],
)
def test_what_takes_memory_is_as_large_there(file: str, line: str) -> None:
    assert engine._DELTAS == (1 << 15) * 4
    assert engine._DELTAS_OF_ONE == 4 * 512 * 4
    assert line in (Path(__file__).parents[2] / "csrc" / file).read_text(encoding="utf-8")


def test_the_digest_is_the_packages() -> None:
    assert extension.NATIVE is not None
    data = np.random.default_rng(0).bytes(1 << 20)
    lengths = [*range(241, 2500), 4096, 65_535, 100_003, (1 << 20) - 1, 1 << 20]
    for length in lengths:
        part = data[-length:]
        assert extension.NATIVE.digest(part) == xxhash.xxh3_128_digest(part), length
    with pytest.raises(ValueError, match=r"digest\(\) of 240 bytes, expected 241 or more"):
        extension.NATIVE.digest(data[:240])


TERM = ((0, 400, 0), (0.5,), False)
SEGMENT = (0, 8, 100, 0, 0, 0, None, (0, 0, 0), (TERM,))
INPUT, OUTPUT, TARGET = (0, -1, 800), (1000, b""), ((1, -1),)
NUMBERS = (1 << 20, 1, 1 << 21, 1 << 12, 1 << 16, 1)
# Of 20 × 5 elements, in rank 2.
FACTORS = ((0, 0, 0), (0, 40, 0), 2, 5, 20, 1.0, False)


def low_rank(**change: Any) -> tuple[Any, ...]:
    """A segment with a term that has ``factors``, after a ``change`` of its places."""
    found = [*SEGMENT[:8], ((0, (0.5,), False),)]
    for place, value in change.items():
        found[int(place[1:])] = value
    return tuple(found)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"inputs": []}, TypeError),
        ({"outputs": ((1000,),)}, TypeError),
        ({"outputs": ((1000, "text"),)}, TypeError),
        ({"targets": ((1, -1),)}, TypeError),
        ({"segments": ((0, (0, 0)),)}, TypeError),
        ({"factors": ((0, 0),)}, TypeError),
        # More than the input has, of no known dtype.
        ({"inputs": ((0, -1, 799),)}, ValueError),
        ({"segments": ((0, (*SEGMENT[:7], (0, 0, -1), ())),)}, ValueError),
        # No such input, no such output, beyond the file, one over the other, an unknown operation.
        ({"inputs": ()}, ValueError),
        ({"outputs": (), "targets": ((),)}, ValueError),
        ({"outputs": ((407, b""),)}, ValueError),
        ({"segments": ((0, SEGMENT), (1, SEGMENT))}, ValueError),
        ({"segments": ((0, (*SEGMENT[:3], 4, *SEGMENT[4:])),)}, ValueError),
        # A candidate without a file, or without a λ.
        ({"targets": (TARGET, ())}, ValueError),
        ({"targets": (TARGET, TARGET)}, ValueError),
        # No such factors, fewer elements than the segment, of no rank, beyond their file.
        ({"segments": ((0, low_rank(_8=((1, (0.5,), False),))),)}, ValueError),
        ({"segments": ((0, low_rank(_8=((-1, (0.5,), False),))),)}, ValueError),
        ({"segments": ((0, low_rank(_5=1)),)}, ValueError),
        ({"segments": ((0, low_rank(_3=2)),)}, ValueError),
        ({"factors": ((*FACTORS[:2], 0, *FACTORS[3:]),)}, ValueError),
        ({"factors": ((*FACTORS[:2], 1 << 62, *FACTORS[3:]),)}, ValueError),
        ({"factors": (((0, 764, 0), *FACTORS[1:]),)}, ValueError),
        ({"factors": ((FACTORS[0], (0, 641, 0), *FACTORS[2:]),)}, ValueError),
        # Of one segment, rows of different lengths.
        (
            {
                "factors": (FACTORS, (*FACTORS[:3], 20, 5, 1.0, False)),
                "segments": ((0, low_rank(_8=tuple((k, (0.5,), False) for k in (0, 1)))),),
            },
            ValueError,
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    change: dict[str, Any], error: type[Exception]
) -> None:
    assert extension.NATIVE is not None
    plan = {
        "inputs": (INPUT,),
        "outputs": (OUTPUT,),
        "targets": (TARGET,),
        "factors": (FACTORS,),
        "segments": ((0, SEGMENT),),
    }
    with pytest.raises(error):
        extension.NATIVE.engine_start(*{**plan, **change}.values(), (), *NUMBERS)


def test_the_descriptors_are_its_own(tmp_path: Path) -> None:
    """The caller's may be closed meanwhile, and their numbers belong to other files."""
    assert extension.NATIVE is not None
    data = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "out").write_bytes(bytes(len(data)))
    (tmp_path / "other").write_bytes(b"other")
    here = len(os.listdir("/proc/self/fd"))
    given = [os.open(tmp_path / "in", os.O_RDONLY), os.open(tmp_path / "out", os.O_RDWR)]
    segment = (0, 0, len(data), 1, -1, 0, None, (0, 0, -1), ())
    started = extension.NATIVE.engine_start(
        ((given[0], -1, len(data)),),
        ((len(data), b""),),
        (((given[1], -1),),),
        (),
        ((0, segment),),
        (),
        *(10_000, 1, 1 << 21, 1 << 12, 1 << 16, 2),
    )
    for fd in given:
        os.dup2(os.open(tmp_path / "other", os.O_RDWR), fd)
    ended = False
    while not ended:
        _, ended, _ = extension.NATIVE.engine_poll(started, 1.0)
    extension.NATIVE.engine_stop(started)
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "other").read_bytes() == b"other"
    assert len(os.listdir("/proc/self/fd")) == here + 4
    os.closerange(min(given), max(given) + 3)


def test_numbers_out_of_range_are_refused() -> None:
    assert extension.NATIVE is not None
    for place, bad in ((0, 240), (1, 0), (2, 0), (3, 0), (3, (1 << 21) + 1), (5, 0)):
        numbers = [bad if i == place else number for i, number in enumerate(NUMBERS)]
        with pytest.raises(ValueError, match="out of order"):
            extension.NATIVE.engine_start((), (), (), (), (), (), *numbers)
    idle = extension.NATIVE.engine_start((), (), (), (), (), (), *NUMBERS)
    assert extension.NATIVE.engine_poll(idle, 10.0) == ([], True, 0)
    extension.NATIVE.engine_stop(idle)
    extension.NATIVE.engine_stop(idle)
    with pytest.raises(ValueError, match="PyCapsule"):
        extension.NATIVE.engine_poll(object(), 0.0)
