"""Which items a point is measured on: the search items, held-out ones, and guards of both.

Held-out items are chosen by a hash of each item, so many of every domain: the same data give the
same split whatever the order of lines, on any machine, for any seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from avops.errors import DataError, RecipeError
from avops.recipe import exact_text, parse_exact
from avops.score import load_items
from avops.score.wording import counted
from avops.search.board import Board, Guard, Part, parse_share

if TYPE_CHECKING:
    from avops.score import Item, Items

ENOUGH = 20
"""Items of every domain from which half of them are held out unless told otherwise: ten to search
on and ten to confirm on, below which one item moves a share by more than a tenth."""
NONE, AUTO = "none", "auto"


@dataclass(frozen=True)
class GuardData:
    """A second data set, on which ``level`` has to win a share of at least ``floor``."""

    name: str
    data: str
    level: str | None
    floor: Fraction


@dataclass(frozen=True, eq=False)
class Sets:
    """search: the items and each guard's. holdout: the same of those held out, None without.

    rule: how items were held out, in words.
    """

    search: tuple[Items, ...]
    holdout: tuple[Items, ...] | None
    guards: tuple[GuardData, ...]
    rule: str

    def board(self) -> Board:
        """How points are judged on the search items."""
        return self._board(self.search)

    def holdout_board(self) -> Board | None:
        """How they are judged on the held-out items."""
        return None if self.holdout is None else self._board(self.holdout)

    def _board(self, items: Sequence[Items]) -> Board:
        guards = (
            Guard(guard.name, Part.of(own), guard.level or own.levels[0], guard.floor)
            for guard, own in zip(self.guards, items[1:], strict=True)
        )
        return Board(Part.of(items[0]), tuple(guards))


def load_sets(main: Items, guards: Sequence[GuardData], holdout: str, limit: int | None) -> Sets:
    """``main`` and the guards' files, parted by ``holdout``: a share, a file, none or auto.

    Raises DataError for a guard's level that its file lacks, for items of one level, for too few
    items, and for held-out items that are also searched on.
    """
    loaded = tuple(_guard_items(guard, limit) for guard in guards)
    whole = (main, *loaded)
    for items in whole:
        if len(items.levels) < 2:
            raise DataError(
                f"{items.source}: a single level {items.levels[0]!r}, expected two or more to "
                "prefer one of; give items with responses of other levels"
            )
    known = tuple(guards)
    if holdout == AUTO:
        fewest = min(Part.of(main).counts)
        if fewest < ENOUGH:
            why = f"none: a domain has only {counted(int(fewest), 'item')}, and {ENOUGH} are needed"
            return Sets(whole, None, known, why)
        holdout = ".5"
    if holdout == NONE:
        return Sets(whole, None, known, "none, as asked")
    share = _share(holdout)
    if share is None:
        both = "; guards have the same items on both sides" if loaded else ""
        held_out = (_other(main, holdout), *loaded)
        return Sets(whole, held_out, known, f"the items of {holdout}{both}")
    kept, held = parted(main, share)
    if len(held.domains) < len(main.domains) or len(kept.domains) < len(main.domains):
        raise DataError(
            f"{main.source}: a domain has too few items to hold out {exact_text(share)} of them; "
            "give more items, another share, a file, or --holdout none"
        )
    pairs = [(kept, held), *(_guard_halves(items, share) for items in loaded)]
    return Sets(
        tuple(one for one, _ in pairs),
        tuple(other for _, other in pairs),
        known,
        f"{exact_text(share)} of each domain, by a hash of each item",
    )


def parted(items: Items, share: Fraction) -> tuple[Items, Items]:
    """(kept, held out): of every domain the ``share`` with the smallest hashes, rounded down."""
    held: set[int] = set()
    for domain in items.domains:
        rows = [row for row, item in enumerate(items) if item.domain == domain]
        rows.sort(key=lambda row: (_hash(items[row]), items[row].line))
        held |= set(rows[: int(len(rows) * share)])
    kept = tuple(item for row, item in enumerate(items) if row not in held)
    out = tuple(item for row, item in enumerate(items) if row in held)
    return replace(items, entries=kept), replace(items, entries=out)


def parse_guard(text: str, data: Sequence[str]) -> list[GuardData]:
    """The guards of ``helpful=.55,safe=chosen>=.9`` over the files ``NAME=FILE`` of ``data``."""
    files = dict(_pair(entry, "--guard-data", "NAME=FILE") for entry in data)
    if len(files) < len(data):
        raise RecipeError("--guard-data: two files of one name; give each a name of its own")
    found = []
    for piece in text.split(","):
        where = f"--guard {piece.strip()}"
        condition, mark, share = piece.strip().partition(">=")
        name, _, level = (word.strip() for word in condition.partition("="))
        if not mark or name not in files:
            raise RecipeError(
                f"{where}: expected NAME>=SHARE or NAME=LEVEL>=SHARE such as helpful>=.55, "
                f"of a name that --guard-data gives ({', '.join(files) or 'none'})"
            )
        found.append(GuardData(name, files[name], level or None, parse_share(share.strip(), where)))
    return found


def items_digest(items: Items) -> str:
    """The hash of what is asked and answered, whatever file and lines it stands in."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(_hash(item))
    return digest.hexdigest()


def _pair(text: str, flag: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise RecipeError(f"{flag} {text}: expected {form}")
    return name, value


def _guard_items(guard: GuardData, limit: int | None) -> Items:
    items = load_items(guard.data)
    if guard.level is not None and guard.level not in items.levels:
        raise DataError(
            f"{guard.data}: no level {guard.level!r} for the guard {guard.name}, expected one of "
            f"{', '.join(items.levels)}"
        )
    return items.select(limit=limit)


def _guard_halves(items: Items, share: Fraction) -> tuple[Items, Items]:
    """A guard counts all of its items together; too few of them are used twice."""
    kept, held = parted(items, share)
    return (kept, held) if len(held) and len(kept) else (items, items)


def _share(text: str) -> Fraction | None:
    """The share of ``text``; None where it must be a file's name."""
    try:
        share = parse_exact(text, "--holdout", what="share")
    except RecipeError:
        return None
    if not 0 < share < 1:
        raise RecipeError(f"--holdout {text}: expected a share between 0 and 1, a file, or none")
    return share


def _other(main: Items, path: str) -> Items:
    items = load_items(path, levels=main.levels).select(domains=main.domains)
    own = {_hash(item) for item in main}
    if shared := sum(_hash(item) in own for item in items):
        raise DataError(
            f"{path}: {shared} of its items are also in {main.source}, expected others: what is "
            "searched on confirms nothing; give other items, or a share such as --holdout .5"
        )
    return items


def _hash(item: Item) -> bytes:
    text = json.dumps([item.domain, item.query, sorted(item.responses.items())])
    return hashlib.sha256(f"avops holdout 1\n{text}".encode()).digest()
