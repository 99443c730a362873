"""adapter_config.json: scales by PEFT's rules, and everything in it that must be refused."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import CONFIG
from avops.disk.adapter_config import AdapterConfig, read_adapter_config
from avops.errors import CheckpointError


def read(directory: Path, text: str | None = None, **config: Any) -> AdapterConfig:
    path = directory / "adapter_config.json"
    path.write_text(text if text is not None else json.dumps({**CONFIG, **config}))
    return read_adapter_config(path)


def test_scales(tmp_path: Path) -> None:
    """alpha / rank, or alpha / √rank, in double precision, then one rounding to float32."""
    assert read(tmp_path).scale_of("m") == 2.0
    third = read(tmp_path, r=3, lora_alpha=1)
    assert third.scale_of("m") == float(np.float32(1 / 3)) != 1 / 3
    root = read(tmp_path, r=3, lora_alpha=1.5, use_rslora=True)
    assert root.scale_of("m") == float(np.float32(1.5 / np.sqrt(3)))
    some = read(tmp_path, rank_pattern={"q": 8}, alpha_pattern={"q": 12, "k": 3})
    assert [some.scale_of(module) for module in ("l.q", "l.k", "l.v")] == [1.5, 1.5, 2.0]
    assert read(tmp_path, lora_alpha=0).scale_of("m") == 0.0
    assert read(tmp_path, lora_alpha=-4).scale_of("m") == -2.0


def test_settings_for_reports(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        target_modules=["q", "v"],
        modules_to_save=["head"],
        base_model_name_or_path="some/model",
    )
    assert (config.modules, config.saved, config.base) == (("q", "v"), ("head",), "some/model")
    assert read(tmp_path, target_modules="all-linear").modules == ("all-linear",)


PATTERNS = ["q_proj", "0.q", "^l.1", r".*\.q", "(q|k)", r"l\.\d\.k", "[qk]", "^l$", "l.0.k", "q|k"]
MODULES = ["l.0.q", "l.1.q", "l.1", "l.0.k", "xq", "q_proj", "l", "k", "l.0.q.k", "lx0.k"]


@pytest.mark.parametrize("module", MODULES)
def test_patterns_match_as_in_peft(tmp_path: Path, module: str) -> None:
    """PEFT's own rule decides which rank and which alpha a module gets, in any order."""
    other = pytest.importorskip("peft.utils.other")
    for shift in range(len(PATTERNS)):
        order = PATTERNS[shift:] + PATTERNS[:shift]
        table = {text: number for number, text in enumerate(order, 10)}
        config = read(tmp_path, rank_pattern=table, alpha_pattern=table)
        theirs = table.get(other.get_pattern_key(list(table), module))
        assert config.rank_of(module) == (theirs or 2)
        assert config.alpha_of(module) == (theirs or 4)


REFUSED: dict[str, tuple[Any, str]] = {
    "r": (0, "r is 0, expected a whole number above 0"),
    "lora_alpha": (None, "lora_alpha is null, expected a number"),
    "use_rslora": (1, "use_rslora is 1, expected true or false"),
    "fan_in_fan_out": ("yes", 'fan_in_fan_out is "yes", expected true or false'),
    "bias": ("some", 'bias is "some", expected none, all or lora_only'),
    "rank_pattern": ({"q": 2.5}, "rank_pattern is .*2.5.*, expected module to rank"),
    "alpha_pattern": ({"q": True}, "alpha_pattern is .*true.*, expected module to alpha"),
    "target_modules": (5, "target_modules is 5, expected a name or a list"),
    "modules_to_save": ("head", 'modules_to_save is "head", expected a list of names'),
    "base_model_name_or_path": (["x"], "base_model_name_or_path is .*, expected a name"),
    "peft_type": ("LOHA", 'peft_type is "LOHA", expected "LORA".*merge_and_unload'),
    "use_dora": (True, "use_dora is on: DoRA"),
    "use_qalora": (True, "use_qalora is on: QALoRA, .*quantised"),
    "use_bdlora": ({"nblocks": 2}, "use_bdlora is on: BD-LoRA"),
    "kasa_config": ({"beta": 1e-4}, "kasa_config is on: KaSA"),
    "arrow_config": ({"top_k": 3}, "arrow_config is on: Arrow"),
    "monteclora_config": ({"num_samples": 8}, "monteclora_config is on: MonteCLoRA"),
    "velora_config": ({"scale": 1}, "velora_config is on: VeLoRA"),
    "megatron_config": ({"x": 1}, "megatron_config is on: Megatron"),
    "enable_lora": ([True], "enable_lora is on: the merged layers of PEFT 0.2"),
    "target_parameters": (["w"], "target_parameters is on: LoRA on bare parameters"),
    "init_lora_weights": ("pissa_niter_16", 'init_lora_weights is "pissa_niter_16": B@A starts'),
    "use_something_new": (True, "use_something_new is true, an option that avops does not know"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_settings_that_are_refused_by_name(tmp_path: Path, key: str) -> None:
    value, message = REFUSED[key]
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {message}"):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "olora", "pissa", "new", 3, ["eva"]])
def test_inits_that_change_the_base(tmp_path: Path, init: object) -> None:
    with pytest.raises(CheckpointError, match=r"taken out of the base's weights.*conversion"):
        read(tmp_path, init_lora_weights=init)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_do_not(tmp_path: Path, init: object) -> None:
    assert read(tmp_path, init_lora_weights=init).rank == 2


@pytest.mark.parametrize("off", [None, False, [], {}, "", 0])
def test_options_that_are_off_do_no_harm(tmp_path: Path, off: object) -> None:
    assert read(tmp_path, use_dora=off, use_something_new=off, layer_replication=off).rank == 2


NUMBERS = {"r": (True, 2.0, -1, "2", 1 << 40), "lora_alpha": (True, "8", 1e39, -1e39, 10**400)}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in NUMBERS.items() for v in vs])
def test_numbers_that_are_none(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is .*, expected"):
        read(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a valid adapter configuration"),
        ("[]", "list, not an object"),
        ("{" * 9, "not a valid adapter configuration"),
        ('{"r": NaN}', "NaN is no JSON number"),
        ('{"r": 1, "r": 2}', "duplicate key in an object"),
        ("[" * 100_000, "not a valid adapter configuration: .*expected the JSON object"),
        ('{"r": ' + "1" * 5000 + "}", "not a valid adapter configuration"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, text)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"4000001 bytes, expected at most 4000000"):
        read(tmp_path, " " * 4_000_001)
    with pytest.raises(CheckpointError, match="10001 patterns in rank_pattern or alpha_pattern"):
        read(tmp_path, rank_pattern={f"m{i}": 2 for i in range(10_001)})
    config = read(tmp_path, rank_pattern={"m": 3})
    with pytest.raises(CheckpointError, match="has 513 characters, expected at most 512"):
        config.rank_of("x" * 513)
    assert read(tmp_path).rank_of("x" * 513) == 2


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "(?:a*)*b", "(a{1,9}){9}b", ".*.*.*.*b", "(?=a)b", r"(a)\1", "x" * 513],
)
def test_patterns_that_could_take_for_ever(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match="may take too long to match"):
        read(tmp_path, alpha_pattern={pattern: 1})


def test_the_slowest_patterns_that_pass_are_fast(tmp_path: Path) -> None:
    """Three repetitions and PEFT's own: at most n^4 / 24 steps for a name of n characters."""
    config = read(tmp_path, rank_pattern={"a*a*a*b": 3})
    start = time.perf_counter()
    assert config.rank_of("a" * 100) == 2
    # 100^4 / 24 = 4e6 steps of some 10 ns; ten times that for a busy machine.
    assert time.perf_counter() - start < 0.5 * 10


def test_patterns_that_are_none(tmp_path: Path) -> None:
    config = read(tmp_path, rank_pattern={"(q": 2})
    with pytest.raises(CheckpointError, match=r"pattern '\(q' is no regular expression"):
        config.rank_of("q")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(data=st.dictionaries(st.sampled_from([*REFUSED, "bias", "revision"]), JSON, max_size=6))
def test_any_values_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    """No value leads to another exception, or to a scale that is not finite."""
    directory = tmp_path_factory.getbasetemp()
    with contextlib.suppress(CheckpointError):
        config = read(directory, **data)
        assert np.isfinite(config.scale_of("l.0.q"))
        assert config.rank_of("l.0.q") >= 1
