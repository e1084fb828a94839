"""Memory of this process: is there enough, is an error about it, how the allocator keeps it."""

import ctypes
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from perturblab.errors import DataError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# "a primitive" is oneDNN's whole message. No bare "allocate memory": PyTorch's advice has these words, too.
_NO_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc", "map segment", "a primitive"),
    *("can't allocate memory", "cannot allocate memory", "failed to allocate memory", "unable to allocate memory"),
)


def out_of_memory(error: BaseException) -> str | None:
    """Recognise an error about missing memory.

    Args:
        error: any; PyTorch raises a RuntimeError, an import an ImportError or OSError, Python a MemoryError.

    Returns:
        One line, such as "out of memory (tried to allocate 400 bytes)"; None for any other error.
    """
    message = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(words in message.lower() for words in _NO_MEMORY):
        return None
    request = re.search(r"tried to allocate [\d.]+ \w+|allocate [\d.]+ [KMGT]iB", message, re.IGNORECASE)
    detail = request[0].lower() if request else message[:80]
    return f"out of memory ({detail})" if detail else "out of memory"


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of returning it to the system.

    A training step frees and allocates the same large tensors again and again. By default glibc maps and unmaps each
    one, and the system zeroes its pages anew. ``PERTURBLAB_MALLOC=0`` leaves the allocator alone; so does a C library
    without ``mallopt``.

    Returns:
        True if the settings were made.
    """
    if os.environ.get("PERTURBLAB_MALLOC") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def check_available(size: int, what: str, *, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Refuse an allocation that exceeds the available memory.

    Args:
        size: bytes.
        what: their content in the plural, for the message: "5 images of 8x8 grey".
        meminfo: Linux's file with the available memory; without it, every size is accepted.

    Raises:
        DataError: they do not fit.
    """
    if size > _available(meminfo):
        raise DataError(f"{what} do not fit into memory; use fewer or smaller ones")


def _available(meminfo: Path) -> float:
    with suppress(OSError):
        line = re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text())
        return 1024 * int(line[1]) if line else math.inf
    return math.inf
