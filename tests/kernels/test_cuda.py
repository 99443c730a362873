"""The CUDA backend around its kernels: tables that are twins, what is missing and said, NVRTC."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from avops.dtypes import BF16, COMPUTABLE, F32
from avops.errors import BackendError
from avops.kernels import Factors, dither_key, registry
from avops.kernels.combine.cases import Case
from avops.kernels.many import Entry, Table, Values, cuda, cuda_code, cuda_plan, layout
from avops.kernels.many.cuda_plan import KERNELS
from bench import cuda_report
from tables import Arena, Stored, Wanted, compare, hold

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "csrc/combine.cu").read_text(encoding="utf-8")
KEY = dither_key(1, "a weight")
# Of 0 to 4 terms: 16 bytes of the base and of each, for as many vectors as a round has.
ROUNDS = sorted(16 * (1 + n) * vectors for n, vectors in enumerate((4, 3, 2, 2, 1)))

has_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


def enumerators(first: str) -> dict[str, int]:
    """The values of the enum of the source that begins with ``first``."""
    found = re.search(rf"enum {{ ({first}\b[^}}]*) }}", SOURCE)
    assert found is not None
    values: dict[str, int] = {}
    for item in found[1].split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        values[name] = int(value) if value else max(values.values(), default=-1) + 1
    return values


def test_the_kernels_read_the_rows_that_the_plan_writes() -> None:
    assert enumerators("kBase") == {
        "kBase": layout.BASE,
        "kOut": layout.OUT,
        "kCount": layout.COUNT,
        "kKey": layout.KEY,
        "kMode": layout.MODE,
        "kHead": cuda_plan.HEAD,
        "kWidth": cuda_plan.WIDTH,
        "kEntryColumns": layout.ENTRY_COLUMNS,
    }
    assert enumerators("kAddress") == {
        "kAddress": layout.ADDRESS,
        "kKind": layout.KIND,
        "kRight": layout.RIGHT,
        "kRank": layout.RANK,
        "kColumns": layout.COLUMNS,
        "kScale": layout.SCALE,
        "kPartColumns": layout.PART_COLUMNS,
    }
    assert enumerators("kF32") == {
        **{f"k{dtype}": dtype.code for dtype in COMPUTABLE},
        "kAligned": layout.ALIGNED,
        "kLowRank": layout.LOW_RANK,
        "kDither": layout.DITHER,
    }


def test_the_kernels_are_those_of_the_plan() -> None:
    found = re.findall(r"^AVOPS_KERNEL\((\d+), (\w+), (\d+), ", SOURCE, re.MULTILINE)
    assert [(int(n), name, int(threads)) for n, name, threads in found] == [
        (number, name, threads) for number, (name, threads) in enumerate(KERNELS.items())
    ]
    tile = re.search(r"kRows = (\d+), kAcross = (\d+), kDown = (\d+);", SOURCE)
    assert tile is not None
    rows, across, down = (int(number) for number in tile.groups())
    assert (rows * down, 32 * across) == (cuda_plan.TILE_ROWS, cuda_plan.TILE_COLUMNS)
    assert 32 * down == KERNELS["tiles"]


def test_the_source_includes_nothing() -> None:
    assert "#include" not in SOURCE


def test_masks_name_kernels_by_their_numbers() -> None:
    assert cuda_code.mask(["bf16_bf16_4"]) == "0x1"
    assert cuda_code.mask(["tiles", "bf16_bf16_dither_4"]) == "0x1004"


# What is missing, and said.


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    cuda.available.cache_clear()
    yield
    cuda.available.cache_clear()
    registry._forced.cache_clear()
    registry._automatic.cache_clear()


def test_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_capabilities", list)
    assert cuda.available() == (
        False,
        "there is no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES",
    )


def test_with_a_device_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_capabilities", lambda: [(7, 0), (7, 5)])
    assert cuda.available() == (
        False,
        "the CUDA device has compute capability 7.5, expected 8.0 or higher",
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    arena = Arena([Wanted(Case(1, F32, F32, ()).inputs()[0], F32, (), ())], "cpu")
    with pytest.raises(BackendError, match=r"cpu has compute capability 7\.0, expected 8\.0"):
        cuda.run(arena.entries, torch.device("cpu"))


def blocked(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these modules were not installed."""
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name in names:
            raise ImportError(f"No module named {name!r}")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_capabilities", lambda: [(9, 0)])
    blocked(monkeypatch, "cuda.core", "cuda.core.experimental")
    cuda_code.core.cache_clear()
    available, reason = cuda.available()
    assert not available
    assert reason == (
        "cuda-core does not load (No module named 'cuda.core'); install it: "
        "pip install 'avops[cuda]'"
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed avops with its source, and neither fatbin nor a cuda-core that is real."""
    (tmp_path / "_combine.cu").write_text("a source")
    monkeypatch.setattr(cuda_code, "_SOURCES", (tmp_path / "_combine.cu",))
    monkeypatch.setattr(cuda_code, "_FATBIN", tmp_path / "_combine.fatbin")
    monkeypatch.setattr(cuda_code, "_DIGEST", tmp_path / "_combine.fatbin.sha256")
    monkeypatch.setattr(cuda_code, "core", lambda: None)
    monkeypatch.setattr(cuda, "_capabilities", lambda: [(9, 0)])
    return tmp_path


def built(package: Path, source: str) -> None:
    (package / "_combine.fatbin").write_bytes(b"code")
    digest = hashlib.sha256(source.encode()).hexdigest()
    (package / "_combine.fatbin.sha256").write_text(digest)


def test_with_the_built_kernels(package: Path) -> None:
    built(package, "a source")
    assert cuda.available() == (True, "CUDA C++, built with avops")


def test_kernels_built_from_another_source_are_not_used(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(package, "an older source")
    monkeypatch.setattr(cuda_code, "_check_nvrtc", lambda: None)
    available, reason = cuda.available()
    assert available
    assert reason == (
        "CUDA C++, compiled when first used: _combine.fatbin was built from another source than "
        "csrc/combine.cu"
    )


def test_with_neither_built_kernels_nor_nvrtc(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked(monkeypatch, "cuda.bindings.nvrtc")
    available, reason = cuda.available()
    assert not available
    assert reason == (
        "avops was built without nvcc (or with AVOPS_NO_CUDA=1), and NVRTC does not load (No "
        "module named 'cuda.bindings.nvrtc'); install CUDA's nvcc (12.8 or later) and build avops "
        "again, or: pip install 'avops[cuda]'"
    )


def test_a_forced_backend_that_cannot_serve_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_capabilities", list)
    base, _ = Case(3, F32, F32, ()).inputs()
    with pytest.raises(BackendError, match="forces cuda for combine_many, .* no CUDA device"):
        Table(Arena([Wanted(base, F32, (), ())], "cpu").entries, backend="cuda")


# The code, without a device.


@pytest.fixture(scope="module")
def nvrtc() -> None:
    """Skips where cuda-core or NVRTC is not installed."""
    cuda_code.core.cache_clear()
    try:
        cuda_code.core()
        cuda_code._check_nvrtc()
    except BackendError as error:
        pytest.skip(f"NVRTC: {error}")


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_nvrtc_compiles_the_kernels_that_are_asked_for(arch: str) -> None:
    cuda_code._compiled.cache_clear()
    code = cuda_code._compiled(("mixed", "tiles"), arch)
    assert code.code_type == "cubin"
    alone = cuda_code._compiled(("elements",), arch)
    # Kernels that are not asked for are there, empty.
    assert 0 < len(alone.code) < len(code.code)


@pytest.mark.usefixtures("nvrtc")
def test_nvrtc_makes_what_nvcc_makes(tmp_path: Path) -> None:
    """Nothing contracted, and loads together, as the report has it of nvcc's code."""
    cuobjdump = cuda_report.disassembler()
    if cuobjdump is None:
        pytest.skip("no cuobjdump")
    cubin = tmp_path / "code.cubin"
    cubin.write_bytes(cuda_code._compiled(("bf16_bf16_4",), "sm_90").code)
    usage = {"bf16_bf16_4": cuda_report.Usage(0, 0, 0)}
    cuda_report.disassemble(cubin, cuobjdump, usage)
    assert (usage["bf16_bf16_4"].fused, usage["bf16_bf16_4"].ahead) == (0, ROUNDS)


def test_nvrtc_is_told_to_contract_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is not installed."""
    given: dict[str, object] = {}

    class Program:
        def __init__(self, code: str, language: str, *, options: None) -> None:
            given.update(code=code, language=language)

        def compile(self, kind: str) -> str:
            return kind

    fake = SimpleNamespace(Program=Program, ProgramOptions=lambda **options: given.update(options))
    monkeypatch.setattr(cuda_code, "core", lambda: fake)
    monkeypatch.setattr(cuda_code, "_check_nvrtc", lambda: None)
    cuda_code._compiled.cache_clear()
    assert cuda_code._compiled(("tiles",), "sm_90") == "cubin"
    cuda_code._compiled.cache_clear()
    assert (given["fma"], given["arch"], given["std"]) == (False, "sm_90", "c++17")
    assert (given["code"], given["language"]) == (SOURCE, "c++")
    assert given["define_macro"] == ("AVOPS_KERNELS", cuda_code.mask(["tiles"]))


@pytest.mark.usefixtures("nvrtc")
def test_what_nvrtc_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_code, "source", lambda: "no C++")
    with pytest.raises(BackendError, match="NVRTC does not compile combine.cu for sm_90: "):
        cuda_code._compiled(("f32_f32_8",), "sm_90")


@has_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_kernels_neither_spill_nor_contract(tmp_path: Path, arch: str) -> None:
    """Some of them, for two architectures; bench/cuda_report.py has all."""
    some = ("bf16_bf16_4", "bf16_bf16_dither_4", "mixed", "tiles")
    cubin, usage = cuda_report.compile_for(arch, tmp_path, some)
    assert set(usage) == set(some)
    for name, one in usage.items():
        assert (one.stack, one.spills) == (0, 0), f"{name} spills"
        # 512 threads on a multiprocessor, at 64 bytes under way each, cover its latency.
        assert cuda_report.resident(one.registers, KERNELS[name]) >= 512, name
    cuobjdump = cuda_report.disassembler()
    if cuobjdump is not None:
        cuda_report.disassemble(cubin, cuobjdump, usage)
        assert all(one.fused == 0 for one in usage.values())
        assert (usage["bf16_bf16_4"].loads or "").startswith("16: ")
        for name in some[:2]:
            assert usage[name].ahead == ROUNDS, f"{name}: loads wait behind arithmetic"


@has_nvcc
def test_ptx_neither_contracts_nor_flushes(tmp_path: Path) -> None:
    ptx = tmp_path / "combine.ptx"
    command = ["nvcc", "-ptx", "-arch=compute_80", "-std=c++17", "-O3", "--fmad=false"]
    mask = f"-DAVOPS_KERNELS={cuda_code.mask(['bf16_bf16_4', 'tiles'])}"
    subprocess.run([*command, mask, str(ROOT / "csrc/combine.cu"), "-o", str(ptx)], check=True)
    text = ptx.read_text()
    assert "fma." not in text
    assert not re.search(r"(add|sub|mul)\S*\.ftz\S*\.f32", text)
    assert re.search(r"(add|mul)\.rn\.f32", text)
    assert "ld.global.cs.v4.u32" in text


def test_the_report_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    text = """ptxas info    : Compiling entry function 'avops_mixed' for 'sm_90'
ptxas info    : Function properties for avops_mixed
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 122 registers, used 1 barriers, 16 bytes smem
"""
    assert cuda_report.parse(text) == {"mixed": cuda_report.Usage(122, 8, 28)}
    assert [cuda_report.resident(n, 256) for n in (16, 64, 65, 80, 128)] == [
        2048,
        1024,
        768,
        768,
        512,
    ]
    sass = "LDG.E.EF.128 R0\nLDG.E.EF.128.X R0\nLDG.E.EF R1\nLDG.E.EF.U16 R1\nLDG.E.64 R2\n"
    assert cuda_report.widths(sass, "LDG") == "16: 2, 4: 1, 2: 1"
    code = """/*0010*/ LDG.E.EF.128 R8, desc[UR4][R2.64] ;
        /*0020*/ @!P0 LDG.E.EF.64 R12, desc[UR4][R2.64+0x10] ;
        /*0030*/ FADD R3, R1, R2 ;
        /*0040*/ LDG.E.EF.U16 R5, desc[UR4][R2.64] ;
        /*0050*/ FADD R4, -R13, R2 ;
        /*0060*/ LDG.E.EF.128 R16, desc[UR4][R2.64] ;
        /*0070*/ STG.E.EF.128 desc[UR4][R2.64], R18 ;"""
    assert cuda_report.together(code) == [24, 16]
    cuda_report.print_markdown(("a", "b"), [["1", "2"]])
    assert capsys.readouterr().out == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        ([40_000] * 3, cuda_plan.SMALL),
        ([16_392] * (cuda_plan.MANY - 1), cuda_plan.SMALL),
        ([16_392] * cuda_plan.MANY, cuda_plan.LARGE),  # many small tensors, a block each
        ([cuda_plan.LARGE * (cuda_plan.MANY - 1) + 1], cuda_plan.LARGE),
    ],
    ids=["few", "not quite many", "many", "one large"],
)
def test_chunks_are_large_where_that_makes_many(counts: list[int], size: int) -> None:
    rows = torch.empty(3, sum(counts), dtype=torch.bfloat16)  # never touched
    entries = [
        Entry(base, out, (Values(one, True),))
        for base, out, one in zip(*(row.split(counts) for row in rows), strict=True)
    ]
    (launch,) = cuda_plan.plan(entries).launches
    assert launch.size == size
    assert len(launch.chunks) == sum(-(-count // size) for count in counts)


# On a device; what holds for every backend is in test_many.py and test_many_gpu.py.


def several() -> list[Wanted]:
    """An entry for most of the kernels."""
    made = []
    for dtype, other, key in ((BF16, BF16, None), (BF16, BF16, KEY), (BF16, F32, None)):
        base, terms = Case(70_001, dtype, dtype, ((other, True), (other, False))).inputs()
        parts = tuple(Stored(term.values, term.aligned) for term in terms)
        made.append(Wanted(base, dtype, parts, (0.5, -1.0), key))
    rng = np.random.default_rng(0)
    left, right = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((70, 8), (8, 301)))
    base, _ = Case(70 * 301, BF16, BF16, ()).inputs()
    made.append(Wanted(base, BF16, (Factors(left, right, 0.5), Stored(base, True)), (1.0, 2.0)))
    return made


@pytest.fixture
def device() -> str:
    available, reason = cuda.available()
    if not available:
        pytest.skip(reason)
    return "cuda"


@pytest.mark.gpu
def test_built_and_compiled_code_do_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(several(), "cuda", device)
    monkeypatch.setattr(cuda_code, "_stale", lambda: "for this test")
    cuda_code._check_nvrtc()
    hold(several(), "cuda", device)


@pytest.mark.gpu
def test_the_build_made_a_fatbin(device: str) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH")
    assert device
    assert cuda_code._stale() is None


@pytest.mark.gpu
def test_graphs_replay_with_the_coefficients_that_were_loaded(device: str) -> None:
    arena = Arena(several(), device)
    table = Table(arena.entries, backend="cuda")
    state = table._state
    table.run(arena.lams())  # code is loaded when it is first launched, which no capture allows
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        state.launch()
    for factor in (1.0, -0.25, 0.0):
        lams = arena.lams() * np.float32(factor)
        state.load(lams)
        graph.replay()
        torch.cuda.synchronize()
        compare(arena, table, lams)


@pytest.mark.gpu
def test_a_run_from_another_thread(device: str) -> None:
    arena = Arena(several(), device)
    table = Table(arena.entries, backend="cuda")
    thread = threading.Thread(target=table.run, args=(arena.lams(),))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    compare(arena, table, arena.lams())
