"""Opening a run: new from a configuration, or from the folder of a run."""

from collections.abc import Mapping
from pathlib import Path

import torch

from perturblab import data
from perturblab.errors import UserError
from perturblab.records import record, store
from perturblab.records.config import TrainConfig, validated
from perturblab.records.metrics import Row, check_rows
from perturblab.records.paths import RunFolder
from perturblab.runs import checkpoint
from perturblab.runs.build import Built, assemble, choose_device, decide_compile, make_net, net_options
from perturblab.runs.checkpoint import Checkpoint
from perturblab.runs.defence import check_defence
from perturblab.runs.resume_checks import check_answers, check_state
from perturblab.runs.run import Run
from perturblab.seeding import stream
from perturblab.system import files
from perturblab.system.terminal import Show
from perturblab.training import loop
from perturblab.training.ranks import ALONE, Ranks

# Fields that set nothing, which checkpoints held before 30 November 2026.
_FORMER_FIELDS = {"learning_rate_decay", "save", "logs"}


def _load_images(config: TrainConfig, show: Show) -> data.ImageData:
    loaded = data.load(config.dataset_train, dataroot=config.dataroot, progress=show.loading)
    if config.dataset_test not in (None, config.dataset_train):
        test = data.load(str(config.dataset_test), dataroot=config.dataroot, progress=show.loading)
        loaded = data.combine(loaded, test)
    loaded = data.select_classes(loaded, config.classes) if config.classes else loaded
    for name in (loaded.display, *loaded.classes):
        if record.is_private(name):  # at the end of the training would be too late
            raise UserError(f"{name!r} reads like a path of this machine, which no record may hold; rename it")
        if any("\ud800" <= char <= "\udfff" for char in name):
            raise UserError(
                f"the name {name!r} in {config.dataset_train} is not valid UTF-8, and no record can hold it; rename it"
            )
    return loaded


def open_run(config: TrainConfig, folder: Path, show: Show, ranks: Ranks = ALONE) -> Run:
    """Load the data and build the net, ready for the first step; nothing is written.

    Args:
        config: what was given.
        folder: the run's folder.
        show: where progress goes.
        ranks: this process among those of the run.

    Raises:
        UserError: bad data, an impossible net, no such device.
    """
    device = choose_device(config.device)
    check_defence(config)
    options = net_options(config, show.warn)  # a mistake in the flags is reported before the data are read
    images = _load_images(config, show)
    training, validation = images.train, None
    if config.train_size:
        training = data.stratified_subset(training, config.train_size, stream(config.manual_seed, "subset"))
    if config.val_size:
        training, validation = data.hold_out(training, config.val_size, stream(config.manual_seed, "validation"))
    built = assemble(config, options, images, device)
    _check_last_batch(config, built, len(training), ranks)
    steps = loop.steps_per_epoch(len(training), built.recipe) * built.recipe.nepochs
    config = config.model_copy(update={"compile": decide_compile(config, device, steps)})
    state = loop.start(built.model, built.recipe, ranks)
    return Run(config, folder, images, training, validation, built, state, device, ranks)


def _check_last_batch(config: TrainConfig, built: Built, images: int, ranks: Ranks) -> None:
    """Refuse a last batch that batch norm would refuse at the end of the first epoch."""
    recipe, task = built.recipe, built.task
    last = min(images - (loop.steps_per_epoch(images, recipe) - 1) * recipe.batch_size, recipe.batch_size)
    if last < ranks.world:
        raise UserError(
            f"--batch-size {recipe.batch_size} leaves a batch of {last} of {images} training images for {ranks.world} "
            "ranks; use another batch size, or fewer ranks"
        )
    smallest = last // ranks.world  # rows of some rank; of the others one more at most
    half = config.defence == "fgsm-half" and config.defence_mode == "train"
    attacked = half and any(Ranks(rank, ranks.world).count(last // 2) == 1 for rank in range(ranks.world))
    if smallest > 1 and not attacked:
        return
    with torch.device("meta"):
        net = make_net(config.net, built.options, task, seed=0).train()
    try:
        net(torch.empty(1, task.channels, *task.size, device="meta"))
    except ValueError as error:
        where = "" if ranks.alone else f"of {ranks.world} ranks, one of them with a single row, "
        raise UserError(
            f"--batch-size {recipe.batch_size} leaves a batch of {last} of {images} training images, {where}where this "
            "net's batch norm sees a single value; use another batch size"
        ) from error


def check_ranks(run: Run) -> None:
    """Refuse a run whose ranks do not start from the same state.

    Raises:
        UserError: their settings, images, weights, masks or random streams differ.
    """
    if run.ranks.alone:
        return
    run.ranks.same(
        {
            "settings": repr((run.built.recipe, run.built.mixings, run.built.adversary, run.built.preparation)),
            "images": repr(sorted(run.images.hashes.items())),
            "weights or masks": checkpoint.digest(run.model.state_dict()),
            "training states": checkpoint.digest(run.state.state_dict()),
        }
    )


def resume_run(folder: Path, changes: Mapping[str, object], show: Show, ranks: Ranks = ALONE) -> Run:
    """Open a run where it stopped.

    Args:
        folder: the run's folder.
        changes: fields given now that replace the run's own.
        show: where progress goes.
        ranks: this process among those of the run.

    Raises:
        UserError: no such run, or other images than the run's.
    """
    path = RunFolder(folder).checkpoint
    stamp = files.stamp(path)
    saved = checkpoint.load_checkpoint(path, show.warn)
    run = open_run(_changed(saved_config(folder, saved), changes), folder, show, ranks)
    run.history.rows = _checked_rows(run, saved, ("train", "test"))
    checkpoint.load_net(path, run.model, saved["model"])
    try:
        check_state(saved["state"], run.state, len(run.training), run.built.recipe)
        if len(run.history.rows) != saved["state"]["epoch"]:
            raise ValueError(f"{len(run.history.rows)} rows of {saved['state']['epoch']} epochs")
        check_answers(saved["correct"], len(run.history.rows), len(run.images.test))
        run.history.parts = [record.Part.model_validate(part) for part in saved.get("parts", [])]
        run.state.load_state_dict(saved["state"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds the training state of another run ({error}); restore the file") from error
    run.history.correct, run.written.stamp = saved["correct"], stamp
    if (before := saved["state"].get("ranks", 1)) != ranks.world:
        show.warn(
            f"warning: this run had {before} rank(s) and goes on with {ranks.world}: with the same batches in the same "
            "order, but no longer bit for bit, since batch norm and dropout see other rows"
        )
    begun = run.state.epoch + (run.state.step > 0)
    if run.built.recipe.nepochs < begun:
        raise UserError(
            f"--nepochs got {run.built.recipe.nepochs}, and epoch {begun} has begun; expected at least {begun}"
        )
    return run


def saved_config(folder: Path, saved: Checkpoint | None = None) -> TrainConfig:
    """Read the configuration that a run was started with.

    Args:
        folder: the run's folder.
        saved: its checkpoint, where that is read already.

    Raises:
        UserError: no such run, or not one of this version.
    """
    path = RunFolder(folder).checkpoint
    content = saved or checkpoint.load_checkpoint(path)
    try:
        return validated(TrainConfig, {k: v for k, v in content["config"].items() if k not in _FORMER_FIELDS})
    except UserError as error:
        raise UserError(f"{path} holds another version's configuration ({error}); restore the file") from error


def _changed(config: TrainConfig, changes: Mapping[str, object]) -> TrainConfig:
    return validated(TrainConfig, {**config.model_dump(), **changes})


def _checked_rows(run: Run, saved: Checkpoint, splits: tuple[str, ...]) -> list[Row]:
    """Read the rows of a checkpoint that has the images and the metrics of this run."""
    other = [split for split in splits if run.images.hashes[split] != saved["hashes"].get(split)]
    if other:
        raise UserError(f"the {other[0]} images of {run.images.display} are not those of {run.folder}; give --dataroot")
    try:
        return check_rows(saved["rows"], len(run.images.test), audited=run.config.audit)
    except ValueError as error:
        path = RunFolder(run.folder).checkpoint
        raise UserError(f"{path} holds the metrics of another run ({error}); restore the file") from error


def open_trained(folder: Path, show: Show, changes: Mapping[str, object], ranks: Ranks = ALONE) -> Run:
    """Open a finished run with its final weights, in eval mode.

    Args:
        folder: the run's folder.
        show: where progress goes.
        changes: fields given now that replace the run's own.
        ranks: this process among those that evaluate it.

    Returns:
        The run, with the rows of its metrics.

    Raises:
        UserError: no such run, other test images than the run's, weights of another net.
    """
    saved = checkpoint.load_checkpoint(RunFolder(folder).checkpoint, show.warn)
    path = RunFolder(folder).record
    if path.is_file() and (fault := store.load_record(path).fault):
        show.warn(f"warning: {folder} is void ({fault}); train it anew")
    run = open_run(_changed(saved_config(folder, saved), changes), folder, show, ranks)
    run.history.rows = _checked_rows(run, saved, ("test",))
    checkpoint.load_weights(RunFolder(folder).weights, run.model)
    run.model.eval()
    return run
