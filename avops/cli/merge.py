"""avops merge: write θ(λ) as a checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from avops.cli import output, project
from avops.cli.merge_report import show_plan, show_report
from avops.cli.options import add_dtype, add_rules
from avops.dtypes import F32
from avops.errors import UserError

if TYPE_CHECKING:
    from avops.cli.request import Request
    from avops.disk import Checkpoint
    from avops.dtypes import DType

_EXAMPLES = """\
examples:
  avops merge base.safetensors --av med:-1 fin:-1 leg:.6
  avops merge org/base --av ./lora-med:.5 org/aligned:-.4 -o merged
  avops merge base --av med:.5 --where 'model.layers.0-15.*=0.5' --skip '*norm*'
  avops merge base --av med:-1,-.5,0,.5 -o 'out/med{med}'      four outputs, one read
  avops merge mergekit-config.yml -o merged
  avops merge merged/avops_recipe.json -o again
"""


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "merge",
        help="write base + Σ λ·AV as a checkpoint",
        description="Write θ(λ) = θ_base + Σ λ · AV as a checkpoint, streamed and bit-exact.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "base",
        nargs="?",
        metavar="BASE",
        help="checkpoint: file, directory, hub id owner/name[@revision] (default: avops.toml's); "
        "or a config: mergekit's .yml, avops_recipe.json",
    )
    project.add_av(
        parser,
        "alignment vectors with λ: a name in avops.toml, a path (checkpoint, delta file, LoRA "
        "adapter) or a hub id; several λ as a,b,c or START:STOP:STEP",
    )
    add_rules(parser)
    _add_output(parser.add_argument_group("output"))
    _add_checks(parser.add_argument_group("what may differ from the base"))
    parser.set_defaults(run=run)


def _add_output(group: Any) -> None:
    group.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help="file.safetensors or a directory (default: merged.safetensors or merged/, as BASE "
        "is); {NAME} stands for the λ of an AV",
    )
    add_dtype(group, "dtype of floating tensors (default: the base's)")
    group.add_argument(
        "--rounding",
        choices=("nearest", "dither"),
        help="dither: unbiased, so that small λ·AV do not vanish in bf16 (default: nearest)",
    )
    group.add_argument("--seed", type=_seed, metavar="N", help="of --rounding dither (default: 0)")
    group.add_argument("--dry-run", action="store_true", help="check and show the plan only")
    group.add_argument("--force", action="store_true", help="replace an earlier output")
    group.add_argument("--resume", action="store_true", help="take up what a killed run left")
    group.add_argument(
        "--to-mergekit",
        metavar="FILE",
        help="write the recipe as mergekit's YAML (-: on stdout), do not merge",
    )
    group.add_argument("--json", action="store_true", help="one JSON result on stdout")


def _add_checks(group: Any) -> None:
    group.add_argument(
        "--vocab",
        choices=("strict", "base"),
        help="base: of vocabularies of different sizes merge the shared rows, if their tokens "
        "agree (default: strict, they are refused)",
    )
    group.add_argument(
        "--allow-missing",
        action="store_true",
        help="AVs may lack tensors, which they then leave as in the base",
    )
    group.add_argument(
        "--allow-extra",
        action="store_true",
        help="AVs may have tensors that the base lacks; they are ignored",
    )
    group.add_argument("--allow-nonfinite", action="store_true", help="keep NaN and infinities")


def _seed(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text}, expected 0 to 2^64 - 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.cli.request import request_of
    from avops.stream import merge, plan_merges

    request = request_of(args)
    for text in request.notes:
        output.note(text)
    if args.to_mergekit:
        return _write_mergekit(request, args)
    if request.options.rounding == "dither":
        _note_dither(request)
    plan = plan_merges(request.wanted, request.options)
    if args.dry_run:
        show_plan(plan, as_json=args.json)
        return 0
    with output.progress("merging", quiet=args.json) as progress:
        report = merge(plan, progress=progress)
    show_report(plan, report, as_json=args.json)
    return 0


def _note_dither(request: Request) -> None:
    """Say so where nothing is rounded to a dtype that dither is for."""
    from avops.disk import open_base

    dtype, base = request.options.dtype, open_base(request.wanted[0][0].base)
    dtypes = {t.dtype for t in base.tensors.values() if t.dtype.computable}
    if {dtype or one for one in dtypes} == {F32}:
        output.note("--rounding dither changes nothing in float32; --dtype bf16 writes bf16")


def _write_mergekit(request: Request, args: argparse.Namespace) -> int:
    from avops.disk import open_base, open_vector, write_file
    from avops.recipe.mergekit import to_mergekit

    if len(request.wanted) > 1:
        raise UserError("--to-mergekit: several candidates, expected one λ for each AV")
    if (request.options.rounding, request.options.vocab) != ("nearest", "strict"):
        raise UserError(
            "--to-mergekit with --rounding dither or --vocab base, which mergekit has no word for; "
            "leave them out"
        )
    recipe = request.wanted[0][0]
    base = open_base(recipe.base)
    sources = [term.source for term in recipe.terms]
    kinds = [open_vector(source.name, source.path, source.kind).kind for source in sources]
    terms = tuple(
        replace(term, source=replace(term.source, kind=kind))
        for term, kind in zip(recipe.terms, kinds, strict=True)
    )
    dtype = (request.options.dtype or _main_dtype(base)).tag.lower()
    names = tuple(tensor.name for tensor in base.tensors.values() if tensor.dtype.floating)
    for path in (recipe.base, *(source.path for source in sources)):
        if path.endswith(".safetensors"):
            output.note(f"{path}: a file, and mergekit reads directories; give a directory")
    text = to_mergekit(replace(recipe, terms=terms), dtype=dtype, names=names)
    if args.to_mergekit == "-":
        output.line(text.rstrip("\n"))
        return 0
    write_file(args.to_mergekit, text.encode(), force=args.force)
    output.line(f"{args.to_mergekit}  {recipe.base} + {recipe} as a config of mergekit")
    return 0


def _main_dtype(base: Checkpoint) -> DType:
    """The dtype of most of the base: mergekit writes all tensors in one."""
    sizes: dict[DType, int] = {}
    for tensor in base.tensors.values():
        if tensor.dtype.computable:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.count
    if not sizes:
        raise UserError(f"{base.path}: holds no BF16, F16 or F32 tensor, nothing to merge")
    return max(sizes, key=lambda dtype: sizes[dtype])
