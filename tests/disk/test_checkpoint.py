"""Opening checkpoints: every layout, and every way one can be broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avops.disk import fingerprint, open_checkpoint, open_vector
from avops.errors import CheckpointError

Save = Callable[..., Path]
A = {"a": np.arange(4, dtype=np.float32)}
B = {"b": np.arange(6, dtype=np.float32)}
INDEX = "model.safetensors.index.json"


def sharded(save: Save, weight_map: dict[str, object] | None = None) -> Path:
    directory = save("m/s1.safetensors", A).parent
    save("m/s2.safetensors", B)
    weight_map = weight_map or {"a": "s1.safetensors", "b": "s2.safetensors"}
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_single_file(save: Save) -> None:
    checkpoint = open_checkpoint(save("x.safetensors", {**A, **B}))
    assert set(checkpoint.tensors) == {"a", "b"}
    assert checkpoint.is_file
    assert checkpoint.nbytes == 40


def test_sharded_directory(save: Save) -> None:
    checkpoint = open_checkpoint(sharded(save))
    assert list(checkpoint.tensors) == ["a", "b"]
    assert [shard.path.name for shard in checkpoint.shards] == ["s1.safetensors", "s2.safetensors"]
    assert checkpoint.tensors["b"].shard == 1
    # Shards come in the order of their names, whatever the index's is.
    turned = open_checkpoint(sharded(save, {"b": "s2.safetensors", "a": "s1.safetensors"}))
    assert list(turned.tensors) == ["a", "b"]


def test_directory_with_one_file(save: Save) -> None:
    directory = save("d/model.safetensors", A).parent
    assert list(open_checkpoint(directory).tensors) == ["a"]
    # The hub's older repositories keep a consolidated copy beside it: model.safetensors counts.
    save("d/other.safetensors", B)
    assert list(open_checkpoint(directory).tensors) == ["a"]


def test_hub_snapshot_with_symlinks(save: Save, tmp_path: Path) -> None:
    directory = sharded(save)
    snapshot = tmp_path / "models--x--y/snapshots/abc"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(directory.iterdir())):
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
        assert number < 3
    checkpoint = open_checkpoint(snapshot)
    assert list(checkpoint.tensors) == ["a", "b"]
    assert fingerprint(checkpoint) == fingerprint(open_checkpoint(directory))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "s1.safetensors", "b": "gone.safetensors"}, "gone.safetensors: shard missing"),
        ({"a": "s1.safetensors"}, None),
        ({"a": "s1.safetensors", "b": "s1.safetensors"}, "the index is stale"),
        ({"a": "s1.safetensors", "b": "s2.safetensors", "c": "s2.safetensors"}, "'c' is in no"),
        ({"a": "../s1.safetensors"}, "expected the plain name"),
        ({"a": "/etc/passwd"}, "expected the plain name"),
        ({"a": "s1.bin"}, "expected the plain name"),
        ({"a": 1}, "expected the plain name"),
    ],
)
def test_bad_indexes(save: Save, weight_map: dict[str, object], message: str | None) -> None:
    directory = sharded(save, weight_map)
    if message is None:
        # A shard nobody names is simply not part of the checkpoint.
        assert list(open_checkpoint(directory).tensors) == ["a"]
        return
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(directory)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 1}', "[" * 100_000])
def test_malformed_indexes(save: Save, text: str) -> None:
    directory = sharded(save)
    (directory / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="not a valid index"):
        open_checkpoint(directory)


def test_a_tensor_the_index_leaves_out(save: Save) -> None:
    directory = save("m/s1.safetensors", {**A, **B}).parent
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": "s1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'b' is in s1.safetensors, but the index says noth"):
        open_checkpoint(directory)


def test_a_tensor_in_two_shards(save: Save) -> None:
    directory = sharded(save)
    save("m/s2.safetensors", {**A, **B})
    with pytest.raises(CheckpointError, match=r"'a' is in both s1.safetensors and s2.safetensors"):
        open_checkpoint(directory)


def test_missing_index(save: Save) -> None:
    directory = sharded(save)
    (directory / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"2 safetensors files but no {INDEX}"):
        open_checkpoint(directory)


def test_a_second_copy_of_the_weights(save: Save) -> None:
    """Mistral's repositories hold consolidated.safetensors, with other names, beside the shards."""
    directory = sharded(save)
    save(f"{directory.name}/consolidated.safetensors", {"tok_embeddings.weight": A["a"]})
    assert "tok_embeddings.weight" not in open_checkpoint(directory).tensors
    one = save("one/consolidated.safetensors", {"tok_embeddings.weight": A["a"]}).parent
    assert set(open_checkpoint(one).tensors) == {"tok_embeddings.weight"}
    save("one/weights.safetensors", {"a": A["a"]})
    assert set(open_checkpoint(one).tensors) == {"a"}


def test_a_folder_of_another_format(save: Save) -> None:
    """Llama's repositories have original/ beside the shards."""
    directory = sharded(save)
    save(f"{directory.name}/original/consolidated.00.safetensors", {"x": A["a"]})
    assert "x" not in open_checkpoint(directory).tensors


@pytest.mark.parametrize("recorded", [None, 5, 1.5, "many", [1], {}])
def test_the_size_that_an_index_records(save: Save, recorded: object) -> None:
    directory = sharded(save)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "metadata": {"total_size": recorded}}))
    assert open_checkpoint(directory).recorded_size == recorded
    path.write_text(json.dumps({**index, "metadata": [recorded]}))
    assert open_checkpoint(directory).recorded_size is None


def test_index_and_single_file_contradict(save: Save) -> None:
    directory = sharded(save)
    save("m/model.safetensors", A)
    with pytest.raises(CheckpointError, match="one of them is stale"):
        open_checkpoint(directory)


def test_things_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no safetensors file in this directory"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "fifo.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / "fifo.safetensors")


def test_pickles_are_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match=r"a PyTorch pickle.*save_pretrained"):
            open_checkpoint(path)


def test_adapters_are_refused_by_name(save: Save) -> None:
    directory = save("lora/adapter_model.safetensors", A).parent
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a LoRA adapter.*use it with --av"):
        open_checkpoint(directory)


AS_NOBODY = """
import os, sys
from avops.disk import open_checkpoint
if os.geteuid() == 0:  # root may read everything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        print(list(open_checkpoint(path).tensors))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_no_read_permission(save: Save) -> None:
    """By a process without privileges, in a directory that everybody may enter."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        readable, closed = (str(Path(place) / f"{name}.safetensors") for name in ("open", "closed"))
        for path, mode in ((readable, 0o644), (closed, 0)):
            shutil.copyfile(save("x.safetensors", A), path)
            Path(path).chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, readable, closed],
            check=True,
            capture_output=True,
            text=True,
        )
    assert done.stdout.splitlines() == [
        "['a']",
        f"CheckpointError {closed}: cannot open for reading: Permission denied",
    ]


def test_permission_errors_name_the_file(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("x.safetensors", A)

    def refuse(*args: object, **kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match=r"x.safetensors: cannot open for reading: Permiss"):
        open_checkpoint(path)


def test_vector_kinds(save: Save) -> None:
    delta = save("delta.safetensors", A, {"avops.kind": "delta"})
    plain = save("plain.safetensors", A)
    assert not open_vector("x", delta).aligned
    assert open_vector("x", plain).aligned
    assert not open_vector("x", plain, "delta").aligned
    with pytest.raises(CheckpointError, match="a delta file by its metadata"):
        open_vector("x", delta, "aligned")
    strange = save("strange.safetensors", A, {"avops.kind": "other"})
    with pytest.raises(CheckpointError, match="avops.kind is"):
        open_vector("x", strange)


def test_fingerprints_tell_weights_apart(save: Save) -> None:
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal(10_000).astype(np.float32)}
    first = fingerprint(open_checkpoint(save("a.safetensors", tensors)))
    assert fingerprint(open_checkpoint(save("b.safetensors", tensors))) == first
    assert len(first) == 64
    for index in (0, 5000, 9999):
        changed = {"w": tensors["w"].copy()}
        changed["w"][index] += 1
        assert fingerprint(open_checkpoint(save("c.safetensors", changed))) != first
    assert fingerprint(open_checkpoint(save("d.safetensors", {"v": tensors["w"]}))) != first
    reshaped = {"w": tensors["w"].reshape(100, 100)}
    assert fingerprint(open_checkpoint(save("e.safetensors", reshaped))) != first
