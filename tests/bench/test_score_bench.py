"""The scoring benchmark: its work, its peers, and that wrong scores get no figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import score
from bench.peers import scorers
from bench.processes import Run


class InProcess(score.Bench):
    """Rows without processes of their own. shift: what is wrong with our scores."""

    shift = 0.0

    def run(self, key: str, work: Path) -> tuple[Run, Any]:
        out = self.directory / f"{key}.npz"
        if key == "packed":
            score.score(key, self.model, work, out, 0)
            found = dict(np.load(out))
            found["scores"] = found["scores"] + np.float32(self.shift)
            return Run(2.0, 0.0, 3.0, 100.0), found
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["", key, str(self.model), str(work), str(out), "512"])
            scorers.main()
        return Run(2.0, 0.0, 3.0, 100.0), dict(np.load(out))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    made = InProcess(tmp_path_factory.mktemp("bench"), argparse.Namespace(runs=1))
    score.make_model(made.model, 128, 1, 300)
    score.make_work(made.little, 1, 300)
    score.make_work(made.work, 2, 300)
    return made


def test_every_row_keeps_to_the_oracle(bench: InProcess) -> None:
    wanted, bound = score.truth(bench.model, bench.work, 1)
    bench.shift = 0.0
    bench.measure(["packed", "padded"], wanted, bound)
    # Both are f32 evaluations of one model: the bound holds for the peer, too.
    assert max(bench.differences.values()) <= bound < 1e-2
    assert [line[0] for line in bench.lines(1000)] == [
        "avops (1)",
        "transformers, padded, by an expert (1)",
    ]
    figures = bench.figures()["avops"]
    assert len(figures["scoring_s"]) == len(figures["further_s"]) == 1
    assert bench.tokens["packed"] < int(np.load(bench.work)["lengths"].sum())


def test_packed_rows_are_the_padded_loops(bench: InProcess) -> None:
    """The peer without padding, told apart by positions, scores the same sequences."""
    wanted, bound = score.truth(bench.model, bench.work, 1)
    sequences, starts = scorers.load(bench.work)
    from avops.score import load_model

    found = scorers.packed(load_model(bench.model), sequences, starts, 700)
    assert np.abs(found - wanted).max() <= bound


def test_wrong_scores_get_no_figures(bench: InProcess) -> None:
    wanted, bound = score.truth(bench.model, bench.work, 1)
    bench.shift = 2 * bound
    with pytest.raises(SystemExit, match=r"avops: differs from the oracle by .*: no figures"):
        bench.measure(["packed"], wanted, bound)
