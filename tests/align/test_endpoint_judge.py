"""A judge at an endpoint: a server of our own that speaks OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avops.align import Endpoint, EndpointJudge, parse_reply
from avops.errors import AvopsError, DataError, UserError
from judge_server import Server

pytest.importorskip("openai", reason="openai is not installed")

LEVELS = ("exp", "gen", "avd")


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def judge(server: Server, **options: Any) -> EndpointJudge:
    return EndpointJudge(Endpoint(server.url, "tiny-judge", **options), LEVELS)


@pytest.mark.parametrize("reply", ["avd", " AVD.\n", '"avd"', "`avd`", "**avd**"])
def test_replies_that_name_a_level(reply: str) -> None:
    assert parse_reply(reply, LEVELS) == "avd"


@pytest.mark.parametrize(
    "reply", ["", "the answer is avd", "avd exp", "avd, I think", "none", "av", '{"level": "avd"}']
)
def test_replies_that_name_none(reply: str) -> None:
    assert parse_reply(reply, LEVELS) is None


def test_a_verdict_of_the_endpoint(server: Server) -> None:
    server.reply = lambda _: "gen"
    made = judge(server)
    verdict = made.judge("What helps?", "It {query} depends {answer}.")
    assert (verdict.level, verdict.reply) == ("gen", "gen")
    (body,) = server.seen
    assert body["model"] == "tiny-judge"
    assert body["temperature"] == 0
    text = body["messages"][0]["content"]
    assert "What helps?" in text
    assert "It {query} depends {answer}." in text  # an answer's braces are its own
    assert "one of: exp, gen, avd." in text
    about = made.about()
    assert (about["requests"], about["prompt_tokens"], about["reply_tokens"]) == (1, 7, 1)
    assert server.keys == ["Bearer none"]


def test_a_key_is_sent_only_where_it_is_given(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    judge(server).judge("q?", "a")
    judge(server, api_key="mine").judge("q?", "a")
    assert server.keys == ["Bearer none", "Bearer mine"]


def test_other_replies_are_kept_and_place_nothing(server: Server) -> None:
    server.reply = lambda _: "It is expert advice."
    verdict = judge(server).judge("q?", "a")
    assert (verdict.level, verdict.reply) == (None, "It is expert advice.")


def test_an_empty_answer_is_not_sent(server: Server) -> None:
    assert judge(server).judge("q?", " \n").level is None
    assert server.seen == []


def test_failures_are_tried_again(server: Server) -> None:
    states: list[str | int] = [500, 429, "exp"]
    server.reply = lambda _: states.pop(0)
    assert judge(server).judge("q?", "a").level == "exp"
    assert len(server.seen) == 3


def test_an_endpoint_that_fails_for_good(server: Server) -> None:
    server.reply = lambda _: 401
    with pytest.raises(AvopsError, match=r"127.0.0.1.*the judge tiny-judge gave no reply.*--model"):
        judge(server, retries=0).judge("q?", "a")


def test_a_prompt_of_ones_own(server: Server, tmp_path: Path) -> None:
    prompt = tmp_path / "mine.txt"
    prompt.write_text("Q {query} A {answer} K {names}")
    judge(server, prompt=prompt).judge("why", "so")
    assert server.seen[0]["messages"][0]["content"] == "Q why A so K exp, gen, avd"
    prompt.write_text("Q {query}")
    with pytest.raises(DataError, match=r"mine.txt: no \{answer\} in the judge's prompt"):
        judge(server, prompt=prompt)
    with pytest.raises(DataError, match=r"nix.txt: the judge's prompt cannot be read"):
        judge(server, prompt=tmp_path / "nix.txt")


def test_levels_without_a_known_meaning_need_a_prompt(server: Server, tmp_path: Path) -> None:
    endpoint = Endpoint(server.url, "m")
    with pytest.raises(DataError, match=r"what the level 'good' means.*--judge-prompt"):
        EndpointJudge(endpoint, ("good", "bad"))
    prompt = tmp_path / "mine.txt"
    prompt.write_text("{query} {answer} good is better than bad: {names}")
    EndpointJudge(Endpoint(server.url, "m", prompt=prompt), ("good", "bad"))


def test_an_address_that_is_none() -> None:
    with pytest.raises(UserError, match=r"--endpoint localhost:8000: expected an address"):
        EndpointJudge(Endpoint("localhost:8000", "m"), LEVELS)
