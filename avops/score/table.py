"""The full table S[candidate, item, level], and all that is needed to read it later.

Accuracies, intervals and comparisons are made from it without scoring again. As ``.npz`` it is
read back (see ``scores_file``); as ``.csv`` it has one row per candidate, item and level, where
``winner`` is the level's part of the win: 1, 0, or 1/k where k levels tie.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avops.errors import DataError, OutputError
from avops.score.items import Item, Items
from avops.score.metrics import check_scores, winners
from avops.score.norms import lengths, normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from avops.score.plan import TokenPlan

COLUMNS = (
    "candidate",
    "domain",
    "item",
    "line",
    "id",
    "level",
    "mean_logprob",
    "tokens",
    "bytes",
    "characters",
    "winner",
)


@dataclass(frozen=True)
class Candidate:
    """What one table of scores is of.

    av: alignment vectors and their λ as written, in order; none is the base. instruction: the
    level whose instruction stood before every query. plan: which of the table's plans it was
    scored with. device: where.
    """

    av: tuple[tuple[str, str], ...] = ()
    instruction: str | None = None
    plan: int = 0
    device: str = "cpu"

    @property
    def name(self) -> str:
        """How it is shown: ``med:-1 fin:.5``, ``base``, ``base, told exp``."""
        recipe = " ".join(f"{name}:{lam}" for name, lam in self.av) or "base"
        return recipe if self.instruction is None else f"{recipe}, told {self.instruction}"


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of some candidates on one set of items.

    scores: f32 [candidate, item, level], mean log-probs per token. entries: what each candidate
    is. tokens: T_r, i32 [plan, item, level]. nbytes, characters: of the responses' texts, i32
    [item, level]. plans: what each plan's record says, and its instruction. about: where the
    scores come from (base, fingerprints, dtype), as far as it was given.
    """

    scores: NDArray[np.float32]
    entries: tuple[Candidate, ...]
    items: Items
    tokens: NDArray[np.int32]
    nbytes: NDArray[np.int32]
    characters: NDArray[np.int32]
    plans: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any]

    @classmethod
    def start(
        cls,
        items: Items,
        plans: Sequence[TokenPlan],
        *,
        instructions: Sequence[tuple[str, str] | None] = (None,),
        about: Mapping[str, Any] | None = None,
    ) -> ScoreTable:
        """A table without candidates, for ``items`` tokenised as ``plans``.

        instructions: of each plan, (level, text) or None.
        """
        nbytes, characters = lengths(items)
        records = tuple(
            {
                "instruction": None if told is None else told[0],
                "text": None if told is None else told[1],
                **plan.record.to_dict(),
            }
            for plan, told in zip(plans, instructions, strict=True)
        )
        return cls(
            scores=np.empty((0, len(items), len(items.levels)), np.float32),
            entries=(),
            items=items,
            tokens=np.stack([plan.scored for plan in plans]),
            nbytes=nbytes,
            characters=characters,
            plans=records,
            about=dict(about or {}),
        )

    @property
    def candidates(self) -> tuple[str, ...]:
        """The candidates' names."""
        return tuple(entry.name for entry in self.entries)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels, in order."""
        return self.items.levels

    def append(self, candidate: Candidate, S: NDArray[np.float32]) -> ScoreTable:  # noqa: N803
        """The table with one candidate more. Raises DataError, NonFiniteError for bad scores."""
        check_scores(S, self.items)
        scores = np.concatenate([self.scores, S[None].astype(np.float32)])
        return replace(self, scores=scores, entries=(*self.entries, candidate))

    def pick(self, places: Sequence[int]) -> ScoreTable:
        """The table of the candidates at ``places``, in that order."""
        entries = tuple(self.entries[place] for place in places)
        return replace(self, scores=self.scores[list(places)], entries=entries)

    def under(self, norm: str, candidate: int) -> NDArray[np.floating[Any]]:
        """S[item, level] of one candidate under a norm: token, sum, byte or char."""
        return normalise(
            self.scores[candidate],
            norm,
            tokens=self.tokens[self.entries[candidate].plan],
            nbytes=self.nbytes,
            characters=self.characters,
        )

    def select(
        self,
        *,
        levels: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> ScoreTable:
        """The table of some items and levels only, as ``Items.select`` chooses items.

        Raises DataError for a level or domain that the table lacks.
        """
        own = self.items.levels
        for level in levels or ():
            if level not in own:
                raise DataError(
                    f"{self.items.source}: no scores of level {level!r}, expected some of "
                    f"{', '.join(own)}; score it first"
                )
        items = self.items.select(domains=domains, limit=limit)
        lines = {item.line for item in items}
        rows = [row for row, item in enumerate(self.items) if item.line in lines]
        columns = [own.index(level) for level in (levels or own)]
        cut = np.ix_(rows, columns)
        return replace(
            self,
            scores=self.scores[:, rows][:, :, columns],
            items=replace(items, levels=tuple(levels or own)),
            tokens=self.tokens[:, rows][:, :, columns],
            nbytes=self.nbytes[cut],
            characters=self.characters[cut],
        )

    def to_csv(self) -> str:
        """One row per candidate, item and level; columns as in COLUMNS."""
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(COLUMNS)
        for candidate, table in zip(self.entries, self.scores, strict=True):
            best = winners(table)
            for i, item in enumerate(self.items):
                for column, level in enumerate(self.items.levels):
                    part = best[i, column] / best[i].sum()
                    rows.writerow(
                        (
                            candidate.name,
                            item.domain,
                            i,
                            item.line,
                            item.id or "",
                            level,
                            str(table[i, column]),  # the shortest text that reads back as this f32
                            self.tokens[candidate.plan, i, column],
                            self.nbytes[i, column],
                            self.characters[i, column],
                            f"{part:.6g}",
                        )
                    )
        return out.getvalue()


def bare_items(
    source: str,
    levels: Sequence[str],
    domains: Sequence[str],
    ids: Sequence[str | None],
    lines: Sequence[int],
) -> Items:
    """Items without their texts, which a scores file does not keep: enough for every metric."""
    entries = tuple(
        Item(domain, "", {}, line, name)
        for domain, name, line in zip(domains, ids, lines, strict=True)
    )
    return Items(source, tuple(levels), entries)


def check_table_path(path: Path) -> None:
    """Refuse a path whose suffix is no kind of table. Raises OutputError."""
    if path.suffix not in (".npz", ".csv"):
        raise OutputError(
            f"{path}: a table cannot be written as {path.suffix or 'a file without suffix'!r}; "
            "name it .npz or .csv"
        )
