"""Memory of this process: what is left, what an error says about it, how the allocator keeps it."""

import ctypes
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from perturblab.errors import DataError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


# "primitive": all that oneDNN says when it gets none. No bare "allocate memory": PyTorch's advice speaks of that too.
_NO_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc", "map segment", "a primitive"),
    *("can't allocate memory", "cannot allocate memory", "failed to allocate memory", "unable to allocate memory"),
)


def out_of_memory(error: BaseException) -> str | None:
    """Say what an error tells about memory that could not be had.

    Args:
        error: any; PyTorch raises a RuntimeError, an import an ImportError or OSError, Python a MemoryError.

    Returns:
        "out of memory" and its words on one line, such as "tried to allocate 400 bytes"; None where it is about
        something else.
    """
    said = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(words in said.lower() for words in _NO_MEMORY):
        return None
    asked = re.search(r"tried to allocate [\d.]+ \w+|allocate [\d.]+ [KMGT]iB", said, re.IGNORECASE)
    words = asked[0].lower() if asked else said[:80]
    return f"out of memory ({words})" if words else "out of memory"


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, instead of handing it back and having every page zeroed anew at the next step.

    A training step frees and allocates the same large tensors again and again; by default each is mapped and unmapped
    by itself. ``PERTURBLAB_MALLOC=0`` leaves the allocator alone; so does a C library without ``mallopt``.

    Returns:
        Whether the settings were made.
    """
    if os.environ.get("PERTURBLAB_MALLOC") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def check_room(size: int, what: str, *, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Refuse more bytes than memory has left, before any of it is taken.

    Args:
        size: bytes.
        what: they are for, such as "5 images of 8x8 grey".
        meminfo: where Linux says what is left; where it is missing, the allocation itself must fail.

    Raises:
        DataError: they do not fit.
    """
    if size > _left(meminfo):
        raise DataError(f"{what} do not fit into memory; use fewer or smaller ones")


def _left(meminfo: Path) -> float:
    with suppress(OSError):
        found = re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text())
        return 1024 * int(found[1]) if found else math.inf
    return math.inf
