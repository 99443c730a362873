"""The native code beyond single results: every CPU variant, floating-point modes, threads."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash

from avops.dtypes import BF16, COMPUTABLE, F16, F32
from avops.kernels import (
    CombineStats,
    Dither,
    Factors,
    Operand,
    Term,
    combine,
    diff,
    extension,
    gram,
    logprob,
    lowrank,
)
from avops.kernels.combine import cases as combine_cases
from avops.kernels.diff import cases as diff_cases
from avops.kernels.lowrank import cases as lowrank_cases
from avops.kernels.operands import address
from avops.kernels.samples import BLOCK, FILLS, TWO_THREADS
from guarded import Guarded

CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
# Name of the code path: machine flags that build it alone.
LEVELS = {"SSE2": "x86-64", "AVX2": "x86-64-v3", "AVX-512": "x86-64-v4"}

native = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="not x86-64")


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int32))

    def __init__(self, operand: Operand) -> None:
        super().__init__(address(operand.array), operand.dtype.code)


class CTerm(ctypes.Structure):
    _fields_ = (("values", Array), ("lam", ctypes.c_float), ("aligned", ctypes.c_int32))


class Rounding(ctypes.Structure):
    _fields_ = (("dither", ctypes.c_int32), ("key", ctypes.c_uint64), ("start", ctypes.c_int64))


class CombineCounts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("nonfinite", "unchanged", "overflowed", "flushed")
    )


class DiffCounts(ctypes.Structure):
    _fields_ = (("nonfinite", ctypes.c_int64), ("zeros", ctypes.c_int64))


class Library:
    """csrc/ built without Python, called through the C ABI."""

    def __init__(self, path: Path, *flags: str) -> None:
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            pytest.skip("no C++ compiler")
        sources = [str(CSRC / name) for name in ("combine.cpp", "diff.cpp", "lowrank.cpp")]
        command = [compiler, *FLAGS, *flags, *sources, "-o", str(path)]
        subprocess.run(command, check=True, timeout=120)
        self._library = ctypes.CDLL(str(path))
        self._library.avops_combine.restype = CombineCounts
        self._library.avops_diff.restype = DiffCounts
        self._library.avops_lowrank.restype = None
        self._library.avops_variant.restype = ctypes.c_char_p

    def variant(self) -> str:
        return str(self._library.avops_variant().decode())

    def combine(
        self, base: Operand, terms: list[Term], out: Operand, rounding: Dither | None
    ) -> CombineStats:
        array = (CTerm * len(terms))(*(CTerm(Array(t.values), t.lam, t.aligned) for t in terms))
        counts = self._library.avops_combine(
            Array(base), array, ctypes.c_int64(len(terms)), Array(out),
            ctypes.c_int64(out.array.size),
            Rounding() if rounding is None else Rounding(1, rounding.key, rounding.start),
            ctypes.c_int32(1),
        )  # fmt: skip
        return CombineStats(*(getattr(counts, name) for name, _ in CombineCounts._fields_))

    def lowrank(self, factors: Factors, start: int, out: Operand) -> None:
        self._library.avops_lowrank(
            ctypes.c_void_p(address(factors.left)), ctypes.c_void_p(address(factors.right)),
            ctypes.c_int64(factors.left.shape[1]), ctypes.c_int64(factors.right.shape[1]),
            ctypes.c_float(factors.scale), ctypes.c_int64(start),
            ctypes.c_void_p(address(out.array)), ctypes.c_int64(out.array.size), ctypes.c_int32(1),
        )  # fmt: skip

    def diff(self, base: Operand, aligned: Operand, out: Operand) -> tuple[int, int]:
        counts = self._library.avops_diff(
            Array(base), Array(aligned), Array(out),
            ctypes.c_int64(out.array.size), ctypes.c_int32(1),
        )  # fmt: skip
        return counts.nonfinite, counts.zeros


def check(library: Library) -> None:
    """Every mix of dtypes and values, at a length with a rest, against the reference."""
    for case in combine_cases.cases():
        if case.n != 1999:
            continue
        base, terms = case.inputs()
        for rounding in (None, Dither(7, 2**32 - 1000)):
            expected, got = Guarded(case.n, case.out), Guarded(case.n, case.out)
            stats = combine(base, terms, expected.operand, rounding=rounding, backend="reference")
            assert library.combine(base, terms, got.operand, rounding) == stats, case
            assert np.array_equal(got.bits(), expected.bits()), case
    for product in lowrank_cases.cases():
        given = product.factors()
        delta, delta_got = Guarded(product.n, F32), Guarded(product.n, F32)
        lowrank(given, product.start, delta.operand, backend="reference")
        library.lowrank(given, product.start, delta_got.operand)
        assert np.array_equal(delta_got.bits(), delta.bits()), product
    for item in diff_cases.cases():
        if item.n != 1999:
            continue
        origin, aligned = item.inputs()
        delta, delta_got = Guarded(item.n, item.out), Guarded(item.n, item.out)
        found = diff(origin, aligned, delta.operand, backend="reference")
        counts = library.diff(origin, aligned, delta_got.operand)
        assert counts == (found.nonfinite, found.zeros), item
        assert np.array_equal(delta_got.bits(), delta.bits()), item


@native
@x86
@pytest.mark.parametrize("level", LEVELS)
def test_every_code_path_agrees(level: str, tmp_path: Path) -> None:
    names = list(LEVELS)
    here = extension.NATIVE.VARIANT  # type: ignore[union-attr]
    if here not in names or names.index(level) > names.index(here):
        pytest.skip(f"this CPU's code path is {here}")
    library = Library(tmp_path / "one.so", "-DAVOPS_NO_CLONES", f"-march={LEVELS[level]}")
    assert library.variant() == "generic"
    check(library)


def test_the_sources_define_their_behaviour(tmp_path: Path) -> None:
    """The undefined-behaviour sanitizer, ending the process at its first finding."""
    flags = (
        "-DAVOPS_NO_CLONES",
        "-O1",
        "-fsanitize=undefined",
        "-fsanitize-undefined-trap-on-error",
    )
    check(Library(tmp_path / "sanitised.so", *flags))


def test_the_abi_numbers_are_twins() -> None:
    header = (CSRC / "avops.h").read_text(encoding="utf-8")
    assert re.findall(r"#define AVOPS_ABI (\d+)", header) == [str(extension.ABI)]


def test_the_dtype_codes_are_twins() -> None:
    header = (CSRC / "avops.h").read_text(encoding="utf-8")
    codes = dict(re.findall(r"AVOPS_(F32|F16|BF16) = (\d)", header))
    assert codes == {dtype.tag: str(dtype.code) for dtype in COMPUTABLE}


def test_the_block_sizes_are_twins() -> None:
    source = (CSRC / "blocks.h").read_text(encoding="utf-8")
    block = int(re.findall(r"kBlock = (\d+);", source)[0])
    per_thread = int(re.findall(r"kBlocksPerThread = (\d+);", source)[0])
    assert (block, 2 * block * per_thread) == (BLOCK, TWO_THREADS)


@native
def test_flush_to_zero_does_not_reach_the_results() -> None:
    import torch

    n = TWO_THREADS + 5
    base = Operand(np.arange(n, dtype=np.uint16) % 0x80, BF16)  # bf16 subnormals are f32 ones
    delta = Operand(np.full(n, 2.0**-133, np.float32), F32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU has no flush-to-zero mode")
    try:
        for threads in (1, 2):
            out = Guarded(n, BF16)
            combine(base, [Term(delta, 1.0, False)], out.operand, threads=threads, backend="native")
            np.testing.assert_array_equal(out.bits(), base.array + 1)
        # And the mode is the caller's again.
        assert torch.tensor([2.0**-140]).mul(1.0).item() == 0
    finally:
        torch.set_flush_denormal(False)


@native
@x86
def test_rounding_mode_and_exception_flags_stay_the_callers() -> None:
    libm = ctypes.CDLL("libm.so.6")
    upward, all_flags = 0x800, 0x3D
    n = TWO_THREADS + 5
    base = Operand(np.ones(n, np.float32), F32)
    small = Operand(np.full(n, 2.0**-30, np.float32), F32)
    large = Operand(np.full(n, 3e38, np.float32), F32)
    out = Guarded(n, F32)
    combine(base, [Term(small, 1.0, False)], out.operand, backend="native")  # imports raise flags
    libm.feclearexcept(all_flags)
    libm.fesetround(upward)
    try:
        stats = combine(base, [Term(small, 1.0, False)], out.operand, threads=2, backend="native")
        assert libm.fegetround() == upward
        assert libm.fetestexcept(all_flags) == 0
    finally:
        libm.fesetround(0)
    assert stats.unchanged == n
    combine(large, [Term(large, 4.0, False)], out.operand, backend="native")
    assert libm.fetestexcept(all_flags) == 0


def in_bytes(operation: str, one: np.ndarray, two: np.ndarray) -> bytes:
    """What native ``operation`` makes of two arrays of 999 numbers in float32."""
    base, other, out = (Operand(array, F32) for array in (one, two, np.empty(999, np.float32)))
    if operation == "diff":
        diff(base, other, out, backend="native")
    elif operation == "lowrank":
        lowrank(Factors(one.reshape(111, 9), two.reshape(9, 111), 0.5), 0, out, backend="native")
    elif operation == "gram":
        return gram(base, [Term(other, 0.5, False)], other, backend="native").tobytes()
    else:
        import torch

        logits, targets = torch.from_numpy(one).view(9, 111), torch.arange(9)
        return logprob(logits, targets, backend="native").numpy().tobytes()
    return out.array.tobytes()


@native
@x86
@pytest.mark.parametrize("operation", ["diff", "lowrank", "gram", "logprob"])
def test_results_do_not_depend_on_the_callers_rounding_mode(operation: str) -> None:
    libm = ctypes.CDLL("libm.so.6")
    upward = 0x800
    # Nearly all results of random numbers round.
    inputs = np.random.default_rng(0).standard_normal((2, 999)).astype(np.float32)
    wanted = in_bytes(operation, *inputs)
    libm.fesetround(upward)
    try:
        found = in_bytes(operation, *inputs)
        assert libm.fegetround() == upward
    finally:
        libm.fesetround(0)
    assert found == wanted


@x86
def test_the_digest_without_avx2_is_the_packages(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path / "digest.so"
    source = str(CSRC / "digest.cpp")
    subprocess.run([compiler, *FLAGS, "-DAVOPS_NO_CLONES", source, "-o", str(path)], check=True)
    digest = ctypes.CDLL(str(path))["_ZN5avops6digestEPKhlPh"]
    digest.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_char_p)
    data = np.random.default_rng(0).bytes(5000)
    for length in (241, 256, 1024, 1025, 1088, 4096, 5000):
        found = ctypes.create_string_buffer(16)
        digest(data, length, found)
        assert found.raw == xxhash.xxh3_128_digest(data[:length]), length


@native
def test_many_python_threads_at_once() -> None:
    case = combine_cases.Case(1 << 20, BF16, BF16, ((BF16, True), (F16, False)), "weights")
    base, terms = case.inputs()
    expected, got = Guarded(case.n, BF16), Guarded(case.n, BF16)
    stats = combine(base, terms, expected.operand, backend="reference")

    def part(start: int) -> int:
        chosen = slice(start, start + 10_007)

        def cut(operand: Operand) -> Operand:
            return Operand(operand.array[chosen], operand.dtype)

        pieces = [Term(cut(t.values), t.lam, t.aligned) for t in terms]
        return combine(cut(base), pieces, cut(got.operand), backend="native").unchanged

    with ThreadPoolExecutor(8) as pool:
        unchanged = sum(pool.map(part, range(0, case.n, 10_007)))
    assert unchanged == stats.unchanged
    np.testing.assert_array_equal(got.bits(), expected.bits())


@native
def test_the_gil_is_released() -> None:
    n = 1 << 20
    base = Operand(np.ones(n, np.float16), F16)
    terms = [Term(base, 0.5, True)] * 300  # a second or less, with 4 MiB of memory
    out = Operand(np.empty(n, np.float16), F16)
    times: list[float] = []

    def work() -> None:
        times.append(time.perf_counter())
        combine(base, terms, out, backend="native")
        times.append(time.perf_counter())

    worker = threading.Thread(target=work)
    worker.start()
    longest, last = 0.0, time.perf_counter()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    worker.join()
    # With the GIL held, this loop would have stood still for all of the call.
    assert longest < 0.5 * (times[1] - times[0])


@native
@pytest.mark.parametrize("fill", FILLS)
def test_chunks_do_not_change_the_result(fill: str) -> None:
    case = combine_cases.Case(3 * BLOCK + 11, F16, BF16, ((BF16, True), (F32, False)), fill)
    base, terms = case.inputs()
    whole = Guarded(case.n, BF16)
    stats = combine(base, terms, whole.operand, backend="native")
    for chunk in (1, 7, BLOCK - 1, BLOCK + 1):
        pieces = Guarded(case.n, BF16)
        nonfinite = unchanged = 0
        for start in range(0, case.n, chunk):
            cut = slice(start, start + chunk)
            found = combine(
                Operand(base.array[cut], F16),
                [
                    Term(Operand(t.values.array[cut], t.values.dtype), t.lam, t.aligned)
                    for t in terms
                ],
                Operand(pieces.operand.array[cut], BF16),
                backend="native",
            )
            nonfinite, unchanged = nonfinite + found.nonfinite, unchanged + found.unchanged
        assert (nonfinite, unchanged) == (stats.nonfinite, stats.unchanged)
        np.testing.assert_array_equal(pieces.bits(), whole.bits())


@native
def test_the_module_refuses_wrong_arguments() -> None:
    module = extension.NATIVE
    assert module is not None
    with pytest.raises(TypeError, match=r"combine\(\) takes 8 arguments, got 1"):
        module.combine(1)
    with pytest.raises(TypeError, match=r"diff\(\) takes 8 arguments, got 0"):
        module.diff()
    with pytest.raises(TypeError, match="terms must be a tuple"):
        module.combine(0, 0, [], 0, 0, 0, None, 1)
    with pytest.raises(TypeError, match="a term is a tuple"):
        module.combine(0, 0, ((1, 2),), 0, 0, 0, None, 1)
    with pytest.raises(TypeError):
        module.combine("0", 0, (), 0, 0, 0, None, 1)
    with pytest.raises(TypeError, match="rounding is None or a tuple"):
        module.combine(0, 0, (), 0, 0, 0, 1, 1)
    with pytest.raises(TypeError, match=r"lowrank\(\) takes 9 arguments, got 0"):
        module.lowrank()
