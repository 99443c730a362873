"""The head: only scored rows reach it, and its log-probs are f32 whatever the model's dtype.

Within ``capturing`` the model's head projects nothing: it keeps the scored rows of its input and
returns no logits at all, and ``log_probs`` makes their log-probs with the operation
``head_logprob``, which never holds a row of logits. What a model does to logits after its head (a
soft-cap, a scale) is found by sending known logits through it, and accepted only if it gives the
same bits; a model that does something else cannot be scored this way.

A head in bf16 or f16 is multiplied in f32: its inputs are exact in f32, and logits rounded to
bf16 would put log-probs on a grid coarse enough to change winners.

Where nothing but the reference could serve (avops built without a C++ compiler, a device without
Triton, a head that is no plain matrix), torch multiplies a few rows at a time into one reused
buffer. AVOPS_BACKEND=reference asks for the reference.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from avops.errors import MissingExtraError, UserError
from avops.kernels import LogitRule, LogProb
from avops.score.choices import no_head
from avops.score.forwards import replaced

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "score", "scoring") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

SOFTMAX_LOGITS = 1 << 22
"""Logits that exist at a time (16 MiB) where torch multiplies, unless one row has more."""

HEAD_ROWS = 1 << 11
"""Rows of a half-precision head that torch widens to f32 at a time."""

PROBE = 60.0
"""The largest of the logits that are sent through a model to see what it does to them."""


class Change(NamedTuple):
    """What a model does to logits: x · multiply / divide, then cap · tanh(x / cap)."""

    multiply: float = 1.0
    divide: float = 1.0
    softcap: float | None = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The same to ``logits``, in place; a factor of 1 is no step."""
        if self.multiply != 1:
            logits.mul_(self.multiply)
        if self.divide != 1:
            logits.div_(self.divide)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def rule(self) -> LogitRule:
        """The same for the operations over logits; torch rounds a factor to f32, too."""
        softcap = None if self.softcap is None else _rounded(self.softcap)
        return LogitRule(_rounded(self.multiply), _rounded(self.divide), softcap)


def _rounded(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float32))


class Head:
    """A model's head, and what the model does to logits after it.

    Nothing derived from weights is kept between calls. change: what ``learn`` found.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.module = check_head(model)
        self.change: Change | None = None
        self._kernel: LogProb | None = None
        self._made_of: tuple[Any, ...] = ()
        self._buffer: torch.Tensor | None = None

    @property
    def vocabulary(self) -> int:
        """Rows of the head's weight."""
        return int(self.module.weight.shape[0])

    @contextmanager
    def capturing(self, rows: torch.Tensor, fed: int) -> Iterator[list[torch.Tensor]]:
        """The inputs of the head, row by row of ``rows``: [rows, hidden], once per call of it.

        fed: the tokens that go into the forward, among which ``rows`` are counted.
        """
        found: list[torch.Tensor] = []

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            picked = pick(hidden, rows, fed)
            # Of a model over several devices the last layer may be on another than the head.
            found.append(picked.to(self.module.weight.device))
            return hidden.new_empty((1, 0, self.vocabulary), dtype=torch.float32)

        with replaced(self.module, forward):
            yield found

    def hidden(self, rows: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What the model gives its head at the flat positions ``rows``."""
        with self.capturing(rows, inputs["input_ids"].numel()) as found:
            logits = self.model(**inputs, use_cache=False).logits
        if len(found) != 1 or logits.dtype != torch.float32 or logits.numel():
            raise self.refusal(logits, int(rows.numel()))
        return found[0]

    def refusal(self, logits: torch.Tensor, rows: int) -> UserError:
        """Why logits that do not come straight from the head cannot be used."""
        return UserError(
            f"{type(self.model).__name__}: its forward gives {logits.dtype} logits of shape "
            f"{list(logits.shape)} for {rows} scored tokens, expected float32 "
            "straight from its head; this architecture cannot be scored"
        )

    def learn(self, ids: torch.Tensor) -> bool:
        """Find what the model does to logits after its head; False if it is none of the known."""
        probe = torch.linspace(-PROBE, PROBE, self.vocabulary, device=ids.device)[None, None]
        with replaced(self.module, lambda _: probe.clone()):
            given = self.model(input_ids=ids, use_cache=False).logits
        for change in _changes(self.model.config.get_text_config()):
            wanted = change.apply(probe.clone())
            if given.dtype == torch.float32 and torch.equal(given, wanted):
                self.change = change
                return True
        return False

    def log_probs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The log-prob of the target of each row of ``hidden``, f32, where the head is."""
        if self.change is None:
            raise RuntimeError("learn comes first")
        targets = targets.to(hidden.device)
        kernel = self._fused()
        if kernel is not None:
            return kernel(hidden, targets)
        step = max(1, SOFTMAX_LOGITS // self.vocabulary)
        parts = zip(torch.split(hidden, step), torch.split(targets, step), strict=True)
        return torch.cat([self._log_probs(rows, picked) for rows, picked in parts])

    def _fused(self) -> LogProb | None:
        """head_logprob of the head as it is now; None where torch is to multiply."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        now = (weight, bias, self.change, torch.get_num_threads())
        if not _same(now, self._made_of):
            self._kernel, self._made_of = None, now
            plain = type(self.module) is torch.nn.Linear and weight.is_contiguous()
            if self.change is None or not plain or no_head(weight.device.type, weight.dtype):
                return None
            self._kernel = LogProb(weight, bias, rule=self.change.rule(), threads=now[-1])
        return self._kernel

    def _log_probs(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same for a few rows, from torch's product."""
        logits = self._logits(hidden)
        if self.change is not None:
            self.change.apply(logits)
        logits.sub_(logits.amax(-1, keepdim=True))
        target = logits.gather(1, targets[:, None])[:, 0]
        return target - logits.exp_().sum(-1).log()

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """f32 logits in the buffer, [rows, vocabulary]; they last until the next call."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        if type(self.module) is not torch.nn.Linear:
            projected: torch.Tensor = self.module(hidden)
            return projected
        room = self._room(hidden.shape[0], hidden.device)
        # A product of half-precision numbers is exact in f32, and CUDA can sum it there.
        step = self.vocabulary if weight.dtype == torch.float32 else HEAD_ROWS
        for begin in range(0, self.vocabulary, step):
            part = room[:, begin : begin + step]
            rows = weight[begin : begin + step]
            if rows.dtype != torch.float32 and rows.is_cuda:
                part.copy_(torch.mm(hidden, rows.T, out_dtype=torch.float32))
            else:
                torch.mm(hidden.float(), rows.float().T, out=part)
            if bias is not None:
                part.add_(bias[begin : begin + step])
        return room

    def _room(self, rows: int, device: torch.device) -> torch.Tensor:
        """A [rows, vocabulary] piece of the buffer, which grows and is never given back."""
        size = rows * self.vocabulary
        if self._buffer is None or self._buffer.numel() < size or self._buffer.device != device:
            self._buffer = torch.empty(size, device=device)
        return self._buffer[:size].view(rows, self.vocabulary)


def _same(now: tuple[Any, ...], then: tuple[Any, ...]) -> bool:
    """Whether the same tensors, and equal numbers, are meant."""
    return len(now) == len(then) and all(
        x is y or (not isinstance(x, torch.Tensor) and x == y)
        for x, y in zip(now, then, strict=True)
    )


def pick(hidden: torch.Tensor, rows: torch.Tensor, fed: int) -> torch.Tensor:
    """Some of the rows that a head is given, [rows, hidden].

    Raises UserError where it is not given one for each of the ``fed`` tokens, as by models that put
    tokens of their own before a sequence: ``rows`` would be others.
    """
    flat = hidden.flatten(0, -2)
    if flat.shape[0] != fed:
        raise UserError(
            f"the model's head is given {flat.shape[0]} rows for {fed} tokens, expected one for "
            "each; a model with tokens of its own can be neither scored nor generated from"
        )
    return flat.index_select(0, rows.to(hidden.device))


def check_head(model: Any) -> Any:
    """The model's head, if its logits can be had in f32, a row for each token that is fed."""
    adapter: Any = getattr(model, "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False):
        raise UserError(
            f"{type(model).__name__}: its adapter of type {adapter.peft_type.value} puts tokens or "
            "keys of its own before a sequence, expected an adapter of weights, such as LoRA; such "
            "a model can be neither scored nor generated from"
        )
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(
            f"{type(model).__name__}: it has no language-model head, expected a causal LM; "
            "load the model with load_model"
        )
    if head.weight.dtype != torch.float32 and type(head) is not torch.nn.Linear:
        raise UserError(
            f"{type(model).__name__}: its head is a {type(head).__name__} in "
            f"{head.weight.dtype}, expected torch.nn.Linear or float32, so that logits are "
            "float32; load the model with dtype=torch.float32"
        )
    return head


def check_eval(model: Any) -> None:
    """Refuse a model of which a part is in training mode, where dropout makes results random."""
    if model.training:
        raise UserError(
            f"{type(model).__name__}: the model is in training mode, where dropout makes results "
            "random; call model.eval() first"
        )
    for name, module in model.named_modules():
        if module.training and _drops(module):
            raise UserError(
                f"{type(model).__name__}: its module {name} is in training mode, where dropout "
                "makes results random, expected all of it in eval mode; call model.eval() first"
            )


def _drops(module: Any) -> bool:
    """Whether a module has a dropout of its own, by the names that transformers gives it."""
    shares = [getattr(module, name, 0.0) for name in ("p", "dropout", "attention_dropout")]
    return any(isinstance(share, float) and share > 0 for share in shares)


@contextmanager
def projecting(head: Any, rows: torch.Tensor, fed: int) -> Iterator[None]:
    """Within the context, the head projects only ``rows``, in f32: logits [1, rows, vocabulary].

    Whatever the model's forward does to logits afterwards (scaling, soft-capping) still happens.
    fed: the tokens that go into the forward, among which ``rows`` are counted.
    """
    project = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = head.weight, getattr(head, "bias", None)
        picked = pick(hidden, rows, fed)[None].to(weight.device)
        if weight.dtype == torch.float32:
            logits: torch.Tensor = project(picked)
        else:
            logits = torch.nn.functional.linear(
                picked.float(), weight.float(), None if bias is None else bias.float()
            )
        return logits

    with replaced(head, forward):
        yield


def _changes(config: Any) -> Iterator[Change]:
    """What models of transformers do to logits, by the names of their settings."""
    yield Change()
    if cap := getattr(config, "final_logit_softcapping", None):
        yield Change(softcap=float(cap))
    if scale := getattr(config, "logit_scale", None):
        yield Change(multiply=float(scale))
    if scaling := getattr(config, "logits_scaling", None):
        yield Change(divide=float(scaling))
