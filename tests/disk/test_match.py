"""Do vectors fit the base? Adapters, ties, carried weights and vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters import save_by_hand
from avops.disk import (
    check_distinct,
    check_vector,
    open_base,
    open_checkpoint,
    open_vector,
    vector_notes,
)
from avops.errors import MismatchError, RecipeError
from bits import bf16

Save = Callable[..., Path]
P = "base_model.model."
RNG = np.random.default_rng(0)
BASE = {
    "model.embed_tokens.weight": RNG.standard_normal((9, 4)).astype(np.float32),
    "model.l.0.q.weight": RNG.standard_normal((6, 4)).astype(np.float32),
    "model.l.0.q.bias": RNG.standard_normal(6).astype(np.float32),
    "model.ids": np.arange(3),
}


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def lora(module: str, m: int, n: int, rank: int = 2) -> dict[str, np.ndarray]:
    name = f"{P}{module}.lora_"
    return {f"{name}A.weight": ones(rank, n), f"{name}B.weight": ones(m, rank)}


def embedding(module: str, rows: int, columns: int) -> dict[str, np.ndarray]:
    name = f"{P}{module}.lora_embedding_"
    return {f"{name}A": ones(2, rows), f"{name}B": ones(columns, 2)}


def check(save: Save, directory: Path, tensors: dict[str, np.ndarray], **flags: bool) -> None:
    base = open_base(save("base.safetensors", BASE))
    config = {"base_model_name_or_path": "some/model"}
    check_vector(base, open_vector("x", save_by_hand(directory, tensors, config)), **flags)


def test_an_adapter_touches_few_tensors(save: Save, tmp_path: Path) -> None:
    check(save, tmp_path / "a", {**lora("model.l.0.q", 6, 4), f"{P}model.l.0.q.bias": ones(6)})


REFUSED: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "shape": (
        lora("model.l.0.q", 6, 5),
        (
            r"AV x \(.*\): module 'model.l.0.q': B@A of B '.*lora_B.weight' \[6, 2\] and A "
            r"'.*lora_A.weight' \[2, 5\] has shape \[6, 5\], but in the base .*base.safetensors "
            r"'model.l.0.q.weight' has \[6, 4\]; it belongs to another architecture"
        ),
    ),
    "transpose": (
        lora("model.l.0.q", 4, 6),
        r"has shape \[4, 6\].*it is the transpose: fan_in_fan_out in adapter_config.json is wrong",
    ),
    "rows": (
        embedding("model.embed_tokens", 11, 4),
        r"has shape \[11, 4\].*another vocabulary: .*--vocab base",
    ),
    "whole shape": (
        {f"{P}model.l.0.q.weight": ones(6, 5)},
        r"tensor 'model.l.0.q.weight' has shape \[6, 5\], but in the base .* it has \[6, 4\]",
    ),
    "whole kind": (
        {f"{P}model.l.0.q.bias": np.arange(6)},
        r"tensor 'model.l.0.q.bias' is I64 \[6\], but in the base .* it is F32 \[6\]",
    ),
    "not there": (
        {**lora("model.l.0.k", 6, 4), **lora("model.l.1.k", 6, 4)},
        (
            r"AV x \(.*\): the adapter changes 'model.l.0.k', but the base .* has no tensor "
            r"'model.l.0.k.weight' \(nearest name: 'model.l.0.q.weight'\), nor 1 others; is it the "
            "base that the adapter was trained on, some/model.*--allow-extra ignores"
        ),
    ),
    "whole not there": (
        {f"{P}score.weight": ones(2, 4)},
        "the adapter replaces 'score', but the base .* has no tensor 'score.weight'",
    ),
    "tied head": (
        lora("lm_head", 9, 4),
        (
            r"changes 'lm_head', but .* has no tensor 'lm_head.weight': it ties it to "
            r"'model.embed_tokens.weight', and one stored tensor cannot move two ways"
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_do_not_fit(save: Save, tmp_path: Path, case: str) -> None:
    tensors, message = REFUSED[case]
    with pytest.raises(MismatchError, match=message):
        check(save, tmp_path / "a", tensors)


def test_tied_the_other_way_round(save: Save, tmp_path: Path) -> None:
    base = open_base(save("head.safetensors", {"lm_head.weight": ones(9, 4)}))
    vector = open_vector("x", save_by_hand(tmp_path / "a", embedding("model.embed_tokens", 9, 4)))
    with pytest.raises(MismatchError, match="it ties it to 'lm_head.weight', and one stored"):
        check_vector(base, vector)
    check_vector(base, vector, allow_extra=True)


def test_what_the_base_lacks_may_be_ignored(save: Save, tmp_path: Path) -> None:
    check(save, tmp_path / "a", {**lora("lm_head", 9, 4), **lora("more", 1, 1)}, allow_extra=True)


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_saved_twice(save: Save, tmp_path: Path, same: bool) -> None:
    """PEFT saves a trained tied tensor under both names: one value, if they were kept tied."""
    trained = RNG.standard_normal((9, 4)).astype(np.float32)
    head = trained if same else trained + 1
    tensors = {f"{P}model.embed_tokens.weight": trained, f"{P}lm_head.weight": head}
    if same:
        check(save, tmp_path / "a", tensors)
    else:
        with pytest.raises(MismatchError, match="replaces 'lm_head'.*it ties it to"):
            check(save, tmp_path / "a", tensors)


@pytest.mark.parametrize("rows", [8, 10])
def test_a_tied_head_of_another_size(save: Save, tmp_path: Path, rows: int) -> None:
    """Equal as far as they go is not equal."""
    trained = np.zeros((9, 4), np.float32)
    head = np.zeros((rows, 4), np.float32)
    tensors = {f"{P}model.embed_tokens.weight": trained, f"{P}lm_head.weight": head}
    with pytest.raises(MismatchError, match="replaces 'lm_head'.*it ties it to"):
        check(save, tmp_path / "a", tensors)


def test_a_tied_tensor_moves_both_ways(save: Save, tmp_path: Path) -> None:
    base = open_base(save("base.safetensors", BASE))
    vector = open_vector("x", save_by_hand(tmp_path / "a", embedding("model.embed_tokens", 9, 4)))
    (note,) = vector_notes(base, vector)
    assert "AV x changes 'model.embed_tokens.weight', which the base uses for embedding" in note
    both = open_base(save("both.safetensors", {**BASE, "lm_head.weight": ones(9, 4)}))
    assert vector_notes(both, vector) == ()
    other = open_vector("x", save_by_hand(tmp_path / "b", lora("model.l.0.q", 6, 4)))
    assert vector_notes(base, other) == ()


CARRIED = "model.embed_tokens.base_layer.weight"


@pytest.mark.parametrize("stored", ["f32", "bf16"])
def test_a_carried_base_weight_must_be_the_bases(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """Values count, not dtypes; every element is compared, in pieces of any size."""
    monkeypatch.setattr("avops.disk.adapter_fit._CHUNK", 7)
    weight = (RNG.standard_normal((9, 4)) * 8).round().astype(np.float32)
    base = open_base(save("b.safetensors", {"model.embed_tokens.weight": weight}))
    for place in (None, 0, 6, 7, 35):
        theirs = weight.copy()
        if place is not None:
            theirs.flat[place] += 1
        carried = {P + CARRIED: bf16(theirs) if stored == "bf16" else theirs}
        directory = save_by_hand(
            tmp_path / str(place), {**embedding("model.embed_tokens", 9, 4), **carried}
        )
        vector = open_vector("x", directory)
        if place is None:
            check_vector(base, vector)
            continue
        with pytest.raises(MismatchError, match="that it was trained on, but in the base .* other"):
            check_vector(base, vector)


def test_carried_weights_of_another_size_or_name(save: Save, tmp_path: Path) -> None:
    # The first rows are the base's, and yet the adapter was trained on more of them.
    more = np.concatenate([BASE["model.embed_tokens.weight"], ones(2, 4)])
    resized = {**embedding("model.embed_tokens", 9, 4), P + CARRIED: more}
    with pytest.raises(MismatchError, match=r"stores '.*base_layer.weight', the F32 \[11, 4\]"):
        check(save, tmp_path / "a", resized)
    far = {**lora("model.l.0.q", 6, 4), f"{P}more.base_layer.weight": ones(1, 1)}
    with pytest.raises(MismatchError, match="'more.weight' that it was trained on.* it is missing"):
        check(save, tmp_path / "b", far)
    tied = {**lora("model.l.0.q", 6, 4)}
    tied[f"{P}lm_head.base_layer.weight"] = BASE["model.embed_tokens.weight"]
    check(save, tmp_path / "c", tied)


VOCABULARY = {"e.weight": ones(9, 4), "e.bias": ones(9), "k.weight": ones(3, 2, 2), "s": ones()}


@pytest.mark.parametrize(
    ("name", "shape", "fits"),
    [
        ("e.weight", (11, 4), True),
        ("e.weight", (5, 4), True),
        ("e.bias", (11,), True),
        ("e.weight", (9, 5), False),
        ("e.weight", (11, 5), False),
        ("e.weight", (11,), False),
        ("e.bias", (9, 1), False),
        ("s", (1,), False),
        ("k.weight", (4, 2, 2), False),
        ("e.weight", (9, 4, 1), False),
    ],
)
def test_other_numbers_of_rows(save: Save, name: str, shape: tuple[int, ...], fits: bool) -> None:
    """Rows may differ where the caller merges the shared ones; nothing else may."""
    base = open_base(save("base.safetensors", VOCABULARY))
    vector = open_vector("x", save("x.safetensors", {**VOCABULARY, name: ones(*shape)}))
    with pytest.raises(MismatchError, match=rf"'{name}' has shape .*") as error:
        check_vector(base, vector)
    assert ("--vocab base" in str(error.value)) == fits
    if fits:
        check_vector(base, vector, shared_rows=True)
    else:
        with pytest.raises(MismatchError, match=rf"'{name}' has shape "):
            check_vector(base, vector, shared_rows=True)


def test_low_rank_rows_may_differ_too(save: Save, tmp_path: Path) -> None:
    check(save, tmp_path / "a", embedding("model.embed_tokens", 11, 4), shared_rows=True)
    with pytest.raises(MismatchError, match=r"has shape \[11, 3\]"):
        check(save, tmp_path / "b", embedding("model.embed_tokens", 11, 3), shared_rows=True)


def test_tensors_that_are_no_floats_must_fit_too(save: Save, tmp_path: Path) -> None:
    base = open_base(save("base.safetensors", BASE))
    other = np.arange(4)
    aligned = open_vector("x", save("a.safetensors", {**BASE, "model.ids": other}))
    adapter = save_by_hand(tmp_path / "a", {**lora("model.l.0.q", 6, 4), f"{P}model.ids": other})
    for vector in (aligned, open_vector("x", adapter)):
        with pytest.raises(MismatchError, match=r"'model.ids' has shape \[4\], but .* has \[3\]"):
            check_vector(base, vector)
    floats = open_vector("x", save("f.safetensors", {**BASE, "model.ids": ones(3)}))
    with pytest.raises(MismatchError, match=r"'model.ids' is F32 \[3\], but .* it is I64 \[3\]"):
        check_vector(base, floats)
    lacking = {name: values for name, values in BASE.items() if name != "model.ids"}
    with pytest.raises(MismatchError, match="lacks 1 tensors of the base .*'model.ids'"):
        check_vector(base, open_vector("x", save("l.safetensors", lacking)))


def test_quantised_vectors_are_refused_whatever_is_allowed(save: Save) -> None:
    base = open_base(save("base.safetensors", BASE))
    packed = {**BASE, "model.l.0.q.weight_scale": ones(6)}
    vector = open_vector("x", save("p.safetensors", packed))
    with pytest.raises(MismatchError, match="'model.l.0.q.weight_scale' is F32 .*: quantised"):
        check_vector(base, vector, allow_extra=True)


def test_one_vector_by_two_paths(save: Save, tmp_path: Path) -> None:
    one = save("one.safetensors", BASE)
    (tmp_path / "two.safetensors").symlink_to(one)
    (tmp_path / "three.safetensors").write_bytes(one.read_bytes())
    names = ("one", "three", "two")
    vectors = [open_vector(name, tmp_path / f"{name}.safetensors") for name in names]
    check_distinct(vectors[:2])
    with pytest.raises(RecipeError, match="--av two: the same file or directory as one, expected"):
        check_distinct(vectors)


def test_a_delta_file_may_say_that_it_is_partial(save: Save) -> None:
    base = open_base(save("base.safetensors", BASE))
    part = {"model.l.0.q.bias": ones(6)}
    for partial, metadata in ((False, {}), (True, {"avops.partial": "true"})):
        file = save("d.safetensors", part, {"avops.kind": "delta", **metadata})
        vector = open_vector("x", file)
        assert (vector.partial, vector.needs_base) == (partial, False)
        if partial:
            check_vector(base, vector)
        else:
            with pytest.raises(MismatchError, match="lacks 2 tensors of the base"):
                check_vector(base, vector)
    assert open_checkpoint(file).nbytes == 24
