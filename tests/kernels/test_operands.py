"""What entry points refuse, and how they say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from avops.dtypes import BF16, DTYPES, F16, F32
from avops.kernels import Operand, Term, combine, diff


def f32(n: int = 8) -> Operand:
    return Operand(np.zeros(n, np.float32), F32)


def bf16(n: int = 8) -> Operand:
    return Operand(np.zeros(n, np.uint16), BF16)


def call_combine(base: Operand, values: Operand, out: Operand, **options: Any) -> None:
    combine(base, [Term(values, 1.0, True)], out, **options)


def call_diff(base: Operand, values: Operand, out: Operand, **options: Any) -> None:
    diff(base, values, out, **options)


both = pytest.mark.parametrize("call", [call_combine, call_diff])
Call = Callable[..., None]


@both
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (Operand(np.zeros(8, np.uint8), DTYPES["F8_E4M3"]), TypeError,
         r"has dtype F8_E4M3, expected F32, F16 or BF16"),
        (Operand(np.zeros(8, np.float16), BF16), TypeError,
         r"of dtype BF16 is stored as float16, expected uint16"),
        (Operand(np.zeros(8, ">f4"), F32), TypeError, r"stored as >f4, expected float32"),
        (Operand(np.zeros((2, 4), np.float32), F32), ValueError,
         r"has shape \(2, 4\) .* expected one contiguous dimension; pass array\.reshape"),
        (Operand(np.zeros(16, np.float32)[::2], F32), ValueError, r"strides \(8,\), expected one"),
    ],
    ids=["not computable", "other storage", "big-endian", "2-D", "strided"],
)  # fmt: skip
def test_bad_arrays(
    call: Call, place: int, wrong: Operand, error: type[Exception], message: str
) -> None:
    operands = [f32(), f32(), f32()]
    operands[place] = wrong
    name = ("base", "term 0|aligned", "out")[place]
    with pytest.raises(error, match=f"^({name}) {message}|^({name}).*{message}"):
        call(*operands)


@both
def test_lengths_must_agree(call: Call) -> None:
    with pytest.raises(ValueError, match=r"^(term 0|aligned) has 7 elements, expected 8 as in"):
        call(f32(), f32(7), f32())
    with pytest.raises(ValueError, match=r"^out has 9 elements, expected 8 as in base"):
        call(f32(), f32(), f32(9))


@both
def test_read_only_output(call: Call) -> None:
    out = f32()
    out.array.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only, expected a writeable array"):
        call(f32(), f32(), out)


@both
@pytest.mark.parametrize("shift", [0, 1, 7])
def test_output_must_not_overlap_a_term(call: Call, shift: int) -> None:
    memory = np.zeros(20, np.float32)
    values = Operand(memory[:8], F32)
    out = Operand(memory[shift : shift + 8], F32)
    with pytest.raises(ValueError, match="out overlaps (term|aligned) 0; give it memory"):
        call(f32(), values, out)
    call(f32(), values, Operand(memory[8:16], F32))  # neighbours are no overlap


@both
def test_output_overlaps_base_exactly_or_not_at_all(call: Call) -> None:
    memory = np.zeros(64, np.uint8)
    whole = Operand(memory[:32].view(np.float32), F32)
    for start in (4, 28):
        out = Operand(memory[start : start + 32].view(np.float32), F32)
        with pytest.raises(ValueError, match=r"out \(F32\) overlaps base \(F32\) in part"):
            call(whole, f32(), out)
    narrow = Operand(memory[:16].view(np.uint16), BF16)
    with pytest.raises(ValueError, match=r"out \(BF16\) overlaps base \(F32\) in part"):
        call(whole, f32(), narrow)
    half = Operand(memory[:16].view(np.float16), F16)
    with pytest.raises(ValueError, match=r"out \(F16\) overlaps base \(BF16\) in part"):
        call(narrow, f32(), half)
    call(whole, f32(), Operand(memory[32:].view(np.float32), F32))
    call(whole, f32(), whole)


@both
@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_out_of_range(call: Call, threads: int) -> None:
    with pytest.raises(ValueError, match=rf"^threads is {threads}, expected 1 to 1024$"):
        call(f32(), f32(), f32(), threads=threads)


@pytest.mark.parametrize("lam", [0.1, float("nan"), float("inf"), -float("inf"), 1e39, 1e-50])
def test_lam_must_be_a_finite_f32_number(lam: float) -> None:
    terms = [Term(bf16(), 1.0, False), Term(bf16(), lam, False)]
    message = r"term 1 has λ = .*, expected a finite number that f32 holds exactly; round it once"
    with pytest.raises(ValueError, match=message):
        combine(bf16(), terms, bf16())


@pytest.mark.parametrize("lam", [0.0, -0.0, 1, -1.5, float(np.float32(0.1)), 2.0**-149])
def test_lams_that_f32_holds(lam: float) -> None:
    combine(bf16(), [Term(bf16(), lam, False)], bf16())


@both
def test_a_refused_call_writes_nothing(call: Call) -> None:
    out = Operand(np.full(8, 7, np.float32), F32)
    with pytest.raises(ValueError, match="threads"):
        call(f32(), f32(), out, threads=0)
    assert (out.array == 7).all()
