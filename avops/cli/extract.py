"""avops extract: make alignment vectors from a base and aligned checkpoints or adapters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import hub, output
from avops.cli.options import add_dtype, dtype_of
from avops.errors import OutputError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avops.stream.transform_adapter import AdapterReport, Factored
    from avops.stream.transform_run import Transformed, TransformReport
    from avops.stream.transforms import Transforms

_EXAMPLES = """\
examples:
  avops extract base aligned -o av.safetensors
  avops extract base aligned --trim .2 -o trimmed.safetensors
  avops extract base med fin leg --trim .2 --sign-elect -o 'avs/{name}.safetensors'
  avops extract base aligned --dare .5 --seed 1 -o sparse.safetensors
  avops extract base aligned --rank 16 -o lora
Transforms are applied in the order of the options: trim, sign-elect, dare, rank.
"""


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "extract",
        help="write aligned − base as an alignment vector",
        description="Write AV = θ_aligned − θ_base as a delta file. Aligned checkpoints and LoRA "
        "adapters also work directly with --av, exactly and without this step. Transforms change "
        "the differences first; they take delta files, too.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("base", metavar="BASE", help="checkpoint: file, directory or hub id")
    parser.add_argument(
        "aligned",
        nargs="+",
        metavar="ALIGNED",
        help="the same model, aligned, or a LoRA adapter of it: path or hub id; several with "
        "--sign-elect",
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="file.safetensors, or a directory sharded as the base; {name} stands for ALIGNED's "
        "name, and is added where there are several",
    )
    _add_transforms(parser)
    add_dtype(parser, "dtype of the differences (default: f32; bf16 loses bits)")
    parser.add_argument("--force", action="store_true", help="replace an earlier output")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def _add_transforms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("transforms")
    group.add_argument(
        "--trim",
        metavar="SHARE",
        help="keep this share of each tensor's entries, those of largest magnitude (TIES)",
    )
    group.add_argument(
        "--trim-over",
        choices=("tensor", "vector"),
        help="vector: the share is of all tensors' entries together (default: tensor)",
    )
    group.add_argument(
        "--sign-elect",
        action="store_true",
        help="zero the entries whose sign is not that of the sum over all ALIGNED (TIES)",
    )
    group.add_argument(
        "--dare",
        metavar="SHARE",
        help="drop this share of the entries at random, and rescale the others (DARE)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of --dare (default: 0)")
    group.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="write a LoRA adapter of this rank for PEFT: each matrix's nearest; of a matrix with "
        "a smaller side, the rank of that side",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.stream.transforms import Transforms

    for flag, needs in (("trim_over", "trim"), ("seed", "dare")):
        if getattr(args, flag) is not None and getattr(args, needs) is None:
            raise UserError(
                f"--{flag.replace('_', '-')} without --{needs}, which it belongs to; leave it out, "
                f"or give --{needs}"
            )
    transforms = Transforms(
        trim=args.trim,
        over=args.trim_over or "tensor",
        sign_elect=args.sign_elect,
        dare=args.dare,
        seed=args.seed or 0,
        rank=args.rank,
    )
    if transforms or len(args.aligned) > 1:
        return _run_transforms(args, transforms)
    return _run_plain(args)


def _run_plain(args: argparse.Namespace) -> int:
    from avops.dtypes import F32
    from avops.stream import extract, plan_extract

    dtype = dtype_of(args) or F32
    (aligned,), (out,) = args.aligned, _outs(args)
    base, (local,) = _local(args)
    plan = plan_extract(base, local, out, dtype=dtype, force=args.force)
    with output.progress("extracting", quiet=args.json) as progress:
        report = extract(plan, progress=progress)
    zeros = report.zeros / report.elements if report.elements else 1.0
    if args.json:
        output.result(
            {
                "out": str(report.target),
                "base": args.base,
                "aligned": aligned,
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
        f"{report.target}  {aligned} − {args.base}  {report.tensors} tensors {dtype}, "
        f"{zeros:.1%} zeros, {output.size(report.bytes_written)} "
        f"in {output.seconds(report.seconds)}"
    )
    for text in report.notes:
        output.note(text)
    return 0


def _local(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """Where base and ALIGNED are on this machine, ids on the hub fetched."""
    given = (args.base, *args.aligned)
    base, *aligned = (hub.local(text, quiet=args.json) for text in given)
    return base, tuple(aligned)


def _outs(args: argparse.Namespace) -> tuple[Path, ...]:
    """One output for each ALIGNED: the template with its name."""
    from avops.cli.request import output_path
    from avops.stream.transform_plan import name_of

    template = args.out
    if args.sign_elect and len(args.aligned) > 1 and "{name}" not in template:
        if template.endswith(".safetensors"):
            raise OutputError(
                f"-o {template}: one file for {len(args.aligned)} ALIGNED, expected a directory, "
                f"or a template such as '{template.removesuffix('.safetensors')}-{{name}}"
                ".safetensors'"
            )
        suffix = "" if args.rank is not None else ".safetensors"
        template = f"{template.rstrip('/')}/{{name}}{suffix}"
    return tuple(output_path(template.replace("{name}", name_of(path))) for path in args.aligned)


def _run_transforms(args: argparse.Namespace, transforms: Transforms) -> int:
    from avops.dtypes import F32
    from avops.stream.transform_plan import Extraction, plan_transform
    from avops.stream.transform_run import transform

    outs = _outs(args)
    base, aligned = _local(args)
    extraction = Extraction(
        base=base,
        aligned=aligned,
        outs=outs,
        transforms=transforms,
        dtype=dtype_of(args) or F32,
        force=args.force,
    )
    report: TransformReport | AdapterReport
    if transforms.rank is not None:
        from avops.stream.transform_adapter import write_adapters
        from avops.stream.transform_adapter_plan import plan_adapters

        adapters = plan_adapters(extraction)
        with output.progress("extracting", quiet=args.json) as progress:
            report = write_adapters(adapters, progress=progress)
    else:
        plan = plan_transform(extraction)
        with output.progress("extracting", quiet=args.json) as progress:
            report = transform(plan, progress=progress)
    _show(args, report, extraction.dtype.tag)
    return 0


def _show(args: argparse.Namespace, report: TransformReport | AdapterReport, dtype: str) -> None:
    if args.json:
        output.result(
            {
                "base": args.base,
                "aligned": args.aligned,
                "dtype": dtype,
                "tensors": report.tensors,
                "outputs": [written.to_json() for written in report.outputs],
                "bytes_read": report.bytes_read,
                "bytes_written": report.bytes_written,
                "seconds": round(report.seconds, 6),
                "notes": report.notes,
            }
        )
        return
    outputs: Sequence[Transformed | Factored] = report.outputs
    for aligned, written in zip(args.aligned, outputs, strict=True):
        output.line(
            f"{written.target}  {aligned} − {args.base}, {written.transforms}  "
            f"{report.tensors} tensors {dtype}, {written.measure}, {output.size(written.nbytes)}"
        )
    output.line(
        f"{output.size(report.bytes_read)} read, {output.size(report.bytes_written)} written "
        f"in {output.seconds(report.seconds)}"
    )
    for text in report.notes:
        output.note(text)
