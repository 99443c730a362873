"""combine_many: combine for many tensors on one device, in place of another, for any λ.

Made once for a model (Entry by Entry), run for every λ: no allocation after the first run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avops.kernels import registry
from avops.kernels.combine import CombineStats
from avops.kernels.many.checks import check_entries, check_lams
from avops.kernels.many.entries import Entry, LowRank, Values


class Table:
    """Entries of one device behind one backend.

    Shapes and dtypes
        Any mix, see Entry. Every tensor lives on one device, and stays where it is while the table
        lives: addresses are taken once.
    Numerics
        Those of ``combine`` and ``lowrank``, bit for bit: per entry, its parts with λ ≠ 0 are the
        terms, in order. A part whose λ is 0 is not read.
    Aliasing
        An out overlaps no other entry's tensor and none of its own inputs, unless it is exactly
        its base, with its dtype.
    Errors
        TypeError, ValueError: entries that do not fit. BackendError: a forced backend that cannot
        serve, or does not reach the entries' device.
    Bytes moved
        Each input is read once, each out is written once, whatever the number of terms; factors
        of low-rank parts come from cache.
    Source
        Contracts 1 and 3 of docs/design.md.
    """

    def __init__(
        self, entries: Sequence[Entry], *, backend: str | registry.Implementation | None = None
    ) -> None:
        self.entries = tuple(entries)
        self.device = check_entries(self.entries)
        self.terms = len(self.entries[0].parts)
        implementation = registry.resolve("combine_many", backend, device=self.device.type)
        self.backend = implementation.backend
        self._state = implementation.run(self.entries, self.device)

    def run(self, lams: Sequence[float] | np.ndarray) -> None:
        """Write θ(λ) to every out, in stream order; does not wait for the device.

        lams: f32 values, [terms], or [entries, terms] for coefficients that differ by tensor.
        """
        self._state.run(check_lams(lams, len(self.entries), self.terms))

    def counts(self) -> tuple[CombineStats, ...]:
        """The counts of each entry's last run; waits for the device."""
        return tuple(CombineStats(*row) for row in self._state.counts())

    def count_rows(self) -> np.ndarray:
        """The same as int64 [entries, 4], for many entries: in the order of CombineStats."""
        return np.array(self._state.counts(), np.int64)


__all__ = ["Entry", "LowRank", "Table", "Values"]
