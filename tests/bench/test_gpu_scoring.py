"""The GPU's scoring benchmark, tried on the CPU with small shapes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from avops.score import Scorer
from bench.gpu import scoring

CPU = torch.device("cpu")
REAL_WAYS = scoring.ways


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval.models.huggingface", None)
        measured: dict[str, Any] = {}
        scoring.measure(scoring.TINY, CPU, measured)
    return measured


def test_every_way_scores_the_same_work(found: dict[str, Any], capsys: Any) -> None:
    ways = dict(found["ways"])
    assert ways.pop("lm-evaluation-harness") == {
        "missing": "lm_eval.models.huggingface does not import"
    }
    assert list(ways) == [
        "avops, 64 tokens a pass",
        "transformers, padded",
        "transformers, packed",
        "avops, 32 tokens a pass",
    ]
    for way in ways.values():
        # Another evaluation of the same bf16 model: what bounds ours bounds the peers, too.
        assert way["off_oracle"] <= found["bound"] < 1
        assert len(way["seconds"]) == 2
        assert way["tokens_per_s"] > 0
    scoring.show(found)
    text = capsys.readouterr().out
    assert "lm-evaluation-harness" not in text
    assert "transformers, packed" in text


def test_the_floor_counts_the_tree_once(found: dict[str, Any]) -> None:
    shape = scoring.TINY
    plan, model = scoring.make_plan(shape), scoring.make_model(shape, CPU)
    assert found["tokens"] == Scorer(model, plan).tokens == 3 * (6 + 3 * 8)
    # Four heads of 128 for queries, one for keys and values; three matrices of 512 × 1792.
    hidden = shape.hidden
    layer = 2 * hidden * hidden + 2 * hidden * 128 + 3 * hidden * 1792
    head = hidden * shape.vocabulary
    assert found["flop"] == 2 * (layer * found["tokens"] + head * 3 * 3 * 9)


def test_a_7b_has_the_known_floor() -> None:
    shape = scoring.Shape()
    with torch.device("meta"):
        model = scoring.new_model(scoring.config(shape.hidden, shape.layers))
    tokens, flop = scoring.floor_flop(model, shape)
    assert tokens == 233_100
    layers = 2 * 6_979_321_856  # 13.96 GFLOP a token
    assert flop == pytest.approx(layers * tokens + 2 * 4096 * 32000 * 216_000, rel=1e-12)


def test_wrong_scores_get_no_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And do not keep the others from theirs."""

    def failing(*_: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    run = Scorer.run
    monkeypatch.setattr(Scorer, "run", lambda self: run(self) - np.float32(1))
    shape = replace(scoring.TINY, batches=(64,))
    monkeypatch.setattr(
        scoring, "ways", lambda model, _: {**REAL_WAYS(model, shape), "one": failing}
    )
    found: dict[str, Any] = {}
    scoring.measure(shape, CPU, found)
    refused = found["ways"]["avops, 64 tokens a pass"]["refused"]
    assert refused.startswith("differs from the oracle by 1.0e+00, where roundings explain ")
    assert found["ways"]["transformers, padded"]["median_s"] > 0
    assert found["ways"]["one"] == {"missing": "RuntimeError: no kernel"}
    assert "RuntimeError: no kernel" in capsys.readouterr().err
    scoring.show(found)
