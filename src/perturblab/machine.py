"""This process: its place among others, and settings that make it faster without changing a number."""

import ctypes
import os

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def world_size() -> int:
    """How many processes `torchrun` has started for this run; 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def is_first() -> bool:
    """This process is the one that tells: the only one, or the first of those that `torchrun` has started."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def launcher() -> str:
    """What this command line was started with."""
    here = os.environ.get("LOCAL_WORLD_SIZE", world_size())
    return "perturblab" if world_size() == 1 else f"torchrun --nproc-per-node {here} -m perturblab"


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
