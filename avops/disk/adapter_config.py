"""adapter_config.json of PEFT: what scale an adapter's factors have, and what avops cannot take.

Source: PEFT's LoraConfig (0.21) and its get_pattern_key. The file is untrusted: every value that
counts is checked, and an option that avops does not know must be off.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from avops.disk.adapter_options import refuse_options
from avops.disk.reader import read_exactly
from avops.disk.source import open_regular
from avops.errors import CheckpointError

CONFIG = "adapter_config.json"
_MAX_CONFIG = 4_000_000
_MAX_PATTERNS = 10_000
_MAX_PATTERN = 512
_MAX_REPEATS = 3
_MAX_MODULE = 512

# A pattern may repeat single characters, not groups: matching then takes no exponential time.
_UNSAFE = re.compile(r"\)[*+{]|\(\?(?!:)|\\[1-9]")
_QUANTIFIER = re.compile(r"[*+?{]")

_F32 = struct.Struct("<f")

_Patterns = tuple[tuple[str, re.Pattern[str]], ...]


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's settings. ranks, alphas: by pattern, for the modules whose name matches.

    modules, base, saved: what the file says was targeted, trained on and saved whole, for reports.
    """

    path: Path
    rank: int
    alpha: float
    rslora: bool
    transposed: bool
    bias: str
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    base: str | None = None

    def rank_of(self, module: str) -> int:
        """The rank that the settings give ``module``."""
        return self.ranks.get(self._key(self._rank_patterns, module), self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha that the settings give ``module``."""
        return self.alphas.get(self._key(self._alpha_patterns, module), self.alpha)

    def scale_of(self, module: str) -> float:
        """The factor on B@A, alpha / rank (rslora: alpha / √rank), rounded to float32 once."""
        alpha, rank = self.alpha_of(module), self.rank_of(module)
        scale = alpha / (math.sqrt(rank) if self.rslora else rank)
        rounded: float = _F32.unpack(_F32.pack(scale))[0]
        return rounded

    def _key(self, patterns: _Patterns, module: str) -> str:
        """The first pattern that matches the end of ``module``, as PEFT's get_pattern_key."""
        if patterns and len(module) > _MAX_MODULE:
            raise CheckpointError(
                f"{self.path.parent}: module name {module[:50]!r}... has {len(module)} characters, "
                f"expected at most {_MAX_MODULE} beside rank_pattern and alpha_pattern"
            )
        return next((text for text, pattern in patterns if pattern.match(module)), module)

    @cached_property
    def _rank_patterns(self) -> _Patterns:
        return tuple((text, _compile(text, self.path)) for text in self.ranks)

    @cached_property
    def _alpha_patterns(self) -> _Patterns:
        return tuple((text, _compile(text, self.path)) for text in self.alphas)


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read the settings in the file ``path``.

    Raises CheckpointError for a file that is not valid, and for every option that makes the
    adapter more than base + scale·B@A, by its name.
    """
    data = _load(path)
    refuse_options(data, path)

    def get(key: str, check: Callable[[Any], bool], expected: str, *default: Any) -> Any:
        value = data.get(key, *default)
        if not check(value):
            raise CheckpointError(
                f"{path}: {key} is {json.dumps(value)[:100]}, expected {expected}; "
                "download the adapter again, or save it again with PEFT"
            )
        return value

    targets = get("target_modules", _is_targets, "a name or a list of names", None) or ()
    return AdapterConfig(
        path=path,
        rank=get("r", _is_rank, "a whole number above 0"),
        alpha=float(get("lora_alpha", _is_alpha, "a number of at most 1e38")),
        rslora=get("use_rslora", _is_bool, "true or false", False),
        transposed=get("fan_in_fan_out", _is_bool, "true or false", False),
        bias=get(
            "bias", lambda v: v in ("none", "all", "lora_only"), "none, all or lora_only", "none"
        ),
        ranks=_patterns(get("rank_pattern", _table(_is_rank), "module to rank", {}), path),
        alphas=_patterns(get("alpha_pattern", _table(_is_alpha), "module to alpha", {}), path),
        modules=(targets,) if isinstance(targets, str) else tuple(targets),
        saved=tuple(get("modules_to_save", _is_names, "a list of names", None) or ()),
        base=get("base_model_name_or_path", _is_name, "a name", None),
    )


def _load(path: Path) -> dict[str, Any]:
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size > _MAX_CONFIG:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {_MAX_CONFIG}")
        raw = bytearray(size)
        read_exactly(fd, raw, 0, str(path))
    finally:
        os.close(fd)

    def no_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("duplicate key in an object")
        return table

    try:
        data = json.loads(raw, parse_constant=no_constant, object_pairs_hook=unique)
        if not isinstance(data, dict):
            raise ValueError(f"{type(data).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a valid adapter configuration: {error or 'nested too deeply'}; expected "
            "the JSON object that PEFT writes"
        ) from None
    return data


def _compile(text: str, path: Path) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: pattern {text[:100]!r} is no regular expression: {error}; name the module"
        ) from None


def _patterns(table: Mapping[str, Any] | None, path: Path) -> dict[str, Any]:
    """``table`` without nulls. Raises CheckpointError for one that would take long to match."""
    table = table or {}
    if len(table) > _MAX_PATTERNS:
        raise CheckpointError(
            f"{path}: {len(table)} patterns in rank_pattern or alpha_pattern, expected at most "
            f"{_MAX_PATTERNS}"
        )
    for text in table:
        bare = re.sub(r"\\[^1-9]|\[[^\]]*\]|\(\?:", "", text)
        if (
            len(text) > _MAX_PATTERN
            or _UNSAFE.search(bare)
            or len(_QUANTIFIER.findall(bare)) > _MAX_REPEATS
        ):
            raise CheckpointError(
                f"{path}: pattern {text[:100]!r} may take too long to match, expected at most "
                f"{_MAX_PATTERN} characters and {_MAX_REPEATS} repetitions of single characters; "
                "name the modules instead"
            )
    return dict(table)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _is_alpha(value: Any) -> bool:
    # The bound keeps scales finite in float32, too.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= 1e38


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _is_targets(value: Any) -> bool:
    return isinstance(value, str) or _is_names(value)


def _table(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        value is None or (isinstance(value, dict) and all(map(check, value.values())))
    )
