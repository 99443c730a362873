"""avops._native, loaded once, or the reason why not."""

from __future__ import annotations

import importlib
from types import ModuleType

# The twin of AVOPS_ABI in csrc/avops.h.
ABI = 9

_REBUILD = (
    "install g++ (or clang++) and build avops again: "
    "pip install --force-reinstall --no-deps --no-cache-dir avops (in a checkout: pip install -e .)"
)


def _load() -> tuple[ModuleType | None, str]:
    try:
        module = importlib.import_module("avops._native")
    except ModuleNotFoundError:
        return (
            None,
            f"avops was built without a C++ compiler (or with AVOPS_NO_NATIVE=1); {_REBUILD}",
        )
    except ImportError as error:
        return None, f"the extension avops._native does not load: {error}; {_REBUILD}"
    if module.ABI != ABI:
        return None, (
            f"the extension avops._native has ABI {module.ABI}, expected {ABI}: "
            f"it was built from other sources; {_REBUILD}"
        )
    return module, f"C++, {module.VARIANT} code path"


NATIVE, REASON = _load()


def available() -> tuple[bool, str]:
    """Whether the extension can serve, and its code path or the reason why not."""
    return NATIVE is not None, REASON
