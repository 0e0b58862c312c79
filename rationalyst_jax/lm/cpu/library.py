"""The kernels of this folder: compiled for this processor when they are first needed, and kept."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.user_cache import user_cache
from rationalyst_jax.files.whole import in_words

# Attention's kernels take heads in whole multiples of the smallest one of published checkpoints.
HEAD = 64

_FLAGS = ("-std=gnu++20", "-O2", "-march=native", "-fPIC", "-shared", "-w")
_SECONDS = 300  # a compiler that takes longer hangs
_BITS = {"float32": 32, "bfloat16": 16, "int8": 8}  # of the weights that there is code for


class NoKernel(Exception):
    """A kernel can't be compiled or opened here; says why."""


@cache
def kernel(source: str, symbol: str, dtype: Any) -> str | None:
    """The name under which XLA knows a C++ file's kernel for weights of a type, None where there is none."""
    name = np.dtype(dtype).name
    if name not in _BITS:
        return None
    try:
        library = _of_type(source, name)
    except NoKernel as reason:
        _say(str(reason))
        return None
    target = f"{symbol}_{name}"
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(library[symbol]), platform="cpu")
    return target


@cache
def constant(source: str, symbol: str, dtype: Any) -> int:
    """A number (int32) that a C++ file exports, compiled for weights of a type.

    Raises NoKernel, also for a type that there is no code for.
    """
    return ctypes.c_int32.in_dll(_of_type(source, np.dtype(dtype).name), symbol).value


def _of_type(source: str, name: str) -> ctypes.CDLL:
    if name not in _BITS:
        raise NoKernel(f"{source}: no code for {name}")
    return compiled(Path(__file__).with_name(source), f"-DWEIGHT_BITS={_BITS[name]}")


@cache
def _say(reason: str) -> None:
    """Once, for it takes longer, and the last bits are others than with a kernel."""
    logging.getLogger(__name__).warning("no kernels for this CPU, XLA computes instead: %s", reason)


def compiled(source: Path, *options: str) -> ctypes.CDLL:
    """The library of a C++ file, compiled with `options` against XLA's headers.

    The compiler is `CXX`, by default `c++`. The library stays in the user's cache, under a name made of all
    that decides it: the file and its headers, the options, the compiler, the version of jaxlib and the
    processor. Raises NoKernel.
    """
    try:
        command = shlex.split(os.environ.get("CXX", "c++"))
    except ValueError as error:
        raise NoKernel(f"CXX: {error}") from None
    if not command or shutil.which(command[0]) is None:
        raise NoKernel(f"{' '.join(command) or 'CXX'}: no such compiler")
    said = _run([*command, "--version"])
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*texts, *command, *_FLAGS, *options, said, version("jaxlib"), _processor())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    if (folder := user_cache("kernels")) is None:
        raise NoKernel("there is no home to keep it in")
    library = folder / f"{source.stem}-{name}.so"
    try:
        if not library.exists():
            with locked(library, wait=True):
                if not library.exists():  # another process may have made it meanwhile
                    headers = f"-I{jax.ffi.include_dir()}"
                    own = library.with_suffix(f".{os.getpid()}")  # some file systems know no locks
                    try:
                        _run([*command, *_FLAGS, *options, headers, str(source), "-o", str(own)])
                        os.replace(own, library)
                    finally:
                        own.unlink(missing_ok=True)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoKernel(f"{library}: {in_words(error)}") from None


def _run(command: Sequence[str]) -> str:
    """What a command says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernel(f"{command[0]}: {error}") from None
    if done.returncode:
        raise NoKernel(f"{command[0]}: {next(iter(done.stderr.splitlines()), 'failed')}")
    return done.stdout


def _processor() -> str:
    """What code for this processor may use."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = described.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
