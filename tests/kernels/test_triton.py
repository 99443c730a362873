"""combine_many in Triton: through the interpreter, compiled without a device, and its plan."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from avops.dtypes import COMPUTABLE
from avops.kernels.many import Entry, LowRank, Values, layout, triton, triton_plan
from avops.kernels.many.device_lams import HostLams
from avops.kernels.many.triton_plan import COMPILED, INTERPRETED, plan
from interpreters import interpreter_refusal

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

HERE = Path(__file__).parent
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.timeout(900)
def test_conformance_through_the_interpreter() -> None:
    """All of test_many.py in a process of its own: Triton reads TRITON_INTERPRET when imported."""
    refusal = interpreter_refusal()
    if refusal:
        pytest.skip(refusal)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "test_many.py"],
        cwd=HERE.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    found = re.search(r"(\d+) passed", summary)
    assert found is not None
    assert int(found[1]) > 60
    assert "skipped" not in summary


def test_the_kernels_read_the_rows_that_the_layout_writes() -> None:
    from avops.kernels.many import triton_kernels as kernels
    from avops.kernels.many import triton_numbers

    for name in ("BASE", "OUT", "COUNT", "KEY", "MODE", "ADDRESS", "KIND", "RIGHT", "RANK"):
        assert getattr(kernels, name).value == getattr(layout, name), name
    for name in ("COLUMNS", "SCALE", "ALIGNED", "LOW_RANK", "DITHER"):
        assert getattr(kernels, name).value == getattr(layout, name), name
    assert kernels.ROW.value == layout.ENTRY_COLUMNS == layout.PART_COLUMNS
    codes = {str(d): getattr(triton_numbers, str(d)).value for d in COMPUTABLE}
    assert codes == {str(d): d.code for d in COMPUTABLE}


# The plan.


def values(n: int, dtype: torch.dtype = torch.bfloat16, aligned: bool = True) -> Values:
    return Values(torch.zeros(n, dtype=dtype), aligned)


def entry(n: int, *parts: Values | LowRank | None, dtype: torch.dtype = torch.bfloat16,
          key: int | None = None) -> Entry:  # fmt: skip
    return Entry(torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype), parts, key)


def low_rank(rows: int, columns: int) -> LowRank:
    return LowRank(torch.zeros(rows, 2), torch.zeros(2, columns), 1.0)


@pytest.mark.parametrize("sizes", [COMPILED, INTERPRETED], ids=["compiled", "interpreted"])
def test_every_element_is_in_one_program(sizes: triton_plan.Sizes) -> None:
    f16, f32 = torch.float16, torch.float32
    lengths = [0, 1, sizes.flat - 1, sizes.flat, sizes.dense, 3 * sizes.dense + sizes.flat + 1]
    entries = [entry(n, part) for n in lengths for part in (values(n), None)]
    entries += [entry(n, values(n, f32, False), key=k) for n in lengths for k in (None, 1)]
    entries += [entry(n, values(n, f16), dtype=f16) for n in lengths]
    entries += [entry(n, values(n, f32), dtype=f32) for n in lengths]
    entries += [entry(r * c, low_rank(r, c)) for r, c in ((1, 7), (70, 1025), (33, 512), (5, 128))]
    seen = [np.zeros(one.base.numel(), np.int64) for one in entries]
    for launch in plan(entries, sizes):
        assert launch.chunks.dtype == np.int32
        assert launch.chunks.flags.c_contiguous
        size = launch.options["SIZE"]
        for number, *place in launch.chunks.tolist():
            if launch.kernel == "tiles":
                row, column, columns = place
                grid = seen[number].reshape(-1, columns)
                grid[row : row + launch.options["ROWS"], column : column + size] += 1
            else:
                (block,) = place
                assert block * size < seen[number].size
                seen[number][block * size : (block + 1) * size] += 1
    assert all((one == 1).all() for one in seen)


def test_the_number_of_launches_does_not_grow() -> None:
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    few = [
        entry(4096, values(4096, dtype, aligned), values(4096, dtype, aligned), dtype=base, key=key)
        for base in dtypes
        for dtype in dtypes
        for aligned in (False, True)
        for key in (None, 1)
    ]
    few += [entry(c * 16, low_rank(16, c), values(c * 16)) for c in (131, 256)]
    kernels = Counter(launch.kernel for launch in plan(few, COMPILED))
    assert kernels == {"dense": triton_plan.CLASSES, "tiles": 2, "flat": 1}
    assert Counter(launch.kernel for launch in plan(few * 7, COMPILED)) == kernels


def test_what_is_of_one_class_takes_the_fast_kernel() -> None:
    n = COMPILED.dense
    (launch,) = plan([entry(n, values(n), values(n)), entry(n, None, values(n))], COMPILED)
    assert (launch.kernel, len(launch.chunks)) == ("dense", 2)
    bf16 = 2
    assert launch.options == {
        "SIZE": n,
        "IN": bf16,
        "CODE": bf16,
        "DITHERED": False,
        "VALUES": bf16,
        "VALUES_ALIGNED": True,
        "TERMS": 2,
    }
    memory = torch.zeros(n + 1, dtype=torch.bfloat16)
    for other in (
        entry(n, values(n), values(n, aligned=False)),
        entry(n, values(n), values(n, torch.float32)),
        entry(n, values(n), Values(memory[1:], True)),
        Entry(values(n).tensor, values(n, torch.float16).tensor, (values(n), None)),
    ):
        assert [launch.kernel for launch in plan([other], COMPILED)] == ["flat"]
    terms = triton_plan.UNROLLED + 1
    (launch,) = plan([entry(n, *[values(n)] * terms)], COMPILED)
    assert launch.options["TERMS"] == -1


def test_what_tiles_cannot_number_takes_the_flat_kernel() -> None:
    for parts in (
        (low_rank(64, 127),),
        (low_rank(64, 256), low_rank(256, 64)),
    ):
        count = parts[0].left.shape[0] * parts[0].right.shape[1]
        assert [one.kernel for one in plan([entry(count, *parts)], COMPILED)] == ["flat"]
    (launch,) = plan([entry(64 * 130, low_rank(64, 130))], COMPILED)
    assert (launch.kernel, launch.options["VECTOR"]) == ("tiles", False)
    (launch,) = plan([entry(64 * 136, low_rank(64, 136))], COMPILED)
    assert (launch.kernel, launch.options["VECTOR"]) == ("tiles", True)


# Availability.


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No memory of what was found before, and none left behind."""
    triton.available.cache_clear()
    monkeypatch.setattr(triton, "_interpreted", lambda: False)
    monkeypatch.setattr(triton, "_cuda_devices", lambda: 0)
    yield
    triton.available.cache_clear()


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_a_missing_package_is_named(
    package: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    message = f"the package {package} is not installed; pip install 'avops[triton]'"
    assert triton.available() == (False, message)


def test_a_package_that_does_not_load_says_why(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('libtriton.so: no such file')")
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    available, reason = triton.available()
    assert not available
    expected = "the package triton does not load: libtriton.so: no such file; install it again"
    assert reason == expected


def test_a_missing_device_is_named(fresh: None) -> None:
    available, reason = triton.available()
    assert not available
    assert re.match(r"Triton \d.* finds no CUDA device; check nvidia-smi and CUDA_VISI", reason)
    assert triton.DEVICES == ("cuda",)


def test_devices_and_interpreter_are_named(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_cuda_devices", lambda: 2)
    assert re.fullmatch(r"Triton \S+, for 2 CUDA devices", triton.available()[1])
    triton.available.cache_clear()
    monkeypatch.setattr(triton, "_interpreted", lambda: True)
    assert triton.available()[0]
    assert triton.available()[1].endswith(
        "interpreted on the CPU (TRITON_INTERPRET=1): for tests only"
    )
    assert triton.DEVICES == ("cpu",)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        triton.nothing  # noqa: B018


def test_launches_fuse_nothing() -> None:
    """What the code is compiled with below is what is launched with."""
    given: list[dict[str, object]] = []
    state = object.__new__(triton.Prepared)
    state._lams = HostLams((1, 1), torch.device("cpu"))
    state._counts = state._entries = state._parts = torch.zeros(1)
    state._tables, state._terms = [], 1
    state._launches = [(lambda *_, **options: given.append(options), torch.zeros(1), {"SIZE": 8})]
    state.run(np.zeros((1, 1), np.float32))
    assert given == [{"SIZE": 8, **triton.OPTIONS}]
    assert triton.OPTIONS["enable_fp_fusion"] is False


# Compiled for devices that need not be there.

POINTERS = {"chunks": "*i32", "entries": "*i64", "parts": "*i64", "lams": "*fp32", "counts": "*i64"}
BF16_ALIGNED = {"IN": 2, "CODE": 2, "VALUES": 2, "VALUES_ALIGNED": True}
FAST = {**BF16_ALIGNED, "SIZE": COMPILED.dense, "TERMS": 3, "DITHERED": False}
TILES = {"ROWS": COMPILED.rows, "SIZE": COMPILED.columns}


@pytest.mark.skipif(INTERPRETING, reason="Triton interprets in this process")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kernel", "arch", "constants", "wide"),
    [
        ("dense", 80, FAST, "v4"),
        ("dense", 90, FAST, "v4"),
        ("dense", 90, {**FAST, "DITHERED": True}, "v4"),
        ("dense", 90, {**FAST, "TERMS": -1}, "v4"),
        ("dense", 90, {**FAST, "IN": 1, "CODE": 1, "VALUES": 1}, "v4"),
        ("dense", 90, {**FAST, "VALUES": 0, "VALUES_ALIGNED": False}, "v4"),
        ("dense", 100, FAST, "v4"),
        ("dense", 120, FAST, "v4"),
        ("flat", 90, {"SIZE": COMPILED.flat}, ""),
        ("tiles", 90, {**TILES, "VECTOR": True}, "v4"),
        ("tiles", 90, {**TILES, "VECTOR": False}, ""),
    ],
)
def test_compiled_arithmetic_is_exact_and_loads_are_wide(
    kernel: str, arch: int, constants: dict[str, int], wide: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nothing fused, nothing flushed to zero, no division, and 16 bytes a load where promised."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget

    from avops.kernels.many import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_kernels, kernel)
    place = function.arg_names.index
    source = compiler.compiler.ASTSource(
        fn=function,
        signature={**POINTERS, "terms": "i32", **dict.fromkeys(constants, "constexpr")},
        constexprs={(place(name),): value for name, value in constants.items()},
        attrs={(place(name),): [["tt.divisibility", 16]] for name in POINTERS},
    )
    warps = triton_plan.Launch(kernel, np.empty(0), {}).warps
    options = {"num_warps": warps, **triton.OPTIONS}
    made = compiler.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    code = made.asm["ptx"]
    arithmetic = re.findall(r"\b(fma|mad|add|sub|mul|div)\.((?:\w+\.)*)f32", code)
    assert {name for name, _ in arithmetic} <= {"add", "sub", "mul"}
    assert len(arithmetic) > 10
    assert ".ftz" not in code
    assert ".approx" not in code
    loads = Counter(re.findall(r"ld\.global\.(?:\w+\.)*?(v4\.)?b(\d+)", code))
    if wide:
        assert loads["v4.", "32"] >= 2 * (1 + max(1, constants.get("TERMS", 1)))
        assert not loads["", "16"]


def test_products_are_fused_without_the_option_so_that_the_test_above_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETING:
        pytest.skip("Triton interprets in this process")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton as compiler
    from triton.backends.compiler import GPUTarget

    from avops.kernels.many import triton_kernels

    place = triton_kernels.dense.arg_names.index
    source = compiler.compiler.ASTSource(
        fn=triton_kernels.dense,
        signature={**POINTERS, "terms": "i32", **dict.fromkeys(FAST, "constexpr")},
        constexprs={(place(name),): value for name, value in FAST.items()},
        attrs={},
    )
    made = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert re.search(r"fma\.rn\.f32", made.asm["ptx"])
