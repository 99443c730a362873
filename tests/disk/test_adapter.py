"""Adapters by hand: the names that PEFT's versions wrote, and files that are not right."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import save_by_hand
from avops.disk import LowRank, Stored, fingerprint, open_base, open_vector
from avops.errors import CheckpointError

P = "base_model.model."
A, B = np.ones((2, 3), np.float32), np.ones((5, 2), np.float32)
EA, EB = np.ones((2, 7), np.float32), np.ones((3, 2), np.float32)
Q = {f"{P}l.0.q.lora_A.weight": A, f"{P}l.0.q.lora_B.weight": B}


def test_factors_and_their_module(tmp_path: Path) -> None:
    vector = open_vector("x", save_by_hand(tmp_path / "a", Q))
    part = vector.parts["l.0.q.weight"]
    assert isinstance(part, LowRank)
    assert (part.shape, part.rank, part.scale, part.transposed) == ((5, 3), 2, 2.0, False)
    assert (part.a.name, part.b.name) == tuple(Q)
    assert (vector.kind, vector.partial, vector.needs_base) == ("adapter", True, False)
    assert vector.checkpoint.path == tmp_path / "a"
    assert vector.checkpoint.directory == tmp_path / "a"


@pytest.mark.parametrize("kind", ["auto", "adapter"])
@pytest.mark.parametrize("name", ["", "adapter_model.safetensors"])
def test_a_directory_or_its_weights(tmp_path: Path, name: str, kind: str) -> None:
    directory = save_by_hand(tmp_path / "a", Q)
    vector = open_vector("x", directory / name, kind)
    assert (vector.kind, vector.checkpoint.path) == ("adapter", directory)


LAYOUTS: dict[str, tuple[str, str]] = {
    "today": (f"{P}m.q.lora_A.weight", f"{P}m.q.lora_B.weight"),
    "with the adapter's name": (f"{P}m.q.lora_A.default.weight", f"{P}m.q.lora_B.default.weight"),
    "with another name": (f"{P}m.q.lora_A.mine.weight", f"{P}m.q.lora_B.mine.weight"),
    "without PEFT's prefix": ("m.q.lora_A.weight", "m.q.lora_B.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_factors(tmp_path: Path, layout: str) -> None:
    a, b = LAYOUTS[layout]
    vector = open_vector("x", save_by_hand(tmp_path, {a: A, b: B}))
    assert list(vector.parts) == ["m.q.weight"]


@pytest.mark.parametrize("name", ["", ".default"])
def test_embeddings_are_transposed(tmp_path: Path, name: str) -> None:
    factors = {f"{P}e.lora_embedding_A{name}": EA, f"{P}e.lora_embedding_B{name}": EB}
    part = open_vector("x", save_by_hand(tmp_path, factors)).parts["e.weight"]
    assert isinstance(part, LowRank)
    assert (part.shape, part.transposed) == ((7, 3), True)


def test_fan_in_fan_out_is_the_transpose_of_matrices_only(tmp_path: Path) -> None:
    conv = {
        f"{P}c.lora_A.weight": np.ones((2, 4, 3, 3), np.float32),
        f"{P}c.lora_B.weight": np.ones((6, 2, 1, 1), np.float32),
    }
    parts = open_vector("x", save_by_hand(tmp_path, {**Q, **conv}, {"fan_in_fan_out": True})).parts
    matrix, kernel = parts["l.0.q.weight"], parts["c.weight"]
    assert isinstance(matrix, LowRank)
    assert (matrix.shape, matrix.transposed) == ((3, 5), True)
    assert isinstance(kernel, LowRank)
    assert (kernel.shape, kernel.transposed) == ((6, 4, 3, 3), False)


WHOLE = {
    "head.weight": "head.weight",
    "head.modules_to_save.default.weight": "head.weight",
    "head.modules_to_save.weight": "head.weight",
    "head.default.weight": "head.weight",
    "mlp.modules_to_save.default.up.weight": "mlp.up.weight",
    "l.0.q.base_layer.bias": "l.0.q.bias",
    "l.0.q.bias": "l.0.q.bias",
    "norm.bias": "norm.bias",
}


@pytest.mark.parametrize("prefix", [P, ""])
@pytest.mark.parametrize("name", WHOLE)
def test_names_of_whole_tensors(tmp_path: Path, name: str, prefix: str) -> None:
    directory = save_by_hand(tmp_path, {**Q, prefix + name: np.ones(3, np.float32)})
    vector = open_vector("x", directory)
    part = vector.parts[WHOLE[name]]
    assert isinstance(part, Stored)
    assert (part.aligned, part.tensor.name) == (True, prefix + name)
    assert (vector.needs_base, len(vector.parts)) == (True, 2)


@pytest.mark.parametrize(
    "name", ["e.base_layer.weight", "e.original_module.weight", "e.original_module.bias"]
)
def test_what_the_base_has_already_is_no_part(tmp_path: Path, name: str) -> None:
    vector = open_vector("x", save_by_hand(tmp_path, {**Q, P + name: A}))
    assert list(vector.parts) == ["l.0.q.weight"]
    assert list(vector.copies) == [f"e.{name.rpartition('.')[2]}"]


BROKEN: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no B": ({f"{P}q.lora_A.weight": A}, "module 'q' has lora_A, expected lora_A and lora_B"),
    "mixed": (
        {f"{P}q.lora_A.weight": A, f"{P}q.lora_embedding_B": EB},
        "'q' has lora_A, lora_embedding_B, expected lora_embedding_A and lora_embedding_B",
    ),
    "rank of B": (
        {f"{P}q.lora_A.weight": A, f"{P}q.lora_B.weight": np.ones((5, 3), np.float32)},
        r"A F32 \[2, 3\] and B F32 \[5, 3\], but adapter_config.json gives rank 2",
    ),
    "rank": (
        {f"{P}q.lora_A.weight": np.ones((3, 3), np.float32), f"{P}q.lora_B.weight": B},
        r"A F32 \[3, 3\] and B F32 \[5, 2\], but adapter_config.json gives rank 2",
    ),
    "empty": (
        {f"{P}q.lora_A.weight": A, f"{P}q.lora_B.weight": np.ones((0, 2), np.float32)},
        r"lora_B.weight' is F32 \[0, 2\], expected .* not empty",
    ),
    "flat": (
        {f"{P}q.lora_A.weight": np.ones(6, np.float32), f"{P}q.lora_B.weight": B},
        r"lora_A.weight' is F32 \[6\], expected a BF16, F16 or F32 matrix",
    ),
    "integers": (
        {f"{P}q.lora_A.weight": A.astype(np.int32), f"{P}q.lora_B.weight": B},
        r"lora_A.weight' is I32 \[2, 3\], expected a BF16, F16 or F32 matrix",
    ),
    "wide B": (
        {
            f"{P}c.lora_A.weight": np.ones((2, 4, 3), np.float32),
            f"{P}c.lora_B.weight": np.ones((6, 2, 2), np.float32),
        },
        "expected two matrices, or a convolution whose B is 1×1",
    ),
    "dimensions": (
        {f"{P}c.lora_A.weight": np.ones((2, 4, 3), np.float32), f"{P}c.lora_B.weight": B},
        "expected two matrices, or a convolution whose B is 1×1",
    ),
    "DoRA": ({**Q, f"{P}l.0.q.lora_magnitude_vector": B}, "lora_magnitude_vector' .* DoRA"),
    "KaSA": ({**Q, f"{P}l.0.q.lora_diag": B}, "lora_diag' is of no kind that avops knows"),
    "AdaLoRA": ({**Q, f"{P}l.0.q.lora_E": B}, "lora_E' is of no kind that avops knows"),
    "B's bias": ({**Q, f"{P}l.0.q.lora_B.bias": B}, "lora_B.bias' is of no kind"),
    "rows": (
        {**Q, f"{P}e.token_adapter.trainable_tokens_delta": A},
        "trainable_tokens_delta' holds single trained rows",
    ),
    "two adapters": (
        {**Q, f"{P}l.0.q.lora_A.other.weight": A},
        r"lora_A[.a-z]*.weight' and '.*lora_A[.a-z]*.weight' stand for the same",
    ),
    "whole and factors": ({**Q, f"{P}l.0.q.weight": A}, "'.*l.0.q.weight' is a whole weight whose"),
    "nothing": ({}, "holds no tensor"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_not_right(tmp_path: Path, case: str) -> None:
    tensors, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message):
        open_vector("x", save_by_hand(tmp_path, tensors))


def test_missing_files(tmp_path: Path) -> None:
    directory = save_by_hand(tmp_path / "a", Q)
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model.bin: a PyTorch pickle.*save_file"):
        open_vector("x", directory)
    (directory / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="no adapter_model.safetensors; download"):
        open_vector("x", directory)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_config.json, expected the directory"):
        open_vector("x", directory, "adapter")


def test_the_pickles_conversion_works(tmp_path: Path) -> None:
    """The command of the error message, on a pickle that torch wrote."""
    import re
    import subprocess
    import sys

    import torch

    directory = save_by_hand(tmp_path / "it's", Q)
    (directory / "adapter_model.safetensors").unlink()
    state = {name: torch.from_numpy(array).T.contiguous().T for name, array in Q.items()}
    torch.save(state, directory / "adapter_model.bin")
    with pytest.raises(CheckpointError) as error:
        open_vector("x", directory)
    found = re.search(r"in a sandbox with: (.*)", str(error.value))
    assert found
    command = found[1].replace("python -c", f"{sys.executable} -c")
    subprocess.run(["sh", "-c", command], check=True)
    assert list(open_vector("x", directory).parts) == ["l.0.q.weight"]


def test_kinds_that_contradict_the_files(tmp_path: Path) -> None:
    directory = save_by_hand(tmp_path / "a", Q)
    for kind in ("delta", "aligned"):
        with pytest.raises(CheckpointError, match=f"a LoRA adapter.*remove kind = '{kind}'"):
            open_vector("x", directory, kind)
    with pytest.raises(CheckpointError, match="a LoRA adapter, expected a checkpoint of weights"):
        open_base(directory)


def test_a_whole_checkpoint_beside_an_adapter_is_the_checkpoint(tmp_path: Path) -> None:
    """An index says what belongs to it; the adapter is opened when it is asked for."""
    directory = save_by_hand(tmp_path / "a", Q)
    names = dict.fromkeys(Q, "adapter_model.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert open_vector("x", directory).kind == "aligned"
    assert open_vector("x", directory, "adapter").kind == "adapter"
    assert open_vector("x", directory / "adapter_model.safetensors").kind == "adapter"


def test_fingerprints_tell_scales_apart(tmp_path: Path) -> None:
    """The scale is in the settings: the same factors with another alpha are another vector."""
    configs: tuple[dict[str, Any], ...] = ({}, {"lora_alpha": 5}, {"fan_in_fan_out": True})
    prints = [
        fingerprint(open_vector("x", save_by_hand(tmp_path / str(i), Q, config)))
        for i, config in enumerate((*configs, {"lora_dropout": 0.5}))
    ]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]
    plain = open_vector("x", tmp_path / "0")
    assert fingerprint(plain.checkpoint) not in prints


STEPS = [
    *("base_model", "model", "q", "default", "weight", "bias"),
    *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_E"),
    *("base_layer", "original_module", "modules_to_save", "token_adapter"),
]
NAMES = st.lists(st.sampled_from(STEPS), min_size=1, max_size=6).map(".".join)


@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), prefix=st.booleans())
def test_every_tensor_is_used_once_or_refused(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], prefix: bool
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    square = np.ones((2, 2), np.float32)
    save_by_hand(directory, {P * prefix + name: square for name in names})
    with contextlib.suppress(CheckpointError):
        vector = open_vector("x", directory)
        used = [tensor.name for tensor in vector.copies.values()]
        for part in vector.parts.values():
            used += [part.tensor.name] if isinstance(part, Stored) else [part.a.name, part.b.name]
        assert sorted(used) == sorted(vector.checkpoint.tensors)
