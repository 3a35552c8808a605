"""The compiled extension, fusedrnn._core. Everything else about the package stands in pyproject.toml.

Two environment variables choose how it is built, and neither is needed for an ordinary installation:
FUSEDRNN_BUILD=release|debug|sanitize|coverage (default release), and FUSEDRNN_NO_EXTENSION=1 for a package of pure
Python, which needs no compiler and offers the Numba backend where Numba is installed, and the reference. The code is
never tuned to the machine that compiles it (no -march): each instruction set has a file of its own under kernels/isa,
and the choice is made at run time.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("kernels")
SANITIZERS = "-fsanitize=address,undefined"
# Where a tile's loop begins in its cache line is worth two hundredths, and would else change with every edit.
ALIGNED = ["-falign-functions=64", "-falign-loops=64"]
BUILDS = {  # name: (compiler flags, linker flags)
    "release": (["-O3", "-g0", *ALIGNED], []),
    "debug": (["-Og", "-g3", "-UNDEBUG"], []),
    "sanitize": (
        ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", SANITIZERS],
        [SANITIZERS],
    ),
    "coverage": (["-O0", "-g", "--coverage"], ["--coverage"]),
}
# A product that is not written as fma() must not become one (contract), so that all instruction sets round alike.
# Nothing reads errno or traps, which frees the compiler to use vector instructions for what it sees.
FLAGS = ["-std=gnu11", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


class BuildExtension(build_ext):
    """build_ext that leaves the source tree clean and compiles the C files of an extension side by side."""

    def initialize_options(self):
        super().initialize_options()
        self.cython_c_in_temp = True

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # or objects of another FUSEDRNN_BUILD would pass for current: only times are compared

    def build_extensions(self):
        compile_all = self.compiler.compile

        def compile_parallel(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [o for objects in pool.map(lambda s: compile_all([s], **options), sources) for o in objects]

        self.compiler.compile = compile_parallel
        super().build_extensions()


def is_pure() -> bool:
    """Whether the package is to be of Python alone."""
    wanted = os.environ.get("FUSEDRNN_NO_EXTENSION", "0")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"FUSEDRNN_NO_EXTENSION: expected 0 or 1, got {wanted!r}")
    return wanted == "1"


def core() -> Extension:
    """Describe fusedrnn._core as FUSEDRNN_BUILD wants it."""
    build = os.environ.get("FUSEDRNN_BUILD", "release")
    if os.name != "posix":
        raise SystemExit("the compiled module needs POSIX threads; FUSEDRNN_NO_EXTENSION=1 leaves it out")
    if build not in BUILDS:
        raise SystemExit(f"FUSEDRNN_BUILD: expected one of {', '.join(BUILDS)}, got {build!r}")
    compile_flags, link_flags = BUILDS[build]
    sources = ["_core.pyx", "team.c", "cpu.c", *(f"isa/{isa}.c" for isa in ("baseline", "avx2", "avx512", "neon"))]
    return Extension(
        "fusedrnn._core",
        sources=[str(KERNELS / name) for name in sources],
        depends=sorted(str(path) for pattern in ("*.h", "*.pxd", "*.pxi") for path in KERNELS.glob(pattern)),
        include_dirs=[str(KERNELS), np.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=[*compile_flags, *FLAGS],
        extra_link_args=["-pthread", *link_flags],
    )


setup(
    ext_modules=[] if is_pure() else [core()],
    cmdclass={"build_ext": BuildExtension},
)
