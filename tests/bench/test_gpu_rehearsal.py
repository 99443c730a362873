"""bench/gpu.sh and its parts, on a machine without a GPU: every line of Python but torch.cuda's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from bench.gpu import __main__ as program
from bench.gpu import combine, live, record, rehearsal, small, timing
from interpreters import interpreter_refusal

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
RESIDENCIES = ["device", "pinned", "disk"]

can_rehearse = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None
    or shutil.which("timeout") is None
    or interpreter_refusal() is not None,
    reason=f"a rehearsal needs g++, coreutils' timeout and Triton: {interpreter_refusal()}",
)


def gpu_sh(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {
        **os.environ,
        "OUT": str(out),
        "PYTHON": sys.executable,
        "TORCHDYNAMO_DISABLE": "1",  # inductor on the CPU takes a while
        **environment,
    }
    command = ["bash", str(ROOT / "bench/gpu.sh"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=given)


@can_rehearse
def test_the_whole_script_in_a_rehearsal(tmp_path: Path) -> None:
    done = gpu_sh(tmp_path, "--rehearse", "machine", "small", "combine", "memcheck")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cuda on none: the bits of the reference\n" in done.stdout
    assert "triton on none: the bits of the reference\n" in done.stdout
    assert "== memcheck: left out, no compute-sanitizer" in done.stdout
    assert (tmp_path / "log.txt").read_text().startswith("Linux")
    found = json.loads((tmp_path / "combine.json").read_text())
    assert found["rehearsal"] is True
    for case in ("7B", "small tensors"):
        ours = [f"avops, {name}" for name in ("cuda", "triton")]
        dithered = [f"{name}, dithered" for name in ours]
        assert set(found[case]["ways"]) > {*ours, *dithered, "torch.compile"}
        for name, way in found[case]["ways"].items():
            assert way["median_s"] > 0, name
            assert way["share_of_copy"] > 0
            if name.startswith("avops"):
                assert way["differing_share"] == 0


def test_knobs_of_every_residency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}
    kept: list[list[str]] = []
    with rehearsal.residencies():
        live.measure(
            tmp_path, CPU, (512, 1, 300), found, lambda: kept.append(list(found["residencies"]))
        )
    assert kept == [RESIDENCIES[:n] for n in range(4)]
    for way in found["residencies"].values():
        assert way["set"]["runs"] == 7
        assert way["made_bytes_per_s"] > 0
        assert set(way["effective"]) == set(live.LAMS)
    program.show_live(found)
    assert "Knobs, pinned" in capsys.readouterr().out


def test_wrong_weights_get_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = live.Knobs.set

    def wrong(self: live.Knobs, *lams: Any) -> None:
        put(self, *lams)
        with torch.no_grad():
            next(iter(self._model.parameters())).view(torch.int16)[0, 0] ^= 1

    monkeypatch.setattr(live.Knobs, "set", wrong)
    found: dict[str, Any] = {}
    with rehearsal.residencies():
        live.measure(tmp_path, CPU, (512, 1, 300), found)
    reason = "model.embed_tokens.weight: the device's weights are not the reference's"
    assert found["residencies"] == {name: {"refused": reason} for name in RESIDENCIES}


def test_steps_go_on_after_one_that_fails(tmp_path: Path) -> None:
    done = gpu_sh(tmp_path, "--rehearse", "no-such-step", "machine")
    assert done.returncode == 1
    assert "== no-such-step: no such step; see the top of" in done.stdout
    assert "Linux" in done.stdout
    done = gpu_sh(tmp_path, "--rehearse", "doctor", LIMIT="4")
    assert done.returncode == 1
    assert "== doctor: left out, no time" in done.stdout


@pytest.mark.skipif(shutil.which("timeout") is None, reason="no coreutils' timeout")
def test_what_runs_out_of_time_is_interrupted(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text(
        f"#!{sys.executable}\nimport time\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n    raise SystemExit(3)\n"
    )
    slow.chmod(0o755)
    done = gpu_sh(tmp_path / "out", "--rehearse", "doctor", "machine", LIMIT="7", PYTHON=str(slow))
    assert "interrupted" in done.stdout
    assert "== doctor: failed with exit status 124 (124: out of time)" in done.stdout
    assert done.stdout.index("interrupted") < done.stdout.index("\nLinux")
    assert done.returncode == 1


# What is refused.


def test_wrong_bits_get_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is wrong is left out; the others are measured all the same."""

    class Wrong(combine.Table):
        def run(self, lams: Any) -> None:
            super().run(lams)
            if self.backend == "native":
                self.entries[0].out.view(torch.int16)[0] ^= 1

    def table(tensors: combine.Tensors, backend: str, dithered: bool) -> combine.Table:
        made = tables(tensors, "reference", dithered)
        made.backend = {"cuda": "native", "triton": "reference"}[backend]
        return made

    tables = combine._table
    monkeypatch.setattr(combine, "Table", Wrong)
    monkeypatch.setattr(combine, "_table", table)
    monkeypatch.setattr(combine, "_torch_ways", lambda _tensors: {"torch": lambda: 1 // 0})
    found: dict[str, Any] = {}
    combine.measure([(300,), (7, 5)], CPU, found)
    assert found["ways"]["avops, cuda"] == {"refused": "tensor 0 is not the reference's"}
    assert found["ways"]["avops, triton"]["median_s"] > 0
    reason = "ZeroDivisionError: integer division or modulo by zero"
    assert found["ways"]["torch"] == {"missing": reason}
    assert program.troubles({"7B": found}, "refused") == [
        " 7B ways avops, cuda: tensor 0 is not the reference's",
        " 7B ways avops, cuda, dithered: tensor 0 is not the reference's",
    ]


def test_small_tables_are_held_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    made = small.entries(CPU)
    assert small.differing(made, "reference") is None

    class Wrong(small.Table):
        def run(self, lams: Any) -> None:
            super().run(lams)
            if self.entries[3] is made[3]:
                self.entries[3].out.view(torch.uint8)[0] ^= 1

    monkeypatch.setattr(small, "Table", Wrong)
    found = small.differing(made, "reference")
    assert found == "entry 3 at λ = (0.5, -1.0, 0.25) is not the reference's"


# torch.cuda, as far as it is called: by the signatures of the installed torch.


class Event:
    """As torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    record = synchronize = lambda self: None

    def elapsed_time(self, other: Event) -> float:
        assert isinstance(other, Event)
        return 250.0


def test_the_device_is_asked_as_torch_wants() -> None:
    device = torch.device("cuda", 0)
    names = ("synchronize", "get_device_name", "memory_stats", "empty_cache",
             "reset_peak_memory_stats", "max_memory_allocated")  # fmt: skip
    fakes = {name: mock.create_autospec(getattr(torch.cuda, name)) for name in names}
    fakes["memory_stats"].return_value = {"allocated_bytes.all.allocated": 12}
    fakes["max_memory_allocated"].return_value = 7
    fakes["get_device_name"].return_value = "a GPU"
    with mock.patch.multiple(torch.cuda, Event=Event, **fakes):
        assert timing.timed(lambda: None, device, runs=3).seconds == (0.25,) * 3
        assert len(timing.clocked(lambda: None, device, runs=2).seconds) == 2
        assert timing.allocated(device) == 12
        assert timing.peak(device) == 7
        assert timing.name_of(device) == "a GPU"
        timing.forget(device)
    fakes["empty_cache"].assert_called_once_with()
    assert fakes["synchronize"].call_count == 2 + 3  # before and behind all; and each clocked run


def test_the_file_is_whole_after_each_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    monkeypatch.setattr(
        record.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="580.1, 1980 MHz\n")
    )
    made = record.Record(path, "a GPU")
    made.data["one"] = 1
    made.keep()
    assert json.loads(path.read_text())["one"] == 1
    made.data["two"] = object()  # fails halfway
    with pytest.raises(TypeError):
        made.keep()
    found = json.loads(path.read_text())
    assert (found["one"], found["gpu"], found["driver"]) == (1, "a GPU", "580.1, 1980 MHz")
    record.Record(None, "none").keep()
