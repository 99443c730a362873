"""avops verify: re-read a checkpoint and list everything that is wrong with it."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import hub, output, project
from avops.cli.options import read_recipe
from avops.errors import RecipeError, UserError
from avops.score.wording import counted

if TYPE_CHECKING:
    from avops.recipe import RecipeFile
    from avops.stream.recompute import Recomputed
    from avops.stream.verify import VerifyReport


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "verify",
        help="re-read a checkpoint: digests, headers, index, finite values",
        description="Read every byte of a merge's output again: sizes and xxh3 digests against "
        "its recipe, headers, the index both ways, total_size, and values that are NaN or "
        "infinite. Any other checkpoint is checked without digests. All problems are listed.",
        epilog="Exit code: 0 when all is well, 1 when there are problems.",
    )
    parser.add_argument("path", metavar="PATH", help="checkpoint: file, directory or hub id")
    parser.add_argument(
        "--allow-nonfinite",
        action="store_true",
        help="note NaN and infinities, but do not take them for problems",
    )
    parser.add_argument(
        "--against",
        metavar="RECIPE",
        help="compute the merge of this avops_recipe.json again and compare bit for bit",
    )
    parser.add_argument("--base", metavar="PATH", help="--against: where the recipe's base is")
    parser.add_argument(
        "--av",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="--against: where an alignment vector of the recipe is",
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.stream.verify import verify

    if not args.against and (args.base or args.av):
        raise UserError("--base and --av say where the files of --against RECIPE are; give it, too")
    path = hub.local(args.path, quiet=args.json)
    recipe = _recipe(args) if args.against else None
    with output.progress("verifying", quiet=args.json) as progress:
        report = verify(path, allow_nonfinite=args.allow_nonfinite, progress=progress)
    again = None
    if recipe is not None:
        from avops.stream.recompute import recompute

        with output.progress("computing again", quiet=args.json) as progress:
            again = recompute(Path(path), recipe, progress=progress)
    if args.json:
        output.result(_json(args, report, again))
    else:
        _show(args, report)
        if again is not None:
            _show_again(args, again)
    return int(bool(report.problems) or (again is not None and not again.equal))


def _recipe(args: argparse.Namespace) -> RecipeFile:
    """The recipe to compute again, with its files where they are here."""
    from avops.recipe import Recipe

    file = read_recipe(Path(args.against))
    elsewhere = dict(map(_elsewhere, project.terms_of(args.av)))
    known = [term.name for term in file.recipe.terms]
    for name in elsewhere:
        if name not in known:
            raise RecipeError(
                f"--av {name}: no term of {args.against} has this name; "
                f"known names: {', '.join(known)}"
            )
    base = hub.local(args.base or file.recipe.base, quiet=args.json)
    _check_here(args, base, "--base PATH")
    prints = {base: file.fingerprints.get(file.recipe.base)}
    terms = []
    for term in file.recipe.terms:
        path = elsewhere.get(term.name, term.source.path)
        if term.lam:
            path = hub.local(path, quiet=args.json)
            _check_here(args, path, "--av NAME=PATH")
        prints[path] = file.fingerprints.get(term.source.path)
        terms.append(replace(term, source=replace(term.source, path=path)))
    known_prints = {path: value for path, value in prints.items() if value is not None}
    return replace(file, recipe=Recipe(base, tuple(terms)), fingerprints=known_prints)


def _check_here(args: argparse.Namespace, path: str, how: str) -> None:
    if not os.path.exists(path):
        raise RecipeError(
            f"{args.against}: {path} is not here, relative to the current directory; "
            f"say where it is with {how}"
        )


def _elsewhere(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise RecipeError(f"--av {text}: expected NAME=PATH such as med=avs/med.safetensors")
    return name, path


def _show_again(args: argparse.Namespace, again: Recomputed) -> None:
    for problem in again.problems:
        output.line(output.plain(problem))
    for tensor, elements in again.tensors.items():
        differ = "differs" if elements == 1 else "differ"
        output.line(output.plain(f"tensor {tensor!r}: {counted(elements, 'element')} {differ}"))
    verdict = "bit for bit what the recipe gives" if again.equal else "not what the recipe gives"
    output.line(
        output.plain(
            f"{args.path}: {verdict} ({args.against}), computed again "
            f"in {output.seconds(again.seconds)}"
        )
    )


def _show(args: argparse.Namespace, report: VerifyReport) -> None:
    for problem in report.problems:
        output.line(output.plain(str(problem)))
    for text in report.notes:
        output.note(output.plain(text))
    count = len(report.problems)
    verdict = counted(count, "problem") if count else "all well"
    output.line(
        output.plain(
            f"{args.path}: {verdict}: {counted(report.files, 'file')}, "
            f"{counted(report.digests, 'digest')}, {counted(report.tensors, 'tensor')}, "
            f"{output.size(report.bytes_read)} read "
            f"in {output.seconds(report.seconds)}"
        )
    )


def _json(
    args: argparse.Namespace, report: VerifyReport, again: Recomputed | None
) -> dict[str, Any]:
    against = None
    if again is not None:
        against = {
            "equal": again.equal,
            "tensors": dict(again.tensors),
            "problems": again.problems,
            "seconds": round(again.seconds, 6),
        }
    return {
        "path": args.path,
        "ok": not report.problems and (again is None or again.equal),
        "against": against,
        "recipe": report.recipe,
        "files": report.files,
        "digests": report.digests,
        "tensors": report.tensors,
        "nonfinite": report.nonfinite,
        "bytes_read": report.bytes_read,
        "seconds": round(report.seconds, 6),
        "problems": [{"file": p.where, "problem": p.what} for p in report.problems],
        "notes": report.notes,
    }
