"""Kills at any moment: the same command goes on to the same end, and measures nothing twice."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avops.errors import DataError
from avops.search.store import Store

TESTS = Path(__file__).parent.parent
# A search of forty points with two local workers; a line on stdout for every point measured.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from avops.search.fanout.crew import Crew
from avops.search.fanout.local import LocalWorker
from avops.search.points import Place
from avops.search.budget import Budget
from avops.search.runner import Search
from avops.search.store import Store
from search import synthetic as s

class Watch(s.Silent):
    def progress(self, now):
        print(now.measured, flush=True)

study = s.study(batch=4)
maker = s.Maker(pause=0.005)
workers = [LocalWorker(maker.make(Place(n)), Place(n)) for n in range(2)]
print("ready", flush=True)
with Store.open(sys.argv[2], study, s.IDENTITY) as store, Crew(workers, "d") as crew:
    strategy = s.Lexicographic(study.problem, most=40, pause=0.004)
    search = Search(store, strategy, crew, Budget(), Watch())
    search.begin()
    search.run()
print("end", search.clock.evaluations, flush=True)
"""


def started(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(TESTS), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finished(directory: Path) -> int:
    """Run it to the end; how many points it measured."""
    process = started(directory)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    *_, last = out.splitlines()
    return int(last.removeprefix("end "))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert finished(directory) == 40
    return directory


def contents(directory: Path) -> tuple[object, object]:
    with Store.read(directory) as store:
        rows = {result.point: result.scores.tobytes() for result in store.results()}
        return rows, [(batch.points, batch.reasons) for batch in store.asked()]


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_moments(whole: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    directory = tmp_path / "run"
    measured = kills = 0
    for _ in range(4):
        process = started(directory)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.randrange(6))]
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        out, _ = process.communicate(timeout=60)
        kills += process.returncode == -9
        lines = [*filter(None, lines), *out.splitlines()]
        try:
            with Store.read(directory) as store:
                kept = store.points()
        except DataError as error:
            # Killed before or while the file was made: nothing was measured.
            assert re.search("no study.sqlite in it|nothing in it yet", str(error))  # noqa: PT017
            assert not lines
            continue
        # What was said to be measured is there.
        assert len(kept) >= measured
        assert len(kept) >= int(lines[-1].split()[-1] if lines else 0)
        measured = len(kept)
    assert kills
    assert finished(directory) == 40 - measured
    assert contents(directory) == contents(whole)


def test_the_end_is_the_end(whole: Path) -> None:
    before = contents(whole)
    assert finished(whole) == 0
    assert contents(whole) == before


def test_a_second_process_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    process = started(tmp_path / "run")
    assert process.stdout is not None
    process.stdout.readline()  # it has the directory once a point is measured
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TESTS), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.poll() is None:
        assert f"another run (process {process.pid}) is writing it" in other.stderr
    process.communicate(timeout=60)
