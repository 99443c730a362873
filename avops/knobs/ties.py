"""What one parameter can be when the files hold it twice, or the model holds it not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avops.disk import Checkpoint
from avops.errors import MismatchError
from avops.kernels import Operand
from avops.knobs.dials import Dials
from avops.knobs.mapped import Mapped, MappedVector

if TYPE_CHECKING:
    import torch

    from avops.knobs.site import Inputs
    from avops.knobs.targets import Target

_CHUNK = 1 << 22


def check_unused(
    name: str, model: torch.nn.Module, base: Mapped, vectors: Mapping[str, MappedVector]
) -> None:
    """A tensor that the model does not hold (an old buffer, say) may not be moved by a vector."""
    for av, mapped in vectors.items():
        if any(map(np.any, mapped.deltas(name, base.operands[name]))):
            raise MismatchError(
                f"{base.checkpoint.path}: tensor {name!r} has no parameter of that name in the "
                f"{type(model).__name__}, and AV {av} changes it; expected the names of "
                "model.state_dict()"
            )


def check_tied(name: str, other: str, base: Mapped, vectors: Mapping[str, MappedVector]) -> None:
    """Tied in the model means one value: the files' two must agree, and move alike, bit for bit."""
    one, two = base.operands[name], base.operands[other]
    if not _same_bytes(one, two):
        raise MismatchError(apart(name, other, "the base", base.checkpoint))
    for av, mapped in vectors.items():
        pairs = zip(mapped.deltas(name, one), mapped.deltas(other, two), strict=True)
        if any(left.tobytes() != right.tobytes() for left, right in pairs):
            raise MismatchError(apart(name, other, f"AV {av}", mapped.vector.checkpoint))


def check_rules(targets: Sequence[Target], dials: Dials, inputs: Inputs) -> None:
    """Rules must be the same for all names of one parameter, where a vector moves it."""
    for target in targets:
        for dial, vector in enumerate(inputs.vectors):
            for name in target.names[1:]:
                factors = {dials.factor(dial, target.name), dials.factor(dial, name)}
                if len(factors) > 1 and name in vector:
                    who = f"the rules for AV {vector.vector.name}"
                    raise MismatchError(apart(name, target.name, who, inputs.base.checkpoint))


def _same_bytes(one: Operand, two: Operand) -> bool:
    if one.dtype != two.dtype or one.array.size != two.array.size:
        return False
    left, right = one.array.view(np.uint8), two.array.view(np.uint8)
    return all(
        np.array_equal(left[start : start + _CHUNK], right[start : start + _CHUNK])
        for start in range(0, left.size, _CHUNK)
    )


def apart(name: str, other: str, who: str, checkpoint: Checkpoint) -> str:
    """What to say where ``who`` gives the two names of one parameter different values."""
    return (
        f"{checkpoint.path}: {name!r} and {other!r} differ in {who}, but the model ties them to "
        "one parameter; write the merge with `avops merge` and load that"
    )
