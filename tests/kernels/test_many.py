"""combine_many over all its backends: what it refuses, and every bit of what it writes.

Triton's part runs on the CPU when TRITON_INTERPRET is 1: test_triton.py runs this file so.
"""

from __future__ import annotations

import dataclasses
import itertools
import os

import numpy as np
import pytest
import torch

from avops.dtypes import BF16, COMPUTABLE, F16, F32, DType
from avops.kernels import Operand, dither_key, registry
from avops.kernels.combine import cases as combine_cases
from avops.kernels.combine.cases import KINDS, Case
from avops.kernels.lowrank import Factors
from avops.kernels.lowrank import cases as lowrank_cases
from avops.kernels.many import Entry, Table, Values
from avops.kernels.rounding import widen
from avops.kernels.samples import FILLS, sample
from tables import Arena, Stored, Wanted, compare, hold

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
KEY = dither_key(1, "model.layers.0.mlp.up_proj.weight")
# Elements that hold a whole block of every kernel, and a rest.
SEVERAL_BLOCKS = 16384 + 2048 + 77


@pytest.fixture(
    params=["triton"]
    if INTERPRETING
    else [
        "reference",
        pytest.param("triton", marks=pytest.mark.gpu),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def on(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A backend and its device; skipped, with the reason, if it cannot serve."""
    name = request.param
    reasons = {
        row.backend: row.reason
        for row in registry.report()
        if row.operation == "combine_many" and not row.available
    }
    if name in reasons:
        pytest.skip(f"{name}: {reasons[name]}")
    return name, "cpu" if name == "reference" or INTERPRETING else "cuda"


def of_case(case: Case, **changes: object) -> Wanted:
    base, terms = case.inputs()
    parts = tuple(Stored(term.values, term.aligned) for term in terms)
    return Wanted(base, case.out, parts, tuple(t.lam for t in terms), **changes)


CASES: dict[int, list[Case]] = {}
for _case in combine_cases.cases():
    CASES.setdefault(len(_case.kinds), []).append(_case)


@pytest.mark.parametrize("terms", sorted(CASES))
def test_every_case_of_combine(terms: int, on: tuple[str, str]) -> None:
    hold([of_case(case) for case in CASES[terms]], *on)


@pytest.mark.parametrize("terms", sorted(CASES))
def test_every_mix_with_dither(terms: int, on: tuple[str, str]) -> None:
    mixes = [case for case in CASES[terms] if case.n == 1999]
    hold([of_case(case, key=KEY + n) for n, case in enumerate(mixes)], *on)


def classes() -> list[tuple[DType, DType, int | None, combine_cases.Kind]]:
    """Base, out, key, kind of the parts: what a fast kernel may be made for."""
    pairs = [(dtype, dtype) for dtype in COMPUTABLE] + [(BF16, F32), (F16, F32)]
    every = itertools.product(pairs, (None, KEY), KINDS)
    return [(base, out, key, kind) for (base, out), key, kind in every]


@pytest.mark.parametrize("first", range(0, len(classes()), 4))
def test_large_entries_of_one_kind(first: int, on: tuple[str, str]) -> None:
    wanted = []
    for base, out, key, kind in classes()[first : first + 4]:
        made = of_case(Case(SEVERAL_BLOCKS, base, out, (kind,) * 3, "bits"), key=key)
        wanted.append(dataclasses.replace(made, lams=(0.5, 0.0, -1.25)))
        made = of_case(Case(SEVERAL_BLOCKS, base, out, (kind,) * 3, "weights"), key=key)
        wanted.append(dataclasses.replace(made, parts=(None, *made.parts[1:])))
    hold(wanted, *on)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("terms", [0, 1, 2, 4, 5, 6, 7, 8, 9, 20])
def test_any_number_of_terms(terms: int, fill: str, on: tuple[str, str]) -> None:
    same = Case(SEVERAL_BLOCKS, BF16, BF16, ((BF16, True),), fill)
    other = Case(1001, BF16, F16, tuple(itertools.islice(itertools.cycle(KINDS), terms)), fill)
    lams = tuple(float(np.float32(0.3 * k - 1)) for k in range(terms))
    base, (term,) = same.inputs()
    _, others = dataclasses.replace(other, kinds=KINDS).inputs()
    parts = tuple(Stored(others[k % len(KINDS)].values, others[k % len(KINDS)].aligned)
                  for k in range(terms))  # fmt: skip
    stored = (Stored(term.values, True),) * terms
    hold(
        [
            Wanted(base, BF16, stored, lams),
            Wanted(others[0].values, F16, parts, lams),
            Wanted(others[0].values, F16, (None,) * terms, lams),
        ],
        *on,
    )


def of_lowrank(case: lowrank_cases.Case, out: DType, fill: str, **changes: object) -> Wanted:
    """Factors and stored parts in turn, λ of each kind."""
    factors = case.factors()
    count = case.rows * case.columns
    rng = np.random.default_rng(7)
    base, delta = sample(fill, out, count, rng), sample(fill, F32, count, rng)
    parts = (factors, Stored(delta, False), None, factors, Stored(base, True))
    return Wanted(base, out, parts, (0.5, -1.0, 2.0, 0.0, 1.5), **changes)


def whole_cases() -> list[lowrank_cases.Case]:
    return [case for case in lowrank_cases.cases() if case.start in (0, 100) and case.n]


def test_low_rank_parts(on: tuple[str, str]) -> None:
    wanted = []
    for case, out in zip(whole_cases(), itertools.cycle(COMPUTABLE)):
        wanted.append(of_lowrank(case, out, case.fill))
    hold(wanted, *on)


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(37, 640, 3), (5, 131, 2), (1, 1500, 17), (9, 2050, 1)]
)
def test_low_rank_parts_in_tiles(rows: int, columns: int, rank: int, on: tuple[str, str]) -> None:
    wanted = []
    ways = (("bits", None, 0), ("bits", KEY, 1), ("weights", None, 1), ("weights", KEY, 0))
    for out, (fill, key, shift) in itertools.product(COMPUTABLE, ways):
        case = lowrank_cases.Case(rows, columns, rank, 0, 0, out, F32, False, fill)
        wanted.append(of_lowrank(case, out, fill, key=key, shift=shift))
    hold(wanted, *on)


def test_low_rank_parts_of_different_shapes(on: tuple[str, str]) -> None:
    one = lowrank_cases.Case(20, 300, 2, 0, 0).factors()
    two = lowrank_cases.Case(300, 20, 5, 0, 0).factors(1)
    base = sample("weights", BF16, 6000, np.random.default_rng(3))
    wanted = [Wanted(base, BF16, (one, two), (0.5, -2.0), key) for key in (None, KEY)]
    hold([*wanted, dataclasses.replace(wanted[0], lams=(0.0, 1.0))], *on)


@pytest.mark.parametrize("key", [None, KEY])
def test_any_alignment(key: int | None, on: tuple[str, str]) -> None:
    wanted = [
        of_case(Case(SEVERAL_BLOCKS, dtype, dtype, ((dtype, True),) * 2, fill), key=key, shift=s)
        for dtype, s, fill in itertools.product(COMPUTABLE, (1, 2, 3, 4, 7), ("bits", "weights"))
        if s in (1, 4) or dtype == BF16
    ]
    hold(wanted, *on)


@pytest.mark.parametrize("n", [1, 1999, SEVERAL_BLOCKS])
def test_in_place(n: int, on: tuple[str, str]) -> None:
    wanted = [
        of_case(Case(n, dtype, dtype, kinds, fill), key=key, in_place=True)
        for dtype, fill, key in itertools.product(COMPUTABLE, FILLS, (None, KEY))
        for kinds in [((dtype, True), (dtype, True)), ((F32, False), (BF16, True))]
    ]
    hold(wanted, *on)


def test_many_tensors(on: tuple[str, str]) -> None:
    """More entries than anything is unrolled for, most of them small, some empty."""
    rng = np.random.default_rng(0)
    wanted = []
    for n in rng.integers(0, 40, 120 if INTERPRETING else 3000):
        base, values = sample("weights", BF16, int(n), rng), sample("weights", BF16, int(n), rng)
        wanted.append(Wanted(base, BF16, (Stored(values, True),), (float(n % 4) - 1,)))
    hold(wanted, *on)


def test_nothing_but_empty_tensors(on: tuple[str, str]) -> None:
    hold([of_case(Case(0, BF16, F32, ((F16, True),)))] * 3, *on)


def test_what_lam_zero_leaves_out_has_no_effect(on: tuple[str, str]) -> None:
    """Also where it holds NaN, also for λ = −0."""
    n = SEVERAL_BLOCKS
    base = sample("weights", BF16, n, np.random.default_rng(0))
    nan = Stored(Operand(np.full(n, 0x7FC1, np.uint16), BF16), True)
    ones = np.full((1, n), np.nan, np.float32)
    factors = Factors(np.ones((1, 1), np.float32), ones, 1.0)
    good = Stored(sample("weights", BF16, n, np.random.default_rng(1)), False)
    for parts in ((nan, good, nan), (factors, good, nan)):
        table = hold([Wanted(base, BF16, parts, (0.0, 0.5, -0.0))], *on)
        assert table.counts()[0].nonfinite == 0


def test_zeros_keep_their_signs(on: tuple[str, str]) -> None:
    for n in (4, SEVERAL_BLOCKS):
        values = np.resize(np.array([-0.0, 0.0, -0.0, 0.0], np.float32), n)
        other = np.resize(np.array([-0.0, -0.0, 0.0, 0.0], np.float32), n)
        parts = (Stored(Operand(other, F32), False),)
        wanted = [Wanted(Operand(values, F32), F32, parts, (lam,)) for lam in (0.0, 1.0, -1.0)]
        hold(wanted, *on)


def events() -> tuple[np.ndarray, np.ndarray]:
    """Numbers that become 0, infinite or NaN in some dtype, and deltas to go with them."""
    some = [0.0, 1.0, 65504.0, 65519.0, 65520.0, 65535.0, 65536.0, 7e4, 3.3895314e38, 3.3961775e38]
    tiny = [2.0**-24, 2.0**-25, 2.0**-26, 2.0**-133, 2.0**-134, 2.0**-149, 1e-9, 2.0**-14]
    values = np.array([*some, *tiny, 3.4028235e38, np.inf, np.nan], np.float32)
    with np.errstate(over="ignore"):
        values = np.concatenate([values, -values, np.nextafter(values, np.float32(np.inf))])
    deltas = [0.0, -0.0, 1e-30, 3e38, -3e38, np.inf, np.nan, 2.0**-134]
    return tuple(np.array(list(itertools.product(values, deltas)), np.float32).T)


@pytest.mark.parametrize("key", [None, KEY])
def test_events_are_counted(key: int | None, on: tuple[str, str]) -> None:
    base, delta = (np.ascontiguousarray(side) for side in events())
    wanted = [
        Wanted(Operand(np.resize(base, n), F32), out, (part,), (1.0,), key)
        for out, n in itertools.product(COMPUTABLE, (base.size, SEVERAL_BLOCKS))
        for part in (Stored(Operand(np.resize(delta, n), F32), False), None)
    ]
    counts = hold(wanted, *on).counts()
    assert all(one.nonfinite and one.unchanged for one in counts)
    assert counts[-1].overflowed
    assert counts[-1].flushed


@pytest.mark.parametrize(
    ("dtype", "value", "event"),
    [
        (F16, 65505.0, "overflowed"),
        (F16, 65519.0, "overflowed"),
        (F16, 2.0**-26, "flushed"),
        (F16, 2.0**-24 * (1 - 2.0**-11), "flushed"),
        (BF16, 3.3896e38, "overflowed"),
        (BF16, 3.395e38, "overflowed"),
        (BF16, 2.0**-140, "flushed"),
        (BF16, 2.0**-133 * (1 - 2.0**-11), "flushed"),
    ],
)
def test_events_that_only_dither_makes_are_counted(
    dtype: DType, value: float, event: str, on: tuple[str, str]
) -> None:
    """In blocks without any other: beside numbers that nothing happens to."""
    found = []
    for n in (4000, SEVERAL_BLOCKS):
        values = np.where(np.arange(n) % 4, np.float32(1), np.float32(value))
        base = Operand(values.astype(np.float32), F32)
        parts = (Stored(Operand(np.zeros(n, np.uint16), BF16), False),)
        wanted = [Wanted(base, dtype, parts, (1.0,), KEY + k) for k in range(3)]
        found += hold(wanted, *on).counts()
    assert sum(getattr(one, event) for one in found)


def test_every_f16_and_bf16_number(on: tuple[str, str]) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    wanted = [
        Wanted(Operand(patterns.view(dtype.storage), dtype), out, (None,), (1.0,), key)
        for dtype, out, key in itertools.product((F16, BF16), COMPUTABLE, (None, KEY))
    ]
    hold(wanted, *on)


def test_numbers_between_those_of_the_output(on: tuple[str, str]) -> None:
    """Just below, at, and just above every half-way point of f16 and bf16, subnormals included."""
    wanted = []
    for dtype in (F16, BF16):
        patterns = np.arange(1 << 15, dtype=np.uint16).view(dtype.storage)
        with np.errstate(all="ignore"):
            low = widen(Operand(patterns, dtype)).astype(np.float64)
            middle = ((low[:-1] + low[1:]) / 2).astype(np.float32)
            near = [np.nextafter(middle, np.float32(s * np.inf)) for s in (-1, 1)]
        values = Operand(np.concatenate([middle, *near, -middle]), F32)
        wanted += [Wanted(values, dtype, (None,), (0.0,), key) for key in (None, KEY)]
    hold(wanted, *on)


def test_runs_start_from_the_base_and_counts_are_of_the_last_one(on: tuple[str, str]) -> None:
    backend, device = on
    wanted = [of_case(Case(n, BF16, BF16, ((BF16, True),) * 2)) for n in (50, SEVERAL_BLOCKS)]
    arena = Arena(wanted, device)
    table = Table(arena.entries, backend=backend)
    assert table.backend == backend
    assert [dataclasses.astuple(one) for one in table.counts()] == [(0, 0, 0, 0)] * 2
    for lams in ([1.0, 0.5], [0.0, 0.0], [[-1.0, 0.25], [0.5, 2.0]], [0.0, 1.0]):
        table.run(lams)
        rows = np.broadcast_to(np.array(lams, np.float32), (2, 2))
        compare(arena, table, rows)


def test_a_table_made_in_inference_mode_runs_outside_of_it(on: tuple[str, str]) -> None:
    backend, device = on
    arena = Arena([of_case(Case(100, BF16, BF16, ((BF16, True),)))], device)
    with torch.inference_mode():
        table = Table(arena.entries, backend=backend)
        table.run([0.5])
    table.run([1.0])
    compare(arena, table, np.ones((1, 1), np.float32))


def test_parameters_that_require_gradients_are_written(on: tuple[str, str]) -> None:
    backend, device = on
    weight = torch.nn.Parameter(torch.zeros(3, 5, device=device))
    delta = torch.ones(15, device=device)
    entry = Entry(torch.full((15,), 2.0, device=device), weight, (Values(delta, False),))
    Table([entry], backend=backend).run([0.5])
    assert torch.equal(weight.detach().cpu(), torch.full((3, 5), 2.5))
