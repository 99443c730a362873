"""rms_norm, rope and swiglu in Triton: within their contracts, interpreted and on a device.

TRITON_INTERPRET=1 runs the first part on the CPU, which a test of the second part does.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from avops.kernels import registry, rms_norm, rope, swiglu
from avops.kernels.rms_norm import triton as norm
from interpreters import interpreter_refusal
from kernels.test_layer_operations import BF16, F32, RUNS, UNIT, bits, drawn, moved, within
from logit_rows import INTERPRETING

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

HERE = Path(__file__).parent
HALF = 2.0**-8  # one rounding to bf16, relative
# One, odd, around every number of warps and a step (8192), a model's, several steps.
COLUMNS = [1, 2, 63, 64, 65, 129, 257, 300, 513, 1000, 1025, 2304, 4096, 8191, 8193, 40000]
dtypes = pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
interpreted = pytest.mark.skipif(INTERPRETING, reason="Triton interprets in this process")


@pytest.fixture(params=["cpu"] if INTERPRETING else [pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    for row in registry.report():
        if (row.operation, row.backend) == ("rms_norm", "triton") and not row.available:
            pytest.skip(row.reason)
    return name


def test_triton_is_chosen(device: str) -> None:
    for name in RUNS:
        assert registry.resolve(name, device=device).backend == "triton"


@dtypes
@pytest.mark.parametrize("columns", COLUMNS)
def test_norms_keep_their_bound(columns: int, dtype: torch.dtype, device: str) -> None:
    x, weight = drawn(5, columns, dtype=dtype, scale=3.0), drawn(columns, dtype=dtype)
    wide = x.double()
    exact = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    got = rms_norm(x.to(device), weight.to(device), 1e-5, backend="triton").cpu()
    assert within(got, exact, columns / 128 + 10)  # the contract's


@dtypes
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2), (3, 5, 6), (7, 3, 8), (30, 12, 64), (9, 1, 130), (4, 33, 128), (2, 40, 256)],
    ids=str,
)
def test_rope_is_torchs_expression_to_the_bit(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    x, angles = drawn(*shape, dtype=dtype), drawn(shape[0], shape[2], scale=9.0)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    want = rope(x.clone(), cosine, sine, backend="reference")
    got = x.to(device, copy=True)
    assert rope(got, cosine.to(device), sine.to(device), backend="triton") is got
    assert torch.equal(bits(got.cpu()), bits(want))


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 65), (2, 4099), (8, 1024)], ids=str)
def test_swiglu_keeps_its_bound(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    gate, up = drawn(*shape, dtype=dtype, scale=20.0), drawn(*shape, dtype=dtype).flip(0)
    gate, up = gate.clamp_min(-87.0), up.contiguous()
    wide = gate.double()
    exact = wide / (1 + (-wide).exp()) * up.double()
    got = gate.to(device, copy=True)
    assert swiglu(got, up.to(device), backend="triton") is got
    # The contract's: 10 + 2·max(0, −gate) roundings.
    relative = (10 + 2 * (-wide).clamp_min(0)) * UNIT + (HALF if dtype == BF16 else 0.0)
    assert ((got.cpu().double() - exact).abs() <= relative * exact.abs() + 2.0**-126).all()


def test_swiglu_over_the_whole_range(device: str) -> None:
    """Where e⁻ˣ overflows, where silu vanishes, zeros, infinities and NaN."""
    ends = torch.tensor([0.0, -0.0, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])
    gate = torch.cat((torch.linspace(-200, 200, 40001), ends)).to(device)
    got = swiglu(gate.clone(), torch.ones_like(gate), backend="triton").cpu()
    gate = gate.cpu()
    assert got[-2:].isnan().all()  # −∞ · 0, as the contract says
    assert got[-3] == torch.inf
    finite = gate.isfinite()
    low, high = finite & (gate < -87), finite & (gate > 30)
    assert got[low].abs().max() <= 1.5e-36
    assert (got[low] <= 0).all()
    assert within(got[high], gate[high].double(), 10)
    assert (got[finite & (gate == 0)] == 0).all()


@dtypes
@pytest.mark.parametrize("name", list(RUNS))
def test_rows_and_alignment_change_no_bit(name: str, dtype: torch.dtype, device: str) -> None:
    x, other = (drawn(90, 4, 26, dtype=dtype, scale=s).to(device) for s in (1.0, 2.0))
    want = RUNS[name](x.clone(), other, backend="triton").clone()
    shifted = [moved(t.cpu(), 3) for t in (x, other)]
    if device == "cuda":
        rooms = [torch.zeros(t.numel() + 8, dtype=dtype, device=device) for t in shifted]
        for room, t in zip(rooms, shifted, strict=True):
            room[3 : 3 + t.numel()].copy_(t.flatten())
        shifted = [room[3:-5].view(x.shape) for room in rooms]
    got = RUNS[name](*shifted, backend="triton")
    assert torch.equal(bits(got), bits(want))
    some = other[70:71] if name != "rms_norm" else other
    few = RUNS[name](x[70:71].clone(), some, backend="triton")
    assert torch.equal(bits(few.view(-1)), bits(want.view(90, -1)[70]))
    assert RUNS[name](x[:0].clone(), some[:0] if name != "rms_norm" else other,
                      backend="triton").numel() == 0  # fmt: skip


@pytest.mark.parametrize("name", list(RUNS))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(name: str, bad: float, device: str) -> None:
    x, other = drawn(40, 4, 26).to(device), drawn(40, 4, 26).to(device)
    want = RUNS[name](x.clone(), other, backend="triton").clone()
    x[7, 2, 3] = bad
    got = RUNS[name](x.clone(), other, backend="triton")
    assert not got[7].isfinite().all()
    rest = torch.arange(40, device=device) != 7
    assert torch.equal(got[rest], want[rest])


@pytest.mark.gpu
@interpreted
def test_more_elements_than_32_bits_number_with_a_sign() -> None:
    """The last rows of what has more than 2³¹ elements, beside the same rows alone."""
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip(f"{free >> 30} GiB of GPU memory are free, this needs 24")
    rows, columns = 2**31 // 4096 + 77, 4096
    x = torch.empty(rows, columns, dtype=BF16, device="cuda").normal_()
    tail = x[-9:].clone()
    weight = torch.randn(columns, device="cuda").to(BF16)
    assert torch.equal(rms_norm(x, weight, 1e-5)[-9:], rms_norm(tail, weight, 1e-5))
    table = torch.randn(rows, 128, device="cuda").to(BF16)
    want = rope(tail.view(9, 32, 128).clone(), table[-9:].clone(), table[-9:].clone())
    assert torch.equal(rope(x.view(rows, 32, 128), table, table)[-9:], want)
    want = swiglu(x[-9:].clone(), tail)
    up = torch.ones_like(x)
    up[-9:] = tail
    assert torch.equal(swiglu(x, up)[-9:], want)


@pytest.mark.gpu
@interpreted
def test_nothing_but_results_is_allocated() -> None:
    x, weight = torch.randn(64, 32, 128, device="cuda"), torch.ones(4096, device="cuda")
    table = torch.randn(64, 128, device="cuda")

    def run() -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        swiglu(x, torch.broadcast_to(x[:1], x.shape).contiguous())
        rope(x, table, table)
        rms_norm(x.view(64, 4096), weight, 1e-6)
        torch.cuda.synchronize()
        return int(torch.cuda.memory_stats()["allocation.all.allocated"] - before)

    run()
    assert run() == 2  # what this test makes, and the norm's result


# ---- without a device: in the interpreter, and as code


@interpreted
@pytest.mark.timeout(900)
def test_conformance_through_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    refusal = interpreter_refusal()
    if refusal:
        pytest.skip(refusal)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu"]
    done = subprocess.run(
        [*command, __file__],
        cwd=HERE.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout.strip().splitlines()[-1])
    assert found is not None
    assert int(found[1]) > 60


def code_of(name: str, kernel: str, arch: int, types: dict[str, str], given: dict[str, Any]) -> str:
    """PTX. given: constants, and warps under the name ``warps``."""
    import triton
    from triton.backends.compiler import GPUTarget

    function = getattr(importlib.import_module(f"avops.kernels.{name}.triton_kernels"), kernel)
    constants = {key: value for key, value in given.items() if key != "warps"}
    place = function.arg_names.index
    source = triton.compiler.ASTSource(
        fn=function,
        signature={**types, **dict.fromkeys(constants, "constexpr")},
        constexprs={(place(key),): value for key, value in constants.items()},
        attrs={
            (place(key),): [["tt.divisibility", 16]]
            for key, kind in types.items()
            if kind != "fp32" and key != "parts"
        },
    )
    options = {"num_warps": given["warps"], "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    text: str = made.asm["ptx"]
    return text


@interpreted
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("element", ["*i16", "*i32"])
def test_code_is_wide_and_fuses_nothing(
    arch: int, element: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bytes a load, no contracted multiply-add, conversions of bf16 by the processor."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = norm.sizes(4096)
    made = {
        "norm": code_of(
            "rms_norm", "norm", arch,
            {"x": element, "weight": element, "out": element, "epsilon": "fp32", "columns": "i32"},
            {"SIZE": sizes["SIZE"], "EXACT": False, "warps": sizes["num_warps"]},
        ),
        "rope": code_of(
            "rope", "turn", arch,
            {"x": element, "cosine": element, "sine": element, "heads": "i32", "half": "i32",
             "parts": "i32"},
            {"HEADS": 16, "HALF": 64, "EXACT": False, "warps": 4},
        ),
        "swiglu": code_of(
            "swiglu", "gated", arch, {"gate": element, "up": element, "count": "i32"},
            {"SIZE": 2048, "EXACT": False, "warps": 4},
        ),
    }  # fmt: skip
    for name, code in made.items():
        moves = Counter(re.findall(r"(?:ld|st)\.global\.(?:\w+\.)*?((?:v\d\.)?b\d+)", code))
        assert set(moves) == {"v4.b32"}, name
        assert "fma.rn.f32" not in code
        assert ("cvt.rn.bf16" in code) == (element == "*i16")
    assert "sqrt.approx" not in made["norm"]
    assert "div.full" not in made["norm"]
