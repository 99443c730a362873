from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avops.demo import World, build, world
from avops.disk import open_checkpoint
from avops.errors import OutputError, UserError
from avops.score import Scorer, encode, load_items, load_model, load_tokenizer, summarise

LEVELS = ("exp", "gen", "avd")
STAGES = ("data", "base", "align med", "align fin", "align leg")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    data = path.read_bytes()
    return {
        name: torch.from_numpy(np.frombuffer(data, "<f4", t.count, t.offset).copy()).view(t.shape)
        for name, t in open_checkpoint(path).tensors.items()
    }


class Dial:
    """Preference accuracy of base + λ · AV on the test items of the AV's own domain."""

    def __init__(self, tiny: World) -> None:
        self.base = tensors(tiny.base)
        self.aligned = {domain: tensors(path) for domain, path in tiny.aligned.items()}
        self.model = load_model(tiny.directory, weights=self.base)
        items = load_items(tiny.data["test"], levels=LEVELS)
        self.items = items
        self.scorer = Scorer(self.model, encode(items, load_tokenizer(tiny.directory)))

    def shares(self, domain: str, lam: float) -> dict[str, float]:
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                base = self.base[name]
                weight.copy_(base + lam * (self.aligned[domain][name] - base))
        own = summarise(self.scorer.run(), self.items)[domain]
        return {level: own[level].accuracy for level in LEVELS}


@pytest.fixture(scope="module")
def dial(tiny: World) -> Dial:
    return Dial(tiny)


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_what_is_built(tiny: World) -> None:
    assert tiny.made == STAGES
    files = set(snapshot(tiny.directory))
    assert files == {*world.DATA.values(), world.BASE, *world.SIDECARS, *world.ALIGNED.values(),
                     "world.json"}  # fmt: skip
    base = open_checkpoint(tiny.base).tensors
    assert sum(tensor.count for tensor in base.values()) == 173_808
    assert {str(tensor.dtype) for tensor in base.values()} == {"F32"}
    for path in tiny.aligned.values():
        shapes = {name: t.shape for name, t in open_checkpoint(path).tensors.items()}
        assert shapes == {name: t.shape for name, t in base.items()}


def test_the_chat_template_is_what_training_saw(tiny: World) -> None:
    tokenizer: Any = load_tokenizer(tiny.directory)
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "Yes."}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<s>[INST] q?[/INST] Yes.</s>"


@pytest.mark.parametrize("domain", list(world.ALIGNED))
def test_the_dial_turns(dial: Dial, domain: str) -> None:
    """What held in each of 18 domains of seeds 1 to 6, at their worst +.56, −.15 and .65."""
    low, zero, high = (dial.shares(domain, lam) for lam in (-1.2, 0.0, 1.0))
    assert high["exp"] - zero["exp"] >= 0.05
    assert zero["exp"] - low["exp"] >= 0.05
    assert low["avd"] > 0.5


def test_the_same_seed_makes_the_same_bytes(tiny: World, tmp_path: Path) -> None:
    """Once more from nothing; torch's global state is neither used nor disturbed."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = build(tmp_path / "again", seed=tiny.seed, size="tiny")
    assert snapshot(again.directory) == snapshot(tiny.directory)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_run_reuses_everything(tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.directory.rglob("*")}
    for name in ("train_base", "align", "train_tokenizer"):
        monkeypatch.setattr(world, name, lambda *args: pytest.fail("trained again"))
    said = Recorder()
    assert build(tiny.directory, seed=tiny.seed, size="tiny", report=said).made == ()
    assert {path: path.stat().st_mtime_ns for path in tiny.directory.rglob("*")} == before
    assert len(said.stages) == 5
    assert said.ends[-1] == "reusing aligned/leg.safetensors"


def test_an_interrupted_build_resumes(
    tiny: World, tiny_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while aligning fin: what was done stays, and the end is the same, byte for byte."""
    record = json.loads((tiny_copy / "world.json").read_text())
    for stage in ("align fin", "align leg"):
        del record["stages"][stage]
    (tiny_copy / "world.json").write_text(json.dumps(record))
    (tiny_copy / "aligned/fin.safetensors").write_bytes(b"half")
    (tiny_copy / "aligned/leg.safetensors").unlink()
    monkeypatch.setattr(world, "train_base", lambda *args: pytest.fail("trained again"))
    said = Recorder()
    resumed = build(tiny_copy, seed=tiny.seed, size="tiny", report=said)
    assert resumed.made == ("align fin", "align leg")
    assert said.progressed == [30, 30]
    assert snapshot(tiny_copy) == snapshot(tiny.directory)


def test_a_missing_file_is_made_again(tiny: World, tiny_copy: Path) -> None:
    (tiny_copy / "data/test.jsonl").unlink()
    assert build(tiny_copy, seed=tiny.seed, size="tiny").made == ("data",)
    assert snapshot(tiny_copy) == snapshot(tiny.directory)


def test_a_changed_file_is_not_overwritten(tiny: World, tiny_copy: Path) -> None:
    path = tiny_copy / "data/test.jsonl"
    path.write_text("mine\n")
    with pytest.raises(OutputError, match=r"test\.jsonl: changed since the demo wrote it.*move it"):
        build(tiny_copy, seed=tiny.seed, size="tiny")
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize(("seed", "size"), [(2, "tiny"), (1, "small")])
def test_another_world_is_refused(tiny: World, seed: int, size: str) -> None:
    expected = f"holds the demo of seed 1, size tiny, .* got seed {seed}, size {size}, .* give ano"
    with pytest.raises(OutputError, match=expected):
        build(tiny.directory, seed=seed, size=size)


def test_a_strangers_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"base\.safetensors: exists, but no world\.json"):
        build(tmp_path, size="tiny")
    assert (tmp_path / "base.safetensors").read_bytes() == b"mine"


BAD_STAGES = '{"seed": 1, "size": "tiny", "recipe": 1, "stages": {"data": []}}'


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 1}', BAD_STAGES])
def test_a_bad_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(OutputError, match=r"world\.json: not a demo manifest .* remove"):
        build(tmp_path, size="tiny")


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="demo size 'huge', expected one of tiny, small"):
        build(tmp_path / "new", size="huge")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_an_impossible_seed_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UserError, match=f"demo seed {seed}, expected a whole number from 0"):
        build(tmp_path / "new", seed=seed)
    assert not (tmp_path / "new").exists()


def test_transformers_loads_the_base(tiny: World, tmp_path: Path) -> None:
    """With the name transformers looks for, the files are an ordinary model directory."""
    copy = Path(shutil.copytree(tiny.directory, tmp_path / "copy"))
    (copy / "base.safetensors").rename(copy / "model.safetensors")
    model = load_model(copy)
    base = tensors(tiny.base)
    assert all(torch.equal(weight, base[name]) for name, weight in model.named_parameters())


class Recorder:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.ends: list[str] = []
        self.progressed: list[int] = []

    def stage(self, title: str, why: str) -> None:
        assert why
        self.stages.append(title)

    def progress(self, done: int, total: int, note: str = "") -> None:
        assert note
        if done == total:
            self.progressed.append(done)

    def done(self, text: str) -> None:
        self.ends.append(text)
