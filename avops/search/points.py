"""Measuring points: one live model, all items, guards and held-out items; one row of scores each.

``PointSetup`` is data that any process can be given; each makes its own ``PointEvaluator`` of it
and holds one model, whose λ is set from the pristine base for every job. Nothing is written, and
after the first job of a kind nothing is allocated but the token plans of raced items.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.disk import fingerprint
from avops.errors import DataError, NonFiniteError
from avops.recipe import Term, exact_text
from avops.score import instructed, instructions_for, load_items
from avops.score.norms import lengths, normalise
from avops.search.evaluator import Setup, live_model, rounding_text
from avops.search.identity import Identity
from avops.search.live import LiveModel, Opened
from avops.search.sets import GuardData, Sets, items_digest, load_sets
from avops.search.space import Point, Space
from avops.search.study import BASELINE, HOLDOUT, SEARCH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.score import Items, Scorer, TokenPlan
    from avops.search.racing import Heat, Out

SETTING = "setting"
"""The split of a job that only sets λ and looks at what arrived."""

Stopped = Callable[[], bool]


@dataclass(frozen=True)
class Place:
    """Where an evaluator works.

    number: which of the workers. device: None as it was set up. threads: of torch's, None as is.
    """

    number: int = 0
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Job:
    """One measurement to make.

    told: the level whose instruction stands before every query. detailed: also find the effective
    λ, which reads a sample of the weights. heat: the race that the point runs, block by block of
    the items; None: all of them at once.
    """

    point: Point
    split: str = SEARCH
    terms: tuple[Term, ...] = ()
    told: str | None = None
    reason: str = ""
    detailed: bool = False
    heat: Heat | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a job gave.

    scores: f32 [outputs]; none for a setting, nor for a point that is out or broken. setting,
    scoring: seconds. worker: who. unchanged: the share of weights that rounding left as in the
    base, None where no term touches any. effective: λ by vector as it arrived, None unless asked
    for. out: why the point was put out of its race, None where it was measured on all items.
    broken: what is not finite there, a weight or a score; empty where all is.
    """

    job: Job
    scores: NDArray[np.float32]
    setting: float
    scoring: float
    worker: str
    unchanged: float | None = None
    effective: Mapping[str, float | None] | None = None
    out: Out | None = None
    broken: str = ""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.setting + self.scoring


@dataclass(frozen=True)
class PointSetup:
    """What points are measured with: a setup, guards, held-out items (see ``load_sets``), a norm.

    The setup's sources are those of the space, in its order.
    """

    setup: Setup
    guards: tuple[GuardData, ...] = ()
    holdout: str = "auto"
    norm: str = "token"

    def make(self, place: Place) -> PointEvaluator:
        """An evaluator at ``place``."""
        return PointEvaluator(self, place)

    def anywhere(self) -> PointSetup:
        """The same with absolute paths, for processes that begin elsewhere."""
        own = self.setup

        def whole(path: str | None) -> str | None:
            return str(Path(path).absolute()) if path and Path(path).exists() else path

        setup = replace(
            own,
            base=whole(own.base) or own.base,
            sources=tuple(replace(s, path=whole(s.path) or s.path) for s in own.sources),
            data=whole(own.data) or own.data,
            tokenizer=whole(own.tokenizer),
            instructions=whole(own.instructions),
        )
        guards = tuple(
            replace(guard, data=whole(guard.data) or guard.data) for guard in self.guards
        )
        return replace(
            self, setup=setup, guards=guards, holdout=whole(self.holdout) or self.holdout
        )


class PointEvaluator:
    """Measures jobs on one model. Items and tokens are read here, the model by ``load``.

    sets: the items. digest: of everything that decides a row but the weights; two evaluators with
    one digest measure the same.
    """

    def __init__(self, points: PointSetup, place: Place | None = None) -> None:
        from avops.score import load_tokenizer

        self._points, self._place = points, place or Place()
        setup = points.setup
        if self._place.device is not None:
            setup = replace(setup, device=self._place.device)
        self._setup = setup
        # Cheap checks first: a bad item must not wait for a model to load.
        main = load_items(setup.data, levels=setup.levels)
        main = main.select(domains=setup.domains, limit=setup.limit)
        self.sets: Sets = load_sets(main, points.guards, points.holdout, setup.limit)
        self.instructions = _instructions(main.levels, setup.instructions)
        self.opened = Opened.of(setup.base, setup.sources)
        self._tokenizer = load_tokenizer(setup.tokenizer or self.opened.sidecars)
        self._plans: dict[tuple[str, str | None], tuple[TokenPlan, ...]] = {}
        self._scorers: dict[tuple[str, str | None], tuple[Scorer, ...]] = {}

    @cached_property
    def live(self) -> LiveModel:
        """The model, loaded when it is first asked for."""
        if self._place.threads is not None:
            import torch

            torch.set_num_threads(self._place.threads)
        return live_model(self.opened, self._setup)

    def load(self) -> None:
        """Load base and vectors now rather than with the first job."""
        _ = self.live

    @property
    def name(self) -> str:
        """Who measures, and on what."""
        return f"{self._place.number} {self.live.device}"

    @cached_property
    def digest(self) -> str:
        """See the class."""
        digest = hashlib.sha256()
        for split in (SEARCH, HOLDOUT):
            for plan in self.plans(split) if split == SEARCH or self.sets.holdout else ():
                digest.update(bytes.fromhex(plan.record.sha256))
        return digest.hexdigest()

    def plans(self, split: str, told: str | None = None) -> tuple[TokenPlan, ...]:
        """The tokens of a split's items and guards, with an instruction if there is one."""
        from avops.score import encode

        kind = HOLDOUT if split == HOLDOUT else SEARCH
        if (kind, told) not in self._plans:
            items = self.sets.search if kind == SEARCH else self.sets.holdout
            if items is None:
                raise DataError("there are no held-out items; give some with --holdout")
            if told is not None:
                items = tuple(instructed(own, self.instructions[told]) for own in items)
            template = self._setup.template
            self._plans[kind, told] = tuple(
                encode(own, self._tokenizer, template=template) for own in items
            )
        return self._plans[kind, told]

    def tokens(self, split: str = SEARCH) -> int:
        """Tokens of one job, before what responses share counts once."""
        return sum(plan.record.tokens for plan in self.plans(split))

    def evaluate(self, job: Job, stopped: Stopped | None = None) -> Outcome:
        """Set λ, score everything, and say how long it took.

        A λ at which weights or scores are not finite is an outcome, too: others may be sound.
        ``stopped`` is asked after every forward pass; KeyboardInterrupt where it says so.
        """
        begin = middle = time.perf_counter()
        scores, out = np.empty(0, np.float32), None
        try:
            self.live.set(job.terms)
            middle = time.perf_counter()
            if job.split != SETTING:
                with self.live.threads():
                    if job.heat is None:
                        scores = self._row(job, stopped)
                    else:
                        scores, out = job.heat.run(job.point, partial(self._part, job, stopped))
        except NonFiniteError as error:
            seconds = time.perf_counter() - begin
            return Outcome(job, np.empty(0, np.float32), seconds, 0.0, self.name, broken=str(error))
        end = time.perf_counter()
        knobs = self.live.knobs
        return Outcome(
            job,
            scores,
            setting=middle - begin,
            scoring=end - middle,
            worker=self.name,
            unchanged=None if knobs is None else knobs.counts.unchanged_share,
            effective=dict(knobs.effective) if job.detailed and knobs is not None else None,
            out=out,
        )

    def identity(self, space: Space) -> Identity:
        """What decides the scores of a point of ``space``. Reads samples of base and vectors."""
        setup, sets = self._setup, self.sets
        parts = {"base": fingerprint(self.opened.base)}
        shown = {"base": setup.base}
        for name, vector in self.opened.vectors.items():
            parts[f"av {name}"] = fingerprint(vector)
            shown[f"av {name}"] = next(s.path for s in setup.sources if s.name == name)
        steps = {
            axis.name: f"{axis.name} in steps of {exact_text(axis.step)}" for axis in space.axes
        }
        fixed = {
            term.name: f"{term.name} fixed at {exact_text(term.exact)}" for term in space.fixed
        }
        parts["λ"] = ", ".join((steps | fixed)[source.name] for source in setup.sources)
        parts["levels"] = ", ".join(sets.search[0].levels)
        for split, items in ((SEARCH, sets.search), (HOLDOUT, sets.holdout)):
            names = ("items", *(f"guard {guard.name}" for guard in sets.guards))
            for name, own in zip(names, items or (), strict=False):
                name = name if split == SEARCH else f"{name}, held out"
                parts[name] = items_digest(own)
                shown[name] = f"{own.source}, {_counts(own)}"
        parts["tokens"] = self.digest
        parts["instructions"] = _digest(self.instructions)
        parts["dtype"] = setup.dtype
        parts["rounding"] = rounding_text(setup)
        if setup.rules:
            parts["rules"] = setup.rules
        parts["norm"] = self._points.norm
        return Identity(parts, shown)

    def _row(self, job: Job, stopped: Stopped | None) -> NDArray[np.float32]:
        return self._run(self._scorers_of(job.split, job.told), stopped)

    def _part(
        self, job: Job, stopped: Stopped | None, items: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """The scores of ``items`` alone, rising, numbered through the set and its guards.

        Blocks hold other items than in a whole run, so the last bits may differ from it.
        """
        first, scorers = 0, []
        for scorer in self._scorers_of(job.split, job.told):
            count = len(scorer.plan.items)
            own = items[(items >= first) & (items < first + count)] - first
            if len(own):
                scorers.append(scorer.part(own.tolist()))
            first += count
        return self._run(scorers, stopped)

    def _run(self, scorers: Sequence[Scorer], stopped: Stopped | None) -> NDArray[np.float32]:
        def progress(_done: int, _total: int) -> None:
            if stopped is not None and stopped():
                raise KeyboardInterrupt

        parts = [self._normed(scorer.plan, scorer.run(progress)) for scorer in scorers]
        return np.concatenate([part.reshape(-1) for part in parts])

    def _normed(self, plan: TokenPlan, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._points.norm == "token":
            return scores
        nbytes, characters = lengths(plan.items)
        found = normalise(
            scores, self._points.norm, tokens=plan.scored, nbytes=nbytes, characters=characters
        )
        return found.astype(np.float32)

    def _scorers_of(self, split: str, told: str | None) -> tuple[Scorer, ...]:
        from avops.score import Scorer

        kind = (HOLDOUT if split == HOLDOUT else SEARCH, told)
        if kind not in self._scorers:
            size = self._setup.batch_tokens
            more: dict[str, Any] = {} if size is None else {"batch_tokens": size}
            model = self.live.model
            self._scorers[kind] = tuple(Scorer(model, plan, **more) for plan in self.plans(*kind))
        return self._scorers[kind]


def baseline_jobs(names: Sequence[str], levels: Sequence[str], zero: Point) -> list[Job]:
    """The base without any term, and with each level's instruction, as far as ``names`` asks."""
    found = []
    if "base" in names:
        found.append(Job(zero, f"{BASELINE}base", reason="baseline: the base"))
    if "prompting" in names:
        found += [
            Job(zero, f"{BASELINE}told {level}", told=level, reason=f"baseline: told {level}")
            for level in levels
        ]
    return found


def _instructions(levels: Sequence[str], path: str | None) -> dict[str, str]:
    """Those of ``path``, or the built-in ones where they cover every level, else none."""
    from avops.score.prompting import INSTRUCTIONS

    if path is None and not set(levels) <= set(INSTRUCTIONS):
        return {}
    return instructions_for(levels, path)


def _digest(texts: Mapping[str, str]) -> str:
    if not texts:
        return "none"
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()


def _counts(items: Items) -> str:
    counts = dict.fromkeys(items.domains, 0)
    for item in items:
        counts[item.domain] += 1
    return ", ".join(f"{count} of {domain}" for domain, count in counts.items())
