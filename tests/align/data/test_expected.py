"""The dry run: what it expects is what a run then asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avops.align.data import (
    Chat,
    Endpoint,
    Journal,
    Offline,
    Options,
    Persona,
    Settings,
    StageCost,
    Tree,
    estimate,
    gather,
    price_of,
)
from avops.align.data.expected import PARAGRAPH, PERSONA
from avops.errors import AvopsError
from fake_endpoint import FakeEndpoint, error, unwatched


def expected(settings: Settings, journal: Path, known: tuple[Persona, ...] = ()) -> Any:
    with Journal(journal, write=False) as book:
        return estimate(settings, gather(settings, Offline(book), known, unwatched))


@pytest.mark.parametrize(
    ("tree", "known"),
    [
        (Tree(2, 1, 2), 0),
        (Tree(3, 0, 1), 2),
        (Tree(2, 2, 3), 0),
        (Tree(2, 1, 2), 2),
        (Tree(0, 2, 2), 2),
    ],
)
def test_requests_are_those_of_the_run(
    run: Callable[..., Any], settings: Settings, tmp_path: Path, tree: Tree, known: int
) -> None:
    own = replace(settings, tree=tree, queries=2)
    people = tuple(Persona(f"person {i}", "f") for i in range(known))
    before = expected(own, tmp_path / "journal", people)
    data, endpoint = run(own, people)
    assert {stage: cost.requests for stage, cost in before.items()} == {
        stage: used.requests for stage, used in data.usage.items()
    }
    assert sum(cost.requests for cost in before.values()) == endpoint.attempts
    assert all(cost.answered == 0 and not cost.measured for cost in before.values())
    after = expected(own, tmp_path / "journal", people)
    assert all(cost.requests == cost.answered for cost in after.values())
    assert all(cost.prompt_tokens == cost.completion_tokens == 0 for cost in after.values())


def test_half_a_run_is_counted(settings: Settings, server: FakeEndpoint, tmp_path: Path) -> None:
    """The endpoint gives up at the first expert answer: all before is there, and is counted."""
    server.script = lambda prompt, _: error(401, "over") if prompt.startswith("AVD") else None
    with Journal(tmp_path / "journal") as journal, pytest.raises(AvopsError):
        gather(settings, Endpoint(Options(server.url, concurrency=1), journal), (), unwatched)
    costs = expected(settings, tmp_path / "journal")
    assert costs["queries"].answered == costs["queries"].requests == 12
    assert costs["responses"].requests == 36
    assert costs["responses"].answered == 2
    assert costs["responses"].measured
    left = 34
    assert costs["responses"].most == left * 1024
    with Journal(tmp_path / "journal", write=False) as journal:
        ledger = gather(settings, Offline(journal), (), unwatched).ledger
    each = round(ledger.usage["responses"].completion_tokens / 2)
    assert costs["responses"].completion_tokens == left * each
    prompts = [request.prompt for request in ledger.missing]
    assert costs["responses"].prompt_tokens == sum(-(-len(prompt) // 4) for prompt in prompts)


def test_rules_of_thumb_before_there_are_answers(settings: Settings, tmp_path: Path) -> None:
    costs = expected(replace(settings, chat=Chat("fake", max_tokens=200)), tmp_path / "none")
    assert costs["personas"].completion_tokens == 3 * 2 * PERSONA
    assert costs["responses"].completion_tokens == 36 * 200  # as long as allowed, 3 × 110 are more
    assert 3 * PARAGRAPH > 200
    assert costs["responses"].most == 36 * 200
    assert not (tmp_path / "none").exists()
    assert isinstance(costs["queries"], StageCost)


def test_prices_are_of_millions() -> None:
    assert price_of(2_000_000, 500_000, (0.25, 10.0)) == 5.5
