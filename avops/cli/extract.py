"""avops extract: make an alignment vector from a base and an aligned checkpoint or adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from avops.cli import output
from avops.cli.options import add_dtype, dtype_of


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "extract",
        help="write aligned − base as an alignment vector",
        description="Write AV = θ_aligned − θ_base as a delta file. Aligned checkpoints and LoRA "
        "adapters also work directly with --av, exactly and without this step.",
    )
    parser.add_argument("base", metavar="BASE", help="checkpoint: file or directory")
    parser.add_argument(
        "aligned", metavar="ALIGNED", help="the same model, aligned, or a LoRA adapter of it"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="file.safetensors, or a directory sharded as the base",
    )
    add_dtype(parser, "dtype of the differences (default: f32; bf16 loses bits)")
    parser.add_argument("--force", action="store_true", help="replace an earlier output")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.dtypes import F32
    from avops.stream import extract, plan_extract

    dtype = dtype_of(args) or F32
    plan = plan_extract(args.base, args.aligned, args.out, dtype=dtype, force=args.force)
    with output.progress("extracting", quiet=args.json) as progress:
        report = extract(plan, progress=progress)
    zeros = report.zeros / report.elements if report.elements else 1.0
    if args.json:
        output.result(
            {
                "out": str(report.target),
                "base": args.base,
                "aligned": args.aligned,
                "dtype": dtype.tag,
                "tensors": report.tensors,
                "elements": report.elements,
                "zero_share": zeros,
                "bytes_read": report.bytes_read,
                "bytes_written": report.bytes_written,
                "seconds": round(report.seconds, 6),
                "notes": report.notes,
            }
        )
        return 0
    output.line(
        f"{report.target}  {args.aligned} − {args.base}  {report.tensors} tensors {dtype}, "
        f"{zeros:.1%} zeros, {output.size(report.bytes_written)} "
        f"in {output.seconds(report.seconds)}"
    )
    for text in report.notes:
        output.note(text)
    return 0
