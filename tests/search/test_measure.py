"""Many candidates into one table: nothing is measured twice, and an interrupt costs one."""

from __future__ import annotations

from typing import Any

import pytest

from avops.errors import DataError
from avops.recipe import Source, Term, parse_lam
from avops.score import ScoreTable
from avops.search import Evaluator, Setup, Wanted, lacks, measure, new_table
from small_project import SmallProject

MED = Source("med", "avs/med.safetensors")
FIN = Source("fin", "aligned/fin.safetensors")
LEG = Source("leg", "avs/leg.safetensors")


def wanted(*terms: tuple[Source, str], told: str | None = None) -> Wanted:
    return Wanted(tuple(Term(s, parse_lam(lam, "test"), lam) for s, lam in terms), told)


@pytest.fixture
def evaluator(project: SmallProject) -> Evaluator:
    return made()


def made(*sources: Source, **changes: Any) -> Evaluator:
    return Evaluator(
        Setup(
            base="base.safetensors",
            sources=sources or (MED, FIN, LEG),
            data="items.jsonl",
            device="cpu",
            **changes,
        )
    )


BASE, ONE, TWO = wanted(), wanted((MED, "-1")), wanted((MED, "-1"), (FIN, ".5"))


def counted(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is evaluated from here on."""
    seen: list[str] = []
    evaluate = evaluator.evaluate

    def spy(terms: Any = (), progress: Any = None, *, told: str | None = None) -> Any:
        seen.append(Wanted(tuple(terms), told).name)
        return evaluate(terms, progress, told=told)

    monkeypatch.setattr(evaluator, "evaluate", spy)
    return seen


def test_scores_are_the_evaluators(evaluator: Evaluator) -> None:
    progress: list[tuple[int, int]] = []
    kept: list[ScoreTable] = []
    measured = measure(
        evaluator,
        [BASE, TWO, ONE],
        new_table(evaluator),
        keep=kept.append,
        progress=lambda *x: progress.append(x),
    )
    assert not measured.interrupted
    assert measured.table.candidates == ("base", "med:-1 fin:.5", "med:-1")
    assert dict(measured.places) == {0: 0, 1: 1, 2: 2}
    for place, candidate in enumerate([BASE, TWO, ONE]):
        alone = evaluator.evaluate(candidate.terms)
        assert measured.table.scores[place].tobytes() == alone.tobytes()
    assert [len(table.entries) for table in kept] == [1, 2, 3]
    tokens = evaluator.plan.record.tokens
    assert progress[0] == (0, 3 * tokens)
    assert progress[-1] == (3 * tokens, 3 * tokens)
    assert progress == sorted(progress)


def test_what_is_known_is_not_measured_again(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = measure(evaluator, [BASE, TWO], new_table(evaluator)).table
    seen = counted(evaluator, monkeypatch)
    # λ = 0 adds nothing, 0.50 is .5, and the order of two terms is free.
    same = [wanted((MED, "0")), wanted((FIN, "0.50"), (MED, "-1"), (LEG, "0"))]
    assert not lacks(table, same)
    assert lacks(table, [*same, ONE])
    measured = measure(evaluator, [ONE, *same, ONE], table)
    assert seen == ["med:-1"]
    assert dict(measured.places) == {0: 2, 1: 0, 2: 1, 3: 2}
    assert measured.reused == 2
    assert measured.table.scores[:2].tobytes() == table.scores.tobytes()


def test_the_order_of_three_terms_counts(evaluator: Evaluator) -> None:
    three = [(MED, "1"), (FIN, ".1"), (LEG, ".1")]
    table = measure(evaluator, [wanted(*three)], new_table(evaluator)).table
    assert lacks(table, [wanted(*three[::-1])])
    assert not lacks(table, [wanted(*three)])


def test_an_interrupt_keeps_what_is_finished(evaluator: Evaluator) -> None:
    whole = measure(evaluator, [BASE, ONE, TWO], new_table(evaluator)).table

    def interrupt_at(share: float) -> Any:
        def progress(done: int, total: int) -> None:
            if done > share * total:
                raise KeyboardInterrupt

        return progress

    empty = new_table(evaluator)
    part = measure(evaluator, [BASE, ONE, TWO], empty, progress=interrupt_at(0.5))
    assert part.interrupted
    assert (dict(part.places), part.asked) == ({0: 0}, 3)
    assert part.table.scores.tobytes() == whole.scores[:1].tobytes()
    # What was known counts as finished, wherever it stands.
    rest = measure(evaluator, [TWO, ONE, BASE], part.table, progress=interrupt_at(0.1))
    assert (dict(rest.places), rest.reused) == ({2: 0}, 1)
    with pytest.raises(KeyboardInterrupt):
        measure(evaluator, [ONE], empty, progress=interrupt_at(0.1))


def test_told_candidates_have_their_own_tokens(project: SmallProject) -> None:
    evaluator = made(MED, prompting=True)
    assert list(evaluator.plans) == [None, "exp", "gen", "avd"]
    asked = [BASE, wanted(told="avd"), wanted((MED, ".5")), wanted(told="exp")]
    table = measure(evaluator, asked, new_table(evaluator, about=True)).table
    assert [entry.plan for entry in table.entries] == [0, 3, 0, 1]
    assert [plan["instruction"] for plan in table.plans] == [None, "exp", "gen", "avd"]
    assert table.plans[3]["text"] == evaluator.instructions["avd"]
    assert table.plans[3]["tokens"] > table.plans[0]["tokens"]
    assert table.scores[1].tobytes() != table.scores[0].tobytes()
    assert set(table.about["vectors"]) == {"med"}
    assert len(table.about["base_fingerprint"]) == 64
    # An instruction is worth exactly the query with it written out.
    import json
    from pathlib import Path

    lines = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    for item in lines:
        item["query"] = f"{evaluator.instructions['avd']}\n\n{item['query']}"
    Path("items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert made(MED).evaluate().tobytes() == table.scores[1].tobytes()


def test_nothing_is_loaded_before_it_is_needed(
    project: SmallProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All candidates known: neither the model nor a vector is opened for its weights."""
    evaluator = made(MED)
    table = measure(evaluator, [BASE, ONE], new_table(evaluator)).table
    other = made(MED)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("avops.search.evaluator.LiveModel", load)
    assert measure(other, [ONE, BASE], table).table is table
    with pytest.raises(AssertionError, match="loaded"):
        measure(other, [wanted((MED, "2"))], table)


def test_some_items(project: SmallProject) -> None:
    evaluator = made(MED, domains=("leg", "med"), limit=2)
    assert [item.domain for item in evaluator.items] == ["med"] * 2 + ["leg"] * 2
    with pytest.raises(DataError, match="no items of domain 'law'"):
        made(MED, domains=("law",))


def test_bf16_arithmetic_is_the_models_own(project: SmallProject) -> None:
    """Against transformers' own bf16 model of the merged weights, by the same scorer."""
    import torch
    from safetensors.torch import load_file

    from avops.cli.main import main
    from avops.score import Scorer, load_model

    evaluator = made(MED, FIN, dtype="bf16")
    assert main(["merge", "--av", "med:-1", "fin:.5", "-o", "m.safetensors"]) == 0
    model = load_model("hf", dtype=torch.bfloat16, weights=load_file("m.safetensors"))
    with evaluator.live.threads():
        theirs = Scorer(model, evaluator.plan).run()
    got = evaluator.evaluate(TWO.terms)
    assert got.tobytes() == theirs.tobytes()
    wide = made(MED, FIN).evaluate(TWO.terms)
    assert got.tobytes() != wide.tobytes()
    parameters = list(evaluator.live.model.named_parameters())
    assert {parameter.dtype for _, parameter in parameters} == {torch.bfloat16}
    buffers = dict(evaluator.live.model.named_buffers())
    assert {b.dtype for name, b in buffers.items() if "inv_freq" in name} == {torch.float32}


def test_batch_tokens(project: SmallProject) -> None:
    from avops.errors import UserError

    assert made(MED, batch_tokens=64).evaluate().shape == (12, 3)
    with pytest.raises(UserError, match="batch_tokens is 0, expected 1 or more"):
        made(MED, batch_tokens=0).evaluate()
