"""combine_many on a CUDA device: sizes, streams and memory that the CPU does not have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from avops.dtypes import BF16, F32
from avops.kernels import Dither, Factors, Operand, Term, combine, dither_key, lowrank, registry
from avops.kernels.combine.cases import Case
from avops.kernels.many import Entry, LowRank, Table, Values
from tables import Arena, Stored, Wanted, compare

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

KEY = dither_key(3, "lm_head.weight")
GIB = 1 << 30


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Skipped, with the reason, if it cannot serve."""
    for row in registry.report():
        if (row.operation, row.backend) == ("combine_many", request.param) and not row.available:
            pytest.skip(f"{request.param}: {row.reason}")
    return request.param


def need(gib: int) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gib * GIB:
        pytest.skip(f"{free / GIB:.0f} GiB of GPU memory are free, this needs {gib}")


def ones_to_two(n: int) -> torch.Tensor:
    """Differences of such numbers are exact."""
    return torch.empty(n, dtype=torch.bfloat16, device="cuda").uniform_(1, 2)


def host(tensor: torch.Tensor) -> Operand:
    return Operand(tensor.contiguous().view(torch.uint8).cpu().numpy().view("<u2"), BF16)


def test_more_elements_than_32_bits_number_with_a_sign(backend: str) -> None:
    need(16)
    n = 2**31 + 3 * 32768 + 77
    base, aligned, out = ones_to_two(n), ones_to_two(n), torch.zeros(n, dtype=torch.bfloat16,
                                                                     device="cuda")  # fmt: skip
    table = Table([Entry(base, out, (Values(aligned, True),))], backend=backend)
    table.run([1.0])
    assert torch.equal(out, aligned)
    assert table.counts()[0].unchanged == int((base == aligned).sum())
    assert table.counts()[0].nonfinite == 0


def test_dither_beyond_its_first_stretch(backend: str) -> None:
    need(30)
    n = 2**32 + 2**20 + 77
    base, delta = ones_to_two(n), torch.empty(n, dtype=torch.bfloat16, device="cuda").normal_()
    out = torch.empty(n, dtype=torch.bfloat16, device="cuda")
    lam = float(np.float32(0.01))
    Table([Entry(base, out, (Values(delta, False),), KEY)], backend=backend).run([lam])
    for start in (0, 2**31 - 3000, 2**32 - 3000, n - 6000):
        here = slice(start, start + 6000)
        expected = Operand(np.empty(6000, np.uint16), BF16)
        terms = [Term(host(delta[here]), lam, False)]
        combine(host(base[here]), terms, expected, rounding=Dither(KEY, start))
        np.testing.assert_array_equal(host(out[here]).array, expected.array)


@pytest.mark.parametrize("columns", [4104, 4099])
def test_low_rank_parts_of_more_elements_than_32_bits_number(backend: str, columns: int) -> None:
    need(10)
    rows = 2**31 // columns + 101
    rng = np.random.default_rng(0)
    left = rng.normal(0, 0.1, (rows, 2)).astype(np.float32)
    right = rng.normal(0, 0.1, (2, columns)).astype(np.float32)
    n = rows * columns
    out = ones_to_two(n)
    places = (0, 2**31 - 3000, n - 6000)
    before = [host(out[start : start + 6000]) for start in places]
    part = LowRank(torch.from_numpy(left).cuda(), torch.from_numpy(right).cuda(), 0.5)
    Table([Entry(out, out, (part,))], backend=backend).run([2.0])
    for start, base in zip(places, before, strict=True):
        delta = Operand(np.empty(6000, np.float32), F32)
        lowrank(Factors(left, right, 0.5), start, delta)
        expected = Operand(np.empty(6000, np.uint16), BF16)
        combine(base, [Term(delta, 2.0, False)], expected)
        np.testing.assert_array_equal(host(out[start : start + 6000]).array, expected.array)


def several() -> Sequence[Wanted]:
    """Entries for every kernel: of one kind, of several, and low-rank."""
    base, (one, two) = Case(70_000, BF16, BF16, ((BF16, True),) * 2).inputs()
    rng = np.random.default_rng(0)
    factors = Factors(
        rng.normal(0, 0.1, (100, 8)).astype(np.float32),
        rng.normal(0, 0.1, (8, 700)).astype(np.float32),
        0.5,
    )
    stored, other = Stored(one.values, True), Stored(two.values, False)
    return [
        Wanted(base, BF16, (stored, Stored(two.values, True)), ()),
        Wanted(base, F32, (stored, other), ()),
        Wanted(base, BF16, (stored, other), (), shift=1),
        Wanted(base, BF16, (factors, stored), (), KEY),
    ]


def rows(lams: Sequence[float]) -> np.ndarray:
    return np.broadcast_to(np.array(lams, np.float32), (4, 2))


def test_nothing_is_allocated_after_the_first_run(backend: str) -> None:
    arena = Arena(several(), "cuda")
    table = Table(arena.entries, backend=backend)
    table.run([1.0, 0.5])
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for k in range(50):
        table.run([k / 8, -0.5])
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    compare(arena, table, rows([49 / 8, -0.5]))


def test_runs_are_queued_on_the_current_stream(backend: str) -> None:
    arena = Arena(several(), "cuda")
    table = Table(arena.entries, backend=backend)
    table.run([1.0, 0.5])
    torch.cuda.synchronize()
    first = arena.buffer.clone()
    assert torch.equal(arena.buffer, first)  # also loads what is needed below
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)  # about half a second
        table.run([-1.0, 2.0])
        assert not stream.query(), "run() waited for the device"
    assert torch.equal(arena.buffer, first), "the run did not wait for its stream"
    stream.synchronize()
    compare(arena, table, rows([-1.0, 2.0]))


def test_coefficients_of_queued_runs_do_not_mix(backend: str) -> None:
    """More runs than there are places for coefficients, all queued behind a long kernel."""
    n, runs = 5000, 70
    base, ones = torch.zeros(n, device="cuda"), torch.ones(n, device="cuda")
    out, found = torch.zeros(n, device="cuda"), torch.zeros(runs, n, device="cuda")
    table = Table([Entry(base, out, (Values(ones, False),))], backend=backend)
    table.run([0.0])
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    for k in range(runs):
        table.run([float(k + 1)])
        found[k].copy_(out)
    expected = torch.arange(1, runs + 1, dtype=torch.float32).unsqueeze(1).expand(runs, n)
    assert torch.equal(found.cpu(), expected)


def test_a_table_may_be_dropped_while_its_run_is_under_way(backend: str) -> None:
    arena = Arena(several(), "cuda")
    expected, _ = arena.expected(rows([0.5, -1.0]))
    warm = Table(arena.entries, backend=backend)
    warm.run([0.0, 0.0])
    torch.cuda.synchronize()
    table = Table(arena.entries, backend=backend)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)
        table.run([0.5, -1.0])
    del table
    filler = [torch.full((1 << 16,), -1, dtype=torch.int64, device="cuda") for _ in range(64)]
    stream.synchronize()
    del filler
    np.testing.assert_array_equal(arena.buffer.cpu().numpy(), expected)
