"""avops doctor: what is available, what is chosen and used, and why not the rest."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from avops.cli import output
from avops.errors import MissingExtraError

if TYPE_CHECKING:
    from avops.kernels.registry import Row
    from avops.score.choices import Use

_PACKAGES = (
    *("numpy", "rich", "xxhash", "torch", "transformers", "matplotlib"),
    *("huggingface_hub", "PyYAML"),
)
_MODULES = {"PyYAML": "yaml"}


def add(verbs: Any) -> None:
    """Register the verb."""
    parser = verbs.add_parser(
        "doctor",
        help="which backends and packages are available, and why not",
        description="Show for every operation which backend is chosen, and why others are not; and "
        "who computes what while a model is scored, on each device and in each dtype.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops import env
    from avops.kernels import registry
    from avops.version import __version__

    rows = registry.report()
    uses, missing = _scoring()
    packages = {name: _version(name) for name in _PACKAGES}
    machine = {
        "avops": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": env.threads(),
    }
    if args.json:
        output.result(
            {
                **machine,
                "packages": packages,
                "backends": [asdict(row) | {"used": bool(_where(row, uses))} for row in rows],
                "scoring": [use._asdict() for use in uses],
            }
        )
        return 0
    output.line("  ".join(f"{name} {value}" for name, value in machine.items()))
    output.line("  ".join(f"{name} {value or 'missing'}" for name, value in packages.items()))
    output.line()
    cells = [[row.operation, row.backend, _state(row, uses), row.reason] for row in rows]
    output.table("", ("operation", "backend", "state", "why"), cells, left=4)
    output.line()
    if missing:
        output.line(missing)
    else:
        _show_scoring(uses)
    return 0


def _scoring() -> tuple[list[Use], str | None]:
    """What scoring takes for each operation; or nothing, and what is missing for it."""
    try:
        from avops.score.choices import report
    except MissingExtraError as error:
        return [], str(error)
    return report(), None


def _where(row: Row, uses: Sequence[Use]) -> list[str]:
    """The devices on which a backend is what is taken."""
    asked = [use for use in uses if use.operation == row.operation]
    if not asked:  # no operation of scoring, or scoring cannot be asked
        return ["any"] if row.chosen else []
    return list(dict.fromkeys(use.device for use in asked if use.by == row.backend))


def _state(row: Row, uses: Sequence[Use]) -> str:
    if not row.available:
        return "unavailable"
    devices = _where(row, uses)
    if row.chosen:
        return "chosen" if devices else "not used"
    return f"chosen on {', '.join(devices)}" if devices else "available"


def _show_scoring(uses: Sequence[Use]) -> None:
    """A line for what is the same in several dtypes."""
    dtypes: dict[tuple[str, ...], list[str]] = {}
    for use in uses:
        same = (use.operation, use.device, use.by, use.reason)
        dtypes.setdefault(same, []).append(use.dtype)
    cells = [
        [operation, device, " ".join(names), by, reason]
        for (operation, device, by, reason), names in dtypes.items()
    ]
    heads = ("operation", "device", "dtype", "by", "why")
    output.table("Who computes what in scoring:", heads, cells, left=5)


def _version(name: str) -> str | None:
    from importlib import metadata, util

    if util.find_spec(_MODULES.get(name, name)) is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
