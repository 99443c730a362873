"""The merge benchmark: its models, its floor, its peers, and that it refuses wrong results."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import deserialize

from bench import cache, compare, floor, lora, models, peers
from bench.merge import Bench
from bench.peers import Job, Row
from bench.processes import launch

MODEL = models.Model(hidden=128, layers=3, vocab=700)
LAMS = ("-1", "-1", ".6")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    directory = tmp_path_factory.mktemp("models")
    base, aligned = models.make(directory, MODEL, len(LAMS))
    job = Job(base, tuple(aligned), LAMS, directory)
    Bench(job, [], lambda: None).make_truth()
    return job


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = floor.build(tmp_path_factory.mktemp("floor"))
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def stored(directory: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in deserialize(file.read_bytes()):
            assert tensor["dtype"] == "BF16"
            found[name] = np.frombuffer(tensor["data"], np.uint16).reshape(tensor["shape"])
    return found


def test_models_are_sharded_and_aligned_ones_differ(job: Job) -> None:
    shards = sorted(job.base.glob("*.safetensors"))
    assert len(shards) >= 4
    assert sum(file.stat().st_size for file in shards) > MODEL.nbytes
    base, other = stored(job.base), stored(job.aligned[0])
    assert {name: value.shape for name, value in base.items()} == dict(MODEL.tensors())
    # Steps of bf16 near 0.02 are 2^-13 to 2^-14, noise is 1e-3: few elements round to no change.
    assert all(np.mean(value != other[name]) > 0.7 for name, value in base.items())
    flat = [value.ravel()[:128].tobytes() for value in base.values()]
    assert len(set(flat)) == len(flat)


def test_sizes_go_with_mib() -> None:
    for mib in (512, 2048, 8192):
        # A layer more or less: at most a tenth of the model.
        assert models.Model.of(mib).nbytes == pytest.approx(mib * 2**20, rel=0.1)


def test_models_have_headers_of_different_lengths(job: Job) -> None:
    lengths = set()
    for path in (job.base, *job.aligned):
        file = min(path.glob("*.safetensors"))
        lengths.add(int.from_bytes(file.read_bytes()[:8], "little"))
    assert len(lengths) > 1


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("read=buffered", "window=64", "piece=4", "threads=3"),
        ("read=direct", "cold_window=64", "write=buffered"),
        ("read=mmap", "window=128", "piece=16", "sync=late"),
        ("huge=0", "window=4", "threads=1"),
    ],
)
def test_the_floor_writes_the_references_bytes(
    job: Job, program: Path, options: tuple[str, ...]
) -> None:
    plan, out = job.scratch / "plan.txt", job.out("floor")
    floor.write_plan(plan, job.base, job.aligned, job.lams)
    subprocess.run([str(program), str(plan), str(out), *options], check=True)
    same = compare.same_bytes(out, job.out("reference"))
    names = {path.name for path in out.iterdir()}
    shutil.rmtree(out)
    assert same
    assert {"config.json", "model.safetensors.index.json"} < names


def test_the_floor_takes_any_number_of_terms(job: Job, program: Path) -> None:
    many = dataclasses.replace(job, aligned=(*job.aligned, job.base), lams=(*LAMS, "2.5"))
    plan, out = job.scratch / "many.txt", job.out("many")
    floor.write_plan(plan, many.base, many.aligned, many.lams)
    subprocess.run([str(program), str(plan), str(out)], check=True)
    # base - base is +0, and adding +0 times anything changes nothing here.
    assert compare.same_bytes(out, job.out("reference"))
    shutil.rmtree(out)


def test_differences_are_counted(job: Job, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(job.out("reference"), wrong)
    assert compare.same_bytes(wrong, job.out("reference"))
    assert compare.difference(wrong, job.out("reference")).differing == 0
    file = max(wrong.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    assert not compare.same_bytes(wrong, job.out("reference"))
    found = compare.difference(wrong, job.out("reference"))
    assert found.differing == 1
    assert found.elements == MODEL.nbytes // 2
    assert 0 < found.norm < 1e-3


def test_a_missing_file_is_no_equal_output(job: Job, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(job.out("reference"), part)
    min(part.glob("*.safetensors")).unlink()
    assert not compare.same_bytes(part, job.out("reference"))


def test_wrong_results_are_refused(job: Job) -> None:
    argv = ("cp", "-r", str(job.base), str(job.out("liar")))
    bench = Bench(job, [Row("liar", "liar", argv, ours=True)], lambda: None)
    with pytest.raises(SystemExit, match="liar: its output is not the reference's: no figures"):
        bench.measure(1, 1)
    shutil.rmtree(job.out("liar"))


def test_a_failing_process_is_no_figure(job: Job) -> None:
    argv = (sys.executable, "-c", "import sys; sys.exit('broken here')")
    with pytest.raises(SystemExit, match="exit status 1\nbroken here"):
        launch(argv, job.out("none"), job.scratch / "log.txt")


def test_the_torch_loops_compute_the_merge(job: Job) -> None:
    plain, expert, _ = peers.torch_loops(job)
    bench = Bench(job, [plain, expert], lambda: None)
    bench._once(plain)
    bench._once(expert)
    assert bench.differing["plain"].differing == 0
    # One rounding less in float32, 2^-24 relative, seldom reaches bf16's 2^-9.
    assert bench.differing[expert.key].differing < MODEL.nbytes / 2 * 1e-3
    assert not job.out("plain").exists()


def test_the_cache_is_filled_and_emptied(job: Job) -> None:
    files = cache.data_files([job.base])
    try:
        cache.warm(files)
        cache.evict(files)
    except SystemExit as refused:
        pytest.skip(f"{refused}")  # An older kernel, or a file system in memory.
    assert cache.share(files) == 0
    cache.warm(files)
    assert cache.share(files) > 0.99


def test_a_run_is_measured(job: Job) -> None:
    code = "import pathlib, sys; x = bytearray(2**26); pathlib.Path(sys.argv[1]).mkdir()"
    out = job.out("run")
    run = launch((sys.executable, "-S", "-c", code, str(out)), out, job.scratch / "log.txt")
    out.rmdir()
    assert run.rss > 64
    assert 0 < run.cpu < 5
    assert run.flushed == run.wall + run.flush > run.wall


def test_adapters_are_merged_as_by_peft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    # The least that has four heads, one of keys, as Mistral needs.
    model = models.Model(hidden=512, layers=1, vocab=700)
    monkeypatch.setattr(models.Model, "of", classmethod(lambda cls, mib: model))
    (case,) = lora.measure(tmp_path, 1, 1, [1], 1)["cases"]
    # Outputs of ours are held to the reference's bytes, or there are no figures.
    assert [len(runs["wall_s"]) for runs in case["rows"].values()] == [1, 1, 1, 1]
    (difference,) = case["differing"].values()
    # Sums of 16 products in another order, in float32: bf16 seldom sees it.
    assert difference["differing"] < model.nbytes / 2 * 1e-3
    assert "1 adapter of rank 16" in capsys.readouterr().out


def test_an_adapter_changes_every_linear_layer(tmp_path: Path) -> None:
    made = stored(lora.make(tmp_path / "adapter", MODEL, 0))
    linear = [name for name, _ in MODEL.tensors() if "_proj." in name]
    assert len(made) == 2 * len(linear)
    assert all(value.any() for value in made.values())
