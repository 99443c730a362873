"""Build of the native extension avops._native and of the CUDA kernels; else see pyproject.toml.

The extension is C++17 in the limited API of CPython 3.10: one abi3 wheel serves 3.10 and later.
It needs a C++ compiler (CXX and CXXFLAGS are honoured) and nothing else: no torch, no CUDA.
With nvcc ($CUDA_HOME/bin, or on PATH) CUDA kernels are built; without, NVRTC does it at run time.
What fails is left out, said here, and shown by `avops doctor`: avops installs all the same.
AVOPS_NO_NATIVE=1 leaves the extension out on purpose, AVOPS_NO_CUDA=1 the built kernels.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
NO_NATIVE, NO_CUDA = (os.environ.get(f"AVOPS_NO_{x}", "").strip("0") for x in ("NATIVE", "CUDA"))
# No FMA contraction and no fast-math, whatever CXXFLAGS say: results are exact to the bit.
EXACT = ("-O3", "-g0", "-ffp-contract=off", "-fno-fast-math", "-fvisibility=hidden")
NATIVE = Extension(
    "avops._native",
    sources=sorted(f"csrc/{path.name}" for path in HERE.glob("csrc/*.cpp")),
    depends=sorted(f"csrc/{path.name}" for path in HERE.glob("csrc/*.h")),
    language="c++",
    py_limited_api=True,
    extra_compile_args=["-std=c++17", "-pthread", *EXACT],
    extra_link_args=["-pthread"],
)
# Machine code for A100, H100, B200 and RTX 50, and PTX for what comes later.
CODES = ("sm_80", "sm_90", "sm_100", "sm_120", "compute_80")


def say(*lines: str) -> None:
    """Tell what was decided. pip shows it with -v."""
    print("\n".join(f"avops: {line}" for line in lines), file=sys.stderr, flush=True)


class Build(build):
    """Builds in a fresh directory: nothing that an earlier build left in build/ gets in."""

    def finalize_options(self) -> None:
        """Choose the directory, unless the command line did."""
        if self.build_base == "build":
            self.build_base = tempfile.mkdtemp(prefix="avops-build-")
            atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)
        super().finalize_options()


class BuildExt(build_ext):
    """Builds the extension, or says loudly why there is none."""

    def run(self) -> None:
        """Build; before building into the checkout, remove what was built there before."""
        if self.inplace or self.editable_mode:
            for stale in (HERE / "avops").glob("_native*.so"):
                stale.unlink()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build; a failure leaves a pure Python avops."""
        try:
            super().build_extension(ext)
        except Exception as error:
            say("=" * 78, f"NO NATIVE EXTENSION: {type(error).__name__}: {error}")
            say("avops installs without it and computes with numpy, more slowly, to the same bits.")
            say("Install g++ (or clang++) and install avops again to have it.", "=" * 78)
            self.extensions = []
            self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True
        else:
            say("native extension built")


class BuildPy(build_py):
    """Adds combine.cu to the package, what nvcc makes of it, and the digest of what that was."""

    def run(self) -> None:
        """Build. A checkout has the source already; what was built there before is removed."""
        super().run()
        source, package = HERE / "csrc/combine.cu", Path(self.build_lib) / "avops"
        if self.editable_mode:
            package = HERE / "avops"
            for stale in package.glob("_combine.*"):
                stale.unlink()
        else:
            shutil.copyfile(source, package / "_combine.cu")
        nvcc = shutil.which(f"{os.environ.get('CUDA_HOME')}/bin/nvcc") or shutil.which("nvcc")
        if NO_CUDA or nvcc is None:
            return say(f"no CUDA kernels built: {'AVOPS_NO_CUDA is set' if NO_CUDA else 'no nvcc'}")
        fatbin = package / "_combine.fatbin"
        command = [nvcc, "-fatbin", "-std=c++17", "-O3", "--fmad=false", "--threads=0", source]
        command += [f"-gencode=arch={x.replace('sm', 'compute')},code={x}" for x in CODES]
        done = subprocess.run([*command, "-o", fatbin], check=False, capture_output=True, text=True)
        if done.returncode:
            fatbin.unlink(missing_ok=True)
            return say(f"NO CUDA KERNELS: {nvcc} failed", *done.stderr.splitlines()[:9])
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        Path(f"{fatbin}.sha256").write_text(digest, encoding="ascii")
        return say(f"CUDA kernels built by {nvcc}: {', '.join(CODES)}")


if NO_NATIVE:
    say("AVOPS_NO_NATIVE is set: no native extension; avops computes with numpy")
setup(
    ext_modules=[] if NO_NATIVE else [NATIVE],
    cmdclass={"build": Build, "build_ext": BuildExt, "build_py": BuildPy},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
