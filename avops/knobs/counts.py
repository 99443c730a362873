"""What the last ``set`` saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Elements of the tensors that were combined, and events among them, as `avops merge` counts.

    Tensors that no term touches are not counted. unchanged: with the base's bits. overflowed:
    infinite from a finite sum. flushed: ±0 from a sum that is not 0.
    """

    elements: int = 0
    nonfinite: int = 0
    unchanged: int = 0
    overflowed: int = 0
    flushed: int = 0

    @property
    def unchanged_share(self) -> float | None:
        """The share of elements that rounding left as in the base; None of no elements."""
        return self.unchanged / self.elements if self.elements else None
