"""What combine_many refuses, before any backend is asked."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from avops.errors import BackendError
from avops.kernels.many import Entry, LowRank, Table, Values


def floats(n: int = 8) -> torch.Tensor:
    return torch.zeros(n)


def entry(
    base: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    parts: Sequence[Values | LowRank | None] = (),
    key: int | None = None,
) -> Entry:
    return Entry(
        floats() if base is None else base, floats() if out is None else out, tuple(parts), key
    )


def low_rank(rows: int = 2, rank: int = 1, columns: int = 4, scale: float = 1.0) -> LowRank:
    return LowRank(torch.zeros(rows, rank), torch.zeros(rank, columns), scale)


def overlapping() -> dict[str, tuple[list[Entry], str]]:
    memory = torch.zeros(32)
    half = memory.view(torch.float16)
    return {
        "outs": (
            [entry(out=memory[:8]), entry(out=memory[20:28]), entry(out=memory[7:15])],
            "the outs of entries 0 and 2 overlap",
        ),
        "base in part": (
            [entry(), entry(base=memory[:8], out=memory[1:9])],
            "the out of entry 1 overlaps an input of entry 1",
        ),
        "base of another dtype": (
            [entry(base=memory[:8], out=half[:16].view(torch.bfloat16)[:8])],
            "the out of entry 0 overlaps an input of entry 0",
        ),
        "base of another dtype, as long": (
            [entry(base=half[:8], out=half[:8].view(torch.bfloat16))],
            "the out of entry 0 overlaps an input of entry 0",
        ),
        "another entry's base": (
            [entry(base=memory[:8]), entry(out=memory[:8])],
            "the out of entry 1 overlaps an input of entry 0",
        ),
        "a part": (
            [entry(out=memory[:8], parts=[Values(memory[:8], True)])],
            "the out of entry 0 overlaps an input of entry 0",
        ),
        "a factor": (
            [
                entry(
                    out=memory[:8], parts=[LowRank(memory[6:8].view(2, 1), torch.zeros(1, 4), 1.0)]
                )
            ],
            "the out of entry 0 overlaps an input of entry 0",
        ),
    }


@pytest.mark.parametrize("name", overlapping())
def test_overlaps_are_refused(name: str) -> None:
    entries, message = overlapping()[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        Table(entries)


def test_what_may_share_memory() -> None:
    memory = torch.zeros(64)
    shared = Values(memory[40:48], True)
    entries = [
        entry(base=memory[:8], out=memory[:8], parts=[shared]),
        entry(base=memory[48:56], out=memory[8:16], parts=[shared]),
        entry(base=memory[48:56], out=memory[16:24], parts=[Values(memory[48:56], True)]),
        entry(base=memory[20:20], out=memory[4:4], parts=[None]),
    ]
    Table(entries, backend="reference").run([1.0])


REFUSED = {
    "none": ([], ValueError, "no entries, expected at least one"),
    "numbers of parts": (
        [entry(), entry(parts=[None])],
        ValueError,
        "entry 1 has 1 parts, expected 0 as entry 0",
    ),
    "key": ([entry(key=1 << 64)], ValueError, "entry 0: key is 18446744073709551616, expected 64"),
    "dtype": (
        [entry(base=torch.zeros(8, dtype=torch.float64))],
        TypeError,
        "entry 0: base has dtype torch.float64, expected float32, float16 or bfloat16",
    ),
    "integers": (
        [entry(parts=[Values(torch.zeros(8, dtype=torch.int16), False)])],
        TypeError,
        "entry 0: part 0 has dtype torch.int16, expected float32",
    ),
    "length": (
        [entry(out=floats(7))],
        ValueError,
        r"entry 0: out is \[7\] on cpu, expected 8 contiguous elements on cpu",
    ),
    "strides": (
        [entry(parts=[None]), entry(parts=[Values(torch.zeros(8, 2)[:, 0], False)])],
        ValueError,
        r"entry 1: part 0 is \[8\] on cpu, expected 8 contiguous elements on cpu",
    ),
    "device": (
        [entry(out=torch.zeros(8, device="meta"))],
        ValueError,
        r"entry 0: out is \[8\] on meta, expected 8 contiguous elements on cpu",
    ),
    "factor's dtype": (
        [entry(parts=[LowRank(torch.zeros(2, 1).bfloat16(), torch.zeros(1, 4), 1.0)])],
        TypeError,
        r"entry 0: part 0, left is torch.bfloat16 \[2, 1\], expected a float32 matrix",
    ),
    "factor's shape": (
        [entry(parts=[LowRank(torch.zeros(2, 1), torch.zeros(4), 1.0)])],
        TypeError,
        r"entry 0: part 0, right is torch.float32 \[4\], expected a float32 matrix",
    ),
    "rank": (
        [entry(parts=[LowRank(torch.zeros(2, 1), torch.zeros(2, 4), 1.0)])],
        ValueError,
        r"entry 0: part 0 is \[2, 1\] @ \[2, 4\], expected one rank ≥ 1 and 8 elements",
    ),
    "no rank": ([entry(parts=[low_rank(rank=0)])], ValueError, "expected one rank ≥ 1"),
    "product": (
        [entry(parts=[low_rank(columns=5)])],
        ValueError,
        r"entry 0: part 0 is \[2, 1\] @ \[1, 5\], expected one rank ≥ 1 and 8 elements",
    ),
    "scale": (
        [entry(parts=[low_rank(scale=0.1)])],
        ValueError,
        "entry 0: part 0 has scale 0.1, expected a number that f32 holds",
    ),
    "what is no part": (
        [entry(parts=[floats()])],
        TypeError,
        "entry 0: part 0 is a Tensor, expected Values, LowRank or None",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_entries_that_do_not_fit_are_refused(name: str) -> None:
    entries, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        Table(entries)


def test_an_address_between_elements_is_refused() -> None:
    odd = torch.frombuffer(bytearray(41), dtype=torch.float32, count=8, offset=1)
    if odd.data_ptr() % 4 == 0:  # wherever the bytes are, one of two offsets is odd
        odd = torch.frombuffer(bytearray(42), dtype=torch.float32, count=8, offset=2)
    with pytest.raises(ValueError, match="entry 0: base is at the address .*, expected a multiple"):
        Table([entry(base=odd)])


@pytest.mark.parametrize(
    ("lams", "message"),
    [
        ([1.0], r"lams has shape \(1,\), expected \(2,\) or \(3, 2\)"),
        ([[1.0, 2.0]] * 2, r"lams has shape \(2, 2\), expected \(2,\) or \(3, 2\)"),
        (1.0, r"lams has shape \(\), expected \(2,\) or \(3, 2\)"),
        ([1.0, 0.1], r"lams\[1\] is 0.1, expected a finite number that f32 holds exactly"),
        ([1.0, 1e39], r"lams\[1\] is 1e\+39, expected a finite number that f32 holds exactly"),
        ([[1, 2], [np.nan, 0], [3, 4]], r"lams\[1, 0\] is nan, expected a finite number"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused(lams: object, message: str) -> None:
    out = torch.ones(8)
    table = Table([entry(parts=[None, None], out=out), entry(parts=[None, None]),
                   entry(parts=[None, None])], backend="reference")  # fmt: skip
    with pytest.raises(ValueError, match=message):
        table.run(lams)
    assert out.tolist() == [1.0] * 8


def test_a_backend_that_does_not_reach_the_device_is_refused() -> None:
    wanted = "cuda" if os.environ.get("TRITON_INTERPRET") == "1" else "triton"
    with pytest.raises(BackendError, match=f"backend= forces {wanted} for combine_many, which c"):
        Table([entry()], backend=wanted)
    with pytest.raises(BackendError, match="expected a backend of combine_many: cuda, triton, ref"):
        Table([entry()], backend="native")
