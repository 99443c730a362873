"""What Knobs may be asked for, besides model, alignment vectors and base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from avops.errors import UserError

Progress = Callable[[int, int], None]

ROUNDINGS = ("nearest", "dither")
RESIDENCIES = ("auto", "device", "pinned", "disk")


class Options(TypedDict, total=False):
    """Keyword arguments of Knobs; see ``Settings`` for what they mean."""

    rounding: str
    seed: int
    where: Sequence[str]
    skip: Sequence[str]
    allow_nonfinite: bool
    residency: str
    progress: Progress | None


@dataclass(frozen=True)
class Settings:
    """Checked options.

    rounding: ``nearest``, or ``dither`` with ``seed``. where, skip: rules per tensor, written as
    for `avops merge --where --skip`. allow_nonfinite: accept NaN and infinities in the weights.
    residency: ``auto``, ``device``, ``pinned`` or ``disk``. progress: called as
    ``progress(done, total)`` with bytes while the base and the alignment vectors are loaded.
    """

    rounding: str = "nearest"
    seed: int = 0
    where: Sequence[str] = ()
    skip: Sequence[str] = ()
    allow_nonfinite: bool = False
    residency: str = "auto"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        _check_choice("rounding", self.rounding, ROUNDINGS)
        _check_choice("residency", self.residency, RESIDENCIES)
        for name, texts in (("where", self.where), ("skip", self.skip)):
            if isinstance(texts, str):
                raise UserError(f"{name} is {texts!r}, expected a list of such texts: [{texts!r}]")

    @property
    def key_seed(self) -> int | None:
        """The seed of dithered rounding, None for nearest."""
        return self.seed if self.rounding == "dither" else None


def _check_choice(name: str, got: str, known: Sequence[str]) -> None:
    if got not in known:
        raise UserError(f"{name} is {got!r}, expected one of {', '.join(known)}")
