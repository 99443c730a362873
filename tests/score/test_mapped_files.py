"""Pages of mapped files: given up where they are whole and mapped, and nowhere else."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avops.score import mapped_files
from avops.score.mapped_files import copy_out, unmap_pages
from avops.score.model import load_model, new_model, save_model

PAGE = mmap.PAGESIZE


def test_whole_pages_are_given_up(tmp_path: Path) -> None:
    """What was written to them privately is lost; what shares a page with other bytes stays."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(4 * PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        array = np.frombuffer(memory, np.uint8)
        array[:] = 1
        start = array.ctypes.data
        assert (start, start + 4 * PAGE) in mapped_files.mapped_files()
        unmap_pages(start + 100, 3 * PAGE, [])
        unmap_pages(start + 100, 3 * PAGE, [(start, start + PAGE)])
        unmap_pages(start + 100, PAGE, [(start, start + 4 * PAGE)])
        assert array.all()
        unmap_pages(start + 100, 3 * PAGE, [(start, start + 4 * PAGE)])
        pages = array.reshape(4, PAGE)
        assert pages.all(axis=1).tolist() == [True, False, False, True]
        assert not pages[1:3].any()
        del array, pages


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """In bf16, and as a file in ``tmp_path``."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300}
    made = new_model({"model_type": "mistral", **sizes, **heads}).to(torch.bfloat16)
    save_model(tmp_path, made)
    return made


def shift(path: Path, offset: int) -> None:
    """Let the data of a file begin at ``offset`` past a multiple of 64."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].rstrip()
    header += b" " * ((offset - 8 - len(header)) % 64)
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


@pytest.mark.parametrize("offset", [0, 8])
def test_a_loaded_model_is_the_file(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    """Weights that lie at 64 bytes stay mapped; of others every page is let go once copied."""
    given_up: list[tuple[int, int]] = []

    def watched(address: int, nbytes: int, mapped: list[tuple[int, int]]) -> None:
        assert any(begin <= address < end for begin, end in mapped)
        given_up.append((address, nbytes))
        unmap_pages(address, nbytes, mapped)

    shift(tmp_path / "model.safetensors", offset)
    monkeypatch.setattr("avops.score.mapped_files.unmap_pages", watched)
    monkeypatch.setattr("avops.score.mapped_files.COPIED", 8192)
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    for (name, one), two in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, two), name
    ends: dict[int, list[int]] = {}
    for address, nbytes in given_up:
        ends.setdefault(address, []).append(nbytes)
    # Up to 8 KiB more each time, from where the weight begins to its end.
    sizes = sorted(tensor.nbytes for tensor in model.parameters()) if offset else []
    assert sorted(max(nbytes) for nbytes in ends.values()) == sizes
    for nbytes in ends.values():
        assert nbytes == [*range(8192, max(nbytes), 8192), max(nbytes)]
    mapped = mapped_files.mapped_files()
    views = [any(a <= p.data_ptr() < b for a, b in mapped) for p in loaded.parameters()]
    assert views == [not offset] * len(views)


@pytest.mark.parametrize("offset", [0, 8])
def test_a_file_stays_as_it_is(model: Any, tmp_path: Path, offset: int) -> None:
    """Weights that are set in place are the process's own, though they are mapped."""
    path = tmp_path / "model.safetensors"
    shift(path, offset)
    before = path.read_bytes()
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.fill_(3)
    assert path.read_bytes() == before
    again = load_model(tmp_path, dtype=torch.bfloat16)
    for (name, one), two in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert all(bool((parameter == 3).all()) for parameter in loaded.parameters())


def test_weights_that_are_no_rows_are_copied_whole() -> None:
    weight = torch.arange(35.0).view(5, 7)
    for old in (weight.T, weight[:, ::2], torch.tensor(2.0), torch.empty(0, 3)):
        new = copy_out(old, [])
        assert torch.equal(new, old)
        assert new.data_ptr() != old.data_ptr() or not old.numel()
