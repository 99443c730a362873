"""Judged answers: a model answers the items' queries at a λ, and a judge places each answer.

Answers are judged as they are written, so that an interrupt keeps what is finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from avops.align.answers import Answers
from avops.align.verdicts import DomainShares, GroupJudge, Judge, Verdict, shares
from avops.score import Question, encode_questions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from avops.recipe import Recipe
    from avops.score import Answer, Items, Sampling
    from avops.search import Evaluator

Progress = Callable[[int, int], None]

GROUP = 32
"""Answers that a judge of groups is given at a time."""


@dataclass
class Judged:
    """One recipe's answers and verdicts, by item. scores: mean log-probs, where measured."""

    recipe: Recipe
    items: Items
    answers: dict[int, Answer] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    scores: NDArray[np.float32] | None = None

    @property
    def complete(self) -> bool:
        """Whether every item has its verdict."""
        return len(self.verdicts) == len(self.items)

    @property
    def winners(self) -> list[str | None] | None:
        """The level that wins each item by log-prob; None for a tie, or without scores."""
        if self.scores is None:
            return None
        from avops.score.metrics import winners

        levels = self.items.levels
        return [
            levels[int(row.argmax())] if int(row.sum()) == 1 else None
            for row in winners(self.scores)
        ]

    def shares(self) -> tuple[DomainShares, ...]:
        """The share of every level per domain, of the answers that were judged."""
        return shares(self.items, self.verdicts, self.winners)

    def lines(self) -> Iterable[str]:
        """A JSON line for each judged answer."""
        won = self.winners
        for number in sorted(self.verdicts):
            item, answer, verdict = (
                self.items[number], self.answers[number], self.verdicts[number],
            )  # fmt: skip
            yield (
                json.dumps(
                    {
                        "recipe": str(self.recipe),
                        "av": {term.name: term.text for term in self.recipe.terms},
                        "domain": item.domain,
                        "line": item.line,
                        "id": item.id,
                        "query": item.query,
                        "answer": answer.text,
                        "finish": answer.finish,
                        "tokens": len(answer.ids),
                        "verdict": asdict(verdict),
                        "logprob": None if won is None else won[number],
                    },
                    ensure_ascii=False,
                )
                + "\n"
            )


@dataclass(frozen=True)
class Judging:
    """What the answers of an evaluator's items are judged by, and how they are written.

    batch: prompts written at a time. jobs: verdicts asked for at a time. logprobs: score the
    items, too.
    """

    judge: Judge
    sampling: Sampling
    batch: int = 16
    jobs: int = 1
    logprobs: bool = True


class Panel:
    """A loaded model, its prompts and a judge: verdicts for one recipe after the other."""

    def __init__(
        self, evaluator: Evaluator, tokenizer: Any, how: Judging, *, template: str | None = None
    ) -> None:
        self._evaluator, self._how = evaluator, how
        items = evaluator.items
        questions = [Question(item.query, items.place(i)) for i, item in enumerate(items)]
        self._prompts = encode_questions(questions, tokenizer, template=template)
        self._answers = Answers(evaluator.live.model, tokenizer, how.sampling, batch=how.batch)
        self._answers.check(self._prompts)

    def judged(self, recipe: Recipe, progress: Progress | None = None) -> Judged:
        """Every answer of ``recipe``, with its verdict. Raises what its parts raise."""
        result = Judged(recipe, self._evaluator.items)
        self.fill(result, progress)
        return result

    def fill(self, result: Judged, progress: Progress | None = None) -> None:
        """Write and judge what ``result`` lacks; after an interrupt it holds what was finished.

        ``progress(done, total)`` gets answers.
        """
        live, terms = self._evaluator.live, result.recipe.terms
        if self._how.logprobs and result.scores is None:
            result.scores = self._evaluator.evaluate(terms)
        else:
            live.set(terms)
        missing = [i for i in range(len(result.items)) if i not in result.verdicts]
        desk = _Desk(self._how, result)

        def done(place: int, answer: Answer) -> None:
            number = missing[place]
            result.answers[number] = answer
            desk.take(number)
            if progress is not None:
                progress(len(result.answers), len(result.items))

        try:
            with live.threads():
                self._answers.run([self._prompts[i] for i in missing], done)
            desk.wait()
        finally:
            desk.close()


class _Desk:
    """Gets verdicts on answers: one by one, in groups, or ``jobs`` at a time in threads."""

    def __init__(self, how: Judging, result: Judged) -> None:
        self._how, self._result = how, result
        self._pending: dict[int, Future[Verdict]] = {}
        self._groups = how.judge if isinstance(how.judge, GroupJudge) else None
        self._waiting: list[int] = []  # for a group
        self._pool: ThreadPoolExecutor | None = None
        if how.jobs > 1 and self._groups is None:
            self._pool = ThreadPoolExecutor(how.jobs, thread_name_prefix="avops-judge")

    def take(self, number: int) -> None:
        """Judge an answer, or have it judged. Raises what the judge raised, here or before."""
        if self._groups is not None:
            self._waiting.append(number)
            if len(self._waiting) == GROUP:
                self._judge_group(self._groups)
            return
        query = self._result.items[number].query
        answer = self._result.answers[number].text
        if self._pool is None:
            self._result.verdicts[number] = self._how.judge.judge(query, answer)
            return
        self._pending[number] = self._pool.submit(self._how.judge.judge, query, answer)
        self._collect([n for n, future in self._pending.items() if future.done()])

    def wait(self) -> None:
        """Collect all verdicts."""
        if self._groups is not None and self._waiting:
            self._judge_group(self._groups)
        self._collect(list(self._pending))

    def close(self) -> None:
        """Ask for no more; keep the verdicts that came all the same."""
        if self._groups is not None and self._waiting:
            self._judge_group(self._groups)
        if self._pool is None:
            return
        self._pool.shutdown(wait=True, cancel_futures=True)
        for number, future in self._pending.items():
            if not future.cancelled() and future.exception() is None:
                self._result.verdicts[number] = future.result()

    def _judge_group(self, judge: GroupJudge) -> None:
        numbers, self._waiting = self._waiting, []
        answers = [self._result.answers[number].text for number in numbers]
        verdicts = judge.judge_all(answers)
        self._result.verdicts.update(zip(numbers, verdicts, strict=True))

    def _collect(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._result.verdicts[number] = self._pending[number].result()
            del self._pending[number]


def save_lines(judged: Sequence[Judged]) -> bytes:
    """All judged answers as JSON lines, recipe by recipe."""
    return "".join(line for one in judged for line in one.lines()).encode()
