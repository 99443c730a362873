"""avops apply: the recipe that a search found for a combination, printed or merged."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import merge, output, project
from avops.cli.apply_inputs import Inputs, find_inputs
from avops.cli.apply_weights import changed_weights, dtype_names, measured_as
from avops.cli.options import add_dtype
from avops.errors import RecipeError, UserError

if TYPE_CHECKING:
    from avops.recipe import Term
    from avops.search.space import Point
    from avops.search.store import Store
    from avops.search.study import Study
    from avops.search.verdicts import Finding, Share

_NOT_ASKED: dict[str, Any] = {
    "vocab": None,
    "to_mergekit": None,
    "allow_missing": False,
    "allow_extra": False,
    "allow_nonfinite": False,
}
"""Options of `avops merge` that would write other weights than were measured."""


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "apply",
        help="the recipe that a search found for a combination, printed or merged",
        description="Print the winning λ of a combination with its verdict and shares, or (-o) "
        "merge it. Only a combination that a measured point hits has a recipe.",
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--want",
        required=True,
        metavar="DOMAIN=LEVEL,…",
        help="the combination, such as med=avd,fin=avd,leg=exp",
    )
    parser.add_argument("-o", "--out", metavar="OUT", help="merge: file.safetensors or a directory")
    parser.add_argument(
        "--base", metavar="BASE", help="where the base is now (default: where the search had it)"
    )
    parser.add_argument(
        "--av",
        nargs="+",
        action="append",
        metavar="NAME=PATH",
        help="where alignment vectors are now (default: where the search had them, or avops.toml)",
    )
    add_dtype(parser, "dtype of floating tensors in the output (default: what was measured)")
    parser.add_argument(
        "--rounding", choices=("nearest", "dither"), help="default: what the study measured with"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of --rounding dither")
    parser.add_argument("--force", action="store_true", help="replace an earlier output")
    parser.add_argument("--resume", action="store_true", help="take up what a killed run left")
    parser.add_argument("--dry-run", action="store_true", help="check and show the plan only")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.search.store import Store

    with Store.read(args.run_directory) as store:
        finding = _finding(store, args.want)
        terms = _winner(store.study, finding, args.run_directory)
        if finding.verdict != "confirmed":
            output.note(_unconfirmed(finding, store.study))
        if args.out is None:
            merging = (args.dry_run, args.resume, args.force, args.dtype, args.rounding, args.base)
            if any(merging) or args.seed is not None or args.av:
                raise UserError("options of a merge without -o OUT; say where to write")
            _show(store, finding, terms, as_json=args.json)
            return 0
        inputs = find_inputs(store, args.base, project.terms_of(args.av), quiet=args.json)
        request = _merge_of(store, args, terms, inputs)
        if changed := changed_weights(store, request, inputs):
            output.note(changed)
    if not args.json and not changed:
        output.status(f"{finding.verdict}: {finding.want} at {' '.join(map(str, terms))}")
        if request.dtype != args.dtype:
            base = dtype_names(inputs.dtypes)
            output.status(f"in {request.dtype}, as measured (the base is {base}: --dtype {base})")
    with project.instead(inputs.project):
        return merge.run(request)


def _finding(store: Store, text: str) -> Finding:
    """What the run says of any combination, wanted then or not."""
    from dataclasses import replace

    from avops.search.board import parse_want
    from avops.search.report.facts import last_end
    from avops.search.study import HOLDOUT
    from avops.search.verdicts import HoldOut, findings

    study = store.study
    if text == "all":
        raise UserError(
            f"--want all: expected one combination of {store.directory}; `avops report` lists them"
        )
    want = parse_want(text, study.board.main)
    held = None
    if study.holdout is not None:
        rows = {result.point: result.scores for result in store.results(HOLDOUT)}
        held = HoldOut(study.holdout, rows)
    exhausted = bool(last_end(store.notes()).get("exhausted")) and want in study.wants
    problem = replace(study.problem, wants=(want,))
    return findings(problem, store.told(), holdout=held, exhausted=exhausted)[0]


def _winner(study: Study, finding: Finding, directory: Path) -> tuple[Term, ...]:
    """The terms of the winner. Raises RecipeError where no measured point hits."""
    from avops.search.verdicts import VERDICTS

    if finding.point is not None:
        return study.space.terms(finding.point)
    nearest = "nothing was measured yet"
    if finding.closest is not None and finding.margin is not None:
        words = _words(study, finding.closest)
        nearest = f"the nearest is --av {words}, which {_missed(finding.margin)}"
    on = "search a wider or finer space" if finding.verdict == "unreachable" else "search on"
    raise RecipeError(
        f"--want {finding.want}: {finding.verdict} in {directory} "
        f"({VERDICTS[finding.verdict]}), expected a combination that was reached; {nearest}; "
        f"{on}, or merge that point yourself"
    )


def _words(study: Study, point: Point) -> str:
    return shlex.join(map(str, study.space.terms(point)))


def _missed(margin: float) -> str:
    return f"misses by {-margin:.3g}" if margin < 0 else "only ties"


def _unconfirmed(finding: Finding, study: Study) -> str:
    """Why a winner that was reached is not confirmed."""
    if study.holdout is None:
        why = "the study has no held-out items"
    elif finding.held is None:
        why = "its point was not measured on the held-out items"
    else:
        why = f"on the held-out items it {_missed(finding.held_margin or 0.0)}"
    return f"{finding.want} was reached, but not confirmed: {why}"


def _show(store: Store, finding: Finding, terms: tuple[Term, ...], *, as_json: bool) -> None:
    from avops.search.evaluator import rules_text
    from avops.search.report.facts import Saved
    from avops.search.report.tables import interval_text, margin_text, percent, share_text

    saved, how, study = _saved(store, finding), measured_as(store), store.study
    if as_json:
        own = Saved(saved["effective"], saved["unchanged"]) if saved else None
        output.result(
            {
                "run": str(store.directory),
                **finding.to_dict(),
                "av": [str(term) for term in terms],
                "where": list(store.study.where),
                "skip": list(store.study.skip),
                "merge": how.words,
                "base": store.identity.shown.get("base"),
                "effective_lam": None if own is None else dict(own.effective),
                "unchanged_share": None if own is None else own.unchanged,
            }
        )
        return
    rules = rules_text(study.where, study.skip)
    output.line(f"--av {shlex.join(map(str, terms))}{' ' if rules else ''}{rules}")
    if how.words:
        output.line(f"to merge it as it was measured, also {shlex.join(how.words)}")
    held = finding.held_margin
    where = "" if held is None else f", on held-out items {margin_text(held)}"
    output.line(f"{finding.verdict}: margin {margin_text(finding.margin)}{where}")
    rows = [
        (
            share.domain,
            share.level,
            f"{share_text(share.share)} {interval_text(share)}",
            _held(share, finding),
        )
        for share in finding.shares
        if finding.want.level(share.domain) in (share.level, None)
    ]
    columns = ("domain", "level", "search items", "held-out items")
    shown = len(columns) - (not finding.held_out)
    output.table("", columns[:shown], [row[:shown] for row in rows], left=2)
    if saved and saved["unchanged"] is not None:
        arrived = " ".join(
            f"{name}:{lam:.3g}" for name, lam in saved["effective"].items() if lam is not None
        )
        output.line(f"effective λ {arrived}; {percent(saved['unchanged'])} of elements unchanged")


def _held(share: Share, finding: Finding) -> str:
    from avops.search.report.tables import interval_text, share_text

    for held in finding.held_out:
        if (held.domain, held.level) == (share.domain, share.level):
            return f"{share_text(held.share)} {interval_text(held)}"
    return ""


def _saved(store: Store, finding: Finding) -> dict[str, Any] | None:
    """The note on what rounding left of the winner's λ."""
    from avops.search.confirm import WINNER

    notes = [n.value for n in store.notes(WINNER) if tuple(n.value["point"]) == finding.point]
    return notes[-1] if notes else None


def _merge_of(
    store: Store, args: argparse.Namespace, terms: tuple[Term, ...], inputs: Inputs
) -> argparse.Namespace:
    """What `avops merge` would be called with: as it was measured, unless told otherwise."""
    how = measured_as(store)
    rounding, seed = args.rounding, args.seed
    if rounding is None and seed is None:
        rounding, seed = how.rounding, how.seed
    dtype = args.dtype
    if dtype is None and how.dtype is not None and inputs.dtypes != {how.dtype}:
        dtype = how.dtype.tag.lower()
    return argparse.Namespace(
        verb="merge",
        debug=args.debug,
        base=inputs.base,
        av=[[str(term) for term in terms]],
        where=list(store.study.where),
        skip=list(store.study.skip),
        out=args.out,
        dtype=dtype,
        rounding=rounding,
        seed=seed,
        force=args.force,
        resume=args.resume,
        dry_run=args.dry_run,
        json=args.json,
        **_NOT_ASKED,
    )
