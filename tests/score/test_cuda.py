"""The scorer on a CUDA device: the same numbers, through varlen attention and Triton's head."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch

from avops.kernels import registry
from avops.score import Scorer, TokenPlan, oracle_scores, varlen
from avops.score.packed import PackedPath
from score.architectures import PACKABLE, make
from score.bound import rounding_bound

HALF_ULP = 2.0**-24  # relative: S is rounded once, from f64 to f32
NAMES = ["mistral", "llama", "gemma2", "gpt2", "qwen3", "phi3", "mixtral"]
pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _whole_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in f32 are not to be cut to TF32, whatever the machine's default."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("path", ["packed", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_f32_is_within_the_bound_of_the_cpus_oracle(name: str, path: str, plan: TokenPlan) -> None:
    model = make(name)
    truth = oracle_scores(model, plan)
    bound = rounding_bound(model, plan) + HALF_ULP * np.abs(truth)
    device = copy.deepcopy(model).cuda()
    for batch_tokens in (60, 4096):
        scorer = Scorer(device, plan, batch_tokens=batch_tokens, path=path)
        assert (np.abs(scorer.run() - truth) <= bound).all()
        assert scorer.path == path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 12])
def test_half_precision_goes_through_varlen_attention(
    plan: TokenPlan, dtype: torch.dtype, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = varlen.varlen_attention()
    if call is None or (window is not None and "window_size" not in call.takes):
        pytest.skip(f"varlen attention of torch {torch.__version__} takes no such layers")
    calls = []

    def spy(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return call.function(*args, **options)

    monkeypatch.setattr(varlen, "varlen_attention", lambda: call._replace(function=spy))
    # Heads of 64: varlen attention takes no smaller ones everywhere.
    sizes = {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = make("mistral", sliding_window=window, **sizes).to(dtype).cuda()
    scorer = Scorer(model, plan)
    got = scorer.run()
    assert (scorer.path, scorer.reason) == ("packed", "the model's attention is pluggable")
    assert len(calls) >= 2 * len(scorer.units)  # two layers
    check = scorer.check
    assert check is not None
    assert check.difference <= check.bound
    # The same measure of roundings: both are evaluations of the same half-precision model.
    other = Scorer(model, plan, path="exact").run()
    assert np.abs(got - other).max() <= check.bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_tritons_where_it_serves(plan: TokenPlan, dtype: torch.dtype) -> None:
    scorer = Scorer(make("gemma2").to(dtype).cuda(), plan)
    scorer.run()
    wanted = registry.resolve("head_logprob", device="cuda").backend
    kernel = scorer._head._kernel
    if wanted == "reference":  # no Triton: torch multiplies
        assert kernel is None
    else:
        assert kernel is not None
        assert kernel.backend == wanted == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["mistral", "llama", "qwen2", "qwen3"])
def test_layers_are_fused_where_triton_serves(
    name: str, dtype: torch.dtype, plan: TokenPlan
) -> None:
    """And the self-check has nothing against it: else there would be no fused layers left."""
    scorer = Scorer(make(name).to(dtype).cuda(), plan)
    scorer.run()
    assert isinstance(scorer._path, PackedPath)
    assert scorer._path.fused is not None
    served = registry.resolve("rms_norm", device="cuda").backend == "triton"
    assert (scorer._path.fused.served > 0) == served
    # Two evaluations of one model, with and without.
    assert scorer.check is not None
    plain = Scorer(scorer.model, plan)
    plain._path = PackedPath(plain._head, plain.units, fuse=False)  # type: ignore[arg-type]
    assert np.abs(plain.run() - scorer.run()).max() <= scorer.check.bound


@pytest.mark.parametrize("name", list(PACKABLE))
def test_no_memory_grows_after_the_second_candidate(name: str, plan: TokenPlan) -> None:
    model = make(name).bfloat16().cuda()
    scorer = Scorer(model, plan, batch_tokens=60)

    def candidate(scale: float) -> tuple[int, int]:
        gc.collect()
        with torch.no_grad():
            next(model.parameters()).mul_(scale)
        torch.cuda.reset_peak_memory_stats()
        scorer.run()
        stats = torch.cuda.memory_stats()
        return stats["allocated_bytes.all.current"], stats["allocated_bytes.all.peak"]

    candidate(1.5)
    second = candidate(0.5)
    assert [candidate(scale) for scale in (2.0, 0.7, 1.1, 0.9)] == [second] * 4


def test_same_bits_every_time(plan: TokenPlan) -> None:
    model = make("mistral").bfloat16().cuda()
    scorer = Scorer(model, plan)
    first = scorer.run()
    assert np.array_equal(scorer.run(), first)
    assert np.array_equal(Scorer(model, plan).run(), first)
