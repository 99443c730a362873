"""Which response is preferred to which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avops.align import parse_prefer, parse_target, ranked, targeted, usual_rules
from avops.errors import DataError, UserError
from avops.score import load_items

ITEMS = [
    {
        "domain": domain,
        "query": f"{domain} {number}?",
        "responses": {"avd": f"ask {number}", "exp": f"it is {number}", "gen": "it depends"},
    }
    for domain in ("med", "leg")
    for number in range(3)
]


def test_rules_as_they_are_written() -> None:
    assert parse_prefer("exp>gen, gen > avd") == (("exp", "gen"), ("gen", "avd"))
    assert parse_target("med=avd, leg = exp") == {"med": "avd", "leg": "exp"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exp", "got 'exp', expected two different levels"),
        ("exp>", "expected two different levels"),
        ("exp>exp", "expected two different levels"),
        ("exp>gen>avd", "expected two different levels"),
        ("exp>gen,exp>gen", "'exp>gen' twice"),
        ("exp>gen,gen>exp", "'gen>exp' and its opposite"),
    ],
)
def test_rules_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"--prefer {text}.*{said}"):
        parse_prefer(text)


@pytest.mark.parametrize(
    ("text", "said"), [("med", "got 'med'"), ("med=", "got 'med='"), ("med=a,med=b", "med twice")]
)
def test_targets_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"--target {text}.*{said}"):
        parse_target(text)


def test_usual_rules_go_by_names_and_not_by_order() -> None:
    assert usual_rules(("avd", "exp", "gen")) == (("exp", "gen"), ("gen", "avd"))
    assert usual_rules(("unsafe", "safe")) == (("safe", "unsafe"),)
    assert usual_rules(("chosen", "rejected")) == (("chosen", "rejected"),)
    with pytest.raises(UserError, match=r"the levels are good, bad.*--prefer 'good>bad'"):
        usual_rules(("good", "bad"))


def test_every_item_gives_a_pair_for_each_rule(write_items: Callable[..., Path]) -> None:
    items = load_items(write_items("items.jsonl", ITEMS))
    found = ranked(items)
    assert found.text == "exp>gen,gen>avd"
    assert len(found) == 12
    assert [(pair.item, pair.chosen, pair.rejected) for pair in found.pairs[:3]] == [
        (0, "exp", "gen"), (0, "gen", "avd"), (1, "exp", "gen"),
    ]  # fmt: skip


def test_a_joint_target_prefers_one_level_to_all_others(write_items: Callable[..., Path]) -> None:
    items = load_items(write_items("items.jsonl", ITEMS))
    found = targeted(items, {"med": "avd", "leg": "exp"})
    of = {
        domain: {
            (pair.chosen, pair.rejected)
            for pair in found.pairs
            if found.items[pair.item].domain == domain
        }
        for domain in ("med", "leg")
    }
    assert of == {
        "med": {("avd", "exp"), ("avd", "gen")},
        "leg": {("exp", "avd"), ("exp", "gen")},
    }
    assert len(found) == 12
    alone = targeted(items, {"leg": "gen"})
    assert {alone.items[pair.item].domain for pair in alone.pairs} == {"leg"}


def test_safety_pairs_need_no_rule(write_items: Callable[..., Path]) -> None:
    pairs = [{"prompt": f"q{n}", "chosen": f"no {n}", "rejected": f"yes {n}"} for n in range(2)]
    found = ranked(load_items(write_items("pairs.jsonl", pairs)))
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [("chosen", "rejected")] * 2


def test_unknown_levels_and_domains(write_items: Callable[..., Path]) -> None:
    items = load_items(write_items("items.jsonl", ITEMS))
    with pytest.raises(DataError, match=r"--prefer exp>nix: no level 'nix'.*avd, exp, gen"):
        ranked(items, (("exp", "nix"),))
    with pytest.raises(DataError, match=r"--target med=nix: no level 'nix'"):
        targeted(items, {"med": "nix"})
    with pytest.raises(DataError, match=r"no items of domain 'tax'"):
        targeted(items, {"tax": "exp"})


def test_a_response_is_not_preferred_to_itself(write_items: Callable[..., Path]) -> None:
    record = {"domain": "med", "query": "q?", "responses": {"exp": "a", "gen": "a", "avd": "b"}}
    items = load_items(write_items("items.jsonl", [record]))
    with pytest.raises(DataError, match=r"line 1: exp and gen are the same text"):
        ranked(items)


def test_the_digest_is_of_the_texts_in_order(write_items: Callable[..., Path]) -> None:
    items = load_items(write_items("items.jsonl", ITEMS))
    turned = load_items(write_items("turned.jsonl", ITEMS[::-1]))
    assert ranked(items).digest == ranked(items).digest
    digests = {
        ranked(items).digest,
        ranked(turned).digest,
        ranked(items, (("exp", "gen"),)).digest,
        ranked(items, (("gen", "exp"),)).digest,
    }
    assert len(digests) == 4
