"""From items to tokens: borders, special tokens, templates, and the plan's record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from avops.errors import DataError
from avops.score import Item, Items, Token, encode, encode_ids, new_tokenizer

PLAIN = "<s>{query}\n{response}</s>"
BOS, EOS = 0, 1


def one(query: str, *responses: str) -> Items:
    levels = tuple("abcdef"[: len(responses)])
    item = Item("med", query, dict(zip(levels, responses, strict=True)), line=7)
    return Items("items.jsonl", levels, (item,))


def words(*vocabulary: str, **kwargs: Any) -> Any:
    """A tokenizer without pre-tokenisation whose merges make exactly these words."""
    specials = ["<s>", "</s>"]
    letters = sorted({letter for word in vocabulary for letter in word + "x"})
    tokens, merges = list(letters), []
    for word in vocabulary:
        for k in range(1, len(word)):
            if word[: k + 1] not in tokens:
                tokens.append(word[: k + 1])
                merges.append((word[:k], word[k]))
    backend = Tokenizer(models.BPE({token: k for k, token in enumerate(specials + tokens)}, merges))
    if "normalizer" in kwargs:
        backend.normalizer = kwargs["normalizer"]
    return new_tokenizer(backend, bos_token="<s>", eos_token="</s>")


def tokens(tokenizer: Any, ids: np.ndarray) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids.tolist())


def test_chat_is_tokenised_whole(tokenizer: Any) -> None:
    items = one("what helps?", "rest and water")
    plan = encode(items, tokenizer)
    text = "<s>[INST] what helps? [/INST] rest and water</s>"
    assert plan.sequence(0, 0).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert plan.ids.dtype == np.int32
    # Joining token lists would lose the merge of the template's space with the first word.
    head = tokenizer("<s>[INST] what helps? [/INST] ", add_special_tokens=False)["input_ids"]
    tail = tokenizer("rest and water</s>", add_special_tokens=False)["input_ids"]
    assert plan.sequence(0, 0).tolist() != head + tail
    first = plan.starts[0, 0]
    assert tokens(tokenizer, plan.sequence(0, 0)[first - 1 : first + 1]) == ["[/INST]", "Ġrest"]


def test_a_token_that_spans_the_border_belongs_to_the_response() -> None:
    tokenizer = words("water", "watch")
    plan = encode(one("wat", "er", "ch", "a"), tokenizer, template="<s>{query}{response}</s>")
    got = [tokens(tokenizer, plan.sequence(0, level)) for level in range(3)]
    assert got == [["<s>", "water", "</s>"], ["<s>", "watch", "</s>"], ["<s>", "wat", "a", "</s>"]]
    assert plan.starts.tolist() == [[1, 1, 2]]
    assert plan.scored.tolist() == [[2, 2, 2]]
    assert plan.shared.tolist() == [1]  # they part inside the query's last token


def test_a_token_that_spans_the_responses_end_belongs_to_it() -> None:
    tokenizer = words("ab", "qr")
    plan = encode(one("q", "a"), tokenizer, template="<s>{query}r{response}b</s>")
    assert tokens(tokenizer, plan.sequence(0, 0)) == ["<s>", "qr", "ab", "</s>"]
    assert (plan.starts[0, 0], plan.scored[0, 0]) == (2, 2)


def test_levels_may_part_before_either_response_starts() -> None:
    tokenizer = words("bcd", "ab")  # merges bc and bcd first, ab last
    plan = encode(one("xab", "cd", "x"), tokenizer, template="<s>{query}{response}</s>")
    got = [tokens(tokenizer, plan.sequence(0, level)) for level in range(2)]
    assert got == [["<s>", "x", "a", "bcd", "</s>"], ["<s>", "x", "ab", "x", "</s>"]]
    assert plan.starts.tolist() == [[3, 3]]
    assert plan.shared.tolist() == [2]


def test_white_space_at_the_end_belongs_to_the_response(tokenizer: Any) -> None:
    # Its trimmed offsets are empty, and stand at the response's end.
    items = one("q", "rest ")
    plan = encode(items, tokenizer, template=PLAIN, score_eos=False)
    assert tokenizer.decode(plan.sequence(0, 0)) == "<s>q\nrest "


def test_shared_prefix_ends_where_the_first_response_starts(tokenizer: Any) -> None:
    # Equal responses have every token in common, but only the query is shared.
    plan = encode(one("what helps?", "rest", "rest", "water"), tokenizer)
    assert plan.starts.tolist() == [[plan.shared[0]] * 3]
    prefix = plan.sequence(0, 0)[: plan.shared[0]]
    assert all((plan.sequence(0, k)[: plan.shared[0]] == prefix).all() for k in range(3))
    assert tokens(tokenizer, prefix)[-1] == "[/INST]"


def test_end_of_turn_is_scored_by_choice(tokenizer: Any) -> None:
    items = one("what helps?", "rest and water")
    scored, not_scored = encode(items, tokenizer), encode(items, tokenizer, score_eos=False)
    assert scored.sequence(0, 0)[-1] == EOS
    assert scored.sequence(0, 0)[:-1].tolist() == not_scored.sequence(0, 0).tolist()
    assert (scored.scored - not_scored.scored).tolist() == [[1]]
    for plan, flag in ((scored, True), (not_scored, False)):
        assert plan.record.end_of_turn == Token(EOS, "</s>")
        assert plan.record.score_eos is flag


def test_nothing_after_the_end_of_turn_is_scored(tokenizer: Any) -> None:
    items = one("what helps?", "rest")
    template = "<s>{query}\n{response} [/INST]\n<s>and so on</s>"
    plan = encode(items, tokenizer, template=template)
    assert tokens(tokenizer, plan.sequence(0, 0))[-3:] == ["est", "Ġ", "[/INST]"]
    assert plan.record.end_of_turn == Token(3, "[/INST]")
    plan = encode(items, tokenizer, template=template, score_eos=False)
    assert tokens(tokenizer, plan.sequence(0, 0))[-1:] == ["est"]


def test_template_without_end_of_turn(tokenizer: Any) -> None:
    items, template = one("what helps?", "rest"), "<s>{query}\n{response}"
    with pytest.raises(DataError, match=r"no special token, expected one end-of-turn token"):
        encode(items, tokenizer, template=template)
    assert encode(items, tokenizer, template=template, score_eos=False).record.end_of_turn is None


def test_doubled_bos_names_the_template(tokenizer: Any, make_tokenizer: Callable[..., Any]) -> None:
    items = one("what helps?", "rest")
    with pytest.raises(DataError) as caught:
        encode(items, tokenizer, template="<s><s>{query}\n{response}</s>")
    assert "items.jsonl, line 7, level 'a': the chat begins with '<s>' twice" in str(caught.value)
    assert "in the template '<s><s>{query}\\n{response}</s>'" in str(caught.value)
    doubled = make_tokenizer(
        "{{ bos_token }}<s>{{ messages[0].content }} {{ messages[1].content }}</s>"
    )
    with pytest.raises(DataError, match=r"begins with '<s>' twice in the template '\{\{ bos_token"):
        encode(items, doubled)


def test_missing_bos(tokenizer: Any, make_tokenizer: Callable[..., Any]) -> None:
    items = one("what helps?", "rest")
    with pytest.raises(DataError, match=r"does not begin with '<s>'.*write it as '<s>\{query\} "):
        encode(items, tokenizer, template="{query} {response}</s>")
    # A chat template is its makers' word: none there means none, and the record says so.
    bare = make_tokenizer("{{ messages[0].content }}[/INST] {{ messages[1].content }}</s>")
    plan = encode(items, bare)
    assert plan.record.bos is None
    assert BOS not in plan.sequence(0, 0)


def test_no_chat_template(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(None)
    with pytest.raises(DataError, match=r"no chat template.*--template '<s>\[INST\] \{query\} "):
        encode(one("q", "r"), tokenizer)
    plan = encode(one("q", "r"), tokenizer, template=PLAIN)
    assert plan.record.kind == "text"
    assert plan.record.template_sha256 == hashlib.sha256(PLAIN.encode()).hexdigest()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<s>{query}</s>", r"\{response\} stands in it 0 times, expected once"),
        ("<s>{query}{query}{response}</s>", r"\{query\} stands in it 2 times"),
        ("<s>{response} {query}</s>", r"\{response\} stands before \{query\}"),
    ],
)
def test_bad_plain_template(tokenizer: Any, template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(one("q", "r"), tokenizer, template=template)


def test_braces_in_items_are_text(tokenizer: Any) -> None:
    plan = encode(one("{response} {query}", "{query}"), tokenizer, template=PLAIN)
    assert tokenizer.decode(plan.sequence(0, 0)) == "<s>{response} {query}\n{query}</s>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<s>{{ messages[0].content }} {{ messages[1].content | upper }}</s>", r"shows the assis"),
        (
            "<s>{{ messages[0].content }} {{ messages[1].content | replace('rest', 'sleep') }}</s>",
            r"alters the response .*got 'sleep', expected 'rest'",
        ),
        (
            "<s>{{ messages[0].content }}{{ messages[1].content * 2 }}</s>",
            r"turn 2 times, expected",
        ),
        ("<s>{{ messages[0].content }}</s>", r"turn 0 times, expected once"),
        ("{{ raise_exception('users only') }}", r"fails on a user and an assistant.*users only"),
    ],
)
def test_chat_template_that_cannot_be_used(
    make_tokenizer: Callable[..., Any], template: str, message: str
) -> None:
    with pytest.raises(DataError, match=r"line 7, level 'a': the chat template .*" + message):
        encode(one("q", "rest"), make_tokenizer(template))


def test_template_may_trim_the_response(tokenizer: Any) -> None:
    plain, spaced = (encode(one("q", text), tokenizer) for text in ("rest", "  rest \n"))
    assert spaced.sequence(0, 0).tolist() == plain.sequence(0, 0).tolist()


def test_end_of_turn_that_depends_on_the_response(make_tokenizer: Callable[..., Any]) -> None:
    template = (
        "<s>{{ messages[0].content }}\n{{ messages[1].content }}"
        "{{ '</s>' if messages[0].content == 'q' else '[/INST]' }}"
    )
    items = one("q", "rest")
    other = Item("med", "other", {"a": "rest"}, 8)
    items = Items(items.source, items.levels, (*items.entries, other))
    with pytest.raises(DataError, match=r"after the response is </s> or \[/INST\], expected one"):
        encode(items, make_tokenizer(template))


@pytest.mark.parametrize(
    ("query", "response", "field"), [("a</s>b", "r", "query"), ("q", "<s> r", "responses.a")]
)
def test_special_tokens_in_items(tokenizer: Any, query: str, response: str, field: str) -> None:
    with pytest.raises(DataError, match=rf"line 7, field '{field}': got the special token '</?s>'"):
        encode(one(query, response), tokenizer)


def test_response_without_tokens() -> None:
    vanish = normalizers.Replace("\u200b", "")
    tokenizer = words("qr", normalizer=vanish)
    with pytest.raises(
        DataError, match=r"line 7, level 'b': the response has no tokens: '\\u200b'"
    ):
        encode(one("q", "r", "\u200b"), tokenizer, template="<s>{query}{response}</s>")


def test_response_without_context(tokenizer: Any) -> None:
    bare = words("qr")
    with pytest.raises(DataError, match=r"starts at token 0 of 2, expected at least one token bef"):
        encode(one("q", "r"), bare, template="{query}{response}</s>")


def test_slow_tokenizer() -> None:
    with pytest.raises(DataError, match=r"SimpleNamespace: it cannot give character offsets"):
        encode(one("q", "r"), SimpleNamespace(is_fast=False))


def test_truncation_and_padding_of_the_tokenizer_file_are_ignored(
    make_tokenizer: Callable[..., Any],
) -> None:
    tokenizer, items = make_tokenizer(), one("what helps?", "rest and water", "rest")
    want = encode(items, tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert encode(items, tokenizer).record == want.record


TEXT = st.text(st.sampled_from("ab ,.é世\n\t'😀restwater"), min_size=1, max_size=20)
VISIBLE = TEXT.filter(lambda text: text.strip())


@settings(deadline=None)  # a shared machine stalls now and then
@given(query=VISIBLE, responses=st.lists(VISIBLE, min_size=1, max_size=3))
def test_any_text(tokenizer: Any, query: str, responses: list[str]) -> None:
    items = one(query, *responses)
    plan = encode(items, tokenizer, template=PLAIN)
    for level, response in enumerate(responses):
        ids, start = plan.sequence(0, level), plan.starts[0, level]
        text = f"<s>{query}\n{response}</s>"
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        # The scored part is the fewest whole tokens that hold the response.
        border = len(text) - len(f"{response}</s>")
        before, more = tokenizer.decode(ids[:start]), tokenizer.decode(ids[: start + 1])
        assert len(before) <= border < len(more)
        assert tokenizer.decode(ids[start:]).endswith(f"{response}</s>")
    assert plan.shared[0] <= plan.starts.min()


def test_record(tokenizer: Any, items: Items) -> None:
    plan = encode(items, tokenizer)
    record = plan.record
    assert record.kind == "chat"
    assert record.template_sha256 == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert record.bos == Token(BOS, "<s>")
    assert record.first_ids == tuple(plan.ids[:8].tolist())
    assert record.last_ids == tuple(plan.sequence(0, 0)[-8:].tolist())
    assert (record.sequences, record.tokens) == (15, plan.ids.size)
    assert record.scored_tokens == plan.scored.sum() < plan.ids.size
    assert record.to_dict()["end_of_turn"] == {"id": EOS, "text": "</s>"}
    assert plan.starts.shape == plan.scored.shape == plan.lengths.shape == (5, 3)


def lists(plan: Any) -> list[list[list[int]]]:
    return [[plan.sequence(i, k).tolist() for k in range(3)] for i in range(len(plan.items))]


def test_ids_given_as_numbers(tokenizer: Any, items: Items) -> None:
    plan = encode(items, tokenizer)
    ids, starts = lists(plan), plan.starts.tolist()
    given_ids = encode_ids(items, ids, starts, score_eos=True, bos=Token(BOS, "<s>"))
    assert given_ids.record.sha256 == plan.record.sha256
    assert (given_ids.record.kind, given_ids.record.template_sha256) == ("ids", None)
    assert (given_ids.ids == plan.ids).all()
    assert (given_ids.shared == plan.shared).all()
    ids[4][2][-1] += 1
    other = encode_ids(items, ids, starts, score_eos=True)
    assert other.record.sha256 != plan.record.sha256


@pytest.mark.parametrize(
    ("ids", "starts", "message"),
    [
        ([[[0, 5]]], [[1]], r"sequences for 1 items with \[1\] levels, expected 1 items with 2"),
        ([[[0, 5], [0, 6]]], [[1]], r"starts for 1 items with \[1\] levels"),
        ([[[0, 5], [0, 6]]] * 2, [[1, 1]] * 2, r"sequences for 2 items"),
        ([[[0, 5], [0.5, 6]]], [[1, 1]], r"line 7, level 'b': got token ids of type float64"),
        ([[[0, 5], []]], [[1, 1]], r"line 7, level 'b': got token ids of type .* shape \[0\]"),
        ([[[0, 5], [0, -1]]], [[1, 1]], r"level 'b': token ids from -1 to 0"),
        ([[[0, 5], [0, 2**31]]], [[1, 1]], r"level 'b': token ids from 0 to 2147483648"),
        ([[[0, 5], [0, 6]]], [[1, 2]], r"level 'b': the response has no tokens"),
        ([[[0, 5], [0, 6]]], [[1, 3]], r"level 'b': scoring starts at token 3 of 2"),
        ([[[0, 5], [0, 6]]], [[0, 1]], r"level 'a': scoring starts at token 0 of 2"),
        ([[[0, 5], [0, 0, 6]]], [[1, 2]], r"level 'b': the chat begins with '<s>' twice, expected"),
    ],
)
def test_bad_ids(ids: Any, starts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_ids(one("q", "r", "s"), ids, starts, score_eos=True, bos=Token(BOS, "<s>"))


def test_pre_tokenizer_of_the_fixture_splits_words() -> None:
    # words() must merge across the border: it has no pre-tokenizer, the trained one has.
    assert pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("a b") == [
        ("a", (0, 1)),
        ("Ġb", (1, 3)),
    ]
