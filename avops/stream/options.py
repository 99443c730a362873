"""What a merge may be asked for, besides its recipe and its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from avops.dtypes import DType, parse_dtype
from avops.recipe import RecipeFile


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    dtype: of floating outputs (None: the base's). force: replace an earlier output.
    allow_missing, allow_extra: accept AVs that lack or add tensors. allow_nonfinite: accept NaN
    and infinities in the result. vocab: ``strict``, or ``base`` to merge the rows that both
    vocabularies have. rounding: ``nearest``, or ``dither`` with ``seed``. resume: take up what a
    killed run of the same merge left. fingerprints: by path, of base and AVs as a recipe recorded
    them; another one is refused.
    """

    dtype: DType | None = None
    force: bool = False
    allow_missing: bool = False
    allow_extra: bool = False
    allow_nonfinite: bool = False
    vocab: str = "strict"
    rounding: str = "nearest"
    seed: int = 0
    resume: bool = False
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def recorded(cls, file: RecipeFile) -> MergeOptions:
        """The options that ``file`` was merged with, as far as they change the result."""
        return cls(
            dtype=parse_dtype(file.dtype) if file.dtype else None,
            allow_missing=bool(file.options.get("allow_missing")),
            allow_extra=bool(file.options.get("allow_extra")),
            allow_nonfinite=bool(file.options.get("allow_nonfinite")),
            vocab=file.vocab,
            rounding=file.rounding,
            seed=file.seed or 0,
            fingerprints=file.fingerprints,
        )
