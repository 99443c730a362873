"""avops doctor: what is chosen, what is used, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from avops.cli.main import main
from avops.kernels import extension, registry
from avops.kernels.tree_attention import native as tree

NEEDED = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("AVOPS_BACKEND", raising=False)
    registry._automatic.cache_clear()
    yield
    registry._automatic.cache_clear()


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["doctor"]) == 0
    return capsys.readouterr().out


def result(capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["doctor", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def line(text: str, *words: str) -> str:
    """The line that begins with these words."""
    (found,) = [row for row in text.splitlines() if row.split()[: len(words)] == list(words)]
    return found


@NEEDED
@pytest.mark.parametrize("amd", [0, 1])
def test_products_that_are_there_and_not_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, amd: int
) -> None:
    """Native products are chosen wherever they serve, and taken on AMD's processors alone."""
    monkeypatch.setattr(extension.NATIVE, "AMD", amd)
    monkeypatch.setattr(extension.NATIVE, "HEAD_PATH", tree.AVX512_BF16)
    text, data = shown(capsys), result(capsys)
    table, scoring = text.split("Who computes what in scoring:\n")
    for operation in ("linear", "gated_mlp"):
        state = ["chosen"] if amd else ["not", "used"]
        assert line(table, operation, "native", *state)
        by = "native" if amd else "torch"
        assert ("not AMD's" in line(scoring, operation, "cpu", "f32", "bf16", by)) == (not amd)
        assert line(scoring, operation, "cpu", "f16", "torch")
        (row,) = [
            row
            for row in data["backends"]
            if (row["operation"], row["backend"]) == (operation, "native")
        ]
        assert (row["chosen"], row["used"]) == (True, bool(amd))
        uses = {use["dtype"]: use["by"] for use in data["scoring"] if use["operation"] == operation}
        assert uses == {"f32": by, "bf16": by, "f16": "torch"}
    # What no scorer asks for is used where it is chosen.
    assert line(table, "combine", "native", "chosen")
    assert {row["used"] for row in data["backends"] if row["operation"] == "diff"} == {True, False}


@NEEDED
def test_a_backend_that_only_the_cpu_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU, Triton comes first, and the CPU's share is still native."""
    from avops.kernels.rms_norm import native, triton

    monkeypatch.setattr(triton, "available", lambda: (True, "some GPU"))
    monkeypatch.setattr("avops.kernels.many.triton.DEVICES", ("cuda",), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = shown(capsys)
    assert line(text, "rms_norm", "triton", "not", "used")  # torch sees no GPU
    assert line(text, "rms_norm", "native", "chosen", "on", "cpu")
    assert native.available()[0]


def test_without_torch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "avops.score.choices", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "scoring needs the package 'torch', which is not installed; install" in shown(capsys)
    data = result(capsys)
    assert data["scoring"] == []
    assert [row["used"] for row in data["backends"]] == [row["chosen"] for row in data["backends"]]
