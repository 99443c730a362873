"""Sidecars are small regular files, and a config that cannot be patched is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from avops.disk import patch_config, sidecars
from avops.dtypes import BF16
from avops.errors import CheckpointError


def test_what_never_ends_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "vocab.json").symlink_to("/dev/zero")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    found, skipped = sidecars(tmp_path, known_only=True)
    assert found == {"tokenizer.json": b"{}"}
    assert skipped == dict.fromkeys(("config.json", "vocab.json"), "not a regular file")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[" * 100_000, "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": "\\ud800"}', "holds text that is not valid Unicode"),
    ],
)
def test_configs_that_cannot_be_patched(raw: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"here: {message}"):
        patch_config(raw, BF16, "here")


def test_a_config_is_patched_in_its_order() -> None:
    raw = b'{"b": 1.50, "torch_dtype": "float32", "a": {"x": "\xc3\xa9"}}'
    patched = patch_config(raw, BF16, "here")
    assert (
        patched.index(b'"b"') < patched.index(b'"torch_dtype": "bfloat16"') < patched.index(b'"a"')
    )
    assert "é".encode() in patched
