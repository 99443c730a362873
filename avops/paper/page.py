"""paper.md: every table and figure, the paper's claims beside them, time and cost."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.disk import write_file
from avops.paper import published, tables
from avops.paper.claims import claims
from avops.paper.lab import DOMAINS, LEVELS
from avops.version import __version__

if TYPE_CHECKING:
    from avops.demo import World
    from avops.paper.book import Book
    from avops.paper.lab import Plan


def write_page(
    directory: Path, book: Book, world: World, plan: Plan, *, quick: bool = False
) -> Path:
    """Write ``paper.md`` in ``directory`` from what ``book`` holds. Returns its path."""
    path = directory / "paper.md"
    parts = [_head(world, plan, quick=quick), _claims(book), *_tables(book, plan), _costs(book)]
    write_file(path, "\n".join(parts).encode(), force=True)
    return path


def _head(world: World, plan: Plan, *, quick: bool) -> str:
    counts = "60 test items a domain" if plan.limit is None else f"{plan.limit} items a domain"
    lines = [
        "# The paper on a small world",
        "",
        (
            "*The data are synthetic and the model is tiny (0.3 M weights, trained from scratch); "
            "its recipe was calibrated on other seeds. These are not the paper's numbers, and say "
            "nothing about a 7B: they show what the method does, and every command to do it with.*"
        ),
        "",
    ]
    if quick:
        lines += ["**A quick run: few items, few points. Not to be quoted.**", ""]
    lines += [
        (
            "Shahriar et al., *Inference time LLM alignment in single and multidomain preference "
            "spectrum* ([arXiv 2410.19206](https://arxiv.org/abs/2410.19206)), measured again by "
            f"`avops paper --seed {world.seed}`; {counts}, λ chosen on other (validation) items. "
            "Shares stand with Wilson 95 % intervals; a star marks a dominant level. The paper's "
            "figures stand where this project knows them; its tables could not be read here."
        ),
        "",
    ]
    return "\n".join(lines)


def _claims(book: Book) -> str:
    rows = [
        [
            claim.text,
            "yes" if claim.holds else "no",
            claim.facts,
            "" if claim.holds else claim.reason,
        ]
        for claim in claims(book.__getitem__)
    ]
    table = tables.markdown(("the paper says", "here", "measured", "likely reason"), rows)
    return f"## What reproduces\n\n{table}"


def _tables(book: Book, plan: Plan) -> list[str]:
    judged = book["judged"]
    judge = judged["judge"]["accuracy"]
    search = book["search"]
    return [
        "## Table 1: the base as it is\n\n" + tables.default_table(book["default"], judged),
        (f"Judged: {plan.answers} greedy answers a domain, placed by a classifier of wording "
        "(TF-IDF, logistic regression) that was trained on the preference data's responses and "
        f"places {judge:.1%} of the test items' own responses right. A tiny model's answers are "
        "further from them than another person's would be.\n"),
        "## Table 2: asked in words\n\nShare of the level that the instruction asks for.\n\n"
        + tables.prompting_table(book["prompting"], judged),
        "## Table 3: by alignment vectors\n\nShare of each level at the λ with the largest margin "
        "on validation items.\n\n" + tables.editing_table(book["editing"], judged),
        _published(book["editing"]),
        _agreement(judged),
        "## Figure 2: the dials\n\n" + _pictures("2", DOMAINS),
        "## Table 4: elsewhere\n\n" + tables.effects_table(book["effects"]),
        "## Figure 3: the safety vector\n\nThe paper, by the same summary: safe answers preferred "
        f"in {published.SAFE[0]:.2f} at λ {published.SAFE[1]}.\n\n"
        + _pictures("3", ("safety", "helpful", "domains")),
        "## Figure 4: on a safety-aligned model\n\nThe domain's vector is added to base + safety "
        "vector.\n\n" + _pictures("4", DOMAINS) + _safety_kept(book["transfer"]),
        _search(search),
        "Trained jointly: one model per combination, on the mixed preference set of all three "
        "domains (the wanted level over both others; IPO by TRL, 90 steps of 24 pairs). Shares of "
        "the wanted level in med / fin / leg, test items.\n\n" + tables.joint_table(book["joint"]),
    ]  # fmt: skip


def _search(search: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in search["verdicts"].items())
    return (
        "## Table 5: every combination\n\n"
        f"`avops search` measured {search['evaluations']} of {search['grid']:,} points: {counts}. "
        f"The paper's grid has {published.GRID:,} points at about {published.SECONDS_A_POINT} s "
        f"({published.GPU_HOURS} A100 hours), and reaches {published.REACHED} of "
        f"{published.COMBINATIONS}.\n\n" + tables.combinations_table(search)
    )


def _published(editing: Mapping[str, Any]) -> str:
    """The paper's expert shares, as far as they are known, beside those here."""
    rows = [
        [
            domain,
            f"{share:.2f} at λ {lam}",
            (
                f"{editing[f'{domain} exp']['test'][domain]['exp'][0]:.2f} "
                f"at λ {editing[f'{domain} exp']['lam']}"
            ),
        ]
        for domain, (share, lam) in published.EXPERT.items()
    ]
    return (
        "Of the paper's shares these are known here, from a summary of it by others:\n\n"
        + tables.markdown(("expert share", "the paper (Mistral-7B)", "here"), rows)
    )


def _agreement(judged: Mapping[str, Any]) -> str:
    """How often the judge and the log-probs place an item alike, over all of table 3."""
    cells = [
        judged["editing"][f"{domain} {level}"][domain]["agreement"]
        for domain in DOMAINS
        for level in LEVELS
    ]
    known = [cell for cell in cells if cell is not None]
    if not known:
        return ""
    return (
        f"Judge and log-probs place an item alike in {min(known):.0%} to {max(known):.0%} of the "
        "cases, depending on the recipe: what a model prefers among given answers is not always "
        "what it writes.\n"
    )


def _safety_kept(transfer: Mapping[str, Any]) -> str:
    rows = []
    for domain in DOMAINS:
        found = transfer[domain]
        wanted = {-1.0, -0.5, 0.0, 0.5, 1.0}
        cells = {
            float(lam): f"{value:.2f}"
            for lam, value in zip(found["lams"], found["safety"], strict=True)
            if float(lam) in wanted
        }
        rows.append([domain, *(cells[lam] for lam in sorted(cells))])
    lams = sorted(wanted & {float(lam) for lam in transfer[DOMAINS[0]]["lams"]})
    columns = ("safe answers at λ of", *(f"{lam:g}" for lam in lams))
    return "\n" + tables.markdown(columns, rows)


def _pictures(figure: str, names: tuple[str, ...]) -> str:
    lines = [f"![figure {figure}, {name}](figures/figure-{figure}-{name}.png)" for name in names]
    return "\n".join(lines) + "\n"


def _costs(book: Book) -> str:
    rows = [[name, f"{book.seconds(name):.0f} s"] for name in book.made]
    rows.append(["all", f"{sum(map(book.seconds, book.made)):.0f} s"])
    joint = book["joint"]
    one = sum(found["seconds"] for found in joint.values()) / len(joint)
    what = f"avops {__version__}, Python {platform.python_version()}, {platform.machine()}"
    return (
        "## Time\n\n" + tables.markdown(("stage", "took"), rows) + "\n"
        f"Training one model for one combination took {one:.0f} s, all {published.COMBINATIONS} "
        f"would take {one * published.COMBINATIONS:.0f} s. {what}, on the CPU.\n"
    )
