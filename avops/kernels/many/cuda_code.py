"""The kernels' code: the fatbin of the build, or the source compiled at run time by NVRTC."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from avops.errors import BackendError
from avops.kernels.many.cuda_plan import KERNELS, Plan

_PACKAGE = Path(__file__).parents[2]
# In an installed avops, and in a checkout: the one source, never a copy that could be older.
_SOURCES = (_PACKAGE / "_combine.cu", _PACKAGE.parent / "csrc" / "combine.cu")
_FATBIN = _PACKAGE / "_combine.fatbin"
# SHA-256 of the source that the fatbin was built from.
_DIGEST = _PACKAGE / "_combine.fatbin.sha256"

_INSTALL = "pip install 'avops[cuda]'"
_REBUILD = "install CUDA's nvcc (12.8 or later) and build avops again"


@functools.cache
def core() -> ModuleType:
    """NVIDIA's cuda-core. Its names moved out of ``experimental`` with version 0.5."""
    try:
        module = importlib.import_module("cuda.core")
        if hasattr(module, "launch"):
            return module
        return importlib.import_module("cuda.core.experimental")
    except ImportError as error:
        raise BackendError(
            f"cuda-core does not load ({_first_line(error)}); install it: {_INSTALL}"
        ) from error


def available() -> tuple[bool, str]:
    """Whether cuda-core is there, and code for it; where not, the remedy."""
    try:
        core()
    except BackendError as error:
        return False, str(error)
    stale = _stale()
    if stale is None:
        return True, "CUDA C++, built with avops"
    try:
        _check_nvrtc()
    except BackendError as error:
        return False, f"{stale}, and {error}; {_REBUILD}, or: {_INSTALL}"
    return True, f"CUDA C++, compiled when first used: {stale}"


def load(plan: Plan, capability: tuple[int, int]) -> dict[str, Any]:
    """The kernels that ``plan`` launches, for devices of this compute capability."""
    names = tuple(sorted({launch.kernel for launch in plan.launches}))
    if _stale() is None:
        return {name: _built().get_kernel(f"avops_{name}") for name in names}
    compiled = _compiled(names, f"sm_{capability[0]}{capability[1]}")
    return {name: compiled.get_kernel(f"avops_{name}") for name in names}


def source() -> str:
    """The text of csrc/combine.cu."""
    return _source_path().read_text(encoding="utf-8")


def mask(kernels: Iterable[str]) -> str:
    """AVOPS_KERNELS of the source for a build with nothing but ``kernels``."""
    numbers = list(KERNELS)
    return hex(sum(1 << numbers.index(name) for name in kernels))


def _source_path() -> Path:
    return next((path for path in _SOURCES if path.exists()), _SOURCES[0])


def _stale() -> str | None:
    """Why the fatbin cannot serve; None: it can."""
    if not _FATBIN.exists() or not _DIGEST.exists():
        return "avops was built without nvcc (or with AVOPS_NO_CUDA=1)"
    found = hashlib.sha256(_source_path().read_bytes()).hexdigest()
    if _DIGEST.read_text(encoding="utf-8").strip() != found:
        return "_combine.fatbin was built from another source than csrc/combine.cu"
    return None


@functools.cache
def _built() -> Any:
    return core().ObjectCode.from_fatbin(_FATBIN.read_bytes(), name="avops")


def _check_nvrtc() -> None:
    """Refuses, with the reason, where NVRTC or the source is missing."""
    if not _source_path().exists():
        raise BackendError(f"there is no {_SOURCES[0].name} to compile")
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        status, *_ = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise BackendError(f"NVRTC does not load ({_first_line(error)})") from error
    if int(status) != 0:
        raise BackendError(f"NVRTC does not work ({status})")


@functools.cache
def _compiled(names: tuple[str, ...], arch: str) -> Any:
    _check_nvrtc()
    options = core().ProgramOptions(
        name="avops", arch=arch, std="c++17", fma=False, define_macro=("AVOPS_KERNELS", mask(names))
    )
    try:
        return core().Program(source(), "c++", options=options).compile("cubin")
    except Exception as error:
        raise BackendError(f"NVRTC does not compile combine.cu for {arch}: {error}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
