"""What `extract` may do to differences: trim, elect signs, drop and rescale, truncate to a rank."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from avops.errors import RecipeError
from avops.kernels.transforms import Drop, drop_key
from avops.recipe.coefficient import parse_exact, round_f32

_HASH = 1 << 32
_MAX_RANK = 1 << 16


@dataclass(frozen=True)
class Transforms:
    """Transforms in the order in which they are applied: trim, sign_elect, dare, rank.

    trim: the share of entries kept, as text; over: among those of each ``tensor``, or of the whole
    ``vector``. sign_elect: over all vectors of the extraction. dare: the share dropped, as text.
    seed: of the first vector's drops; each later one has the next seed. rank: of an adapter.
    Raises RecipeError for values out of range.
    """

    trim: str | None = None
    over: str = "tensor"
    sign_elect: bool = False
    dare: str | None = None
    seed: int = 0
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.trim is not None and not 0 < self.kept <= 1:
            raise RecipeError(
                f"--trim: the share kept is {self.trim!r}, expected more than 0 and at most 1, "
                "such as 0.2 for a fifth of the entries"
            )
        if self.over not in ("tensor", "vector"):
            raise RecipeError(f"--trim-over: {self.over!r}, expected tensor or vector")
        if self.dare is not None and not 0 < self._limit < _HASH:
            raise RecipeError(
                f"--dare: the share dropped is {self.dare!r}, expected more than 0 and less than "
                "1, such as 0.5 for half of the entries"
            )
        if not 0 <= self.seed < 1 << 63:
            raise RecipeError(f"--seed: {self.seed}, expected 0 to 2^63 − 1")
        if self.rank is not None and not 1 <= self.rank <= _MAX_RANK:
            raise RecipeError(f"--rank: {self.rank}, expected 1 to {_MAX_RANK}")

    def __bool__(self) -> bool:
        return self.trim is not None or self.sign_elect or self.dare is not None or bool(self.rank)

    @property
    def kept(self) -> Fraction:
        """The share that ``trim`` keeps, exactly; 1 without it."""
        if self.trim is None:
            return Fraction(1)
        return parse_exact(self.trim, "--trim", what="the share kept")

    @property
    def _limit(self) -> int:
        """Hashes below it are dropped."""
        return round(parse_exact(self.dare or "0", "--dare", what="the share dropped") * _HASH)

    def keep(self, count: int) -> int:
        """How many of ``count`` entries ``trim`` keeps: the share, rounded down, but at least 1."""
        return min(max(int(self.kept * count), 1), count)

    def drop(self, number: int, tensor: str) -> Drop:
        """The drops in ``tensor`` of vector ``number``."""
        # Of the share that is kept in fact, so that the mean is that of the entries.
        factor = round_f32(Fraction(_HASH, _HASH - self._limit))
        return Drop(drop_key(self.seed + number, tensor), self._limit, factor)

    def text(self, number: int, vectors: int) -> str:
        """What was done to vector ``number`` of ``vectors``, for records and reports."""
        found = []
        if self.trim is not None:
            found.append(f"trim {self.trim} per {self.over}")
        if self.sign_elect:
            found.append(f"sign-elect among {vectors}")
        if self.dare is not None:
            found.append(f"dare {self.dare} seed {self.seed + number}")
        if self.rank is not None:
            found.append(f"rank {self.rank}")
        return ", ".join(found)
