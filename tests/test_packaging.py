"""Installing avops: from a checkout, editable, through sdist and wheel; with and without compilers.

Every install goes into a fresh environment that sees numpy, rich and setuptools and nothing else:
so no torch at build time, none for the kernels, and no network. nvcc takes a minute: a script
stands for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = ("setuptools",)
RUN = ("numpy", "rich", "Pygments", "markdown-it-py", "mdurl", "tomli")

# Each test installs avops, on a machine that may be busy.
pytestmark = pytest.mark.timeout(900)

has_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)

# Computes 1 + 0.5 * (3 - 1) in bf16 on every backend there is, and prints their state.
COMPUTE = """
import numpy as np
from avops.dtypes import BF16
from avops.kernels import Operand, Term, combine, registry
one, three = (Operand(np.array([bits], np.uint16), BF16) for bits in (0x3F80, 0x4040))
for row in registry.report():
    print(row.operation, row.backend, row.available, row.chosen, row.reason, sep="|")
    if row.operation == "combine" and row.available:
        out = Operand(np.zeros(1, np.uint16), BF16)
        combine(one, [Term(three, 0.5, True)], out, backend=row.backend)
        assert out.array[0] == 0x4000, out
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a checkout holds, without anything built."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in (
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    ):
        shutil.copy(ROOT / name, copy)
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "_combine.*")
    for name in ("avops", "csrc", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=built)
    return copy


class Environment:
    """A fresh virtual environment, with some distributions of ours lent to it."""

    def __init__(self, directory: Path) -> None:
        venv.create(directory, with_pip=False, symlinks=True)
        self.bin = directory / "bin"
        self.python = self.bin / "python"
        (self.site,) = directory.glob("lib/python*/site-packages")
        self.away = directory.parent / "away"  # a current directory without an avops in it
        self.away.mkdir(exist_ok=True)
        lent = directory.parent / "lent"
        lent.mkdir()
        for name in (*BUILD, *RUN):
            self._lend(name, lent)
        (self.site / "lent.pth").write_text(f"{lent}\n")

    @staticmethod
    def _lend(name: str, lent: Path) -> None:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return  # tomli, from Python 3.11 on
        for top in {file.parts[0] for file in distribution.files or ()}:
            if top != ".." and not top.endswith(".pth") and not (lent / top).exists():
                (lent / top).symlink_to(distribution.locate_file(top))

    def pip(self, *args: str, cwd: Path, **env: str) -> str:
        """Run pip in this environment; returns what it says."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *args]
        return self._run(command, cwd, env)

    def install(self, *args: str, cwd: Path, **env: str) -> str:
        options = ("-v", "--no-build-isolation", "--no-deps", "--no-index")
        return self.pip("install", *options, *args, cwd=cwd, **env)

    def run(self, code: str, **env: str) -> str:
        """Run Python code away from the checkout."""
        return self._run([str(self.python), "-W", "error", "-c", code], self.away, env)

    def avops(self, *args: str) -> str:
        return self._run([str(self.bin / "avops"), *args], self.away, {})

    def states(self) -> dict[str, tuple[bool, bool, str]]:
        """Backends of combine: (available, chosen, reason). Computes with each on the way."""
        rows = [line.split("|") for line in self.run(COMPUTE).splitlines()]
        return {r[1]: (r[2] == "True", r[3] == "True", r[4]) for r in rows if r[0] == "combine"}

    @staticmethod
    def _run(command: list[str], cwd: Path, env: dict[str, str]) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**clean(), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "200", **env},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


def clean() -> dict[str, str]:
    """The variables of this process, without what steers avops' build, and without any nvcc."""
    ours = ("AVOPS_", "PYTHON", "CUDA_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    paths = [p for p in kept["PATH"].split(os.pathsep) if not (Path(p) / "nvcc").exists()]
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is not None:
        paths.append(str(Path(compiler).parent))
    return {**kept, "PATH": os.pathsep.join(paths)}


def fake_nvcc(directory: Path, status: int) -> dict[str, str]:
    """Variables for an nvcc that writes its arguments into its output, and ends with ``status``."""
    (directory / "bin").mkdir(parents=True)
    program = directory / "bin" / "nvcc"
    program.write_text(
        "#!/bin/sh\n"
        'all="$*"\n'
        'while [ "$1" != -o ]; do shift; done\n'
        'echo "$all" > "$2"\n'
        f"echo 'line 1: no such thing' >&2\nexit {status}\n"
    )
    program.chmod(0o755)
    return {"CUDA_HOME": str(directory)}


def without_compiler(directory: Path) -> dict[str, str]:
    """Variables for a machine without any compiler: next to nothing on PATH."""
    directory.mkdir()
    for name in ("sh", "uname"):
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return {"PATH": str(directory), "CC": "", "CXX": ""}


@has_compiler
@pytest.mark.parametrize("nvcc", [True, False], ids=["nvcc", "no nvcc"])
def test_pip_install(nvcc: bool, source: Path, environment: Environment, tmp_path: Path) -> None:
    env = fake_nvcc(tmp_path / "cuda", 0) if nvcc else {}
    # What an earlier build or an editable install may have left must not get in.
    stale = source / "build" / f"lib.linux-x86_64-cpython-3{sys.version_info.minor}" / "avops"
    for directory in (stale, source / "build" / "lib" / "avops"):
        directory.mkdir(parents=True)
        (directory / "stale.py").write_text("")
        (directory / "_native.abi3.so").write_bytes(b"stale")
    for name in ("_native.abi3.so", "_combine.fatbin", "_combine.fatbin.sha256"):
        (source / "avops" / name).write_bytes(b"stale")

    said = environment.install(".", cwd=source, **env)

    assert "avops: native extension built" in said
    kernels = f"CUDA kernels built by {tmp_path}/cuda/bin/nvcc: sm_80, sm_90, sm_100, sm_120"
    assert f"avops: {kernels if nvcc else 'no CUDA kernels built: no nvcc'}" in said
    installed = environment.site / "avops"
    assert {"_native.abi3.so", "py.typed"} <= {p.name for p in installed.iterdir()}
    check_kernels(installed, built=nvcc)
    assert not (installed / "stale.py").exists()
    assert not (environment.site / "csrc").exists()
    assert not (environment.site / "tests").exists()
    # The checkout's own extension, of an editable install, is left alone.
    assert (source / "avops" / "_native.abi3.so").read_bytes() == b"stale"
    states = environment.states()
    assert states["native"][:2] == (True, True)
    assert states["reference"][:2] == (True, False)
    assert "avops" in environment.avops("--version")


def check_kernels(installed: Path, *, built: bool) -> None:
    """The source is there for NVRTC; the fatbin, if there is one, was made from it by nvcc."""
    text = (ROOT / "csrc/combine.cu").read_bytes()
    assert (installed / "_combine.cu").read_bytes() == text
    names = {path.name for path in installed.glob("_combine.*")} - {"_combine.cu"}
    if not built:
        assert not names
        return
    assert names == {"_combine.fatbin", "_combine.fatbin.sha256"}
    arguments = (installed / "_combine.fatbin").read_text().split()
    assert {"-fatbin", "--fmad=false", "-gencode=arch=compute_90,code=sm_90"} <= set(arguments)
    assert "-gencode=arch=compute_80,code=compute_80" in arguments
    digest = (installed / "_combine.fatbin.sha256").read_text()
    assert digest == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("how", ["failing nvcc", "AVOPS_NO_CUDA"])
def test_without_built_kernels(
    how: str, source: Path, environment: Environment, tmp_path: Path
) -> None:
    env = fake_nvcc(tmp_path / "cuda", 1 if how == "failing nvcc" else 0)
    if how == "AVOPS_NO_CUDA":
        env["AVOPS_NO_CUDA"] = "1"
    said = environment.install(".", cwd=source, AVOPS_NO_NATIVE="1", **env)
    if how == "failing nvcc":
        assert f"avops: NO CUDA KERNELS: {tmp_path}/cuda/bin/nvcc failed" in said
        assert "avops: line 1: no such thing" in said
    else:
        assert "avops: no CUDA kernels built: AVOPS_NO_CUDA is set" in said
    check_kernels(environment.site / "avops", built=False)


@has_compiler
def test_editable_install(source: Path, environment: Environment, tmp_path: Path) -> None:
    (source / "avops" / "_combine.fatbin").write_bytes(b"stale")
    environment.install("-e", ".", cwd=source, **fake_nvcc(tmp_path / "cuda", 0))
    assert "-fatbin" in (source / "avops" / "_combine.fatbin").read_text()
    # The source is the checkout's own, so that it is never an older one.
    assert not (source / "avops" / "_combine.cu").exists()
    (built,) = (source / "avops").glob("_native*")
    assert built.name == "_native.abi3.so"
    assert environment.states()["native"][:2] == (True, True)
    where = environment.run("import avops; print(avops.__file__)").strip()
    assert Path(where).samefile(source / "avops" / "__init__.py")

    # Installed again without compilers: what they made goes, and the reason comes.
    environment.install("-e", ".", cwd=source, **without_compiler(tmp_path / "bare"))
    assert not list((source / "avops").glob("_native*"))
    assert not list((source / "avops").glob("_combine*"))
    assert environment.states()["native"][0] is False


@has_compiler
def test_sdist_then_wheel_then_install(
    source: Path, environment: Environment, tmp_path: Path
) -> None:
    for name in ("_native.abi3.so", "_combine.fatbin"):
        (source / "avops" / name).write_bytes(b"stale")
    dist = tmp_path / "dist"
    # Without --wheel or --sdist, build makes the sdist, and the wheel from the unpacked sdist.
    options = ["--no-isolation", "--skip-dependency-check", "--outdir", str(dist)]
    command = [sys.executable, "-m", "build", *options, str(source)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=600, env=clean()
    )
    assert done.returncode == 0, done.stdout + done.stderr

    (sdist,) = dist.glob("avops-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "setup.py", "pyproject.toml", "avops/py.typed"}
    needed |= {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
    assert needed <= names
    assert not [name for name in names if name.startswith("tests/") or name.endswith(".so")]
    assert not [name for name in names if "_combine." in name]

    (wheel,) = dist.glob("avops-*.whl")
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("cp310", "abi3")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = {p.relative_to(source).as_posix() for p in (source / "avops").rglob("*.py")}
    assert packages | {"avops/_native.abi3.so", "avops/py.typed"} <= names
    assert {name for name in names if "_combine." in name} == {"avops/_combine.cu"}
    assert any(name.endswith("licenses/LICENSE") for name in names)

    environment.pip("install", "--no-deps", "--no-index", str(wheel), cwd=tmp_path)
    assert environment.states()["native"][:2] == (True, True)
    other_pythons_load_it(environment.site)


def other_pythons_load_it(site: Path) -> None:
    """abi3 means that every CPython from 3.10 on takes the same file; tries those on PATH."""
    code = "import avops._native as n; assert n.ABI >= 1; print(n.VARIANT)"
    for minor in range(10, 16):
        python = shutil.which(f"python3.{minor}")
        probe = [python or "false", "-c", "import sys; print(sys.version_info[1])"]
        found = subprocess.run(probe, check=False, capture_output=True, text=True)
        if found.stdout.strip() == str(minor):
            environ = {**os.environ, "PYTHONPATH": str(site)}
            subprocess.run([str(python), "-c", code], check=True, env=environ, cwd=site)


@pytest.mark.parametrize("how", ["no compiler", "failing compiler", "AVOPS_NO_NATIVE"])
def test_without_the_extension(
    how: str, source: Path, environment: Environment, tmp_path: Path
) -> None:
    env = {
        "no compiler": without_compiler(tmp_path / "bare"),
        "failing compiler": {"CC": "false", "CXX": "false"},
        "AVOPS_NO_NATIVE": {"AVOPS_NO_NATIVE": "1"},
    }[how]
    said = environment.install(".", cwd=source, **env)

    expected = "AVOPS_NO_NATIVE is set" if how == "AVOPS_NO_NATIVE" else "NO NATIVE EXTENSION"
    assert f"avops: {expected}" in said
    assert "avops-0" in said
    assert "py3-none-any.whl" in said  # no wheel that claims to be a built one
    assert not list((environment.site / "avops").glob("_native*"))
    states = environment.states()
    assert states["native"][:2] == (False, False)
    assert (
        "built without a C++ compiler (or with AVOPS_NO_NATIVE=1); install g++"
        in states["native"][2]
    )
    assert states["reference"][:2] == (True, True)
    assert "built without a C++ compiler" in environment.avops("doctor", "--json")


def test_importing_avops_is_light() -> None:
    code = (
        "import sys, avops; avops.__version__; dir(avops); "
        "print(sorted({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
