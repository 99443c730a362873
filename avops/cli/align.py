"""avops align: train an aligned checkpoint on preferences, and enter it in avops.toml."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import hub, output, project, scoring
from avops.cli.options import add_dtype, dtype_of
from avops.errors import DataError, UserError

if TYPE_CHECKING:
    from avops.align import Aligned, Alignment, Preferences, Settings
    from avops.recipe import Project


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "align",
        help="train an aligned checkpoint on preferences (extra: avops[align])",
        description="Direct preference optimisation with the IPO loss, by TRL: expert > generic > "
        "avoidance of one domain, chosen > rejected, or with --target another level in every "
        "domain at once. The result is entered in avops.toml, so that --av knows it.",
    )
    project.add_base(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="file.safetensors, or a directory",
    )
    what = parser.add_argument_group("what to prefer")
    what.add_argument(
        "--data", required=True, metavar="FILE", help="items, or pairs of prompt, chosen, rejected"
    )
    what.add_argument("--domain", metavar="A,B", help="only these domains (default: all)")
    what.add_argument("--limit", type=int, metavar="N", help="only the first N items of each")
    rules = what.add_mutually_exclusive_group()
    rules.add_argument(
        "--prefer",
        metavar="RULES",
        help="such as 'exp>gen,gen>avd' (the default of these levels; also of chosen>rejected, "
        "safe>unsafe, helpful>unhelpful)",
    )
    rules.add_argument(
        "--target",
        metavar="TARGETS",
        help="joint training: one level in each domain over all others, med=avd,leg=exp",
    )
    _add_training(parser.add_argument_group("training"))
    _add_adapter(parser.add_argument_group("LoRA adapter in place of all weights"))
    _add_machine(parser.add_argument_group("machine"))
    made = parser.add_argument_group("results")
    add_dtype(made, "of the checkpoint (default: the base's)")
    made.add_argument(
        "--name",
        metavar="NAME",
        help=f"its name in {project.FILE} (default: the domain, where there is one)",
    )
    made.add_argument("--no-register", action="store_true", help=f"leave {project.FILE} as it is")
    made.add_argument("--force", action="store_true", help="replace an earlier output and entry")
    made.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def _add_training(group: Any) -> None:
    group.add_argument("--beta", type=float, metavar="β", help="default: 0.1")
    group.add_argument("--loss", metavar="ipo|sigmoid|hinge", help="default: ipo")
    group.add_argument("--epochs", type=float, metavar="N", help="default: 1")
    group.add_argument("--max-steps", type=int, metavar="N", help="stop after N optimiser steps")
    group.add_argument("--batch", type=int, metavar="N", help="pairs in a pass (default: 4)")
    group.add_argument("--accumulate", type=int, metavar="N", help="passes in a step (default: 1)")
    group.add_argument("--lr", type=float, metavar="X", help="learning rate (default: 1e-6)")
    group.add_argument("--schedule", metavar="NAME", help="linear (default), cosine, constant, …")
    group.add_argument("--warmup", type=int, metavar="N", help="steps (default: 0)")
    group.add_argument("--weight-decay", type=float, metavar="X", help="default: 0")
    group.add_argument("--clip", type=float, metavar="X", help="norm of gradients (default: 1)")
    group.add_argument("--optimizer", metavar="NAME", help="of transformers (default: adamw_torch)")
    group.add_argument("--seed", type=int, metavar="S", help="default: 0")
    group.add_argument(
        "--save-steps", type=int, metavar="N", help="keep the training state every N steps"
    )
    group.add_argument("--resume", action="store_true", help="go on from the state that was kept")


def _add_adapter(group: Any) -> None:
    group.add_argument("--lora-rank", type=int, metavar="R", help="train an adapter of this rank")
    group.add_argument("--lora-alpha", type=int, metavar="N", help="default: twice the rank")
    group.add_argument("--lora-dropout", type=float, metavar="P", help="default: 0")
    group.add_argument(
        "--lora-modules", metavar="A,B", help="such as q_proj,v_proj (default: all linear ones)"
    )


def _add_machine(group: Any) -> None:
    group.add_argument("--tokenizer", metavar="DIR", help="tokenizer (default: beside the base)")
    group.add_argument(
        "--template",
        metavar="TEXT",
        help="text with {query} and {response}, \\n for a new line "
        "(default: the tokenizer's chat template)",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda (default: auto)")
    group.add_argument(
        "--weights", metavar="f32|bf16", help="of the weights in training (default: f32)"
    )
    group.add_argument(
        "--compute", metavar="f32|bf16", help="of the arithmetic (default: f32; bf16 on a GPU)"
    )
    group.add_argument(
        "--checkpointing", action="store_true", help="recompute activations: less memory, slower"
    )
    group.add_argument(
        "--precompute",
        action="store_true",
        help="run the reference model once, before training, and drop it: less memory",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.align import align

    found = project.load_project()
    job = _job(args, found)
    name = _name(args, job.preferences)
    if name is not None:
        from avops.align import check_name

        check_name(Path(project.FILE), name, _path(args.out), force=args.force)
    try:
        with output.progress("aligning", unit="steps", quiet=args.json) as progress:
            made = align(
                job,
                progress=lambda done, total, _: progress(done, total),
                tell=None if args.json else output.status,
            )
    except KeyboardInterrupt:
        if args.save_steps:
            output.note("the training state is kept: the same command with --resume goes on")
        raise
    if made is None:
        return 0
    if name is not None:
        _register(args, found, name)
    if args.json:
        output.result(_result(made, name))
    else:
        _show(made, name)
    return 0


def _job(args: argparse.Namespace, found: Project) -> Alignment:
    from avops.align import Alignment

    given = project.base_of(args.base, found)
    template = found.template
    if args.template is not None:
        template = args.template.replace("\\n", "\n")
    return Alignment(
        base=hub.local(given, quiet=args.json),
        preferences=_preferences(args, found),
        out=args.out,
        settings=_settings(args),
        tokenizer=args.tokenizer or found.tokenizer,
        template=template,
        device=args.device,
        dtype=dtype_of(args),
        force=args.force,
        resume=args.resume,
        shown_base=given,
    )


def _preferences(args: argparse.Namespace, found: Project) -> Preferences:
    from avops.align import parse_prefer, parse_target, ranked, targeted
    from avops.score import holds_pairs, load_items

    rules = None if args.prefer is None else parse_prefer(args.prefer)
    wanted = None if args.target is None else parse_target(args.target)
    domains = scoring.domains_of(args)
    if wanted is not None and domains is not None:
        raise UserError("--target with --domain: expected one; --target names its domains")
    levels = None if holds_pairs(args.data) else found.levels
    if rules is not None:
        levels = tuple(dict.fromkeys(level for rule in rules for level in rule))
    try:
        items = load_items(args.data, levels=levels)
    except DataError as error:
        if rules is None:
            raise
        # The levels are the rules': a line may be whole and the rules wrong.
        raise DataError(
            f"{error}, or name the levels of the data: --prefer {args.prefer}"
        ) from None
    items = items.select(domains=domains, limit=args.limit)
    if items.ignored:
        output.note(f"{args.data}: not read: the fields {', '.join(items.ignored)}")
    return ranked(items, rules) if wanted is None else targeted(items, wanted)


def _settings(args: argparse.Namespace) -> Settings:
    from avops.align import Lora, Settings

    names = (
        "beta", "loss", "epochs", "max_steps", "batch", "accumulate", "lr", "schedule", "warmup",
        "weight_decay", "clip", "optimizer", "seed", "weights", "compute", "save_steps",
    )  # fmt: skip
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    lora = None
    if args.lora_rank is not None:
        modules = tuple(part.strip() for part in (args.lora_modules or "").split(",") if part)
        lora = Lora(args.lora_rank, args.lora_alpha, args.lora_dropout or 0.0, modules)
    else:
        for flag in ("lora_alpha", "lora_dropout", "lora_modules"):
            if getattr(args, flag) is not None:
                raise UserError(
                    f"--{flag.replace('_', '-')} without --lora-rank: all weights are trained "
                    "then; give both"
                )
    return Settings(
        **given, lora=lora, checkpointing=args.checkpointing, precompute=args.precompute
    )


def _name(args: argparse.Namespace, preferences: Preferences) -> str | None:
    """The name to register, None for none. Raises UserError."""
    if args.no_register:
        if args.name is not None:
            raise UserError("--name with --no-register: expected one of them")
        return None
    domains = preferences.items.domains
    if args.name is not None or len(domains) == 1:
        return str(args.name or domains[0])
    raise UserError(
        f"no --name given, and the data has {len(domains)} domains ({', '.join(domains)}), "
        "expected the alignment vector's name; give --name, or --no-register"
    )


def _path(out: Path) -> str:
    """``out`` as avops.toml should name it: relative to it where it lies below."""
    relative = os.path.relpath(out)
    return Path(out).as_posix() if relative.startswith("..") else Path(relative).as_posix()


def _register(args: argparse.Namespace, found: Project, name: str) -> None:
    from avops.align import register

    base = None if found.base else args.base
    register(Path(project.FILE), name, _path(args.out), base=base, force=args.force)


def _result(made: Aligned, name: str | None) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "name": name,
        "seconds": round(made.seconds, 3),
        **made.record,
    }


def _show(made: Aligned, name: str | None) -> None:
    data, trained = made.record["data"], made.trained
    losses = f"loss {trained.losses[0]:.2f} → {trained.losses[-1]:.2f}" if trained.losses else ""
    output.line(
        f"{made.path}: {data['preferences']} on {data['pairs']:,} pairs, {trained.steps:,} steps, "
        f"{losses}, {output.seconds(made.seconds)}"
    )
    if name is not None:
        output.line(f"{project.FILE}: av.{name} = {_path(made.path)}")
