"""Making an aligned checkpoint: base and preferences in, checkpoint or adapter with record out.

What can be refused is refused before anything large is loaded: items, rules, tokens, the output.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.align.saved import Target, check_places, save_adapter, save_aligned
from avops.align.settings import Settings
from avops.align.tokens import plan_of, token_pairs
from avops.disk import fingerprint
from avops.dtypes import DType
from avops.errors import OutputError, UserError
from avops.search import LiveModel, Opened
from avops.stream.record import shown_path
from avops.version import __version__

if TYPE_CHECKING:
    from avops.align.preferences import Preferences
    from avops.align.trainer import Progress, Trained
    from avops.score import TokenPlan

STATE = "avops_training.json"


@dataclass(frozen=True)
class Alignment:
    """What to align, on what, and where it goes.

    base: checkpoint. out: ``*.safetensors`` for one file, else a directory. tokenizer, template: as
    for scoring. device: ``auto``, cpu, cuda. dtype: of the output, None for the base's. resume: go
    on from a kept training state. shown_base: what the record calls the base, None for ``base``.
    """

    base: str
    preferences: Preferences
    out: Path
    settings: Settings = field(default_factory=Settings)
    tokenizer: str | None = None
    template: str | None = None
    device: str = "auto"
    dtype: DType | None = None
    force: bool = False
    resume: bool = False
    shown_base: str | None = None


@dataclass(frozen=True)
class Aligned:
    """What was made. seconds: all of it; trained: what the training gave."""

    path: Path
    record: dict[str, Any]
    trained: Trained
    seconds: float


def align(
    job: Alignment,
    *,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Aligned | None:
    """Align, and write the result. None in a process that is not the one that writes.

    ``progress(done, total, note)`` gets optimiser steps; ``tell`` lines of what is going on.
    An interrupt leaves nothing but, with ``settings.save_steps``, the training state.
    Raises the errors of every room it passes through.
    """
    start = time.perf_counter()
    opened = Opened.of(job.base, ())
    target = Target.of(
        job.out,
        opened.base,
        dtype=job.dtype,
        adapter=job.settings.lora is not None,
        force=job.force,
    )
    state = _state_of(job)

    from avops.align import trainer
    from avops.score import load_tokenizer

    device = _training_device(job.device)
    main = trainer.is_main(device)
    if not main:
        progress = tell = None
    tokenizer = load_tokenizer(job.tokenizer or opened.sidecars)
    plan = plan_of(job.preferences, tokenizer, job.template)
    record = _record(job, opened, plan, trainer.versions())
    if main:
        _prepare_state(state, record, resume=job.resume)
    latest = _latest(state) if state is not None and job.resume else None
    if tell is not None:
        tell(f"loading {job.base}")
    live, second = _models(opened, job.settings, plan)
    with live.threads():
        trained = trainer.train(
            live.model,
            second,
            tokenizer,
            token_pairs(job.preferences, plan),
            job.settings,
            trainer.Run(device, state, latest, progress),
        )
    del live, second
    gc.collect()
    if not trained.main:
        return None
    record |= {"training": _measured(trained)}
    _save(target, trained, record)
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    return Aligned(job.out, record, trained, time.perf_counter() - start)


def _models(opened: Opened, settings: Settings, plan: TokenPlan) -> tuple[LiveModel, Any]:
    """The model to train, and another with its weights before training, where one is needed.

    Raises MismatchError where trained weights would have no place in a checkpoint like the base.
    """
    live = LiveModel(opened, "cpu", dtype=settings.weights)
    _check_fits(live.model, plan)
    if settings.lora is not None:
        return live, None
    check_places(opened.base, live.model.state_dict())
    if settings.precompute:
        return live, None
    return live, LiveModel(opened, "cpu", dtype=settings.weights).model


def _save(target: Target, trained: Trained, record: dict[str, Any]) -> None:
    if trained.adapter is None:
        save_aligned(target, trained.weights, record)
        return
    config = _named(trained.adapter, record["base"]["path"])
    save_adapter(target, trained.weights, config, record)


def state_directory(out: Path) -> Path:
    """Where the training state of the output ``out`` is kept meanwhile."""
    return out.parent / f".{out.name}.avops-training"


def _training_device(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        if device not in ("auto", "cuda"):
            raise UserError(
                f"--device {device}: expected auto, cpu or cuda; to choose one GPU of several set "
                "CUDA_VISIBLE_DEVICES"
            )
        return "cuda"
    if device != "auto":
        raise UserError(f"--device {device}: no CUDA device here; try --device cpu")
    return "cpu"


def _check_fits(model: Any, plan: TokenPlan) -> None:
    config = model.config.get_text_config()
    plan.check_fits(
        positions=getattr(config, "max_position_embeddings", None),
        vocabulary=model.get_input_embeddings().weight.shape[0],
    )


def _record(
    job: Alignment, opened: Opened, plan: TokenPlan, versions: dict[str, str]
) -> dict[str, Any]:
    """What is aligned on what: everything that decides the result."""
    preferences = job.preferences
    return {
        "avops": __version__,
        "made_by": "avops align",
        "base": {
            "path": shown_path(job.shown_base or job.base),
            "fingerprint": fingerprint(opened.base),
        },
        "data": {
            "path": shown_path(preferences.items.source),
            "preferences": preferences.text,
            "domains": list(preferences.items.domains),
            "pairs": len(preferences),
            "sha256": preferences.digest,
        },
        "tokens": plan.record.to_dict(),
        "settings": job.settings.to_dict(),
        "dtype": job.dtype.tag if job.dtype else "as the base",
        "versions": versions,
    }


def _measured(trained: Trained) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "first_loss": trained.losses[0] if trained.losses else None,
        "last_loss": trained.losses[-1] if trained.losses else None,
        "accuracy": trained.accuracy,
        "seconds": round(trained.seconds, 3),
        "device": trained.device,
        "processes": trained.processes,
    }


def _named(config: bytes, base: str) -> bytes:
    """adapter_config.json with the base's public name."""
    table = json.loads(config)
    table["base_model_name_or_path"] = base
    return json.dumps(table, indent=2, sort_keys=True).encode() + b"\n"


def _state_of(job: Alignment) -> Path | None:
    if job.settings.save_steps is None:
        if job.resume:
            raise UserError("--resume without --save-steps: no training state is kept; give both")
        return None
    return state_directory(job.out)


def _prepare_state(state: Path | None, record: dict[str, Any], *, resume: bool) -> None:
    """Make the directory of the training state, or check that the one there is this training's.

    Raises OutputError where it is another's.
    """
    if state is None:
        return
    own = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    marker = state / STATE
    if state.exists():
        found = _marked(marker)
        if found is None or (resume and found != own):
            raise OutputError(
                f"{state}: expected the training state of this base, data and settings, got "
                f"{'no training state' if found is None else 'that of others'}; give what it was "
                "started with, or remove it to begin anew"
            )
        if resume:
            return
        shutil.rmtree(state)
    try:
        state.mkdir(parents=True)
        marker.write_text(json.dumps({"training": own}) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{state}: cannot be made: {error.strerror}; choose another -o") from None


def _marked(marker: Path) -> str | None:
    try:
        found = json.loads(marker.read_bytes())["training"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _latest(state: Path) -> Path | None:
    """The latest whole training state. Its trainer_state.json is written last."""
    found = [path.parent for path in state.glob("checkpoint-*/trainer_state.json")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
