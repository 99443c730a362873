"""Answers: transformers' own generation and a loop without any cache as oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from avops.errors import DataError, NonFiniteError, UserError
from avops.score import (
    Generator,
    Items,
    Prompt,
    Question,
    Sampling,
    TextStream,
    TokenPlan,
    encode_questions,
    encode_raw,
    load_questions,
    new_tokenizer,
)
from avops.score.generate import _Choice, _nucleus

Make = Callable[..., Any]
ASK = Question("how long may a lease run, and what helps against a cold?")


def ask(tokenizer: Any, *texts: str, **options: Any) -> list[Prompt]:
    return encode_questions([Question(text) for text in texts], tokenizer, **options)


def no_cache(model: Any, ids: tuple[int, ...], count: int, stops: set[int]) -> list[int]:
    """The likeliest token of the whole sequence, again and again."""
    out: list[int] = []
    while len(out) < count and not (out and out[-1] in stops):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *out]]), use_cache=False).logits
        out.append(int(logits[0, -1].argmax()))
    return out


def test_greedy_is_transformers_own(any_model: Any, tokenizer: Any) -> None:
    """Also beyond the sliding windows of 12 tokens."""
    (prompt,) = encode_questions([ASK], tokenizer)
    assert len(prompt.ids) > 12
    answer = Generator(any_model, tokenizer, Sampling(max_tokens=40)).answer(prompt)
    stop = tokenizer.eos_token_id
    with torch.no_grad():
        theirs = any_model.generate(
            torch.tensor([prompt.ids]),
            attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=stop,
            pad_token_id=stop,
        )
    assert list(answer.ids) == theirs[0, len(prompt.ids) :].tolist()
    assert list(answer.ids) == no_cache(any_model, prompt.ids, 40, {stop})
    assert (answer.finish, answer.prompt_tokens) == ("length", len(prompt.ids))


def test_nothing_outlives_a_change_of_weights(make_model: Make, tokenizer: Any) -> None:
    model = make_model("mistral")
    (prompt,) = encode_questions([ASK], tokenizer)
    generator = Generator(model, tokenizer, Sampling(max_tokens=12))
    before = generator.answer(prompt)
    assert generator.answer(prompt).ids == before.ids
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    after = generator.answer(prompt)
    assert after.ids != before.ids
    assert list(after.ids) == no_cache(model, prompt.ids, 12, set())


def test_logits_are_f32_in_a_bf16_model(make_model: Make, tokenizer: Any) -> None:
    """bf16 logits lie on a grid coarse enough for ties."""
    model = make_model("mistral").bfloat16()
    (prompt,) = encode_questions([ASK], tokenizer)
    with torch.no_grad():
        logits, _ = Generator(model, tokenizer)._next(prompt.ids, None)
        hidden = model.model(input_ids=torch.tensor([prompt.ids])).last_hidden_state[:, -1:]
        wide = torch.nn.functional.linear(hidden.float(), model.lm_head.weight.float())
    assert torch.equal(logits, wide[0, 0])
    assert not torch.equal(logits, logits.bfloat16().float())


# ---- prompts


def test_prompts_are_what_scoring_puts_before_a_response(
    items: Items, plan: TokenPlan, tokenizer: Any
) -> None:
    prompts = ask(tokenizer, *(item.query for item in items))
    for i, prompt in enumerate(prompts):
        for level in range(len(items.levels)):
            scored = plan.sequence(i, level)[: plan.starts[i, level]].tolist()
            assert list(prompt.ids) == scored[: len(prompt.ids)]
            # " rest" may be " " + "rest" where " a" is one token: then the space is left open.
            assert tokenizer.decode(scored[len(prompt.ids) :]).strip(" ") == ""
    assert {prompt.stop for prompt in prompts} == {tokenizer.eos_token_id}


def test_templates_as_text(tokenizer: Any) -> None:
    text = "<s>[INST] {query} [/INST] {response}</s>"
    (chat,), (typed,) = ask(tokenizer, "is it wise?"), ask(tokenizer, "is it wise?", template=text)
    assert typed == chat
    (endless,) = ask(tokenizer, "is it wise?", template="<s>Q: {query} A: {response}")
    assert endless.stop is None
    assert tokenizer.decode(endless.ids) == "<s>Q: is it wise? A:"


def test_raw_prompts(tokenizer: Any) -> None:
    (prompt,) = encode_raw([Question("rest, water")], tokenizer)
    assert prompt.ids == tuple(tokenizer("rest, water")["input_ids"])
    assert (prompt.stop, prompt.trim) == (None, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the question: got '', expected a text with visible characters"),
        (" \n", r"the question: got ' \\n', expected a text with visible characters"),
        ("a \ud800", r"expected text that UTF-8 can encode"),
        ("a </s> b", r"the question, field 'query': got the special token '</s>' in the text"),
    ],
)
def test_questions_that_cannot_be_asked(tokenizer: Any, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ask(tokenizer, text)


def test_no_chat_template(make_tokenizer: Make) -> None:
    bare = make_tokenizer(chat_template=None)
    with pytest.raises(DataError, match=r"it has no chat template, and no template was given"):
        ask(bare, "hello?")
    assert encode_raw([Question("hello?")], bare)


def test_question_files(tmp_path: Path, write_items: Make) -> None:
    path = tmp_path / "q.txt"
    path.write_text("\ufeffone?\n\n  two?\r\nthree?", encoding="utf-8")
    assert load_questions(path) == [
        Question("one?", f"{path}, line 1"),
        Question("two?", f"{path}, line 3"),
        Question("three?", f"{path}, line 4"),
    ]
    record = {"domain": "med", "query": "why?", "responses": {"exp": "so", "gen": "or so"}}
    found = write_items(record)
    assert load_questions(found) == [Question("why?", f"{found}, line 1")]
    path.write_text(" \n")
    with pytest.raises(DataError, match=r"q.txt: no questions in the file, expected one per line"):
        load_questions(path)
    for make_bad in (lambda: path.write_bytes(b"\xff"), path.unlink):
        make_bad()
        with pytest.raises(DataError, match=r"q.txt: the questions cannot be read: .*; give a tex"):
            load_questions(path)


# ---- where an answer ends


def test_stops(make_model: Make, tokenizer: Any) -> None:
    """The template's end of turn, the tokenizer's end of text, the generation config's list."""
    model = make_model("mistral")
    (prompt,) = encode_questions([ASK], tokenizer)
    whole = Generator(model, tokenizer, Sampling(max_tokens=30)).answer(prompt)
    first = {token: whole.ids.index(token) for token in whole.ids}
    token, place = sorted(first.items(), key=lambda pair: pair[1])[-3]
    assert 0 < place < 29

    def ids(prompt: Prompt) -> tuple[int, ...]:
        answer = Generator(model, tokenizer, Sampling(max_tokens=30)).answer(prompt)
        assert answer.finish == "stop"
        assert answer.text == TextStreamed(tokenizer, answer.ids[:-1]).trimmed
        return answer.ids

    expected = whole.ids[: place + 1]
    assert ids(Prompt(prompt.ids, token)) == expected
    for given_ids in (token, [399, token]):
        model.generation_config.eos_token_id = given_ids
        assert ids(prompt) == expected


class TextStreamed:
    """The text of ``ids``, streamed."""

    def __init__(self, tokenizer: Any, ids: Any) -> None:
        stream = TextStream(tokenizer)
        self.pieces = [*map(stream.push, ids), stream.finish()]
        self.text = "".join(self.pieces)
        assert self.text == stream.shown
        self.trimmed = self.text.lstrip()


def test_the_models_positions_end_an_answer(make_model: Make, tokenizer: Any) -> None:
    (prompt,) = encode_questions([ASK], tokenizer)
    room = 5
    model = make_model("gpt2", n_positions=len(prompt.ids) + room)  # learnt: no more exist
    tokenizer_eos = {tokenizer.eos_token_id}
    answer = Generator(model, tokenizer).answer(prompt)
    assert answer.finish == "positions"
    assert len(answer.ids) == room + 1  # the last is never fed
    assert list(answer.ids) == no_cache(model, prompt.ids, room + 1, tokenizer_eos)
    enough = Generator(model, tokenizer, Sampling(max_tokens=room + 1)).answer(prompt)
    assert (enough.finish, enough.ids) == ("length", answer.ids)
    longer = Prompt(prompt.ids + prompt.ids[1:], place="q.txt, line 3")
    with pytest.raises(DataError, match=r"q.txt, line 3: the prompt has \d+ tokens, and the model"):
        Generator(model, tokenizer).check([prompt, longer])
    with pytest.raises(DataError, match=r"token id 400, and the model's vocabulary has 400 tokens"):
        Generator(model, tokenizer).answer(Prompt((1, 400)))


def test_weights_that_are_not_numbers(make_model: Make, tokenizer: Any) -> None:
    model = make_model("mistral")
    (prompt,) = encode_questions([ASK], tokenizer)
    generator = Generator(model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the question: the largest logit for token 1 .* nan"):
        generator.answer(prompt)
    with pytest.raises(UserError, match=r"MistralForCausalLM: the model is in training mode"):
        Generator(model.train(), tokenizer).answer(prompt)


# ---- text, piece by piece

POEM = "été — 🙂🙃 日本語 a\u0301 \u2028 end"


def test_no_half_characters(tokenizer: Any) -> None:
    ids = tokenizer(POEM, add_special_tokens=False)["input_ids"]
    pieces = TextStreamed(tokenizer, ids).pieces
    assert "".join(pieces) == POEM
    assert not any("\ufffd" in piece for piece in pieces)
    assert max(map(len, pieces)) <= 5  # a token, or the bytes of one character


@given(st.lists(st.integers(0, 399), max_size=60))
def test_pieces_add_up(tokenizer: Any, ids: list[int]) -> None:
    """Whatever tokens come: broken bytes, special tokens."""
    assert TextStreamed(tokenizer, ids).text == tokenizer.decode(ids, skip_special_tokens=True)


def metaspace() -> Any:
    """As Llama 2 and Mistral have it: ▁ for spaces, bytes as <0x..>, the first space dropped."""
    words = ["▁the", "▁law", "s", "▁", "é", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([f"<0x{b:02X}>" for b in range(256)] + words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return new_tokenizer(backend, bos_token="<s>", eos_token="</s>")


METASPACE = metaspace()


WORDS = st.integers(256, 262).map(lambda token: [token])
CHARACTERS = st.sampled_from(POEM).map(lambda char: list(char.encode()))


@given(st.lists(st.one_of(WORDS, CHARACTERS), max_size=40))
def test_pieces_add_up_with_bytes_as_tokens(parts: list[list[int]]) -> None:
    """Whole characters: one broken byte makes this decoder give up its whole row of bytes."""
    ids = [token for part in parts for token in part]
    assert TextStreamed(METASPACE, ids).text == METASPACE.decode(ids, skip_special_tokens=True)


def test_show_gets_the_text_as_it_comes(model: Any, tokenizer: Any) -> None:
    (prompt,) = encode_questions([ASK], tokenizer)
    pieces: list[str] = []
    answer = Generator(model, tokenizer, Sampling(max_tokens=50)).answer(prompt, pieces.append)
    assert len(pieces) > 10
    assert all(pieces)
    assert "".join(pieces) == answer.text
    assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True).lstrip()
    assert answer.rate == len(answer.ids) / answer.seconds


def test_white_space_before_an_answer(tokenizer: Any) -> None:
    """The template's, where there is one; the text's own otherwise."""
    for trim, shown in ((True, "a  b"), (False, "  a  b")):
        stream = TextStream(tokenizer, trim=trim)
        ids = tokenizer("  a  b", add_special_tokens=False)["input_ids"]
        assert "".join([*map(stream.push, ids), stream.finish()]) == shown


# ---- sampling


def test_sampling_repeats_itself_by_its_seed(model: Any, tokenizer: Any) -> None:
    first, second = ask(tokenizer, "what helps?", "is it wise?")

    def ids(prompt: Prompt, **changes: Any) -> tuple[int, ...]:
        sampling = Sampling(**{"max_tokens": 20, "temperature": 1.0, **changes})
        return Generator(model, tokenizer, sampling).answer(prompt).ids

    assert ids(first) == ids(first, seed=0)
    assert len({ids(first, seed=seed) for seed in range(5)}) == 5
    assert ids(first, temperature=1e-9) == ids(first, temperature=0.0)
    assert ids(first, top_p=1e-9) == ids(first, temperature=0.0)
    # Every answer begins the seed anew: what was asked before does not matter.
    generator = Generator(model, tokenizer, Sampling(20, 1.0))
    generator.answer(second)
    assert generator.answer(first).ids == ids(first)


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 2.0, -math.inf, 1.0, 1.0])
    choose = _Choice(Sampling(temperature=2.0, seed=3))
    count = 20_000
    drawn = np.bincount([choose(logits) for _ in range(count)], minlength=5) / count
    shares = torch.softmax(logits.double() / 2, 0).numpy()
    # Six standard deviations of a binomial share: exceeded with probability 2e-9 for each.
    assert (np.abs(drawn - shares) <= 6 * np.sqrt(shares * (1 - shares) / count)).all()
    assert drawn[2] == 0


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=30).filter(any),
    st.floats(0.01, 0.99),
)
def test_the_nucleus_is_the_smallest(weights: list[int], top_p: float) -> None:
    shares = np.array(weights) / sum(weights)
    kept = _nucleus(shares, top_p)
    order = sorted(range(shares.size), key=lambda i: (-shares[i], i))
    total, expected = 0.0, []
    for i in order:
        expected.append(i)
        total += shares[i]
        if total >= top_p:
            break
    assert kept.tolist() == sorted(expected)


def test_tokens_outside_the_nucleus_are_never_drawn() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    choose = _Choice(Sampling(temperature=1.0, top_p=0.7))
    assert {choose(logits) for _ in range(500)} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max tokens is 0, expected 1 or more"),
        ({"temperature": -0.1}, "temperature is -0.1, expected 0"),
        ({"temperature": math.nan}, "temperature is nan, expected 0"),
        ({"temperature": math.inf}, "temperature is inf, expected 0"),
        ({"top_p": 0.0}, "top p is 0.0, expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top p is 1.1, expected a number above 0 and at most 1"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**changes)


@pytest.mark.gpu
def test_answers_on_the_gpu(make_model: Make, tokenizer: Any) -> None:
    """The likeliest of these 8 tokens leads by .039 nats or more: the order of f32 sums, over at
    most 64 terms of logits below 4, moves logits by less than 1e-4."""
    (prompt,) = encode_questions([ASK], tokenizer)
    sampling = Sampling(max_tokens=8)
    cpu = Generator(make_model("mistral"), tokenizer, sampling).answer(prompt)
    gpu = Generator(make_model("mistral").cuda(), tokenizer, sampling).answer(prompt)
    assert gpu.ids == cpu.ids
