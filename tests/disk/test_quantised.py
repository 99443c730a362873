"""Quantised weights are never added up, and integers that differ are never passed over."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from adapters import save_by_hand
from avops.disk import (
    check_plain,
    check_vector,
    encode_header,
    integer_notes,
    open_base,
    open_checkpoint,
    open_vector,
    plain_notes,
)
from avops.dtypes import DTYPES
from avops.errors import MismatchError

Save = Callable[..., Path]
Listed = Mapping[str, tuple[str, tuple[int, ...]]]


def write(path: Path, listed: Listed, method: object = None) -> Path:
    """A checkpoint of zeros with tensors of any dtype, and a config.json that names a method."""
    path.parent.mkdir(exist_ok=True)
    rows = [(name, DTYPES[tag], shape) for name, (tag, shape) in listed.items()]
    prefix, _ = encode_header(rows, {"format": "pt"})
    size = sum(int(np.prod(shape)) * DTYPES[tag].bits // 8 for tag, shape in listed.values())
    path.write_bytes(prefix + bytes(size))
    if method is not None:
        (path.parent / "config.json").write_text(json.dumps(method))
    return path


MATRIX = (8, 8)
QUANTISED: dict[str, tuple[Listed, object, str]] = {
    "fp8": (
        {"q.weight": ("F8_E4M3", MATRIX), "q.weight_scale_inv": ("F32", (1, 1))},
        {"quantization_config": {"quant_method": "fp8"}},
        (
            r"'q.weight' is F8_E4M3 \[8, 8\] \(config.json: quant_method 'fp8'\): quantised "
            r"weights mean nothing .*FineGrainedFP8Config\(dequantize=True\)"
        ),
    ),
    "e8m0 scales": (
        {"q.weight": ("U8", MATRIX), "q.weight_other": ("F8_E8M0", MATRIX)},
        None,
        "'q.weight_other' is F8_E8M0",
    ),
    "nvfp4": ({"q.w": ("F4", MATRIX)}, None, "'q.w' is F4 .*with the tool that made them"),
    "gptq and awq": (
        {"q.qweight": ("I32", MATRIX), "q.scales": ("F16", MATRIX), "q.g_idx": ("I32", (8,))},
        {"quantization_config": {"quant_method": "gptq"}},
        r"'q.qweight' is I32 \[8, 8\] \(config.json: quant_method 'gptq'\)",
    ),
    "bitsandbytes": (
        {"q.weight": ("U8", (32, 1)), "q.weight.absmax": ("F32", (1,))},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        r"'q.weight.absmax' is F32 .*model.dequantize\(\), then save",
    ),
    "MLX": (
        {"q.weight": ("U32", MATRIX), "q.scales": ("F16", MATRIX), "q.biases": ("F16", MATRIX)},
        {"quantization": {"group_size": 64, "bits": 4}},
        r"'q.weight' is U32 \[8, 8\] beside 'q.scales', F16 \[8, 8\], .*quant_method 'unnamed'",
    ),
    "HQQ": (
        {"q.W_q": ("U8", MATRIX), "q.scale": ("F16", (8, 1)), "q.zero": ("F16", (8, 1))},
        None,
        "'q.W_q' is U8 .* beside 'q.scale'",
    ),
    "quanto": (
        {"q.weight._data": ("I8", MATRIX), "q.weight._scale": ("BF16", (8, 1))},
        None,
        "'q.weight._data' is I8 .* beside 'q.weight._scale'",
    ),
    "EETQ": (
        {"q.weight": ("I8", MATRIX), "q.weight_scales": ("F16", (8,))},
        None,
        "'q.weight' is I8 .* beside 'q.weight_scales'",
    ),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_weights_are_refused(tmp_path: Path, case: str) -> None:
    listed, config, message = QUANTISED[case]
    base = open_base(write(tmp_path / "base" / "model.safetensors", listed, config))
    with pytest.raises(MismatchError, match=message):
        check_plain(base)
    vector = open_vector("x", write(tmp_path / "x" / "model.safetensors", listed))
    with pytest.raises(MismatchError, match="quantised weights mean nothing"):
        check_vector(base, vector)


def test_a_plain_base_and_a_quantised_vector(tmp_path: Path) -> None:
    base = open_base(write(tmp_path / "b.safetensors", {"q.weight": ("BF16", MATRIX)}))
    vector = open_vector("x", write(tmp_path / "x.safetensors", {"q.weight": ("F8_E5M2", MATRIX)}))
    with pytest.raises(MismatchError, match=r"x.safetensors: tensor 'q.weight' is F8_E5M2"):
        check_vector(base, vector)


@pytest.mark.parametrize(
    "listed",
    [
        # Swin: an index of positions beside a learned scale.
        {"a.index": ("I64", MATRIX), "a.logit_scale": ("F32", (4, 1, 1))},
        {"a.mask": ("BOOL", MATRIX), "a.scale": ("F32", (4,))},
        {"a.ids": ("I32", (8,)), "a.scale": ("F32", (4,))},
        {"a.ids": ("I32", MATRIX), "b.scale": ("F32", (4,))},
    ],
)
def test_integers_beside_plain_weights_are_none(tmp_path: Path, listed: Listed) -> None:
    check_plain(open_checkpoint(write(tmp_path / "b.safetensors", listed)))


BLOCKS = np.arange(3 << 19, dtype=np.uint8).reshape(3, -1)
MXFP4 = {
    "experts.down_proj_blocks": BLOCKS,
    "experts.down_proj_scales": BLOCKS[:, :32],
    "attn.q.weight": np.ones((4, 4), np.float32),
}


@pytest.mark.parametrize("place", [0, 1 << 20, (3 << 19) - 1])
def test_packed_experts_must_be_the_bases(save: Save, place: int) -> None:
    """gpt-oss: what is tuned beside equal experts merges; other experts are refused."""
    base = open_base(save("b/model.safetensors", MXFP4))
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    (base.directory / "config.json").write_text(json.dumps(config))
    tuned = {**MXFP4, "attn.q.weight": np.zeros((4, 4), np.float32)}
    check_vector(base, open_vector("x", save("x.safetensors", tuned)))
    other = BLOCKS.copy()
    other.flat[place] ^= 1
    vector = open_vector("y", save("y.safetensors", {**tuned, "experts.down_proj_blocks": other}))
    with pytest.raises(MismatchError) as error:
        check_vector(base, vector)
    assert str(error.value) == (
        f"AV y ({vector.checkpoint.path}): tensor 'experts.down_proj_blocks' is U8 [3, 524288], "
        f"not equal to the base's in {base.path}, U8 [3, 524288], and integers cannot be added "
        "up; if they are packed weights, use the bf16 or f32 weights that they were made from, or "
        "dequantise them first (transformers: from_pretrained(…, "
        "quantization_config=Mxfp4Config(dequantize=True)), then save_pretrained); if not, the "
        "two models are not of one kind"
    )


def test_an_adapters_integers_must_be_the_bases(save: Save, tmp_path: Path) -> None:
    base = open_base(save("b.safetensors", MXFP4))
    name = "base_model.model.experts.down_proj_scales"
    carried = BLOCKS[:, :32].copy()
    check_vector(base, open_vector("x", save_by_hand(tmp_path / "x", {name: carried})))
    carried[2, 31] ^= 1
    with pytest.raises(MismatchError, match="'experts.down_proj_scales' is U8"):
        check_vector(base, open_vector("x", save_by_hand(tmp_path / "y", {name: carried})))


def test_another_kind_of_integer_is_another_value(save: Save) -> None:
    base = open_base(save("b.safetensors", {"ids": np.ones((2, 2), np.int64)}))
    vector = open_vector("x", save("x.safetensors", {"ids": np.ones((2, 2), np.int32)}))
    with pytest.raises(MismatchError, match=r"'ids' is I32 \[2, 2\], not equal to .* I64 \[2, 2\]"):
        check_vector(base, vector)


def test_one_file_by_two_names_is_not_read(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_base(save("b.safetensors", MXFP4))
    os.link(base.path, base.path.with_name("x.safetensors"))
    vector = open_vector("x", base.path.with_name("x.safetensors"))
    monkeypatch.setattr("avops.disk.quantised.read_exactly", None)
    check_vector(base, vector)


def test_counters_that_differ_are_told(save: Save) -> None:
    tensors = {"n.batches": np.array(3), "m.batches": np.array([1, 2]), "mask": np.array([True])}
    base = open_base(save("b.safetensors", tensors))
    assert integer_notes(base, open_vector("x", save("x.safetensors", tensors))) == ()
    other = {**tensors, "m.batches": np.array([1, 3])}
    vector = open_vector("x", save("y.safetensors", other))
    check_vector(base, vector)
    assert integer_notes(base, vector) == (
        "AV x has other values in 'm.batches', which hold integers: they stay as in the base",
    )
    vector = open_vector("x", save("z.safetensors", {**other, "mask": np.array([False])}))
    (note,) = integer_notes(base, vector)
    assert "'m.batches' and 1 more" in note or "'mask' and 1 more" in note


def test_a_config_left_over_from_quantised_weights(tmp_path: Path) -> None:
    listed = {"q.weight": ("BF16", MATRIX)}
    config = {"quantization_config": {"quant_method": "fp8"}}
    base = open_base(write(tmp_path / "b" / "model.safetensors", listed, config))
    check_plain(base)
    (note,) = plain_notes(base)
    assert "config.json has quant_method 'fp8', but its weights are plain numbers" in note
    for harmless in ({}, {"quantization_config": None}, [], {"quantization_config": []}):
        (base.path.parent / "config.json").write_text(json.dumps(harmless))
        assert plain_notes(base) == ()
