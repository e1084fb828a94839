"""The environment of a run: packages, processor, source hash."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

from perturblab.records import numerics
from perturblab.records.record import Environment, Processor

PACKAGES = ("torch", "numpy", "scipy", "pillow", "datasets", "safetensors", "pydantic")


FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "neon", "asimd")


def environment(*, threads: int, precision: str, compile: str, device: str, ranks: int = 1) -> Environment:
    """Describe where a run happens, without importing any of the packages it names.

    Args:
        threads: compute threads.
        precision: "fp32" or "bf16".
        compile: the decision taken, in words.
        device: the kind of device, such as "cpu".
        ranks: processes of the run.

    Returns:
        The environment.
    """
    return Environment(
        packages=packages(),
        python=platform.python_version(),
        processor=processor(),
        threads=threads,
        precision=precision,
        compile=compile,
        device=device,
        code=numerics.code_hash(),
        ranks=ranks,
    )


def packages() -> dict[str, str]:
    """Give the versions of the installed packages that bear on a result.

    Returns:
        Version by name; a package that is not installed is left out.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Describe the processor.

    Args:
        cpuinfo: the kernel's description; where it is missing the platform module serves.

    Returns:
        Model, the features among ``FEATURES`` that it has, and the number of logical cores.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in reversed(lines))
    facts = {key.strip().lower(): value.strip() for key, _, value in pairs}
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    model = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Processor(model=model, features=[name for name in FEATURES if name in flags], cores=os.cpu_count() or 1)
