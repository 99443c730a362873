"""λ per tensor, several outputs in one read, shared vocabularies, configs: against numpy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avops.disk import RECIPE_NAME, open_checkpoint
from avops.disk.source import Source as File
from avops.dtypes import F16
from avops.errors import MismatchError, OutputError, RecipeError
from avops.recipe import Recipe, Source, Term, apply_rules, parse_lam, parse_skip, parse_where
from avops.stream import MergeOptions, merge, pipeline, plan_merge, plan_merges
from bits import bf16
from families import Family, Save


def term(path: Path, lam: str) -> Term:
    return Term(Source(path.stem, str(path)), parse_lam(lam, "test"), lam)


def tensor_bytes(path: Path, name: str) -> bytes:
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensors[name]
    raw = checkpoint.shards[tensor.shard].path.read_bytes()
    return raw[tensor.offset : tensor.offset + tensor.nbytes]


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# ---- λ per tensor


def test_where_and_skip_change_lam_by_name(family: Family, tmp_path: Path) -> None:
    rules = [parse_where("model.layers.0-0.*=0.5"), parse_where("two:*router*=-2")]
    rules.append((None, parse_skip("*scale")))
    terms = apply_rules((term(family.one, "-1"), term(family.two, ".3")), rules)
    out = tmp_path / "out.safetensors"
    merge(plan_merge(Recipe(str(family.base), terms), out))
    lams = {
        "model.embed.weight": (-1, "0.3"),
        "model.layers.0.w": ("-0.5", "0.15"),
        "model.layers.1.w": (-1, "0.3"),
        "model.router.weight": (-1, "-0.6"),
    }
    for name, (one, two) in lams.items():
        expected = family.expected(name, [("one", float(one)), ("two", float(np.float32(two)))])
        assert tensor_bytes(out, name) == expected.tobytes(), name
    assert tensor_bytes(out, "model.scale") == family.tensors["base"]["model.scale"].tobytes()
    recorded = json.loads((tmp_path / f"out.{RECIPE_NAME}").read_text())["terms"]
    skip = {"pattern": "*scale", "factor": "0"}
    assert recorded[0]["rules"] == [{"pattern": "model.layers.0-0.*", "factor": "0.5"}, skip]
    assert recorded[1]["rules"][1] == {"pattern": "*router*", "factor": "-2"}


def test_a_rule_that_matches_nothing_is_an_error(family: Family, tmp_path: Path) -> None:
    terms = apply_rules((term(family.one, "1"),), [parse_where("model.layer.0.*=0.5")])
    with pytest.raises(RecipeError, match=r"model.layer.0.\*=0.5: the pattern matches none of the"):
        plan_merge(Recipe(str(family.base), terms), tmp_path / "out.safetensors")


def test_a_rule_on_integers_is_an_error(save: Save, tmp_path: Path) -> None:
    """Nothing is added to them, so the rule would do nothing."""
    tensors = {"w": np.ones(3, np.float32), "ids": np.arange(3)}
    base, one = save("base.safetensors", tensors), save("one.safetensors", tensors)
    terms = apply_rules((term(one, "1"),), [parse_where("ids=0.5")])
    with pytest.raises(RecipeError, match=r"ids=0.5: the pattern matches none of the 1 floating"):
        plan_merge(Recipe(str(base), terms), tmp_path / "out.safetensors")


def test_a_tensor_skipped_by_all_is_copied(family: Family, tmp_path: Path) -> None:
    """Copied, not computed: a NaN in it stays as it is, and is no error."""
    terms = apply_rules((term(family.one, "1"),), [(None, parse_skip("model.layers.0.w"))])
    plan = plan_merge(Recipe(str(family.base), terms), tmp_path / "out.safetensors")
    assert "model.layers.0.w" in plan.copied
    assert "model.layers.1.w" in plan.changed


# ---- several outputs in one read


@pytest.mark.parametrize("kind", ["files", "shards"])
@pytest.mark.parametrize("dtype", [None, F16])
def test_outputs_of_one_read_equal_single_merges(
    family: Family,
    sharded_family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    dtype: object,
) -> None:
    """Also at λ = 0, where a term is dropped, for weights, recipes and cards alike."""
    source = sharded_family if kind == "shards" else family
    options = MergeOptions(dtype=dtype)  # type: ignore[arg-type]
    recipes = [
        Recipe(str(source.base), (term(source.one, one), term(source.two, two)))
        for one in ("-1", "0")
        for two in ("0", ".5")
    ]
    suffix = "/model" if kind == "shards" else "/model.safetensors"
    read: list[int] = []
    real = File.read

    def counting(self: File, memory: memoryview, at: int, offset: int, nbytes: int) -> None:
        read.append(nbytes)
        real(self, memory, at, offset, nbytes)

    outs = [Path(f"{tmp_path}/many{i}{suffix}") for i in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(File, "read", counting)
        patch.setattr(pipeline, "serves", lambda plan, block: False)
        report = merge(plan_merges(list(zip(recipes, outs, strict=True)), options))
    assert sum(read) == report.bytes_read
    for i, recipe in enumerate(recipes):
        merge(plan_merge(recipe, Path(f"{tmp_path}/single{i}{suffix}"), options))
        ours, theirs = Path(f"{tmp_path}/many{i}"), Path(f"{tmp_path}/single{i}")
        if kind == "shards":
            ours, theirs = ours / "model", theirs / "model"
        assert files_of(ours) == files_of(theirs)
        assert report.outputs[i].target == outs[i]
    assert (report.outputs[2].measured["elements"] == 0) == (dtype is None)


def test_all_or_nothing(family: Family, tmp_path: Path) -> None:
    """One output that exists stops all of them before a byte is written."""
    outs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    outs[1].write_bytes(b"mine")
    wanted = [
        (Recipe(str(family.base), (term(family.one, lam),)), out)
        for lam, out in zip(("1", "2"), outs, strict=True)
    ]
    with pytest.raises(OutputError, match=r"b.safetensors: already exists"):
        plan_merges(wanted)
    assert not outs[0].exists()


def test_recipes_of_one_merge_differ_in_lam_only(family: Family, tmp_path: Path) -> None:
    one = Recipe(str(family.base), (term(family.one, "1"),))
    two = Recipe(str(family.base), (term(family.two, "1"),))
    with pytest.raises(ValueError, match="one base and the same AVs"):
        plan_merges([(one, tmp_path / "a.safetensors"), (two, tmp_path / "b.safetensors")])
    three = dataclasses.replace(one, terms=(term(family.one, "2"),))
    with pytest.raises(OutputError, match="expected one kind for all"):
        plan_merges([(one, tmp_path / "a.safetensors"), (three, tmp_path / "b")])


# ---- vocabularies of different sizes


Vocab = Callable[[str, int, dict[str, int]], Path]


@pytest.fixture
def model(save: Save) -> Vocab:
    """model(name, rows, vocabulary): a directory with an embedding, a head and a tokenizer."""

    def make(name: str, rows: int, vocabulary: dict[str, int]) -> Path:
        rng = np.random.default_rng(rows)
        tensors = {
            "model.embed_tokens.weight": bf16(rng.standard_normal((rows, 8)).astype(np.float32)),
            "model.w": bf16(rng.standard_normal((4, 8)).astype(np.float32)),
            "lm_head.weight": bf16(rng.standard_normal((rows, 8)).astype(np.float32)),
        }
        path = save(f"{name}/model.safetensors", tensors)
        tokenizer = {"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": []}
        (path.parent / "tokenizer.json").write_text(json.dumps(tokenizer))
        (path.parent / "config.json").write_text(json.dumps({"vocab_size": rows}))
        return path.parent

    return make


def vocabulary(count: int) -> dict[str, int]:
    return {f"t{i}": i for i in range(count)}


@pytest.mark.parametrize(("rows", "theirs"), [(10, 12), (12, 10)])
def test_shared_rows_are_merged(model: Vocab, tmp_path: Path, rows: int, theirs: int) -> None:
    base, aligned = model("base", rows, vocabulary(9)), model("aligned", theirs, vocabulary(10))
    recipe = Recipe(str(base), (term(aligned, "1"),))
    with pytest.raises(MismatchError, match=r"--vocab base"):
        plan_merge(recipe, tmp_path / "out")
    merge(plan_merge(recipe, tmp_path / "out", MergeOptions(vocab="base")))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shared = min(rows, theirs) * 16
        merged = tensor_bytes(tmp_path / "out", name)
        assert merged[:shared] == tensor_bytes(aligned, name)[:shared]
        assert merged[shared:] == tensor_bytes(base, name)[shared:]
    record = json.loads((tmp_path / "out" / RECIPE_NAME).read_text())
    assert record["vocab"] == "base"


def test_two_vectors_with_vocabularies_of_their_own(model: Vocab, tmp_path: Path) -> None:
    base = model("base", 12, vocabulary(8))
    one, two = model("one", 10, vocabulary(8)), model("two", 8, vocabulary(8))
    recipe = Recipe(str(base), (term(one, "1"), term(two, "0")))
    both = Recipe(str(base), (term(one, "1"), term(two, ".5")))
    for name, wanted in (("zero", recipe), ("both", both)):
        merge(plan_merge(wanted, tmp_path / name, MergeOptions(vocab="base")))
    name = "lm_head.weight"
    zero, merged = (tensor_bytes(tmp_path / x, name) for x in ("zero", "both"))
    assert merged[8 * 16 :] == zero[8 * 16 :]
    assert merged[: 8 * 16] != zero[: 8 * 16]
    assert zero[: 10 * 16] == tensor_bytes(one, name)


def test_other_tokens_are_refused(model: Vocab, tmp_path: Path) -> None:
    base = model("base", 10, vocabulary(10))
    aligned = model("aligned", 12, {**vocabulary(12), "t3": 4, "t4": 3})
    plan = Recipe(str(base), (term(aligned, "1"),))
    with pytest.raises(MismatchError, match="'t3'"):
        plan_merge(plan, tmp_path / "out", MergeOptions(vocab="base"))


def test_tokens_beyond_the_shared_rows_may_differ(model: Vocab, tmp_path: Path) -> None:
    base = model("base", 12, vocabulary(12))
    aligned = model("aligned", 10, {**vocabulary(10), "other": 10})
    plan = Recipe(str(base), (term(aligned, "1"),))
    plan_merge(plan, tmp_path / "out", MergeOptions(vocab="base"))


def test_rows_that_are_no_tokens_are_refused(model: Vocab, save: Save, tmp_path: Path) -> None:
    base = model("base", 10, vocabulary(10))
    aligned = model("aligned", 10, vocabulary(10))
    tensors = {
        name: np.frombuffer(tensor_bytes(aligned, name), np.uint16).reshape(-1, 8)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    save("aligned/model.safetensors", {**tensors, "model.w": np.zeros((6, 8), np.uint16)})
    recipe = Recipe(str(base), (term(aligned, "1"),))
    for size in (10, 3):  # more rows than tokens are no tokens, either
        (base / "config.json").write_text(json.dumps({"vocab_size": size}))
        with pytest.raises(MismatchError, match=r"'model.w' has shape \[6, 8\].*rows are no tok"):
            plan_merge(recipe, tmp_path / "out", MergeOptions(vocab="base"))
