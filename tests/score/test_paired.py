"""What one recipe changes against another, and two levels in pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from avops.errors import DataError, NonFiniteError
from avops.score import Item, Items, compare, pairwise, sign_test, summarise, wilson

LEVELS = ("exp", "gen", "avd")


def items_of(domains: str, levels: tuple[str, ...] = LEVELS) -> Items:
    entries = tuple(Item(name, "q", {}, line) for line, name in enumerate(domains, 1))
    return Items("items.jsonl", levels, entries)


def won_by(*winners: str) -> np.ndarray:
    """Scores that each item's winners share: ``e``, ``ga`` (a tie) ..."""
    rows = [[-1.0 if level[0] in names else -2.0 for level in LEVELS] for names in winners]
    return np.array(rows, np.float32)


def test_changes_are_counted_by_item() -> None:
    before = won_by("e", "e", "g", "a", "e", "g")
    after = won_by("g", "e", "g", "g", "e", "e")
    items = items_of("mmmmff")
    changes = {(c.domain, c.level): c for c in compare(before, after, items)}
    assert list(changes) == [(d, level) for d in ("m", "f", "all") for level in LEVELS]
    gen = changes["m", "gen"]
    assert (gen.n, gen.before, gen.after, gen.gained, gen.lost) == (4, 0.25, 0.75, 2, 0)
    assert gen.p == sign_test(2, 0)
    # Both of f's shares are as before, over one item that changed hands each way.
    assert [(c.gained, c.lost) for key, c in changes.items() if key[0] == "f"] == [
        (1, 0), (0, 1), (0, 0),
    ]  # fmt: skip
    assert (changes["all", "exp"].gained, changes["all", "exp"].lost) == (1, 1)
    assert changes["all", "exp"].p == 1
    assert changes["all", "avd"].before == 1 / 6


def test_pairing_tells_more_than_shares() -> None:
    """The same shares, from the same items and from quite other ones."""
    before = won_by(*"eeeegggg")
    items = items_of("m" * 8)
    same, moved = (compare(before, won_by(*text), items)[0] for text in ("eeeegggg", "ggggeeee"))
    assert (same.before, same.after) == (moved.before, moved.after) == (0.5, 0.5)
    assert (same.gained, same.lost, moved.gained, moved.lost) == (0, 0, 4, 4)


def test_parts_of_a_win_count_as_more_or_less() -> None:
    """From a whole win to a half is lost, from a third to a half gained, equal parts nothing."""
    before = won_by("e", "ega", "eg", "eg")
    after = won_by("eg", "eg", "ea", "ag")
    exp, gen, avd = compare(before, after, items_of("mmmm"))[:3]
    assert (exp.gained, exp.lost) == (1, 2)
    assert (gen.gained, gen.lost) == (2, 1)
    assert (avd.gained, avd.lost) == (2, 1)
    assert exp.before == summarise(before, items_of("mmmm"))["m"]["exp"].accuracy


def test_without_ties_it_is_mcnemars() -> None:
    """Discordant items only, exactly: 1 against 9 gives 2·(1 + 10)/2¹⁰."""
    before, after = won_by(*"eeeeeeeeeg" + "e" * 30), won_by(*"ggggggggge" + "e" * 30)
    change = compare(before, after, items_of("m" * 40))[0]
    assert (change.gained, change.lost) == (1, 9)
    assert change.p == 22 / 1024


def test_scores_that_cannot_be_compared() -> None:
    good = won_by("e", "g")
    with pytest.raises(DataError, match=r"shape \[1, 3\], expected \[2 items, 3 levels\]"):
        compare(good, won_by("e"), items_of("mm"))
    bad = good.copy()
    bad[1, 2] = np.nan
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(NonFiniteError, match=r"line 2, level 'avd': .* nan"):
            compare(*pair, items_of("mm"))


def test_pairwise_is_pref_acc_of_two_levels() -> None:
    scores = np.array([[-1, -2], [-3, -1], [-1, -1.5], [-2, -2]], np.float32)
    items = items_of("ssst", ("chosen", "rejected"))
    found = {pair.domain: pair for pair in pairwise(scores, items, "chosen", "rejected")}
    assert list(found) == ["s", "t", "all"]
    summary = summarise(scores, items)
    for domain, pair in found.items():
        assert pair.accuracy == summary[domain]["chosen"].accuracy
        assert (pair.low, pair.high) == (
            summary[domain]["chosen"].low,
            summary[domain]["chosen"].high,
        )
        assert pair.ties == summary[domain].ties
    pair = found["all"]
    assert (pair.n, pair.ties, pair.wins, pair.accuracy) == (4, 1, 2.5, 0.625)
    assert (pair.low, pair.high) == wilson(2.5, 4)
    assert pair.margin == (1 - 2 + 0.5 + 0) / 4
    turned = pairwise(scores, items, "rejected", "chosen")[-1]
    assert (turned.wins, turned.margin) == (1.5, -pair.margin)
    json.dumps([pair.to_dict() for pair in found.values()], allow_nan=False)


def test_pairwise_leaves_other_levels_out() -> None:
    scores = np.array([[-2, -1, -3], [-4, -1, -3]], np.float32)
    items = items_of("mm")
    assert pairwise(scores, items, "exp", "avd")[0].wins == 1
    assert pairwise(scores, items, "exp", "gen")[0].wins == 0
    for levels in (("exp", "nope"), ("exp", "exp")):
        with pytest.raises(DataError, match=r"expected two of exp, gen, avd"):
            pairwise(scores, items, *levels)
