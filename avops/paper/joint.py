"""The baseline of training again: one model for one combination, on a mixed preference set."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.paper.lab import DOMAINS, LEVELS, table_of

if TYPE_CHECKING:
    from avops.paper.lab import Lab

# As the world's own alignment, per domain: 30 steps of 24 pairs at this rate.
LR, PAIRS, STEPS = 1.2e-4, 24, 30 * len(DOMAINS)


def measure(lab: Lab, directory: Path, search: dict[str, Any]) -> dict[str, Any]:
    """For each of the plan's targets a trained model, and the searched recipe beside it."""
    from avops.align import trainer  # its packages load before the clock starts

    trainer.versions()
    found = {}
    for target in lab.plan.targets:
        path = directory / f"{target.replace(',', '_').replace('=', '-')}.safetensors"
        begun = time.perf_counter()
        _train(lab, target, path)
        taken = time.perf_counter() - begun
        recipe = search["found"].get(target, {}).get("recipe")
        found[target] = {
            "seconds": taken,
            "trained": table_of(_score(lab, path)),
            "recipe": recipe,
            "merged": None if recipe is None else table_of(lab.summary("test", recipe)),
        }
    return found


def _train(lab: Lab, target: str, path: Path) -> None:
    from avops.align import Alignment, Settings, align, parse_target, targeted

    path.parent.mkdir(parents=True, exist_ok=True)
    settings = Settings(lr=LR, batch=PAIRS, max_steps=STEPS, schedule="constant", epochs=100)
    preferences = targeted(lab.train_items, parse_target(target))
    align(Alignment(str(lab.world.base), preferences, path, settings, device="cpu", force=True))


def _score(lab: Lab, path: Path) -> Any:
    """The trained model as a vector at λ = 1: exactly its weights."""
    from avops.recipe import Source, Term
    from avops.score import summarise
    from avops.search import Evaluator, Setup

    source = Source("joint", str(path), "aligned")
    setup = Setup(
        base=str(lab.world.base),
        sources=(source,),
        data=str(lab.world.data["test"]),
        levels=LEVELS,
        limit=lab.plan.limit,
        device="cpu",
    )
    evaluator = Evaluator(setup)
    return summarise(evaluator.evaluate((Term(source, 1.0, "1"),)), evaluator.items)
