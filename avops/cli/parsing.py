"""How every verb reads its words: short usage, help as wide as the terminal, near names."""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

_SHOWN = ("av", "out")
"""Options that the usage names although they may be left out."""
_FEW = 6
"""Choices that an error lists, rather than the nearest ones."""
_CHOICE = re.compile(
    r"(?:argument (.*?): )?invalid choice: '(.*?)' \(choose from (.*)\)", re.DOTALL
)
_NUMBER = re.compile(r"argument (.*?): invalid (int|float) value: (.*)", flags=re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

Late = Callable[[argparse.Namespace, list[str]], list[str]]


class Help(argparse.HelpFormatter):
    """Usage with what must be given, and paragraphs; what is indented stays as it is."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Positionals first: a word after --av would be one of its terms."""
        actions = list(actions)
        if usage is None:
            usage = " ".join(["%(prog)s", *map(_escaped, _usage(actions))])
        super().add_usage(usage, actions, groups, prefix)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            block
            if re.search(r"^\s", block, flags=re.MULTILINE)
            else textwrap.fill(block, width, initial_indent=indent, subsequent_indent=indent)
            for block in text.rstrip().split("\n\n")
        )


class Parser(argparse.ArgumentParser):
    """A verb's parser. late: may take words that are left over, and returns the others."""

    late: Late | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "formatter_class": Help})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but what is left over is this verb's mistake."""
        namespace, left = super().parse_known_args(args, namespace)
        if left and self.late is not None:
            left = self.late(namespace, left)
        if left:
            self.error(f"unknown {' '.join(left)}{self._hint(left)}")
        return namespace, left

    def error(self, message: str) -> NoReturn:
        """One line, with near names where a name is unknown, instead of the whole usage."""
        if found := _CHOICE.fullmatch(message):
            message = _unknown_choice(*found.groups())
        elif found := _NUMBER.fullmatch(message):
            what = "a whole number" if found[2] == "int" else "a number"
            message = f"argument {found[1]}: invalid {found[3]}, expected {what}"
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _hint(self, left: Sequence[str]) -> str:
        known = list(dict.fromkeys(_OPTION.findall(self.format_help())))
        first = left[0]
        if first.startswith("-"):
            return _did_you_mean(first.partition("=")[0], known)
        if ":" in first and "--av" in known:
            return f": alignment vectors follow --av, as in --av {first}"
        return ""


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _usage(actions: Sequence[argparse.Action]) -> list[str]:
    """What must be given, or mostly is; the rest is [options]."""
    words = [_positional(action) for action in actions if not action.option_strings]
    options = [action for action in actions if action.option_strings]
    if any(action.nargs == argparse.PARSER for action in actions):
        return ["[options]", *words]  # a verb has options of its own, after it
    for action in options:
        if action.required or action.dest in _SHOWN:
            value = action.metavar or action.dest.upper()
            many = " …" if action.nargs == "+" else ""
            word = f"{action.option_strings[0]} {value}{many}"
            words.append(word if action.required else f"[{word}]")
    return [*words, "[options]"] if options else words


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    if name.startswith("["):  # says itself what may be left out
        return name
    if action.nargs == "?":
        return f"[{name}]"
    if action.nargs == "*":
        return f"[{name} …]"
    return name if action.nargs is None else f"{name} …"


def _unknown_choice(argument: str | None, got: str, listed: str) -> str:
    names = [name.strip("' ") for name in listed.split(",")]
    what = f"argument {argument}: " if argument else ""
    near = _did_you_mean(got, names)
    if not near or len(names) <= _FEW:
        near = f", expected one of {', '.join(names)}"
    return f"{what}invalid {got!r}{near}"


def _did_you_mean(got: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(got, names, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
