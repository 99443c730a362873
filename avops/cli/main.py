"""The command line: one file per verb, loaded when its verb runs.

Exit codes: 0 success, 1 a failure, 2 a mistake of the user's, 130 an interrupt.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from avops import env
from avops.cli import (
    align,
    apply,
    data,
    demo,
    diff,
    doctor,
    extract,
    generate,
    inspect,
    judge,
    merge,
    output,
    paper,
    report,
    score,
    search,
    status,
    sweep,
    verify,
)
from avops.cli.parsing import Parser
from avops.errors import AvopsError
from avops.version import __version__

_VERBS = (
    demo, data, align, extract, merge, inspect, diff, verify, score, sweep, search,
    status, report, apply, generate, judge, paper, doctor,
)  # fmt: skip

_DESCRIPTION = """\
Dials for aligned language models: weights θ(λ) = θ_base + Σ λ · AV, and what they prefer.

  avops demo                                                a small world to try it on
  avops extract BASE ALIGNED -o med.safetensors             make an alignment vector
  avops merge BASE --av med:-1 fin:-1 leg:.6                write θ(λ)
  avops score --levels exp,gen,avd                          preference accuracy
  avops sweep --av med:-1.5:1:.1                            one λ, every domain
  avops search --av med fin leg                             λ for every combination of levels
  avops generate --av med:-1 'What helps?'                  what the dial says
"""

_WORDS = """\
words:
  BASE      the model before it was aligned; a checkpoint is a safetensors file or a directory
  AV        alignment vector, aligned − base: an aligned checkpoint, a LoRA adapter, a delta file
  λ         how much of an AV is added: 1 all of it, 0 nothing, below 0 the other way
  recipe    AVs with λ, such as 'med:-1 fin:.5'; 'base' is the one without any
  item      a query with a response of every level, in one of several domains
  level     a kind of answer, such as exp, gen, avd: expert, generic, avoiding
  Pref.Acc  of a level: the share of items whose response of this level is the likeliest

Names and defaults come from avops.toml in the current directory; flags win.
"""


def parser() -> Parser:
    """The whole command line's parser."""
    top = Parser(prog="avops", description=_DESCRIPTION, epilog=_WORDS)
    top.add_argument("--version", action="version", version=f"avops {__version__}")
    top.add_argument("--debug", action="store_true", help="show a traceback with errors")
    verbs = top.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    top = parser()
    if not argv:
        sys.stderr.write(top.format_help())
        return 2
    args = top.parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except AvopsError as error:
        if args.debug or env.debug():
            traceback.print_exc()
        text = str(error)
        if not hasattr(args, "out"):  # advice from rooms that know no verbs
            text = text.replace("choose another -o", "choose another place")
        output.status(f"avops {args.verb}: error: {text}")
        return error.exit_code
    except KeyboardInterrupt:
        kept = "nothing was left half written"
        if getattr(args, "resume", False):
            kept = "what was done is kept: the same command goes on from there"
        output.status(f"avops {args.verb}: interrupted; {kept}")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: end quietly, as other tools in a pipe do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if args.debug or env.debug():
            traceback.print_exc()
        output.status(f"avops {args.verb}: error: {error}; finished outputs are in place")
        return 1
    except Exception as error:
        if args.debug or env.debug():
            raise
        output.status(
            f"avops {args.verb}: internal error: {type(error).__name__}: {error}; "
            f"run it again as avops --debug {args.verb} … and report the traceback"
        )
        return 1
    return code


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def entry() -> None:
    """Console script."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # closed by the caller  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    env.one_blas_thread()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show λ must not turn a finished merge into a failure.
            stream.reconfigure(errors="replace")
    # A job's time limit or a closed terminal ends a run like Ctrl-C does: nothing is left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sys.exit(main())
