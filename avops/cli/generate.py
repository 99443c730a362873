"""avops generate: what a model says at a λ, and side by side at several."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import output, project
from avops.cli.options import add_rules
from avops.errors import UserError

if TYPE_CHECKING:
    from avops.cli.generate_request import Request
    from avops.cli.generate_session import Session
    from avops.score import Answer, Sampling


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "generate",
        help="answers at a λ, streamed; side by side with --compare",
        description="Answer a question with base + Σ λ·AV, which is never written. The question "
        "comes as the last word, from stdin (-, or a pipe) or from --file; the prompt is the one "
        "that `avops score` puts before a response. Answers go to stdout, all else to stderr. On a "
        "terminal without a question you are asked for them, and `:med .5` turns a dial.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="[BASE] QUESTION", help="checkpoint, and what to ask"
    )
    project.add_av(parser, "answer with base + Σ λ·AV")
    parser.add_argument(
        "--compare",
        nargs="+",
        action="append",
        metavar="RECIPE",
        help="several recipes such as 'med:-1 fin:.5' med:-1,.5 base: one load, one seed",
    )
    add_rules(parser)
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="questions: lines of a text, or items as .jsonl"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N of --file")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="of an answer, at most (default: 200)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="default: 0, greedy")
    parser.add_argument("--top-p", type=float, metavar="P", help="only the likeliest tokens")
    parser.add_argument("--seed", type=int, metavar="S", help="of --temperature (default: 0)")
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="text with {query} and {response}, \\n for a new line "
        "(default: the tokenizer's chat template)",
    )
    parser.add_argument("--raw", action="store_true", help="continue the question as a plain text")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer (default: beside the base)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument(
        "--dtype",
        choices=("f32", "bf16"),
        default="f32",
        help="of the model's arithmetic; logits are f32 in both (default: f32)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)
    parser.late = _take_late_words


def _take_late_words(args: argparse.Namespace, left: list[str]) -> list[str]:
    """Let BASE and the question stand on either side of options, which argparse does not."""
    words = [word for word in left if word == "-" or not word.startswith("-")]
    args.words = [*args.words, *words]
    return [word for word in left if word not in words]


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops.cli.generate_request import request_of
    from avops.cli.generate_session import Session, summary

    found = project.load_project()
    request = request_of(args, found)
    sampling = _sampling(args)
    session = Session(request, args, found, sampling)
    if request.questions is None:
        from avops.cli.generate_dialog import converse

        converse(session, request, sampling)
        return 0
    answers = session.answer_all(request.questions)
    if args.json:
        results = _results(request, answers, session, sampling)
        output.result(results if args.file or args.compare else results[0])
    else:
        output.status(summary([answer for row in answers for answer in row], sampling))
    return 0


def _sampling(args: argparse.Namespace) -> Sampling:
    from avops.score import Sampling

    for flag, value in (("--top-p", args.top_p), ("--seed", args.seed)):
        if value is not None and not args.temperature:
            raise UserError(
                f"{flag} without --temperature: greedy answers draw nothing; "
                "give both, such as --temperature 0.8"
            )
    return Sampling(
        max_tokens=200 if args.max_tokens is None else args.max_tokens,
        temperature=args.temperature or 0.0,
        top_p=1.0 if args.top_p is None else args.top_p,
        seed=args.seed or 0,
    )


def _results(
    request: Request, answers: list[list[Answer]], session: Session, sampling: Sampling
) -> list[dict[str, Any]]:
    """An object per question and recipe."""
    return [
        {
            "base": request.base,
            "recipe": str(recipe),
            "av": {term.name: term.text for term in recipe.terms},
            **({"rules": session.rules} if session.rules else {}),
            "question": question.text,
            "text": answer.text,
            "finish": answer.finish,
            "ids": list(answer.ids),
            "prompt_tokens": answer.prompt_tokens,
            "seconds": round(answer.seconds, 6),
            "tokens_per_second": round(answer.rate, 3),
            "device": session.live.device,
            "dtype": session.live.dtype,
            "sampling": asdict(sampling),
        }
        for question, row in zip(request.questions or (), answers, strict=True)
        for recipe, answer in zip(request.recipes, row, strict=True)
    ]
