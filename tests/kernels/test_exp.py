"""csrc/exp.h: errors over dense sweeps, and the same bits on every x86 level."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from avops.kernels import LogitRule, extension
from avops.kernels.head_logprob import native as head_native
from avops.kernels.logprob.cases import RULES, Case

CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]
LEVELS = {"SSE2": "x86-64", "AVX2": "x86-64-v3", "AVX-512": "x86-64-v4"}
LOOPS = """
#include "exp.h"
using namespace avops;
extern "C" {
#define LOOP(name, T, function) \\
    void name(const T *x, T *y, long n) { for (long i = 0; i < n; ++i) y[i] = function(x[i]); }
LOOP(exps, float, exp_of_negative)
LOOP(tanhs, float, tanh_of)
LOOP(wides, double, exp_of_negative)
LOOP(logs, double, log_of)
}
"""


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int32))


class Rule(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_float) for name in ("multiply", "divide", "softcap"))


def build(path: Path, *flags: str) -> ctypes.CDLL:
    """csrc/exp.h, logprob.cpp and head.cpp, compiled with ``flags``."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    loops = path.with_suffix(".cpp")
    loops.write_text(LOOPS)
    sources = [str(loops), str(CSRC / "logprob.cpp"), str(CSRC / "head.cpp")]
    command = [compiler, *FLAGS, f"-I{CSRC}", *flags, *sources, "-o", str(path)]
    subprocess.run(command, check=True, timeout=120)
    library = ctypes.CDLL(str(path))
    library.avops_head_scratch.restype = ctypes.c_int64
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("exp") / "exp.so")


def call(library: ctypes.CDLL, name: str, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, -7)
    getattr(library, name)(
        x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(x.size)
    )
    return y


def sweep(low: float, high: float, dtype: type, count: int = 1 << 20) -> np.ndarray:
    """Even steps over the range, every magnitude down to subnormals, and the ends."""
    even = np.linspace(low, high, count)
    end = max(abs(low), abs(high))
    tiny = np.geomspace(1e-44, end, count) * np.sign(low + high or 1)
    found = np.unique(np.concatenate([even, tiny, [low, high, 0.0]]).astype(dtype))
    return found[(found >= low) & (found <= high)]


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in ulps of the exact value's binade."""
    spacing = np.spacing(np.abs(exact).astype(got.dtype)).astype(exact.dtype)
    return float(np.max(np.abs(got.astype(exact.dtype) - exact) / spacing))


def test_exp_is_within_one_ulp(library: ctypes.CDLL) -> None:
    x = sweep(-87, 0, np.float32)
    assert ulps(call(library, "exps", x), np.exp(x.astype(np.float64))) < 1
    # All floats of two binades, where n goes from 0 to -3.
    x = -np.arange(0x3E800000, 0x40000000, dtype=np.uint32).view(np.float32)[::3]
    assert ulps(call(library, "exps", x), np.exp(x.astype(np.float64))) < 1


def test_exp_at_its_ends(library: ctypes.CDLL) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([0, -0.0, -87.00001, -1e30, -3.4e38, -inf, nan, -1e-45], np.float32)
    np.testing.assert_array_equal(call(library, "exps", x), np.float32([1, 1, 0, 0, 0, 0, nan, 1]))
    np.testing.assert_array_equal(
        call(library, "wides", np.array([0, -0.0, -701, -1e300, -inf, nan])), [1, 1, 0, 0, 0, nan]
    )


def test_exp_falls_with_its_argument(library: ctypes.CDLL) -> None:
    assert (np.diff(call(library, "exps", sweep(-87, 0, np.float32))) >= -1e-7).all()
    assert (call(library, "exps", sweep(-87, 0, np.float32)) <= 1).all()


def test_tanh_is_within_three_ulps_and_odd(library: ctypes.CDLL) -> None:
    x = sweep(0, 12, np.float32)
    x = x[x > 1e-37]  # below, a product is subnormal and an ulp as large as itself
    got = call(library, "tanhs", x)
    assert ulps(got, np.tanh(x.astype(np.float64))) <= 3
    np.testing.assert_array_equal(call(library, "tanhs", -x), -got)
    ends = np.array([0, np.inf, -np.inf, np.nan, 3e38, 10], np.float32)
    wanted = np.array([0, 1, -1, np.nan, 1, 1], np.float32)
    np.testing.assert_array_equal(call(library, "tanhs", ends), wanted)
    small = np.float32([1e-45, 1e-40, 1e-38])
    assert (np.abs(call(library, "tanhs", small) - small) <= 2**-148).all()  # 2 subnormal ulps


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no wider type to compare with")
def test_exp_and_log_in_f64_are_within_two_ulps(library: ctypes.CDLL) -> None:
    x = sweep(-700, 0, np.float64)
    assert ulps(call(library, "wides", x), np.exp(x.astype(np.longdouble))) <= 2
    x = np.concatenate([np.geomspace(1, 1e18, 1 << 20), 1 + np.geomspace(2**-52, 1, 1 << 20)])
    got = call(library, "logs", x)
    exact = np.log(x.astype(np.longdouble))
    assert ulps(got[x > 1], exact[x > 1]) <= 2
    assert (got >= 0).all()
    ends = call(library, "logs", np.array([1.0, 0.0, -1.0, np.nan]))
    np.testing.assert_array_equal(ends, [0, np.nan, np.nan, np.nan])


def rows(library: ctypes.CDLL, case: Case) -> np.ndarray:
    logits, targets = case.inputs()
    out = np.empty(case.rows, np.float32)
    library.avops_logprob(
        ctypes.c_void_p(logits.data_ptr()), ctypes.c_int64(case.rows),
        ctypes.c_int64(case.vocabulary), ctypes.c_int64(case.vocabulary),
        ctypes.c_void_p(targets.data_ptr()), Rule(*RULES[case.rule].numbers()),
        out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int32(2),
    )  # fmt: skip
    return out.view(np.uint32)


def head(library: ctypes.CDLL, dtype: int, rule: LogitRule) -> np.ndarray:
    """Of an odd head, without the processor's own ways to multiply."""
    rows, vocabulary, dim = 70, 131, 301
    draw = np.random.default_rng(0)
    hidden, weight, bias = (
        draw.normal(0, 0.5, n).astype(np.float32)
        for n in (rows * dim, vocabulary * dim, vocabulary)
    )
    if dtype == 2:
        hidden, weight, bias = (
            (x.view(np.uint32) >> 16).astype(np.uint16) for x in (hidden, weight, bias)
        )
    targets, out = draw.integers(0, vocabulary, rows), np.empty(rows, np.float32)
    scratch = np.empty(2 * library.avops_head_scratch(ctypes.c_int64(dim)) + 64, np.uint8)
    place = scratch.ctypes.data
    library.avops_head_logprob(
        Array(hidden.ctypes.data, dtype), ctypes.c_int64(rows), Array(weight.ctypes.data, dtype),
        Array(bias.ctypes.data, dtype), ctypes.c_int64(vocabulary), ctypes.c_int64(dim),
        ctypes.c_void_p(targets.ctypes.data), Rule(*rule.numbers()),
        ctypes.c_void_p(out.ctypes.data), ctypes.c_int32(0),
        ctypes.c_void_p(place + -place % 64), ctypes.c_int32(2),
    )  # fmt: skip
    return out.view(np.uint32)


CASES = [Case(7, 2600, "normal", rule) for rule in RULES] + [Case(5, 513), Case(3, 8191)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="not x86-64")
def test_the_same_bits_on_every_level(library: ctypes.CDLL, tmp_path: Path) -> None:
    here = extension.NATIVE.VARIANT if extension.NATIVE else "SSE2"
    names = list(LEVELS)
    for name in names[: names.index(here) + 1]:
        flags = ("-DAVOPS_NO_CLONES", f"-march={LEVELS[name]}")
        other = build(tmp_path / f"{name}.so", *flags)
        for function, low in (("exps", -90.0), ("tanhs", -12.0)):
            x = sweep(low, -low if function == "tanhs" else 0, np.float32, 1 << 16)
            np.testing.assert_array_equal(
                call(other, function, x).view(np.uint32),
                call(library, function, x).view(np.uint32), name,
            )  # fmt: skip
        for case in CASES:
            np.testing.assert_array_equal(rows(other, case), rows(library, case), f"{name} {case}")
        for dtype in (0, 2):
            for rule in RULES.values():
                got, wanted = head(other, dtype, rule), head(library, dtype, rule)
                np.testing.assert_array_equal(got, wanted, name)


def test_the_sources_define_their_behaviour(tmp_path: Path) -> None:
    """The undefined-behaviour sanitizer, ending the process at its first finding."""
    flags = ("-O1", "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error")
    checked = build(tmp_path / "sanitised.so", *flags)
    for case in CASES:
        rows(checked, case)
    for dtype in (0, 2):
        head(checked, dtype, RULES["all"])
    x = np.array([0, -1, -87, -1e30, -np.inf, np.nan, 1e-45], np.float32)
    call(checked, "exps", x)
    call(checked, "tanhs", x)
    call(checked, "logs", np.array([1.0, 2.0, 1e300, np.nan]))


def test_the_ways_to_multiply_are_named() -> None:
    assert len(head_native.PATHS) == 4
