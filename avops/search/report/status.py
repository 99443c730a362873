"""How a run is getting on: what it has measured and found, how fast, and who works on it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from avops.search.lock import WriterLock
from avops.search.report.facts import COMMAND, ENDED, busy
from avops.search.study import BASELINE, HOLDOUT, SEARCH

if TYPE_CHECKING:
    from avops.search.store import Note, Result, Store

_RECENT = 20
"""Evaluations that the pace is taken from."""
_WORDS = {COMMAND: "a command began", ENDED: "the search ended", "lost worker": "a worker was lost"}


@dataclass(frozen=True)
class Worker:
    """One worker: who, evaluations, mean seconds of each, and when it last brought one."""

    name: str
    evaluations: int
    seconds: float
    last: float


@dataclass(frozen=True)
class Status:
    """State of a run. Times are in seconds, moments in seconds since 1970.

    process: who writes it, None where nobody does, 0 where it does not say. ended: why the last
    search ended, None while it runs or after a kill. held, baselines: evaluations of these kinds.
    waiting: points that were asked for and are not there yet. pace: seconds per evaluation at the
    present number of workers, pauses left out. left: until everything is measured, only where that
    is what the strategy does. last: the latest event, and when. out: points that were put out of
    the race on some of their items. broken: points at which something is not finite.
    """

    run: str
    strategy: str
    process: int | None
    ended: str | None
    measured: int
    points: int
    waiting: int
    found: int
    wanted: int
    held: int
    baselines: int
    seconds: float
    pace: float | None
    left: float | None
    last: str
    last_at: float | None
    workers: tuple[Worker, ...]
    note: str
    out: int = 0
    broken: int = 0

    @property
    def running(self) -> bool:
        """Whether a process writes the run."""
        return self.process is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return {**asdict(self), "running": self.running}


def status_of(store: Store) -> Status:
    """The state of ``store``, also while another process writes it."""
    study, notes = store.study, store.notes()
    outs = store.outs().keys()
    broken = {point for point in store.broken() if point in study.space}
    results = [result for result in store.results(SEARCH) if result.point in study.space]
    after = store.results(HOLDOUT) if study.holdout is not None else []
    names = [name for name in store.splits() if name.startswith(BASELINE)]
    others = [result for name in names for result in store.results(name)]
    known = {result.point for result in results}
    asked = {point for batch in store.asked() for point in batch.points}
    process = WriterLock.holder(store.directory)
    recent = busy(results[-_RECENT - 1 :])
    pace = None
    if len(recent) > 1:
        # The first one tells only when the others began.
        pace = (recent[-1] - recent[0]) / (len(recent) - 1)
    everything = study.strategy.startswith("grid")
    unseen = len(study.space) - len(known | outs | broken)
    last, at = _last([*results, *after, *others], notes, store)
    said = [note.value["text"] for note in notes if note.kind == "strategy"]
    done = busy(results)
    return Status(
        run=str(store.directory),
        strategy=study.strategy,
        process=process,
        ended=None if process is not None else _why(notes),
        measured=len(results),
        points=len(study.space),
        waiting=len(asked - known - outs - broken),
        found=_found(store),
        wanted=len(study.wants),
        held=len(after),
        baselines=len(others),
        seconds=done[-1] if done else 0.0,
        pace=pace,
        left=pace * unseen if everything and unseen and pace is not None else None,
        last=last,
        last_at=at,
        workers=_workers([*results, *after, *others]),
        note=said[-1] if said else "",
        out=len(outs - known),
        broken=len(broken),
    )


def ago(moment: float | None) -> float | None:
    """Seconds since ``moment``."""
    return None if moment is None else max(0.0, time.time() - moment)


def _why(notes: Sequence[Note]) -> str | None:
    """Why the last command ended; None where it did not say."""
    for note in reversed(notes):
        if note.kind == ENDED:
            return str(note.value["why"])
        if note.kind == COMMAND:
            return None
    return None


def _found(store: Store) -> int:
    told = store.told()
    if not told.points:
        return 0
    hit, _ = store.study.board.judge(told.scores, store.study.wants)
    return int(hit.any(axis=0).sum())


def _last(
    results: Sequence[Result], notes: Sequence[Note], store: Store
) -> tuple[str, float | None]:
    """The latest event in words, and when it was."""
    events = [(note.added, _WORDS[note.kind]) for note in notes if note.kind in _WORDS]
    for result in results:
        where = store.study.space.name(result.point)
        reason = f" ({result.reason})" if result.reason else ""
        events.append((result.added, f"{result.split} at {where}{reason}"))
    if not events:
        return "nothing was measured yet", None
    added, text = max(events)
    return text, added


def _workers(results: Sequence[Result]) -> tuple[Worker, ...]:
    own: dict[str, list[Result]] = {}
    for result in results:
        own.setdefault(result.worker or "?", []).append(result)
    return tuple(
        Worker(
            name,
            len(some),
            sum(result.seconds for result in some) / len(some),
            max(result.added for result in some),
        )
        for name, some in sorted(own.items())
    )
