"""Awkward but legal checkpoints, merged end to end, against the contract spelled out in numpy."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from avops.disk import open_checkpoint
from avops.dtypes import F32
from avops.errors import MismatchError
from avops.recipe import Recipe, Source, Term, parse_lam
from avops.stream import MergeOptions, MergeReport, extract, merge, plan_extract, plan_merge
from bits import bf16, from_bf16
from families import Family

Tensors = dict[str, np.ndarray]
Spec = Mapping[str, tuple[tuple[int, ...], str]]

INDEX = "model.safetensors.index.json"
TAGS = {"uint16": "BF16", "float16": "F16", "float32": "F32", "int64": "I64", "bool": "BOOL"}
TERMS = [("one", "-.7"), ("two", "1.3")]

LAYER = {
    "model.layers.0.mlp.weight": ((7, 13), "bf16"),
    "model.layers.0.norm.weight": ((13,), "bf16"),
}
TIED: Spec = {"model.embed_tokens.weight": ((11, 13), "bf16"), **LAYER}
NAMES = (
    "é", "e\u0301", "日本.weight", "\U0001f600", "", " ", "a/b\\c", "\x00", "\n", '"', "{}",
    "\x1b[31m", "__metadata", "../up", "[bold]", "n" * 4000,
)  # fmt: skip
SPECS: dict[str, Spec] = {
    "tied embeddings": TIED,
    "a separate head": {**TIED, "lm_head.weight": ((11, 13), "bf16")},
    "f32 router": {**LAYER, "model.layers.0.router.weight": ((5, 3), "f32")},
    "every width": {
        "a": ((3,), "f16"),
        "b": ((5,), "f32"),
        "c": ((7,), "bf16"),
        "d": ((1,), "f16"),
    },
    "scalars and empty tensors": {
        "scale": ((), "bf16"),
        "scale.f32": ((), "f32"),
        "empty": ((0,), "bf16"),
        "empty.matrix": ((4, 0, 3), "f32"),
        "empty.huge": ((0, 1 << 62), "f16"),
        "one": ((1, 1, 1), "f16"),
    },
    "names in UTF-8": dict.fromkeys(NAMES, ((2, 3), "bf16")),
    "64 dimensions": {"deep": ((1,) * 62 + (2, 3), "bf16")},
}  # fmt: skip


def make(spec: Spec, seed: int) -> dict[str, Tensors]:
    """A base and two aligned models; integers and booleans are the same in all."""
    rng = np.random.default_rng(seed)
    models: dict[str, Tensors] = {"base": {}, "one": {}, "two": {}}
    stored: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "bf16": bf16,
        "f16": lambda x: x.astype(np.float16),
        "f32": np.copy,
    }
    for name, (shape, kind) in spec.items():
        size = math.prod(shape)
        start = rng.standard_normal(size)
        for model, step in (("base", 0.0), ("one", 0.02), ("two", 0.1)):
            wide = (start + step * rng.standard_normal(size)).astype(np.float32)
            # numpy has at most 64 dimensions, and no sizes of 2^62: values are flat here.
            models[model][name] = stored[kind](wide)
    for tensors in models.values():
        tensors["rotary.ids"] = np.arange(7, dtype=np.int64)
        tensors["mask"] = np.array([True, False, True])
    return models


def handmade(path: Path, spec: Spec, tensors: Tensors, *, backwards: bool, odd: bool) -> Path:
    """A file written by hand. backwards: data in the opposite order of the header. odd: the data
    starts at an odd offset."""
    entries: dict[str, dict[str, object]] = {}
    begin, data = 0, b""
    for name in reversed(tensors) if backwards else tensors:
        array = tensors[name]
        shape = list(spec[name][0]) if name in spec else list(array.shape)
        end = begin + array.nbytes
        tag = TAGS[str(array.dtype)]
        entries[name] = {"dtype": tag, "shape": shape, "data_offsets": [begin, end]}
        begin, data = end, data + array.tobytes()
    text = json.dumps({name: entries[name] for name in tensors}, ensure_ascii=False).encode()
    text += b" " * ((len(text) + odd) % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert (8 + len(text)) % 2 == odd
    return path


def sharded(path: Path, spec: Spec, tensors: Tensors, cut: int) -> Path:
    """A directory: floating tensors dealt out to ``cut`` shards, a shard of integers between."""
    files: dict[str, Tensors] = {}
    floating = [name for name in tensors if name in spec]
    for i, name in enumerate(floating):
        files.setdefault(f"model-{i % cut}.safetensors", {})[name] = tensors[name]
    files["model-0-ints.safetensors"] = {n: tensors[n] for n in tensors if n not in spec}
    for i, (file, part) in enumerate(files.items()):
        handmade(path / file, spec, part, backwards=i % 2 == 0, odd=i % 3 != 1)
    weight_map = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    (path / "config.json").write_text('{"tie_word_embeddings": true}')
    return path


def odd(path: Path, spec: Spec, tensors: Tensors) -> Path:
    return handmade(path.with_suffix(".safetensors"), spec, tensors, backwards=False, odd=True)


def backwards(path: Path, spec: Spec, tensors: Tensors) -> Path:
    return handmade(path.with_suffix(".safetensors"), spec, tensors, backwards=True, odd=False)


def two_shards(path: Path, spec: Spec, tensors: Tensors) -> Path:
    return sharded(path, spec, tensors, 2)


def three_shards(path: Path, spec: Spec, tensors: Tensors) -> Path:
    return sharded(path, spec, tensors, 3)


# How base, one and two are stored: the same tensor lies elsewhere in each.
LAYOUTS = {
    "odd offsets": (odd, odd, backwards),
    "backwards": (backwards, odd, odd),
    "shards cut differently": (three_shards, two_shards, three_shards),
    "sharded base, files": (two_shards, backwards, odd),
    "file, sharded": (odd, three_shards, two_shards),
}


def build(tmp_path: Path, spec: Spec, layout: str, seed: int = 0) -> Family:
    models = make(spec, seed)
    paths = [
        store(tmp_path / name, spec, models[name])
        for store, name in zip(LAYOUTS[layout], models, strict=True)
    ]
    return Family(*paths, models)


def term(path: Path, lam: str) -> Term:
    return Term(Source(path.stem, str(path), "auto"), parse_lam(lam, "test"), lam)


def run(base: Path, terms: list[Term], out: Path, **options: object) -> MergeReport:
    recipe = Recipe(str(base), tuple(terms))
    return merge(plan_merge(recipe, out, MergeOptions(**options)))  # type: ignore[arg-type]


def check(family: Family, spec: Spec, out: Path) -> None:
    """Every tensor of the base, at its place in its file, with the contract's bytes."""
    merged, base = open_checkpoint(out), open_checkpoint(family.base)
    assert list(merged.tensors.items()) == list(base.tensors.items())
    assert [shard.prefix for shard in merged.shards] == [shard.prefix for shard in base.shards]
    assert base.tensors.keys() == family.tensors["base"].keys()
    for name, tensor in merged.tensors.items():
        raw = merged.shards[tensor.shard].path.read_bytes()
        found = raw[tensor.offset : tensor.offset + tensor.nbytes]
        if name in spec:
            expected = family.expected(name, [(model, float(lam)) for model, lam in TERMS])
        else:
            expected = family.tensors["base"][name]
        assert found == expected.tobytes(), name


def out_path(tmp_path: Path, base: Path) -> Path:
    return tmp_path / ("out.safetensors" if base.is_file() else "out")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPECS)
def test_merge_is_the_contract(tmp_path: Path, name: str, layout: str) -> None:
    spec = SPECS[name]
    family = build(tmp_path, spec, layout)
    out = out_path(tmp_path, family.base)
    run(family.base, [term(getattr(family, av), lam) for av, lam in TERMS], out)
    check(family, spec, out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_small_windows(tmp_path: Path, layout: str, small_windows: int) -> None:
    """Elements lie across the ends of windows, at odd offsets."""
    spec = SPECS["every width"] | SPECS["a separate head"]
    family = build(tmp_path, spec, layout, seed=1)
    out = out_path(tmp_path, family.base)
    run(family.base, [term(getattr(family, av), lam) for av, lam in TERMS], out)
    check(family, spec, out)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPECS)
def test_extracted_vectors_give_the_same(tmp_path: Path, name: str, layout: str) -> None:
    spec = SPECS[name]
    family = build(tmp_path, spec, layout)
    deltas = {"one": tmp_path / "d-one.safetensors", "two": tmp_path / "d-two"}
    for av, delta in deltas.items():
        extract(plan_extract(str(family.base), str(getattr(family, av)), delta))
    out = out_path(tmp_path, family.base)
    run(family.base, [term(deltas[av], lam) for av, lam in TERMS], out)
    check(family, spec, out)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_to_add_copies_the_files(tmp_path: Path, layout: str) -> None:
    spec = SPECS["every width"] | SPECS["scalars and empty tensors"]
    family = build(tmp_path, spec, layout)
    out = out_path(tmp_path, family.base)
    run(family.base, [term(family.one, "0")], out)
    for shard in open_checkpoint(family.base).shards:
        copy = out if out.is_file() else out / shard.path.name
        assert copy.read_bytes() == shard.path.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_dtype(tmp_path: Path, layout: str) -> None:
    spec = SPECS["every width"] | SPECS["scalars and empty tensors"]
    family = build(tmp_path, spec, layout)
    out = out_path(tmp_path, family.base)
    run(family.base, [term(family.one, "1")], out, dtype=F32)
    merged = open_checkpoint(out)
    for name, tensor in merged.tensors.items():
        raw = merged.shards[tensor.shard].path.read_bytes()
        found = raw[tensor.offset : tensor.offset + tensor.nbytes]
        base = family.tensors["base"][name]
        if name not in spec:
            assert found == base.tobytes()
            continue
        wide = family.wide("base", name)
        expected = wide + np.float32(1) * (family.wide("one", name) - wide)
        assert (tensor.dtype.tag, tensor.shape) == ("F32", spec[name][0])
        assert found == expected.astype(np.float32).tobytes(), name


def test_a_head_beside_tied_embeddings(tmp_path: Path) -> None:
    """The aligned model was saved with its head, the base without."""
    family = build(tmp_path, TIED, "odd offsets")
    untied = {**family.tensors["one"], "lm_head.weight": family.tensors["one"][next(iter(TIED))]}
    spec = {**TIED, "lm_head.weight": ((11, 13), "bf16")}
    one = odd(tmp_path / "untied", spec, untied)
    terms = [term(one, TERMS[0][1]), term(family.two, TERMS[1][1])]
    out = tmp_path / "out.safetensors"
    with pytest.raises(MismatchError, match=r"has 1 tensors that are not in the base .*'lm_head"):
        run(family.base, terms, out)
    run(family.base, terms, out, allow_extra=True)
    check(family, TIED, out)


def test_a_model_of_integers(tmp_path: Path) -> None:
    family = build(tmp_path, {}, "odd offsets")
    out = tmp_path / "out.safetensors"
    run(family.base, [term(family.one, "1")], out)
    assert out.read_bytes() == family.base.read_bytes()


def test_a_model_of_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    path.write_bytes(struct.pack("<Q", 3) + b"{ }")
    out = tmp_path / "out.safetensors"
    run(path, [], out)
    assert out.read_bytes() == path.read_bytes()


def test_the_truth_differs_from_the_base() -> None:
    """Else a merge that only copies would pass."""
    for spec in SPECS.values():
        family = Family(Path(), Path(), Path(), make(spec, 0))
        names = [name for name in spec if family.tensors["base"][name].size]
        terms = [(model, float(lam)) for model, lam in TERMS]
        changed = [family.expected(n, terms).tobytes() != family.tensors["base"][n].tobytes()
                   for n in names]  # fmt: skip
        assert all(changed)
    assert from_bf16(bf16(np.float32([1])))[0] == 1
