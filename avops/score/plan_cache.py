"""Token plans on disk: tokenised once per data set, tokenizer and template.

A plan's file is named by the hash of everything that decides its tokens: the items, the whole
tokenizer, the template and whether the end of a turn is scored. What is read back is checked
against the hash of its own ids before it is used. A plan holds no weights, so no λ changes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError
from avops.score.plan import Framing, Token, TokenPlan, build_plan
from avops.score.prompts import ChatFormat, encode

if TYPE_CHECKING:
    from os import PathLike

    from avops.score.items import Items

FORMAT = "avops token plan 1"
ARRAYS = ("ids", "offsets", "starts")


def encode_cached(
    items: Items,
    tokenizer: Any,
    directory: str | PathLike[str],
    *,
    template: str | None = None,
    score_eos: bool = True,
) -> TokenPlan:
    """As ``encode``, from a file in ``directory`` if it is there, and else written to it.

    Raises
    ------
    DataError
        As ``encode``, and for a file in ``directory`` that is not what its name says.

    """
    key = plan_key(items, tokenizer, template=template, score_eos=score_eos)
    path = Path(directory) / f"{key}.npz"
    if path.exists():
        return load_plan(path, items, key)
    plan = encode(items, tokenizer, template=template, score_eos=score_eos)
    chat_format = ChatFormat.of(tokenizer, template)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_plan(plan, path, key, chat_format.template)
    return plan


def plan_key(items: Items, tokenizer: Any, *, template: str | None, score_eos: bool) -> str:
    """The hash of everything that decides a plan's tokens."""
    chat_format = ChatFormat.of(tokenizer, template)
    entries = [[i.domain, i.query, [i.responses[x] for x in items.levels]] for i in items]
    added = {n: str(token) for n, token in tokenizer.added_tokens_decoder.items()}
    parts = (
        FORMAT,
        json.dumps([items.levels, entries]),
        tokenizer.backend_tokenizer.to_str(),
        json.dumps([added, tokenizer.special_tokens_map], sort_keys=True, default=str),
        json.dumps([chat_format.kind, chat_format.template, score_eos]),
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def save_plan(plan: TokenPlan, path: Path, key: str, template: str | None) -> None:
    """Write ``plan`` under ``path`` in one step: there is never half a file."""
    framing = Framing(
        plan.record.kind,
        template,
        plan.record.bos,
        plan.record.end_of_turn,
        plan.record.score_eos,
    )
    head = {"format": FORMAT, "key": key, "sha256": plan.record.sha256, **asdict(framing)}
    arrays = {name: getattr(plan, name) for name in ARRAYS}
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:16]}-")
    try:
        with os.fdopen(fd, "wb") as file:
            np.savez(file, head=np.array(json.dumps(head)), **arrays)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def load_plan(path: Path, items: Items, key: str) -> TokenPlan:
    """The plan of ``items`` in ``path``, if it is the one of ``key``."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            ids, offsets, starts = (file[name] for name in ARRAYS)
        if (head["format"], head["key"]) != (FORMAT, key):
            raise ValueError("it belongs to other items, another tokenizer or template")
        shape = (len(items), len(items.levels))
        if starts.shape != shape or offsets.size != starts.size + 1:
            raise ValueError(f"starts of shape {starts.shape}, expected {shape}")
        cut = np.split(ids, offsets[1:-1])
        rows: Any = [cut[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]
        bos, end = (head[name] and Token(**head[name]) for name in ("bos", "end_of_turn"))
        framing = Framing(head["kind"], head["template"], bos, end, head["score_eos"])
        plan = build_plan(items, rows, starts.tolist(), framing)
        if plan.record.sha256 != head["sha256"]:
            raise ValueError("its ids are not those that were written")
    except (
        DataError,
        EOFError,
        KeyError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(
            f"{path}: the token plan cannot be used: {error}; expected a file that avops wrote; "
            "delete it, and it is made again"
        ) from error
    return plan
