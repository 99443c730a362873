"""A short run of the fuzzer, and proof that it can fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench.fuzz
from bench.fuzzing import headers
from bench.fuzzing.outcome import BOTH, FAILURE, NEITHER, Outcome
from bench.fuzzing.workers import KINDS, Checker, Failure, Job, minimise, place

ROOT = Path(__file__).parents[2]


def outcomes(job: Job, directory: Path) -> Iterator[tuple[bytes, Outcome]]:
    checker = Checker(job, directory)
    for number in range(job.stop):
        raw = job.make(number)
        yield raw, checker(raw)


# Every check of the parser refuses an input here that the package rejects, too: without the check,
# the fuzzer would find that input.
CHECKS = {
    "headers": [
        "duplicate key", "follows a hole", "overlaps the tensor", "no tensor owns", ": truncated",
        "header length N, exp", "but the file has only", "not UTF-8", "not valid Unicode",
        "number …, expected a whole number below", "number …, expected a whole number$",
        "does not fill whole bytes", "overflows N bits", "needs N bytes", "unknown dtype",
        "is a list, expected dtype", "__metadata__ is not an object", "__metadata__… is not a text",
        "has a shape that is no list", "got others", "has …, expected dtype", "does not start with",
        "something after the end", "Invalid control character", "at least N for the header's",
    ],
    "indexes": [
        "duplicate key", "expected the plain name", "says nothing of it", "is in no shard",
        "shard missing", "not a regular file", "is in both", "holds no tensors", "not UTF-8",
        "no tensor in a weight_map", "is in a number", "weight_map is a", "nested too deeply",
        "something after the end",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs"), [("headers", 3000), ("indexes", 2000)])
def test_a_short_run(kind: str, inputs: int) -> None:
    tally: Counter[Outcome] = Counter()
    with place(kind) as directory:
        for raw, outcome in outcomes(Job(kind, 1, 0, inputs), directory):
            assert outcome.verdict != FAILURE, (outcome, raw)
            tally[outcome] += 1
    assert tally[Outcome(BOTH, "")] > 0.2 * inputs
    refused = [outcome.reason for outcome in tally if outcome.verdict == NEITHER]
    missing = [c for c in CHECKS[kind] if not any(re.search(c, reason) for reason in refused)]
    assert not missing


def test_inputs_do_not_depend_on_the_process() -> None:
    for kind in KINDS:
        first, second = Job(kind, 3, 0, 9), Job(kind, 3, 5, 9, 2)
        assert first.make(7) == second.make(7)
        assert first.make(7) != Job(kind, 4, 0, 9).make(7)


@pytest.mark.parametrize(
    ("kind", "name", "found"),
    [
        ("headers", "lax", "accepted, but the package rejects it"),
        ("headers", "raises", "raised IndexError"),
        ("headers", "loops", "took longer than 1 s"),
        ("indexes", "follows", "accepted, but the index and the shards contradict each other"),
    ],
)
def test_wrong_readers_are_caught(kind: str, name: str, found: str) -> None:
    # A limit that a busy machine keeps: only the reader that never comes back reaches it.
    job = Job(kind, 0, 0, 500, limit=1.0, shrink=2, subject=f"disk.lax_readers:{name}")
    with place(kind) as directory:
        checker = Checker(job, directory)
        raw = next(r for r, o in outcomes(job, directory) if o == Outcome(FAILURE, found))
        smaller = minimise(job, raw, lambda some: checker(some).reason == found)
        assert len(smaller) <= len(raw)
        assert checker(smaller) == Outcome(FAILURE, found)


def test_failures_are_made_small(tmp_path: Path) -> None:
    table = headers.Object([[f'"{i}"', headers.Object([['"dtype"', '"1.0"']])] for i in range(20)])
    raw = headers.assemble(headers.dump(table, str).encode(), bytes(100))
    job = Job("headers", 0, 0, 0, subject="disk.lax_readers:raises")
    checker = Checker(job, tmp_path)
    outcome = checker(raw)
    assert outcome == Outcome(FAILURE, "raised IndexError")
    assert minimise(job, raw, lambda some: checker(some) == outcome) == headers.assemble(
        b"1.0", b""
    )


def fuzz(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "bench.fuzz", "--failures", str(tmp_path / "kept"), *options],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )


def test_a_crash_is_a_finding(tmp_path: Path) -> None:
    """The process dies; the input is found, made smaller, kept, and dies again."""
    subject = ["--subject", "disk.lax_readers:aborts"]
    done = fuzz(tmp_path, "--kind", "headers", "--inputs", "60", "--shrink", ".3", *subject)
    assert done.returncode == 1
    assert "ended the process (SIGABRT)" in done.stdout
    kept = list((tmp_path / "kept").iterdir())
    assert kept
    assert all(b"\\u0061" in path.read_bytes() for path in kept)
    assert fuzz(tmp_path, "--check", str(kept[0]), *subject).returncode != 0
    again = fuzz(tmp_path, "--check", str(kept[0]))
    assert again.returncode == 0
    assert f"{kept[0]}: both " in again.stdout


def test_failures_that_were_not_counted_yet_are_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has found enough ends before the outcomes of its last inputs come in."""
    found = [Failure(3, "raised IndexError", b"x"), Failure(9, "raised IndexError", b"y")]
    monkeypatch.setattr(bench.fuzz, "run", lambda *_: (Counter[Outcome](), found))
    data = bench.fuzz.fuzz(Job("headers", 0, 0, 10), 1, tmp_path)
    assert data["failures"] == {"raised IndexError": 2}
    assert len(list(tmp_path.iterdir())) == 2


def test_opening_elsewhere_is_a_finding(tmp_path: Path) -> None:
    subject = ["--subject", "disk.lax_readers:follows"]
    done = fuzz(tmp_path, "--kind", "indexes", "--inputs", "100", "--shrink", "0", *subject)
    assert done.returncode == 1
    assert "opened a path outside the directory" in done.stdout
