"""This process: its rank among those of `torchrun`."""

import os


def world_size() -> int:
    """Count the processes that `torchrun` has started for this run; 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() else 1


def is_first() -> bool:
    """Say whether this process is the only one, or rank 0 of those that `torchrun` has started."""
    return world_size() == 1 or os.environ.get("RANK", "0") == "0"


def launcher() -> str:
    """Give the program that started this command line, for messages that repeat it."""
    local = os.environ.get("LOCAL_WORLD_SIZE", world_size())
    return "perturblab" if world_size() == 1 else f"torchrun --nproc-per-node {local} -m perturblab"
