"""An OpenAI-compatible endpoint, asked many things at once.

HTTP, time-outs and retries are the ``openai`` client's: 408, 409, 429, 5xx, time-outs and broken
connections are tried again with growing pauses, or after the time that the endpoint names. So is,
here, what is no chat completion. Every attempt waits for its turn under the rate limit.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from avops.align.data.request import Answer, Request
from avops.errors import AvopsError, MissingExtraError, UserError

if TYPE_CHECKING:
    import openai

    from avops.align.data.journal import Journal

Progress = Callable[[int, int], None]
_PAUSE, _LONGEST = 0.5, 8.0  # seconds before an answer that is none is asked for again
_SHOWN = 300  # characters of an endpoint's message that an error repeats


class Asker(Protocol):
    """Who answers requests: an endpoint, or a journal alone."""

    def ask(self, requests: Sequence[Request], progress: Progress) -> Mapping[str, Answer]:
        """Answers by the requests' keys; one that cannot be had is missing, or an error."""


@dataclass(frozen=True)
class Options:
    """How an endpoint is asked.

    url: what comes before ``/chat/completions``. api_key: None for an endpoint that asks for none.
    concurrency: requests in flight. rate: requests a minute, None for any number. retries: after
    the first attempt. timeout: seconds without a byte after which an attempt has failed.
    """

    url: str
    api_key: str | None = None
    concurrency: int = 8
    rate: float | None = None
    retries: int = 8
    timeout: float = 120.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"--endpoint {self.url}: expected an address such as https://api.openai.com/v1 or "
                "http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"--endpoint {parts.hostname}: an address with a password or a query; keys are "
                "read from the environment variable AVOPS_API_KEY"
            )
        for name, value in (("concurrency", self.concurrency), ("timeout", self.timeout)):
            if not value > 0:
                raise UserError(f"--{name} {value}: expected a number above 0")
        if self.rate is not None and not self.rate > 0:
            raise UserError(f"--rate {self.rate}: expected requests a minute, above 0")
        if self.retries < 0:
            raise UserError(f"--retries {self.retries}: expected 0 or more")


class Endpoint:
    """Asks an endpoint for what the journal does not hold, and journals every answer at once.

    attempts: HTTP requests made. answered: requests that were answered in this run.
    """

    def __init__(self, options: Options, journal: Journal) -> None:
        _require_openai()
        self.options = options
        self.attempts = self.answered = 0
        self._journal = journal
        self._next = 0.0  # when the rate limit has the next turn, on the monotonic clock

    def ask(self, requests: Sequence[Request], progress: Progress) -> dict[str, Answer]:
        """The answers to all ``requests``.

        Raises UserError when the endpoint declines the request as such (key, model, fields), and
        AvopsError when requests failed after all retries. What was answered is journaled.
        """
        wanted = {request.key: request for request in requests}
        missing = [each for each in wanted.values() if self._journal.get(each) is None]
        progress(len(wanted) - len(missing), len(wanted))
        if missing:
            asyncio.run(_Batch(self, missing, len(wanted), progress).run())
        found = {}
        for key, request in wanted.items():
            answer = self._journal.get(request)
            assert answer is not None
            found[key] = answer
        return found

    def record(self, request: Request, answer: Answer) -> None:
        """Keep an answer."""
        self._journal.add(request, answer)
        self.answered += 1

    async def turn(self) -> None:
        """Wait for the next turn under the rate limit."""
        self.attempts += 1
        if self.options.rate is not None:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 60 / self.options.rate
            await asyncio.sleep(turn - now)

    @property
    def kept(self) -> str:
        """What an error says about the answers so far."""
        return f"answers are kept in {self._journal.directory}: the same command goes on from there"


class _Batch:
    """Requests that are in flight together."""

    def __init__(
        self, endpoint: Endpoint, requests: Sequence[Request], total: int, progress: Progress
    ) -> None:
        self._endpoint = endpoint
        self._left: Iterator[Request] = iter(requests)
        self._count, self._total = len(requests), total
        self._done = total - len(requests)
        self._progress = progress
        self._failed: list[str] = []
        self._in_a_row = 0
        self._error: AvopsError | None = None

    async def run(self) -> None:
        options = self._endpoint.options
        async with _client(self._endpoint) as client:
            workers = min(options.concurrency, self._count)
            await asyncio.gather(*(self._work(client) for _ in range(workers)))
        if self._error is not None:
            raise self._error
        if self._failed:
            raise AvopsError(
                f"{options.url}: {len(self._failed)} of {self._count} requests failed after "
                f"{options.retries} retries each, the last one: {self._failed[-1]}; "
                f"{self._endpoint.kept}"
            )

    async def _work(self, client: openai.AsyncOpenAI) -> None:
        """Send one request after another, until none is left or the endpoint is beyond hope."""
        import openai

        most = max(3, self._endpoint.options.concurrency)
        for request in self._left:
            try:
                answer = await _complete(client, request)
            except _MalformedError as error:
                self._fail(str(error))
            except openai.APIConnectionError as error:
                self._fail(_cause(error))
            except openai.APIStatusError as error:
                if error.status_code >= 500 or error.status_code in (408, 409, 429):
                    self._fail(_cause(error))
                else:
                    self._error = self._declined(request, error)
            else:
                self._endpoint.record(request, answer)
                self._in_a_row = 0
                self._done += 1
                self._progress(self._done, self._total)
            if self._error is not None or self._in_a_row >= most:
                return

    def _fail(self, cause: str) -> None:
        self._failed.append(cause)
        self._in_a_row += 1

    def _declined(self, request: Request, error: openai.APIStatusError) -> UserError:
        return UserError(
            f"{self._endpoint.options.url}: answered {_cause(error)} to {request.stage} "
            f"{request.name}; check --endpoint, --model, AVOPS_API_KEY and --body; "
            f"{self._endpoint.kept}"
        )


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    import openai

    async def before(_request: object) -> None:
        await endpoint.turn()

    options = endpoint.options
    return openai.AsyncOpenAI(
        base_url=options.url,
        api_key=options.api_key or "none",
        max_retries=options.retries,
        timeout=openai.Timeout(options.timeout, connect=min(options.timeout, 15.0), pool=None),
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [before]}),
    )


async def _complete(client: openai.AsyncOpenAI, request: Request) -> Answer:
    """One completion; a content filter's verdict is an answer, too.

    What is no completion is asked for again here, for the client has no opinion about it.
    """
    import openai

    body = dict(request.body)
    model, messages = body.pop("model"), body.pop("messages")
    for attempt in range(client.max_retries + 1):
        if attempt:
            await asyncio.sleep(min(_PAUSE * 2 ** (attempt - 1), _LONGEST))
        try:
            got = await client.chat.completions.with_raw_response.create(
                model=model, messages=messages, extra_body=body
            )
        except openai.BadRequestError as error:
            if error.code != "content_filter":
                raise
            return Answer("", "content_filter", refused=_cause(error))
        try:
            return read_completion(got.http_response.content)
        except ValueError as error:
            problem = str(error)
    raise _MalformedError(problem)


class _MalformedError(Exception):
    """Every attempt was answered by something that is no chat completion."""


def read_completion(raw: bytes) -> Answer:
    """The answer in the body of a response.

    Raises ValueError, saying what the body is instead, when it is no chat completion.
    """
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError):
        shown = _short(raw.decode(errors="replace"))
        raise ValueError(f"a body that is not JSON: {shown!r}") from None
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish, model = choice.get("finish_reason"), body.get("model")
        tokens = [usage.get(f"{part}_tokens") for part in ("prompt", "completion")]
        right = all(
            each is None or isinstance(each, str) for each in (text, refusal, finish, model)
        )
        right &= all(each is None or type(each) is int for each in tokens)
    except (KeyError, IndexError, TypeError, AttributeError):
        right = False
    if not right:
        shown = _short(json.dumps(body, ensure_ascii=False))
        raise ValueError(f"a body that is no chat completion: {shown}")
    if finish == "content_filter":
        refusal = refusal or "finish_reason content_filter"
    return Answer(text or "", finish or "", refusal or None, model or "", *tokens)


def _cause(error: openai.APIError) -> str:
    """What an error of the client comes from, in one line."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}: {_short(error.message)}"
    if isinstance(error, openai.APITimeoutError):
        return "no answer in time"
    cause = error.__cause__
    return _short(f"{type(cause).__name__}: {cause}" if cause else error.message)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _require_openai() -> None:
    try:
        import openai  # noqa: F401
    except ImportError:
        raise MissingExtraError("openai", "align", "asking an endpoint") from None
