"""This process: its place among others, and settings that make it faster without changing a number."""

import os


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
