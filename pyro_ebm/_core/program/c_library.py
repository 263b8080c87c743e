"""Builds C code to a shared library, once: later builds of the same code are found on disk."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

# A model with hundreds of sites makes a program so long that all optimisations would take minutes, as they are not
# linear in its length: with the quick ones it takes a fifth, and the program a seventh longer.
_ALL, _QUICK, _LONG = ("-O3",), ("-O1", "-ftree-vectorize"), 100_000
_FLAGS = (
    "-march=native",
    "-fPIC",
    "-shared",
    "-std=gnu11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-fwrapv",  # integers wrap around, as torch's do
    "-ffp-contract=off",  # `a * a - b * b` of equals is zero, not what one of the products is rounded by
    "-fopenmp-simd",
    "-w",
)
_VECTOR_MATH = ("-DVECTOR_MATH", "-Wl,--no-as-needed", "-lmvec", "-lm")


class BuildError(Exception):
    """There is no C compiler here, or it refuses the code."""


def cache_folder() -> Path:
    """Where builds are kept: `$PYRO_EBM_CACHE`, or `pyro_ebm` in the user's cache folder."""
    given = os.environ.get("PYRO_EBM_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_ebm"


@functools.cache
def _compiler() -> tuple[str, str]:
    """The C compiler and its version."""
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path:
            try:
                version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            except OSError as error:
                raise BuildError(f"{path} does not run: {error}") from error
            return path, version.stdout
    raise BuildError("no C compiler (cc, gcc, clang or $CC) was found")


@functools.cache
def _processor() -> str:
    """What `-march=native` depends on: code built for one machine must not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        import platform

        return platform.processor()


def is_long(source: str) -> bool:
    """Whether code takes long to build."""
    return len(source) >= _LONG


def build(source: str) -> ctypes.CDLL:
    """The shared library of C code.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    compiler, version = _compiler()
    flags = (*(_QUICK if is_long(source) else _ALL), *_FLAGS)
    errors = ""
    for extra in (_VECTOR_MATH, ("-lm",)):  # vector math is there with glibc
        key = hashlib.sha256("\0".join([source, version, _processor(), *flags, *extra]).encode()).hexdigest()[:32]
        try:
            return ctypes.CDLL(str(_built(key) or _compile([compiler, *flags], source, key, extra)))
        except (subprocess.CalledProcessError, OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            errors = getattr(error, "stderr", None) or str(error)
    raise BuildError(f"{compiler} failed: {errors[:500]}")


def _built(key: str) -> Path | None:
    """A build found on disk. Its name ends in the hash of its content: one that is damaged is not found."""
    return next((file for file in cache_folder().glob(f"{key}-*.so") if file.stem == f"{key}-{_hash(file)}"), None)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _compile(command: list[str], source: str, key: str, extra: tuple[str, ...]) -> Path:
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        code, made = Path(folder) / "program.c", Path(folder) / "program.so"
        code.write_text(source)
        subprocess.run([*command, str(code), "-o", str(made), *extra], check=True, capture_output=True, text=True)
        library = cache_folder() / f"{key}-{_hash(made)}.so"
        os.replace(made, library)  # in one step: another process may be building the same
    return library


@functools.cache
def linear_algebra() -> ctypes.Array[ctypes.c_void_p]:
    """Pointers to torch's own matrix products.

    Raises:
        BuildError: if torch was built without them.
    """
    path = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (path / name).exists():
            library = ctypes.CDLL(str(path / name))
            try:
                found = [ctypes.cast(getattr(library, f), ctypes.c_void_p).value for f in ("dgemm_", "sgemm_")]
            except AttributeError:
                break
            return (ctypes.c_void_p * 2)(*found)
    raise BuildError("torch's matrix products were not found")
