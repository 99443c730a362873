"""Answers, token by token, with a model's present weights.

Greedy, or drawn from softmax(logits / temperature) cut to the likeliest tokens that hold top_p of
it (Holtzman et al., arXiv 1904.09751). The prompt is fed once, then one token at a time over a
cache of keys and values that begins empty with every answer: nothing derived from weights outlives
a change of λ.

The k-th token of every answer is drawn with the k-th number of the same seed, so that two λ differ
by what the weights do and not by luck.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError, MissingExtraError, NonFiniteError, UserError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "generation") from error

from avops.score.forwards import bare
from avops.score.head import check_eval, check_head, projecting
from avops.score.turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from avops.score.questions import Prompt

_UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 takes the likeliest, and needs no seed."""

    max_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a number out of its range."""
        for name, good, expected in (
            ("max tokens", self.max_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a number above it"),
            ("top p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("seed", self.seed >= 0, "a whole number from 0"),
        ):
            if not good:
                value = getattr(self, name.replace(" ", "_"))
                raise UserError(f"{name} is {value}, expected {expected}")


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    text: without special tokens. ids: every token, the stop token too. finish: ``stop`` (a stop
    token), ``length`` (max_tokens) or ``positions`` (the model takes no more). seconds: prompt
    included.
    """

    text: str
    ids: tuple[int, ...]
    finish: str
    prompt_tokens: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return len(self.ids) / max(self.seconds, 1e-9)


class Generator:
    """Answers prompts with ``model``, again and again as its weights change.

    It stops at the prompt's end-of-turn token, the tokenizer's end-of-sequence token and those of
    the model's generation config. The model must be in eval mode.
    """

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling | None = None) -> None:
        self.sampling = sampling or Sampling()
        self._model = model = bare(model)
        self._tokenizer = tokenizer
        self._stops = _stops(model, tokenizer)
        config = model.config.get_text_config()
        self._positions: int | None = getattr(config, "max_position_embeddings", None)
        embedding = model.get_input_embeddings().weight
        self._vocabulary, self._device = embedding.shape[0], embedding.device
        self._head = check_head(model)

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Refuse prompts that the model cannot take. Raises DataError."""
        for prompt in prompts:
            if self._positions is not None and len(prompt.ids) > self._positions:
                raise DataError(
                    f"{prompt.place}: the prompt has {len(prompt.ids)} tokens, and the model takes "
                    f"{self._positions} positions; nothing is truncated: shorten it"
                )
            if max(prompt.ids) >= self._vocabulary:
                raise DataError(
                    f"{prompt.place}: token id {max(prompt.ids)}, and the model's vocabulary has "
                    f"{self._vocabulary} tokens; use the tokenizer that belongs to the model"
                )

    def answer(self, prompt: Prompt, show: Callable[[str], None] | None = None) -> Answer:
        """The answer to ``prompt``; ``show`` gets each piece of its text as soon as it is sure.

        Raises DataError for a prompt that does not fit, NonFiniteError for logits that are NaN or
        infinite, UserError in training mode.
        """
        check_eval(self._model)
        self.check([prompt])
        begin = time.perf_counter()
        budget, finish = self.sampling.max_tokens, "length"
        # The last token is never fed, so it needs no position.
        if self._positions is not None and self._positions - len(prompt.ids) + 1 < budget:
            budget, finish = self._positions - len(prompt.ids) + 1, "positions"
        stops = self._stops | {prompt.stop}
        choose = _Choice(self.sampling)
        text = TextStream(self._tokenizer, trim=prompt.trim)
        ids: list[int] = []
        fed: tuple[int, ...] = prompt.ids
        cache = None
        with torch.inference_mode():
            for number in range(budget):
                logits, cache = self._next(fed, cache)
                token = choose(_finite(logits, prompt, number))
                ids.append(token)
                if token in stops:
                    finish = "stop"
                    break
                _pass_on(text.push(token), show)
                fed = (token,)
        _pass_on(text.finish(), show)
        seconds = time.perf_counter() - begin
        return Answer(text.shown, tuple(ids), finish, len(prompt.ids), seconds)

    def _next(self, fed: tuple[int, ...], cache: Any) -> tuple[torch.Tensor, Any]:
        """Logits after ``fed``, [vocabulary] in f32, and the cache that now holds it."""
        table = torch.tensor([fed], device=self._device)
        last = torch.tensor([len(fed) - 1], device=self._device)
        with turn(self._model), projecting(self._head, last, len(fed)):
            out = self._model(input_ids=table, past_key_values=cache, use_cache=True)
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise UserError(
                f"{type(self._model).__name__}: it keeps no cache of keys and values, expected a "
                "transformer; this architecture can be scored, but not generated from"
            )
        return out.logits[0, -1], cache


class TextStream:
    """Token ids to text, piece by piece: the pieces add up to the text of all ids.

    A piece is held back while it ends in half a character. A window of tokens is decoded with
    those of the piece before it: some decoders treat a text's first token in another way.
    (Where bytes that are no UTF-8 follow a character that is spelt in byte tokens, the character
    stays; some decoders, given all ids at once, lose it.)
    """

    def __init__(self, tokenizer: Any, *, trim: bool = False) -> None:
        self.shown = ""
        self._tokenizer = tokenizer
        self._trim = trim
        self._ids: list[int] = []
        self._before = self._sure = 0  # _ids[_before:_sure] is the piece shown last

    def push(self, token: int) -> str:
        """The text that is sure with ``token``, which may be none."""
        self._ids.append(token)
        old, new = self._decode(self._before, self._sure), self._decode(self._before)
        if len(new) <= len(old) or new.endswith(_UNFINISHED):
            return ""
        self._before, self._sure = self._sure, len(self._ids)
        return self._show(new[len(old) :])

    def finish(self) -> str:
        """The rest, half characters included."""
        old, new = self._decode(self._before, self._sure), self._decode(self._before)
        self._before, self._sure = self._sure, len(self._ids)
        return self._show(new[len(old) :])

    def _show(self, piece: str) -> str:
        if self._trim and not self.shown:
            piece = piece.lstrip()
        self.shown += piece
        return piece

    def _decode(self, start: int, stop: int | None = None) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[start:stop],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )


class _Choice:
    """Chooses a token from logits; one number of the seed's stream for each."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = random.Random(sampling.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        wide = logits.double().cpu().numpy()
        with np.errstate(over="ignore", under="ignore"):
            shares = np.exp((wide - wide.max()) / self._sampling.temperature)
        shares /= shares.sum()
        ids = np.arange(shares.size)
        if self._sampling.top_p < 1:
            ids = _nucleus(shares, self._sampling.top_p)
        sums = np.cumsum(shares[ids])
        # In order of ids, not of shares: a small change of λ moves few borders.
        drawn = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        return int(ids[min(int(drawn), ids.size - 1)])


def _nucleus(shares: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest likeliest tokens that hold ``top_p`` together, in order of ids."""
    # Tokens below the bound hold at most 1 − top_p together, so none of them is needed.
    ids = np.flatnonzero(shares > (1 - top_p) / shares.size)
    ids = ids[np.argsort(-shares[ids], kind="stable")]
    count = int(np.searchsorted(np.cumsum(shares[ids]), top_p)) + 1
    return np.sort(ids[:count])


def _finite(logits: torch.Tensor, prompt: Prompt, number: int) -> torch.Tensor:
    top = float(logits.max())
    if not math.isfinite(top):
        raise NonFiniteError(
            f"{prompt.place}: the largest logit for token {number + 1} of the answer is {top}, "
            "expected a finite number; check the model's weights for NaN, infinity or a λ that is "
            "too large"
        )
    return logits


def _pass_on(piece: str, show: Callable[[str], None] | None) -> None:
    if piece and show is not None:
        show(piece)


def _stops(model: Any, tokenizer: Any) -> frozenset[int | None]:
    """Tokens that end an answer, whatever the prompt."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    more = given if isinstance(given, list | tuple) else [given]
    return frozenset({tokenizer.eos_token_id, *more} - {None})
