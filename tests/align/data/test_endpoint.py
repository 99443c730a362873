"""The endpoint: every way in which it fails, and what becomes of the answers before."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from avops.align.data import Answer, Chat, Endpoint, Journal, Options
from avops.align.data.endpoint import read_completion
from avops.align.data.request import Request
from avops.errors import AvopsError, UserError
from fake_endpoint import FakeEndpoint, Reply, completion, error, usual


def requests(count: int = 1, **chat: object) -> list[Request]:
    maker = Chat("fake", **chat)  # type: ignore[arg-type]
    return [maker.request("responses", f"r{i}", f"EXP 1 paragraph about {i}") for i in range(count)]


def unseen(_done: int, _total: int) -> None:
    pass


def ask(
    server: FakeEndpoint, tmp_path: Path, wanted: list[Request], **options: object
) -> tuple[dict[str, Answer], Endpoint]:
    opened = Options(server.url, **{"retries": 2, "timeout": 5.0, **options})  # type: ignore[arg-type]
    with Journal(tmp_path / "journal") as journal:
        endpoint = Endpoint(opened, journal)
        return endpoint.ask(wanted, unseen), endpoint


def test_an_answer_is_what_the_endpoint_said(server: FakeEndpoint, tmp_path: Path) -> None:
    (wanted,) = requests(temperature=0.5, max_tokens=7, extra={"top_p": 0.9})
    answers, endpoint = ask(server, tmp_path, [wanted], api_key="secret")
    text = usual(wanted.prompt)
    assert answers == {wanted.key: Answer(text, "stop", None, "fake-1", 10, len(text) // 4)}
    assert server.bodies == [
        {
            "model": "fake",
            "messages": [{"role": "user", "content": wanted.prompt}],
            "temperature": 0.5,
            "max_tokens": 7,
            "top_p": 0.9,
        }
    ]
    assert server.keys == ["Bearer secret"]
    assert (endpoint.attempts, endpoint.answered) == (1, 1)


def test_null_takes_a_field_away(server: FakeEndpoint, tmp_path: Path) -> None:
    ask(server, tmp_path, requests(extra={"max_tokens": None, "max_completion_tokens": 9}))
    assert "max_tokens" not in server.bodies[0]
    assert server.bodies[0]["max_completion_tokens"] == 9


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_what_may_pass_is_tried_again(server: FakeEndpoint, tmp_path: Path, status: int) -> None:
    server.script = lambda _, before: (
        error(status, "busy", retry_after_ms="1") if before < 2 else None
    )
    (wanted,) = requests()
    answers, endpoint = ask(server, tmp_path, [wanted])
    assert answers[wanted.key].text == usual(wanted.prompt)
    assert (endpoint.attempts, endpoint.answered) == (3, 1)


@pytest.mark.parametrize(
    ("broken", "pauses"),
    [
        (Reply(body=completion("x" * 400), cut=100), 1),  # the body ends early
        (Reply(raw=b'{"choices": [{"mess'), 1),
        (Reply(raw=b"<html>busy</html>"), 1),
        (Reply(body={"error": {"message": "no choices"}}), 1),
        (Reply(body={"choices": []}), 1),
        (Reply(body=[1]), 1),
        (Reply(hang=True), 1),
    ],
    ids=["cut", "half", "html", "error", "nothing", "list", "hang"],
)
def test_what_is_no_completion_is_tried_again(
    server: FakeEndpoint, tmp_path: Path, broken: Reply, pauses: int
) -> None:
    server.script = lambda _, before: broken if before < pauses else None
    (wanted,) = requests()
    answers, endpoint = ask(server, tmp_path, [wanted], timeout=2.0)
    assert answers[wanted.key].text == usual(wanted.prompt)
    assert (endpoint.attempts, endpoint.answered) == (2, 1)


def test_what_does_not_pass_is_said_and_the_rest_is_kept(
    server: FakeEndpoint, tmp_path: Path
) -> None:
    wanted = requests(5)
    bad = wanted[2].prompt
    server.script = lambda prompt, _: (
        error(500, "out of order", retry_after_ms="1") if prompt == bad else None
    )
    with pytest.raises(AvopsError) as raised:
        ask(server, tmp_path, wanted)
    assert raised.value.exit_code == 1
    said = str(raised.value)
    assert "1 of 5 requests failed after 2 retries each" in said
    assert "HTTP 500: " in said
    assert "out of order" in said
    assert "the same command goes on from there" in said
    assert server.prompts[bad] == 3
    server.script = lambda _prompt, _before: None
    server.forget()
    answers, _ = ask(server, tmp_path, wanted)
    assert len(answers) == 5
    assert server.prompts == {bad: 1}


def test_bodies_that_stay_broken(server: FakeEndpoint, tmp_path: Path) -> None:
    server.script = lambda _prompt, _before: Reply(body={"ok": True})
    with pytest.raises(AvopsError, match=r'a body that is no chat completion: \{"ok": true\}'):
        ask(server, tmp_path, requests(), retries=1)


def test_a_server_that_is_not_there(server: FakeEndpoint, tmp_path: Path) -> None:
    server.__exit__()
    with pytest.raises(AvopsError, match="ConnectError"):
        ask(server, tmp_path, requests(), retries=0)


def test_time_outs_are_said(server: FakeEndpoint, tmp_path: Path) -> None:
    server.script = lambda _prompt, _before: Reply(hang=True)
    with pytest.raises(AvopsError, match="the last one: no answer in time"):
        ask(server, tmp_path, requests(), retries=0, timeout=0.2)


def test_an_endpoint_beyond_hope_is_left_alone(server: FakeEndpoint, tmp_path: Path) -> None:
    server.script = lambda _prompt, _before: error(503, "down", retry_after_ms="1")
    with pytest.raises(AvopsError, match="3 of 50 requests failed after 1 retries"):
        ask(server, tmp_path, requests(50), retries=1, concurrency=1)
    assert len(server.bodies) == 6


def test_failures_between_answers_are_no_end(server: FakeEndpoint, tmp_path: Path) -> None:
    bad = {request.prompt for request in requests(12)[::2]}
    server.script = lambda prompt, _: error(500, "odd") if prompt in bad else None
    with pytest.raises(AvopsError, match="6 of 12 requests failed after 0 retries"):
        ask(server, tmp_path, requests(12), retries=0, concurrency=1)
    assert len(server.bodies) == 12


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "unknown field"), (401, "wrong key"), (403, "no"), (404, "no such model"), (422, "no")],
)
def test_a_declined_request_ends_the_run(
    server: FakeEndpoint, tmp_path: Path, status: int, message: str
) -> None:
    server.script = lambda _prompt, _before: error(status, message)
    with pytest.raises(UserError) as raised:
        ask(server, tmp_path, requests(50), concurrency=2)
    assert raised.value.exit_code == 2
    assert f"answered HTTP {status}: " in str(raised.value)
    assert message in str(raised.value)
    assert "check --endpoint, --model, AVOPS_API_KEY and --body" in str(raised.value)
    assert len(server.bodies) <= 4


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        (error(400, "filtered", "content_filter"), "filtered"),
        (Reply(body=completion(None, finish="content_filter")), "finish_reason content_filter"),
    ],
    ids=["status", "finish"],
)
def test_a_filter_is_an_answer(
    server: FakeEndpoint, tmp_path: Path, reply: Reply, refused: str
) -> None:
    server.script = lambda _prompt, _before: reply
    (wanted,) = requests()
    answers, _ = ask(server, tmp_path, [wanted])
    assert refused in str(answers[wanted.key].refused)
    ask(server, tmp_path, [wanted])
    assert len(server.bodies) == 1


def test_concurrency_is_the_most_in_flight(server: FakeEndpoint, tmp_path: Path) -> None:
    server.script = lambda prompt, _: Reply(body=completion(usual(prompt)), delay=0.02)
    ask(server, tmp_path, requests(20), concurrency=4)
    assert 2 <= server.most <= 4


def test_the_rate_counts_attempts_too(server: FakeEndpoint, tmp_path: Path) -> None:
    server.script = lambda _, before: error(429, "slow", retry_after_ms="1") if not before else None
    begun = time.monotonic()
    ask(server, tmp_path, requests(5), rate=1200, concurrency=5)
    assert len(server.times) == 10
    for number, came in enumerate(sorted(server.times)):
        assert came >= begun + number * 0.05  # its turn, from no earlier than the first one's


def test_equal_requests_are_asked_once(server: FakeEndpoint, tmp_path: Path) -> None:
    maker = Chat("fake")
    twins = [maker.request("responses", name, "EXP same") for name in ("a", "b")]
    answers, endpoint = ask(server, tmp_path, twins)
    assert len(answers) == endpoint.attempts == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "--endpoint localhost:8000: expected an address"),
        ({"url": "http://me:pw@host/v1"}, "keys are read from the environment"),
        ({"url": "http://host/v1?key=1"}, "--endpoint host: an address with a password or a query"),
        ({"concurrency": 0}, "--concurrency 0: expected a number above 0"),
        ({"timeout": 0.0}, "--timeout 0.0"),
        ({"rate": -1.0}, "--rate -1.0: expected requests a minute"),
        ({"retries": -1}, "--retries -1: expected 0 or more"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        Options(**{"url": "http://host/v1", **options})  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert "pw" not in str(raised.value)


def test_completions_are_read_strictly() -> None:
    assert read_completion(b'{"choices":[{"message":{"content":null}}]}') == Answer("", "")
    refused = b'{"choices":[{"message":{"refusal":"no"},"finish_reason":"stop"}],"model":"m"}'
    assert read_completion(refused) == Answer("", "stop", "no", "m")
    for raw in (b"", b"null", b'{"choices":{}}', b'{"choices":[{"message":{"content":1}}]}'):
        with pytest.raises(ValueError, match="a body that is"):
            read_completion(raw)
    tokens = b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":true}}'
    with pytest.raises(ValueError, match="no chat completion"):
        read_completion(tokens)


def test_progress_counts_what_is_there_already(server: FakeEndpoint, tmp_path: Path) -> None:
    wanted = requests(3)
    ask(server, tmp_path, wanted[:1])
    seen: list[tuple[int, int]] = []
    with Journal(tmp_path / "journal") as journal:
        endpoint = Endpoint(Options(server.url), journal)
        endpoint.ask(wanted, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all(a < b for a, b in itertools.pairwise(seen))
