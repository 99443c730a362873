"""What the paper claims, held against what was measured: each claim with yes or no, and the facts.

Nothing is rounded in a claim's favour: a claim about every domain holds only if it holds in each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from avops.paper import published
from avops.paper.lab import DOMAINS

_NAMED: dict[str, tuple[str, tuple[float, ...], str]] = {
    "exp": ("expert answers", (0.5, 1.0), "how fast expert answers rise depends on the seed"),
    "gen": (
        "generic answers",
        (-0.5,),
        (
            "the window in which generic answers win lies nearer to 0 here: a tiny base model is "
            "mildly generic already"
        ),
    ),
    "avd": ("avoidance", (-1.0,), "where avoidance takes over depends on the seed"),
}
"""Level to words, the λ at which it is looked for, and the likely reason where it is not there."""
Read = Callable[[str], Any]
SAFE_ENOUGH = 0.9
RISE = 0.05


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. holds: here. facts: what was measured. reason: where it does not."""

    text: str
    holds: bool
    facts: str
    reason: str = ""


def claims(read: Read) -> list[Claim]:
    """Every claim that the small world can say something about."""
    return [
        *_levels(read),
        _prompting(read),
        _spread(read),
        _orthogonal(read),
        _transfer(read),
        _reachable(read),
        _cost(read),
    ]


def _levels(read: Read) -> list[Claim]:
    """Whether the level is dominant, in the vector's own domain, at the λ that the paper names."""
    editing = read("editing")
    found = []
    for level, (words, at, reason) in _NAMED.items():
        dominant = [
            domain
            for domain in DOMAINS
            if all(_dominant(read(f"sweep {domain}"), domain, lam) == level for lam in at)
        ]
        best = ", ".join(f"{domain} {editing[f'{domain} {level}']['lam']}" for domain in DOMAINS)
        places = " and ".join(f"{lam:g}" for lam in at)
        found.append(
            Claim(
                f"λ {published.LAMS[level]} gives {words} in the vector's own domain",
                len(dominant) == len(DOMAINS),
                f"at λ {places} dominant in {len(dominant)} of {len(DOMAINS)} domains; "
                f"the largest margins are at {best}",
                reason,
            )
        )
    return found


def _dominant(sweep: Any, domain: str, lam: float) -> str | None:
    place = [float(text) for text in sweep["lams"]].index(lam)
    found: str | None = sweep["test"][place][domain]["dominant"]
    return found


def _prompting(read: Read) -> Claim:
    editing, prompting = read("editing"), read("prompting")
    better = sum(
        editing[f"{domain} {level}"]["test"][domain][level][0] > prompting[level][domain][level][0]
        for domain in DOMAINS
        for level in ("exp", "gen", "avd")
    )
    return Claim(
        "editing weights reaches a level further than asking for it in words",
        better == 9,
        f"a larger share in {better} of 9 cases",
        "the tiny model never saw instructions, so words move it by chance",
    )


def _spread(read: Read) -> Claim:
    effects = read("effects")
    base = effects["base"]["test"]
    tried = moved = 0
    for recipe, found in effects.items():
        domain = recipe.partition(":")[0]
        if domain not in DOMAINS or float(recipe.partition(":")[2]) > -0.5:
            continue
        tried += 1
        moved += all(
            found["test"][other]["avd"][0] > base[other]["avd"][0]
            for other in DOMAINS
            if other != domain
        )
    return Claim(
        "a vector moves the other domains, too (over-generalisation)",
        0 < tried == moved,
        f"{moved} of {tried} recipes with λ of -0.5 or less raise avoidance in both other domains",
        "what a negative λ does elsewhere depends on the seed",
    )


def _orthogonal(read: Read) -> Claim:
    found = read("effects")
    base, own = found["base"], found["safety:1"]
    same = [
        domain
        for domain in DOMAINS
        if own["test"][domain]["dominant"] == base["test"][domain]["dominant"]
    ]
    return Claim(
        "a safety vector is a dial of its own",
        own["safety"][0] >= max(SAFE_ENOUGH, base["safety"][0] + RISE)
        and len(same) == len(DOMAINS),
        f"safe answers {base['safety'][0]:.2f} at λ 0, {own['safety'][0]:.2f} at λ 1; the dominant "
        f"level stays in {len(same)} of {len(DOMAINS)} domains",
        "where a domain's two best levels are close, any change of weights may swap them",
    )


def _transfer(read: Read) -> Claim:
    found = read("transfer")
    kept, moved = [], []
    for domain in DOMAINS:
        lams = [float(lam) for lam in found[domain]["lams"]]
        inside = [s for lam, s in zip(lams, found[domain]["safety"], strict=True) if abs(lam) <= 1]
        kept.append(min(inside))
        exp = [row[domain]["exp"][0] for row in found[domain]["test"]]
        moved.append(exp[lams.index(1.0)] - exp[lams.index(-1.0)])
    return Claim(
        "vectors of the base transfer to its safety-aligned stage, whose safety stays",
        min(kept) >= SAFE_ENOUGH and min(moved) > 0.5,
        f"from λ -1 to 1 expert shares rise by at least {min(moved):.2f}; safe answers stay at "
        f"{min(kept):.2f} or more",
        "safety falls below .9 for some λ: the vectors share some directions in a tiny model",
    )


def _reachable(read: Read) -> Claim:
    found = read("search")
    confirmed = found["verdicts"].get("confirmed", 0)
    return Claim(
        f"most of the {published.COMBINATIONS} combinations of levels are reachable "
        f"({published.REACHED} in the paper, after {published.GRID:,} evaluations)",
        confirmed > published.COMBINATIONS / 2,
        f"{found['reached']} reached, {confirmed} of them confirmed on other items, after "
        f"{found['evaluations']} evaluations (grid: {found['grid']:,})",
        "how many are reachable differs from world to world, and with the number of items",
    )


def _cost(read: Read) -> Claim:
    joint, search = read("joint"), read("search")
    one = sum(found["seconds"] for found in joint.values()) / len(joint)
    confirmed = search["verdicts"].get("confirmed", 0)
    ratio = one * confirmed / search["seconds"]
    return Claim(
        f"combinations by vectors are {published.FASTER_THAN_RETRAINING} times faster than by "
        "training again",
        ratio >= published.FASTER_THAN_RETRAINING,
        f"the {confirmed} confirmed combinations would take {confirmed} trainings of {one:.0f} s "
        f"against {search['seconds']:.0f} s of setting, scoring and planning: {ratio:.1f} times "
        "(making the three vectors is left out, as it is needed once)",
        "training a tiny model takes seconds, and so does measuring it; the ratio says little "
        "about a 7B",
    )
