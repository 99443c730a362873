"""What a response's log-probs are divided by: tokens, nothing, bytes or characters.

S in tables is the mean per token, (1/T_r) Σ log P. The sum is S · T_r, exact in f64. It has the
end-of-turn token's log-prob where that is scored, and T_r then counts the token. Bytes (UTF-8) and
characters (code points) are those of the response's text as it stands in the item file: no
end-of-turn token, nothing that a template adds or strips. The four norms may have four winners.

S is a mean rounded to f32, so that sums differ from the exact ones by up to 2⁻²⁴ of themselves:
far below any difference that means something, and a tie of sums may be missed by it. Equal
responses have equal sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avops.errors import UserError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from avops.score.items import Items

NORMS = {
    "token": "mean log-prob per token",
    "sum": "sum of log-probs",
    "byte": "log-prob per byte",
    "char": "log-prob per character",
}
"""Name of each norm, and what it makes of the log-probs. ``token`` is the paper's."""


def lengths(items: Items) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(UTF-8 bytes, characters) of every response's text, [item, level]."""
    shape = (len(items), len(items.levels))
    texts = [item.responses[level] for item in items for level in items.levels]
    return (
        np.array([len(text.encode()) for text in texts], np.int32).reshape(shape),
        np.array([len(text) for text in texts], np.int32).reshape(shape),
    )


def normalise(
    S: NDArray[np.floating[Any]],  # noqa: N803
    norm: str,
    *,
    tokens: NDArray[np.int32],
    nbytes: NDArray[np.int32],
    characters: NDArray[np.int32],
) -> NDArray[np.floating[Any]]:
    """S[item, level], means per token, under another norm: f64, or S itself for ``token``.

    tokens: T_r. nbytes, characters: see ``lengths``. Raises UserError for an unknown norm.
    """
    if norm not in NORMS:
        raise UserError(f"norm {norm!r}: unknown, expected one of {', '.join(NORMS)}")
    if norm == "token":
        return S
    sums = S.astype(np.float64) * tokens
    return sums if norm == "sum" else sums / {"byte": nbytes, "char": characters}[norm]
