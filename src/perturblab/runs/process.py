"""This process before it trains: its threads, its memory, its debug log, and its place among the ranks."""

import logging
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from perturblab.layers.kernels import debug_log
from perturblab.records.config import TrainConfig
from perturblab.runs import logs
from perturblab.runs.open import saved_config
from perturblab.system.memory import keep_freed_memory
from perturblab.system.processes import world_size
from perturblab.training.ranks import Ranks, joined


def prepare_process(config: TrainConfig) -> None:
    """Set up the process that trains.

    Args:
        config: what was given; ``nthreads``, ``log`` and ``debug`` are read.

    Raises:
        UserError: a log was asked for whose package is missing.
    """
    logs.require_logs(config.log or ())
    keep_freed_memory()
    if config.nthreads:
        torch.set_num_threads(config.nthreads)
    if config.debug:
        debug_log.setLevel(logging.DEBUG)
        debug_log.addHandler(logging.StreamHandler(sys.stderr))


def join_ranks(device: str, folder: Path | None = None) -> AbstractContextManager[Ranks]:
    """Join the processes that `torchrun` has started for a run.

    Args:
        device: as given on the command line.
        folder: of a run that exists, if its own device counts and not the given one.

    Returns:
        A context that gives this process among the ranks.

    Raises:
        UserError: no such run, no GPU for this process, or the others cannot be found.
    """
    # One process needs no GPU of its own, so that it does not read the checkpoint here.
    return joined(device if folder is None or world_size() == 1 else saved_config(folder).device)
