"""From a configuration to a run folder: data, net, training, evaluation and the record of all of it."""

import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from perturblab import checkpoint, data, evaluate, records, report, stats, train
from perturblab.config import NET_OPTIONS, PUBLISHED, NetConfig, TrainConfig
from perturblab.errors import UserError
from perturblab.layers import Masks
from perturblab.models import Task, build, describe, options_read, resolve
from perturblab.progress import Show
from perturblab.seeding import stream

SAVE_EVERY = 60.0  # seconds of training between two checkpoints

# What stays out of a record: it says where things lay, or how much was shown.
_PLACES = {"dataroot", "out", "resume", "save", "logs", "nthreads", "device", "quiet", "debug", "learning_rate_decay"}


class Interrupted(Exception):
    """Training was stopped between two steps; the run can be resumed."""


def net_options(config: NetConfig, warn: Callable[[str], None]) -> dict[str, Any]:
    """The options that the net reads, with the defaults of the chosen code and of the net.

    Args:
        config: what was given.
        warn: told about a published flag that no ResNet reads.

    Raises:
        UserError: no such net; a given option that it does not read; an option out of range.
    """
    try:
        read = options_read(config.net)
        given = {name: value for name in NET_OPTIONS if (value := getattr(config, name)) is not None}
        unread = [name for name in given if name not in read]
        if "dropout" in unread:
            # The published commands may carry it: their parser took it, and their ResNets never looked at it.
            warn(f"warning: --dropout is not read by {config.net}, as in the published codes")
            del given["dropout"]
            unread.remove("dropout")
        if unread:
            flags = ", ".join("--" + name.replace("_", "-") for name in unread)
            raise UserError(f"{flags} given, but {config.net} does not read it; drop it or choose another --net-type")
        fixed = {"level": PUBLISHED[config.code]["level"], "code": config.code}
        return asdict(resolve(config.net, {**{k: v for k, v in fixed.items() if k in read}, **given}))
    except ValueError as error:
        raise _as_user_error(error) from error


def _as_user_error(error: ValueError) -> UserError:
    return error if isinstance(error, UserError) else UserError(str(error))


def build_net(config: NetConfig, task: Task, *, seed: int, warn: Callable[[str], None] = lambda text: None) -> nn.Module:
    """Build the net of a configuration.

    Raises:
        UserError: the net cannot be built as asked.
    """
    options = net_options(config, warn)
    try:
        return build(config.net, task=task, seed=seed, **options)
    except ValueError as error:
        raise _as_user_error(error) from error


def make_recipe(config: TrainConfig, dataset: str) -> train.Recipe:
    """The recipe of a configuration, with the published defaults of its code."""
    published = PUBLISHED[config.code]
    return train.Recipe(
        nepochs=config.nepochs or published["nepochs"],
        batch_size=config.batch_size,
        optimizer=config.optim_method or published["optim_method"],
        learning_rate=config.learning_rate or published["learning_rate"],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        schedule=config.optimizer_schedule or config.code,
        dataset=dataset,
        drop_last=config.code == "or",
        seed=config.manual_seed,
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device got {name!r}, which is not to be had here; use cpu, or cuda on a machine with one") from error


def load_data(config: TrainConfig, show: Show) -> data.ImageData:
    """The images of a configuration, with the classes it asks for."""
    loaded = data.load(config.dataset_train, dataroot=config.dataroot, progress=show.loading)
    if config.dataset_test not in (None, config.dataset_train):
        test = data.load(str(config.dataset_test), dataroot=config.dataroot, progress=show.loading)
        loaded = data.combine(loaded, test)
    return data.select_classes(loaded, config.classes) if config.classes else loaded


@dataclass
class Run:
    """A run in memory: everything between its configuration and its folder."""

    config: TrainConfig
    folder: Path
    data: data.ImageData
    train: data.Split
    val: data.Split | None
    preparation: data.Preparation
    model: nn.Module
    recipe: train.Recipe
    state: train.State
    device: torch.device
    rows: list[dict[str, Any]]
    correct: list[Tensor]  # audited answers, bool (N,), one an epoch

    @property
    def task(self) -> Task:
        """What the net was built for."""
        return _task(self.data)

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) to what the model takes, on its device."""
        x = data.normalise(images.to(self.device), self.preparation)
        return x.contiguous(memory_format=torch.channels_last)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The same, with this run's augmentation."""
        return self.normalised(data.augment(images, self.preparation, generator))

    def answers(self, split: data.Split) -> evaluate.Answers:
        """The net's exact answers on a split, in eval mode."""
        self.model.eval()
        return evaluate.answers(self.model, split.images, split.labels, prepare=self.normalised)


def _task(images: data.ImageData) -> Task:
    channels, height, width = images.image_size
    return Task(len(images.classes), channels, (height, width))


def open_run(config: TrainConfig, folder: Path, show: Show) -> Run:
    """Load the data, build the net and stand before the first step; nothing is written.

    Raises:
        UserError: bad data, an impossible net, no such device.
    """
    device = choose_device(config.device)
    net_options(config, show.say)  # a mistake in the flags is told before the data are read
    images = load_data(config, show)
    split, val = images.train, None
    if config.train_size:
        split = data.stratified_subset(split, config.train_size, stream(config.manual_seed, "subset"))
    if config.val_size:
        split, val = data.hold_out(split, config.val_size, stream(config.manual_seed, "validation"))
    model = build_net(config, _task(images), seed=config.manual_seed)
    recipe = make_recipe(config, images.name)
    _check_last_batch(config, _task(images), len(split), recipe)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = train.start(model, recipe)
    preparation = data.preparation(images)
    return Run(config, folder, images, split, val, preparation, model, recipe, state, device, [], [])


def _check_last_batch(config: TrainConfig, task: Task, images: int, recipe: train.Recipe) -> None:
    """Refuse at the start what batch norm would refuse at the end of the first epoch."""
    smallest = recipe.batch_size if recipe.drop_last else min(images % recipe.batch_size or recipe.batch_size, images)
    train.steps_per_epoch(images, recipe)
    if smallest > 1:
        return
    with torch.device("meta"):
        net = build_net(config, task, seed=0).train()
    try:
        net(torch.empty(1, task.channels, *task.size, device="meta"))
    except ValueError as error:
        raise UserError(
            f"--batch-size {recipe.batch_size} leaves a batch of 1 of {images} training images, and this net's batch norm "
            "sees a single value there; use another batch size"
        ) from error


def resume_run(folder: Path, changes: dict[str, Any], show: Show) -> Run:
    """Open a run where it stopped.

    Args:
        folder: the run's folder.
        changes: fields given now that may replace the run's own.
        show: where progress goes.

    Raises:
        UserError: no such run, or another net or other data than the run's.
    """
    saved = checkpoint.load_checkpoint(folder / "checkpoint.pt")
    config = TrainConfig(**{**saved["config"], **changes})
    run = open_run(config, folder, show)
    if dict(run.data.hashes) != saved["hashes"]:
        raise UserError(f"the images of {run.data.display} are not those that {folder} was trained on; restore them")
    run.model.load_state_dict(saved["model"])
    run.state.load_state_dict(saved["state"])
    run.rows, run.correct = saved["rows"], saved["correct"]
    return run


def execute(run: Run, show: Show, stop: Callable[[], bool] = lambda: False) -> records.Record:
    """Train to the end, evaluating after every epoch, and write the run's folder.

    Args:
        run: opened or resumed.
        show: where progress goes.
        stop: asked after every step; True ends the run cleanly.

    Returns:
        The record, also written as ``record.json``.

    Raises:
        Interrupted: ``stop`` said so; a checkpoint was written.
        NonFiniteError: the loss is not finite; nothing is recorded as a result.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    steps = train.steps_per_epoch(len(run.train), run.recipe)
    saved = time.monotonic()

    def after_step(state: train.State) -> bool:
        nonlocal saved
        show.move(state.epoch * steps + state.step, _step_text(state, run.recipe))
        if time.monotonic() - saved > SAVE_EVERY:
            save(run)
            saved = time.monotonic()
        return not stop()

    with show.bar(steps * run.recipe.nepochs, run.state.epoch * steps + run.state.step):
        for reached in train.train(
            run.model,
            run.train.images,
            run.train.labels,
            run.recipe,
            run.state,
            prepare=run.augmented,
            after_step=after_step,
        ):
            show.say(_epoch_text(_finish_epoch(run, reached), run.recipe))
    save(run)
    if run.state.epoch < run.recipe.nepochs:
        raise Interrupted(f"stopped in epoch {run.state.epoch} after step {run.state.step} of {steps}")
    checkpoint.save_weights(run.folder / "weights.safetensors", run.model)
    record = make_record(run)
    records.save(record, run.folder / "record.json")
    return record


def _step_text(state: train.State, recipe: train.Recipe) -> str:
    reached = state.reached
    if not reached.images:
        return f"epoch {state.epoch + 1}/{recipe.nepochs}"
    return (
        f"epoch {state.epoch + 1}/{recipe.nepochs}  loss {reached.loss / reached.images:.3f}  "
        f"accuracy {100 * reached.correct / reached.images:.2f} %  {reached.images / reached.seconds:,.0f} images/s"
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


def _finish_epoch(run: Run, reached: train.Epoch) -> dict[str, Any]:
    """Evaluate after an epoch, outside the training code, and add its row."""
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
    if run.val is not None:
        answers = run.answers(run.val)
        row |= {"val_loss": answers.loss, "val_accuracy": answers.counts.percent}
    last = run.state.epoch == run.recipe.nepochs
    if run.config.audit or last or _is_best_val(run, row):
        row |= _test_row(run)
    run.rows.append(row)
    return row


def _is_best_val(run: Run, row: dict[str, Any]) -> bool:
    best = max((r["val_accuracy"] for r in run.rows if r["val_accuracy"] is not None), default=-1.0)
    return row["val_accuracy"] is not None and row["val_accuracy"] > best


def _test_row(run: Run) -> dict[str, Any]:
    answers = run.answers(run.data.test)
    row: dict[str, Any] = {"test_loss": answers.loss, "exact": answers.counts.percent, **asdict(answers.counts)}
    if run.config.audit:
        start = run.rows[-1]["smoothed"] if run.rows else 0.0
        row |= evaluate.audit(answers.correct, run.config.batch_size, start=start)
        run.correct.append(answers.correct)
    return row


def save(run: Run) -> None:
    """Write what is needed to resume, the metrics and the picture."""
    content = {
        "version": records.VERSION,
        "config": run.config.model_dump(exclude={"resume"}),
        "hashes": dict(run.data.hashes),
        "model": run.model.state_dict(),
        "state": run.state.state_dict(),
        "rows": run.rows,
        "correct": run.correct,
    }
    checkpoint.save_checkpoint(run.folder / "checkpoint.pt", content)
    lines = "".join(json.dumps(row) + "\n" for row in run.rows)
    checkpoint.write_atomically(run.folder / "metrics.jsonl", lambda path: path.write_text(lines))
    if run.rows:
        report.progress_svg(run.rows, run.folder / "progress.svg", title=f"{run.config.net} on {run.data.display}")


def make_record(run: Run) -> records.Record:
    """The record of a finished run."""
    described = describe(run.model, run.task, run.config.net)
    split = {"train": len(run.train), "val": len(run.val) if run.val else 0, "test": len(run.data.test)}
    return records.Record(
        version=records.VERSION,
        config=resolved_config(run),
        seed=run.config.manual_seed,
        counts=_counts(run.rows, audited=run.config.audit),
        audit=_audit(run.rows) if run.config.audit else None,
        environment=records.environment(
            threads=torch.get_num_threads(), precision="fp32", compile="off", device=run.device.type
        ),
        data=records.Data(
            train=run.data.display,
            test=run.data.display,
            recognised=run.data.name,
            hashes=dict(run.data.hashes),
            classes=list(run.data.classes),
            sizes=split,
        ),
        parameters={key: described[key] for key in ("trainable", "frozen", "masks", "macs")},
        masks=mask_pictures(run.model),
        seconds=sum(row["seconds"] for row in run.rows),
        status="finished",
    )


def resolved_config(run: Run) -> dict[str, Any]:
    """What repeats the run: every flag with its default filled in; data by name, no places."""
    config = run.config
    given = config.model_dump(exclude={*_PLACES, *NET_OPTIONS, "manual_seed", "net_type"}, mode="json")
    recipe = asdict(run.recipe)
    options = net_options(config, lambda text: None)
    resolved = {"nepochs": "nepochs", "optim_method": "optimizer", "learning_rate": "learning_rate"}
    return {
        **given,
        "net_type": config.net,
        "dataset_train": run.data.display,
        "dataset_test": run.data.display,
        "optimizer_schedule": recipe["schedule"],
        **{name: recipe[key] for name, key in resolved.items()},
        **options,
        "code": config.code,
    }


def _counts(rows: list[dict[str, Any]], *, audited: bool) -> records.Counts:
    best = max((r for r in rows if r["val_accuracy"] is not None), key=lambda r: r["val_accuracy"], default=None)
    return records.Counts(
        last=_count(rows[-1]),
        best_val=None if best is None else _count(best),
        best_test=_best_test(rows) if audited else None,
    )


def _count(row: dict[str, Any]) -> records.Count:
    return records.Count(epoch=row["epoch"], correct=row["correct"], total=row["total"])


def _best_test(rows: list[dict[str, Any]]) -> records.BestTest:
    best = max(rows, key=lambda row: row["correct"])
    late = evaluate.published_best([row["batch_mean"] for row in rows])
    published = None if late is None else records.PublishedBest(epoch=late, batch_mean=rows[late]["batch_mean"])
    return records.BestTest(**_count(best).model_dump(), published_rule=published)


def _audit(rows: list[dict[str, Any]]) -> records.Audit:
    def row(of: dict[str, Any]) -> records.AuditRow:
        return records.AuditRow(**{name: of[name] for name in records.AuditRow.model_fields})

    return records.Audit(
        last=row(rows[-1]),
        best_smoothed=row(max(rows, key=lambda r: r["smoothed"])),
        best_exact=row(max(rows, key=lambda r: r["correct"])),
    )


def mask_pictures(model: nn.Module) -> list[records.Mask]:
    """One 8-bit picture of a mask a layer: the first mask of the first channel, from its lowest to its highest value."""
    return [_mask_picture(name, m.value.detach()) for name, m in model.named_modules() if isinstance(m, Masks)]


def _mask_picture(name: str, value: Tensor) -> records.Mask:
    mask = value[0, 0].float().cpu()
    low, high = mask.min(), mask.max()
    gray = ((mask - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(gray.numpy()).save(file, "PNG")
    return records.Mask(layer=name, shape=list(value.shape), png=base64.b64encode(file.getvalue()).decode())


def evaluate_run(
    folder: Path, *, audited: bool = False, batch_size: int | None = None, dataroot: str | None = None
) -> dict[str, Any]:
    """Count a run's correct test images anew, from its weights.

    Args:
        folder: the run's folder.
        audited: add the published metrics, computed from the same answers.
        batch_size: nominal test batch of the audit; the run's by default.
        dataroot: where the data set is looked for first; the run's by default.

    Returns:
        ``exact`` {correct, total}, ``wilson`` [low, high] in percent; audited, also ``batch_mean``,
        ``batch_mean_truncated``, ``smoothed`` (percent) and ``n_batches``.

    Raises:
        UserError: no such run, other test images than the run's, weights of another net.
    """
    saved = checkpoint.load_checkpoint(folder / "checkpoint.pt")
    changes = {} if dataroot is None else {"dataroot": dataroot}
    run = open_run(TrainConfig(**{**saved["config"], **changes}), folder, Show(quiet=True))
    if run.data.hashes["test"] != saved["hashes"]["test"]:
        raise UserError(f"the test images of {run.data.display} are not those of {folder}; give --dataroot")
    checkpoint.load_weights(folder / "weights.safetensors", run.model)
    found = run.answers(run.data.test)
    counts = found.counts
    result: dict[str, Any] = {"exact": asdict(counts), "wilson": list(stats.wilson(counts.correct, counts.total))}
    if audited:
        metrics = evaluate.audit(found.correct, batch_size or run.config.batch_size)
        result |= {name: metrics[name] for name in ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches")}
    return result
