"""A site: the targets on one device, and how θ(λ) gets into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from avops.knobs.mapped import Mapped, MappedVector
from avops.knobs.residency import Choice

if TYPE_CHECKING:
    import torch

# Columns of what ``finish`` returns: the fields of CombineStats.
NONFINITE, UNCHANGED, OVERFLOWED, FLUSHED = range(4)


@dataclass(frozen=True)
class Inputs:
    """What a site works on: the mapped base and the vectors, in the order of the dials."""

    base: Mapped
    vectors: tuple[MappedVector, ...]

    def check(self) -> None:
        """Raise CheckpointError when a file was changed."""
        for mapped in (self.base, *(vector.mapped for vector in self.vectors)):
            mapped.check()


Told = Callable[[int], None]


class Site(Protocol):
    """One device's targets.

    numbers: their places among all targets. total: bytes that are read for them before the first
    λ is set: those that stay in memory, or else the base's.
    """

    device: torch.device
    numbers: tuple[int, ...]
    choice: Choice
    total: int

    def load(self, told: Told) -> None:
        """Bring base and vectors to where they stay.

        told: called with bytes of ``total`` that were read, here or by the first ``finish``.
        """

    def check(self) -> None:
        """Raise CheckpointError when a file that is still read was changed.

        AvopsError when the device cannot take work now.
        """

    def start(self, rows: np.ndarray) -> None:
        """Begin to write θ(λ). rows: λ in float32, [targets of this site, dials]."""

    def finish(self) -> np.ndarray:
        """Wait until it is written. Returns int64 counts, [targets of this site, 4].

        A tensor that no term touches has the base's bytes, widened at most, whatever they are.
        """
