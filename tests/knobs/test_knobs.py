"""Knobs: the bits of `avops merge`, in a live model."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avops.disk import open_checkpoint
from avops.errors import AvopsError, CheckpointError, MismatchError, NonFiniteError, RecipeError
from avops.knobs import Knobs, host
from avops.recipe import Recipe, Sources, parse_terms
from avops.score import load_model
from avops.stream import MergeOptions, merge, plan_merge
from small_project import SmallProject

AVS = {
    "med": "avs/med.safetensors",
    "fin": "aligned/fin.safetensors",
    "leg": "avs/leg.safetensors",
}


def merged(specs: list[str], out: str) -> dict[str, torch.Tensor]:
    """What `avops merge` writes for the recipe."""
    terms = parse_terms([f"{AVS[s.split(':')[0]]}:{s.split(':')[1]}" for s in specs], exist())
    merge(plan_merge(Recipe("base.safetensors", terms), Path(out)))
    return load_file(out)


def exist() -> Sources:
    return Sources({}, lambda path: Path(path).exists())


def same_bits(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    """Whether the weights are ``expected``, byte for byte: -0 is not +0."""
    state = model.state_dict()
    return set(state) == set(expected) and all(
        raw(state[name]) == raw(tensor.to(state[name].dtype)) for name, tensor in expected.items()
    )


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["in place", "widened"])
def model(request: pytest.FixtureRequest, project: SmallProject) -> torch.nn.Module:
    return load_model(project.directory / "hf", dtype=request.param)


def test_the_bits_of_merge(model: torch.nn.Module) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    pointers = [p.data_ptr() for p in model.parameters()]
    knobs.set(med=-1, fin=-1, leg=0.6)
    assert same_bits(model, merged(["med:-1", "fin:-1", "leg:.6"], "a.safetensors"))
    knobs.set({"fin": 0.3})
    assert same_bits(model, merged(["fin:.3"], "b.safetensors"))
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_back_to_the_pristine_base(model: torch.nn.Module, project: SmallProject) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    for lam in (0.1, -0.7, 1.3) * 5:
        knobs.set(med=lam, leg=-lam)
    knobs.set()
    assert same_bits(model, project.base)
    assert knobs.state == {"med": 0, "fin": 0, "leg": 0}


def test_the_signs_of_zeros(model: torch.nn.Module, project: SmallProject) -> None:
    """-0 + λ·Δ with Δ = 0 is -0 or +0 by the sign of λ·Δ; without a term the base's sign stays."""
    from safetensors.torch import save_file

    name = "model.norm.weight"
    base = {**project.base, name: project.base[name].clone()}
    base[name][:4] = torch.tensor([-0.0, 0.0, -0.0, 0.0])
    aligned = {**project.aligned["fin"], name: project.aligned["fin"][name].clone()}
    aligned[name][:4] = torch.tensor([-0.0, -0.0, 0.0, 0.0])
    save_file(base, "base.safetensors")
    save_file(aligned, AVS["fin"])
    knobs = Knobs(model, {"fin": AVS["fin"]}, base="base.safetensors")
    assert same_bits(model, base)
    for number, lam in enumerate((-1, 1, -0.5)):
        knobs.set(fin=lam)
        written = merged([f"fin:{lam}"], f"{number}.safetensors")
        assert same_bits(model, written)
        assert torch.signbit(written[name][:4]).tolist() == [lam < 0, False, lam < 0, False]
    knobs.set()
    assert same_bits(model, base)


def test_the_base_is_loaded_whatever_the_model_holds(
    model: torch.nn.Module, project: SmallProject
) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    Knobs(model, {}, base="base.safetensors")
    assert same_bits(model, project.base)


def test_at_comes_back(model: torch.nn.Module) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    knobs.set(med=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with knobs.at(leg=1):
        assert knobs.state["leg"] == 1
        assert not same_bits(model, before)
    assert same_bits(model, before)
    with pytest.raises(RuntimeError, match="inside"), knobs.at(leg=1):
        raise RuntimeError("inside")
    assert same_bits(model, before)


@pytest.mark.parametrize("late", [False, True], ids=["before the block", "after writing"])
def test_an_interrupt_at_the_border_of_at(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Ctrl-C when all weights are written, and when ``set`` has returned: back all the same."""
    knobs = Knobs(model, AVS, base="base.safetensors")
    knobs.set(fin=0.3)
    place, real = ("_summary", knobs._summary) if late else ("set", knobs.set)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(knobs, place, real)
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(knobs, place, interrupted)
    with pytest.raises(KeyboardInterrupt), knobs.at(med=1):
        raise AssertionError("the block was entered")
    assert knobs.state["fin"] == pytest.approx(0.3)  # float32 of it
    assert same_bits(model, merged(["fin:.3"], "a.safetensors"))


def test_lam_is_rounded_to_float32_once(model: torch.nn.Module) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    knobs.set(med=0.1)
    assert knobs.state["med"] == float(np.float32(0.1))


def test_unknown_dials_and_bad_values(model: torch.nn.Module) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    with pytest.raises(RecipeError, match="no dial 'mde', expected one of med, fin, leg"):
        knobs.set(mde=1)
    with pytest.raises(RecipeError, match="dial med: λ is nan, expected a number that is finite"):
        knobs.set(med=float("nan"))
    assert knobs.state == {"med": 0, "fin": 0, "leg": 0}


def test_a_failure_halfway_brings_back_what_was_there(
    model: torch.nn.Module, project: SmallProject
) -> None:
    from safetensors.torch import save_file

    far = {**project.base, "model.norm.weight": project.base["model.norm.weight"] + 100}
    save_file(far, "far.safetensors")
    knobs = Knobs(model, {**AVS, "far": "far.safetensors"}, base="base.safetensors")
    knobs.set(med=0.5)
    with pytest.raises(
        NonFiniteError,
        match=r"'model.norm.weight' would hold 32 values .* at λ = med:1, far:3e\+38; lower",
    ):
        knobs.set(far=3e38, med=1)
    assert knobs.state == {"med": 0.5, "fin": 0, "leg": 0, "far": 0}
    assert same_bits(model, merged(["med:.5"], "a.safetensors"))


def test_nonfinite_values_can_be_allowed(model: torch.nn.Module, project: SmallProject) -> None:
    from safetensors.torch import save_file

    far = {**project.base, "model.norm.weight": project.base["model.norm.weight"] + 100}
    save_file(far, "far.safetensors")
    knobs = Knobs(model, {"far": "far.safetensors"}, base="base.safetensors", allow_nonfinite=True)
    knobs.set(far=3e38)
    assert knobs.counts.nonfinite == 32
    terms = parse_terms(["far.safetensors:3e38"], exist())
    options = MergeOptions(allow_nonfinite=True)
    merge(plan_merge(Recipe("base.safetensors", terms), Path("a.safetensors"), options))
    assert same_bits(model, load_file("a.safetensors"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_failure_of_any_kind(
    model: torch.nn.Module,
    project: SmallProject,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    lasting: bool,
) -> None:
    """One failure: back to what was there. Another one on the way back: unusable, and said."""
    knobs = Knobs(model, AVS, base="base.safetensors")
    knobs.set(fin=0.3)
    expected = merged(["fin:.3"], "a.safetensors")
    combine, calls = host.combine, [0]

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5 or (lasting and calls[0] > 5):
            raise error("injected")
        return combine(*args, **kwargs)

    monkeypatch.setattr(host, "combine", fail)
    ids = torch.arange(5)[None]
    with pytest.raises(error, match="injected"):
        knobs.set(med=1)
    if not lasting:
        assert knobs.state["fin"] == pytest.approx(0.3)  # float32 of it
        assert same_bits(model, expected)
        return
    for look in (
        lambda: knobs.state,
        lambda: knobs.counts,
        lambda: knobs.effective,
        lambda: knobs.at(med=1).__enter__(),
        lambda: model(ids),
    ):
        with pytest.raises(AvopsError, match=r"weights are mixed.*call set\(\) again"):
            look()
    monkeypatch.setattr(host, "combine", combine)
    knobs.set(fin=0.3)
    assert same_bits(model, expected)
    model(ids)


def test_a_model_that_could_not_be_loaded_at_all(
    model: torch.nn.Module, project: SmallProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    combine = host.combine

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(host, "combine", fail)
    with pytest.raises(RuntimeError, match="injected"):
        Knobs(model, AVS, base="base.safetensors")
    with pytest.raises(AvopsError, match="weights are mixed"):
        model(torch.arange(5)[None])
    monkeypatch.setattr(host, "combine", combine)
    Knobs(model, AVS, base="base.safetensors")
    model(torch.arange(5)[None])


def test_models_that_do_not_fit(model: torch.nn.Module, project: SmallProject) -> None:
    from safetensors.torch import save_file

    state = dict(project.base)
    more = torch.zeros(2)
    for file, value in (("extra", more), ("same", more), ("moved", more + 1)):
        save_file({**state, "more.weight": value}, f"{file}.safetensors")
    # A tensor the model does not hold (an old buffer) may be there, as long as nothing moves it.
    Knobs(model, {"same": "same.safetensors"}, base="extra.safetensors")
    with pytest.raises(
        MismatchError, match="'more.weight' has no parameter of that name .* AV moved changes it"
    ):
        Knobs(model, {"moved": "moved.safetensors"}, base="extra.safetensors")
    missing = {k: v for k, v in state.items() if k != "model.norm.weight"}
    save_file(missing, "missing.safetensors")
    with pytest.raises(MismatchError, match="lacks the model's parameter 'model.norm.weight'"):
        Knobs(model, {}, base="missing.safetensors")
    other = {**state, "model.norm.weight": torch.zeros(33)}
    save_file(other, "other.safetensors")
    with pytest.raises(
        MismatchError, match=r"'model.norm.weight' is .* \[32\] on cpu, but .*\[33\]"
    ):
        Knobs(model, {}, base="other.safetensors")
    with pytest.raises(MismatchError, match="on meta"):
        Knobs(model.to("meta"), {}, base="base.safetensors")


def test_vectors_are_checked(model: torch.nn.Module, project: SmallProject) -> None:
    from safetensors.torch import save_file

    save_file({"model.norm.weight": torch.zeros(32)}, "part.safetensors")
    with pytest.raises(MismatchError, match="AV part .* lacks"):
        Knobs(model, {"part": "part.safetensors"}, base="base.safetensors")
    assert open_checkpoint("base.safetensors").nbytes > 0


def test_files_that_change_are_noticed_before_anything_is_written(model: torch.nn.Module) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    knobs.set(fin=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = Path(AVS["med"])
    raw = path.read_bytes()
    path.write_bytes(raw)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(CheckpointError, match=r"med.safetensors: changed while it was in use"):
        knobs.set(med=1)
    assert knobs.state["med"] == 0
    assert same_bits(model, before)


def test_files_that_are_replaced_are_still_there(model: torch.nn.Module) -> None:
    expected = merged(["leg:1"], "a.safetensors")
    knobs = Knobs(model, AVS, base="base.safetensors")
    for name in ("base.safetensors", *AVS.values()):
        Path("new").write_bytes(b"nothing")
        Path("new").replace(name)
    knobs.set(leg=1)
    assert same_bits(model, expected)


def test_set_waits_for_forwards_that_hold_the_lock(model: torch.nn.Module) -> None:
    knobs = Knobs(model, AVS, base="base.safetensors")
    ids = torch.arange(5)[None]
    with torch.no_grad():
        first = model(ids).logits
        with knobs.lock:
            thread = threading.Thread(target=knobs.set, args=({"fin": 1},))
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
            assert torch.equal(model(ids).logits, first)
        thread.join()
        assert not torch.equal(model(ids).logits, first)
    assert knobs.state["fin"] == 1
