"""The token plan: what is fed and what is scored, decided once per data set.

Sequence (i, r) of item i and level r is the chat up to its last scored token. Its scored tokens
are ``ids[start:]``, T_r of them; the log-prob of ``ids[p]`` is read from row p − 1, so that the
first response token uses the query's last row. The plan holds no weights and no λ: it serves every
model that shares the tokenizer.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from avops.score.items import Items

EDGE = 8
"""Token ids kept in the record from either end of the first sequence."""


@dataclass(frozen=True)
class Token:
    """A special token, by id and text."""

    id: int
    text: str


@dataclass(frozen=True)
class PlanRecord:
    """What a result needs to say about its tokens.

    kind: chat (the tokenizer's template), text (a plain template) or ids (given as numbers).
    template_sha256: of the template's text; None for ids. bos: the first token, where it is the
    tokenizer's beginning-of-sequence token. end_of_turn: the token that ends a response, where the
    template has one; it is scored, and counted in T_r, if and only if ``score_eos``. first_ids and
    last_ids: both ends of the first sequence. sha256: of all ids and starts.
    """

    kind: str
    template_sha256: str | None
    bos: Token | None
    end_of_turn: Token | None
    score_eos: bool
    first_ids: tuple[int, ...]
    last_ids: tuple[int, ...]
    sequences: int
    tokens: int
    scored_tokens: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON-able values."""
        return asdict(self) | {"first_ids": list(self.first_ids), "last_ids": list(self.last_ids)}


@dataclass(frozen=True)
class Framing:
    """How the sequences of a plan were framed: the record's fields that ids cannot show."""

    kind: str
    template: str | None
    bos: Token | None
    end_of_turn: Token | None
    score_eos: bool


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """Every sequence of a data set.

    ids: int32, all sequences one after the other, item by item, level by level. offsets: int64,
    where each begins, and the end. starts: int32 [item, level], the first scored position.
    shared: int32 [item], how many leading ids all levels of an item have in common, at most up to
    the earliest response start.
    """

    items: Items
    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int32]
    shared: NDArray[np.int32]
    record: PlanRecord

    def sequence(self, item: int, level: int) -> NDArray[np.int32]:
        """The token ids of one response in its chat."""
        number = item * len(self.items.levels) + level
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence, [item, level]."""
        return np.diff(self.offsets).astype(np.int32).reshape(self.starts.shape)

    @cached_property
    def scored(self) -> NDArray[np.int32]:
        """T_r, the scored tokens of each sequence, [item, level]."""
        return self.lengths - self.starts

    def part(self, rows: Sequence[int]) -> TokenPlan:
        """The plan of the items ``rows``, in this order."""
        kept = np.asarray(rows, np.intp)
        levels = len(self.items.levels)
        arrays = [self.sequence(item, level) for item in kept.tolist() for level in range(levels)]
        ids = np.concatenate(arrays)
        offsets = np.cumsum([0] + [array.size for array in arrays], dtype=np.int64)
        starts = self.starts[kept]
        record = replace(
            self.record,
            first_ids=tuple(arrays[0][:EDGE].tolist()),
            last_ids=tuple(arrays[0][-EDGE:].tolist()),
            sequences=len(arrays),
            tokens=ids.size,
            scored_tokens=int(ids.size - starts.sum(dtype=np.int64)),
            sha256=_digest(ids, offsets, starts),
        )
        items = replace(self.items, entries=tuple(self.items[row] for row in kept.tolist()))
        return TokenPlan(items, ids, offsets, starts, self.shared[kept], record)

    def place(self, item: int, level: int) -> str:
        """Where a sequence comes from, for messages."""
        return self.items.place(item, self.items.levels[level])

    def check_fits(self, *, positions: int | None, vocabulary: int) -> None:
        """Refuse a plan that a model of this size cannot take: nothing is ever truncated.

        A sequence's last token is predicted and never fed, so it needs no position.
        """
        fed = self.lengths - 1
        if positions is not None and fed.max() > positions:
            item, level = divmod(int(fed.argmax()), len(self.items.levels))
            too_long = int((fed > positions).any(axis=1).sum())
            raise DataError(
                f"{self.place(item, level)}: the chat has {fed.max()} tokens before its "
                f"last, and the model takes {positions} positions ({too_long} items are too long); "
                "nothing is truncated: shorten or leave out these items"
            )
        if self.ids.max() >= vocabulary:
            number = int(np.searchsorted(self.offsets, int(self.ids.argmax()), side="right")) - 1
            item, level = divmod(number, len(self.items.levels))
            raise DataError(
                f"{self.place(item, level)}: token id {self.ids.max()}, and the model's vocabulary "
                f"has {vocabulary} tokens; use the tokenizer that belongs to the model"
            )


def build_plan(
    items: Items,
    sequences: Sequence[Sequence[Sequence[int]]],
    starts: Sequence[Sequence[int]],
    framing: Framing,
) -> TokenPlan:
    """Check and pack sequences [item][level] of token ids, scored from ``starts`` to their end."""
    shape = (len(items), len(items.levels))
    for name, rows in (("sequences", sequences), ("starts", starts)):
        widths = {len(row) for row in rows}
        if len(rows) != shape[0] or widths - {shape[1]}:
            raise DataError(
                f"{items.source}: {name} for {len(rows)} items with {sorted(widths)} levels, "
                f"expected {shape[0]} items with {shape[1]} ({', '.join(items.levels)}); "
                "give one for each item and level"
            )
    arrays = [
        _check_sequence(ids, start, items.place(i, level))
        for i, (row, row_starts) in enumerate(zip(sequences, starts, strict=True))
        for level, ids, start in zip(items.levels, row, row_starts, strict=True)
    ]
    flat = np.concatenate(arrays)
    offsets = np.cumsum([0] + [array.size for array in arrays], dtype=np.int64)
    first = np.array(starts, np.int32).reshape(shape)
    if framing.bos is not None:
        _check_bos(arrays, framing, items)
    shared = [
        min(_common(arrays[i * shape[1] : (i + 1) * shape[1]]), int(first[i].min()))
        for i in range(shape[0])
    ]
    template = framing.template
    record = PlanRecord(
        kind=framing.kind,
        template_sha256=template and hashlib.sha256(template.encode()).hexdigest(),
        bos=framing.bos if framing.bos and arrays[0][0] == framing.bos.id else None,
        end_of_turn=framing.end_of_turn,
        score_eos=framing.score_eos,
        first_ids=tuple(arrays[0][:EDGE].tolist()),
        last_ids=tuple(arrays[0][-EDGE:].tolist()),
        sequences=len(arrays),
        tokens=flat.size,
        scored_tokens=int(flat.size - first.sum(dtype=np.int64)),
        sha256=_digest(flat, offsets, first),
    )
    return TokenPlan(items, flat, offsets, first, np.array(shared, np.int32), record)


def _digest(ids: NDArray[np.int32], offsets: NDArray[np.int64], starts: NDArray[np.int32]) -> str:
    digest = hashlib.sha256(np.array(starts.shape, "<i8").tobytes())
    for part in (offsets.astype("<i8"), ids.astype("<i4"), starts.astype("<i4")):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _check_sequence(ids: Sequence[int], start: int, place: str) -> NDArray[np.int32]:
    wide = np.asarray(ids)
    if wide.ndim != 1 or wide.dtype.kind not in "iu" or wide.size == 0:
        raise DataError(
            f"{place}: got token ids of type {wide.dtype} and shape {list(wide.shape)}, "
            "expected a list of whole numbers"
        )
    if wide.min() < 0 or wide.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"{place}: token ids from {wide.min()} to {wide.max()}, expected 0 to 2³¹ − 1; "
            "give the tokenizer's own ids"
        )
    if start == wide.size:
        raise DataError(
            f"{place}: the response has no tokens (the chat's {wide.size} tokens all come before "
            "it); give a response with text"
        )
    if not 1 <= start < wide.size:
        raise DataError(
            f"{place}: scoring starts at token {start} of {wide.size}, expected at least one "
            "token before it; begin the template with a beginning-of-sequence token"
        )
    return wide.astype(np.int32)


def _check_bos(arrays: Sequence[NDArray[np.int32]], framing: Framing, items: Items) -> None:
    bos = framing.bos
    for number, ids in enumerate(arrays):
        if bos is not None and ids.size > 1 and ids[0] == ids[1] == bos.id:
            item, level = divmod(number, len(items.levels))
            shown = f" in the template {framing.template!r}" if framing.template else ""
            raise DataError(
                f"{items.place(item, items.levels[level])}: the chat begins with {bos.text!r} "
                f"twice{shown}, expected it once; take one away"
            )


def _common(arrays: Sequence[NDArray[np.int32]]) -> int:
    """How many leading ids all ``arrays`` have in common."""
    length = min(array.size for array in arrays)
    differ = np.zeros(length, bool)
    for array in arrays[1:]:
        differ |= array[:length] != arrays[0][:length]
    return int(differ.argmax()) if differ.any() else length
