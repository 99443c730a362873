"""Every combination of levels, by `avops search`: what was reached, and what was confirmed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.paper.lab import DOMAINS, LEVELS

if TYPE_CHECKING:
    from avops.paper.lab import Lab


def measure(lab: Lab, directory: Path, run: Callable[[Sequence[str]], None]) -> dict[str, Any]:
    """Search on the validation items, winners confirmed on the test items."""
    from avops.search.store import Store
    from avops.search.study import HOLDOUT
    from avops.search.verdicts import HoldOut, findings

    limit = () if lab.plan.limit is None else ("--limit", str(lab.plan.limit))
    run(
        (
            "search", str(lab.world.base),
            "--av", *(f"{lab.world.aligned[domain]}:{lab.plan.grid}" for domain in DOMAINS),
            "--data", str(lab.world.data["validation"]),
            "--levels", ",".join(LEVELS),
            "--holdout", str(lab.world.data["test"]),
            "--baselines", "none",
            "--run", str(directory),
            *limit,
        )
    )  # fmt: skip
    with Store.read(directory) as store:
        study, told = store.study, store.told()
        rows = {result.point: result.scores for result in store.results(HOLDOUT)}
        assert study.holdout is not None
        found = findings(study.problem, told, holdout=HoldOut(study.holdout, rows))
        kept = [result for split in store.splits() for result in store.results(split)]
        seconds = sum(result.seconds for result in kept)
        planned = sum(float(note.value.get("planner", 0)) for note in store.notes("times"))
    verdicts = Counter(finding.verdict for finding in found)
    return {
        "evaluations": len(told.points),
        "grid": len(study.space),
        "seconds": seconds + planned,
        "verdicts": dict(verdicts),
        "reached": verdicts["reached"] + verdicts["confirmed"],
        "found": {
            str(finding.want): {
                "verdict": finding.verdict,
                "margin": finding.margin,
                "recipe": None if finding.point is None else _recipe(finding.point, study.space),
            }
            for finding in found
        },
    }


def _recipe(point: tuple[int, ...], space: Any) -> str:
    """``med:-1 fin:.5 leg:0`` by the domains' short names."""
    texts = [axis.text(place) for axis, place in zip(space.axes, point, strict=True)]
    return " ".join(f"{domain}:{text}" for domain, text in zip(DOMAINS, texts, strict=True))
