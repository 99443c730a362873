"""avops::combine and avops::combine_ in torch: eager, compiled, traced, fake."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from avops.dtypes import COMPUTABLE, DType
from avops.kernels import Operand, Term, combine, torch_ops
from avops.kernels.samples import FILLS, sample

# torch's own deprecations while it compiles are not ours.
compiling = pytest.mark.filterwarnings("ignore")

LAMS = [-1.0, 0.6, 0.0, 1.5]
ALIGNED = [True, False, True, False]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def tensor(operand: Operand, shape: Sequence[int], device: str) -> torch.Tensor:
    raw = torch.from_numpy(operand.array.view(np.uint8).copy())
    return raw.view(getattr(torch, operand.dtype.torch or "")).reshape(tuple(shape)).to(device)


def made(
    base: DType, values: DType, fill: str, device: str, shape: Sequence[int] = (7, 33)
) -> tuple[torch.Tensor, list[torch.Tensor], Callable[[DType], bytes]]:
    """Base, four values, and what the host's operation makes of them."""
    rng = np.random.default_rng(0)
    n = int(np.prod(shape))
    origin = sample(fill, base, n, rng)
    others = [sample(fill, values, n, rng) for _ in LAMS]

    def expected(dtype: DType) -> bytes:
        out = Operand(np.empty(n, dtype.storage), dtype)
        terms = [
            Term(other, float(np.float32(lam)), how)
            for other, lam, how in zip(others, LAMS, ALIGNED, strict=True)
            if lam
        ]
        combine(origin, terms, out, backend="reference")
        return out.array.tobytes()

    return tensor(origin, shape, device), [tensor(o, shape, device) for o in others], expected


def bits(found: torch.Tensor) -> bytes:
    return found.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    ("base", "values"), list(itertools.product(COMPUTABLE, COMPUTABLE)), ids=str
)
def test_the_bits_are_those_of_combine(base: DType, values: DType, fill: str, device: str) -> None:
    origin, others, expected = made(base, values, fill, device)
    for dtype in (*COMPUTABLE, None):
        kind = None if dtype is None else getattr(torch, dtype.torch)
        found = torch.ops.avops.combine(origin, others, LAMS, ALIGNED, dtype=kind)
        assert found.dtype == (kind or origin.dtype)
        assert found.shape == origin.shape
        assert found.device == origin.device
        assert bits(found) == expected(dtype or base)
        out = torch.empty_like(found)
        assert torch.ops.avops.combine_(out, origin, others, LAMS, ALIGNED) is None
        assert bits(out) == bits(found)
    torch.ops.avops.combine_(origin, origin, others, LAMS, ALIGNED)
    assert bits(origin) == expected(base)


def test_any_strides_and_shapes(device: str) -> None:
    base = torch.randn(6, 10, device=device).t()
    value = torch.randn(20, 12, device=device)[::2, ::2]
    plain = torch.ops.avops.combine(base.contiguous(), [value.contiguous()], [0.5], [True])
    assert torch.equal(torch.ops.avops.combine(base, [value], [0.5], [True]), plain)
    out = torch.zeros(6, 20, device=device).t()[::2]
    torch.ops.avops.combine_(out, base, [value], [0.5], [True])
    assert torch.equal(out, plain)
    torch.ops.avops.combine_(base, base, [value], [0.5], [True])
    assert torch.equal(base, plain)
    for shape in ((), (0,), (3, 0)):
        one = torch.ones(shape, device=device)
        found = torch.ops.avops.combine(one, [one], [2.0], [False])
        assert torch.equal(found, one * 3)


def test_no_terms_convert_the_base(device: str) -> None:
    base = torch.randn(100, device=device)
    found = torch.ops.avops.combine(base, [], [], [], dtype=torch.bfloat16)
    assert torch.equal(found, base.bfloat16())


def test_lam_is_rounded_to_f32_once(device: str) -> None:
    """0.1 as a double times 3 would round to another f32 number."""
    values = torch.linspace(1, 2, 1000, device=device)
    found = torch.ops.avops.combine(torch.zeros_like(values), [values], [0.1], [False])
    expected = np.float32(0.1) * values.cpu().numpy()
    assert np.array_equal(found.cpu().numpy(), expected)
    assert not np.array_equal(
        (0.1 * values.cpu().numpy().astype(np.float64)).astype("f4"), expected
    )
    for lam in (1e39, float("nan"), -float("inf")):
        with pytest.raises(ValueError, match=r"lams\[0\] is .*, expected a number that is finite"):
            torch.ops.avops.combine(values, [values], [lam], [False])


def test_what_lam_zero_leaves_out_is_not_read(device: str) -> None:
    base = torch.randn(100, device=device)
    nan = torch.full_like(base, float("nan"))
    assert torch.equal(torch.ops.avops.combine(base, [nan], [-0.0], [True]), base)
    assert torch.equal(torch.ops.avops.combine(base, [nan], [1e-60], [True]), base)


REFUSED = {
    "numbers": (([1.0, 2.0], [True]), {}, "1 values, 2 lams and 1 aligned, expected one of each"),
    "shape": (([1.0], [True]), {"value": torch.ones(3)}, r"values\[0\] is \[3\] on cpu, expected"),
    "device": (
        ([1.0], [True]),
        {"value": torch.ones(2, 2, device="meta")},
        r"values\[0\] is \[2, 2\] on meta, expected \[2, 2\] on cpu as base",
    ),
    "dtype": (
        ([1.0], [True]),
        {"value": torch.ones(2, 2, dtype=torch.float64)},
        r"values\[0\] has dtype torch.float64, expected float32, float16 or bfloat16",
    ),
    "out": (([1.0], [True]), {"dtype": torch.int32}, "out has dtype torch.int32, expected float32"),
}


# torch itself refuses devices that differ among fake tensors.
@pytest.mark.parametrize(
    ("name", "fake"),
    [(name, fake) for name in REFUSED for fake in (False, True) if not (fake and name == "device")],
)
def test_what_does_not_fit_is_refused(name: str, fake: bool) -> None:
    (lams, aligned), changes, message = REFUSED[name]
    base, value = torch.ones(2, 2), changes.get("value", torch.ones(2, 2))
    if fake:
        base, value = base.to("meta"), value.to("meta")
        message = message.replace("cpu", "meta")
    with pytest.raises((TypeError, ValueError), match=message):
        torch.ops.avops.combine(base, [value], lams, aligned, dtype=changes.get("dtype"))


def test_a_partial_overlap_is_refused() -> None:
    memory = torch.zeros(9)
    with pytest.raises(ValueError, match="out .* overlaps base"):
        torch.ops.avops.combine_(memory[1:], memory[:8], [], [], [])


def test_fake_tensors_have_the_result_s_look(device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        base = torch.empty(3, 5, device=device, dtype=torch.bfloat16).t()
        found = torch.ops.avops.combine(base, [base], [1.0], [True], dtype=torch.float16)
        assert (found.shape, found.dtype) == ((5, 3), torch.float16)
        assert found.is_contiguous()
        assert found.device.type == device
        assert torch.ops.avops.combine_(base, base, [base], [1.0], [True]) is None


@compiling
def test_opcheck(device: str) -> None:
    base, others, _ = made(COMPUTABLE[2], COMPUTABLE[0], "weights", device)
    torch.library.opcheck(torch_ops.combine, (base, others, LAMS, ALIGNED))
    torch.library.opcheck(
        torch_ops.combine, (base, others, LAMS, ALIGNED), {"dtype": torch.float32}
    )
    out = torch.zeros_like(base)
    torch.library.opcheck(torch_ops.combine_, (out, base, others, LAMS, ALIGNED))


def layer(weight: torch.Tensor, values: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return inputs @ torch.ops.avops.combine(weight, values, LAMS, ALIGNED).float().t() + 1


def refreshed(out: torch.Tensor, base: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
    before = out.float().sum()
    torch.ops.avops.combine_(out, base, values, LAMS, ALIGNED)
    return out.float() - before


@compiling
def test_compiled_without_a_graph_break(device: str) -> None:
    """The aot_eager backend: everything of torch.compile but its code generation."""
    base, others, expected = made(COMPUTABLE[2], COMPUTABLE[2], "weights", device)
    inputs = torch.randn(4, 33, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(base, others, inputs), layer(base, others, inputs))
    one, two = torch.ones_like(base), torch.ones_like(base)
    compiled = torch.compile(refreshed, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(one, base, others), refreshed(two, base, others))
    assert bits(one) == bits(two) == expected(COMPUTABLE[2])


@compiling
@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_compiled_to_code() -> None:
    """Inductor: half a minute of C++ on a CPU, seconds on a GPU."""
    base, others, expected = made(COMPUTABLE[2], COMPUTABLE[2], "weights", "cuda")
    out = torch.ones_like(base)
    found = torch.compile(refreshed, fullgraph=True)(out, base, others)
    assert bits(out) == expected(COMPUTABLE[2])
    # The sum of 231 ones is exact in any order.
    assert torch.equal(found, out.float() - 231.0)


@compiling
def test_traced(device: str) -> None:
    base, others, _ = made(COMPUTABLE[1], COMPUTABLE[2], "weights", device)
    inputs = torch.randn(4, 33, device=device)
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(layer, tracing_mode=mode)(base, others, inputs)
        assert "avops.combine" in traced.code
        assert torch.equal(traced(base, others, inputs), layer(base, others, inputs))


def test_importing_avops_does_not_register_them() -> None:
    code = (
        "import sys, avops, avops.kernels; assert 'torch' not in sys.modules;"
        "import torch; assert not hasattr(torch.ops.avops, 'combine');"
        "import avops.kernels.torch_ops; print(torch.ops.avops.combine.default._schema);"
        "print(torch.ops.avops.combine_.default._schema)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    terms = "Tensor base, Tensor[] values, float[] lams, bool[] aligned"
    assert done.stdout.splitlines() == [
        f"avops::combine({terms}, *, ScalarType? dtype=None) -> Tensor",
        f"avops::combine_(Tensor(a!) out, {terms}) -> ()",
    ]
