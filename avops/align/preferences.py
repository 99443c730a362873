"""Preferences: which response of an item shall be preferred to which.

``exp>gen,gen>avd`` prefers, in every domain, expert to generic and generic to avoiding responses:
what one alignment vector is trained on (arXiv 2410.19206). ``med=avd,leg=exp`` wants one level in
each domain, over every other level: the mixed set of a joint training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avops.errors import DataError, UserError

if TYPE_CHECKING:
    from avops.score import Items

Rule = tuple[str, str]
"""(preferred level, other level)."""

USUAL: tuple[tuple[Rule, ...], ...] = (
    (("exp", "gen"), ("gen", "avd")),
    (("chosen", "rejected"),),
    (("safe", "unsafe"),),
    (("helpful", "unhelpful"),),
)
"""What is preferred where levels have these names; others must be named."""


@dataclass(frozen=True)
class Preference:
    """In item number ``item``, the response of level ``chosen`` is preferred to ``rejected``'s."""

    item: int
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Preferences:
    """The items and the pairs made of them. text: the rules, as they can be given again."""

    items: Items
    pairs: tuple[Preference, ...]
    text: str

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def digest(self) -> str:
        """SHA-256 over domain, query, chosen and rejected text of every pair, in order."""
        digest = hashlib.sha256(b"avops-preferences-1\n")
        for pair in self.pairs:
            item = self.items[pair.item]
            texts = [item.responses[level] for level in (pair.chosen, pair.rejected)]
            line = json.dumps([item.domain, item.query, *texts], ensure_ascii=False)
            digest.update(line.encode() + b"\n")
        return digest.hexdigest()


def parse_prefer(text: str) -> tuple[Rule, ...]:
    """The rules in ``exp>gen,gen>avd``. Raises UserError."""
    rules: list[Rule] = []
    for part in text.split(","):
        names = tuple(name.strip() for name in part.split(">"))
        if len(names) != 2 or not all(names) or names[0] == names[1]:
            raise UserError(
                f"--prefer {text}: got {part.strip()!r}, expected two different levels such as "
                "exp>gen; give rules as 'exp>gen,gen>avd'"
            )
        if names in rules:
            raise UserError(f"--prefer {text}: {part.strip()!r} twice, expected each rule once")
        if names[::-1] in rules:
            raise UserError(
                f"--prefer {text}: {part.strip()!r} and its opposite, expected one of them"
            )
        rules.append((names[0], names[1]))
    return tuple(rules)


def parse_target(text: str) -> dict[str, str]:
    """Domain to wanted level, of ``med=avd,fin=avd,leg=exp``. Raises UserError."""
    wanted: dict[str, str] = {}
    for part in text.split(","):
        domain, sign, level = (piece.strip() for piece in part.partition("="))
        if not (domain and sign and level):
            raise UserError(
                f"--target {text}: got {part.strip()!r}, expected DOMAIN=LEVEL; "
                "give targets as med=avd,fin=avd,leg=exp"
            )
        if domain in wanted:
            raise UserError(f"--target {text}: {domain} twice, expected each domain once")
        wanted[domain] = level
    return wanted


def usual_rules(levels: Sequence[str]) -> tuple[Rule, ...]:
    """What is preferred among ``levels`` by their names. Raises UserError for other names.

    The order in a file is not believed: a tool that sorts keys would turn the preference round.
    """
    for rules in USUAL:
        if {level for rule in rules for level in rule} == set(levels):
            return rules
    known = "; ".join(written(rules) for rules in USUAL)
    raise UserError(
        f"the levels are {', '.join(levels)}, and which is preferred is known only of {known}; "
        f"say it with --prefer, such as --prefer '{levels[0]}>{levels[-1]}'"
    )


def written(rules: Sequence[Rule]) -> str:
    """``rules`` as the text that gives them."""
    return ",".join(f"{chosen}>{rejected}" for chosen, rejected in rules)


def ranked(items: Items, rules: Sequence[Rule] | None = None) -> Preferences:
    """A pair of every item for each of ``rules`` (None: the usual ones).

    Raises DataError for a level that the items lack.
    """
    rules = usual_rules(items.levels) if rules is None else tuple(rules)
    for level in dict.fromkeys(level for rule in rules for level in rule):
        _check_level(items, level, f"--prefer {written(rules)}")
    pairs = tuple(Preference(i, *rule) for i in range(len(items)) for rule in rules)
    return _distinct(Preferences(items, pairs, written(rules)))


def targeted(items: Items, wanted: Mapping[str, str]) -> Preferences:
    """The mixed set of a joint training: in each domain its level over every other level.

    Only items of these domains take part. Raises DataError for an unknown domain or level.
    """
    text = ",".join(f"{domain}={level}" for domain, level in wanted.items())
    chosen = items.select(domains=tuple(wanted))
    for level in dict.fromkeys(wanted.values()):
        _check_level(items, level, f"--target {text}")
    pairs = tuple(
        Preference(i, wanted[item.domain], other)
        for i, item in enumerate(chosen)
        for other in items.levels
        if other != wanted[item.domain]
    )
    return _distinct(Preferences(chosen, pairs, text))


def _check_level(items: Items, level: str, asked: str) -> None:
    if level not in items.levels:
        raise DataError(
            f"{items.source}: {asked}: no level {level!r}, expected one of "
            f"{', '.join(items.levels)}; name levels as the items do"
        )


def _distinct(preferences: Preferences) -> Preferences:
    """Refuse a response that is to be preferred to itself: its loss cannot fall."""
    items = preferences.items
    for pair in preferences.pairs:
        texts = items[pair.item].responses
        if texts[pair.chosen] == texts[pair.rejected]:
            raise DataError(
                f"{items.place(pair.item)}: {pair.chosen} and {pair.rejected} are the same text, "
                "expected two responses of which one is preferred; correct or remove this line"
            )
    return preferences
