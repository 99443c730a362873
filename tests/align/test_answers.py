"""Answers several at a time equal those one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avops.align import Answers
from avops.demo import World
from avops.errors import DataError, NonFiniteError
from avops.score import (
    Answer,
    Generator,
    Prompt,
    Question,
    Sampling,
    encode_questions,
    load_items,
    load_tokenizer,
)
from avops.search import LiveModel, Opened


@pytest.fixture(scope="module")
def live(tiny: World) -> LiveModel:
    return LiveModel(Opened.of(str(tiny.base), ()), "cpu")


@pytest.fixture(scope="module")
def prompts(tiny: World) -> list[Prompt]:
    items = load_items(tiny.data["test"])
    questions = [Question(item.query) for item in items.select(limit=8)]
    return encode_questions(questions, load_tokenizer(tiny.directory))


def run(answers: Answers, prompts: list[Prompt]) -> list[Answer]:
    found: dict[int, Answer] = {}
    answers.run(prompts, found.__setitem__)
    return [found[number] for number in range(len(prompts))]


def bare(answer: Answer) -> Answer:
    return replace(answer, seconds=0.0)


def test_a_batch_writes_what_one_at_a_time_writes(
    live: LiveModel, prompts: list[Prompt], tiny: World
) -> None:
    assert len({len(prompt.ids) for prompt in prompts}) > 3
    tokenizer, sampling = load_tokenizer(tiny.directory), Sampling(max_tokens=60)
    single = Generator(live.model, tokenizer, sampling)
    with live.threads():
        expected = [bare(single.answer(prompt)) for prompt in prompts]
        found = run(Answers(live.model, tokenizer, sampling, batch=7), prompts)
    # Equal on this model: no two likeliest tokens come within the last bits of other shapes.
    assert [bare(answer) for answer in found] == expected
    assert {answer.finish for answer in expected} >= {"stop"}


def test_budgets_and_positions(live: LiveModel, prompts: list[Prompt], tiny: World) -> None:
    tokenizer = load_tokenizer(tiny.directory)
    short = run(Answers(live.model, tokenizer, Sampling(max_tokens=3), batch=8), prompts)
    assert all(len(answer.ids) <= 3 for answer in short)
    assert {answer.finish for answer in short} == {"length"}
    # More tokens than positions: one at a time, as far as each prompt lets it.
    wide = Sampling(max_tokens=250)
    single = Generator(live.model, tokenizer, wide)
    found = run(Answers(live.model, tokenizer, wide, batch=8), prompts[:2])
    assert [bare(answer) for answer in found] == [bare(single.answer(p)) for p in prompts[:2]]


def test_sampled_answers_are_the_generators(
    live: LiveModel, prompts: list[Prompt], tiny: World
) -> None:
    tokenizer = load_tokenizer(tiny.directory)
    sampling = Sampling(max_tokens=20, temperature=0.9, seed=4)
    single = Generator(live.model, tokenizer, sampling)
    found = run(Answers(live.model, tokenizer, sampling, batch=8), prompts[:4])
    assert [bare(answer) for answer in found] == [bare(single.answer(p)) for p in prompts[:4]]


def test_a_prompt_that_does_not_fit(live: LiveModel, tiny: World) -> None:
    answers = Answers(live.model, load_tokenizer(tiny.directory), Sampling(max_tokens=4), batch=2)
    with pytest.raises(DataError, match=r"the prompt has 300 tokens, and the model takes 256"):
        run(answers, [Prompt((1,) * 300)])


def test_logits_that_are_no_numbers(prompts: list[Prompt], tiny: World) -> None:
    broken = LiveModel(Opened.of(str(tiny.base), ()), "cpu")
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    answers = Answers(broken.model, load_tokenizer(tiny.directory), Sampling(max_tokens=4), batch=4)
    with pytest.raises(NonFiniteError, match=r"the largest logit for token 1 of the answer is nan"):
        run(answers, prompts[:4])
