"""linear and gated_mlp: native and reference against f64, within the bounds of their contracts."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from avops.dtypes import BF16 as BF16_ARRAY
from avops.dtypes import F32 as F32_ARRAY
from avops.kernels import Workspace, extension, gated_mlp, linear, registry
from avops.kernels.linear import Projection, native
from guarded import Guarded

F32, BF16 = torch.float32, torch.bfloat16
UNIT = 2.0**-24
HALF = 2.0**-8  # one rounding to bf16, relative
available, reason = native.available()
needed = pytest.mark.skipif(not available, reason=reason)
dtypes = pytest.mark.parametrize("dtype", [d for d in (F32, BF16) if native.serves(d)] or [F32])
both = pytest.mark.parametrize("backend", [pytest.param("native", marks=needed), "reference"])

# One, odd, around lanes (16), panels (64), groups of panels (256), tiles (6), blocks of weights
# (48), squares (16) and parts of a sum (256).
SHAPES = [
    (1, 1, 1), (3, 2, 5), (15, 7, 6), (16, 16, 48), (17, 31, 47), (33, 255, 49), (63, 256, 17),
    (64, 257, 54), (65, 64, 96), (130, 513, 7), (257, 40, 103), (300, 1030, 20),
]  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def projection(outputs: int, dim: int, dtype: torch.dtype, seed: int, bias: bool) -> Projection:
    weight = drawn(outputs, dim, dtype=dtype, seed=seed)
    return weight, drawn(outputs, dtype=dtype, seed=seed + 1) if bias else None


def product(x: torch.Tensor, part: Projection) -> tuple[torch.Tensor, torch.Tensor]:
    """x @ weight.T + bias in f64, and the same of absolute values."""
    weight, bias = (None if one is None else one.double() for one in part)
    assert weight is not None
    exact, sizes = x @ weight.T, x.abs() @ weight.abs().T
    return (exact, sizes) if bias is None else (exact + bias, sizes + bias.abs())


def roundings(dim: int) -> float:
    return min(dim, 256) + dim / 256 + 2  # the contract's n


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == F32 else torch.int16)


@both
@dtypes
@shapes
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_linear_keeps_its_bound(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int], bias: bool
) -> None:
    rows, dim, outputs = shape
    x = drawn(rows, dim, dtype=dtype)
    # Of unequal sizes, as those of query, key and value.
    parts = [projection(n, dim, dtype, 7 * n, bias) for n in (outputs, 1, outputs // 2 + 1)]
    for part, got in zip(parts, linear(x, parts, backend=backend), strict=True):
        exact, sizes = product(x.double(), part)
        bound = roundings(dim) * UNIT * sizes
        if dtype == BF16:
            bound = bound * (1 + HALF) + HALF * exact.abs()
        assert got.shape == exact.shape
        assert got.dtype == dtype
        assert ((got.double() - exact).abs() <= bound).all()


@both
@dtypes
@shapes
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_gated_mlp_keeps_its_bound(
    backend: str, dtype: torch.dtype, shape: tuple[int, int, int], bias: bool
) -> None:
    rows, dim, inner = shape
    x = drawn(rows, dim, dtype=dtype)
    gate, up = (projection(inner, dim, dtype, seed, bias) for seed in (1, 2))
    down = projection(dim + 3, inner, dtype, 3, bias)
    got = gated_mlp(x, gate, up, down, backend=backend)
    (g, g_sizes), (u, u_sizes) = (product(x.double(), part) for part in (gate, up))
    silu, slope = g / (1 + (-g).exp()), 1.1  # |silu'| < 1.1
    n = roundings(dim) * UNIT
    # Errors of gate and up, to first order and with their product; then those of swiglu.
    off = slope * n * g_sizes * (u.abs() + n * u_sizes) + silu.abs() * n * u_sizes
    off += 7 * UNIT * ((silu * u).abs() + off) + 2.0**-126
    if dtype == BF16:
        off += HALF * ((silu * u).abs() + off)
    exact, sizes = product(silu * u, down)
    moved = off @ down[0].double().abs().T
    bound = moved + roundings(inner) * UNIT * (sizes + moved)
    if dtype == BF16:
        bound = bound * (1 + HALF) + HALF * exact.abs()
    assert got.dtype == dtype
    assert ((got.double() - exact).abs() <= bound).all()


RUNS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda x, parts, **o: torch.cat(linear(x, parts, backend="native", **o), 1),
    "gated_mlp": lambda x, parts, **o: gated_mlp(x, *parts, backend="native", **o),
}
runs = pytest.mark.parametrize("name", list(RUNS))


def square(dim: int, dtype: torch.dtype, bias: bool = True) -> list[Projection]:
    """Three projections of rows of ``dim`` elements to as many."""
    return [projection(dim, dim, dtype, seed, bias) for seed in (1, 2, 3)]


@needed
@dtypes
@runs
def test_a_rows_bits_are_its_own(name: str, dtype: torch.dtype) -> None:
    """Whatever threads, other rows and alignment are."""
    x, parts = drawn(333, 101, dtype=dtype), square(101, dtype)
    want = RUNS[name](x, parts, threads=1)
    for threads in (2, 3, 64):
        assert torch.equal(bits(RUNS[name](x, parts, threads=threads)), bits(want))
    for first, last in ((0, 1), (64, 80), (63, 65), (200, 333)):
        some = RUNS[name](x[first:last], parts)
        assert torch.equal(bits(some), bits(want[first:last]))
    for elements in (1, 3):
        room = [torch.zeros(tensor.numel() + elements, dtype=dtype) for tensor in (x, parts[0][0])]
        moved = [one[elements:].view(-1, 101) for one in room]
        moved[0][:], moved[1][:] = x, parts[0][0]
        got = RUNS[name](moved[0], [(moved[1], parts[0][1]), *parts[1:]])
        assert torch.equal(bits(got), bits(want))


@needed
@dtypes
@runs
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize(("dim", "place"), [(50, 49), (31, 0)], ids=["at its end", "at its start"])
def test_what_is_not_finite_stays_in_its_row(
    name: str, dtype: torch.dtype, dim: int, place: int, bad: float
) -> None:
    """31 values of bf16 are two bytes short of the 64 that are read at a time."""
    x, parts = drawn(80, dim, dtype=dtype), square(dim, dtype)
    want = RUNS[name](x, parts)
    x[70, place] = bad
    got = RUNS[name](x, parts)
    assert not got[70].isfinite().any()
    rest = torch.arange(80) != 70
    assert torch.equal(bits(got[rest]), bits(want[rest]))


@needed
@dtypes
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_stays_in_its_output(dtype: torch.dtype, bad: float) -> None:
    x, (part, *_) = drawn(20, 50, dtype=dtype), square(50, dtype)
    (want,) = linear(x, [part], backend="native")
    part[0][17, 3] = bad
    (got,) = linear(x, [part], backend="native")
    assert not got[:, 17].isfinite().any()
    rest = torch.arange(50) != 17
    assert torch.equal(bits(got[:, rest]), bits(want[:, rest]))


@needed
def test_results_that_are_too_large_for_bf16_are_infinite() -> None:
    if not native.serves(BF16):
        pytest.skip("no products of bf16 on this processor")
    x, weight = torch.full((2, 4), 3e38, dtype=BF16), torch.eye(4, dtype=BF16)
    (got,) = linear(x, [(weight * 1.5, None)], backend="native")
    assert (got == torch.inf).all()
    (got,) = linear(x, [(weight, None)], backend="native")
    assert torch.equal(got, x)


@needed
def test_ties_go_to_even_in_bf16() -> None:
    if not native.serves(BF16):
        pytest.skip("no products of bf16 on this processor")
    x = torch.tensor([[1.0], [1 + 2.0**-7], [-1.0], [-1 - 2.0**-7]], dtype=BF16)
    one, half = torch.ones(1, 1, dtype=BF16), torch.tensor([2.0**-8], dtype=BF16)
    (above,) = linear(x, [(one, half)], backend="native")
    assert above[:2, 0].tolist() == [1.0, 1 + 2.0**-6]
    (below,) = linear(x, [(one, -half)], backend="native")
    assert below[2:, 0].tolist() == [-1.0, -1 - 2.0**-6]


@needed
def test_a_workspace_is_the_hosts_whatever_torch_is_told() -> None:
    with torch.device("meta"):
        assert Workspace().address(100) != 0


@needed
@dtypes
def test_nothing_is_written_but_the_results(dtype: torch.dtype) -> None:
    """Out, and packed rows, between sentinels; inputs as they were."""
    array = {F32: F32_ARRAY, BF16: BF16_ARRAY}[dtype]
    code = array.code
    for rows, dim, outputs in SHAPES:
        x, (weight, bias) = drawn(rows, dim, dtype=dtype), projection(outputs, dim, dtype, 1, True)
        down, _ = projection(dim, outputs, dtype, 2, False)
        before = [tensor.clone() for tensor in (x, weight, bias, down) if tensor is not None]
        out, last = Guarded(rows * outputs, array, array.size), Guarded(rows * dim, array)
        room = extension.NATIVE.packed_bytes(code, rows, dim)  # type: ignore[union-attr]
        scratch = Guarded(room // 4, F32_ARRAY)
        part = (weight.data_ptr(), 0 if bias is None else bias.data_ptr())
        address = out.operand.array.ctypes.data
        extension.NATIVE.linear(  # type: ignore[union-attr]
            code, x.data_ptr(), rows, dim, ((*part, address, outputs),),
            scratch.operand.array.ctypes.data, 2,
        )  # fmt: skip
        (want,) = linear(x, [(weight, bias)], backend="native")
        assert (out.bits() == bits(want).numpy().ravel().view(f"u{array.size}")).all()
        scratch.bits()
        room += extension.NATIVE.packed_bytes(code, rows, outputs)  # type: ignore[union-attr]
        scratch = Guarded(room // 4, F32_ARRAY)
        extension.NATIVE.gated_mlp(  # type: ignore[union-attr]
            code, x.data_ptr(), rows, dim, (*part, 0, outputs), (*part, 0, outputs),
            (down.data_ptr(), 0, last.operand.array.ctypes.data, dim),
            scratch.operand.array.ctypes.data, 2,
        )  # fmt: skip
        want = gated_mlp(x, (weight, bias), (weight, bias), (down, None), backend="native")
        assert (last.bits() == bits(want).numpy().ravel().view(f"u{array.size}")).all()
        scratch.bits()
        after = [tensor for tensor in (x, weight, bias, down) if tensor is not None]
        for one, other in zip(before, after, strict=True):
            assert torch.equal(bits(one), bits(other))


@needed
@dtypes
@runs
def test_a_workspace_is_used_again(name: str, dtype: torch.dtype) -> None:
    parts, workspace = square(70, dtype), Workspace()
    assert workspace.nbytes == 0
    x = drawn(200, 70, dtype=dtype)
    want = RUNS[name](x, parts, workspace=workspace)
    held, address = workspace.nbytes, workspace.address(64)
    assert held > 0
    assert address % 64 == 0
    few = RUNS[name](x[:9], parts, workspace=workspace)
    assert torch.equal(bits(few), bits(want[:9]))
    assert (workspace.nbytes, workspace.address(64)) == (held, address)
    RUNS[name](drawn(500, 70, dtype=dtype), parts, workspace=workspace)
    assert workspace.nbytes > held


@runs
def test_no_rows(name: str) -> None:
    x, parts = drawn(0, 5), square(5, F32)
    got = linear(x, parts) if name == "linear" else [gated_mlp(x, *parts)]
    assert [one.shape for one in got] == [(0, 5)] * len(got)


def zeros(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def plain(outputs: int, dim: int) -> Projection:
    return zeros(outputs, dim), None


def odd(rows: int, columns: int) -> torch.Tensor:
    """Not aligned to its elements."""
    raw = torch.zeros(rows * columns * 4 + 4, dtype=torch.uint8)
    return torch.frombuffer(raw.numpy().data, dtype=F32, offset=1, count=rows * columns).view(
        rows, columns
    )


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "rows of f16": (
        lambda: linear(zeros(2, 4, dtype=torch.float16), []),
        TypeError, "x is torch.float16, expected float32 or bfloat16",
    ),
    "rows of columns": (
        lambda: linear(zeros(4, 2).T, []),
        ValueError, "x has shape [2, 4] and strides [1, 2], expected a contiguous [rows, columns]",
    ),
    "a vector": (lambda: linear(zeros(4), []), ValueError, "x has shape [4] and strides [1]"),
    "another dtype": (
        lambda: linear(zeros(2, 4), [(zeros(3, 4), None), (zeros(3, 4, dtype=BF16), None)]),
        TypeError, "projection 1: weight is torch.bfloat16 and x torch.float32, expected one dtype",
    ),
    "another width": (
        lambda: linear(zeros(2, 4), [(zeros(3, 5), None)]),
        ValueError, "projection 0: weight has shape [3, 5] and strides [5, 1], expected a contig",
    ),
    "another bias": (
        lambda: linear(zeros(2, 4), [(zeros(3, 4), zeros(4))]),
        ValueError, "bias has shape [4] on cpu, expected [3] on cpu, contiguous",
    ),
    "between elements": (
        lambda: linear(zeros(2, 4), [(odd(3, 4), None)]),
        ValueError, "projection 0: weight is not aligned to its elements; pass weight.clone()",
    ),
    "up of another width": (
        lambda: gated_mlp(zeros(2, 4), plain(6, 4), plain(7, 4), plain(4, 6)),
        ValueError, "up has 7 outputs, expected 6 as gate",
    ),
    "down of another width": (
        lambda: gated_mlp(zeros(2, 4), plain(6, 4), plain(6, 4), plain(4, 5)),
        ValueError, "down: weight has shape [4, 5] and strides [5, 1], expected a contiguous [row",
    ),
    "no threads": (lambda: linear(zeros(2, 4), [], threads=0), ValueError, "threads"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused(case: str) -> None:
    call, error, text = REFUSED[case]
    with pytest.raises(error, match=re.escape(text)):
        call()


@needed
@runs
def test_native_is_chosen(name: str) -> None:
    assert registry.resolve(name).backend == "native"
    assert registry.resolve(name, device="cuda").backend == "reference"


def test_a_processor_without_avx512_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, served in ((1, []), (2, [F32]), (3, [F32, BF16])):
        monkeypatch.setattr(extension, "NATIVE", SimpleNamespace(HEAD_PATH=path, AMD=1))
        assert native.available()[0] == (path >= 2)
        assert [d for d in (F32, BF16, torch.float16) if native.serves(d)] == served
        assert [d for d in (F32, BF16, torch.float16) if native.faster(d)] == served
        for dtype in {F32, BF16} - set(served):
            with pytest.raises(ValueError, match="take no torch.* on this processor"):
                native.described(zeros(1, 1, dtype=dtype))
    monkeypatch.setattr(extension, "NATIVE", SimpleNamespace(HEAD_PATH=3, AMD=0))
    assert native.serves(F32)
    assert not native.faster(F32)
