"""Points on a live model: one row for items, guards and held-out items, and nothing that grows."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from avops.errors import DataError, RecipeError
from avops.recipe import Source, Sources, Term, parse_lam
from avops.score import load_items
from avops.search import Evaluator, Setup
from avops.search.points import SETTING, Job, Place, PointEvaluator, PointSetup
from avops.search.sets import GuardData, parse_guard, parted
from avops.search.space import Space, parse_space
from avops.search.study import HOLDOUT, SEARCH
from small_project import SmallProject

MED = Source("med", "avs/med.safetensors")
FIN = Source("fin", "aligned/fin.safetensors")
SOURCES = Sources({"med": MED, "fin": FIN})
GUARD = GuardData("help", "pairs.jsonl", None, Fraction(1, 2))


def space(*specs: str) -> Space:
    return parse_space(specs or ("med:-1:1:.5", "fin:-1:1:.5"), SOURCES)


def setup(**changes: Any) -> Setup:
    given = {"base": "base.safetensors", "sources": (MED, FIN), "data": "items.jsonl"}
    return Setup(**{**given, "device": "cpu", **changes})


def made(holdout: str = ".5", guards: tuple[GuardData, ...] = (GUARD,), **changes: Any) -> Any:
    norm = changes.pop("norm", "token")
    return PointEvaluator(PointSetup(setup(**changes), guards, holdout, norm))


def job(point: tuple[int, ...], split: str = SEARCH, **more: Any) -> Job:
    return Job(point, split, space().terms(point), **more)


def term(source: Source, lam: str) -> Term:
    return Term(source, parse_lam(lam, "test"), lam)


@pytest.fixture
def pairs(project: SmallProject) -> SmallProject:
    records = [
        {"prompt": f"how {n}?", "chosen": f"take {n} of them", "rejected": "no"} for n in range(6)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return project


def test_a_row_is_items_then_guards(pairs: SmallProject) -> None:
    """The same scores as the evaluator's, of the items of the split and of the guard's."""
    evaluator = made()
    board = evaluator.sets.board()
    whole = Evaluator(setup()).evaluate([term(MED, "-.5"), term(FIN, "1")])
    guard = Evaluator(setup(data="pairs.jsonl")).evaluate([term(MED, "-.5"), term(FIN, "1")])
    lines = [item.line for item in load_items("items.jsonl")]
    for split in (SEARCH, HOLDOUT):
        row = evaluator.evaluate(job((-1, 2), split)).scores
        assert row.dtype == np.float32
        assert row.shape == (board.outputs,)
        items, pairs_ = getattr(evaluator.sets, split)
        rows = [lines.index(item.line) for item in items]
        # Blocks hold other items, and products are summed in another order: up to a few
        # roundings of log-probs of about 6 nats, 2^-24 · 6 · √(products of some 50 terms).
        assert np.abs(row[board.spans[0]].reshape(-1, 3) - whole[rows]).max() < 2e-5
        rows = [item.line - 1 for item in pairs_]
        assert np.abs(row[board.spans[1]].reshape(-1, 2) - guard[rows]).max() < 2e-5
    assert board.shares(row[None]).shape == (1, 3, 3)
    assert board.guard_shares(row[None]).shape == (1, 1)


def test_rows_are_the_same_in_any_order_and_anywhere(pairs: SmallProject) -> None:
    evaluator, other = made(), made()
    first = evaluator.evaluate(job((1, -2))).scores.tobytes()
    for point in [(0, 0), (2, 2)]:
        evaluator.evaluate(job(point))
        evaluator.evaluate(job(point, HOLDOUT))
    assert evaluator.evaluate(job((1, -2))).scores.tobytes() == first
    assert other.evaluate(job((1, -2))).scores.tobytes() == first
    assert evaluator.digest == other.digest


def test_what_arrived_is_said(pairs: SmallProject) -> None:
    evaluator = made()
    outcome = evaluator.evaluate(job((2, 0), HOLDOUT, detailed=True))
    assert outcome.effective is not None
    assert outcome.effective["med"] == pytest.approx(1, abs=0.02)  # the AVs are far above an ulp
    assert outcome.effective["fin"] is None
    assert 0 <= outcome.unchanged < 0.2
    assert outcome.seconds == outcome.setting + outcome.scoring > 0
    setting = evaluator.evaluate(job((2, 0), SETTING, detailed=True))
    assert setting.scores.shape == (0,)
    assert setting.effective == outcome.effective


def test_told_baselines_score_the_base_with_instructions(pairs: SmallProject) -> None:
    evaluator = made(guards=(), holdout="none")
    whole = Evaluator(setup(sources=(), prompting=True))
    for told in (None, "avd"):
        row = evaluator.evaluate(Job((0, 0), "baseline:x", told=told)).scores
        assert row.tobytes() == whole.evaluate(told=told).tobytes()


def test_dithered_points_have_the_weights_that_merge_writes(pairs: SmallProject) -> None:
    """And those that are confirmed are those that are saved."""
    from avops.recipe import Recipe
    from avops.stream import MergeOptions, merge, plan_merge

    recipe = Recipe("base.safetensors", (term(MED, ".5"), term(FIN, ".5")))
    merge(plan_merge(recipe, Path("m.safetensors"), MergeOptions(rounding="dither", seed=3)))
    saved = Evaluator(setup(base="m.safetensors", sources=())).evaluate()
    evaluator = made(guards=(), holdout="none", rounding="dither", rounding_seed=3)
    row = evaluator.evaluate(job((1, 1))).scores
    assert row.tobytes() == saved.tobytes()
    assert row.tobytes() != made(guards=(), holdout="none").evaluate(job((1, 1))).scores.tobytes()
    assert evaluator.identity(space()).parts["rounding"] == "dither, seed 3"


def test_a_single_level_is_no_preference(pairs: SmallProject) -> None:
    with pytest.raises(DataError, match=r"^items.jsonl: a single level 'gen', expected two or mor"):
        made(levels=("gen",))


def test_what_is_not_finite_is_an_outcome(pairs: SmallProject) -> None:
    """The next λ is measured as if nothing had been."""
    from safetensors.torch import load_file, save_file

    tensors = load_file("avs/med.safetensors")
    with safe_open("avs/med.safetensors", "pt") as file:
        about = file.metadata()
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name].view(-1)[0] = 3e38
    save_file(tensors, "avs/med.safetensors", about)
    evaluator = made(guards=(), holdout="none", dtype="bf16")
    sound = evaluator.evaluate(job((0, 1)))
    big = Job((4, 0), terms=(term(MED, "2"),))
    broken = evaluator.evaluate(big)
    assert "down_proj.weight' would hold 1 values that are NaN or infinite" in broken.broken
    assert broken.scores.shape == (0,)
    assert sound.broken == ""
    assert evaluator.evaluate(job((0, 1))).scores.tobytes() == sound.scores.tobytes()


def test_norms(pairs: SmallProject) -> None:
    token = made(guards=(), holdout="none").evaluate(job((1, 0))).scores
    evaluator = made(guards=(), holdout="none", norm="sum")
    found = evaluator.evaluate(job((1, 0))).scores
    (plan,) = evaluator.plans(SEARCH)
    wide = token.reshape(-1, 3).astype(np.float64) * plan.scored
    assert np.array_equal(found.reshape(-1, 3), wide.astype(np.float32))


def test_identities_name_what_differs(pairs: SmallProject) -> None:
    own = made().identity(space())
    assert own.parts["λ"] == "med in steps of 0.5, fin in steps of 0.5"
    assert own.shown["items"] == "items.jsonl, 2 of med, 2 of fin, 2 of leg"
    assert own == made().identity(space("med:0:1:.5", "fin:-1:1:.5"))

    def changed(other: PointEvaluator, where: Space) -> set[str]:
        return {line.split(":")[0] for line in own.differences(other.identity(where))}

    assert changed(made(), space("med:-1:1:.25", "fin:-1:1:.5")) == {"λ"}
    assert changed(made(), space("med:-1:1:.5", "fin:.5")) == {"λ"}
    assert changed(made(dtype="bf16"), space()) == {"dtype"}
    assert changed(made(rounding="dither"), space()) == {"rounding"}
    assert changed(made(norm="sum"), space()) == {"norm"}
    assert changed(made(template="<s>{query}|{response}</s>"), space()) == {"tokens"}
    assert changed(made(guards=()), space()) == {"guard help", "guard help, held out", "tokens"}
    assert changed(made(holdout="none"), space()) >= {"items", "items, held out"}
    assert changed(made(levels=("gen", "exp")), space()) >= {"levels", "items"}


def test_guards_have_floors_that_are_free(pairs: SmallProject) -> None:
    """Another least share judges the same scores: the points stay."""
    stricter = GuardData("help", "pairs.jsonl", "rejected", Fraction(9, 10))
    assert made(guards=(stricter,)).identity(space()) == made().identity(space())


def test_half_of_each_domain_is_held_out_by_hash(pairs: SmallProject) -> None:
    items = load_items("items.jsonl")
    kept, held = parted(items, Fraction(1, 2))
    assert [item.domain for item in held] == [d for d in ("med", "fin", "leg") for _ in range(2)]
    assert sorted(item.line for item in [*kept, *held]) == [item.line for item in items]
    lines = Path("items.jsonl").read_text().splitlines()
    Path("items.jsonl").write_text("\n".join(lines[::-1]))
    again, _ = parted(load_items("items.jsonl"), Fraction(1, 2))
    assert {item.query for item in again} == {item.query for item in kept}


def test_holding_out_rules(pairs: SmallProject) -> None:
    assert made("auto").sets.holdout is None
    assert "only 4 items, and 20 are needed" in made("auto").sets.rule
    with pytest.raises(DataError, match="a domain has too few items to hold out 0.1 of them"):
        made(".1")
    with pytest.raises(RecipeError, match="expected a share between 0 and 1"):
        made("1.5")
    with pytest.raises(DataError, match="12 of its items are also in items.jsonl"):
        made("items.jsonl")
    text = Path("items.jsonl").read_text().replace("question", "problem")
    Path("others.jsonl").write_text(text)
    sets = made("others.jsonl").sets
    assert len(sets.search[0]) == 12
    assert sets.holdout is not None
    assert len(sets.holdout[0]) == 12
    assert sets.rule == "the items of others.jsonl; guards have the same items on both sides"


def test_guards_are_read() -> None:
    files = ["help=pairs.jsonl", "safe=safe.jsonl"]
    one, two = parse_guard("help>=.55,safe=avd>=9/10", files)
    assert one == GuardData("help", "pairs.jsonl", None, Fraction(11, 20))
    assert two == GuardData("safe", "safe.jsonl", "avd", Fraction(9, 10))
    with pytest.raises(RecipeError, match=r"--guard other>=.5: expected NAME>=SHARE or .*\(help, "):
        parse_guard("other>=.5", files)
    with pytest.raises(RecipeError, match="--guard-data: two files of one name"):
        parse_guard("help>=.5", ["help=a", "help=b"])
    with pytest.raises(RecipeError, match="the share is 1.5"):
        parse_guard("help>=1.5", files)


def test_a_guard_needs_its_level(pairs: SmallProject) -> None:
    guard = GuardData("help", "pairs.jsonl", "nice", Fraction(1, 2))
    with pytest.raises(DataError, match="no level 'nice' for the guard help, expected one of chos"):
        made(guards=(guard,))


def test_paths_work_from_anywhere(pairs: SmallProject, monkeypatch: pytest.MonkeyPatch) -> None:
    points = PointSetup(setup(), (GUARD,), ".5")
    here = PointEvaluator(points).digest
    moved = points.anywhere()
    monkeypatch.chdir("/")
    assert PointEvaluator(moved, Place(1)).digest == here


def test_many_points_leave_memory_flat(pairs: SmallProject) -> None:
    """λ is set in place and tokens are planned once: after the first points nothing grows."""
    import gc
    import tracemalloc

    evaluator = made()
    points = [point for point in space().points for _ in range(2)]

    def go() -> None:
        for point in points[:20]:
            evaluator.evaluate(job(point))
        evaluator.evaluate(job((0, 0), HOLDOUT))

    go()
    gc.collect()
    tracemalloc.start()
    go()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    addresses = [p.data_ptr() for p in evaluator.live.model.parameters()]
    go()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    # Bytes over 21 jobs: torch and transformers leave some hundreds each in the interpreter's free
    # lists; one job's log-probs are 4 · 700 bytes, its tokens as much, the weights 100,000.
    assert grown < 21 * 1400
    assert [p.data_ptr() for p in evaluator.live.model.parameters()] == addresses


def test_nothing_is_written(pairs: SmallProject) -> None:
    before = sorted(Path().rglob("*"))
    made().evaluate(job((1, 1)))
    assert sorted(Path().rglob("*")) == before
