"""Token plans on disk: the same plan again, and never a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avops.errors import DataError
from avops.score import Items, TokenPlan, encode, plan_cache
from avops.score.plan_cache import encode_cached, plan_key

PLAIN = "<s>{query}\n{response}</s>"


def same(one: TokenPlan, other: TokenPlan) -> bool:
    arrays = ("ids", "offsets", "starts", "shared")
    return one.record == other.record and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


@pytest.mark.parametrize(
    ("template", "score_eos"), [(None, True), (None, False), (PLAIN, True), (PLAIN, False)]
)
def test_read_back_what_was_written(
    tmp_path: Path,
    items: Items,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    score_eos: bool,
) -> None:
    options = {"template": template, "score_eos": score_eos}
    want = encode(items, tokenizer, **options)
    first = encode_cached(items, tokenizer, tmp_path / "new", **options)
    monkeypatch.setattr(plan_cache, "encode", None)  # it must not be tokenised again
    second = encode_cached(items, tokenizer, tmp_path / "new", **options)
    assert same(first, want)
    assert same(second, want)
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"]


def test_whatever_decides_tokens_changes_the_key(
    items: Items, tokenizer: Any, make_tokenizer: Callable[..., Any]
) -> None:
    def key(it: Items = items, tok: Any = tokenizer, **options: Any) -> str:
        return plan_key(it, tok, **{"template": None, "score_eos": True} | options)

    other = replace(items.entries[2], query="how long?")
    changed = replace(items, entries=(*items.entries[:2], other, *items.entries[3:]))
    cut = replace(items, entries=items.entries[:-1])
    turned = replace(items, levels=items.levels[::-1])
    bos = make_tokenizer(bos_token="[INST]")
    chat = make_tokenizer("x" + tokenizer.chat_template)
    assert key() == key(replace(items, source="elsewhere"))
    keys = [key(), key(changed), key(cut), key(turned), key(tok=bos), key(tok=chat)]
    keys += [key(template=PLAIN), key(score_eos=False)]
    assert len(set(keys)) == len(keys)


def test_a_file_that_is_not_the_plan_is_refused(
    tmp_path: Path, items: Items, tokenizer: Any
) -> None:
    encode_cached(items, tokenizer, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)

    def refused(reason: str) -> None:
        with pytest.raises(DataError, match=rf"{path.name}: the token plan .*{reason}.*delete it"):
            encode_cached(items, tokenizer, tmp_path)

    path.write_bytes(good[: len(good) // 2])
    refused("")
    ids = arrays["ids"].copy()
    ids[7] += 1
    np.savez(path, **arrays | {"ids": ids})
    refused("its ids are not those that were written")
    np.savez(path, **arrays | {"starts": arrays["starts"][:-1]})
    refused("starts of shape")
    other = encode_cached(items, tokenizer, tmp_path / "other", score_eos=False)
    assert other.record.score_eos is False
    (foreign,) = (tmp_path / "other").iterdir()
    path.write_bytes(foreign.read_bytes())
    refused("it belongs to other items")
    path.unlink()
    assert same(encode_cached(items, tokenizer, tmp_path), encode(items, tokenizer))
