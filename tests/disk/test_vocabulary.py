"""Token ids: the same tokens in two directories, whatever file they are read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avops.disk import vocabulary
from avops.disk.vocabulary import check_token_ids
from avops.errors import CheckpointError, MismatchError

TOKENS = ["<s>", "</s>", "a", "b", "ab"]


def bpe(tokens: list[str], added: dict[int, str] | None = None) -> dict[str, Any]:
    vocab = {token: number for number, token in enumerate(tokens)}
    extra = [{"id": number, "content": token} for number, token in (added or {}).items()]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": extra}


def unigram(tokens: list[str]) -> dict[str, Any]:
    return {"model": {"type": "Unigram", "vocab": [[token, -1.5] for token in tokens]}}


def put(directory: Path, **files: Any) -> Path:
    """Write files: ``tokenizer_json=...`` is tokenizer.json; texts and bytes go in as they are."""
    directory.mkdir(exist_ok=True)
    for key, value in files.items():
        stem, _, ending = key.rpartition("_")
        data = value if isinstance(value, (str, bytes)) else json.dumps(value)
        raw = data if isinstance(data, bytes) else data.encode()
        (directory / f"{stem}.{ending}").write_bytes(raw)
    return directory


def refusal(base: Path, other: Path, rows: int = 5, kind: type[Exception] = MismatchError) -> str:
    with pytest.raises(kind) as caught:
        check_token_ids(base, other, rows, "med")
    return str(caught.value)


@pytest.mark.parametrize("make", [bpe, unigram])
def test_the_same_and_longer_tokenizers(tmp_path: Path, make: Any) -> None:
    base = put(tmp_path / "base", tokenizer_json=make(TOKENS))
    other = put(tmp_path / "other", tokenizer_json=make([*TOKENS, "<pad>"]))
    check_token_ids(base, base, 5, "med")
    check_token_ids(base, other, 5, "med")
    check_token_ids(other, base, 6, "med")


@pytest.mark.parametrize("make", [bpe, unigram])
def test_the_first_difference_is_named(tmp_path: Path, make: Any) -> None:
    base = put(tmp_path / "base", tokenizer_json=make(TOKENS))
    other = put(tmp_path / "other", tokenizer_json=make(["<s>", "</s>", "b", "a", "ab"]))
    text = refusal(base, other)
    assert text.startswith(f"AV med: token id 2 is 'b' in {other}, but 'a' in the base {base}")
    # The rows that are merged decide: below id 2 the two agree.
    check_token_ids(base, other, 2, "med")
    assert "token id 2" in refusal(base, other, 3)


def test_added_tokens_and_gaps(tmp_path: Path) -> None:
    base = put(tmp_path / "base", tokenizer_json=bpe(TOKENS, {7: "<pad>", 0: "<s>"}))
    gap = put(tmp_path / "gap", tokenizer_json=bpe(TOKENS[:3], {4: "ab"}))
    check_token_ids(base, gap, 8, "med")
    other = put(tmp_path / "other", tokenizer_json=bpe(TOKENS, {7: "<|im_start|>"}))
    assert "token id 7 is '<|im_start|>'" in refusal(base, other, 8)
    check_token_ids(base, other, 7, "med")
    # Added tokens stand above the model's own.
    renamed = put(tmp_path / "renamed", tokenizer_json=bpe(TOKENS, {1: "<eos>"}))
    assert "token id 1 is '<eos>'" in refusal(base, renamed)


def test_the_config_supplements(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {"5": {"content": "<pad>"}}}
    base = put(tmp_path / "base", tokenizer_json=bpe(TOKENS), tokenizer_config_json=config)
    other = put(
        tmp_path / "other", tokenizer_json=bpe(TOKENS), added_tokens_json={"<|im_start|>": 5}
    )
    assert "token id 5 is '<|im_start|>'" in refusal(base, other, 6)
    # tokenizer.json knows better than the two.
    sure = put(
        tmp_path / "sure", tokenizer_json=bpe([*TOKENS, "<pad>"]), added_tokens_json={"x": 5}
    )
    check_token_ids(base, sure, 6, "med")


def test_other_files(tmp_path: Path) -> None:
    fast = put(tmp_path / "fast", tokenizer_json=bpe(TOKENS))
    vocab = {token: number for number, token in enumerate(TOKENS)}
    listed = put(tmp_path / "listed", vocab_json=vocab)
    lines = put(tmp_path / "lines", vocab_txt="<s>\n</s>\na\r\nb\nab\n")
    for one in (fast, listed, lines):
        for two in (fast, listed, lines):
            check_token_ids(one, two, 5, "med")
    swapped = put(tmp_path / "swapped", vocab_txt="<s>\n</s>\nb\na\nab")
    assert "token id 2" in refusal(listed, swapped)
    assert "token id 2" in refusal(fast, swapped)
    # Every line is a token, and its number the id: a blank one, too.
    blank = put(tmp_path / "blank", vocab_txt="\n<s>\n</s>\n")
    assert "token id 0 is ''" in refusal(fast, blank)


def test_binary_tokenizers(tmp_path: Path) -> None:
    base = put(tmp_path / "base", tokenizer_model=b"\n\x05spm", tokenizer_json=bpe(TOKENS))
    same = put(tmp_path / "same", tokenizer_model=b"\n\x05spm", added_tokens_json={"<pad>": 5})
    check_token_ids(base, same, 6, "med")
    odd = put(tmp_path / "odd", tokenizer_model=b"\n\x05spn")
    text = refusal(base, odd)
    assert f"AV med: tokenizer.model in {odd} is not the one of the base {base}" in text
    assert "put a tokenizer.json into both directories" in text
    more = put(tmp_path / "more", tokenizer_model=b"\n\x05spm", added_tokens_json={"<x>": 5})
    assert "token id 5 is '<x>'" in refusal(same, more, 6)
    check_token_ids(same, more, 5, "med")


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    base = put(tmp_path / "base", tokenizer_json=bpe(TOKENS))
    bare = put(tmp_path / "bare", config_json={})
    assert refusal(base, bare).endswith(f"put a tokenizer.json into the AV's {bare}")
    assert refusal(bare, base).endswith(f"put a tokenizer.json into the base's {bare}")
    text = refusal(bare, put(tmp_path / "bare2", tokenizer_model=b"x"))
    assert f"into the base's {bare} and the AV's {tmp_path / 'bare2'}" in text
    empty = put(tmp_path / "empty", tokenizer_json=bpe([], {9: "x"}))
    assert "no token id below 5 has a token in both" in refusal(base, empty)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[1]", "it is no JSON object"),
        (b"{", "Expecting property name"),
        (b"\xff", "decode"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"{}", "it has no model.vocab"),
        (b'{"model": {"vocab": 1}}', "it has no model.vocab"),
        (b'{"model": {"vocab": {"a": -1}}}', "the id -1, expected a whole number"),
        (b'{"model": {"vocab": {"a": true}}}', "the id True"),
        (b'{"model": {"vocab": {"a": 1.5}}}', "the id 1.5"),
        (b'{"model": {"vocab": {"a": "1"}}}', "the id 1,"),
        (b'{"model": {"vocab": {"a": [1]}}}', "the id [1]"),
        (b'{"model": {"vocab": {"a": {"b": 1}}}}', "the id {'b': 1}"),
        (b'{"model": {"vocab": [["a", 0], "b"]}}', "vocab entry 1 is no"),
        (b'{"model": {"vocab": {}}, "added_tokens": 5}', "added_tokens is no list"),
        (b'{"model": {"vocab": {}}, "added_tokens": [5]}', "no object"),
        (b'{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}', "a token is None"),
    ],
)
def test_malformed_tokenizers(tmp_path: Path, raw: bytes, message: str) -> None:
    base = put(tmp_path / "base", tokenizer_json=bpe(TOKENS))
    other = put(tmp_path / "other", tokenizer_json=raw)
    text = refusal(base, other, kind=CheckpointError)
    assert text.startswith(f"{other / 'tokenizer.json'}: not a tokenizer file that can be read")
    assert message in text


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = put(tmp_path / "base", tokenizer_json=bpe(TOKENS))
    monkeypatch.setattr(vocabulary, "_MAX_SIZE", 10)
    assert "expected a tokenizer of at most 10" in refusal(base, base, kind=CheckpointError)
    monkeypatch.undo()
    config = {"added_tokens_decoder": {"-1": {"content": "x"}}}
    other = put(tmp_path / "other", tokenizer_json=bpe(TOKENS), tokenizer_config_json=config)
    assert "added_tokens_decoder has the id '-1'" in refusal(base, other, kind=CheckpointError)


def test_a_tokenizer_of_the_tokenizers_package(tmp_path: Path) -> None:
    """What the package itself writes."""
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {token: number for number, token in enumerate(TOKENS)}
    for name in ("base", "other"):
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocab, unk_token="a"))
        made.add_special_tokens(["<s>", f"<{name}>"])
        (tmp_path / name).mkdir()
        made.save(str(tmp_path / name / "tokenizer.json"))
    check_token_ids(tmp_path / "base", tmp_path / "other", 5, "med")
    text = refusal(tmp_path / "base", tmp_path / "other", 6)
    assert "token id 5 is '<other>'" in text
