"""The embedded judge, on the tiny world's own responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from avops.align import TextJudge
from avops.demo import World
from avops.errors import DataError
from avops.score import load_items

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

LEVELS = ("exp", "gen", "avd")


@pytest.fixture(scope="module")
def judge(tiny: World) -> TextJudge:
    return TextJudge.train(load_items(tiny.data["train"], levels=LEVELS))


def test_held_out_accuracy(judge: TextJudge, tiny: World) -> None:
    found = judge.measure(load_items(tiny.data["test"], levels=LEVELS))
    assert found.n == 3 * 3 * 48
    assert found.accuracy >= 0.95
    assert found.new > found.n / 2
    assert found.new_right / found.new >= 0.95
    assert sum(n for _, n in found.by_level.values()) == found.n
    assert all(right / n >= 0.9 for right, n in found.by_level.values())
    about = judge.about()
    assert about["held_out"]["accuracy"] == found.accuracy
    assert about["kind"] == "embedded"


def test_the_same_items_give_the_same_judge(judge: TextJudge, tiny: World) -> None:
    other = TextJudge.train(load_items(tiny.data["train"], levels=LEVELS))
    answers = ["I cannot say; ask a doctor.", "Take 20 mg twice a day.", "It depends."]
    assert judge.judge_all(answers) == other.judge_all(answers)


def test_groups_are_judged_as_one_by_one(judge: TextJudge, tiny: World) -> None:
    items = load_items(tiny.data["test"], levels=LEVELS)
    answers = ["", "?!", *(text for item in items for text in item.responses.values())][:99]
    assert judge.judge_all(answers) == [judge.judge("q?", answer) for answer in answers]


def test_training_takes_one_thread(
    write_items: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine: the order of sums decides the last bits."""
    from threadpoolctl import threadpool_info

    from avops.align import classifier

    seen: list[int] = []

    class Fits:
        def fit(self, texts: list[str], labels: list[str]) -> None:
            seen.extend(pool["num_threads"] for pool in threadpool_info())

    monkeypatch.setattr(classifier, "new_model", Fits)
    record = {"domain": "med", "query": "q?", "responses": {"exp": "a b", "avd": "c d"}}
    TextJudge.train(load_items(write_items("two.jsonl", [record])))
    assert seen
    assert set(seen) == {1}


def test_verdicts_carry_their_probability(judge: TextJudge, tiny: World) -> None:
    items = load_items(tiny.data["test"], levels=LEVELS)
    one = judge.judge("q?", items[0].responses["avd"])
    assert one.level == "avd"
    assert one.confidence is not None
    assert 1 / 3 < one.confidence <= 1
    assert judge.judge("q?", "  \n").level is None
    assert [v.level for v in judge.judge_all(["", items[0].responses["exp"]])] == [None, "exp"]


def test_what_it_was_trained_on_it_does_not_judge(judge: TextJudge, tiny: World) -> None:
    with pytest.raises(
        DataError, match=r"train.jsonl, line 1: the embedded judge was trained on this query"
    ):
        judge.check(load_items(tiny.data["train"], levels=LEVELS))
    with pytest.raises(DataError, match=r"was trained on this query"):
        judge.measure(load_items(tiny.data["train"], levels=LEVELS).select(limit=1))


def test_levels_must_be_known(judge: TextJudge, write_items: Callable[..., Path]) -> None:
    record = {"domain": "med", "query": "new?", "responses": {"exp": "a b", "other": "c d"}}
    with pytest.raises(DataError, match=r"levels exp, gen, avd, expected those of .*exp, other"):
        judge.check(load_items(write_items("other.jsonl", [record])))
    fewer = {"domain": "med", "query": "new?", "responses": {"exp": "a b", "gen": "c d"}}
    with pytest.raises(DataError, match=r"levels exp, gen, avd, expected those of .*exp, gen"):
        judge.check(load_items(write_items("fewer.jsonl", [fewer])))
    single = {"domain": "med", "query": "q?", "responses": {"exp": "a b"}}
    with pytest.raises(DataError, match=r"a single level 'exp'"):
        TextJudge.train(load_items(write_items("single.jsonl", [single])))


def test_texts_known_word_for_word_are_counted_apart(write_items: Callable[..., Path]) -> None:
    def record(query: str, exp: str, avd: str) -> dict[str, object]:
        return {"domain": "med", "query": query, "responses": {"exp": exp, "avd": avd}}

    train = [record(f"q{n}?", f"take {n} pills daily", "ask a doctor please") for n in range(9)]
    test = [record("new?", "take 77 pills daily", "ask a doctor please")]
    judge = TextJudge.train(load_items(write_items("train.jsonl", train)))
    found = judge.measure(load_items(write_items("test.jsonl", test)))
    assert (found.n, found.right, found.new, found.new_right) == (2, 2, 1, 1)
