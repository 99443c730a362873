"""logprob: every backend against exact log-probs, and what a row may depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avops.kernels import LogitRule, logprob
from avops.kernels.logprob import cases as module
from avops.kernels.logprob import native, triton
from avops.kernels.logprob.cases import RULES, Case, bound, cases, rule_error
from logit_rows import PLACES, bits, exact

Place = tuple[str, str]


@pytest.fixture(params=PLACES, ids=str)
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.param
    return found


def run(
    logits: torch.Tensor, targets: torch.Tensor, place: Place, rule: LogitRule | None = None
) -> torch.Tensor:
    backend, device = place
    made = logprob(logits.to(device), targets.to(device), rule=rule, backend=backend)
    return made.cpu()


def roundings(place: Place, vocabulary: int) -> float:
    if place[0] == "native":
        return native.ROUNDINGS
    return triton.rounding_count(-(-vocabulary // triton.SIZE), triton.SIZE)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_within_the_bound_and_never_above_zero(case: Case, place: Place) -> None:
    logits, targets = case.inputs()
    rule = RULES[case.rule]
    found = run(logits, targets, place, rule).numpy()
    wanted = exact(logits.numpy(), targets.numpy(), rule)
    finite = logits[logits.isfinite()].abs().max().item()
    allowed = bound(
        found, case.vocabulary, roundings(place, case.vocabulary), logits=rule_error(rule, finite)
    )
    assert (np.abs(found - wanted) <= allowed).all()
    assert (found <= 0).all()


@pytest.mark.parametrize("case", list(cases())[::4], ids=str)
def test_the_reference_is_exact_but_for_roundings_of_logits(case: Case) -> None:
    logits, targets = case.inputs()
    rule = RULES[case.rule]
    found = logprob(logits, targets, rule=rule, backend="reference").numpy()
    finite = logits[logits.isfinite()].abs().max().item()
    allowed = np.spacing(np.abs(found)) / 2 + 2 * rule_error(rule, finite) + 1e-14  # f64 sums
    wanted = exact(logits.numpy(), targets.numpy(), rule)
    assert (np.abs(found - wanted) <= allowed).all()


def test_rows_depend_on_nothing_but_themselves(place: Place) -> None:
    logits, targets = Case(37, 3001).inputs()
    whole = bits(run(logits, targets, place))
    for first, last in ((0, 1), (1, 8), (8, 37)):
        part = run(logits[first:last], targets[first:last], place)
        np.testing.assert_array_equal(bits(part), whole[first:last])
    wide = torch.full((37, 4000), float("nan"))
    wide[:, 500:3501] = logits
    np.testing.assert_array_equal(bits(run(wide[:, 500:3501], targets, place)), whole)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(bits(run(logits[order], targets[order], place)), whole[order])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_thread_count_gives_the_same_bits(threads: int) -> None:
    logits, targets = Case(65, 8191).inputs()
    wanted = logprob(logits, targets, threads=1)
    np.testing.assert_array_equal(bits(logprob(logits, targets, threads=threads)), bits(wanted))


def test_one_column_is_certain(place: Place) -> None:
    logits = torch.tensor([[-3.0], [1e30], [-1e-40]])
    assert run(logits, torch.zeros(3, dtype=torch.int64), place).tolist() == [0, 0, 0]


def test_infinities_and_nan(place: Place) -> None:
    inf, nan = float("inf"), float("nan")
    rows = [
        ([0.0, -inf, 0.0], 0),  # masked columns count as nothing
        ([0.0, -inf, 0.0], 1),  # and have no probability
        ([-inf, -inf, -inf], 0),
        ([0.0, nan, 0.0], 0),
        ([nan, nan, nan], 0),
        ([-inf, nan, -inf], 1),
        ([-inf, -inf, nan], 0),
        ([0.0, inf, 0.0], 0),
        ([0.0, inf, 0.0], 1),
        ([3e38, -3e38, -3e38], 0),
        ([3e38, -3e38, -3e38], 1),
    ]
    wanted = [-np.log(2), -inf, nan, nan, nan, nan, nan, nan, nan, 0, -inf]
    for columns in (3, 700, 5000):  # in the first block, and with blocks of −∞ on both sides
        logits = torch.full((len(rows), columns), -inf)
        at = columns // 2 - 1
        logits[:, at : at + 3] = torch.tensor([row for row, _ in rows])
        targets = torch.tensor([at + target for _, target in rows])
        found = run(logits, targets, place)
        np.testing.assert_allclose(found, np.float32(wanted), rtol=2**-23)  # log 2 rounded


def test_a_late_maximum_takes_over(place: Place) -> None:
    """Sums made before a much larger logit count as what they are beside it."""
    logits = torch.zeros(1, 9000)
    logits[0, 8500] = 30.0
    found = run(logits, torch.tensor([0]), place).item()
    wanted = -np.log(8999 + np.exp(30.0))
    assert abs(found - wanted) <= bound(np.float32([found]), 9000, roundings(place, 9000))[0]


@pytest.mark.parametrize("fill", ["normal", "wide"])
def test_rule_steps_are_those_of_models(fill: str, place: Place) -> None:
    """Each step is rounded as torch rounds it; wide log-probs are as coarse as their logits."""
    logits, targets = Case(9, 1300, fill).inputs()
    for rule, plain in (
        (LogitRule(multiply=0.25), logits * 0.25),
        (LogitRule(divide=8.0), logits / 8.0),
        (LogitRule(multiply=3.0, divide=7.0), logits * 3.0 / 7.0),
    ):
        wanted = bits(run(plain, targets, place))
        np.testing.assert_array_equal(bits(run(logits, targets, place, rule)), wanted)


def test_the_output_is_the_callers(place: Place) -> None:
    backend, device = place
    logits, targets = (x.to(device) for x in Case(6, 100).inputs())
    room = torch.full((10,), 7.0, device=device)
    given = logprob(logits, targets, out=room[2:8], backend=backend)
    assert given.data_ptr() == room[2:].data_ptr()
    assert room[[0, 1, 8, 9]].tolist() == [7.0] * 4
    np.testing.assert_array_equal(bits(given), bits(run(logits, targets, place)))
    before = logits.clone()
    logprob(logits, targets, rule=RULES["all"], backend=backend)
    assert torch.equal(before, logits)
    assert logprob(logits[:0], targets[:0], backend=backend).shape == (0,)


def test_what_does_not_fit_is_refused() -> None:
    logits, targets = Case(3, 10).inputs()
    for given, picked, error, message in (
        (logits.double(), targets, TypeError, "logits are torch.float64, expected float32"),
        (logits.t(), targets, ValueError, r"strides \[1, 10\], expected \[rows, vocabulary\]"),
        (logits[:, :0], targets, ValueError, "expected .* contiguous rows"),
        (logits, targets.int(), TypeError, "targets are torch.int32, expected int64"),
        (logits, targets[:2], ValueError, r"targets have shape \[2\] on cpu, expected \[3\]"),
        (logits, targets + 10, ValueError, "targets are from .* expected columns from 0 to 9"),
        (logits, targets - 10, ValueError, "targets are from -.* expected columns from 0 to 9"),
    ):
        with pytest.raises(error, match=message):
            logprob(given, picked)
    with pytest.raises(TypeError, match=r"out is torch.float64, expected float32"):
        logprob(logits, targets, out=torch.empty(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out has shape \[4\] on cpu, expected \[3\]"):
        logprob(logits, targets, out=torch.empty(4))
    with pytest.raises(ValueError, match="out overlaps an input; give it memory of its own"):
        logprob(logits, targets, out=logits.view(-1)[27:])
    with pytest.raises(ValueError, match="threads is 0"):
        logprob(logits, targets, threads=0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"multiply": 0.1}, "multiply is 0.1, expected a finite number, not 0, that f32 holds"),
        ({"multiply": 0.0}, "multiply is 0.0, expected a finite number, not 0"),
        ({"divide": float("inf")}, "divide is inf, expected a finite number"),
        ({"softcap": -30.0}, "softcap is -30.0, expected a positive number"),
        ({"softcap": 0.0}, "softcap is 0.0, expected a positive number"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogitRule(**rule)


def test_the_block_sizes_are_twins() -> None:
    source = (Path(__file__).parents[2] / "csrc/logprob.cpp").read_text(encoding="utf-8")
    assert f"kColumns = {module.COLUMNS}, kLanes = {module.LANES};" in source
    # Sums of the terms of one lane in f32, and 2 for an exponential within 1 ulp.
    assert module.COLUMNS // module.LANES - 1 + 2 == native.ROUNDINGS
