"""The command `train`: a run from its flags to its record."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.cli.config_file import training_config
from perturblab.errors import RankLostError, UserError
from perturblab.records.config import TrainConfig
from perturblab.records.paths import RunFolder
from perturblab.system.exit_codes import DONE, INTERRUPTED
from perturblab.system.processes import is_first, launcher
from perturblab.system.signals import poll_stops

if TYPE_CHECKING:
    from perturblab.records.record import Record
    from perturblab.runs.run import Run
    from perturblab.system.terminal import Show
    from perturblab.training.ranks import Ranks

# Fields that a second call for the same run may change.
_MAY_CHANGE = {"nepochs", "dataroot", "nthreads", "device", "quiet", "debug", "log"}


def train_net(args: argparse.Namespace) -> int:
    """Train a net, from its flags to its record."""
    config = training_config(args)
    folder = Path(config.resume) if config.resume else _new_folder(config) if is_first() else None
    from perturblab.runs.process import join_ranks, prepare_process
    from perturblab.system.signals import unblock_stops

    unblock_stops()
    prepare_process(config)
    keeps_device = config.resume is not None and "device" not in config.model_fields_set
    with join_ranks(config.device, folder if keeps_device else None) as ranks:
        # Rank 0 names the folder: the name may hold the time, and the others would find it in use.
        place = next(path for path in ranks.every(folder) if path is not None)
        return _train_in(config, place, ranks, args.stop)


def _train_in(config: TrainConfig, folder: Path, ranks: "Ranks", stop: Callable[[], bool] | None) -> int:
    from perturblab.runs import open, train
    from perturblab.system.terminal import Show

    show = Show(quiet=config.quiet)
    with ranks.agreed():
        if config.resume:
            run = open.resume_run(folder, _changes(config, folder), show, ranks)
        else:
            run = open.open_run(config, folder, show, ranks)
    open.check_ranks(run)
    _introduce(run, show)
    resume = f"{launcher()} train --resume {folder}"
    try:
        with poll_stops(stop, once=True) as asked:
            record = train.execute(run, show, asked)
    except RankLostError as error:
        raise RankLostError(f"rank {ranks.rank}: {error}; go on from the last checkpoint with: {resume}") from error
    if record is None:
        state = run.state
        show.warn(f"stopped in epoch {state.epoch + 1} after step {state.step} of {run.steps}; go on with: {resume}")
        return INTERRUPTED
    if ranks.first:
        print(_result(record, folder))
    return DONE


def _new_folder(config: TrainConfig) -> Path:
    import datetime

    stamp = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = Path(config.out or f"runs/{config.net}-seed{config.manual_seed}-{stamp}")
    if folder.exists() and (not folder.is_dir() or RunFolder(folder).is_begun()):
        raise UserError(
            f"--out {folder} exists and is never overwritten; choose another, or go on with --resume {folder}"
        )
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise UserError(f"--out {folder} cannot be made, {above} is not a folder that can be written; choose another")
    return folder


def _changes(config: TrainConfig, folder: Path) -> dict[str, object]:
    """Give the fields that this call changes in a resumed run; anything else that differs is refused."""
    from perturblab.runs import open

    saved = open.saved_config(folder)
    flags = {name: getattr(config, name) for name in config.model_fields_set - {"resume"}}
    other = sorted(name for name, value in flags.items() if name not in _MAY_CHANGE and value != getattr(saved, name))
    if other:
        names = ", ".join("--" + name.replace("_", "-") for name in other)
        raise UserError(f"{names} given, and {folder} was started with another value; drop it, or start a new run")
    if "nepochs" in flags:
        _check_longer(config, saved)
    return {name: value for name, value in flags.items() if name in _MAY_CHANGE}


def _check_longer(config: TrainConfig, saved: TrainConfig) -> None:
    if saved.optimizer_schedule in ("cosine", "onecycle") and config.nepochs != saved.nepochs:
        raise UserError(
            f"--nepochs cannot change: the {saved.optimizer_schedule} schedule of this run depends on it; start a new "
            "run"
        )


def _introduce(run: "Run", show: "Show") -> None:
    images, splits = run.images, (run.training, run.validation or (), run.images.test)
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    show.say("data: {}, {:,} training, {:,} validation, {:,} test images".format(images.display, *map(len, splits)))
    show.say(f"classes in order: {', '.join(images.classes)}")
    several = "" if run.ranks.alone else f", {run.ranks.world} ranks with batch norm statistics of their own"
    show.say(f"net: {run.config.net}, {trainable:,} trainable parameters, on {run.device}{several}")
    show.say(f"run: {run.folder}")
    show.say("its last bits depend on: {}".format(", ".join(_bits(run))))


def _bits(run: "Run") -> list[str]:
    import torch

    threads = torch.get_num_threads()
    compiled = "compiled" if run.config.compile == "on" else "not compiled"
    return [run.config.precision, compiled, f"{threads} thread{'s' * (threads > 1)}", str(run.device)]


def _result(record: "Record", folder: Path) -> str:
    from perturblab.stats import brackets, wilson

    last = record.counts.last
    lines = [
        f"test accuracy after epoch {last.epoch + 1}: {last.accuracy:.2f} % "
        f"({last.correct}/{last.total}, 95 % Wilson interval {brackets(wilson(last.correct, last.total))})"
    ]
    if record.audit:
        audit = record.audit
        lines.append(
            f"the published metrics for these answers: mean over batches {audit.last.batch_mean:.2f} %, truncated "
            f"{audit.last.batch_mean_truncated:.2f} %, smoothed {audit.last.smoothed:.2f} %; best smoothed epoch "
            f"{audit.best_smoothed.smoothed:.2f} %, exact in that epoch {audit.best_smoothed.accuracy:.2f} %"
        )
    lines.append(f"record: {RunFolder(folder).record}, curves: {RunFolder(folder).progress}")
    return "\n".join(lines)
