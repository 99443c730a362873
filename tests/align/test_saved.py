"""Writing trained weights in the base's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avops.align.saved import Target, save_aligned
from avops.disk import open_base
from avops.dtypes import F32
from avops.errors import MismatchError, NonFiniteError, OutputError
from avops.stream.verify import verify

RECORD = {"avops": "test", "base": {"path": "base.safetensors"}}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A base of one file with a large tensor, an integer one and an empty one; the weights."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights = {
        "embed": torch.randn(1031, 613).bfloat16(),
        "steps": torch.arange(7),
        "norm": torch.ones(5).bfloat16(),
        "void": torch.zeros(0, 3).bfloat16(),
    }
    save_file(weights, "base.safetensors", {"format": "pt"})
    return weights


def save(weights: dict[str, torch.Tensor], out: str = "out.safetensors", **options: object) -> None:
    target = Target.of(Path(out), open_base("base.safetensors"), **options)  # type: ignore[arg-type]
    save_aligned(target, weights, RECORD)


def test_trained_weights_are_rounded_and_the_rest_is_copied(base: dict[str, torch.Tensor]) -> None:
    trained = {"embed": base["embed"].float() + 1e-4, "norm": base["norm"].float() * 2}
    trained["void"] = base["void"].float()
    save(trained)
    found = load_file("out.safetensors")
    assert torch.equal(found["embed"], trained["embed"].bfloat16())
    assert torch.equal(found["norm"], trained["norm"].bfloat16())
    assert torch.equal(found["steps"], base["steps"])
    report = verify("out.safetensors")  # 1.3 MB: more than one block of the digest
    assert (report.problems, report.digests) == ((), 1)


def test_a_tied_head_is_there_once(base: dict[str, torch.Tensor]) -> None:
    wide = base["embed"].float()
    trained = {"embed": wide, "head": wide, "norm": base["norm"].float(), "void": base["void"]}
    save(trained)
    assert sorted(load_file("out.safetensors")) == sorted(base)


def test_weights_without_a_place(base: dict[str, torch.Tensor]) -> None:
    trained = {"embed": base["embed"].float(), "experts": torch.ones(3)}
    with pytest.raises(
        MismatchError, match=r"'experts', and the checkpoint no tensor of that name.*--lora-rank"
    ):
        save(trained)
    with pytest.raises(MismatchError, match=r"'norm' is BF16 \[5\] there, and \[6\]"):
        save({"norm": torch.ones(6)})
    assert not Path("out.safetensors").exists()


def test_weights_that_are_no_numbers(base: dict[str, torch.Tensor]) -> None:
    with pytest.raises(NonFiniteError, match=r"'norm' holds NaN or infinity after training"):
        save({"norm": torch.full((5,), torch.inf)})
    assert sorted(path.name for path in Path().iterdir()) == ["base.safetensors"]


def test_a_directory_takes_sidecars_and_is_replaced_whole(base: dict[str, torch.Tensor]) -> None:
    Path("config.json").write_text('{"dtype": "bfloat16", "x": 1}')
    Path("notes.txt").write_text("mine")
    trained = {name: tensor.float() for name, tensor in base.items() if name != "steps"}
    save(trained, "out")
    names = ["avops_recipe.json", "config.json", "model.safetensors"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    with pytest.raises(OutputError, match=r"out: already exists"):
        save(trained, "out")
    save(trained, "out", force=True, dtype=F32)
    assert json.loads(Path("out/config.json").read_bytes()) == {"dtype": "float32", "x": 1}
    found = load_file("out/model.safetensors")
    assert found["embed"].dtype == torch.float32
    assert found["steps"].dtype == torch.int64
    assert verify("out").problems == ()
    (Path("out") / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"--force replaces only what avops wrote"):
        save(trained, "out", force=True)
