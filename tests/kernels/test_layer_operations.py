"""rms_norm, rope and swiglu: native against reference, within the bounds of their contracts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from avops.errors import BackendError
from avops.kernels import extension, registry, rms_norm, rope, swiglu

F32, BF16 = torch.float32, torch.bfloat16
UNIT = 2.0**-24
HALF = 2.0**-8  # one rounding to bf16, relative
# One, odd, around blocks (512), chains (64) and tasks (2¹⁵ elements).
SHAPES = [(1, 1), (3, 7), (2, 63), (5, 64), (17, 65), (3, 513), (70, 768), (2, 40000)]
native = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)
dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=str)


def drawn(*shape: int, dtype: torch.dtype = F32, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def moved(tensor: torch.Tensor, elements: int = 1) -> torch.Tensor:
    """The same numbers, so many elements behind an address that is a multiple of 64."""
    room = torch.zeros(tensor.numel() + 64, dtype=tensor.dtype)
    first = -room.data_ptr() % 64 // room.element_size() + elements
    room[first : first + tensor.numel()] = tensor.flatten()
    return room[first : first + tensor.numel()].view(tensor.shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == F32 else torch.int16)


def within(got: torch.Tensor, exact: torch.Tensor, roundings: float, floor: float = 0.0) -> bool:
    """Whether |got − exact| ≤ roundings·u·|exact| + floor, and for bf16 one rounding more."""
    relative = roundings * UNIT + (HALF if got.dtype == BF16 else 0.0)
    return bool(((got.double() - exact).abs() <= relative * exact.abs() + floor).all())


@native
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_keeps_its_bound(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = drawn(*shape, dtype=dtype, scale=3.0), drawn(shape[1], dtype=dtype)
    wide = x.double()
    exact = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    roundings = shape[1] / 128 + 10  # the contract's
    for backend in ("native", "reference"):
        assert within(rms_norm(x, weight, 1e-5, backend=backend), exact, roundings)


@native
@dtypes
@pytest.mark.parametrize(
    "shape", [(1, 1, 2), (3, 5, 6), (7, 3, 8), (300, 12, 64), (9, 1, 130)], ids=str
)
def test_rope_is_torchs_expression_to_the_bit(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x = drawn(*shape, dtype=dtype)
    angles = drawn(shape[0], shape[2], scale=9.0)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    wide = x.float()
    half = shape[2] // 2
    turned = torch.cat((-wide[..., half:], wide[..., :half]), -1)
    want = (wide * cosine.float()[:, None] + turned * sine.float()[:, None]).to(dtype)
    for backend in ("native", "reference"):
        got = x.clone()
        assert rope(got, cosine, sine, backend=backend) is got
        assert torch.equal(bits(got), bits(want))


@native
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_swiglu_keeps_its_bound(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate, up = drawn(*shape, dtype=dtype, scale=9.0), drawn(shape[1], shape[0], dtype=dtype)
    up = up.T.contiguous()
    wide = gate.double()
    exact = wide / (1 + (-wide).exp()) * up.double()
    for backend in ("native", "reference"):
        got = gate.clone()
        assert swiglu(got, up, backend=backend) is got
        assert within(got, exact, 7, floor=2.0**-126)  # the contract's


@native
def test_swiglu_over_the_whole_range() -> None:
    """Where e⁻ˣ overflows, where silu vanishes, and zeros."""
    gate = torch.cat((torch.linspace(-200, 200, 40001), torch.tensor([0.0, -0.0, 3e38, -3e38])))
    got = swiglu(gate.clone(), torch.ones_like(gate), backend="native")
    wide = gate.double()
    exact = wide / (1 + (-wide).exp())
    inside = gate >= -87
    assert within(got[inside], exact[inside], 7, floor=2.0**-126)
    assert (got[~inside] == 0).all()
    assert exact[~inside].abs().max() <= 1.5e-36


RUNS: dict[str, Callable[..., torch.Tensor]] = {
    "rms_norm": lambda x, other, **o: rms_norm(x.flatten(1), other[0, 0].repeat(4), 1e-6, **o),
    "rope": lambda x, other, **o: rope(x, other[:, 0].contiguous(), other[:, 1].contiguous(), **o),
    "swiglu": swiglu,
}


@native
@dtypes
@pytest.mark.parametrize("name", list(RUNS))
def test_threads_and_alignment_change_no_bit(name: str, dtype: torch.dtype) -> None:
    x, other = drawn(1500, 4, 26, dtype=dtype), drawn(1500, 4, 26, dtype=dtype, scale=2.0)
    want = RUNS[name](x.clone(), other, threads=1, backend="native").clone()
    for threads in (2, 3, 64):
        got = RUNS[name](x.clone(), other, threads=threads, backend="native")
        assert torch.equal(bits(got), bits(want))
    got = RUNS[name](moved(x, 3), moved(other, 5), backend="native")
    assert torch.equal(bits(got), bits(want))
    # A row's bits are its own.
    few = RUNS[name](
        x[700:701].clone(), other[700:701] if name != "rms_norm" else other, backend="native"
    )
    assert torch.equal(bits(few.view(-1)), bits(want.view(1500, -1)[700]))


@native
@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(name: str, bad: float) -> None:
    x, other = drawn(40, 4, 26), drawn(40, 4, 26)
    want = RUNS[name](x.clone(), other, backend="native").clone()
    x[7, 2, 3] = bad
    got = RUNS[name](x.clone(), other, backend="native")
    assert not got[7].isfinite().all()
    rest = torch.arange(40) != 7
    assert torch.equal(got[rest], want[rest])


@native
@pytest.mark.parametrize("name", list(RUNS))
def test_no_rows(name: str) -> None:
    x, other = drawn(9, 4, 26), drawn(9, 4, 26)
    none = other[:0] if name != "rms_norm" else other
    assert RUNS[name](x[:0].clone(), none, backend="native").numel() == 0


WITHOUT_TORCH = """
import ctypes, sys
import numpy as np
from avops import _native
assert "torch" not in sys.modules
print(hasattr(ctypes.CDLL(None), "GOMP_parallel"))
found = []
for threads in (1, 2, 7):
    rng = np.random.default_rng(1)
    gate, up = rng.standard_normal((2, 300_001), np.float32)
    _native.swiglu(gate.ctypes.data, up.ctypes.data, 0, gate.size, threads)
    found.append(gate.tobytes())
assert found[0] == found[1] == found[2]
print(np.frombuffer(found[0], np.float32)[:2].tolist())
"""


@native
def test_without_an_openmp_runtime_threads_are_our_own() -> None:
    """In a process that has not loaded torch; the bits are those of one that has."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True
    )
    openmp, first = done.stdout.splitlines()
    assert openmp == "False"
    gate, up = np.random.default_rng(1).standard_normal((2, 300_001), np.float32)
    got = swiglu(torch.from_numpy(gate), torch.from_numpy(up), threads=2, backend="native")
    assert str(got[:2].tolist()) == first


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "norm of other dtypes": (
        lambda: rms_norm(torch.zeros(2, 4), torch.zeros(4, dtype=BF16), 1e-6),
        TypeError, "x is torch.float32 and weight torch.bfloat16, expected both float32 or",
    ),
    "norm of f16": (
        lambda: rms_norm(torch.zeros(2, 4).half(), torch.zeros(4).half(), 1e-6),
        TypeError, "x is torch.float16 and weight torch.float16, expected both float32 or both bfl",
    ),
    "norm of other widths": (
        lambda: rms_norm(torch.zeros(2, 4), torch.zeros(5), 1e-6),
        ValueError, "weight has shape [5] on cpu, expected [4] on cpu, contiguous",
    ),
    "norm of columns": (
        lambda: rms_norm(torch.zeros(4, 2).T, torch.zeros(4), 1e-6),
        ValueError, "x has shape [2, 4] and strides [1, 2], expected a contiguous [rows, columns]",
    ),
    "rope of other dtypes": (
        lambda: rope(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=BF16), torch.zeros(2, 4)),
        TypeError, "cosine is torch.bfloat16 and x torch.float32, expected all float32 or all",
    ),
    "rope of odd sizes": (
        lambda: rope(torch.zeros(2, 3, 5), torch.zeros(2, 5), torch.zeros(2, 5)),
        ValueError, "have shapes [2, 3, 5], [2, 5] and [2, 5], expected [rows, heads, size] and",
    ),
    "rope of other rows": (
        lambda: rope(torch.zeros(2, 3, 4), torch.zeros(2, 4), torch.zeros(3, 4)),
        ValueError, "[2, 4] and [3, 4], expected [rows, heads, size] and twice [rows, size], size",
    ),
    "rope of heads first": (
        lambda: rope(torch.zeros(3, 2, 4).transpose(0, 1), torch.zeros(2, 4), torch.zeros(2, 4)),
        ValueError, "x has strides [4, 8, 1] on cpu, expected contiguous on cpu; pass x.contiguous",
    ),
    "swiglu of other dtypes": (
        lambda: swiglu(torch.zeros(4), torch.zeros(4, dtype=BF16)),
        TypeError, "gate is torch.float32 and up torch.bfloat16, expected both float32 or both",
    ),
    "swiglu of other shapes": (
        lambda: swiglu(torch.zeros(2, 4), torch.zeros(4, 2)),
        ValueError, "gate has shape [2, 4] and up [4, 2], expected one shape, both contiguous",
    ),
    "swiglu of itself": (
        lambda: swiglu(*torch.zeros(6).unfold(0, 4, 2)),
        ValueError, "gate overlaps up; give it memory of its own",
    ),
    "no threads": (
        lambda: swiglu(torch.zeros(4), torch.zeros(4), threads=0), ValueError, "threads",
    ),
    "no such backend": (
        lambda: rope(torch.zeros(1, 1, 2), torch.zeros(1, 2), torch.zeros(1, 2), backend="cuda"),
        BackendError, "backend= is 'cuda', expected a backend of rope: triton, native, reference",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_does_not_fit_is_refused(case: str) -> None:
    call, error, text = REFUSED[case]
    with pytest.raises(error, match=re.escape(text)):
        call()


@native
@pytest.mark.parametrize("name", list(RUNS))
def test_native_is_chosen(name: str) -> None:
    assert registry.resolve(name).backend == "native"
    rows = {(row.operation, row.backend): row.available for row in registry.report()}
    wanted = "triton" if rows[name, "triton"] else "reference"
    assert registry.resolve(name, device="cuda").backend == wanted
