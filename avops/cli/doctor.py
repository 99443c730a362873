"""avops doctor: what is available, what is chosen, and why not the rest."""

from __future__ import annotations

import argparse
import platform
from typing import Any

from avops.cli import output

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
        description="Show for every operation which backend is chosen, and why others are not.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON result on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb."""
    from avops import env
    from avops.kernels import registry
    from avops.version import __version__

    rows = registry.report()
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
                "backends": [
                    {
                        "operation": row.operation,
                        "backend": row.backend,
                        "available": row.available,
                        "chosen": row.chosen,
                        "reason": row.reason,
                    }
                    for row in rows
                ],
            }
        )
        return 0
    output.line("  ".join(f"{name} {value}" for name, value in machine.items()))
    output.line("  ".join(f"{name} {value or 'missing'}" for name, value in packages.items()))
    output.line()
    cells = [
        [
            row.operation,
            row.backend,
            "chosen" if row.chosen else "available" if row.available else "unavailable",
            row.reason,
        ]
        for row in rows
    ]
    output.table("", ("operation", "backend", "state", "why"), cells, left=4)
    return 0


def _version(name: str) -> str | None:
    from importlib import metadata, util

    if util.find_spec(_MODULES.get(name, name)) is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
