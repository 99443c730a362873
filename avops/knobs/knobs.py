"""Knobs: θ(λ) in a live model, in place, always from the pristine base.

Adding and subtracting rounded deltas drifts, so every ``set`` computes base + Σ λ·AV anew.
The weights are those `avops merge` writes for the same recipe, then widened (exactly) if the
model computes in a wider dtype than the checkpoint's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from avops.disk import Checkpoint, Vector, check_distinct, check_vector, open_base, open_vector
from avops.errors import AvopsError, NonFiniteError
from avops.knobs.counts import Counts
from avops.knobs.dials import Dials, Lam, parse_rules, shown
from avops.knobs.effective import effective
from avops.knobs.guard import MIXED, forbid, permit
from avops.knobs.lock import SharedLock
from avops.knobs.mapped import Mapped, MappedVector
from avops.knobs.origin import find_base
from avops.knobs.residency import Choice
from avops.knobs.settings import Options, Progress, Settings
from avops.knobs.site import NONFINITE, Inputs
from avops.knobs.sites import load_all, make_sites
from avops.knobs.targets import check_ready, find_targets
from avops.knobs.ties import check_rules
from avops.knobs.watch import Watch

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack


@dataclass(frozen=True, eq=False)
class _Loaded:
    """What the model holds: coefficients as they were given, λ by target and dial, counts."""

    exact: Mapping[str, Fraction]
    rows: np.ndarray
    counts: Counts


class Knobs:
    """Alignment vectors as dials on ``model``.

    model: a torch module in eval mode whose parameter names are the checkpoint's; its tensors
    stay where they are. avs: name to path or opened vector: delta file, aligned checkpoint or
    LoRA adapter. base: the checkpoint the weights come from (path or opened), by default the one
    that the model says it was loaded from; results are rounded to its dtype. The base is loaded
    at once, whatever the model holds. options: see Settings.

    Raises MismatchError when model, base and vectors do not fit, RecipeError for one vector under
    two names or rules that match nothing, UserError for options and models that are not accepted.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        avs: Mapping[str, Vector | str | os.PathLike[str]],
        *,
        base: Checkpoint | str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._settings = Settings(**options)
        check_ready(model)
        checkpoint = _open_base(model, base)
        vectors = {
            name: av if isinstance(av, Vector) else open_vector(name, av)
            for name, av in avs.items()
        }
        check_distinct(vectors.values())
        for vector in vectors.values():
            check_vector(checkpoint, vector)
        mapped = {name: MappedVector(vector) for name, vector in vectors.items()}
        self._inputs = Inputs(Mapped(checkpoint), tuple(mapped.values()))
        floating = [t.name for t in checkpoint.tensors.values() if t.dtype.floating]
        rules = parse_rules(self._settings.where, self._settings.skip)
        self._dials = Dials(tuple(vectors), rules, floating, str(checkpoint.path))
        self._model = model
        self._targets = find_targets(model, self._inputs.base, mapped, self._settings.key_seed)
        check_rules(self._targets, self._dials, self._inputs)
        self._watch = Watch(model, self._targets)
        self._dials.place([target.name for target in self._targets])
        self._held = np.array(
            [[target.name in av for av in self._inputs.vectors] for target in self._targets],
            np.bool_,
        ).reshape(len(self._targets), len(vectors))
        self._sites = make_sites(self._targets, self._inputs, self._settings.residency)
        self._loaded: _Loaded | None = None
        self._effective: dict[str, float | None] | None = None
        self._measuring = threading.Lock()
        self.lock = SharedLock()
        with self.lock.alone():
            load_all(self._sites, self._settings.progress)
            self._put(self._dials.exact({}))

    @property
    def names(self) -> tuple[str, ...]:
        """The dials."""
        return self._dials.names

    @property
    def state(self) -> Mapping[str, float]:
        """The coefficients of what is loaded (float32 values).

        Raises AvopsError, as everything but ``set`` does, when the last ``set`` failed halfway and
        the model could not be brought back: its weights are then mixed.
        """
        return shown(self._whole().exact)

    @property
    def counts(self) -> Counts:
        """What the last ``set`` counted."""
        return self._whole().counts

    @property
    def effective(self) -> Mapping[str, float | None]:
        """The effective λ of what is loaded, as `avops merge` reports it.

        None where λ is 0 or the sample cannot tell. Computed when first asked for after a ``set``,
        from 0.2 % of the weights and the files they come from, which must be what they were.
        """
        with self.lock, self._measuring:
            loaded = self._whole()
            if self._effective is None:
                self._watch.check()
                self._inputs.check()
                lams = shown(loaded.exact)
                self._effective = effective(self._targets, loaded.rows, self._inputs, lams)
            return dict(self._effective)

    @property
    def residency(self) -> Mapping[str, Choice]:
        """Where base and alignment vectors stay, and why, for each device of the model."""
        return {str(site.device): site.choice for site in self._sites}

    def set(self, lams: Mapping[str, Lam] | None = None, /, **more: Lam) -> None:
        """Load θ(λ) in place; a dial that is not named is 0. Terms are added in dial order.

        Waits for forwards that hold ``lock``. Raises RecipeError for an unknown dial or a λ that
        is not finite, NonFiniteError when a weight becomes NaN or infinite; the model then has
        what it had before.
        """
        check_ready(self._model)
        exact = self._dials.exact({**(lams or {}), **more})
        with self.lock.alone():
            self._put(exact)

    @contextlib.contextmanager
    def at(self, lams: Mapping[str, Lam] | None = None, /, **more: Lam) -> Iterator[None]:
        """``set`` for the length of a ``with`` block, then back to what was loaded before."""
        before = self._whole()
        try:
            self.set(lams, **more)
            yield
        finally:
            # A set that failed has brought it back itself.
            if self._loaded is not before:
                with self.lock.alone():
                    self._put(before.exact)

    def _whole(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            raise AvopsError(MIXED)
        return loaded

    def _put(self, exact: Mapping[str, Fraction]) -> None:
        """Load ``exact``; after a failure what was there before, computed anew."""
        rows = np.where(self._held, self._dials.rows(exact), np.float32(0))
        self._watch.check()
        for site in self._sites:
            site.check()
        before = self._loaded
        try:
            self._loaded = self._effective = None
            counts = self._write(rows)
            self._refuse_nonfinite(counts, rows)
            self._loaded = _Loaded(exact, rows, self._summary(counts, rows))
        except BaseException:
            self._loaded = None
            self._go_back(before)
            raise
        permit(self._model)

    def _go_back(self, before: _Loaded | None) -> None:
        try:
            if before is not None:
                self._write(before.rows)
                self._loaded = before
        finally:
            if self._loaded is None:
                forbid(self._model)

    def _write(self, rows: np.ndarray) -> np.ndarray:
        """Write θ(λ) on all devices. Returns counts, [targets, 4]."""
        import torch

        counts = np.zeros((len(self._targets), 4), np.int64)
        # There, parameters may be written to whether or not they were made in inference mode.
        with torch.inference_mode():
            for site in self._sites:
                site.start(rows[list(site.numbers)])
            for site in self._sites:
                counts[list(site.numbers)] = site.finish()
        return counts

    def _combined(self, rows: np.ndarray) -> list[int]:
        """The targets that are not the base's bytes."""
        touched = np.asarray(rows.any(axis=1))
        return [
            number
            for number, target in enumerate(self._targets)
            if touched[number] or not target.kept
        ]

    def _summary(self, counts: np.ndarray, rows: np.ndarray) -> Counts:
        numbers = self._combined(rows)
        elements = sum(self._targets[number].base.count for number in numbers)
        return Counts(elements, *map(int, counts[numbers].sum(axis=0)))

    def _refuse_nonfinite(self, counts: np.ndarray, rows: np.ndarray) -> None:
        bad = [number for number in self._combined(rows) if counts[number, NONFINITE]]
        if not bad or self._settings.allow_nonfinite:
            return
        first, others = bad[0], f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        pairs = zip(self.names, rows[first], strict=True)
        lams = ", ".join(f"{name}:{lam:g}" for name, lam in pairs if lam) or "0"
        raise NonFiniteError(
            f"tensor {self._targets[first].name!r} would hold {counts[first, NONFINITE]} values "
            f"that are NaN or infinite at λ = {lams}{others}; lower λ or repair the input"
        )


def load(
    model: torch.nn.Module,
    base: Checkpoint | str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> None:
    """Fill the parameters of ``model`` from ``base``, in place, streaming from the disk.

    Nothing is kept. progress: called with bytes that were read, and their total.
    """
    Knobs(model, {}, base=base, residency="disk", progress=progress)


def _open_base(
    model: torch.nn.Module, base: Checkpoint | str | os.PathLike[str] | None
) -> Checkpoint:
    if isinstance(base, Checkpoint):
        return base
    return find_base(model) if base is None else open_base(base)
