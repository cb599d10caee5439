"""Builds the extensions. What is not about extensions is in pyproject.toml.

Switches (environment variables, "1" turns one on):
    FASTPOOL_POSIX      only POSIX system calls, none of Linux's own (tests the portable ways)
    FASTPOOL_SANITIZE   AddressSanitizer and UndefinedBehaviorSanitizer
    FASTPOOL_POINTS     places in the core where tests can end a worker (csrc/points.h)
    FASTPOOL_DEBUG      no optimisation, assertions and tallies on (tests/tallies.py compares these)
    FASTPOOL_BARE       no extensions: the Makefile installs what the project needs, and builds in place by itself
"""

import os
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup


def switched(name: str) -> bool:
    return os.environ.get(f"FASTPOOL_{name}", "") == "1"


compile_args = ["-std=c11", "-Wall", "-Wno-unused-function", "-Wno-sign-compare"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = [
    ("_GNU_SOURCE", None),
    ("NPY_NO_DEPRECATED_API", "NPY_1_22_API_VERSION"),
    ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION"),  # PyDataMem_SetHandler
]
if switched("DEBUG"):
    compile_args += ["-O0", "-g", "-UNDEBUG", "-DFP_TALLY"]
else:
    compile_args += ["-O1" if switched("SANITIZE") else "-O3"]
if switched("SANITIZE"):
    sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
    compile_args += sanitize
    link_args += sanitize
if switched("POSIX"):
    macros += [("FP_POSIX", None)]
if switched("POINTS"):
    macros += [("FP_POINTS", None)]


def extension(name: str, sources: list[str]) -> Extension:
    return Extension(
        f"fastpool.{name}",
        [f"fastpool/{name}.pyx", *sources],
        include_dirs=["csrc", numpy.get_include()],
        depends=glob("csrc/*.h") + glob("fastpool/*.pxd"),
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


names = ["_reserve", "_signals", "_references", "_scalars", "_tagwriter", "_tagreader", "_packed", "_codec", "_nursery"]
names += ["_plan", "_feed", "_applies", "_lane", "_timing", "_worker", "_collect"]
extensions = [extension("_native", sorted(glob("csrc/*.c")))]  # the only one that links csrc
extensions += [extension(name, []) for name in names]

setup(
    ext_modules=[]
    if switched("BARE")
    else cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
        },
    )
)
