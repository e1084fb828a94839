"""A run: from its configuration to its folder."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from perturblab import checkpoint, data, evaluate, figures, records, stats, train
from perturblab.attacks import PixelModel
from perturblab.config import TrainConfig, validated
from perturblab.configured import (
    build_net,
    choose_device,
    chosen_preparation,
    decide_compile,
    make_adversary,
    make_mixings,
    make_recipe,
    net_options,
)
from perturblab.defences import Adversary, adversarial_images, labelled
from perturblab.errors import UserError
from perturblab.files import write_atomically
from perturblab.layers import Mixing, place_batchout
from perturblab.models import Task
from perturblab.progress import Show
from perturblab.recording import make_record
from perturblab.seeding import stream

CHECKPOINT = "checkpoint.pt"
SHOW_EVERY = 0.1  # seconds between two looks at the numbers, which wait for the device
SAVE_EVERY = 60.0  # seconds of training between two checkpoints


@dataclass
class Run:
    """A run in memory: everything between its configuration and its folder."""

    config: TrainConfig
    folder: Path
    images: data.ImageData
    training: data.Split
    validation: data.Split | None
    preparation: data.Preparation
    model: nn.Module
    mixings: dict[str, Mixing]  # where BatchOut stands
    adversary: Adversary | None
    recipe: train.Recipe
    state: train.State
    device: torch.device
    rows: list[dict[str, Any]]  # one an epoch, as in metrics.jsonl
    correct: list[Tensor]  # audited answers, bool (N,), one an epoch

    @property
    def trained(self) -> nn.Module:
        """The model as it is trained: itself, or compiled."""
        if self.config.compile != "on":
            return self.model
        return cast(nn.Module, torch.compile(self.model))

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return train.steps_per_epoch(len(self.training), self.recipe)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to what the model takes, on its device."""
        x = data.normalise(images.to(self.device), self.preparation)
        return x.contiguous(memory_format=torch.channels_last)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The same, (N, C, H, W), with this run's augmentation."""
        return self.normalised(data.augment(images, self.preparation, generator))

    @property
    def in_pixels(self) -> PixelModel:
        """The model as it is attacked: it takes pixels in [0, 1], and normalises them."""
        return PixelModel(self.model, self.preparation.mean, self.preparation.std)

    @contextmanager
    def during(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """What surrounds a training forward pass: the labels for BatchOut, adversarial images instead of clean ones."""
        if self.adversary is not None:
            x = self._attacked(x, y, self.adversary, generator)
        with labelled(x, y, generator) as x:
            yield x

    def _attacked(self, x: Tensor, y: Tensor, adversary: Adversary, generator: torch.Generator) -> Tensor:
        """The first rows of a batch replaced by adversarial images; the others keep their bits."""
        model, count = self.in_pixels, int(adversary.share * len(x))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            pixels = (x[:count] * model.std + model.mean).clamp(0, 1)
            attacked = adversarial_images(model, pixels, y[:count], adversary, generator=generator)
        return torch.cat([((attacked - model.mean) / model.std).to(x), x[count:]])

    def answers(self, split: data.Split) -> evaluate.Answers:
        """The net's exact answers on a split, in eval mode."""
        self.model.eval()
        # Measuring must not move the masks that are redrawn at every forward: their counters go back.
        draws = {name: value.clone() for name, value in self.model.named_buffers() if name.endswith("draws")}
        found = evaluate.answers(self.model, split.images, split.labels, prepare=self.normalised)
        self.model.load_state_dict(draws, strict=False)
        return found


def _load_images(config: TrainConfig, show: Show) -> data.ImageData:
    loaded = data.load(config.dataset_train, dataroot=config.dataroot, progress=show.loading)
    if config.dataset_test not in (None, config.dataset_train):
        test = data.load(str(config.dataset_test), dataroot=config.dataroot, progress=show.loading)
        loaded = data.combine(loaded, test)
    return data.select_classes(loaded, config.classes) if config.classes else loaded


def open_run(config: TrainConfig, folder: Path, show: Show) -> Run:
    """Load the data, build the net and stand before the first step; nothing is written.

    Raises:
        UserError: bad data, an impossible net, no such device.
    """
    device = choose_device(config.device)
    net_options(config, show.warn)  # a mistake in the flags is told before the data are read
    images = _load_images(config, show)
    training, validation = images.train, None
    if config.train_size:
        training = data.stratified_subset(training, config.train_size, stream(config.manual_seed, "subset"))
    if config.val_size:
        training, validation = data.hold_out(training, config.val_size, stream(config.manual_seed, "validation"))
    channels, height, width = images.image_size
    task = Task(len(images.classes), channels, (height, width))
    model = build_net(config, task, seed=config.manual_seed)
    recipe = make_recipe(config, images.name)
    _check_last_batch(config, task, len(training), recipe)
    model = convert_conv2d_weight_memory_format(model.to(device), torch.channels_last)
    mixings = make_mixings(config, model)
    if mixings:
        place_batchout(model, mixings, generator=stream(config.manual_seed, "batchout"))
    state, preparation = train.start(model, recipe), chosen_preparation(config, data.preparation(images))
    steps = train.steps_per_epoch(len(training), recipe) * recipe.nepochs
    config = config.model_copy(update={"compile": decide_compile(config, device, steps)})
    return Run(
        config=config,
        folder=folder,
        images=images,
        training=training,
        validation=validation,
        preparation=preparation,
        model=model,
        mixings=mixings,
        adversary=make_adversary(config, images.name),
        recipe=recipe,
        state=state,
        device=device,
        rows=[],
        correct=[],
    )


def _check_last_batch(config: TrainConfig, task: Task, images: int, recipe: train.Recipe) -> None:
    """Refuse at the start what batch norm would refuse at the end of the first epoch."""
    steps = train.steps_per_epoch(images, recipe)
    if min(images - (steps - 1) * recipe.batch_size, recipe.batch_size) > 1:
        return
    with torch.device("meta"):
        net = build_net(config, task, seed=0).train()
    try:
        net(torch.empty(1, task.channels, *task.size, device="meta"))
    except ValueError as error:
        raise UserError(
            f"--batch-size {recipe.batch_size} leaves a batch of 1 of {images} training images, where this net's batch "
            "norm sees a single value; use another batch size"
        ) from error


def resume_run(folder: Path, changes: dict[str, Any], show: Show) -> Run:
    """Open a run where it stopped.

    Args:
        folder: the run's folder.
        changes: fields given now that replace the run's own.
        show: where progress goes.

    Raises:
        UserError: no such run, or other images than the run's.
    """
    path = folder / CHECKPOINT
    saved = checkpoint.load_checkpoint(path)
    run = open_run(_changed(saved_config(folder, saved), changes), folder, show)
    _check_images(run, saved, ("train", "test"))
    checkpoint.load_net(path, run.model, saved["model"])
    try:
        run.state.load_state_dict(saved["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds the training state of another run ({error}); restore the file") from error
    run.rows, run.correct = saved["rows"], saved["correct"]
    begun = run.state.epoch + (run.state.step > 0)
    if run.recipe.nepochs < begun:
        raise UserError(f"--nepochs got {run.recipe.nepochs}, and epoch {begun} has begun; expected at least {begun}")
    return run


def saved_config(folder: Path, saved: dict[str, Any] | None = None) -> TrainConfig:
    """The configuration that a run was started with.

    Args:
        folder: the run's folder.
        saved: its checkpoint, where that is read already.

    Raises:
        UserError: no such run, or not one of this version.
    """
    path = folder / CHECKPOINT
    try:
        return validated(TrainConfig, (saved or checkpoint.load_checkpoint(path))["config"])
    except UserError as error:
        raise UserError(f"{path} holds another version's configuration ({error}); restore the file") from error


def _changed(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    return validated(TrainConfig, {**config.model_dump(), **changes})


def _check_images(run: Run, saved: dict[str, Any], splits: tuple[str, ...]) -> None:
    other = [split for split in splits if run.images.hashes[split] != saved["hashes"][split]]
    if other:
        raise UserError(f"the {other[0]} images of {run.images.display} are not those of {run.folder}; give --dataroot")


def execute(run: Run, show: Show, stop: Callable[[], bool] = lambda: False) -> records.Record | None:
    """Train to the end, evaluating after every epoch, and write the run's folder.

    Args:
        run: opened or resumed.
        show: where progress goes.
        stop: asked after every step; True ends the run cleanly, to be resumed.

    Returns:
        The record, also written as ``record.json``; None when the run was stopped.

    Raises:
        NonFiniteError: the loss is not finite; nothing is recorded as a result.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    saved = shown = started = time.monotonic()
    first = (run.state.epoch, run.state.step + 1)

    def after_step(state: train.State) -> bool:
        nonlocal saved, shown
        now = time.monotonic()
        if run.config.compile == "on" and (state.epoch, state.step) == first:
            show.say(f"the first step took {now - started:.1f} s, most of it to compile")
        if now - shown > SHOW_EVERY:
            state.read()
            show.move(state.epoch * run.steps + state.step, _step_text(state, run.recipe))
            shown = now
        if now - saved > SAVE_EVERY:
            save(run)
            saved = now
        return not stop()

    with (
        _deterministic(run.config),
        show.bar(run.steps * run.recipe.nepochs, run.state.epoch * run.steps + run.state.step),
    ):
        for reached in train.train(
            run.trained,
            run.training.images,
            run.training.labels,
            run.recipe,
            run.state,
            prepare=run.augmented,
            during=run.during,
            after_step=after_step,
        ):
            run.rows.append(_row(run, reached))
            show.say(_epoch_text(run.rows[-1], run.recipe))
    save(run)
    return _finish(run) if run.state.epoch == run.recipe.nepochs else None


@contextmanager
def _deterministic(config: TrainConfig) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what PyTorch asks for on CUDA
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _finish(run: Run) -> records.Record:
    checkpoint.save_weights(run.folder / "weights.safetensors", run.model)
    record = make_record(run)
    records.save(record, run.folder / "record.json")
    return record


def _step_text(state: train.State, recipe: train.Recipe) -> str:
    done = f"epoch {state.epoch + 1}/{recipe.nepochs}"
    reached = state.reached
    return (
        f"{done}  loss {reached.loss / reached.images:.3f}  accuracy {100 * reached.correct / reached.images:.2f} %  "
        f"{reached.images / reached.seconds:,.0f} images/s"
    )


def _epoch_text(row: dict[str, Any], recipe: train.Recipe) -> str:
    parts = [
        f"epoch {row['epoch'] + 1}/{recipe.nepochs}",
        f"loss {row['train_loss']:.4f}",
        f"train {row['train_accuracy']:.2f} %",
        f"{row['images_per_second']:,.0f} images/s",
    ]
    if row["val_accuracy"] is not None:
        parts.append(f"validation {row['val_accuracy']:.2f} %")
    if "smoothed" in row:
        parts.append(f"test exact {row['exact']:.2f} %, smoothed {row['smoothed']:.2f} %")
    return "  ".join(parts)


def _row(run: Run, reached: train.Epoch) -> dict[str, Any]:
    """Evaluate after an epoch, outside the training code."""
    row: dict[str, Any] = {
        "epoch": run.state.epoch - 1,
        "lr": run.state.optimizer.param_groups[0]["lr"],
        "train_loss": reached.loss / reached.images,
        "train_accuracy": 100 * reached.correct / reached.images,
        "seconds": reached.seconds,
        "images_per_second": reached.images / reached.seconds,
        "val_loss": None,
        "val_accuracy": None,
    }
    if run.validation is not None:
        answers = run.answers(run.validation)
        row |= {"val_loss": answers.loss, "val_accuracy": answers.counts.percent}
    if run.config.audit or run.state.epoch == run.recipe.nepochs or _is_best_validation(run, row):
        row |= _test_row(run)
    return row


def _is_best_validation(run: Run, row: dict[str, Any]) -> bool:
    best = max((r["val_accuracy"] for r in run.rows if r["val_accuracy"] is not None), default=-1.0)
    return row["val_accuracy"] is not None and row["val_accuracy"] > best


def _test_row(run: Run) -> dict[str, Any]:
    answers = run.answers(run.images.test)
    row: dict[str, Any] = {"test_loss": answers.loss, "exact": answers.counts.percent, **asdict(answers.counts)}
    if run.config.audit:
        run.correct.append(answers.correct)
        row |= evaluate.audit(answers.correct, run.config.batch_size, start=_carried(run.rows))
    return row


def _carried(rows: list[dict[str, Any]]) -> float:
    """The smoothed value that the last of these epochs left to the next."""
    return float(rows[-1].get("smoothed", 0.0)) if rows else 0.0


def save(run: Run) -> None:
    """Write what is needed to resume, the metrics and the picture."""
    content = {
        "config": run.config.model_dump(exclude={"resume"}),
        "hashes": dict(run.images.hashes),
        "model": run.model.state_dict(),
        "state": run.state.state_dict(),
        "rows": run.rows,
        "correct": run.correct,
    }
    checkpoint.save_checkpoint(run.folder / CHECKPOINT, content)
    lines = "".join(json.dumps(row) + "\n" for row in run.rows)
    write_atomically(run.folder / "metrics.jsonl", lines.encode())
    if run.rows:
        title = f"{run.config.net} on {run.images.display}, seed {run.config.manual_seed}"
        figures.progress_svg(run.rows, run.folder / "progress.svg", title=title)


def trained_run(folder: Path, show: Show, changes: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """Open a finished run with its final weights, in eval mode.

    Args:
        folder: the run's folder.
        show: where progress goes.
        changes: fields given now that replace the run's own.

    Returns:
        The run, and its checkpoint.

    Raises:
        UserError: no such run, other test images than the run's, weights of another net.
    """
    saved = checkpoint.load_checkpoint(folder / CHECKPOINT)
    run = open_run(_changed(saved_config(folder, saved), changes), folder, show)
    _check_images(run, saved, ("test",))
    checkpoint.load_weights(folder / "weights.safetensors", run.model)
    run.model.eval()
    return run, saved


def evaluate_run(
    folder: Path, show: Show, *, audited: bool = False, batch_size: int | None = None, dataroot: str | None = None
) -> dict[str, Any]:
    """Count a run's correct test images anew, from its weights.

    Args:
        folder: the run's folder.
        show: where progress goes.
        audited: add the published metrics, computed from the same answers.
        batch_size: nominal test batch of the audit; the run's by default.
        dataroot: where the data set is looked for first; the run's by default.

    Returns:
        ``exact`` {correct, total}, ``wilson`` [low, high] in percent; audited, also ``batch_mean``,
        ``batch_mean_truncated``, ``smoothed`` (percent; it starts from what the run's epoch before left) and
        ``n_batches``.

    Raises:
        UserError: no such run, other test images than the run's, weights of another net.
    """
    run, saved = trained_run(folder, show, {} if dataroot is None else {"dataroot": dataroot})
    # The weights are those of the last finished epoch count, which a longer run that was stopped has gone beyond.
    finished = records.load(folder / "record.json").counts.last.epoch
    found = run.answers(run.images.test)
    counts = found.counts
    result: dict[str, Any] = {"exact": asdict(counts), "wilson": list(stats.wilson(counts.correct, counts.total))}
    if audited:
        metrics = evaluate.audit(
            found.correct, batch_size or run.config.batch_size, start=_carried(saved["rows"][:finished])
        )
        result |= {name: metrics[name] for name in ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches")}
    return result
