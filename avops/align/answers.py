"""Answers to many questions: greedy ones several at a time, by transformers' own ``generate``.

A batch is padded on the left, with an attention mask; its prompts are of similar lengths. The same
arithmetic runs in other shapes than one at a time, so logits may differ in their last bits: where
two tokens are within that, another one may be chosen. Sampled answers, and prompts that nearly
fill the model's positions, are written one at a time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from avops.errors import NonFiniteError
from avops.score import Answer, Generator, Sampling, TextStream

if TYPE_CHECKING:
    from avops.score import Prompt


class Answers:
    """Answers prompts with ``model``, again and again as its weights change.

    batch: prompts at a time; 1 for one at a time.
    """

    def __init__(
        self, model: Any, tokenizer: Any, sampling: Sampling | None = None, *, batch: int = 16
    ) -> None:
        self.sampling = sampling or Sampling()
        self._model, self._tokenizer = model, tokenizer
        self._single = Generator(model, tokenizer, self.sampling)
        self._stops = _stops(model, tokenizer)
        self._batch = 1 if self.sampling.temperature > 0 else max(1, batch)
        config = model.config.get_text_config()
        self._positions: int | None = getattr(config, "max_position_embeddings", None)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that the model cannot take. Raises DataError."""
        self._single.check(prompts)

    def run(
        self,
        prompts: Sequence[Prompt],
        done: Callable[[int, Answer], None],
    ) -> None:
        """Write all answers; ``done(number, answer)`` gets each when it is finished.

        An exception of ``done``, or an interrupt, ends it. Raises DataError, NonFiniteError.
        """
        self.check(prompts)
        for numbers in self._groups(prompts):
            if len(numbers) == 1:
                done(numbers[0], self._single.answer(prompts[numbers[0]]))
                continue
            answers = self._together([prompts[number] for number in numbers])
            for number, answer in zip(numbers, answers, strict=True):
                done(number, answer)

    def _groups(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Numbers of prompts of similar lengths, of one way to end."""
        if self._batch == 1:
            yield from ([number] for number in range(len(prompts)))
            return
        order = sorted(
            range(len(prompts)), key=lambda i: (prompts[i].stop or -1, len(prompts[i].ids))
        )
        group: list[int] = []
        for number in order:
            full = len(group) == self._batch
            if group and (full or prompts[number].stop != prompts[group[0]].stop):
                yield from self._split(group, prompts)
                group = []
            group.append(number)
        if group:
            yield from self._split(group, prompts)

    def _split(self, group: list[int], prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """The group, or its members where the longest leaves too few positions to the others."""
        longest = max(len(prompts[number].ids) for number in group)
        room = self._positions is None or longest + self.sampling.max_tokens - 1 <= self._positions
        if room:
            yield group
        else:
            yield from ([number] for number in group)

    def _together(self, prompts: Sequence[Prompt]) -> list[Answer]:
        import torch

        begin = time.perf_counter()
        width = max(len(prompt.ids) for prompt in prompts)
        stops = sorted(self._stops | {stop for stop in (prompts[0].stop,) if stop is not None})
        filler = stops[0] if stops else 0
        table = torch.full((len(prompts), width), filler)
        mask = torch.zeros_like(table)
        for row, prompt in enumerate(prompts):
            table[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        device = self._model.get_input_embeddings().weight.device
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=table.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config(stops, filler),
                logits_processor=[_Finite(prompts, width)],
            )
        seconds = (time.perf_counter() - begin) / len(prompts)
        rows = out[:, width:].tolist()
        return [
            self._answer(prompt, row, frozenset(stops), seconds)
            for prompt, row in zip(prompts, rows, strict=True)
        ]

    def _config(self, stops: Sequence[int], filler: int) -> Any:
        """Greedy, whatever the checkpoint's own generation config says."""
        kind = type(self._model.generation_config)
        return kind(
            max_new_tokens=self.sampling.max_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=list(stops) or None,
            pad_token_id=filler,
        )

    def _answer(
        self, prompt: Prompt, row: Sequence[int], stops: frozenset[int], seconds: float
    ) -> Answer:
        ids: list[int] = []
        text = TextStream(self._tokenizer, trim=prompt.trim)
        finish = "length"
        for token in row[: self.sampling.max_tokens]:
            ids.append(token)
            if token in stops:
                finish = "stop"
                break
            text.push(token)
        text.finish()
        return Answer(text.shown, tuple(ids), finish, len(prompt.ids), seconds)


class _Finite:
    """Refuses logits that are no numbers, as one-at-a-time generation does."""

    def __init__(self, prompts: Sequence[Prompt], width: int) -> None:
        self._prompts, self._width = prompts, width

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        tops = scores.amax(dim=-1).tolist()
        for prompt, top in zip(self._prompts, tops, strict=True):
            if not math.isfinite(top):
                number = input_ids.shape[1] - self._width + 1
                raise NonFiniteError(
                    f"{prompt.place}: the largest logit for token {number} of the answer is {top}, "
                    "expected a finite number; check the model's weights for NaN, infinity or a λ "
                    "that is too large"
                )
        return scores


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, whatever the prompt: as ``Generator`` has them."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = given if isinstance(given, list | tuple) else [given]
    return frozenset(token for token in (tokenizer.eos_token_id, *more) if token is not None)
