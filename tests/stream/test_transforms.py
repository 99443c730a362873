"""extract with transforms against direct formulas over whole tensors, bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from adapters import delta, family_adapter, wide
from avops.disk import RECIPE_NAME, LowRank, check_vector, open_checkpoint, open_vector
from avops.dtypes import BF16, F32, DType
from avops.errors import (
    CheckpointError,
    NonFiniteError,
    OutputError,
    RecipeError,
    UserError,
)
from avops.kernels.transforms import drop_key, reference
from avops.stream import (
    extract,
    plan_extract,
    transform_read,
    transform_run,
    transform_select,
    windows,
)
from avops.stream.transform_plan import Extraction, plan_transform
from avops.stream.transform_run import TransformReport, transform
from avops.stream.transforms import Transforms
from bits import bf16
from families import Family, Save

FLOATING = (
    "model.embed.weight",
    "model.empty",
    "model.layers.0.w",
    "model.layers.1.w",
    "model.router.weight",
    "model.scale",
)
Deltas = dict[str, np.ndarray]


def run(
    base: Path,
    aligned: Sequence[Path],
    outs: Sequence[Path],
    transforms: Transforms,
    dtype: DType = F32,
    threads: int | None = None,
) -> TransformReport:
    extraction = Extraction(
        str(base), tuple(map(str, aligned)), tuple(outs), transforms, dtype, force=True
    )
    return transform(plan_transform(extraction), threads=threads)


def written(path: Path) -> dict[str, bytes]:
    """Each tensor's bytes by name."""
    checkpoint = open_checkpoint(path)
    found = {}
    for name, tensor in checkpoint.tensors.items():
        raw = checkpoint.shards[tensor.shard].path.read_bytes()
        found[name] = raw[tensor.offset : tensor.offset + tensor.nbytes]
    return found


def differences(family: Family, model: str) -> Deltas:
    return {
        name: (family.wide(model, name) - family.wide("base", name)).astype(np.float32).reshape(-1)
        for name in FLOATING
    }


def keep(share: float, count: int) -> int:
    return min(max(int(share * count), 1), count)


def trimmed(deltas: Deltas, share: float, over: str) -> Deltas:
    if over == "tensor":
        return {n: reference.trim(d, keep(share, d.size)) for n, d in deltas.items()}
    together = np.concatenate(list(deltas.values()))
    cut = np.split(
        reference.trim(together, keep(share, together.size)),
        np.cumsum([d.size for d in deltas.values()])[:-1],
    )
    return dict(zip(deltas, cut, strict=True))


def elected(vectors: Sequence[Deltas]) -> list[Deltas]:
    by_name = {name: reference.elect([v[name] for v in vectors]) for name in vectors[0]}
    return [{name: found[k] for name, found in by_name.items()} for k in range(len(vectors))]


def dropped(deltas: Deltas, share: float, seed: int) -> Deltas:
    limit = round(share * 2**32)
    factor = np.float32(2**32 / (2**32 - limit))
    return {n: reference.dare(d, 0, drop_key(seed, n), limit, factor) for n, d in deltas.items()}


def stored(deltas: Deltas, dtype: DType) -> dict[str, bytes]:
    return {n: (bf16(d) if dtype is BF16 else d).tobytes() for n, d in deltas.items()}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("over", ["tensor", "vector"])
@pytest.mark.parametrize("share", ["0.2", ".5", "1e-9", "1"])
@pytest.mark.parametrize("layout", ["family", "sharded_family"])
def test_trim(
    request: pytest.FixtureRequest, tmp_path: Path, layout: str, share: str, over: str, dtype: DType
) -> None:
    family: Family = request.getfixturevalue(layout)
    out = tmp_path / ("av" if layout == "sharded_family" else "av.safetensors")
    report = run(family.base, [family.two], [out], Transforms(trim=share, over=over), dtype)
    deltas = differences(family, "two")
    values = trimmed(deltas, float(share), over) if share != "1" else deltas
    assert written(out) == stored(values, dtype)
    elements = sum(d.size for d in deltas.values())
    zeros = sum(int(np.count_nonzero(d == 0)) for d in values.values())
    assert (report.outputs[0].elements, report.outputs[0].zeros) == (elements, zeros)
    for shard in open_checkpoint(out).shards:
        assert shard.metadata["avops.transforms"] == f"trim {share} per {over}"
        assert (shard.metadata["avops.kind"], shard.metadata["format"]) == ("delta", "pt")


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("share", [".5", "0.9"])
def test_dare(family: Family, tmp_path: Path, share: str, dtype: DType) -> None:
    out = tmp_path / "av.safetensors"
    run(family.base, [family.two], [out], Transforms(dare=share, seed=7), dtype)
    values = dropped(differences(family, "two"), float(share), 7)
    assert written(out) == stored(values, dtype)
    zeros = sum(int(np.count_nonzero(d == 0)) for d in values.values())
    # 1,911 draws: five standard deviations of at most half an element each.
    assert abs(zeros - float(share) * 1911) < 5 * 0.5 * np.sqrt(1911)


@pytest.mark.parametrize("layout", ["family", "sharded_family"])
@pytest.mark.parametrize(
    ("trim", "over", "dare"),
    [(None, "tensor", None), ("0.3", "tensor", None), ("0.3", "vector", "0.5")],
)
def test_sign_election(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    layout: str,
    trim: str | None,
    over: str,
    dare: str | None,
) -> None:
    """Trim, then elect, then drop; each vector has an output, and a seed, of its own."""
    family: Family = request.getfixturevalue(layout)
    suffix = "" if layout == "sharded_family" else ".safetensors"
    outs = [tmp_path / f"av-{name}{suffix}" for name in ("one", "a-longer-name")]
    transforms = Transforms(trim=trim, over=over, sign_elect=True, dare=dare, seed=4)
    report = run(family.base, [family.one, family.two], outs, transforms)
    vectors = [differences(family, model) for model in ("one", "two")]
    if trim:
        vectors = [trimmed(deltas, float(trim), over) for deltas in vectors]
    vectors = elected(vectors)
    if dare:
        vectors = [dropped(deltas, float(dare), 4 + k) for k, deltas in enumerate(vectors)]
    for number, (out, values) in enumerate(zip(outs, vectors, strict=True)):
        assert written(out) == stored(values, F32)
        metadata = open_checkpoint(out).shards[0].metadata
        steps = [
            *([f"trim {trim} per {over}"] if trim else []),
            "sign-elect among 2",
            *([f"dare {dare} seed {4 + number}"] if dare else []),
        ]
        assert metadata["avops.transforms"] == ", ".join(steps)
        assert report.outputs[number].transforms == ", ".join(steps)
        one, two = metadata["avops.elected_fingerprints"].split()
        assert metadata["avops.aligned_fingerprint"] == (one, two)[number]


def test_election_when_headers_differ_in_size(save: Save, tmp_path: Path) -> None:
    """One header ends just before a multiple of 4,096 bytes, the other after: both are padded."""
    rng = np.random.default_rng(0)
    long, padded = "n" * 120, 0
    for count in range(50, 62):
        models = {
            model: {f"t{n}": rng.standard_normal(3).astype(np.float32) for n in range(count)}
            for model in ("base", "one", long)
        }
        paths = [save(f"{name}.safetensors", tensors) for name, tensors in models.items()]
        outs = [tmp_path / f"out{k}.safetensors" for k in range(2)]
        run(paths[0], paths[1:], outs, Transforms(sign_elect=True))
        base, *aligned = models.values()
        deltas = [{n: values - base[n] for n, values in model.items()} for model in aligned]
        for out, values in zip(outs, elected(deltas), strict=True):
            assert written(out) == stored(values, F32)
        prefixes = [open_checkpoint(out).shards[0].prefix for out in outs]
        assert len(prefixes[0]) == len(prefixes[1])
        padded += any(len(p) - len(p.rstrip(b" ")) >= 4096 for p in prefixes)
    assert padded, "no header has come to a border: choose other counts"


def test_election_among_adapters(family: Family, tmp_path: Path) -> None:
    """What a vector does not change counts as 0; every output has the tensors of all."""
    adapters = [
        family_adapter(tmp_path / "a", whole=True),
        family_adapter(tmp_path / "b", seed=1, whole=False),
    ]
    embedding = open_vector("x", adapters[0])
    outs = [tmp_path / f"{k}.safetensors" for k in range(3)]
    run(family.base, [*adapters, family.two], outs, Transforms(sign_elect=True))
    vectors = []
    for path in adapters:
        vector = open_vector("x", path)
        deltas = {name: np.zeros(family.wide("base", name).size, np.float32) for name in FLOATING}
        for name, part in vector.parts.items():
            if isinstance(part, LowRank):
                deltas[name] = delta(vector, part).reshape(-1)
            else:
                aligned = wide(vector, part.tensor)
                deltas[name] = (aligned - family.wide("base", name)).reshape(-1)
        vectors.append(deltas)
    assert set(embedding.parts) == {"model.embed.weight", "model.router.weight"}
    for out, values in zip(outs, elected([*vectors, differences(family, "two")]), strict=True):
        assert written(out) == stored(values, F32)


def test_a_partial_vector_stays_partial(family: Family, tmp_path: Path) -> None:
    adapter, out = family_adapter(tmp_path / "a"), tmp_path / "av.safetensors"
    run(family.base, [adapter], [out], Transforms(trim="0.5"))
    vector = open_vector("x", out)
    assert (vector.kind, vector.partial, len(vector.parts)) == ("delta", True, 2)
    check_vector(open_checkpoint(family.base), vector)


def test_of_a_delta_file(family: Family, tmp_path: Path) -> None:
    """A delta that is there already is transformed further, and its record says all of it."""
    plain, two, once = (tmp_path / f"{name}.safetensors" for name in ("plain", "two-steps", "once"))
    extract(plan_extract(str(family.base), str(family.two), plain))
    run(family.base, [plain], [tmp_path / "trimmed.safetensors"], Transforms(trim="0.4"))
    run(family.base, [tmp_path / "trimmed.safetensors"], [two], Transforms(dare="0.5", seed=2))
    run(family.base, [family.two], [once], Transforms(trim="0.4", dare="0.5", seed=2))
    assert written(two) == written(once)
    records = [open_checkpoint(path).shards[0].metadata for path in (two, once)]
    for key in ("avops.transforms", "avops.aligned", "avops.aligned_fingerprint"):
        assert records[0][key] == records[1][key]
    assert records[0]["avops.transforms"] == "trim 0.4 per tensor, dare 0.5 seed 2"
    assert records[0]["avops.delta"] == "trimmed.safetensors"


@pytest.mark.parametrize("threads", [1, 3])
def test_bits_do_not_depend_on_windows_threads_or_shards(
    sharded_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    family = sharded_family
    transforms = Transforms(trim="0.3", over="vector", sign_elect=True, dare="0.5")
    aligned = [family.one, family.two]
    whole = [tmp_path / f"whole{k}" for k in range(2)]
    run(family.base, aligned, whole, transforms)
    for module in (windows, transform_run):
        monkeypatch.setattr(module, "BLOCK", 13)
    monkeypatch.setattr(transform_select, "_BLOCK", 101)
    small = [tmp_path / f"small{k}.safetensors" for k in range(2)]
    run(family.base, aligned, small, transforms, threads=threads)
    for one, other in zip(whole, small, strict=True):
        assert written(one) == written(other)


def test_a_directory_has_a_recipe_with_digests(sharded_family: Family, tmp_path: Path) -> None:
    from avops.disk.digest import file_digest

    outs = [tmp_path / "av-one", tmp_path / "av-two"]
    aligned = [sharded_family.one, sharded_family.two]
    run(sharded_family.base, aligned, outs, Transforms(sign_elect=True))
    for out in outs:
        record = json.loads((out / RECIPE_NAME).read_text())
        assert sorted({*record["files"], RECIPE_NAME}) == sorted(os.listdir(out))
        assert record["avops.transforms"] == "sign-elect among 2"
        for name, facts in record["files"].items():
            assert facts["xxh3"] == file_digest(out / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trim": "0"}, "--trim: the share kept is '0', expected more than 0 and at most 1"),
        ({"trim": "1.01"}, "--trim: the share kept is '1.01', expected more than 0"),
        ({"trim": "-.2"}, "--trim: the share kept is '-.2', expected more than 0"),
        ({"trim": "20%"}, "--trim: the share kept is '20%', expected a finite decimal number"),
        ({"over": "all"}, "--trim-over: 'all', expected tensor or vector"),
        ({"dare": "0"}, "--dare: the share dropped is '0', expected more than 0 and less than 1"),
        ({"dare": "1"}, "--dare: the share dropped is '1', expected more than 0 and less than 1"),
        ({"dare": "1e-12"}, "--dare: the share dropped is '1e-12', expected more than 0"),
        ({"dare": "nan"}, "--dare: the share dropped is 'nan', expected a finite decimal number"),
        ({"seed": -1}, "--seed: -1, expected 0 to"),
        ({"rank": 0}, "--rank: 0, expected 1 to 65536"),
    ],
)
def test_values_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Transforms(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def plan(family: Family, models: Sequence[Path], outs: Sequence[Path], **options: object) -> None:
    transforms = Transforms(**options)  # type: ignore[arg-type]
    plan_transform(Extraction(str(family.base), tuple(map(str, models)), tuple(outs), transforms))


def test_refusals(family: Family, tmp_path: Path) -> None:
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    with pytest.raises(UserError, match="alone, expected two or more ALIGNED: signs are elected"):
        plan(family, [family.one], [one], sign_elect=True)
    with pytest.raises(UserError, match="2 ALIGNED .* without --sign-elect, expected one"):
        plan(family, [family.one, family.two], [one, two], trim="0.2")
    with pytest.raises(OutputError, match=r"1\.safetensors: the output of two inputs, expected"):
        plan(family, [family.one, family.two], [one, one], sign_elect=True)
    with pytest.raises(OutputError, match="files and directories, expected one kind for all"):
        plan(family, [family.one, family.two], [one, tmp_path / "2"], sign_elect=True)
    with pytest.raises(RecipeError, match="the same file or directory as one, expected each"):
        plan(family, [family.one, family.one], [one, two], sign_elect=True)
    with pytest.raises(
        OutputError, match="is or holds the input .*one.safetensors, which is never"
    ):
        plan(family, [family.one], [family.one], trim="0.2")
    two.write_bytes(b"")
    with pytest.raises(OutputError, match=r"2\.safetensors: already exists; choose another -o"):
        plan(family, [family.one, family.two], [one, two], sign_elect=True)
    assert not one.exists()


@pytest.mark.parametrize("options", [{"trim": "0.001"}, {"dare": "0.999"}, {"sign_elect": True}])
def test_values_that_are_not_finite(save: Save, tmp_path: Path, options: dict[str, object]) -> None:
    """Refused even where a transform would have dropped them; nothing is left behind."""
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal(5000).astype(np.float32)}
    bad = {"w": base["w"] + 1}
    bad["w"][17] = np.nan
    paths = [save(f"{n}.safetensors", t) for n, t in (("base", base), ("bad", bad))]
    paths.append(save("good.safetensors", {"w": base["w"] + 2}))
    aligned = paths[1:] if "sign_elect" in options else paths[1:2]
    outs = [tmp_path / f"out{k}.safetensors" for k in range(len(aligned))]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(NonFiniteError, match=r"'w' would hold 1 values .* already in AV bad"):
        run(paths[0], aligned, outs, Transforms(**options))  # type: ignore[arg-type]
    assert sorted(os.listdir(tmp_path)) == before


def test_overflow_by_rescaling(save: Save, tmp_path: Path) -> None:
    base = save("base.safetensors", {"w": np.zeros(100, np.float32)})
    aligned = save("a.safetensors", {"w": np.full(100, 3e38, np.float32)})
    with pytest.raises(NonFiniteError, match="by overflow of F32; nothing was written"):
        run(base, [aligned], [tmp_path / "out.safetensors"], Transforms(dare="0.5"))


def test_an_input_that_changes_meanwhile(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = transform_read.Reader.read

    def touching(self: object, *args: object) -> object:
        os.utime(family.two)
        return read(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(transform_read.Reader, "read", touching)
    with pytest.raises(CheckpointError, match=r"two\.safetensors: changed while it was in use"):
        run(family.base, [family.two], [tmp_path / "out.safetensors"], Transforms(trim="0.5"))
    assert not (tmp_path / "out.safetensors").exists()


def test_the_second_output_fails(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are flushed before the first is placed; what is in place is named."""
    from avops.disk import Staging
    from avops.errors import WriteError

    commit = Staging.commit
    outs = [tmp_path / f"out{k}.safetensors" for k in range(2)]

    def failing(self: Staging) -> None:
        if self.target == outs[1]:
            raise WriteError("no")
        commit(self)

    monkeypatch.setattr(Staging, "commit", failing)
    with pytest.raises(WriteError, match=r"no; in place already: .*out0\.safetensors"):
        run(family.base, [family.one, family.two], outs, Transforms(sign_elect=True))
    assert [out.exists() for out in outs] == [True, False]
    assert not list(tmp_path.glob(".*"))


def test_progress_ends_at_its_total(family: Family, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    extraction = Extraction(
        str(family.base),
        (str(family.two),),
        (tmp_path / "o.safetensors",),
        Transforms(trim="0.3"),
    )
    transform(plan_transform(extraction), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
