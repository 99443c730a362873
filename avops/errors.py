"""The exception tree.

AvopsError                 a failure (exit code 1)
├── UserError              a mistake in what avops was given (exit code 2)
│   ├── RecipeError        terms, λ, names, avops.toml
│   ├── CheckpointError    a file or directory that is not a valid checkpoint
│   ├── MismatchError      checkpoints that do not fit each other
│   ├── OutputError        an output that may not or cannot be written
│   ├── DataError          items, levels, prompts
│   ├── BackendError       a forced backend that cannot serve
│   └── MissingExtraError  an optional package that the command needs
├── NonFiniteError         NaN or infinity in a result
└── WriteError             writing failed (disk full, I/O error)

Every message says what, which object, got against expected, and the next step.
"""

from __future__ import annotations


class AvopsError(Exception):
    """Base of all avops errors. ``exit_code`` is the process's exit code in the CLI."""

    exit_code = 1


class UserError(AvopsError):
    """A mistake in what avops was given."""

    exit_code = 2


class RecipeError(UserError):
    """Terms, λ, names or avops.toml are wrong."""


class CheckpointError(UserError):
    """A file or directory is not a valid checkpoint."""


class MismatchError(UserError):
    """Checkpoints do not fit each other."""


class OutputError(UserError):
    """An output may not or cannot be written."""


class DataError(UserError):
    """Items, levels or prompts are wrong."""


class MissingExtraError(UserError):
    """An optional package is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'avops[{extra}]'"
        )


class NonFiniteError(AvopsError):
    """A result holds NaN or infinity."""


class WriteError(AvopsError):
    """Writing an output failed."""


class BackendError(UserError):
    """A forced backend cannot serve."""
