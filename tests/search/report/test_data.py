"""What a report says: counted from measurements alone, whatever a model thinks."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from avops.search.board import parse_want
from avops.search.report import Report, facts_of, tables
from avops.search.report.facts import busy
from avops.search.store import Result, Store
from made_run import LEVELS, make_run, some_points


def report_of(directory: Path, *, model: bool = False) -> Report:
    with Store.read(directory) as store:
        return Report(facts_of(store, model=model))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "three"
    make_run(directory, 60, given="-1:1:.25", end={"why": "done", "exhausted": False})
    return directory


@pytest.fixture(scope="module")
def modelled(run: Path) -> Report:
    return report_of(run, model=True)


def test_the_headline_counts_what_was_measured(modelled: Report) -> None:
    report = modelled
    told, study = report.facts.told, report.study
    hit = study.board.judge(told.scores, study.wants)[0].any(axis=0)
    head = report.headline
    assert (head.wanted, head.reached) == (27, int(hit.sum()))
    assert (head.measured, head.points) == (60, 729)
    assert head.measured_share == 60 / 729
    assert 0 < head.confirmed <= head.reached
    # The model finds more combinations likely than were reached; none of them counts.
    assert report.inferred is not None
    likely = {want for want, chance in report.inferred.chance.items() if chance > 0.5}
    assert {row.finding.want for row in report.rows if row.hit} != likely
    assert [row.hit for row in report.rows] == hit.tolist()


def test_rows_are_numbered_like_the_combinations(run: Path) -> None:
    report = report_of(run)
    assert [row.number for row in report.rows] == list(range(1, 28))
    for code in range(27):
        assert report.code(report.decoded(code)) == code
    assert report.decoded(5) == (0, 1, 2)  # exp gen avd


def test_a_row_shows_the_winner_or_the_nearest(run: Path) -> None:
    report = report_of(run)
    for row in report.rows:
        assert row.shown is not None
        assert row.terms == tuple(map(str, report.space.terms(row.shown)))
        assert [share.domain for share in row.shares] == ["med", "fin", "leg"]
        assert row.finding.margin is not None
        assert (row.at is not None) == row.hit
        assert bool(row.held) == row.hit
        if row.hit:
            assert row.finding.margin > 0
            assert row.saved is not None
            place = report.places[row.shown]
            assert row.at <= place + 1


def test_discovery_rises_to_what_was_reached(run: Path) -> None:
    report = report_of(run)
    assert len(report.discovery) == 60
    assert list(report.discovery) == sorted(report.discovery)
    assert report.discovery[-1] == report.headline.reached
    for row in report.rows:
        if row.at is not None:
            before = report.discovery[row.at - 2] if row.at > 1 else 0
            assert report.discovery[row.at - 1] > before


def test_baselines(run: Path) -> None:
    report = report_of(run)
    kinds = [baseline.kind for baseline in report.baselines]
    assert kinds[:4] == ["base", "prompting", "prompting", "prompting"]
    assert set(kinds[4:]) == {"sweep"}
    assert report.baselines[0].name == "λ = 0"
    assert [b.name for b in report.baselines[1:4]] == [f"told {level}" for level in LEVELS]
    assert "med -1" in {baseline.name for baseline in report.baselines}
    told_exp = {s.domain: s.share for s in report.baselines[1].shares if s.level == "exp"}
    plain = {s.domain: s.share for s in report.baselines[0].shares if s.level == "exp"}
    assert all(told_exp[domain] > plain[domain] for domain in plain)


def test_everything_is_json(modelled: Report) -> None:
    data = json.loads(json.dumps(modelled.to_dict(), allow_nan=False))
    assert data["reached"] == sum(row["point"] is not None for row in data["combinations"])
    assert data["fit"]["trusted"] is True
    assert data["identity"]["shown"]["base"] == "base.safetensors"
    assert data["combinations"][0]["av"][0].startswith("med:")


def test_the_command_is_rebuilt_where_the_run_does_not_say(run: Path, tmp_path: Path) -> None:
    facts = report_of(run).facts
    assert facts.rebuilt
    assert facts.command.startswith(
        "avops search base.safetensors --av med:-1:1:0.25 fin:-1:1:0.25 leg:-1:1:0.25 --want all"
    )
    make_run(tmp_path / "said", 5)
    with Store.read(tmp_path / "said") as store:
        study, identity = store.study, store.identity
    with Store.open(tmp_path / "said", study, identity) as store:
        store.note("command", words=["avops", "search", "--want", "leg=exp>=.8"], version="9.9")
    facts = report_of(tmp_path / "said").facts
    assert not facts.rebuilt
    assert facts.command == "avops search --want 'leg=exp>=.8'"
    assert facts.version == "9.9"


def test_a_partial_want_has_no_number(tmp_path: Path) -> None:
    world = make_run(tmp_path / "whole", 2)
    want = parse_want("med=avd,leg=exp>=.3", world.part)
    make_run(tmp_path / "part", 30, wants=(want,))
    (row,) = report_of(tmp_path / "part").rows
    assert row.number is None
    assert [share.domain for share in row.shares] == ["med", "leg"]


def test_an_empty_run(tmp_path: Path) -> None:
    make_run(tmp_path / "empty", 0, holdout=False)
    report = report_of(tmp_path / "empty", model=True)
    assert (report.headline.reached, report.headline.seconds) == (0, 0.0)
    assert report.discovery == ()
    assert report.baselines == ()
    assert report.facts.model is None
    assert all(row.shown is None and row.terms == () for row in report.rows)


def test_a_grid_that_was_measured_needs_no_model(tmp_path: Path) -> None:
    make_run(tmp_path / "all", 27, given="-1:1:1", items=6)
    report = report_of(tmp_path / "all", model=True)
    assert report.facts.model is None
    assert {row.verdict for row in report.rows} <= {"reached", "confirmed", "unreachable"}


def test_an_untrusted_model_infers_nothing(modelled: Report) -> None:
    model = copy.copy(modelled.facts.model)
    assert model is not None
    model.outlook = dataclasses.replace(
        model.outlook, fit=dataclasses.replace(model.fit, trusted=False, reason="it is off")
    )
    report = Report(dataclasses.replace(modelled.facts, model=model))
    assert report.inferred is None
    assert "it is off" in tables.fit_text(report)
    assert modelled.inferred is not None


def test_a_world_without_order_is_not_inferred(tmp_path: Path) -> None:
    world = make_run(tmp_path / "run", 0)
    with Store.read(tmp_path / "run") as store:
        study, identity = store.study, store.identity
    rng = np.random.default_rng(0)
    with Store.open(tmp_path / "run", study, identity) as store:
        for point in some_points(world.space, 40):
            row = rng.normal(size=study.board.outputs).astype(np.float32)
            store.add(Result(point, "search", row))
    report = report_of(tmp_path / "run", model=True)
    assert report.facts.model is not None
    assert not report.facts.model.fit.trusted
    assert report.inferred is None
    assert all(row.finding.chance is None for row in report.rows)
    assert "nothing is inferred" in tables.fit_text(report)


def test_busy_time_leaves_pauses_out() -> None:
    def result(added: float, seconds: float) -> Result:
        return Result((0,), "search", np.zeros(1, np.float32), seconds, added=added)

    # Two at once, a pause, and one more.
    found = busy([result(12, 2), result(12.5, 2), result(100, 3)])
    assert found == (2, 2.5, 5.5)
    assert busy([]) == ()
