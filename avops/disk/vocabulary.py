"""Vocabularies: whether two tokenizers give the same ids to the same tokens.

Tokens are read from tokenizer.json (any model), without it from vocab.json or vocab.txt, with
what tokenizer_config.json and added_tokens.json add. Where one side has none of the first three,
the tokenizer's binary files must be the same bytes. Nothing is run, and no tokenizer is built.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avops.disk.source import open_regular
from avops.errors import CheckpointError, MismatchError

_MAX_SIZE = 128 << 20
_MAX_ID = 1 << 31
_FAST, _CONFIG, _ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
# Kept by the model's own library; their names may go on with a version (tokenizer.model.v3).
_BINARY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")

Tokens = dict[int, str]


class _TokenizerError(ValueError):
    pass


def check_token_ids(base_dir: Path, other_dir: Path, rows: int, name: str) -> None:
    """Refuse unless token ids below ``rows`` mean the same token in both directories.

    An id that has no token in one of them (padding, a reserved row) fits anything. ``name`` is
    the alignment vector whose tokenizer is in ``other_dir``. Raises MismatchError naming the
    first id that differs, or the file that is needed to tell; CheckpointError for a tokenizer
    that cannot be read.
    """
    mine, theirs = _tokens(base_dir), _tokens(other_dir)
    if mine and theirs:
        _compare(mine, theirs, (base_dir, other_dir), rows, name)
        return
    if not _same_binary(base_dir, other_dir, rows, name):
        _refuse_unknown(base_dir, other_dir, name)
    # Beside a binary file, tokens may still be added in JSON.
    _compare(_extras(base_dir), _extras(other_dir), (base_dir, other_dir), rows, name, some=False)


def _compare(
    mine: Tokens,
    theirs: Tokens,
    where: tuple[Path, Path],
    rows: int,
    name: str,
    *,
    some: bool = True,
) -> None:
    """Refuse the first id below ``rows`` that differs; with ``some``, also none in common."""
    shared = sorted(number for number in mine.keys() & theirs.keys() if number < rows)
    for number in shared:
        if mine[number] != theirs[number]:
            raise MismatchError(
                f"AV {name}: token id {number} is {_shown(theirs[number])} in {where[1]}, but "
                f"{_shown(mine[number])} in the base {where[0]}: --vocab base merges the rows of "
                f"the {rows:,} ids that both have, so those must be the same tokens; retrain it on "
                "the base's tokenizer, or leave it out"
            )
    if some and not shared:
        raise MismatchError(
            f"AV {name}: no token id below {rows:,} has a token in both {where[1]} and the base "
            f"{where[0]}, so nothing tells whether their rows fit; put the right {_FAST} there"
        )


def _shown(token: str) -> str:
    return repr(token if len(token) <= 60 else token[:60] + "…")


def _tokens(directory: Path) -> Tokens:
    """All tokens by id; none without a file that lists them."""
    if (directory / _FAST).exists():
        found = _parsed(directory / _FAST, _fast_tokens)
    elif (directory / "vocab.json").exists():
        found = _parsed(directory / "vocab.json", _inverted)
    elif (directory / "vocab.txt").exists():
        text = _read(directory / "vocab.txt").decode("utf-8", "replace")
        lines = text.removesuffix("\n").split("\n")
        found = {number: line.rstrip("\r") for number, line in enumerate(lines)}
    else:
        return {}
    return _extras(directory) | found


def _extras(directory: Path) -> Tokens:
    """Tokens that tokenizer_config.json and added_tokens.json add."""
    found: Tokens = {}
    if (directory / _ADDED).exists():
        found |= _parsed(directory / _ADDED, _inverted)
    if (directory / _CONFIG).exists():
        found |= _parsed(directory / _CONFIG, _decoder_tokens)
    return found


def _fast_tokens(data: Mapping[str, Any]) -> Tokens:
    model = data.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        found = _inverted(vocab)
    elif isinstance(vocab, list):
        # Unigram: the place in the list is the id, and each entry is [token, score].
        found = {}
        for number, entry in enumerate(vocab):
            if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
                raise _TokenizerError(f"vocab entry {number} is no [token, score]")
            found[number] = entry[0]
    else:
        raise _TokenizerError("it has no model.vocab")
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        raise _TokenizerError("added_tokens is no list")
    for entry in added:
        if not isinstance(entry, dict):
            raise _TokenizerError("added_tokens holds something that is no object")
        found[_id(entry.get("id"))] = _token(entry.get("content"))
    return found


def _inverted(vocab: Mapping[str, Any]) -> Tokens:
    found: Tokens = {}
    for token, value in vocab.items():
        number = _id(value)
        # Of two tokens with one id the lesser, whatever the order in the file.
        found[number] = min(token, found.get(number, token))
    return found


def _decoder_tokens(data: Mapping[str, Any]) -> Tokens:
    decoder = data.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise _TokenizerError("added_tokens_decoder is no object")
    found: Tokens = {}
    for number, entry in decoder.items():
        if not number.isdecimal() or len(number) > 10:
            raise _TokenizerError(f"added_tokens_decoder has the id {number[:40]!r}")
        content = entry.get("content") if isinstance(entry, dict) else entry
        found[_id(int(number))] = _token(content)
    return found


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_ID:
        raise _TokenizerError(f"a token has the id {str(value)[:40]}, expected a whole number")
    return value


def _token(value: Any) -> str:
    if not isinstance(value, str):
        raise _TokenizerError(f"a token is {str(value)[:40]}, expected a text")
    return value


def _parsed(path: Path, tokens: Callable[[Mapping[str, Any]], Tokens]) -> Tokens:
    try:
        data = json.loads(_read(path))
        if not isinstance(data, dict):
            raise _TokenizerError("it is no JSON object")
        return tokens(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(
            f"{path}: not a tokenizer file that can be read: {reason}; download it again"
        ) from None


def _read(path: Path) -> bytes:
    fd = open_regular(path)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > _MAX_SIZE:
            raise CheckpointError(
                f"{path}: {size:,} bytes, expected a tokenizer of at most {_MAX_SIZE:,}"
            )
        return file.read(_MAX_SIZE + 1)


def _same_binary(base_dir: Path, other_dir: Path, rows: int, name: str) -> bool:
    """Whether both have the same binary tokenizer; False where none is in both."""
    mine, theirs = _binaries(base_dir), _binaries(other_dir)
    shared = sorted(mine & theirs)
    if not shared:
        return False
    if _read(base_dir / shared[0]) != _read(other_dir / shared[0]):
        raise MismatchError(
            f"AV {name}: {shared[0]} in {other_dir} is not the one of the base {base_dir}, so "
            f"nothing tells whether the {rows:,} shared ids are the same tokens; put a {_FAST} "
            "into both directories (saving the tokenizer with transformers writes one)"
        )
    return True


def _binaries(directory: Path) -> set[str]:
    try:
        return {name for name in os.listdir(directory) if name.startswith(_BINARY)}
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot list it: {error.strerror}") from None


def _refuse_unknown(base_dir: Path, other_dir: Path, name: str) -> None:
    places = [
        f"{what} {directory}"
        for what, directory in (("the base's", base_dir), ("the AV's", other_dir))
        if not (directory / _FAST).exists()
    ]
    raise MismatchError(
        f"AV {name}: --vocab base needs the tokenizers of both models, to see that the shared ids "
        f"are the same tokens; put a {_FAST} into {' and '.join(places)}"
    )
