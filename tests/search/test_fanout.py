"""Crews: the same results from any number of workers, also when some of them die."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avops.errors import AvopsError, MissingExtraError, NonFiniteError
from avops.search.budget import Budget
from avops.search.fanout.crew import Crew, Failed, Lost, Woken
from avops.search.fanout.local import LocalWorker
from avops.search.fanout.processes import ProcessWorker
from avops.search.fanout.ray_pool import RayWorker
from avops.search.fanout.worker import Patience
from avops.search.points import Job, Outcome, Place
from avops.search.runner import Search
from avops.search.store import Store
from search import synthetic
from search.synthetic import IDENTITY, Lexicographic, Maker, Silent

POINTS = [(x, y) for x in range(-2, 3) for y in range(-1, 2)]
JOBS = [Job(point, reason=str(point)) for point in POINTS]


def local(maker: Maker, count: int = 1) -> Crew:
    places = [Place(number) for number in range(count)]
    return Crew([LocalWorker(maker.make(place), place) for place in places], "d")


def processes(maker: Maker, count: int = 2) -> Crew:
    return Crew([ProcessWorker(maker, Place(number)) for number in range(count)], "d")


def outcomes(crew: Crew, count: int, seen: list[Any] | None = None) -> dict[Any, Outcome]:
    found: dict[Any, Outcome] = {}
    while len(found) < count:
        event = crew.events.get(timeout=60)
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, (Lost, Woken)):
            if seen is not None:
                seen.append(event)
        else:
            found[event.job.point] = event
    return found


def texts(found: dict[Any, Outcome]) -> dict[Any, bytes]:
    return {point: outcome.scores.tobytes() for point, outcome in found.items()}


@pytest.fixture(scope="module")
def alone() -> dict[Any, bytes]:
    with local(Maker()) as crew:
        crew.submit(JOBS)
        return texts(outcomes(crew, len(JOBS)))


def test_processes_give_what_one_gives(alone: dict[Any, bytes], tmp_path: Path) -> None:
    """Two of them; one dies of a job, which then is measured by a new one."""
    maker = Maker(pause=0.01, die=((0, 0),), marks=str(tmp_path))
    seen: list[Any] = []
    with processes(maker) as crew:
        crew.submit(JOBS)
        found = outcomes(crew, len(JOBS), seen)
        assert crew.running == 0
    assert texts(found) == alone
    assert {outcome.worker for outcome in found.values()} == {"0", "1"}
    (lost,) = (event for event in seen if isinstance(event, Lost))
    assert lost.reason == "killed by SIGKILL"
    assert lost.job is not None
    assert lost.job.point == (0, 0)


def test_a_process_killed_from_outside_is_replaced(alone: dict[Any, bytes]) -> None:
    workers = [ProcessWorker(Maker(pause=0.05), Place(0))]
    with Crew(workers, "d") as crew:
        crew.submit(JOBS[:4])
        first = outcomes(crew, 1)
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGKILL)
        rest = outcomes(crew, 3)
    assert texts(first | rest) == {job.point: alone[job.point] for job in JOBS[:4]}


def test_a_process_that_hangs_is_replaced(
    alone: dict[Any, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "LEAST", 0.5)
    seen: list[Any] = []
    with processes(Maker(hang=((0, 0),), marks=str(tmp_path)), 1) as crew:
        crew.submit([Job((1, 0)), Job((0, 0))])
        found = outcomes(crew, 2, seen)
    assert texts(found) == {point: alone[point] for point in ((1, 0), (0, 0))}
    (lost,) = (event for event in seen if isinstance(event, Lost))
    assert lost.reason == "no answer for 0.5 s, where the longest before took far less"


def test_patience_has_a_bound_only_for_what_is_known() -> None:
    patience = Patience()
    assert patience.bound(Job((0, 0))) is None
    patience.took(Job((0, 0)), 100.0)
    patience.took(Job((0, 1)), 5.0)
    assert patience.bound(Job((1, 1))) == 20 * 100.0
    assert patience.bound(Job((1, 1), "holdout")) is None  # other items, perhaps far more
    patience.took(Job((0, 0), "holdout"), 1.0)
    assert patience.bound(Job((1, 1), "holdout")) == 600


def test_a_job_that_kills_every_worker_is_an_error(tmp_path: Path) -> None:
    maker = Maker(die=((1, 0),), always=True, marks=str(tmp_path))
    with processes(maker, 1) as crew:
        crew.submit([Job((0, 0)), Job((1, 0))])
        with pytest.raises(AvopsError, match=r"died 3 times at \(1, 0\) \(search\): killed by SIG"):
            outcomes(crew, 2)


def test_errors_of_measurers_come_back(tmp_path: Path) -> None:
    with processes(Maker(fail=((1, 1),)), 1) as crew:
        crew.submit([Job((1, 1))])
        with pytest.raises(NonFiniteError, match=r"weights are NaN at \(1, 1\)"):
            outcomes(crew, 1)
    with local(Maker(fail=((1, 1),))) as crew:
        crew.submit([Job((1, 1))])
        with pytest.raises(NonFiniteError, match=r"weights are NaN at \(1, 1\)"):
            outcomes(crew, 1)


def test_workers_that_read_other_items_are_refused() -> None:
    with local(Maker(digests=("d", "x" * 64)), 2) as crew:
        crew.submit(JOBS)
        with pytest.raises(AvopsError, match=r"worker 1: it reads other items or tokens \(xxxxx"):
            outcomes(crew, len(JOBS) + 1)


def test_jobs_that_wait_can_be_taken_back() -> None:
    with local(Maker(pause=0.05)) as crew:
        crew.submit(JOBS[:5])
        while not crew.running:
            time.sleep(0.001)
        assert crew.withdraw() == tuple(JOBS[1:5])
        assert [*outcomes(crew, 1)] == [JOBS[0].point]
        assert crew.running == 0
        assert crew.events.empty()


def test_closing_does_not_wait_for_a_job() -> None:
    begin = time.monotonic()
    for crew in (local(Maker(pause=30)), processes(Maker(pause=30), 1)):
        crew.submit(JOBS[:2])
        while not crew.running:
            time.sleep(0.01)
        crew.close()
    assert time.monotonic() - begin < 25


def test_orphans_end_when_their_pipe_closes() -> None:
    worker = ProcessWorker(Maker(), Place(0))
    worker.start()
    process = worker._process
    assert process is not None
    assert worker._pipe is not None
    worker._pipe.close()
    process.join(20)
    assert process.exitcode == 0


class _Refusing:
    """As much of ray as killing an actor takes: it raises ``error``."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def kill(self, actor: object) -> None:
        raise self.error("no such actor")


def test_only_what_a_lost_cluster_raises_is_passed_over() -> None:
    """An actor whose cluster is gone needs no killing; any other failure is one."""
    for error, passed in ((_Refusing.exceptions.RayError, True), (TypeError, False)):
        worker = RayWorker(_Refusing(error), Maker(), Place(0), {})
        worker._actor = object()
        if passed:
            worker.stop()
        else:
            with pytest.raises(TypeError, match="no such actor"):
                worker.stop()
        assert worker._actor is None


ray = pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from avops.search.fanout.ray_pool import RayCluster

    opened = RayCluster.open("local", cpus=2)
    # Its workers do not know where tests are.
    ray.cloudpickle.register_pickle_by_value(synthetic)
    yield opened
    opened.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_search_on_ray_is_the_local_search(cluster: Any, tmp_path: Path) -> None:
    """A local cluster of two; one actor dies of a job, which a new one then measures."""
    study = synthetic.study(batch=4)

    def searched(name: str, crew: Crew) -> tuple[Any, Any]:
        strategy = Lexicographic(study.problem, most=20)
        with Store.open(tmp_path / name, study, IDENTITY) as store, crew:
            Search(store, strategy, crew, Budget(), Silent()).run()
            rows = {result.point: result.scores.tobytes() for result in store.results()}
            return rows, [batch.points for batch in store.asked()]

    marks = tmp_path / "marks"
    marks.mkdir()
    here = searched("here", local(Maker()))
    dying = next(point for point in here[0] if point != (0, 0))
    maker = Maker(die=(dying,), marks=str(marks), pause=0.05)
    there = searched("there", Crew(cluster.workers(maker, 2), "d"))
    assert there == here
    with Store.read(tmp_path / "there") as store:
        assert {result.worker for result in store.results()} == {"0", "1"}
        assert [note.value["point"] for note in store.notes("lost worker")] == [list(dying)]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_errors_come_back_from_ray(cluster: Any) -> None:
    with Crew(cluster.workers(Maker(fail=((1, 1),)), 1), "d") as crew:
        crew.submit([Job((1, 1))])
        with pytest.raises(NonFiniteError, match="weights are NaN at"):
            outcomes(crew, 1)


def test_ray_reports_nothing(cluster: Any) -> None:
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from avops.search.fanout.ray_pool import RayCluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--ray needs the package 'ray'.*avops\[ray\]"):
        RayCluster.open("local")


def test_places_are_data() -> None:
    place = Place(3, "cuda:1", 2)
    assert dataclasses.astuple(place) == (3, "cuda:1", 2)
