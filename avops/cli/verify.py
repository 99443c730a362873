"""avops verify: re-read a checkpoint and list everything that is wrong with it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from avops.cli import output

if TYPE_CHECKING:
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
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.disk.hub import local_path
    from avops.stream.verify import verify

    with output.progress("downloading", quiet=args.json) as progress:
        path = local_path(args.path, progress=progress)
    with output.progress("verifying", quiet=args.json) as progress:
        report = verify(path, allow_nonfinite=args.allow_nonfinite, progress=progress)
    if args.json:
        output.result(_json(args, report))
    else:
        _show(args, report)
    return int(bool(report.problems))


def _show(args: argparse.Namespace, report: VerifyReport) -> None:
    for problem in report.problems:
        output.line(output.plain(str(problem)))
    for text in report.notes:
        output.note(output.plain(text))
    count = len(report.problems)
    verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "all well"
    output.line(
        output.plain(
            f"{args.path}: {verdict}: {report.files} files, {report.digests} digests, "
            f"{report.tensors} tensors, {output.size(report.bytes_read)} read "
            f"in {output.seconds(report.seconds)}"
        )
    )


def _json(args: argparse.Namespace, report: VerifyReport) -> dict[str, Any]:
    return {
        "path": args.path,
        "ok": not report.problems,
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
