"""Claims: what a checkpoint's recipe and index say of its files. Read as untrusted text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avops.disk import RECIPE_NAME, Tensor
from avops.disk.checkpoint import INDEX, loose_weights
from avops.disk.digest import DIGEST_SIZE
from avops.disk.source import open_regular
from avops.errors import CheckpointError

_MAX_SIZE = 200_000_000
_SHOWN = 3


@dataclass(frozen=True)
class Claim:
    """What the recipe says of a file; None is what an older recipe does not say."""

    size: int | None = None
    digest: str | None = None


@dataclass
class Claims:
    """What is said of the checkpoint's files.

    recipe: the recipe file's name, if there is one. files: what it lists. weight_map: tensor to
    file, of the index. problems: (file, what) of what is wrong with the two themselves.
    """

    recipe: str | None = None
    files: dict[str, Claim] = field(default_factory=dict)
    weight_map: dict[str, str] | None = None
    total_size: Any = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def shards(self) -> tuple[str, ...]:
        """The files that the index names."""
        return tuple(sorted(set((self.weight_map or {}).values())))

    def named_by(self, name: str) -> str:
        """Who names the file ``name``: ``index.json names it``."""
        who = [self.recipe] if self.recipe and name in self.files else []
        who += [INDEX] if name in self.shards else []
        return f"{' and '.join(who)} name{'' if len(who) > 1 else 's'} it"


class _ClaimError(ValueError):
    pass


def read_claims(path: Path, present: Sequence[str]) -> Claims:
    """The claims on the file or directory ``path``; ``present``: names in its directory."""
    claims = Claims()
    if path.is_dir():
        if RECIPE_NAME in present:
            _read_recipe(claims, path / RECIPE_NAME)
        if INDEX in present:
            _read_index(claims, path / INDEX)
    else:
        own = f"{path.stem}.{RECIPE_NAME}"
        for name in (own, RECIPE_NAME):
            # A directory's recipe speaks of the file only if it lists it.
            if claims.recipe is None and name in present:
                _read_recipe(claims, path.parent / name)
                if name != own and path.name not in claims.files:
                    claims = Claims()
        _take_renamed(claims, path.name)
    if claims.recipe is None:
        claims.notes.append("no recipe of avops here, so no digests: headers and values only")
    elif not any(claim.digest for claim in claims.files.values()):
        claims.notes.append(
            f"{claims.recipe} holds no digests, as older versions of avops wrote it: headers and "
            "values only"
        )
    return claims


def _take_renamed(claims: Claims, name: str) -> None:
    """A single file may have been renamed together with its recipe."""
    if claims.recipe is None or not claims.files or name in claims.files:
        return
    if len(claims.files) == 1:
        (old,) = claims.files
        claims.files = {name: claims.files[old]}
        claims.notes.append(f"{claims.recipe} calls the file {old!r}: it was renamed")
    else:
        claims.problems.append((claims.recipe, f"does not list {name!r}"))


def _read_recipe(claims: Claims, path: Path) -> None:
    claims.recipe = path.name
    try:
        record = _load(path)
        files = record.get("files", [])
        if isinstance(files, list):
            files = dict.fromkeys(_plain(name) for name in files)
            files.pop(path.name, None)
        elif not isinstance(files, dict):
            raise _ClaimError("its files are neither a list nor an object")
        claims.files = {_plain(name): _claim(name, entry) for name, entry in files.items()}
    except (_ClaimError, CheckpointError) as error:
        claims.files = {}
        claims.problems.append((path.name, f"not a recipe that can be read: {error}"))


def _claim(name: str, entry: Any) -> Claim:
    if entry is None:
        return Claim()
    size = entry.get("bytes") if isinstance(entry, dict) else None
    digest = entry.get("xxh3") if isinstance(entry, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _ClaimError(f"the entry of {name!r} has no whole number of bytes")
    digits = set("0123456789abcdef")
    if not isinstance(digest, str) or len(digest) != 2 * DIGEST_SIZE or set(digest) - digits:
        raise _ClaimError(f"the entry of {name!r} has no xxh3 digest of {2 * DIGEST_SIZE} digits")
    return Claim(size, digest)


def _read_index(claims: Claims, path: Path) -> None:
    try:
        index = _load(path)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise _ClaimError("it has no weight_map")
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or not file.endswith(".safetensors"):
                raise _ClaimError(f"it puts tensor {tensor!r} into {str(file)[:80]!r}")
            _plain(file)
        claims.weight_map = weight_map
        metadata = index.get("metadata")
        claims.total_size = metadata.get("total_size") if isinstance(metadata, dict) else None
    except (_ClaimError, CheckpointError) as error:
        claims.problems.append((path.name, f"not an index that can be read: {error}"))


def _plain(name: Any) -> str:
    """``name``, refused unless it is a file in the same directory."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise _ClaimError(f"it names {str(name)[:80]!r}, expected a plain file name")
    return name


def _load(path: Path) -> dict[str, Any]:
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_size > _MAX_SIZE:
            raise _ClaimError(f"larger than {_MAX_SIZE:,} bytes")
        try:
            data = json.load(file)
        except (ValueError, RecursionError) as error:
            raise _ClaimError(f"no valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _ClaimError("no JSON object")
    return data


def check_index(
    claims: Claims, shards: Mapping[str, Sequence[Tensor]]
) -> Iterator[tuple[str, str]]:
    """Problems (file, what) between the index and the shards' headers, both ways.

    shards: the tensors of those whose headers are good, by name.
    """
    if claims.weight_map is None:
        return
    listed: dict[str, set[str]] = {}
    for key, file in claims.weight_map.items():
        listed.setdefault(file, set()).add(key)
    homes: dict[str, str] = {}
    nbytes = 0
    for name, tensors in shards.items():
        held = {tensor.name for tensor in tensors}
        nbytes += sum(tensor.nbytes for tensor in tensors)
        wanted = listed.get(name, set())
        if wanted - held:
            yield INDEX, f"puts {_count(wanted - held)} into {name}, which lacks them"
        if held - wanted:
            yield INDEX, f"does not put {_count(held - wanted)} into {name}, which holds them"
        for twice in sorted(held & homes.keys()):
            yield name, f"tensor {twice!r} is in {homes[twice]}, too"
        homes |= dict.fromkeys(held, name)
    if set(listed) - set(shards):
        return  # The sum is over all shards or over none.
    if claims.total_size is None:
        claims.notes.append(f"{INDEX} has no total_size")
    elif claims.total_size != nbytes:
        yield INDEX, f"total_size is {claims.total_size!r}, but the tensors have {nbytes} bytes"


def own_weights(present: Sequence[str]) -> tuple[str, ...]:
    """The weights of a directory that neither recipe nor index describe."""
    return tuple(loose_weights(present))


def _count(names: set[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:_SHOWN])
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({shown}{more})"
