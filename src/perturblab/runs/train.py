"""A run from its first step to its record: trained, evaluated after every epoch, written to its folder."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from perturblab.errors import UserError
from perturblab.records import numerics, store
from perturblab.records.config import TrainConfig
from perturblab.records.metrics import Row, metrics_text
from perturblab.records.paths import RunFolder
from perturblab.records.pictures import progress
from perturblab.records.record import Part, Record
from perturblab.runs import checkpoint, logs
from perturblab.runs.evaluate import count_test
from perturblab.runs.record import circumstances, make_record, resolve_config
from perturblab.runs.run import Run
from perturblab.system import files
from perturblab.system.files import locked, write_atomically
from perturblab.system.memory import out_of_memory
from perturblab.system.terminal import Show
from perturblab.training import loop

SHOW_EVERY = 0.1  # seconds between two looks at the numbers, which wait for the device


def execute(run: Run, show: Show, stop: Callable[[], bool] = lambda: False) -> Record | None:
    """Train to the end, evaluating after every epoch, and write the run's folder.

    Args:
        run: opened or resumed.
        show: where progress goes.
        stop: asked after every step; True, on any rank, ends the run cleanly, to be resumed.

    Returns:
        The record, also written as ``record.json``; None when the run was stopped.

    Raises:
        NonFiniteError: the loss is not finite; nothing is recorded as a result.
        RankLostError: another rank has ended; the last checkpoint can be resumed.
        UserError: another process is at work in the folder, or was since the run was opened; no memory; no room; a
            known fault makes void what the run goes on from.
    """
    with ExitStack() as stack:
        with run.ranks.agreed():
            if run.ranks.first:
                stack.enter_context(_owned(run))
        _refuse_void(run)
        _note_circumstances(run, show)
        try:
            return _execute(run, show, stop)
        except (RuntimeError, MemoryError) as error:
            if (reason := out_of_memory(error)) is None:
                raise
            raise UserError(
                f"{reason} with --batch-size {run.config.batch_size}; start a new run with a smaller one, or with "
                "fewer --nfilters"
            ) from error


@contextmanager
def _owned(run: Run) -> Iterator[None]:
    """Lock the folder, and refuse it if another process has written to it since the run was opened."""
    with locked(run.folder, f"another process is at work in {run.folder}; wait for it, or choose another --out"):
        path = RunFolder(run.folder).checkpoint
        if files.stamp(path) != run.written.stamp:
            raise UserError(
                f"{path} was written by another process after this run was opened; go on with --resume "
                f"{run.folder}, or choose another --out"
            )
        files.sweep(run.folder)
        yield


def _refuse_void(run: Run) -> None:
    numbers = {part.numerics for part in run.history.parts}
    if fault := numerics.find_fault(resolve_config(run), numbers):
        raise UserError(f"{run.folder} is void ({fault}); start the run anew with another --out")


def _note_circumstances(run: Run, show: Show) -> None:
    """Begin a part of the run where its length, or anything that its last bits depend on, is not what it was."""
    now = circumstances(run)
    last = run.history.parts[-1] if run.history.parts else now
    # Checkpoints from before the numerics number mean 0; what else they do not name is not compared.
    names = [name for name in Part.model_fields if name in (last.model_fields_set | {"numerics"}) - {"epoch", "step"}]
    other = [name for name in names if getattr(last, name) != getattr(now, name)]
    if run.history.parts and not other:
        return
    run.history.parts.append(now)
    bits = [
        f"{name} {getattr(last, name)} before, {getattr(now, name)} now"
        for name in other
        if name not in ("nepochs", "code")
    ]
    if bits:
        show.say(f"{'; '.join(bits)}: the last bits may differ from those of a run that was not interrupted")


def _execute(run: Run, show: Show, stop: Callable[[], bool]) -> Record | None:
    if not run.ranks.alone:
        save_run(run)  # the end of another rank cannot be met by a last checkpoint, so there is one from the start
    saved = shown = started = time.monotonic()
    first = (run.state.epoch, run.state.step + 1)

    def after_step(state: loop.State) -> bool:
        nonlocal saved, shown
        now = time.monotonic()
        if run.config.compile == "on" and (state.epoch, state.step) == first:
            show.say(f"the first step took {now - started:.1f} s, most of it to compile")
        if now - shown > SHOW_EVERY:
            state.read()
            show.move(state.epoch * run.steps + state.step, _step_text(state, run.built.recipe))
            shown = now
        if now - saved > files.SAVE_EVERY:
            save_run(run)
            saved = now
        return not run.ranks.any(stop())

    with (
        _deterministic(run.config),
        show.bar(run.steps * run.built.recipe.nepochs, run.state.epoch * run.steps + run.state.step),
        logs.open_logs(run.folder, (run.config.log or ()) if run.ranks.first else (), run.history.rows) as log,
    ):
        for reached in loop.train(
            run.trained,
            run.training.images,
            run.training.labels,
            run.built.recipe,
            run.state,
            loop.Hooks(prepare=run.augmented, during=run.during, after_step=after_step),
        ):
            run.history.rows.append(_row(run, reached))
            log(run.history.rows[-1])
            show.say(_epoch_text(run.history.rows[-1], run.built.recipe))
    finished = run.state.epoch == run.built.recipe.nepochs
    if finished and run.history.rows[-1].correct is None:
        # A stopped run was resumed with --nepochs equal to the epochs done, so its last epoch has no test count yet.
        run.history.rows[-1] = count_test(run, run.history.rows[-1])
    save_run(run)
    return _finish(run) if finished else None


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


def _finish(run: Run) -> Record:
    path, record = RunFolder(run.folder).record, make_record(run)
    if run.ranks.first:
        # An older record must not stand beside newer weights, wherever the process is killed.
        checkpoint.save_weights(RunFolder(run.folder).weights, run.model, just_before=lambda: path.unlink(True))
        store.save_record(record, path)
    return record


def _step_text(state: loop.State, recipe: loop.Recipe) -> str:
    done = f"epoch {state.epoch + 1}/{recipe.nepochs}"
    reached = state.reached
    return (
        f"{done}  loss {reached.loss / reached.images:.3f}  accuracy {100 * reached.correct / reached.images:.2f} %  "
        f"{reached.images / reached.seconds:,.0f} images/s"
    )


def _epoch_text(row: Row, recipe: loop.Recipe) -> str:
    parts = [
        f"epoch {row.epoch + 1}/{recipe.nepochs}",
        f"loss {row.train_loss:.4f}",
        f"train {row.train_accuracy:.2f} %",
        f"{row.images_per_second:,.0f} images/s",
    ]
    if row.val_accuracy is not None:
        parts.append(f"validation {row.val_accuracy:.2f} %")
    if row.smoothed is not None:
        parts.append(f"test exact {row.exact:.2f} %, smoothed {row.smoothed:.2f} %")
    return "  ".join(parts)


def _row(run: Run, reached: loop.Epoch) -> Row:
    """Evaluate after an epoch, outside the training code."""
    validation = None if run.validation is None else run.answers(run.validation)
    row = Row(
        epoch=run.state.epoch - 1,
        lr=run.state.optimizer.param_groups[0]["lr"],
        train_loss=reached.loss / reached.images,
        train_accuracy=100 * reached.correct / reached.images,
        seconds=reached.seconds,
        images_per_second=reached.images / reached.seconds,
        val_loss=None if validation is None else validation.loss,
        val_accuracy=None if validation is None else validation.counts.percent,
    )
    is_last = run.state.epoch == run.built.recipe.nepochs
    return count_test(run, row) if run.config.audit or is_last or _is_best_validation(run, row) else row


def _is_best_validation(run: Run, row: Row) -> bool:
    best = max((r.val_accuracy for r in run.history.rows if r.val_accuracy is not None), default=-1.0)
    return row.val_accuracy is not None and row.val_accuracy > best


def save_run(run: Run) -> None:
    """Write the checkpoint, the metrics and the picture; all ranks hold the same state, and rank 0 writes."""
    if not run.ranks.first:
        return
    content: checkpoint.Checkpoint = {
        "config": run.config.model_dump(exclude={"resume"}),
        "hashes": dict(run.images.hashes),
        "model": run.model.state_dict(),
        "state": run.state.state_dict(),
        "rows": [row.values() for row in run.history.rows],
        "correct": run.history.correct,
        "parts": [part.model_dump(exclude_unset=True) for part in run.history.parts],
    }
    if not run.written.masks or not RunFolder(run.folder).masks.is_file():
        run.written.masks = checkpoint.save_fixed(run.folder, run.unchanging)
    checkpoint.save_checkpoint(RunFolder(run.folder).checkpoint, content, run.written.masks)
    run.written.stamp = files.stamp(RunFolder(run.folder).checkpoint)
    metrics = RunFolder(run.folder).metrics
    if len(run.history.rows) == run.written.epochs and metrics.is_file():
        return  # no epoch has ended since the picture was drawn, which takes longer than all the rest
    run.written.epochs = len(run.history.rows)
    write_atomically(metrics, metrics_text(run.history.rows).encode())
    if run.history.rows:
        title = f"{run.config.net} on {run.images.display}, seed {run.config.manual_seed}"
        progress.progress_svg(run.history.rows, RunFolder(run.folder).progress, title=title)
