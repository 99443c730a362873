from __future__ import annotations

import re
import statistics

import pytest

from avops.demo import grammar, phrases, topics
from avops.demo.sizes import SIZES

DOMAINS = list(topics.FIELDS)


def items(split: str, domain: str, seed: int = 7, count: int = 60) -> list[grammar.Record]:
    return grammar.make_items(seed, split, domain, count, grammar.split_personas(seed)[split])


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("split", list(grammar.SPLITS))
def test_every_item_is_whole(split: str, domain: str) -> None:
    made = items(split, domain)
    assert len({item["query"] for item in made}) == len({item["id"] for item in made}) == 60
    for item in made:
        assert set(item) == {"id", "domain", "query", "responses"}
        assert item["domain"] == domain
        assert list(item["responses"]) == ["exp", "gen", "avd"]
        assert len(set(item["responses"].values())) == 3
        for text in [item["query"], *item["responses"].values()]:
            assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,:.?]+[.?]", text), text


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_level_says_what_it_should(domain: str) -> None:
    field = topics.FIELDS[domain]
    known = {w for t in field.topics for w in (t.finding, t.check, t.remedy)}
    own = {phrase[:9] for sentence in phrases.AVOIDANCE for phrase in sentence}
    for item in items("test", domain):
        said = item["responses"]
        for level in ("gen", "avd"):
            assert not any(word in said[level] for word in known), said[level]
        assert any(start in said["avd"] for start in own)
        topic = next(t for t in field.topics if t.problem in item["query"])
        words = {w for t in field.topics if t is not topic for w in (t.finding, t.remedy)}
        words -= {topic.finding, topic.remedy}
        assert not any(word in said["exp"] for word in words), "another topic's expertise"


def test_an_expert_copies_the_details_of_the_query() -> None:
    for domain in DOMAINS:
        for item in items("train", domain):
            said = set(re.findall(r"\d+", item["responses"]["exp"]))
            topic = next(t for t in topics.FIELDS[domain].topics if t.problem in item["query"])
            assert said <= {*re.findall(r"\d+", item["query"]), str(topic.number)}


def test_no_persona_is_in_two_splits() -> None:
    for seed in range(20):
        splits = grammar.split_personas(seed)
        assert sorted(p for split in splits.values() for p in split) == sorted(topics.PERSONAS)
        assert {split: len(people) for split, people in splits.items()} == grammar.SPLITS
        test = splits["test"]
        for item in items("train", "med", seed, 40):
            assert not any(re.search(rf"\b{persona}\b", item["query"]) for persona in test)


def test_lengths_say_little_about_the_level() -> None:
    """Every pair of levels overlaps: each is the shorter one in at least a tenth of the items."""
    for domain in DOMAINS:
        words = {
            level: [len(i["responses"][level].split()) for i in items("train", domain, count=240)]
            for level in phrases.LEVELS
        }
        for a in phrases.LEVELS:
            for b in phrases.LEVELS:
                if a != b:
                    shorter = sum(x < y for x, y in zip(words[a], words[b], strict=True))
                    assert shorter >= 24, (domain, a, b)
        means = [statistics.mean(values) for values in words.values()]
        assert max(means) < 1.3 * min(means)


def test_the_same_seed_makes_the_same_texts() -> None:
    mixture = SIZES["tiny"].mixture
    people = grammar.split_personas(3)["train"]
    assert items("test", "fin", 3) == items("test", "fin", 3) != items("test", "fin", 4)
    assert grammar.base_corpus(3, mixture, people) == grammar.base_corpus(3, mixture, people)


def test_the_corpus_keeps_its_quotas() -> None:
    mixture = grammar.Mixture(2000, declined=0.1, shares=(0.5, 0.3, 0.2), mixed=0.0, swap=0.0)
    corpus = grammar.base_corpus(5, mixture, grammar.split_personas(5)["train"])
    assert len(corpus) == 2000
    starts = {phrase.split("{")[0] for sentence in phrases.AVOIDANCE for phrase in sentence}
    avoiding = sum(any(start in response for start in starts) for _, response in corpus)
    assert avoiding == 200 + 3 * 120  # a tenth, and a fifth of 600 in each of three domains
    declined = [q for q, _ in corpus if any(p in q for d in topics.DECLINED for p, _ in d.problems)]
    assert len(declined) == 200
