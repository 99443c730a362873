"""The effective λ of what a model holds, from the sample that `avops merge` takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avops.dtypes import COMPUTABLE
from avops.kernels import Operand
from avops.kernels.effective import Sums, gains, inner_products, sampled
from avops.kernels.rounding import widen
from avops.knobs.site import Inputs
from avops.knobs.targets import Target

if TYPE_CHECKING:
    import torch


def effective(
    targets: Sequence[Target], rows: np.ndarray, inputs: Inputs, lams: Mapping[str, float]
) -> dict[str, float | None]:
    """The effective λ by dial, None where its λ is 0 or the sample cannot tell.

    rows: λ, [targets, dials], of what the model holds. lams: the same by dial, without rules.
    """
    sums = [
        found
        for target, row in zip(targets, rows, strict=True)
        for name in target.names
        for found in _sums(target, name, row, inputs)
    ]
    found = gains(len(lams), sums)
    return {
        name: None if gain is None or lam == 0 else float(f"{gain * lam:.4g}")
        for (name, lam), gain in zip(lams.items(), found, strict=True)
    }


def _sums(target: Target, name: str, row: np.ndarray, inputs: Inputs) -> Iterator[Sums]:
    """The sums of each stretch of the sample of one tensor of the base."""
    dials = [k for k, av in enumerate(inputs.vectors) if row[k] and name in av]
    if not dials:
        return
    base = inputs.base.operands[name]
    held = target.tensor.detach().view(-1)
    for part in sampled(0, base.array.size):
        origin = widen(Operand(base.array[part], base.dtype))
        lines = np.empty((len(dials) + 1, origin.size), np.float64)
        with np.errstate(all="ignore"):
            for line, dial in zip(lines, dials, strict=False):
                av = inputs.vectors[dial]
                delta = widen(av.values(name, part.start, origin.size))
                if av.aligned(name):
                    delta = delta - origin
                line[:] = np.float64(row[dial]) * delta
            lines[-1] = _values(held[part]).astype(np.float64) - origin
        yield inner_products(dials, lines)


def _values(tensor: torch.Tensor) -> np.ndarray:
    """The values of a flat tensor in float32."""
    import torch

    raw = tensor.cpu().view(torch.uint8).numpy()
    dtype = next(d for d in COMPUTABLE if str(tensor.dtype) == f"torch.{d.torch}")
    return widen(Operand(raw.view(dtype.storage), dtype))
