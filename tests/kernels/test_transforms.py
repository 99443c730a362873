"""trim, elect and dare: blocks against whole tensors, bit for bit; truncate against the SVD."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from avops.kernels.rounding import uniform
from avops.kernels.transforms import (
    Drop,
    Selection,
    Threshold,
    dare,
    drop_key,
    elect,
    reference,
    trim,
    truncate,
)
from avops.kernels.transforms.blocks import _SLICE

RNG = np.random.default_rng(0)
DRAWS: dict[str, Callable[[int], np.ndarray]] = {
    "normal": lambda n: RNG.standard_normal(n).astype(np.float32),
    # Differences of bf16 weights take few values: most magnitudes are tied.
    "ties": lambda n: (RNG.integers(-3, 4, n) * 2.0**-9).astype(np.float32),
    "near": lambda n: (1 + RNG.integers(0, 9, n) * 2.0**-23).astype(np.float32),
    "zeros": lambda n: np.where(RNG.random(n) < 0.9, 0, RNG.standard_normal(n)).astype(np.float32),
    "wide": lambda n: RNG.integers(0, 0x7F80 << 16, n, dtype=np.uint32).view(np.float32),
    "signed zeros": lambda n: np.where(RNG.random(n) < 0.5, -0.0, 0.0).astype(np.float32),
}
LENGTHS = (1, 2, 97, 4096, _SLICE - 1, 2 * _SLICE + 1)


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


def blocks(size: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + length, size)) for start in range(0, size, length)]


def select(tensors: list[np.ndarray], keep: int, length: int) -> Selection:
    """The selection over ``tensors``, fed in blocks of ``length`` in random order."""
    selection = Selection(sum(tensor.size for tensor in tensors), keep)
    places = [
        (n, *part) for n, tensor in enumerate(tensors) for part in blocks(tensor.size, length)
    ]
    while selection.wants():
        for number, start, stop in RNG.permutation(places):
            if selection.wants((number, start)):
                selection.add((int(number), int(start)), tensors[number][start:stop])
        selection.advance()
    return selection


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", LENGTHS)
def test_trim(draw: str, n: int) -> None:
    delta = DRAWS[draw](n)
    for keep in sorted({0, 1, n // 5, n // 2, n - 1, n}):
        expected = bits(reference.trim(delta, keep))
        for length in {97 if n < 5000 else 20011, n}:
            threshold = select([delta], keep, length).threshold(0)
            made = delta.copy()
            for start, stop in blocks(n, length):
                trim(made[start:stop], start, threshold)
            assert bits(made) == expected
        assert np.count_nonzero(made) == min(keep, np.count_nonzero(delta))


@pytest.mark.parametrize("draw", ["normal", "ties"])
def test_trim_over_several_tensors(draw: str) -> None:
    """As of one tensor that has them all, one after the other."""
    tensors = [DRAWS[draw](n) for n in (1000, 0, 777, 3)]
    together = np.concatenate(tensors)
    for keep in (1, 300, 1234, 1779):
        selection = select(tensors, keep, 101)
        for number, tensor in enumerate(tensors):
            trim(tensor := tensor.copy(), 0, selection.threshold(number))
            start = sum(t.size for t in tensors[:number])
            expected = reference.trim(together, keep)[start : start + tensor.size]
            assert bits(tensor) == bits(expected)


def test_a_nan_is_larger_than_infinity() -> None:
    delta = np.array([np.inf, 3, np.nan, -np.inf], np.float32)
    trim(delta, 0, select([delta], 1, 2).threshold(0))
    assert np.isnan(delta[2])
    assert delta[[0, 1, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("keep", [-1, 6])
def test_selection_of_too_many(keep: int) -> None:
    with pytest.raises(ValueError, match=f"keep is {keep}, expected 0 to 5"):
        Selection(5, keep)


def test_blocks_that_change_between_passes() -> None:
    selection = Selection(4, 1)
    tied = np.ones(2, np.float32)
    for delta in (tied, tied, np.zeros(2, np.float32)):
        for start in (0, 2):
            selection.add((0, start), delta)
        if delta is not tied:
            with pytest.raises(ValueError, match="the blocks have changed"):
                selection.advance()
        else:
            selection.advance()


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("vectors", [2, 3, 5])
def test_elect(draw: str, vectors: int) -> None:
    deltas = [DRAWS[draw](2 * _SLICE + 11) for _ in range(vectors)]
    expected = reference.elect(deltas)
    made = [delta.copy() for delta in deltas]
    for start, stop in blocks(made[0].size, 50021):
        elect([delta[start:stop] for delta in made])
    assert list(map(bits, made)) == list(map(bits, expected))


def test_election_by_hand() -> None:
    one = np.array([1, 1, -1, 2, 0, 5, 1e-30, -0.0], np.float32)
    two = np.array([2, -3, -2, -2, 4, 0, 1, 1], np.float32)
    elect([one, two])
    # A sum of 0 elects no sign: it is as likely to be wrong either way.
    assert one.tolist() == [1, 0, -1, 0, 0, 5, np.float32(1e-30), 0]
    assert two.tolist() == [2, -3, -2, 0, 4, 0, 1, 1]
    assert not np.signbit(one[[1, 3, 7]]).any()


def test_an_election_of_infinities() -> None:
    one = np.array([np.inf, np.inf, -np.inf, np.nan, 1, 0], np.float32)
    two = np.array([-np.inf, 1, 1, 1, np.inf, np.inf], np.float32)
    expected = reference.elect([one, two])
    elect([one, two])
    assert [bits(one), bits(two)] == list(map(bits, expected))
    assert one.tolist() == [0, np.inf, -np.inf, 0, 1, 0]


def test_an_election_is_odd() -> None:
    """Of −Δ it elects the opposite."""
    deltas = [DRAWS["ties"](999) for _ in range(3)]
    turned = [-delta for delta in deltas]
    elect(deltas)
    elect(turned)
    for delta, other in zip(deltas, turned, strict=True):
        assert np.array_equal(delta, -other)


@pytest.mark.parametrize("start", [0, 5, 2**32 - 7, 2**32 + 3, 2**33 - _SLICE])
@pytest.mark.parametrize("limit", [1, 2**31, 2**32 - 1])
def test_dare(start: int, limit: int) -> None:
    delta = DRAWS["normal"](2 * _SLICE + 5)
    rule = Drop(drop_key(3, "a"), limit, 2.5)
    expected = reference.dare(delta, start, rule.key, rule.limit, rule.factor)
    made = delta.copy()
    for first, stop in blocks(delta.size, 30011):
        dare(made[first:stop], start + first, rule)
    assert bits(made) == bits(expected)


def test_dropping_is_counted_exactly() -> None:
    """Dropped are the entries whose hash is below the limit, and these only; zeros stay zeros."""
    delta = np.ones(1 << 16, np.float32)
    key, limit = drop_key(0, "w"), 2**32 // 10
    dare(delta, 0, Drop(key, limit, 1.5))
    hashes = uniform(key, 0, delta.size)
    assert np.array_equal(delta == 0, hashes < limit)
    assert set(np.unique(delta)) == {0, 1.5}


def test_every_hash_comes_once() -> None:
    """Each step of the hash has an inverse: so of 2^32 entries exactly ``limit`` are dropped."""
    key = drop_key(1, "w")
    x = (key + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    for value in [0, 2**31 - 1, 2**31, 2**32 - 1, *map(int, RNG.integers(0, 2**32, 500))]:
        y = value ^ (value >> 16)
        y = y * pow(0x846CA68B, -1, 2**32) % 2**32
        y ^= (y >> 15) ^ (y >> 30)
        y = (y - (x >> 32)) * pow(0x7FEB352D, -1, 2**32) % 2**32
        index = (y ^ (y >> 16)) ^ (x % 2**32)
        assert uniform(key, index, 1)[0] == value
        for limit, kept in ((value, 1), (value + 1, 0)):
            if 0 < limit < 2**32:
                dare(one := np.ones(1, np.float32), index, Drop(key, limit, 2.0))
                assert one[0] == 2 * kept


def test_the_mean_is_kept() -> None:
    """Over the values of a hash of 32 bits the mean is Δ exactly: kept · factor = 2^32."""
    for share in (Fraction(1, 2), Fraction(3, 4), Fraction(7, 8)):
        limit = int(share * 2**32)
        factor = Fraction(2**32, 2**32 - limit)
        # P(kept) · factor, with a factor that float32 holds.
        assert Fraction(2**32 - limit, 2**32) * factor == 1
        assert Fraction(float(np.float32(float(factor)))) == factor
    n, share = 1 << 20, 0.5
    total = 0.0
    for seed in range(8):
        delta = np.ones(n, np.float32)
        dare(delta, 0, Drop(drop_key(seed, "w"), 2**31, 2.0))
        total += float(delta.sum(dtype=np.float64))
    # 8n independent draws of 0 or 2: five standard deviations of their sum, √(8n) each of 1.
    assert abs(total - 8 * n) <= 5 * np.sqrt(8 * n)


def test_keys_differ() -> None:
    keys = {drop_key(seed, name) for seed in (0, 1) for name in ("a", "b")}
    assert len(keys) == 4
    from avops.kernels import dither_key

    assert dither_key(0, "a") not in keys


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (33, 33), (1, 9), (9, 1)])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_truncate(shape: tuple[int, int], rank: int) -> None:
    delta = DRAWS["normal"](shape[0] * shape[1]).reshape(shape)
    found = truncate(delta, rank)
    assert (found.left.shape, found.right.shape) == ((shape[0], rank), (rank, shape[1]))
    sizes = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    # Sums of at most 2,400 squares in float64, and eigenvectors orthogonal to 60 · 2^-52.
    assert abs(found.squares - (sizes**2).sum()) <= 1e-12 * found.squares
    assert abs(found.kept - (sizes[:rank] ** 2).sum()) <= 1e-12 * found.squares
    product = found.left.astype(np.float64) @ found.right.astype(np.float64)
    lost = np.linalg.norm(delta - product)
    # The best there is, and the rounding of the factors: 2^-24 of each of two, over ‖Δ‖ of rank r.
    best = np.sqrt((sizes[rank:] ** 2).sum())
    assert lost <= best + 2.0**-23 * np.sqrt(rank) * np.sqrt(found.squares)


def test_truncate_of_what_has_the_rank() -> None:
    left, right = DRAWS["normal"](80).reshape(20, 4), DRAWS["normal"](120).reshape(4, 30)
    delta = (left.astype(np.float64) @ right).astype(np.float32)
    found = truncate(delta, 4)
    # Δ is rounded to float32: what is outside the rank is 2^-24 of it at most.
    assert 1 - found.kept / found.squares <= 2.0**-48
    assert np.all(found.left[np.abs(found.left).argmax(0), range(4)] > 0)


def _of_singular_values(shape: tuple[int, int], sizes: np.ndarray) -> np.ndarray:
    draw = np.random.default_rng(5)
    left = np.linalg.qr(draw.standard_normal((shape[0], len(sizes))))[0]
    right = np.linalg.qr(draw.standard_normal((shape[1], len(sizes))))[0]
    return (left * sizes @ right.T).astype(np.float32)


K = np.arange(1, 241)
SPECTRA = {
    "noise": None,
    "decay": 1 / K,
    "fast decay": 10.0 ** -np.minimum(K, 30),
    "five stand out": np.where(K <= 5, 1e4, 1.0),
    "cut in a cluster": np.where(K <= 20, 1.0, 0.99),
    "all equal": np.ones(240),
    "of rank five": np.where(K <= 5, 1.0, 0.0),
    "steps": 10.0 ** -(K // 8),
}


@pytest.mark.parametrize(
    ("shape", "rank"), [((240, 410), 8), ((410, 240), 1), ((240, 240), 40)], ids=str
)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_truncate_of_larger_ones(shape: tuple[int, int], spectrum: str, rank: int) -> None:
    given = SPECTRA[spectrum]
    if given is None:
        delta = DRAWS["normal"](shape[0] * shape[1]).reshape(shape)
    else:
        delta = _of_singular_values(shape, given)
    found = truncate(delta, rank)
    sizes = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    norm, best = np.linalg.norm(sizes), np.linalg.norm(sizes[rank:])
    product = found.left.astype(np.float64) @ found.right.astype(np.float64)
    # As promised: 2^-24 of the norm off the best, and the rounding of both factors.
    bound = best + (2.0**-24 + 2.0**-23 * np.sqrt(rank)) * norm
    assert np.linalg.norm(delta.astype(np.float64) - product) <= bound
    # Sums of 98,400 squares in float64; and ((best + e)^2 - best^2) / norm^2, e being 2^-24 norm.
    assert abs(found.squares - norm**2) <= 1e-11 * norm**2
    missing = float((sizes[:rank] ** 2).sum()) - found.kept
    assert -1e-11 * norm**2 <= missing <= (2.0**-48 + 2.0**-23) * norm**2
    # Singular vectors, in order: the columns of each factor are orthogonal, and as long as the
    # other's. Entries are off by 2^-24, two columns' product by twice that of their lengths'.
    for factor in (found.left, found.right.T):
        gram = factor.astype(np.float64).T @ factor
        off = np.abs(gram - np.diag(np.diag(gram)))
        lengths = np.sqrt(np.diag(gram))
        assert np.all(off <= 2.0**-22 * np.outer(lengths, lengths) + 1e-12 * norm)
        assert np.all(np.diff(lengths) <= 2.0**-22 * lengths[0])


HARD = {
    "one far above a slow decay": np.r_[1, np.geomspace(0.01, 0.005, 39), np.full(260, 1e-4)],
    "fourth powers": np.arange(1.0, 301.0) ** -4,
    "three heights": np.r_[1, np.full(8, 0.3), np.geomspace(1e-3, 5e-4, 100), np.full(191, 1e-4)],
}


@pytest.mark.parametrize("spectrum", HARD)
def test_truncate_where_float32_hides_the_small_ones(spectrum: str) -> None:
    delta = _of_singular_values((300, 300), HARD[spectrum])
    found = truncate(delta, 16)
    sizes = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    lost = np.linalg.norm(delta - found.left.astype(np.float64) @ found.right)
    # 2^-24 of the norm, as promised, and the rounding of the factors, most of it of the first one.
    bound = np.linalg.norm(sizes[16:]) + (2.0**-24 + 2.0**-23) * np.linalg.norm(sizes)
    assert lost <= bound


@pytest.mark.parametrize("size", [1e-40, 1e37])
def test_truncate_of_any_size(size: float) -> None:
    delta = (DRAWS["normal"](240 * 300).reshape(240, 300) * 0.1 * size).astype(np.float32)
    found = truncate(delta, 4)
    sizes = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    missing = float((sizes[:4] ** 2).sum()) - found.kept
    assert found.kept > 0
    assert abs(missing) <= 2.0**-22 * found.squares


def test_truncate_of_a_view() -> None:
    delta = DRAWS["normal"](240 * 300).reshape(240, 300)
    found, turned = truncate(delta, 4), truncate(np.ascontiguousarray(delta.T).T, 4)
    assert abs(found.kept - turned.kept) <= 2.0**-22 * found.squares


def test_truncate_when_it_does_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("avops.kernels.transforms.truncate")
    delta = DRAWS["normal"](240 * 300).reshape(240, 300)
    monkeypatch.setattr(module, "_MAX_CYCLES", 2)
    found = truncate(delta, 4)
    sizes = np.linalg.svd(delta.astype(np.float64), compute_uv=False)
    # Decomposed whole, in float64: sums of 72,000 squares.
    assert abs(found.kept - (sizes[:4] ** 2).sum()) <= 1e-11 * found.squares


@pytest.mark.parametrize("shape", [(3, 5), (200, 300)])
def test_truncate_of_nothing(shape: tuple[int, int]) -> None:
    found = truncate(np.zeros(shape, np.float32), 2)
    assert (found.squares, found.kept) == (0, 0)
    assert not found.left.any()
    assert not found.right.any()


def test_thresholds_as_they_are_written() -> None:
    delta = np.array([1, -2, 2, 2, 3], np.float32)
    two = int(np.float32(2).view(np.uint32))
    trim(made := delta.copy(), 10, Threshold(two, 12))
    assert made.tolist() == [0, -2, 0, 0, 3]
