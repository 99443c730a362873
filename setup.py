"""Build of the native extension avops._native; everything else is in pyproject.toml.

The extension is C++17 in the limited API of CPython 3.10: one abi3 wheel serves 3.10 and later.
It needs a C++ compiler (CXX and CXXFLAGS are honoured) and nothing else: no torch, no CUDA.
Without a compiler avops installs all the same, and computes with numpy; `avops doctor` says so.
AVOPS_NO_NATIVE=1 leaves the extension out on purpose.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SKIP = os.environ.get("AVOPS_NO_NATIVE", "0") not in ("", "0")

NATIVE = Extension(
    "avops._native",
    sources=[
        f"csrc/{name}.cpp" for name in ("combine", "diff", "files", "gram", "lowrank", "module")
    ],
    depends=[f"csrc/{name}.h" for name in ("avops", "bf16", "blocks", "fused", "threads")],
    language="c++",
    py_limited_api=True,
    # No FMA contraction and no fast-math, whatever CXXFLAGS say: results are exact to the bit.
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-g0",
        "-ffp-contract=off",
        "-fno-fast-math",
        "-fvisibility=hidden",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
)


def say(text: str) -> None:
    """Tell what was decided. pip shows it with -v."""
    print(f"avops: {text}", file=sys.stderr, flush=True)


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
        say("building the native extension avops._native (C++; no CUDA sources, nvcc is not used)")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Build; a failure leaves a pure Python avops."""
        try:
            super().build_extension(ext)
        except Exception as error:
            say("=" * 78)
            say(f"NO NATIVE EXTENSION: {type(error).__name__}: {error}")
            say("avops installs without it and computes with numpy, more slowly, to the same bits.")
            say("Install g++ (or clang++) and install avops again to have it.")
            say("=" * 78)
            self.extensions = []
            self.distribution.ext_modules = []
            wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
            if wheel is not None:
                wheel.root_is_pure = True
        else:
            say("native extension built")


if SKIP:
    say("AVOPS_NO_NATIVE is set: no native extension; avops computes with numpy")

setup(
    ext_modules=[] if SKIP else [NATIVE],
    cmdclass={"build": Build, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
