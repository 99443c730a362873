"""The evaluator and sweeps on the small project."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch

from avops.errors import DataError, MissingExtraError
from avops.recipe import Source, Term, parse_lam
from avops.score import encode, load_items, load_model, load_tokenizer, oracle_scores
from avops.search import Evaluator, Setup, Sweep, from_scores, sweep, sweep_figure, to_csv
from score.bound import rounding_bound
from small_project import SmallProject

HALF_ULP = 2.0**-24  # relative: S is rounded once, from float64 to float32
MED = Source("med", "avs/med.safetensors")
FIN = Source("fin", "aligned/fin.safetensors")


def term(source: Source, lam: str) -> Term:
    return Term(source, parse_lam(lam, "test"), lam)


def setup(*sources: Source, **changes: Any) -> Setup:
    return Setup(base="base.safetensors", sources=sources, data="items.jsonl", **changes)


def computed_model(project: SmallProject) -> torch.nn.Module:
    """med:-1 fin:.3 with weights computed here."""
    model = load_model("hf")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            base = project.base[name].float()
            med, fin = (project.aligned[av][name].float() - base for av in ("med", "fin"))
            wide = base + (torch.tensor(-1.0) * med + torch.tensor(0.3) * fin)
            parameter.copy_(wide.bfloat16())
    return model


def test_evaluations_are_the_oracles(project: SmallProject) -> None:
    """Against a model whose weights were computed here, scored one sequence at a time."""
    evaluator = Evaluator(setup(MED, FIN, device="cpu"))
    scores = evaluator.evaluate([term(MED, "-1"), term(FIN, ".3")])
    model = computed_model(project)
    plan = encode(load_items("items.jsonl"), load_tokenizer("hf"))
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    assert (np.abs(scores - truth) <= bound).all()
    # The bound would show a wrong weight: the base's own scores lie far beyond it.
    assert (np.abs(evaluator.evaluate() - truth) > 10 * bound).mean() > 0.9


def test_the_order_of_evaluations_leaves_no_trace(project: SmallProject) -> None:
    evaluator = Evaluator(setup(MED, FIN, device="cpu"))
    first = evaluator.evaluate([term(MED, ".7")])
    for lam in ("-1.5", ".1", "1"):
        evaluator.evaluate([term(FIN, lam), term(MED, lam)])
    assert evaluator.evaluate([term(MED, ".7")]).tobytes() == first.tobytes()


def test_terms_need_their_vectors(project: SmallProject) -> None:
    with pytest.raises(DataError, match="no alignment vectors are held"):
        Evaluator(setup(device="cpu")).evaluate([term(MED, "1")])


def test_items_are_checked_before_anything_is_loaded(project: SmallProject) -> None:
    with pytest.raises(DataError, match=r"items.jsonl, line 1, field 'responses.nope'"):
        Evaluator(setup(Source("x", "gone"), levels=("exp", "nope")))


@pytest.fixture
def swept(project: SmallProject) -> Sweep:
    evaluator = Evaluator(setup(FIN, MED, device="cpu"))
    seen: list[tuple[int, int]] = []
    points = [[term(FIN, ".5"), term(MED, lam)] for lam in ("-1", "0", "1")]
    result = sweep(evaluator, points, "med", lambda *x: seen.append(x))
    assert not result.interrupted
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    alone = evaluator.evaluate([term(FIN, ".5"), term(MED, "1")])
    assert alone.tobytes() == result.scores[2].tobytes()
    return result


def test_a_sweep_and_its_csv(swept: Sweep) -> None:
    assert swept.domains == ("med", "fin", "leg")
    assert swept.levels == ("exp", "gen", "avd")
    rows = list(csv.DictReader(io.StringIO(to_csv(swept))))
    assert len(rows) == 3 * 4 * 3
    for row in rows:
        summary = swept.summaries[swept.lams.index(row["lam"])]
        level = summary[row["domain"]][row["level"]]
        assert float(row["accuracy"]) == pytest.approx(level.accuracy, abs=5e-7)
        assert (row["av"], row["fixed"]) == ("med", "fin:.5")
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])


def test_an_interrupt_keeps_the_points_measured(project: SmallProject) -> None:
    evaluator = Evaluator(setup(MED, device="cpu"))
    points = [[term(MED, lam)] for lam in ("-1", "0", "1")]
    whole = sweep(evaluator, points, "med")

    def interrupt(at: float) -> Sweep:
        def progress(done: int, total: int) -> None:
            if done > at * total:
                raise KeyboardInterrupt

        return sweep(evaluator, points, "med", progress)

    part = interrupt(0.5)
    assert part.interrupted
    assert part.lams == ("-1",)
    assert part.scores.tobytes() == whole.scores[:1].tobytes()
    with pytest.raises(KeyboardInterrupt):
        interrupt(0.1)


def test_a_sweep_comes_back_from_its_scores(swept: Sweep) -> None:
    again = from_scores("med", swept.lams, swept.fixed, swept.scores, load_items("items.jsonl"))
    assert to_csv(again) == to_csv(swept)


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_figures(swept: Sweep, kind: str, magic: bytes) -> None:
    data = sweep_figure(swept, format=kind)
    assert data.startswith(magic)
    assert kind == "pdf" or len(data) > 10_000


def test_a_figure_without_matplotlib(swept: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*pip install 'avops\[score\]'"):
        sweep_figure(swept)


@pytest.mark.gpu
def test_evaluations_on_the_gpu(project: SmallProject) -> None:
    terms = [term(MED, "-1"), term(FIN, ".3")]
    gpu = Evaluator(setup(MED, FIN, device="cuda")).evaluate(terms)
    cpu = Evaluator(setup(MED, FIN, device="cpu")).evaluate(terms)
    model = computed_model(project)
    plan = encode(load_items("items.jsonl"), load_tokenizer("hf"))
    # Two float32 evaluations of one mean, each rounded once to float32 at its end.
    bound = rounding_bound(model, plan) + 2 * HALF_ULP * np.abs(cpu)
    assert (np.abs(gpu - cpu) <= bound).all()
