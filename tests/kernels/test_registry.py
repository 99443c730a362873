"""The one dispatch point: the choice, forcing, refusals and their reasons."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest

from avops.dtypes import F32
from avops.errors import BackendError
from avops.kernels import CombineStats, Operand, combine, diff, extension, registry

HOST = ("combine", "diff", "gram", "lowrank")
LAYERS = ("gated_mlp", "linear", "rms_norm", "rope", "swiglu", "tree_attention")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No forced backend, and no memory of earlier choices before or after."""
    monkeypatch.delenv("AVOPS_BACKEND", raising=False)
    registry._automatic.cache_clear()
    registry._forced.cache_clear()
    yield
    registry._automatic.cache_clear()
    registry._forced.cache_clear()


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if avops had been installed without a compiler."""
    monkeypatch.setitem(sys.modules, "avops._native", None)
    module, reason = extension._load()
    monkeypatch.setattr(extension, "NATIVE", module)
    monkeypatch.setattr(extension, "REASON", reason)


@pytest.fixture
def with_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extension were there, whether it is or not."""
    monkeypatch.setattr(extension, "NATIVE", types.SimpleNamespace())
    monkeypatch.setattr(extension, "REASON", "C++, some code path")


def test_the_table() -> None:
    others = ("combine_many", "head_logprob", "logprob")
    assert set(registry.operations()) == {*HOST, *LAYERS, *others}
    both = ("rms_norm", "rope", "swiglu")
    for operation in ("head_logprob", "logprob", *both):
        assert registry.backends(operation) == ("triton", "native", "reference")
    for operation in (*HOST, *(name for name in LAYERS if name not in both)):
        assert registry.backends(operation) == ("native", "reference")
    assert registry.backends("combine_many") == ("cuda", "triton", "reference")


@pytest.mark.parametrize("operation", HOST)
def test_native_comes_first(operation: str, with_native: None) -> None:
    chosen = registry.resolve(operation)
    assert (chosen.operation, chosen.backend) == (operation, "native")
    rows = {row.backend: row.chosen for row in registry.report() if row.operation == operation}
    assert rows == {"native": True, "reference": False}


@pytest.mark.parametrize("operation", HOST)
def test_without_the_extension_the_reference_serves_and_the_report_says_why(
    operation: str, no_native: None
) -> None:
    assert registry.resolve(operation).backend == "reference"
    native, reference = [row for row in registry.report() if row.operation == operation]
    assert (native.backend, native.available, native.chosen) == ("native", False, False)
    assert (
        "built without a C++ compiler (or with AVOPS_NO_NATIVE=1); install g++ (or clang++)"
        in native.reason
    )
    assert (reference.available, reference.chosen) == (True, True)


@pytest.mark.parametrize("source", ["backend=", "AVOPS_BACKEND"])
def test_forced_but_unavailable_is_an_error(
    source: str, no_native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = Operand(np.zeros(2, np.float32), F32)
    out = Operand(np.ones(2, np.float32), F32)
    if source == "AVOPS_BACKEND":
        monkeypatch.setenv("AVOPS_BACKEND", "native")
    backend = "native" if source == "backend=" else None
    message = f"^{source} forces native for combine, which cannot serve: avops was built without"
    with pytest.raises(BackendError, match=message):
        combine(x, (), out, backend=backend)
    with pytest.raises(BackendError, match=f"^{source} forces native for diff"):
        diff(x, x, out, backend=backend)
    assert (out.array == 1).all()


@pytest.mark.parametrize("source", ["backend=", "AVOPS_BACKEND"])
def test_an_unknown_backend_is_an_error(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "AVOPS_BACKEND":
        monkeypatch.setenv("AVOPS_BACKEND", "metal")
    backend = "metal" if source == "backend=" else None
    message = f"^{source} is 'metal', expected a backend of combine: native, reference$"
    with pytest.raises(BackendError, match=message):
        registry.resolve("combine", backend)


def test_the_report_refuses_an_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "metal")
    with pytest.raises(BackendError, match="AVOPS_BACKEND is 'metal', expected a backend"):
        registry.report()


def test_the_environment_speaks_to_the_operations_that_have_the_backend(
    monkeypatch: pytest.MonkeyPatch, with_native: None
) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "triton")
    assert registry.resolve("combine").backend == "native"
    rows = {(r.operation, r.backend): r for r in registry.report()}
    assert rows["combine", "native"].chosen
    assert rows["combine_many", "triton"].reason.endswith("(forced by AVOPS_BACKEND)")
    monkeypatch.setenv("AVOPS_BACKEND", "native")
    assert registry.resolve("combine_many", "reference").backend == "reference"
    with pytest.raises(BackendError, match="expected a backend of combine_many: cuda, triton"):
        registry.resolve("combine_many", "native")


def test_a_backend_is_chosen_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    far = types.SimpleNamespace(DEVICES=("cuda",), available=lambda: (True, "there"), run=print)
    near = types.SimpleNamespace(available=lambda: (True, "there"), run=print)
    modules = {"cuda": far, "triton": far, "reference": near}
    monkeypatch.setattr(registry, "_module", lambda operation, backend: modules[backend])
    assert registry.resolve("combine_many").backend == "reference"
    assert registry.resolve("combine_many", device="cuda").backend == "cuda"
    with pytest.raises(BackendError, match="which computes on cuda, not on cpu"):
        registry.resolve("combine_many", "cuda")


def test_the_environment_forces(with_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.resolve("combine").backend == "native"
    monkeypatch.setenv("AVOPS_BACKEND", "reference")
    assert registry.resolve("combine").backend == "reference"
    rows = {row.backend: row for row in registry.report() if row.operation == "combine"}
    assert (rows["native"].available, rows["native"].chosen) == (True, False)
    assert rows["reference"].chosen
    assert rows["reference"].reason.endswith("(forced by AVOPS_BACKEND)")


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "nonsense")
    assert registry.resolve("diff", "reference").backend == "reference"


def test_a_forced_backend_that_cannot_serve_is_not_chosen(
    no_native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "native")
    rows = registry.report()
    assert not any(row.chosen for row in rows if row.operation in HOST)
    assert "forced by AVOPS_BACKEND" in rows[0].reason


def test_an_implementation_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    once = registry.Implementation(
        "combine", "mine", lambda *args: calls.append(args) or (3, 4, 1, 0)
    )
    monkeypatch.setenv("AVOPS_BACKEND", "nonsense")  # not even read
    x = Operand(np.zeros(2, np.float32), F32)
    out = Operand(np.ones(2, np.float32), F32)
    stats = combine(x, (), out, backend=once)
    assert stats == CombineStats(3, 4, 1, 0)
    assert calls == [(x, (), out, None, 1)]
    with pytest.raises(ValueError, match="an implementation of combine cannot serve diff"):
        diff(x, x, out, backend=once)


def test_an_extension_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libstdc++.so.6: version `GLIBCXX_3.4.30' not found")

    monkeypatch.setattr(importlib, "import_module", fail)
    module, reason = extension._load()
    assert module is None
    assert "does not load: libstdc++.so.6: version `GLIBCXX_3.4.30' not found; install" in reason


def test_an_extension_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.SimpleNamespace(ABI=extension.ABI - 1, VARIANT="AVX2")
    monkeypatch.setitem(sys.modules, "avops._native", old)
    module, reason = extension._load()
    assert module is None
    assert f"has ABI {extension.ABI - 1}, expected {extension.ABI}: it was built from" in reason


def test_kernels_import_nothing_heavy() -> None:
    code = (
        "import sys, avops.kernels as k; "
        f"[k.registry.resolve(operation) for operation in {HOST}]; "
        "heavy = {'numpy', 'torch', 'transformers', 'rich', 'safetensors', 'matplotlib'};"
        "found = heavy & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
