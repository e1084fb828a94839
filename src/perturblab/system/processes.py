"""This process: how it ends, and its place among others."""

import os

# Exit codes: all done; a run of a study failed, a check failed, or a bug of ours; the user's mistake; stopped.
DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


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
