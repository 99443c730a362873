"""avops score: preference accuracy of a checkpoint, or of a recipe without writing it."""

from __future__ import annotations

import argparse
from typing import Any

from avops.cli import output, project, scoring


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "score",
        help="preference accuracy per domain and level",
        description="For every query the level whose response has the highest mean log-prob per "
        "token wins; Pref.Acc of a level is the share of queries it wins.",
    )
    parser.add_argument("base", nargs="?", metavar="BASE", help="checkpoint: file or directory")
    project.add_av(parser, "score base + Σ λ·AV without writing it")
    scoring.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.recipe import Recipe, parse_terms
    from avops.score import summarise

    found = project.load_project()
    terms = parse_terms(project.terms_of(args.av), project.sources(found))
    setup = scoring.setup_of(args, found, tuple(term.source for term in terms))
    scoring.check_outputs(args)
    evaluator = scoring.open_evaluator(setup, quiet=args.json)
    with output.progress("scoring", unit="tokens", quiet=args.json) as progress:
        scores = evaluator.evaluate(terms, progress)
    summary = summarise(scores, evaluator.items)
    base = project.base_of(args.base, found)
    recipe = Recipe(base, terms)
    scoring.save_table(args, evaluator, scores[None], [str(recipe)])
    if args.json:
        output.result(
            {
                "base": base,
                "av": {term.name: term.text for term in terms},
                "data": setup.data,
                "device": evaluator.device,
                "tokens": evaluator.plan.record.to_dict(),
                **summary.to_dict(),
            }
        )
        return 0
    what = base + (f" + {recipe}" if terms else "")
    scoring.show_summary(f"{what} on {setup.data}", summary)
    return 0
