"""diff: counts and sizes of differences against plain numpy, in any sharding and dtype."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avops.disk import encode_header
from avops.disk.digest import BLOCK
from avops.dtypes import DTYPES
from avops.errors import CheckpointError
from avops.stream.compare import DiffReport, TensorDiff, compare
from bits import bf16, from_bf16
from families import Family

Save = Callable[..., Path]


def raw_file(path: Path, tensors: dict[str, tuple[str, np.ndarray]], pad: int = 0) -> Path:
    """A safetensors file of (dtype, bytes or array in storage form); ``pad`` moves the data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        (name, DTYPES[tag], (array.nbytes * 8 // DTYPES[tag].bits,))
        for name, (tag, array) in tensors.items()
    ]
    prefix, _ = encode_header(listed, {"format": "pt"})
    length = len(prefix) - 8 + pad
    head = length.to_bytes(8, "little") + prefix[8:] + b" " * pad
    path.write_bytes(head + b"".join(array.tobytes() for _, array in tensors.values()))
    return path


def only(report: DiffReport) -> TensorDiff:
    (found,) = report.changed
    return found


def pair(tmp_path: Path, a: tuple[str, np.ndarray], b: tuple[str, np.ndarray]) -> DiffReport:
    return compare(
        raw_file(tmp_path / "a.safetensors", {"x": a}),
        raw_file(tmp_path / "b.safetensors", {"x": b}),
    )


def test_equal_checkpoints_in_any_sharding(
    family: Family, sharded_family: Family, save: Save, tmp_path: Path
) -> None:
    assert compare(family.base, family.base).equal
    single = save("single/model.safetensors", sharded_family.tensors["base"]).parent
    report = compare(sharded_family.base, single)
    assert report.changed == ()
    assert report.tensors == 8
    # The sharded base has config, tokenizer and code beside it.
    assert not report.equal
    assert not compare(single, sharded_family.base).equal
    assert report.files_only_a == ("config.json", "modeling_x.py", "tokenizer.json")
    assert compare(sharded_family.base, single / "model.safetensors").equal
    (single / "config.json").write_text("{}")
    (single / "generation_config.json").write_text("{}")
    report = compare(sharded_family.base, single)
    assert report.files_differ == ("config.json",)
    assert report.files_only_a == ("modeling_x.py", "tokenizer.json")
    assert report.files_only_b == ("generation_config.json",)


def test_differences_of_a_family(sharded_family: Family) -> None:
    report = compare(sharded_family.base, sharded_family.one)
    base, one = sharded_family.tensors["base"], sharded_family.tensors["one"]
    for found in report.changed:
        a = sharded_family.wide("base", found.name).astype(np.float64).ravel()
        b = sharded_family.wide("one", found.name).astype(np.float64).ravel()
        assert found.differing == np.count_nonzero(base[found.name] != one[found.name])
        assert found.elements == a.size
        assert found.max_abs == np.abs(a - b).max()
        # Sums of at most 1031 rounded squares in float64, and two roots: 1031 · 2^-53 < 1e-12.
        assert found.norm == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
        assert found.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
    names = {name for name in base if not np.array_equal(base[name], one[name])}
    assert {found.name for found in report.changed} == names
    relative = [found.relative for found in report.changed]
    assert relative == sorted(relative, reverse=True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pad", [0, 1, 6])
@pytest.mark.parametrize(
    "count", [1, BLOCK // 2 - 1, BLOCK // 2, BLOCK // 2 + 1, 3 * (BLOCK // 2) + 17]
)
def test_blocks(tmp_path: Path, count: int, pad: int, threads: int) -> None:
    """Any size and alignment; one difference, at the end; ‖A‖ over the equal blocks, too."""
    rng = np.random.default_rng(count)
    a = bf16(rng.standard_normal(count).astype(np.float32))
    b = a.copy()
    b[-1] += 3
    report = compare(
        raw_file(tmp_path / "a.safetensors", {"x": ("BF16", a)}, pad),
        raw_file(tmp_path / "b.safetensors", {"y": ("I8", b.view(np.int8)[:8]), "x": ("BF16", b)}),
        threads=threads,
    )
    found = only(report)
    assert (found.differing, found.elements, found.max_ulp) == (1, count, 3)
    wide = from_bf16(a).astype(np.float64)
    change = abs(wide[-1] - float(from_bf16(b)[-1]))
    assert (found.max_abs, found.norm) == (change, change)
    # A sum of 8 · 10^5 squares in float64, blocked and then exact: below 2^19 · 2^-53 of its value.
    assert found.relative == pytest.approx(change / math.sqrt(math.fsum(wide**2)), rel=1e-10)
    assert report.only_b == ("y",)
    assert report.bytes_read == 2 * a.nbytes


def value(tag: str, bits: np.ndarray) -> np.ndarray:
    return from_bf16(bits) if tag == "BF16" else bits


@pytest.mark.parametrize(
    ("tag", "dtype"), [("BF16", "<u2"), ("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8")]
)
def test_ulp_of_one_dtype_counts_steps(tmp_path: Path, tag: str, dtype: str) -> None:
    width = np.dtype(dtype).itemsize
    top = 1 << (8 * width - 1)
    bits = np.array([5, top + 5, 0, top, 100, top + 1], f"<u{width}").view(dtype)
    other = np.array([8, top + 1, top, 0, 90, 1], f"<u{width}").view(dtype)
    found = only(pair(tmp_path, (tag, bits), (tag, other)))
    # 3 steps, 4, -0 to +0 and back, 10, and from the least negative to the least positive: 2.
    assert found.max_ulp == 10
    assert (found.differing, found.bits_only) == (4, 2)
    ones = [((tag, bits[k : k + 1]), (tag, other[k : k + 1])) for k in range(6)]
    assert [only(pair(tmp_path, *both)).max_ulp for both in ones] == [3, 4, 0, 0, 10, 2]
    one, two = np.array([1.0], np.float64), np.array([-1.0], np.float64)
    if tag == "F64":
        near = only(pair(tmp_path, (tag, one), (tag, np.nextafter(one, 2))))
        assert near.max_ulp == 1
        # From 1.0 over 0 to -1.0: twice the bits of 1.0, which float64 holds exactly.
        far = only(pair(tmp_path, (tag, one), (tag, two)))
        assert far.max_ulp == 2.0 * 0x3FF0000000000000


def test_two_dtypes(tmp_path: Path) -> None:
    """A conversion is half a unit away at most, and the unit is the coarser dtype's."""
    rng = np.random.default_rng(3)
    wide = (rng.standard_normal(4096) * 10.0 ** rng.integers(-38, 38, 4096)).astype(np.float32)
    short = bf16(wide)
    for a, b in ((("F32", wide), ("BF16", short)), (("BF16", short), ("F32", wide))):
        found = only(pair(tmp_path, a, b))
        assert found.a.dtype.tag == a[0]
        assert found.differing == np.count_nonzero(from_bf16(short) != wide)
        assert found.max_ulp == expected_ulp(wide, from_bf16(short))
        assert 0.49 < found.max_ulp <= 0.5
    same = only(pair(tmp_path, ("BF16", short), ("F32", from_bf16(short))))
    assert (same.differing, same.max_ulp, same.relative) == (0, 0, 0)
    zero = only(pair(tmp_path, ("BF16", bf16(np.float32([0]))), ("F32", np.float32([2.0**-133]))))
    assert zero.max_ulp == 1  # The least bfloat16 is 2^-133.
    half = only(pair(tmp_path, ("F16", np.float16([1])), ("BF16", bf16(np.float32([1.0078125])))))
    assert half.max_ulp == 1  # 2^-7 above 1.


def test_blocks_of_two_dtypes(tmp_path: Path) -> None:
    """As many elements a block as the wider one has room for."""
    count = BLOCK // 2 + 5
    short = bf16(np.random.default_rng(0).standard_normal(count).astype(np.float32))
    wide = from_bf16(short).astype(np.float64)
    wide[-1] += 1
    for both in ((("F64", wide), ("BF16", short)), (("BF16", short), ("F64", wide))):
        found = only(pair(tmp_path, *both))
        assert (found.differing, found.elements) == (1, count)


def expected_ulp(wide: np.ndarray, short: np.ndarray) -> float:
    units = []
    for exact, rounded in zip(wide.tolist(), short.tolist(), strict=True):
        exponent = max(math.frexp(rounded)[1] - 1, -126) if rounded else -126
        units.append(abs(Fraction(exact) - Fraction(rounded)) / Fraction(2) ** (exponent - 7))
    return float(max(units))


@pytest.mark.parametrize("tag", ["BF16", "F16", "F32", "F64"])
def test_nan_and_infinity(tmp_path: Path, tag: str) -> None:
    inf, nan = np.inf, np.nan
    a = np.array([1.0, nan, nan, inf, inf, -0.0, 2.0, 4.0])
    b = np.array([1.0, nan, 3.0, inf, -inf, 0.0, inf, 4.5])
    stored = {
        "BF16": bf16_any,
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
    }
    one, two = (stored[tag](x) for x in (a, b))
    two.view(f"<u{two.dtype.itemsize}")[1] ^= 1  # Another payload: still a NaN.
    found = only(pair(tmp_path, (tag, one), (tag, two)))
    # NaN to 3, inf to -inf, 2 to inf, 4 to 4.5; NaN to NaN and -0 to +0 differ in bits only.
    assert (found.differing, found.bits_only) == (4, 2)
    assert found.nonfinite == (4, 4)
    assert (found.max_abs, found.norm) == (0.5, 0.5)
    assert found.relative == 0.5 / math.sqrt(1 + 16)
    assert found.max_ulp == 2.0 ** ({"BF16": 7, "F16": 10, "F32": 23, "F64": 52}[tag] - 3)
    for a_first, nonfinite in ((True, (0, 1)), (False, (1, 0))):
        both = ((tag, one[:1]), (tag, two[6:7]))
        alone = only(pair(tmp_path, *(both if a_first else both[::-1])))
        assert (alone.nonfinite, alone.max_abs) == (nonfinite, 0)


def bf16_any(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_bits_only_is_a_difference(tmp_path: Path) -> None:
    report = pair(tmp_path, ("F32", np.float32([0.0, 1.0])), ("F32", np.float32([-0.0, 1.0])))
    found = only(report)
    assert (found.differing, found.bits_only, found.relative) == (0, 1, 0.0)
    assert not report.equal


@pytest.mark.parametrize(
    ("tag", "dtype"),
    [
        ("I64", "<i8"),
        ("U64", "<u8"),
        ("I32", "<i4"),
        ("I16", "<i2"),
        ("U8", "|u1"),
        ("BOOL", "|u1"),
    ],
)
def test_integers(tmp_path: Path, tag: str, dtype: str) -> None:
    a = np.array([0, 1, 1, 0], dtype)
    b = np.array([0, 1, 0, 1], dtype)
    found = only(pair(tmp_path, (tag, a), (tag, b)))
    assert (found.differing, found.max_abs, found.relative) == (2, 1, 1)
    assert found.max_ulp is None


def test_integers_of_two_dtypes_compare_exactly(tmp_path: Path) -> None:
    # Equal in float64, and as 64 bits.
    a = np.array([2**53, -1], np.int64)
    b = np.array([2**53 + 1, 2**64 - 1], np.uint64)
    assert only(pair(tmp_path, ("I64", a), ("U64", b))).differing == 2


@pytest.mark.parametrize("tag", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64"])
def test_what_is_compared_by_bytes(tmp_path: Path, tag: str) -> None:
    a = np.arange(24, dtype=np.uint8)
    b = a.copy()
    b[[3, 4]] += 1
    found = only(pair(tmp_path, (tag, a), (tag, b)))
    assert found.differing == (1 if tag == "C64" else 2)  # One complex value has both.
    assert (found.max_ulp, found.max_abs, found.norm, found.relative) == (None,) * 4
    assert pair(tmp_path, (tag, a), (tag, a)).equal


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = {"w": ("F32", np.ones(6, np.float32)), "q": ("BF16", np.ones(4, np.uint16))}
    b = {"w": ("F32", np.ones(4, np.float32)), "q": ("F8_E4M3", np.ones(4, np.uint8))}
    a["left"] = b["right"] = ("U8", np.ones(1, np.uint8))
    report = compare(
        raw_file(tmp_path / "a.safetensors", a), raw_file(tmp_path / "b.safetensors", b)
    )
    assert [(d.name, d.differing, d.relative) for d in report.changed] == [
        ("q", None, None),
        ("w", None, None),
    ]
    assert (report.only_a, report.only_b, report.tensors) == (("left",), ("right",), 2)


def test_a_base_of_zeros(tmp_path: Path) -> None:
    report = pair(tmp_path, ("F32", np.zeros(3, np.float32)), ("F32", np.float32([0, 3, 4])))
    assert (only(report).norm, only(report).relative) == (5, math.inf)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    a = raw_file(tmp_path / "a.safetensors", {"x": ("U8", np.ones(4, np.uint8))})
    b = raw_file(tmp_path / "b.safetensors", {"x": ("U8", np.ones(4, np.uint8))})
    with pytest.raises(CheckpointError, match=r"b\.safetensors: changed while it was in use"):
        compare(a, b, progress=lambda *_: os.utime(b, (1, 1)))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(CheckpointError, match="not a valid index"):
        compare(a, tmp_path / "d")


def test_progress_ends_at_the_total(family: Family) -> None:
    seen: list[tuple[int, int]] = []
    report = compare(family.base, family.two, progress=lambda *now: seen.append(now))
    assert seen[-1] == (report.bytes_read, report.bytes_read)
