"""csrc/combine.cu itself, run on the host (cuda_emulator.py): all of test_many.py, and more."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import cuda_emulator
from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels import (
    CombineStats,
    Dither,
    Factors,
    Operand,
    Term,
    combine,
    dither_key,
    registry,
)
from avops.kernels.combine.cases import Case
from avops.kernels.many import Entry, Table, Values, cuda_plan, layout
from avops.kernels.many.cuda_plan import kernel_of, plan
from avops.kernels.rounding import narrow
from avops.kernels.samples import sample
from tables import Arena, Stored, Wanted, compare, hold

HERE = Path(__file__).parent
KEY = dither_key(7, "a weight")
ON = ("emulated", "cpu")

pytestmark = pytest.mark.skipif(
    shutil.which(cuda_emulator.COMPILER) is None, reason="no C++ compiler"
)

# The tests that hold for every backend, with this one.
_spec = importlib.util.spec_from_file_location("many_for_cuda", HERE / "test_many.py")
assert _spec is not None
assert _spec.loader is not None
_many = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_many)
globals().update({name: made for name, made in vars(_many).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The backend and its device."""
    monkeypatch.setitem(registry._TABLE, ("combine_many", "emulated"), "cuda_emulator")
    return ON


@pytest.fixture(params=[16, 512])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Elements of a chunk."""
    monkeypatch.setattr(cuda_plan, "SMALL", request.param)
    return request.param


def stored(dtype: DType, kind: tuple[DType, bool], n: int, fill: str, terms: int) -> Wanted:
    """An entry of ``terms`` different parts of one kind, λ 1 each."""
    rng = np.random.default_rng(n)
    parts = tuple(Stored(sample(fill, kind[0], n, rng), kind[1]) for _ in range(terms))
    return Wanted(sample(fill, dtype, n, rng), dtype, parts, (1.0,) * terms)


class Apart(Arena):
    """Neighbouring arrays miss 64 bytes by different numbers of elements."""

    _shifts = itertools.cycle((1, 4, 2, 7, 0, 3, 5))

    def _add(self, array: np.ndarray, shift: int) -> slice:
        return super()._add(array, shift or next(self._shifts))


def test_which_kernel_serves_which_entry() -> None:
    def kernel(one: Wanted, arena: type[Arena] = Arena) -> tuple[str, int]:
        return kernel_of(arena([one], "cpu").entries[0])

    for terms, most in ((1, "4"), (4, "4"), (5, "8"), (8, "8")):
        for base, kind in ((BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)):
            one = stored(base, (kind, True), 40, "weights", terms)
            assert kernel(one) == (f"{base}_{kind}_{most}".lower(), 0)
    one = stored(BF16, (BF16, True), 40, "weights", 3)
    assert kernel(Wanted(one.base, BF16, one.parts, one.lams, KEY)) == ("bf16_bf16_dither_4", 0)
    assert kernel(Wanted(one.base, BF16, one.parts, one.lams, shift=3)) == ("bf16_bf16_4", 5)
    assert kernel(Wanted(one.base, BF16, (None,) * 3, one.lams)) == ("bf16_bf16_4", 0)
    assert kernel(Wanted(one.base, F16, one.parts, one.lams)) == ("mixed", 0)
    assert kernel(stored(BF16, (BF16, True), 40, "weights", 9)) == ("mixed", 0)
    assert kernel(stored(F16, (F32, False), 40, "weights", 1)) == ("mixed", 0)
    assert kernel(one, Apart) == ("elements", 0)
    ones = np.ones((5, 2), np.float32), np.ones((2, 8), np.float32)
    assert kernel(Wanted(one.base, BF16, (Factors(*ones, 1.0),), (1.0,))) == ("tiles", 0)


@pytest.mark.parametrize("key", [None, KEY], ids=["nearest", "dither"])
def test_tensors_that_are_not_aligned_together(key: int | None) -> None:
    wanted = [_many.of_case(case, key=key) for case in _many.CASES[2] if case.n <= 1999]
    rng = np.random.default_rng(0)
    for rows, columns, rank in ((9, 131, 2), (40, 300, 3)):
        left, right = rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns))
        part = Factors(left.astype(np.float32), right.astype(np.float32), 0.5)
        base = sample("weights", BF16, rows * columns, rng)
        wanted.append(Wanted(base, F16, (part, Stored(base, True)), (0.5, -1.0), key))
    arena = Apart(wanted, "cpu")
    assert {kernel_of(entry)[0] for entry in arena.entries} >= {"elements", "tiles"}
    table = Table(arena.entries, backend="emulated")
    table.run(arena.lams())
    compare(arena, table, arena.lams())


@pytest.mark.parametrize("shift", [0, 3, 7])
def test_any_chunk(shift: int, size: int) -> None:
    """Chunks that begin past the vector grid, end in a tail, or hold less than a vector."""
    wanted = []
    for n in (0, 1, 9, 15, 16, 17, 63, 64, 65, 511, 999):
        for kinds in (((BF16, True),) * 3, ((F32, False),) * 3, ((F16, True), (F32, True)) * 2):
            for base, key in ((BF16, None), (BF16, KEY), (F16, KEY), (F32, None)):
                case = Case(n, base, base, kinds[:3], "bits")
                wanted.append(_many.of_case(case, key=key, shift=shift))
    hold(wanted, *ON)
    assert size


@pytest.mark.parametrize("key", [None, KEY], ids=["nearest", "dither"])
@pytest.mark.parametrize("kind", [(BF16, True), (F32, False), (F16, False)], ids=str)
@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8, 9, 13])
def test_any_number_of_active_terms(terms: int, kind: tuple[DType, bool], key: int | None) -> None:
    """One table, run with every number of λ that are not 0, in changing places."""
    rng = np.random.default_rng(terms)
    wanted = [
        Wanted(one.base, one.out, one.parts, one.lams, key)
        for dtype, n, fill in ((BF16, 1999, "weights"), (F16, 700, "bits"), (F32, 700, "weights"))
        for one in (stored(dtype, kind, n, fill, terms),)
    ]
    arena = Arena(wanted, "cpu")
    table = Table(arena.entries, backend="emulated")
    for active in range(terms + 1):
        lams = np.zeros((len(wanted), terms), np.float32)
        for row in lams:
            row[rng.permutation(terms)[:active]] = rng.normal(size=active)
        table.run(lams)
        compare(arena, table, lams)


def special(dtype: DType) -> np.ndarray:
    """Sums (f32) at which rounding to ``dtype`` turns to zero, to infinity or by ties, and NaN."""
    edges = {
        BF16: (0x00007FFF, 0x00008000, 0x00008001, 0x00018000, 0x7F7F7FFF, 0x7F7F8000, 0x00800000),
        F16: (0x32FFFFFF, 0x33000000, 0x33000001, 0x33C00000, 0x477FEFFF, 0x477FF000, 0x47000000),
        F32: (0x00000001, 0x00000002, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F000000, 0x3F800000),
    }[dtype]
    bits = [*edges, *(e + 1 for e in edges), *(e - 1 for e in edges), 0x33800000, 0x7EFFFFFF]
    bits += [0, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x3F808000, 0x3F818000, 0x00010000]
    both = np.array([*bits, *(b | 0x80000000 for b in bits)], np.uint64)
    return both.astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("key", [None, KEY], ids=["nearest", "dither"])
@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_sums_at_the_edges_in_every_lane(dtype: DType, key: int | None) -> None:
    """Among ordinary values, so that one lane alone leaves the fast path."""
    values = special(dtype)
    delta = np.full((len(values), 64), 1.5, np.float32)
    for row, value in enumerate(values):
        delta[row, row % 8 :: 8] = value
    part = Stored(Operand(delta.reshape(-1), F32), False)
    zeros = [Operand(np.zeros(delta.size, base.storage), base) for base in (F32, dtype)]
    wanted = [Wanted(zero, dtype, (part,), (1.0,), key) for zero in zeros]
    counts = hold(wanted, *ON).counts()
    assert all(one.nonfinite and one.unchanged for one in counts)
    assert all(one.flushed and one.overflowed for one in counts) or dtype == F32


@pytest.mark.parametrize("key", [None, KEY], ids=["nearest", "dither"])
@pytest.mark.parametrize("dtype", COMPUTABLE, ids=str)
def test_coefficients_at_the_edges_in_one_lane(dtype: DType, key: int | None) -> None:
    """The same sums where all tensors are of one dtype: λ · 1, among elements that stay at 1."""
    values = special(dtype)
    values = values[np.isfinite(values)]
    one = narrow(np.ones(64, np.float32), dtype)
    wanted = []
    for number, value in enumerate(values):
        base, delta = one.copy(), np.zeros_like(one)
        base[number % 8 :: 16], delta[number % 8 :: 16] = 0, one[0]
        part = Stored(Operand(delta, dtype), False)
        wanted.append(Wanted(Operand(base, dtype), dtype, (part,), (float(value),), key))
    kernels = {kernel_of(entry)[0] for entry in Arena(wanted, "cpu").entries}
    assert kernels == {"mixed"} if (dtype, key) == (F16, KEY) else len(kernels) == 1
    counts = hold(wanted, *ON).counts()
    assert any(one.flushed for one in counts) or dtype == F32
    assert any(one.overflowed for one in counts) or dtype == F32


def test_negative_zeros_survive() -> None:
    """−0 + (−0 + −0) is −0, and so are sums of products that are: no sum begins at +0."""
    n = 48
    for dtype in COMPUTABLE:
        zeros = Operand(np.zeros(n, dtype.storage), dtype)
        zeros.array.view(f"u{dtype.size}")[:] = 1 << (dtype.bits - 1)
        same, other = (
            Stored(zeros, False),
            Stored(Operand(np.full(n, -0.0, np.float32), F32), False),
        )
        tall, flat = (
            Factors(np.zeros((rows, 2), np.float32), np.full((2, n // rows), -1, np.float32), 1.0)
            for rows in (8, 3)
        )
        pairs = ((same, same), (same, other), (tall, tall), (tall, flat), (None, None))
        wanted = [Wanted(zeros, dtype, parts, (1.0, 0.5)) for parts in pairs]
        kernels = [kernel_of(entry)[0] for entry in Arena(wanted, "cpu").entries]
        assert kernels[2:4] == ["tiles", "elements"]
        assert [one.unchanged for one in hold(wanted, *ON).counts()] == [n] * len(wanted)


@pytest.mark.parametrize("kinds", [((BF16, True),) * 3, ((F32, False), (BF16, True))], ids=str)
@pytest.mark.parametrize("cut", [0, 8, 16, 2000, 3992])
def test_stretches_of_the_hash_past_2_32(cut: int, kinds: tuple[tuple[DType, bool], ...]) -> None:
    """The last elements of an entry of more than 2^32, of which only these are there."""
    n, first = 4000, (1 << 32) - cut  # a chunk begins here
    one = _many.of_case(Case(n, BF16, BF16, kinds, "weights"), key=KEY)
    arena = Arena([one], "cpu")
    (entry,) = arena.entries
    made = plan([entry], size=4096)
    row, parts = made.entries[0], made.parts[0]
    row[layout.COUNT] = first + n
    row[[layout.BASE, layout.OUT]] -= first * 2
    parts[:, layout.ADDRESS] -= [first * dtype.size for dtype, _ in kinds]
    (launch,) = made.launches
    launch.chunks[:, 1] += first
    counts, lams = np.zeros((1, 4), np.int64), arena.lams()
    arrays = (made.entries, made.parts, lams, launch.chunks, counts)
    config = cuda_emulator.SimpleNamespace(grid=1, block=256)
    with cuda_emulator.allowed([entry], lams):
        addresses = (array.ctypes.data for array in arrays)
        stream = cuda_emulator.cuda._Stream(0)
        cuda_emulator.launch(stream, config, launch.kernel, *addresses, len(kinds), launch.size)
    terms = [_term(part, lam) for part, lam in zip(one.parts, one.lams, strict=True)]
    wanted = Operand(np.zeros(n, np.uint16), BF16)
    stats = combine(one.base, terms, wanted, rounding=Dither(KEY, first), backend="reference")
    got = entry.out.view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(got, wanted.array)
    assert CombineStats(*counts[0].tolist()) == stats


def _term(part: object, lam: float) -> Term:
    assert isinstance(part, Stored)
    return Term(part.values, lam, part.aligned)


def test_the_largest_chunks() -> None:
    """More changed elements than half a word counts, were the chunk any larger."""
    one = stored(BF16, (BF16, False), 3 * cuda_plan.LARGE + 5, "ties", 1)
    arena = Arena([one, one], "cpu")
    made = plan(arena.entries, size=cuda_plan.LARGE)
    assert [len(launch.chunks) for launch in made.launches] == [8]
    assert cuda_plan.LARGE // min(cuda_plan.KERNELS.values()) < 1 << 16


def test_what_lam_zero_leaves_out_is_not_read() -> None:
    """The kernels are told only memory whose λ is not 0: elsewhere loads are faults."""
    arena = Arena([_many.of_case(Case(5000, BF16, BF16, ((BF16, True),) * 3))], "cpu")
    table = Table(arena.entries, backend="emulated")
    table.run([0.0, 0.5, -0.0])
    state = table._state.prepared
    with (
        pytest.raises(AssertionError, match="bf16_bf16_4: stray load of 16 bytes"),
        cuda_emulator.faked(),
        cuda_emulator.allowed(arena.entries, np.zeros((1, 3), np.float32)),
    ):
        state.run(np.ones((1, 3), np.float32))


def test_load_and_launch_are_a_run() -> None:
    arena = Arena([_many.of_case(Case(5000, BF16, F16, ((BF16, True),) * 3))] * 2, "cpu")
    table = Table(arena.entries, backend="emulated")
    state = table._state.prepared
    rows = [np.full((2, 3), lam, np.float32) for lam in (0.5, -1.0)]
    for row in rows:
        with cuda_emulator.faked(), cuda_emulator.allowed(arena.entries, row):
            state.load(row)
            state.launch()
        compare(arena, table, row)
    table.run(rows[0])
    compare(arena, table, rows[0])


def test_the_emulator_notices_misaligned_accesses(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _many.of_case(Case(512, BF16, BF16, ((BF16, True),)), shift=1)
    monkeypatch.setattr(cuda_plan, "_head", lambda tensors, width: 0)
    with pytest.raises(AssertionError, match="bf16_bf16_4: misaligned load of 16 bytes"):
        hold([one], *ON)


def test_by_hand() -> None:
    """1 + 0.5 · (3 − 1) = 2, whatever the reference says."""
    one, three = (torch.tensor([x], dtype=torch.bfloat16) for x in (1.0, 3.0))
    out = torch.zeros_like(one)
    table = Table([Entry(one, out, (Values(three, True),))], backend="emulated")
    table.run([0.5])
    assert out.tolist() == [2.0]
    assert table.counts() == (CombineStats(0, 0),)
