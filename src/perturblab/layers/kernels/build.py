"""Compile perturb.cpp for this machine at first use, and load it."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from perturblab.system.files import cache_folder

SCALARS = {torch.float32: "float", torch.bfloat16: "bf16"}
# No -ffast-math: a NaN must come out as a NaN, so that a run that diverges is stopped.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_SEAL = hashlib.sha256().digest_size


def compiler() -> list[str]:
    """Find the C++ compiler: ``$CXX`` with its arguments, or the first of c++, g++ and clang++; [] for none."""
    named = os.environ.get("CXX")
    for program, *arguments in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        found = shutil.which(program)
        if found:
            return [found, *arguments]
    return []


def way() -> str:
    """Name the way masks are added on the CPU: "native", or "in pieces" without a compiler or by request."""
    return "native" if compiler() and os.environ.get("PERTURBLAB_NATIVE") != "0" else "in pieces"


@cache
def library(act: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Compile for one activation and type of the features, or take what was compiled before.

    Returns:
        The library; None when there is no compiler, or it cannot compile this.
    """
    program = compiler()
    if not program or os.environ.get("PERTURBLAB_NATIVE") == "0":
        return None
    source = files("perturblab.layers.kernels").joinpath("perturb.cpp").read_bytes()
    scalar = SCALARS[dtype]
    command = [*program, *_FLAGS, f"-DACT={act}", f"-DSCALAR={scalar}"]
    key = hashlib.sha256(repr((command, _machine(), source)).encode()).hexdigest()[:16]
    path = cache_folder() / "kernels" / f"{act}-{scalar}-{key}.so"
    try:
        if not _is_whole(path):
            _compile(command, source, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _is_whole(path: Path) -> bool:
    """Return True if a library ends with its own hash; a torn one would kill the process that loads it."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_SEAL]).digest() == content[-_SEAL:]


def _machine() -> str:
    """Describe the processor, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(command: list[str], source: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made, given = Path(folder) / path.name, Path(folder) / "perturb.cpp"
        given.write_bytes(source)
        subprocess.run([*command, str(given), "-o", str(made)], check=True, capture_output=True, timeout=300)
        with made.open("r+b") as file:
            file.write(hashlib.sha256(file.read()).digest())  # behind what the loader reads
        made.replace(path)  # whole or not at all, also when several processes compile at once
