"""head_logprob: every backend and way to multiply against exact log-probs; any cut of rows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from avops.kernels import LogitRule, LogProb, extension
from avops.kernels.head_logprob import native, triton
from avops.kernels.logprob.cases import RULES, bound, logit_error
from logit_rows import INTERPRETING, PLACES, bits, exact

Place = tuple[str, str]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Rows, vocabulary, dim: one, odd, around the native tiles (6, 16, 48, 64) and part (256).
SHAPES = [(1, 1, 1), (3, 7, 5), (15, 47, 255), (17, 49, 257), (33, 97, 64), (64, 48, 512),
          (65, 500, 300), (130, 131, 33)]  # fmt: skip


@pytest.fixture(params=PLACES, ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.param
    return found


class World:
    """A head and rows, drawn once."""

    def __init__(
        self, rows: int, vocabulary: int, dim: int, dtype: torch.dtype = BF16,
        hidden: torch.dtype | None = None, bias: bool = False, device: str = "cpu",
    ) -> None:  # fmt: skip
        draw = torch.Generator().manual_seed(rows + vocabulary + dim)
        self.hidden = torch.randn(rows, dim, generator=draw).to(hidden or dtype).to(device)
        scale = 3 / dim**0.5
        weight = (torch.randn(vocabulary, dim, generator=draw) * scale).to(dtype)
        self.weight = weight.to(device)
        self.bias = torch.randn(vocabulary, generator=draw).to(dtype).to(device) if bias else None
        self.targets = torch.randint(0, vocabulary, (rows,), generator=draw).to(device)

    def run(self, place: Place, rule: LogitRule | None = None) -> np.ndarray:
        head = LogProb(self.weight, self.bias, rule=rule, backend=place[0])
        return np.asarray(head(self.hidden, self.targets).cpu().numpy())

    def check(self, found: np.ndarray, rule: LogitRule, roundings: float) -> None:
        """Within the bound of exact log-probs, and never above 0."""
        hidden, weight = (x.cpu().double().numpy() for x in (self.hidden, self.weight))
        bias = 0.0 if self.bias is None else self.bias.cpu().double().numpy()
        vocabulary, dim = weight.shape
        size = np.abs(hidden) @ np.abs(weight).T + np.abs(bias)
        allowed = bound(found, vocabulary, roundings, logits=logit_error(size, dim, rule))
        wanted = exact(hidden @ weight.T + bias, self.targets.cpu().numpy(), rule)
        assert (np.abs(found - wanted) <= allowed).all()
        assert (found <= 0).all()


def roundings(place: Place) -> float:
    return native.ROUNDINGS if place[0] == "native" else triton.roundings()


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_the_bound(shape: tuple[int, int, int], dtype: torch.dtype, place: Place) -> None:
    world = World(*shape, dtype, device=place[1])
    world.check(world.run(place), RULES["plain"], roundings(place))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_rules_and_biases(rule: str, bias: bool, place: Place) -> None:
    for dtype in (F32, BF16):
        world = World(40, 300, 64, dtype, bias=bias, device=place[1])
        world.check(world.run(place, RULES[rule]), RULES[rule], roundings(place))


@pytest.mark.parametrize("hidden", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("weight", [F32, BF16, F16], ids=str)
def test_mixed_types_are_multiplied_in_f32(
    hidden: torch.dtype, weight: torch.dtype, place: Place
) -> None:
    world = World(20, 100, 50, weight, hidden, bias=True, device=place[1])
    world.check(world.run(place), RULES["plain"], roundings(place))


def test_logits_are_not_rounded_to_the_weights_type(place: Place) -> None:
    """Log-probs from bf16 logits miss by thousands of times the bound that this one keeps."""
    world = World(64, 500, 300, device=place[1])
    logits = (world.hidden @ world.weight.T).float().cpu()
    rounded = torch.log_softmax(logits, -1).gather(1, world.targets.cpu()[:, None])[:, 0].numpy()
    with pytest.raises(AssertionError):
        world.check(rounded, RULES["plain"], roundings(place))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_rows_depend_on_nothing_but_themselves(
    dtype: torch.dtype, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "SPLIT", 128)  # several of them, in a small vocabulary
    world = World(150, 300, 290 if place[0] == "native" else 70, dtype, bias=True, device=place[1])
    head = LogProb(world.weight, world.bias, rule=RULES["capped"], backend=place[0])
    whole = bits(head(world.hidden, world.targets))
    for step in (150, 64, 33, 16, 1) if place[0] == "native" else (150, 64, 7 * 16):
        parts = [
            bits(head(world.hidden[at : at + step], world.targets[at : at + step]))
            for at in range(0, 150, step)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.skipif(INTERPRETING or extension.NATIVE is None, reason="of native code")
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_any_thread_count_gives_the_same_bits(threads: int) -> None:
    world = World(333, 3000, 200, bias=True)
    wanted = LogProb(world.weight, world.bias, threads=1)(world.hidden, world.targets)
    found = LogProb(world.weight, world.bias, threads=threads)(world.hidden, world.targets)
    np.testing.assert_array_equal(bits(found), bits(wanted))


@pytest.mark.skipif(INTERPRETING or extension.NATIVE is None, reason="of native code")
@pytest.mark.parametrize("path", range(len(native.PATHS)), ids=native.PATHS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_every_way_to_multiply(path: int, dtype: torch.dtype) -> None:
    if path > extension.NATIVE.HEAD_PATH:  # type: ignore[union-attr]
        pytest.skip(f"this CPU lacks {native.PATHS[path]}")
    for shape in SHAPES:
        world = World(*shape, dtype, bias=True)
        head, out = native.Head(RULES["scaled"], 1, path), torch.empty(shape[0])
        head.run(world.hidden, world.weight, world.bias, world.targets, out)
        world.check(out.numpy(), RULES["scaled"], native.ROUNDINGS)


@pytest.mark.skipif(INTERPRETING or extension.NATIVE is None, reason="of native code")
def test_exact_products_give_the_same_bits_in_every_way() -> None:
    """Whole numbers: no sum rounds, so the ways to multiply must agree to the bit."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randint(-4, 5, (70, 301), generator=draw).bfloat16()
    weight = torch.randint(-1, 2, (500, 301), generator=draw).bfloat16()
    targets = torch.randint(0, 500, (70,), generator=draw)
    found = []
    for path in range(extension.NATIVE.HEAD_PATH + 1):  # type: ignore[union-attr]
        for dtype in (BF16, F32):
            out = torch.empty(70)
            head = native.Head(LogitRule(multiply=0.0625), 1, path)
            head.run(hidden.to(dtype), weight.to(dtype), None, targets, out)
            found.append(bits(out))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.skipif(INTERPRETING or extension.NATIVE is None, reason="of native code")
@pytest.mark.parametrize("path", range(len(native.PATHS)), ids=native.PATHS)
def test_long_sums_are_cut_into_parts(path: int) -> None:
    """In one chain every 2⁻²⁵ after the 1 would vanish; in parts of 256 the second part stays."""
    weight = torch.zeros(2, 512, dtype=BF16)
    weight[0] = 2.0**-25
    weight[0, 0] = 1
    out = torch.empty(1)
    targets = torch.zeros(1, dtype=torch.int64)
    native.Head(LogitRule(), 1, path).run(torch.ones(1, 512).bfloat16(), weight, None, targets, out)
    wanted = -np.log1p(np.exp(-(1 + 2.0**-17)))
    assert abs(out.item() - wanted) <= bound(out.numpy(), 2, native.ROUNDINGS)[0]


def test_nothing_beyond_a_row_is_read(place: Place) -> None:
    """Of an odd width, with NaN before and behind the weights and the rows."""
    world = World(17, 50, 33)
    guarded = []
    for tensor in (world.hidden, world.weight):
        room = torch.full((len(tensor) + 2, 33), float("nan"), dtype=BF16, device=place[1])
        room[1:-1] = tensor
        guarded.append(room[1:-1])
    head = LogProb(guarded[1], backend=place[0])
    found = head(guarded[0], world.targets.to(place[1])).cpu().numpy()
    world.check(found, RULES["plain"], roundings(place))


def test_passes_over_rows_give_the_same_bits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a pass takes (native: 1,024 at this dim, Triton: cut short here)."""
    monkeypatch.setattr(triton, "PASS", 64)
    world = World(1100 if place[0] == "native" else 150, 60, 1024, device=place[1])
    head = LogProb(world.weight, backend=place[0])
    whole = bits(head(world.hidden, world.targets))
    last = bits(head(world.hidden[-40:], world.targets[-40:]))
    np.testing.assert_array_equal(last, whole[-40:])
    world.check(whole.view(np.float32), RULES["plain"], roundings(place))


def test_weights_may_change_in_place(place: Place) -> None:
    world = World(20, 200, 40, device=place[1])
    head = LogProb(world.weight, backend=place[0])
    before = head(world.hidden, world.targets)
    world.weight.mul_(2)
    after = head(world.hidden, world.targets)
    assert not torch.equal(before, after)
    fresh = LogProb(world.weight, backend=place[0])
    np.testing.assert_array_equal(bits(after), bits(fresh(world.hidden, world.targets)))


def test_the_workspace_is_allocated_once(place: Place) -> None:
    rows = 70 if INTERPRETING else 300
    world = World(rows, 200 if INTERPRETING else 5000, 40, device=place[1])
    head = LogProb(world.weight, backend=place[0])
    out = torch.empty(rows, device=place[1])
    head(world.hidden[:3], world.targets[:3], out[:3])
    state = head._state
    room = state._scratch if place[0] == "native" else state._room
    place_of_room = room.data_ptr()
    if place[1] == "cuda":
        held = torch.cuda.memory_allocated()
    assert head(world.hidden, world.targets, out) is out
    kept = state._scratch if place[0] == "native" else state._room
    assert kept is room
    assert kept.data_ptr() == place_of_room
    if place[1] == "cuda":
        assert torch.cuda.memory_allocated() == held
    assert room.nbytes < (8 << 20) * torch.get_num_threads()


def test_nan_infinity_and_masks(place: Place) -> None:
    backend, device = place
    inf, nan = float("inf"), float("nan")
    hidden = torch.tensor([[1.0, 0.0], [nan, 0.0], [inf, 0.0], [0.0, 1.0]], device=device)
    weight = torch.ones(70, 2, device=device)
    bias = torch.zeros(70, device=device)
    bias[3:] = -inf  # padding of the vocabulary
    targets = torch.tensor([0, 0, 0, 5], device=device)
    found = LogProb(weight, bias, backend=backend)(hidden, targets).tolist()
    assert found[0] == np.float32(-np.log(3))
    assert np.isnan(found[1:3]).all()
    assert found[3] == -inf
    bias[:69], bias[69] = -inf, 0  # the native code's first block, of 48, has no finite logit
    last = LogProb(weight, bias, backend=backend)(hidden[:1], targets[:1] + 69)
    assert last.tolist() == [0]
    bias[:] = -inf
    assert LogProb(weight, bias, backend=backend)(hidden, targets).isnan().all()


@pytest.mark.gpu
def test_a_target_that_is_no_row_gives_nan_on_a_device() -> None:
    world = World(4, 100, 16, device="cuda")
    world.targets[1], world.targets[2] = 100, -1
    found = LogProb(world.weight)(world.hidden, world.targets).isnan().tolist()
    assert found == [False, True, True, False]


@pytest.mark.gpu
def test_a_real_head_on_the_device() -> None:
    """Mistral's head: within the bound, deterministic, with a device's own memory only."""
    world = World(1000, 32768, 4096, device="cuda")
    head = LogProb(world.weight)
    assert head.backend == "triton"
    found = head(world.hidden, world.targets)
    np.testing.assert_array_equal(bits(head(world.hidden, world.targets)), bits(found))
    part = head(world.hidden[300:444], world.targets[300:444])
    np.testing.assert_array_equal(bits(part), bits(found[300:444]))
    logits = world.hidden.double() @ world.weight.double().T
    wanted = torch.log_softmax(logits, -1).gather(1, world.targets[:, None])[:, 0]
    # One chain over 4,096 products, each at most |h·w|: cases.logit_error of that many.
    size = (world.hidden.double().abs() @ world.weight.double().abs().T).max().item()
    allowed = 2 * 2.0**-24 * 4098 * size
    assert (found - wanted).abs().max().item() <= allowed


def test_what_does_not_fit_is_refused() -> None:
    world = World(4, 10, 6, bias=True)
    weight, hidden, targets = world.weight, world.hidden, world.targets
    with pytest.raises(TypeError, match="weight is torch.float64, expected float32, float16 or"):
        LogProb(weight.double())
    with pytest.raises(ValueError, match=r"weight has shape \[6, 10\] and strides \[1, 6\], expe"):
        LogProb(weight.t())
    with pytest.raises(TypeError, match="bias is torch.float32, expected torch.bfloat16 as weight"):
        LogProb(weight, torch.zeros(10))
    with pytest.raises(ValueError, match=r"bias has shape \[9\] on cpu, expected \[10\] on cpu"):
        LogProb(weight, torch.zeros(9, dtype=BF16))
    odd = torch.frombuffer(bytearray(8 * 6 * 2 + 1), dtype=BF16, offset=1, count=48).view(8, 6)
    with pytest.raises(ValueError, match=r"weight is not aligned to its elements; pass weight.cl"):
        LogProb(odd)
    head = LogProb(weight, world.bias)
    with pytest.raises(ValueError, match=r"hidden has shape \[4, 5\] .* a contiguous \[rows, 6\]"):
        head(hidden[:, :5].contiguous(), targets)
    with pytest.raises(TypeError, match="hidden is torch.int64, expected float32"):
        head(hidden.long(), targets)
    with pytest.raises(ValueError, match="targets are from .* expected columns from 0 to 9"):
        head(hidden, targets + 10)
    with pytest.raises(ValueError, match=r"targets have shape \[3\]"):
        head(hidden, targets[:3])
    with pytest.raises(ValueError, match="threads is 0"):
        LogProb(weight, threads=0)
    assert head(hidden[:0], targets[:0]).shape == (0,)


def test_the_sizes_are_twins() -> None:
    root = Path(__file__).parents[2] / "csrc"
    tiles = (root / "tiles.h").read_text(encoding="utf-8")
    source = (root / "head.cpp").read_text(encoding="utf-8")
    weights, part = re.findall(r"kTileWeights = (\d+), kPart = (\d+);", tiles)[0]
    assert part == "256"  # as in LogProb's docstring and cases.logit_error
    block = int(weights) * int(re.findall(r"kBlockWeights = (\d+) \* kTileWeights;", source)[0])
    parts = int(re.findall(r"kParts = (\d+);", source)[0])
    # Sums of the terms of one part in f32, and 2 for an exponential within 1 ulp.
    assert block // parts - 1 + 2 == native.ROUNDINGS
    header = (root / "avops.h").read_text(encoding="utf-8")
    paths = re.findall(r"AVOPS_(PLAIN|AVX2|AVX512|AVX512_BF16) = (\d)", header)
    assert [int(number) for _, number in paths] == list(range(len(native.PATHS)))
