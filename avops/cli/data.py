"""avops data: preference data from an endpoint, its prompts, and how far annotators agree."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avops.cli import data_agreement, data_synth, output

if TYPE_CHECKING:
    from collections.abc import Callable


def add(verbs: Any) -> None:
    """Register the verb and what it can do."""
    parser = verbs.add_parser(
        "data",
        help="make preference data through an endpoint; annotators' agreement",
        description="Preference data of several levels and domains, made by any OpenAI-compatible "
        "endpoint from prompts that you can edit; and how far annotators agree with it.",
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    _register(tasks, "synth", data_synth.add)
    _register(tasks, "templates", _add_templates)
    _register(tasks, "agreement", data_agreement.add)


def _register(tasks: Any, name: str, add_task: Callable[[Any], argparse.ArgumentParser]) -> None:
    # Errors begin with the verb: both of its words.
    add_task(tasks).set_defaults(verb=f"data {name}")


def _add_templates(tasks: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = tasks.add_parser(
        "templates",
        help="write the prompts into a directory, to be edited",
        description="Write the prompts of `avops data synth` into DIR, one file each, and "
        "templates.toml with levels and domains. Edit them, and give DIR with --templates.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write them")
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=_run_templates)
    return parser


def _run_templates(args: argparse.Namespace) -> int:
    from avops.align.data import load_templates, write_templates

    written = write_templates(args.directory)
    digest = load_templates(args.directory).digest()
    if args.json:
        output.result({"files": [str(path) for path in written], "sha256": digest})
    else:
        for path in written:
            output.line(output.plain(str(path)))
    return 0
