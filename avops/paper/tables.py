"""The tables of the page, as Markdown: measured shares, with the paper's own where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avops.paper.lab import DOMAINS, LEVELS

Table = Mapping[str, Any]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def share(cell: Sequence[float]) -> str:
    """``.62 [.49, .73]``."""
    value, low, high = cell
    return f"{_two(value)} [{_two(low)}, {_two(high)}]"


def default_table(default: Table, judged: Table) -> str:
    """Table 1: the base as it is."""
    rows = [
        [
            domain,
            *(share(default[domain][level]) for level in LEVELS),
            default[domain]["dominant"] or "–",
            " / ".join(_two(judged["base"][domain][level][0]) for level in LEVELS),
        ]
        for domain in DOMAINS
    ]
    return markdown(("domain", *LEVELS, "dominant", f"judged {' / '.join(LEVELS)}"), rows)


def prompting_table(prompting: Table, judged: Table) -> str:
    """Table 2: the share of each level when it is asked for in words."""
    rows = []
    for domain in DOMAINS:
        cells = [share(prompting[level][domain][level]) for level in LEVELS]
        told = [_two(judged["told"][level][domain][level][0]) for level in LEVELS]
        rows.append([domain, *cells, " / ".join(told)])
    return markdown(("domain", *LEVELS, f"judged {' / '.join(LEVELS)}"), rows)


def editing_table(editing: Table, judged: Table) -> str:
    """Table 3: the share of each level at the λ chosen for it."""
    rows = []
    for domain in DOMAINS:
        cells, marks = [], []
        for level in LEVELS:
            found = editing[f"{domain} {level}"]
            own = found["test"][domain]
            mark = " *" if own["dominant"] == level else ""
            cells.append(f"{share(own[level])} at λ {found['lam']}{mark}")
            marks.append(_two(judged["editing"][f"{domain} {level}"][domain][level][0]))
        rows.append([domain, *cells, " / ".join(marks)])
    return markdown(("domain", *LEVELS, f"judged {' / '.join(LEVELS)}"), rows)


def effects_table(effects: Table) -> str:
    """Table 4: other domains, safety and helpfulness under each recipe."""
    rows = []
    for recipe, found in effects.items():
        cells = [
            " / ".join(_two(found["test"][domain][level][0]) for level in LEVELS)
            for domain in DOMAINS
        ]
        rows.append([f"`{recipe}`", *cells, share(found["safety"]), share(found["helpful"])])
    names = [f"{domain}: {' / '.join(LEVELS)}" for domain in DOMAINS]
    return markdown(("recipe", *names, "safe answer preferred", "helpful answer preferred"), rows)


def combinations_table(search: Table) -> str:
    """Table 5: every combination with its verdict."""
    rows = [
        [want.replace(",", " "), found["verdict"], _recipe(found), _margin(found)]
        for want, found in search["found"].items()
    ]
    return markdown(("combination", "verdict", "λ", "margin on the search items"), rows)


def joint_table(joint: Table) -> str:
    """Table 5's baseline: a jointly trained model beside the merged one, on test items."""
    rows = []
    for target, found in joint.items():
        wanted = dict(part.split("=") for part in target.split(","))
        rows.append(
            [
                target.replace(",", " "),
                _wanted(found["trained"], wanted),
                "not reached" if found["merged"] is None else _wanted(found["merged"], wanted),
                f"{found['seconds']:.0f} s",
            ]
        )
    columns = ("combination", "trained jointly", "alignment vectors at λ", "training took")
    return markdown(columns, rows)


def _wanted(table: Table, wanted: Mapping[str, str]) -> str:
    """The wanted level's share per domain; a star where it is dominant."""
    cells = []
    for domain, level in wanted.items():
        star = "*" if table[domain]["dominant"] == level else ""
        cells.append(f"{_two(table[domain][level][0])}{star}")
    return " / ".join(cells)


def _recipe(found: Table) -> str:
    return "–" if found["recipe"] is None else f"`{found['recipe']}`"


def _margin(found: Table) -> str:
    return "–" if found["margin"] is None else f"{found['margin']:+.2f}"


def _two(value: float) -> str:
    """``.62``, ``1.00``."""
    text = f"{value:.2f}"
    return text.removeprefix("0") if value < 1 else text
