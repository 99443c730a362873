"""Answers and verdicts of one recipe after the other."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from avops.align import Judged, Judging, Panel, Verdict, save_lines
from avops.errors import AvopsError
from avops.recipe import Recipe, Source, Term
from avops.score import Sampling, load_tokenizer
from avops.search import Evaluator, Setup
from small_project import SmallProject

SOURCE = Source("med", "avs/med.safetensors")


class Counting:
    """A judge that places answers in turn, and fails at the ``fails``-th."""

    levels = ("exp", "gen", "avd")

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.threads: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def judge(self, query: str, answer: str) -> Verdict:
        with self._lock:
            self.asked.append((query, answer))
            self.threads.add(threading.current_thread().name)
            number = len(self.asked)
        if number == self.fails:
            raise AvopsError("the judge fell asleep")
        return Verdict(self.levels[number % 3])

    def about(self) -> dict[str, Any]:
        return {"kind": "counting"}


def panel(judge: Counting, **how: Any) -> tuple[Panel, Evaluator]:
    evaluator = Evaluator(
        Setup("base.safetensors", (SOURCE,), "items.jsonl", device="cpu", domains=("med", "leg"))
    )
    made = Judging(judge, Sampling(max_tokens=5), **how)
    return Panel(evaluator, load_tokenizer("."), made), evaluator


def recipe(lam: float) -> Recipe:
    return Recipe("base.safetensors", (Term(SOURCE, lam, f"{lam:g}"),))


def test_every_answer_has_its_own_verdict(project: SmallProject) -> None:
    judge = Counting()
    desk, evaluator = panel(judge, batch=1)
    found = desk.judged(recipe(0.5))
    assert found.complete
    assert [query for query, _ in judge.asked] == [item.query for item in evaluator.items]
    for number, (_, answer) in enumerate(judge.asked):
        assert found.answers[number].text == answer
        assert found.verdicts[number].level == judge.levels[(number + 1) % 3]
    assert judge.threads == {"MainThread"}
    assert (found.scores == evaluator.evaluate(recipe(0.5).terms)).all()
    winners = found.winners
    assert winners is not None
    med = found.shares()[0]
    same = sum(found.verdicts[i].level == winners[i] for i in range(4))
    assert med.agreement is not None
    assert med.agreement[0] == same / 4


def test_the_answers_are_of_the_recipe(project: SmallProject) -> None:
    desk, _ = panel(Counting(), logprobs=False, batch=4)
    one, two, again = (desk.judged(recipe(lam)) for lam in (4.0, 0.0, 4.0))
    assert one.scores is None
    assert one.winners is None
    texts = [[found.answers[i].ids for i in range(8)] for found in (one, two, again)]
    assert texts[0] != texts[1]
    assert texts[0] == texts[2]


def test_several_verdicts_at_a_time(project: SmallProject) -> None:
    judge = Counting()
    desk, _ = panel(judge, jobs=3, logprobs=False, batch=4)
    found = desk.judged(recipe(1.0))
    assert found.complete
    assert all(name.startswith("avops-judge") for name in judge.threads)


class Group(Counting):
    """Takes several at a time, and remembers how many."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def judge_all(self, answers: Sequence[str]) -> list[Verdict]:
        self.sizes.append(len(answers))
        return [Verdict(f"of {answer}") for answer in answers]


def test_a_judge_of_groups_gets_groups(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avops.align.judging.GROUP", 3)
    judge = Group()
    desk, evaluator = panel(judge, jobs=4, logprobs=False, batch=2)
    found = desk.judged(recipe(0.5))
    assert judge.sizes == [3, 3, 2]
    assert judge.asked == []
    assert found.complete
    for number in range(len(evaluator.items)):
        assert found.verdicts[number].level == f"of {found.answers[number].text}"


def test_an_interrupt_keeps_what_waits_for_its_group(project: SmallProject) -> None:
    judge = Group()
    desk, evaluator = panel(judge, logprobs=False, batch=1)
    found = Judged(recipe(0.5), evaluator.items)

    def progress(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.fill(found, progress)
    assert sorted(found.verdicts) == sorted(found.answers)
    assert len(found.verdicts) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_judge_that_fails_keeps_the_others_verdicts(project: SmallProject, jobs: int) -> None:
    judge = Counting(fails=4)
    desk, evaluator = panel(judge, jobs=jobs, logprobs=False, batch=1)
    found = Judged(recipe(1.0), evaluator.items)
    with pytest.raises(AvopsError, match="fell asleep"):
        desk.fill(found)
    assert 3 <= len(found.verdicts) < 8
    before = dict(found.verdicts)
    desk.fill(found)  # the judge is awake again
    assert found.complete
    assert before.items() <= found.verdicts.items()


def test_saved_lines(project: SmallProject) -> None:
    desk, evaluator = panel(Counting())
    lines = save_lines([desk.judged(recipe(0.5))]).decode().splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["query"] for one in found] == [item.query for item in evaluator.items]
    assert found[0]["recipe"] == "med:0.5"
    assert found[0]["av"] == {"med": "0.5"}
    assert found[0]["line"] == evaluator.items[0].line
    assert found[0]["verdict"] == {"level": "gen", "confidence": None, "reply": None}


def test_verdicts_that_are_on_their_way_are_kept(project: SmallProject) -> None:
    answered = threading.Event()

    class Waiting(Counting):
        def judge(self, query: str, answer: str) -> Verdict:
            assert answered.wait(60)
            return super().judge(query, answer)

    judge = Waiting(fails=1)
    desk, evaluator = panel(judge, jobs=8, logprobs=False, batch=1)
    found = Judged(recipe(1.0), evaluator.items)

    def progress(done: int, total: int) -> None:
        if done == total:
            answered.set()

    with pytest.raises(AvopsError, match="fell asleep"):
        desk.fill(found, progress)
    assert len(found.verdicts) == 7
