"""avops data synth: a data set of personas, queries and responses of every level."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops import env
from avops.cli import data_report, output
from avops.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from avops.align.data import Persona, Settings
    from avops.cli.output import Progress

_DESCRIPTION = """\
Make preference data through an OpenAI-compatible endpoint: personas (from files, or a tree of them
that the endpoint makes), their queries in every domain, and a response of every level to each. The
answers are cleaned, and split by persona.

Every answer is journaled in OUT as it comes. After an interrupt or a kill, the same command goes on
and asks for nothing twice; with more personas or other prompts it asks only for what is new.
A key is read from the environment variable AVOPS_API_KEY.
"""


def add(tasks: Any) -> argparse.ArgumentParser:
    """Register the task."""
    parser: argparse.ArgumentParser = tasks.add_parser(
        "synth",
        help="personas, queries and responses through an endpoint",
        description=_DESCRIPTION,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of journal and data set")
    parser.add_argument("--model", required=True, metavar="NAME", help="as the endpoint calls it")
    _add_endpoint(parser.add_argument_group("the endpoint"))
    _add_content(parser.add_argument_group("what is asked for"))
    _add_cleaning(parser.add_argument_group("cleaning and splitting"))
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many requests and tokens are left to pay"
    )
    parser.add_argument("--force", action="store_true", help="replace a data set of other settings")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    # resume: what the message of an interrupt says of work that is kept.
    parser.set_defaults(run=run, resume=True)
    return parser


def _add_endpoint(group: Any) -> None:
    group.add_argument(
        "--endpoint", metavar="URL", help="what comes before /chat/completions (not for --dry-run)"
    )
    group.add_argument("--concurrency", type=int, default=8, metavar="N", help="default: 8")
    group.add_argument("--rate", type=float, metavar="N", help="at most N requests a minute")
    group.add_argument(
        "--retries", type=int, default=8, metavar="N", help="after 429, 5xx, time-outs (default: 8)"
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=120,
        metavar="S",
        help="seconds without a byte (default: 120)",
    )
    group.add_argument(
        "--price", nargs=2, type=float, metavar=("IN", "OUT"), help="of a million tokens"
    )
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default: 1")
    group.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="of an answer (default: 1024)"
    )
    group.add_argument(
        "--body",
        metavar="JSON",
        help='more fields of requests; null takes one away, as in {"temperature": null}',
    )


def _add_content(group: Any) -> None:
    group.add_argument(
        "--personas",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help='JSON lines with {"persona": …}, as PersonaHub has them',
    )
    group.add_argument("--sample", type=int, metavar="N", help="only N personas of the files")
    group.add_argument(
        "--roots",
        type=int,
        metavar="N",
        help="personas that the endpoint's tree begins with (default: 5; with --personas none)",
    )
    group.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="of relatives after them (default: 3)"
    )
    group.add_argument(
        "--branch", type=int, default=5, metavar="N", help="relatives of each persona (default: 5)"
    )
    group.add_argument(
        "--queries", type=int, default=1, metavar="N", help="per persona and domain (default: 1)"
    )
    group.add_argument("--domains", metavar="A,B", help="default: all of the templates")
    group.add_argument(
        "--paragraphs",
        default="1-5",
        metavar="A-B",
        help="a response draws its number (default: 1-5)",
    )
    group.add_argument("--templates", type=Path, metavar="DIR", help="see avops data templates")
    group.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of every draw (default: 1)"
    )


def _add_cleaning(group: Any) -> None:
    group.add_argument(
        "--script", default="LATIN", metavar="A,B", help="of letters, or any (default: LATIN)"
    )
    group.add_argument(
        "--language", metavar="CODE", help="drop texts in others, such as en (default: not judged)"
    )
    group.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="default: .2")
    group.add_argument(
        "--validation",
        type=float,
        default=0.03,
        metavar="SHARE",
        help="of what is not for testing (default: .03)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the task."""
    from avops.align.data import Endpoint, Journal, Options, finish, gather
    from avops.align.data.files import JOURNAL, MANIFEST, check_target, contents, publish

    _check_price(args)
    settings = _settings(args)
    known, sources = _personas(args)
    directory = args.out / JOURNAL
    if args.dry_run:
        with Journal(directory, write=False) as journal:
            data_report.dry_run(args, settings, known, journal)
        return 0
    if args.endpoint is None:
        raise UserError("--endpoint is missing: give an address such as http://localhost:8000/v1")
    options = Options(
        url=args.endpoint,
        api_key=env.api_key(),
        concurrency=args.concurrency,
        rate=args.rate,
        retries=args.retries,
        timeout=args.timeout,
    )
    check_target(args.out, settings, sources, force=args.force)
    with Journal(directory) as journal:
        if journal.torn:
            output.note(
                f"{directory}: {journal.torn} bytes of an answer cut off by a crash dropped"
            )
        endpoint = Endpoint(options, journal)
        data = finish(settings, gather(settings, endpoint, known, _watch(args)))
        files = contents(data, settings, endpoint=args.endpoint, sources=sources)
        written = publish(args.out, files, force=args.force)
    if args.json:
        manifest = json.loads(files[MANIFEST])
        output.result({**manifest, **data_report.run_of(endpoint, data, args), "written": written})
    else:
        data_report.show(args, data, endpoint, written)
    return 0


def _check_price(args: argparse.Namespace) -> None:
    if args.price is not None and not all(0 <= each < float("inf") for each in args.price):
        raise UserError(
            f"--price {' '.join(map(str, args.price))}: expected two numbers of 0 or more"
        )


def _settings(args: argparse.Namespace) -> Settings:
    from avops.align.data import Chat, Cleaning, Settings, Shares, Tree, load_templates

    templates = load_templates(args.templates)
    roots = args.roots
    if roots is None:
        roots = 0 if args.personas else Tree.roots
    if not roots and not args.personas:
        raise UserError("--roots 0 without --personas: there are no personas; give one of them")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature}: expected 0 or more")
    if args.max_tokens < 1:
        raise UserError(f"--max-tokens {args.max_tokens}: expected 1 or more")
    scripts = () if args.script == "any" else tuple(args.script.upper().split(","))
    return Settings(
        chat=Chat(args.model, args.temperature, args.max_tokens, _body(args.body)),
        templates=templates,
        domains=tuple(args.domains.split(",")) if args.domains else tuple(templates.domains),
        seed=args.seed,
        tree=Tree(roots, args.rounds, args.branch),
        queries=args.queries,
        paragraphs=_range(args.paragraphs),
        cleaning=Cleaning(scripts, args.language),
        shares=Shares(args.test, args.validation),
    )


def _body(text: str | None) -> Mapping[str, Any]:
    if text is None:
        return {}
    try:
        body = json.loads(text)
    except ValueError as error:
        raise UserError(f"--body {text}: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserError(f'--body {text}: expected a JSON object such as {{"top_p": 0.9}}')
    for field in ("model", "messages", "stream", "n"):
        if field in body:
            raise UserError(f"--body {text}: {field!r} is not for you to set; leave it out")
    return body


def _range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        return int(low), int(high if dash else low)
    except ValueError:
        raise UserError(f"--paragraphs {text}: expected a range such as 1-5") from None


def _personas(args: argparse.Namespace) -> tuple[list[Persona], list[dict[str, Any]]]:
    """The personas of all files, and the files as the manifest names them."""
    from avops.align.data import load_personas, sample, source_of
    from avops.align.data.personas import distinct

    known: list[Persona] = []
    files = []
    for path in args.personas:
        source = load_personas(path)
        known += source.personas
        files.append(source_of(path, len(source.personas)))
        if source.ignored:
            output.note(f"{path}: fields that are not read: {', '.join(source.ignored)}")
    if args.sample is not None:
        if not args.personas or args.sample < 1:
            raise UserError(
                f"--sample {args.sample}: expected 1 or more personas of files; give --personas"
            )
        unique = distinct(known)
        if args.sample > len(unique):
            raise UserError(f"--sample {args.sample}: the files hold {len(unique)} personas")
        known = sample(unique, args.sample, args.seed)
    return known, files


def _watch(args: argparse.Namespace) -> Callable[[str], AbstractContextManager[Progress]]:
    def watch(stage: str) -> AbstractContextManager[Progress]:
        return output.progress(stage, unit="requests", quiet=args.json)

    return watch
