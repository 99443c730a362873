"""Tables for combine_many's tests: all tensors of a table in one guarded buffer of a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from avops.dtypes import F32, DType
from avops.kernels import CombineStats, Dither, Factors, Operand, Term, combine, lowrank
from avops.kernels.many import Entry, LowRank, Table, Values

_GUARD = 64
_SENTINEL = 0xA5


@dataclass(frozen=True)
class Stored:
    """A part that is stored."""

    values: Operand
    aligned: bool


@dataclass(frozen=True)
class Wanted:
    """An entry to be. shift: elements by which each of its tensors misses 64 bytes."""

    base: Operand
    out: DType
    parts: tuple[Stored | Factors | None, ...]
    lams: tuple[float, ...]
    key: int | None = None
    in_place: bool = False
    shift: int = 0


class Arena:
    """One buffer for all arrays of a table, with sentinels around each; its parts as tensors."""

    def __init__(self, wanted: Sequence[Wanted], device: str) -> None:
        self.wanted = wanted
        self._pieces: list[np.ndarray] = []
        self._size = 0
        places = [self._place(one) for one in wanted]
        self.host = np.concatenate([*self._pieces, np.full(_GUARD, _SENTINEL, np.uint8)])
        self.buffer = torch.from_numpy(self.host.copy()).to(device)
        self.places = places
        self.entries = [self._entry(one, place) for one, place in zip(wanted, places, strict=True)]

    def _add(self, array: np.ndarray, shift: int) -> slice:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        skip = _GUARD + -self._size % _GUARD + shift * array.itemsize
        self._pieces += [np.full(skip, _SENTINEL, np.uint8), raw]
        start = self._size + skip
        self._size = start + raw.size
        return slice(start, self._size)

    def _place(self, one: Wanted) -> tuple[slice, slice, list[tuple[slice, ...]]]:
        base = self._add(one.base.array, one.shift)
        poison = np.full(one.base.array.size * one.out.size, 0xFF, np.uint8)
        out = base if one.in_place else self._add(poison.view(f"u{one.out.size}"), one.shift)
        parts: list[tuple[slice, ...]] = []
        for part in one.parts:
            if isinstance(part, Stored):
                parts.append((self._add(part.values.array, one.shift),))
            elif part is None:
                parts.append(())
            else:
                parts.append((self._add(part.left, one.shift), self._add(part.right, one.shift)))
        return base, out, parts

    def _entry(self, one: Wanted, place: tuple[slice, slice, list[tuple[slice, ...]]]) -> Entry:
        base, out, where = place
        parts: list[Values | LowRank | None] = []
        for part, slices in zip(one.parts, where, strict=True):
            if isinstance(part, Stored):
                parts.append(Values(self._tensor(slices[0], part.values.dtype), part.aligned))
            elif part is None:
                parts.append(None)
            else:
                left, right = (self._tensor(piece, F32) for piece in slices)
                sides = left.view(part.left.shape), right.view(part.right.shape)
                parts.append(LowRank(*sides, part.scale))
        return Entry(
            self._tensor(base, one.base.dtype), self._tensor(out, one.out), tuple(parts), one.key
        )

    def _tensor(self, place: slice, dtype: DType) -> torch.Tensor:
        return self.buffer[place].view(getattr(torch, dtype.torch or ""))

    def lams(self) -> np.ndarray:
        """f32 [entries, terms]."""
        rows = [one.lams for one in self.wanted]
        return np.array(rows, np.float32).reshape(len(rows), len(self.wanted[0].parts))

    def expected(self, lams: np.ndarray) -> tuple[np.ndarray, tuple[CombineStats, ...]]:
        """The buffer's bytes and the counts, by the host's operations."""
        after, stats = self.host.copy(), []
        for one, (_, out, _), row in zip(self.wanted, self.places, lams, strict=True):
            target = Operand(after[out].view(one.out.storage), one.out)
            stats.append(combined(one, target, row))
        return after, tuple(stats)


def combined(one: Wanted, out: Operand, lams: np.ndarray) -> CombineStats:
    """What combine and lowrank make of an entry."""
    terms = []
    for part, lam in zip(one.parts, lams, strict=True):
        if part is None or lam == 0:
            continue
        if isinstance(part, Stored):
            terms.append(Term(part.values, float(lam), part.aligned))
        else:
            rows, columns = part.shape
            delta = Operand(np.empty(rows * columns, np.float32), F32)
            lowrank(part, 0, delta, backend="reference")
            terms.append(Term(delta, float(lam), False))
    rounding = None if one.key is None else Dither(one.key, 0)
    return combine(one.base, terms, out, rounding=rounding, backend="reference")


def hold(wanted: Sequence[Wanted], backend: str, device: str) -> Table:
    """Run a table, and hold every byte of its buffer and every count against the host's."""
    arena = Arena(wanted, device)
    table = Table(arena.entries, backend=backend)
    table.run(arena.lams())
    compare(arena, table, arena.lams())
    return table


def compare(arena: Arena, table: Table, lams: np.ndarray) -> None:
    """What a table's last run left, against the host's operations."""
    after, stats = arena.expected(lams)
    found = arena.buffer.cpu().numpy()
    for number, (one, (_, out, _)) in enumerate(zip(arena.wanted, arena.places, strict=True)):
        pattern = f"u{one.out.size}"
        np.testing.assert_array_equal(
            found[out].view(pattern), after[out].view(pattern), err_msg=f"entry {number}: {one.out}"
        )
    np.testing.assert_array_equal(found, after, err_msg="bytes outside of the outs were written")
    assert table.counts() == stats
