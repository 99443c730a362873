"""avops judge: answers at given λ, each placed into a level by a judge."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops import env
from avops.cli import output, project, scoring
from avops.cli.recipes import parse_recipes, sources_of
from avops.errors import AvopsError, UserError

if TYPE_CHECKING:
    from avops.align import Judge, Judged, Panel, TextJudge
    from avops.cli.output import Progress
    from avops.score import Items, Sampling


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "judge",
        help="generated answers at a λ, judged into levels (extra: avops[align])",
        description="The model answers every query at base + Σ λ·AV, and a judge says of which "
        "level each answer is: a model at an OpenAI-compatible --endpoint, or a small classifier "
        "trained on the responses in --judge-data, whose accuracy on the responses of --data is "
        "shown with every table. What wins by log-prob stands beside it: the two can disagree.",
    )
    project.add_base(parser)
    project.add_av(parser, "answer with base + Σ λ·AV")
    parser.add_argument(
        "--recipe",
        nargs="+",
        action="append",
        metavar="RECIPE",
        help="several of them such as 'med:-1 fin:.5' med:-1,.5 base: the model is loaded once",
    )
    what = parser.add_argument_group("what to answer")
    what.add_argument("--data", metavar="FILE", help="items as JSON lines")
    what.add_argument(
        "--levels", metavar="A,B,C", help="levels to tell apart (default: the data's)"
    )
    what.add_argument("--domain", metavar="A,B", help="only these domains (default: all)")
    what.add_argument("--limit", type=int, metavar="N", help="only the first N of each domain")
    _add_answering(parser.add_argument_group("how to answer"))
    _add_judge(parser.add_argument_group("who judges"))
    where = parser.add_argument_group("results")
    where.add_argument(
        "--no-logprobs", action="store_true", help="leave out what wins by log-prob: faster"
    )
    where.add_argument("--save", type=Path, metavar="FILE", help="answers and verdicts, .jsonl")
    where.add_argument(
        "--save-judge", type=Path, metavar="FILE", help="the trained embedded judge, for --load"
    )
    where.add_argument(
        "--force", action="store_true", help="replace an earlier --save or --save-judge"
    )
    where.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run, batch_tokens=None)


def _add_answering(group: Any) -> None:
    group.add_argument(
        "--max-tokens",
        type=int,
        default=200,
        metavar="N",
        help="of an answer, at most (default: 200)",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="default: 0, greedy")
    group.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens")
    group.add_argument("--seed", type=int, metavar="S", help="of --temperature (default: 0)")
    group.add_argument(
        "--batch", type=int, default=16, metavar="N", help="greedy answers at a time (default: 16)"
    )
    group.add_argument("--tokenizer", metavar="DIR", help="tokenizer (default: beside the base)")
    group.add_argument(
        "--template",
        metavar="TEXT",
        help="text with {query} and {response}, \\n for a new line "
        "(default: the tokenizer's chat template)",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: auto)")
    group.add_argument(
        "--dtype",
        choices=("f32", "bf16"),
        default="f32",
        help="of the model's arithmetic; logits are f32 in both (default: f32)",
    )


def _add_judge(group: Any) -> None:
    group.add_argument(
        "--judge-data",
        metavar="FILE",
        help="items whose responses train the embedded judge (default: train.jsonl beside --data)",
    )
    group.add_argument(
        "--load", type=Path, metavar="FILE", help="an embedded judge that --save-judge wrote"
    )
    group.add_argument("--endpoint", metavar="URL", help="such as http://localhost:8000/v1")
    group.add_argument("--model", metavar="NAME", help="the judge's model at --endpoint")
    group.add_argument(
        "--judge-prompt",
        type=Path,
        metavar="FILE",
        help="text with {query}, {answer}, {names}, perhaps {levels} (default: avops' own)",
    )
    group.add_argument("--jobs", type=int, metavar="N", help="requests at a time (default: 4)")
    group.add_argument("--retries", type=int, metavar="N", help="of a request (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.align import Judged, Judging, Panel
    from avops.cli.judge_report import show, to_dict
    from avops.score import load_tokenizer

    found = project.load_project()
    base = project.base_of(args.base, found)
    given = project.terms_of(args.av), project.terms_of(args.recipe)
    recipes = parse_recipes(*given, base, project.sources(found))
    setup = scoring.setup_of(args, found, sources_of(recipes))
    _check(args)
    sampling = _sampling(args)
    evaluator = scoring.open_evaluator(setup, quiet=args.json)
    judge = _judge(args, evaluator.items)
    tokenizer = load_tokenizer(setup.tokenizer or evaluator.opened.sidecars)
    jobs = 1 if args.endpoint is None else args.jobs or 4
    how = Judging(judge, sampling, args.batch, jobs, not args.no_logprobs)
    panel = Panel(evaluator, tokenizer, how, template=setup.template)
    results = [Judged(recipe, evaluator.items) for recipe in recipes]
    interrupted = _work(panel, results, args)
    results = [one for one in results if one.verdicts]
    if args.json:
        about = {"base": base, "data": setup.data, "device": evaluator.device}
        output.result(to_dict(results, judge, sampling, about, interrupted=interrupted))
    else:
        show(results, judge, f"{base} on {setup.data}")
    if interrupted:
        count = sum(len(one.verdicts) for one in results)
        output.note(
            f"interrupted: {count} of {len(recipes) * len(evaluator.items)} answers are judged"
            f"{f', and in {args.save}' if args.save else ''}"
        )
    return 130 if interrupted else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself, before anything is loaded."""
    from avops.disk import Staging

    for flag, number in (("batch", args.batch), ("jobs", args.jobs)):
        if number is not None and number < 1:
            raise UserError(f"--{flag} is {number}, expected 1 or more")
    if args.endpoint is None:
        for flag in ("model", "judge_prompt", "jobs", "retries"):
            if getattr(args, flag) is not None:
                raise UserError(
                    f"--{flag.replace('_', '-')} without --endpoint: the embedded judge has none; "
                    "give both"
                )
    elif args.model is None:
        raise UserError(f"--endpoint {args.endpoint} without --model: expected a model's name")
    _check_embedded(args)
    if args.save is not None and args.save == args.save_judge:
        raise UserError(f"--save and --save-judge are both {args.save}, expected two files")
    for path in (args.save, args.save_judge):
        if path is not None:
            Staging(path, directory=False, force=args.force).check(0)


def _check_embedded(args: argparse.Namespace) -> None:
    """Only the embedded judge is trained, saved and loaded; a loaded one is not trained."""
    for flag in ("judge_data", "load", "save_judge"):
        if args.endpoint is not None and getattr(args, flag) is not None:
            raise UserError(
                f"--endpoint with --{flag.replace('_', '-')}: expected one of them; only the "
                "embedded judge is trained, saved and loaded"
            )
    if args.load is not None and args.judge_data is not None:
        raise UserError(
            "--load with --judge-data: expected one of them; a loaded judge is not trained again"
        )


def _sampling(args: argparse.Namespace) -> Sampling:
    from avops.score import Sampling

    for flag, value in (("--top-p", args.top_p), ("--seed", args.seed)):
        if value is not None and not args.temperature:
            raise UserError(
                f"{flag} without --temperature: greedy answers draw nothing; "
                "give both, such as --temperature 0.8"
            )
    return Sampling(
        max_tokens=args.max_tokens,
        temperature=args.temperature or 0.0,
        top_p=1.0 if args.top_p is None else args.top_p,
        seed=args.seed or 0,
    )


def _judge(args: argparse.Namespace, items: Items) -> Judge:
    """The judge that was asked for. The embedded one is measured on ``items``, too."""
    from avops.align import Endpoint, EndpointJudge

    if args.endpoint is not None:
        endpoint = Endpoint(
            args.endpoint,
            args.model,
            api_key=env.api_key(),
            prompt=args.judge_prompt,
            retries=5 if args.retries is None else args.retries,
        )
        return EndpointJudge(endpoint, items.levels)
    judge = _embedded(args, items)
    judge.measure(items)
    if args.save_judge is not None:
        from avops.align import pack_judge
        from avops.disk import write_file

        write_file(args.save_judge, pack_judge(judge), force=args.force)
    return judge


def _embedded(args: argparse.Namespace, items: Items) -> TextJudge:
    """The judge that was saved, or a new one."""
    from avops.align import TextJudge, load_judge
    from avops.score import load_items

    if args.load is not None:
        return load_judge(args.load)
    data = Path(args.judge_data or Path(items.source).with_name("train.jsonl"))
    if args.judge_data is None and not data.exists():
        raise UserError(
            f"no --judge-data given, and there is no {data}; expected items whose responses train "
            "the embedded judge, a saved judge with --load, or an --endpoint"
        )
    if not args.json:
        output.status(f"training the judge on {data}")
    return TextJudge.train(load_items(data, levels=items.levels))


def _work(panel: Panel, results: list[Judged], args: argparse.Namespace) -> bool:
    """Fill all results, and save them; whether it was interrupted."""
    total = sum(len(one.items) for one in results)
    interrupted, before = False, 0
    try:
        with output.progress("judging", unit="answers", quiet=args.json) as progress:
            for one in results:
                panel.fill(one, partial(_advance, progress, before, total))
                before += len(one.items)
    except KeyboardInterrupt:
        interrupted = True
    except AvopsError:
        if _save(results, args):
            output.note(f"{args.save}: the answers judged before are kept")
        raise
    _save(results, args)
    return interrupted


def _advance(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Progress over all recipes."""
    progress(before + done, total)


def _save(results: list[Judged], args: argparse.Namespace) -> bool:
    from avops.align import save_lines
    from avops.disk import write_file

    data = save_lines(results)
    if args.save is None or not data:
        return False
    write_file(args.save, data, force=args.force)
    return True
