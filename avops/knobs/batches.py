"""Batches: pieces with one table of combine_many, over images that stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import DType
from avops.kernels.many import Entry, LowRank, Table, Values
from avops.knobs.mapped import MappedVector
from avops.knobs.pieces import ALIGN, Group, Piece
from avops.knobs.targets import Target

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Batch:
    """Pieces with one table. numbers: of their targets.

    wide: the model's part of pieces that it holds wider, and what is widened into it. plain: the
    model's part and the base's values of each piece.
    """

    table: Table
    numbers: np.ndarray
    wide: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    plain: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def combine(self, rows: np.ndarray) -> Callable[[], None]:
        """Work that writes θ(λ). rows: λ, [targets, terms]."""
        lams = rows[self.numbers]

        def work() -> None:
            self.table.run(lams)
            for part, out in self.wide:
                part.copy_(out)

        return work

    def restore(self, targets: set[int]) -> Callable[[], None]:
        """Work that writes the base's values of ``targets``, bit for bit or widened."""

        def work() -> None:
            for number, (part, values) in zip(self.numbers, self.plain, strict=True):
                if int(number) in targets:
                    part.copy_(values)

        return work


class Maker:
    """Makes batches of pieces of ``targets`` on ``device``.

    Factors of low-rank terms are put there once. A table has a term for each of ``vectors``, and
    an empty one where there are none.
    """

    def __init__(
        self, device: torch.device, targets: Sequence[Target], vectors: Sequence[MappedVector]
    ) -> None:
        self._targets, self._vectors = targets, vectors
        self._factors = {
            (number, dial): _put(vector, target.name, device)
            for number, target in enumerate(targets)
            for dial, vector in enumerate(vectors)
            if vector.low_rank(target.name)
        }

    def batch(
        self,
        groups: Sequence[Group],
        images: Sequence[torch.Tensor],
        scratch: torch.Tensor | None = None,
    ) -> Batch:
        """The batch of ``groups`` in their ``images``.

        scratch: where values that are widened afterwards go; None: in place of the base's.
        """
        entries, wide, plain = [], [], []
        used = 0
        for group, image in zip(groups, images, strict=True):
            for piece in group.pieces:
                target = self._targets[piece.target]
                part = target.tensor.detach().view(-1)[piece.start : piece.start + piece.count]
                assert piece.places[0] is not None
                base = _view(image, piece.places[0], piece.count, target.base.dtype)
                out = part
                if not target.direct:
                    out = base
                    if scratch is not None:
                        out = _view(scratch, used, piece.count, target.dtype)
                        used += padded(piece.count, target.dtype)
                    wide.append((part, out))
                parts = self._parts(piece, image) or (None,)
                entries.append(Entry(base, out, parts, piece.key))
                plain.append((part, base))
        numbers = np.array([p.target for group in groups for p in group.pieces], np.int64)
        return Batch(Table(entries), numbers, tuple(wide), tuple(plain))

    def scratch(self, group: Group) -> int:
        """Bytes of scratch for ``group``."""
        pieces = ((piece, self._targets[piece.target]) for piece in group.pieces)
        return sum(padded(piece.count, t.dtype) for piece, t in pieces if not t.direct)

    def _parts(self, piece: Piece, image: torch.Tensor) -> tuple[Values | LowRank | None, ...]:
        target = self._targets[piece.target]
        found: list[Values | LowRank | None] = []
        for dial, vector in enumerate(self._vectors):
            place = piece.places[1 + dial]
            if place is not None:
                dtype = vector.stored(target.name).dtype
                values = _view(image, place, piece.count, dtype)
                found.append(Values(values, vector.aligned(target.name)))
            elif (piece.target, dial) in self._factors:
                found.append(_rows(self._factors[piece.target, dial], piece))
            else:
                found.append(None)
        return tuple(found)


def padded(count: int, dtype: DType) -> int:
    """Bytes of ``count`` elements, up to where the next ones may begin."""
    return -(-count * dtype.size // ALIGN) * ALIGN


def _put(vector: MappedVector, name: str, device: torch.device) -> LowRank:
    import torch

    factors = vector.factors(name)
    left, right = (torch.from_numpy(side).to(device) for side in (factors.left, factors.right))
    return LowRank(left, right, factors.scale)


def _rows(whole: LowRank, piece: Piece) -> LowRank:
    """The factors of a piece, which is some rows of the tensor."""
    columns = whole.right.shape[1]
    assert piece.start % columns == 0 == piece.count % columns
    first = piece.start // columns
    return LowRank(whole.left[first : first + piece.count // columns], whole.right, whole.scale)


def _view(memory: torch.Tensor, at: int, count: int, dtype: DType) -> torch.Tensor:
    """``count`` elements at byte ``at`` of ``memory``."""
    import torch

    found: torch.dtype = getattr(torch, dtype.torch or "")
    return memory[at : at + count * dtype.size].view(found)
