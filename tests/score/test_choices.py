"""Who computes what: what the report says is what a scorer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from avops.kernels import extension, registry
from avops.kernels.linear import native as products
from avops.kernels.tree_attention import native as tree
from avops.score import Scorer, TokenPlan, attention, choices, fused
from avops.score.choices import Use, report

Make = Callable[..., Any]
NEEDED = pytest.mark.skipif(extension.NATIVE is None, reason=extension.REASON)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No forced backend, and no memory of earlier choices before or after."""
    monkeypatch.delenv("AVOPS_BACKEND", raising=False)
    for memory in (registry._automatic, registry._forced, choices._amx):
        memory.cache_clear()
    yield
    for memory in (registry._automatic, registry._forced, choices._amx):
        memory.cache_clear()


def used(operation: str, dtype: str = "f32") -> Use:
    (found,) = [
        use
        for use in report()
        if (use.operation, use.device, use.dtype) == (operation, "cpu", dtype)
    ]
    return found


def test_every_operation_of_scoring_is_reported() -> None:
    found = [(use.operation, use.device, use.dtype) for use in report()]
    assert len(set(found)) == len(found)
    operations = {operation for operation, _, _ in found}
    others = {"combine", "combine_many", "diff", "gram", "logprob", "lowrank"}
    assert operations == set(registry.operations()) - others
    assert {dtype for _, _, dtype in found} == {"f32", "bf16", "f16"}
    assert all(use.reason for use in report())


@NEEDED
@pytest.mark.parametrize("amd", [0, 1])
def test_native_products_are_taken_on_amd_alone(amd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension.NATIVE, "AMD", amd)
    monkeypatch.setattr(extension.NATIVE, "HEAD_PATH", tree.AVX512_BF16)
    for operation in ("linear", "gated_mlp"):
        for dtype in ("f32", "bf16"):
            use = used(operation, dtype)
            assert use.by == ("native" if amd else "torch")
            assert ("the processor is not AMD's" in use.reason) == (not amd)
            assert ("C++, AVX-512" in use.reason) == bool(amd)
    assert used("linear", "f16")[3:] == ("torch", "native code takes f32 and bf16, not f16")
    assert registry.resolve("linear").backend == "native"  # there, and still not taken


@NEEDED
def test_what_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension.NATIVE, "AMD", 1)
    monkeypatch.setattr(extension.NATIVE, "HEAD_PATH", tree.AVX512)
    for operation in ("linear", "gated_mlp", "tree_attention"):
        assert used(operation).by == "native"
        wanted = ("torch", "the processor has no AVX-512 instructions for bf16")
        assert used(operation, "bf16")[3:] == wanted
    monkeypatch.setattr(extension.NATIVE, "HEAD_PATH", tree.AVX512 - 1)
    registry._automatic.cache_clear()
    for operation in ("linear", "gated_mlp", "tree_attention"):
        assert used(operation).by == "torch"
        assert "has no AVX-512" in used(operation).reason
    for operation in ("rms_norm", "rope", "swiglu", "head_logprob"):
        assert used(operation).by == "native"


@NEEDED
def test_tiles_for_bf16_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension.NATIVE, "HEAD_PATH", tree.AVX512_BF16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert used("tree_attention", "bf16").by == "torch"
    assert "tiles (AMX), which torch uses" in used("tree_attention", "bf16").reason
    assert used("tree_attention").by == "native"


def test_heads_that_are_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices.registry, "resolve", lambda *_, **__: registry.Implementation)
    monkeypatch.setattr(registry.Implementation, "backend", "native", raising=False)
    why = choices.no_tree_attention("cpu", torch.float32, 257)
    assert why == "heads have 257 elements, and it takes at most 256"


def test_the_reference_is_taken_by_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVOPS_BACKEND", "reference")
    for operation in ("linear", "gated_mlp", "tree_attention"):
        assert used(operation).by == "torch"
    for operation in ("rms_norm", "rope", "swiglu"):
        assert used(operation)[3:] == ("transformers", "AVOPS_BACKEND=reference asks for it")
    assert used("head_logprob").by == "reference"
    if extension.NATIVE is not None:
        assert used("linear").reason == "AVOPS_BACKEND=reference asks for no native code"


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "NATIVE", None)
    monkeypatch.setattr(extension, "REASON", "no compiler was there")
    for use in report():
        if use.device == "cpu":
            assert use.by == ("transformers" if use.operation in choices.BETWEEN else "torch")
    assert "no compiler was there" in used("linear").reason
    assert "native: no compiler was there" in used("head_logprob").reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_scorer_takes_what_the_report_says(
    make_model: Make, plan: TokenPlan, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()

    def watch(where: Any, name: str, operation: str) -> None:
        given = getattr(where, name)

        def watched(*args: Any, **options: Any) -> Any:
            called.add(operation)
            return given(*args, **options)

        monkeypatch.setattr(where, name, watched)

    for operation in ("linear", "gated_mlp", "rms_norm", "rope", "swiglu"):
        watch(fused, operation, operation)
    watch(attention, "kernel", "tree_attention")
    scorer = Scorer(make_model("llama").to(dtype), plan)
    scorer.run()
    assert scorer.path == "packed"
    if scorer._head._kernel is not None:
        called.add("head_logprob")
    wanted = {
        use.operation
        for use in report()
        if (use.device, use.dtype) == ("cpu", choices._short(dtype))
        and use.by not in ("torch", "transformers")
    }
    if "gated_mlp" in wanted:  # the whole MLP, with what swiglu does
        wanted.remove("swiglu")
    assert called == wanted
    assert products.faster(dtype) == ("linear" in wanted)
