"""This process: its place among others, and settings that make it faster without changing a number."""

import ctypes
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

STOPS = (signal.SIGINT, signal.SIGTERM)


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


@contextmanager
def asked_to_stop(
    given: Callable[[], bool] | None = None, *, once: bool = False, signals: Sequence[int] = STOPS
) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into an answer that is asked for where a stop is clean.

    Args:
        given: the caller's own answer, used in place of the signals; their handlers are then left alone.
        once: a second one raises KeyboardInterrupt wherever it comes.
        signals: those that are turned.

    Yields:
        Says whether one has come.
    """
    if given is not None:
        yield given
        return
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if once and asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hear_stops() -> None:
    """Let through the stops that a study holds back from a run until PyTorch is imported.

    An interrupt in the middle of that can get lost, or end in an abort.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


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
