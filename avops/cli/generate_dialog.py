"""Questions on a terminal, one after the other, and dials that turn in between."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from avops.cli import output
from avops.cli.generate_request import Request
from avops.cli.generate_session import Session, summary
from avops.errors import AvopsError, UserError
from avops.recipe import Recipe, Sources, Term, parse_terms
from avops.score import Question, Sampling

_HELP = """\
Ask a question, or turn a dial and hear the last answer again:
  :med .5         set λ of med (:med:.5 fin:-1 sets several; the others stay)
  :base           all dials at 0
  :quit           end (also Ctrl-D); Ctrl-C stops an answer"""


def converse(session: Session, request: Request, sampling: Sampling) -> None:
    """Ask for questions until the input ends. Mistakes are said, and end nothing."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() its line editing

    dials = ", ".join(source.name for source in request.sources) or "none"
    output.status(f"dials: {dials}; :help for help")
    last: Question | None = None
    while True:
        shown = " | ".join(map(str, session.recipes))
        try:
            line = input(f"{output.tame(shown)}> ").strip()
        except EOFError:
            output.line()
            return
        if line in (":quit", ":q", ":exit"):
            return
        if line == ":help":
            output.status(_HELP)
            continue
        try:
            if line.startswith(":"):
                session.recipes = (turned(session.recipes, line[1:].split(), request),)
            elif line:
                last = Question(line)
            if last is not None and line:
                output.status(summary(session.ask(last), sampling))
        except KeyboardInterrupt:
            output.status("stopped")
        except AvopsError as error:
            output.status(f"error: {error}")


def turned(recipes: Sequence[Recipe], words: Sequence[str], request: Request) -> Recipe:
    """The one recipe of ``recipes`` with λ set as in ``words``, in the order of the dials.

    words: ``med:.5 fin:-1``, ``med .5`` or ``base``. Raises UserError.
    """
    if len(recipes) > 1:
        raise UserError("several recipes are compared; start again without --compare for dials")
    (recipe,) = recipes
    if list(words) == ["base"]:
        return Recipe(recipe.base)
    specs = [":".join(words)] if len(words) == 2 and ":" not in "".join(words) else words
    held = {source.name: source for source in request.sources}
    if not specs:
        raise UserError("no dial given, expected one such as :med .5; :help for help")
    for spec in specs:
        if ":" not in spec:
            raise UserError(f"{spec}: no λ; expected NAME λ or NAME:λ, such as :{spec} .5")
    try:
        new = parse_terms(specs, Sources(held))
    except UserError as error:
        raise UserError(str(error).removeprefix("--av ")) from None
    terms: dict[str, Term] = {term.name: term for term in (*recipe.terms, *new)}
    return Recipe(recipe.base, tuple(terms[n] for n in held if n in terms and terms[n].lam))
