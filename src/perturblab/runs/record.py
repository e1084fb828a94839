"""The record of a finished run: configuration, counts, environment and pictures of masks."""

import base64
import io
from dataclasses import asdict
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from PIL import Image
from pydantic import JsonValue
from torch import Tensor, nn

from perturblab.layers.kernels.build import way
from perturblab.layers.masks import Masks
from perturblab.models.describe import describe
from perturblab.records import environment, numerics, record
from perturblab.records.config import DEFENCE_OPTIONS, NET_OPTIONS
from perturblab.records.metrics import Row
from perturblab.runs.defence import resolve_defence
from perturblab.training import evaluate

if TYPE_CHECKING:
    from perturblab.runs.run import Run

# Fields that stay out of a record: folders, and how much was shown.
_PLACES = {
    "dataroot",
    "out",
    "resume",
    "log",
    "nthreads",
    "device",
    "quiet",
    "debug",
}


def make_record(run: "Run") -> record.Record:
    """Make the record of a finished run."""
    described = describe(run.model, run.built.task, run.config.net)
    splits = {"train": run.training, "val": run.validation or (), "test": run.images.test}
    return record.Record(
        version=record.VERSION,
        config=resolve_config(run),
        seed=run.config.manual_seed,
        numerics=numerics.NUMERICS,
        counts=_counts(run.history.rows, audited=run.config.audit),
        audit=_audit(run.history.rows) if run.config.audit else None,
        environment=environment.environment(
            threads=torch.get_num_threads(),
            precision=run.config.precision,
            compile=run.config.compile,
            device=run.device.type,
            ranks=run.ranks.world,
        ),
        data=record.Data(
            train=run.images.display,
            test=run.images.display,
            recognised=run.images.name,
            hashes=dict(run.images.hashes),
            classes=list(run.images.classes),
            sizes={name: len(split) for name, split in splits.items()},
        ),
        parameters=record.Parameters(**{key: described[key] for key in record.Parameters.model_fields}),
        masks=mask_pictures(run.model),
        parts=run.history.parts if len(run.history.parts) > 1 else [],
        seconds=sum(row.seconds for row in run.history.rows),
        status="finished",
    )


def circumstances(run: "Run") -> record.Part:
    """Describe a part of a run that begins here and now: its length, and all that its last bits depend on."""
    return record.Part(
        epoch=run.state.epoch,
        step=run.state.step,
        nepochs=run.built.recipe.nepochs,
        threads=torch.get_num_threads(),
        device=run.device.type,
        kernel=way() if run.device.type == "cpu" else "compiled",
        torch=str(torch.__version__),
        processor=environment.processor().model,
        numerics=numerics.NUMERICS,
        code=numerics.code_hash(),
    )


def resolve_config(run: "Run") -> dict[str, JsonValue]:
    """Give the flags that repeat the run, every default filled in: data by name, and no folder."""
    config = run.config
    left_out = {*_PLACES, "normalise", "augment", *NET_OPTIONS, *DEFENCE_OPTIONS, "manual_seed", "net_type", "defence"}
    given = config.model_dump(exclude=left_out, mode="json")
    recipe = asdict(run.built.recipe)
    resolved = {"nepochs": "nepochs", "optim_method": "optimizer", "learning_rate": "learning_rate"}
    return {
        **given,
        "net_type": config.net,
        "dataset_train": run.images.display,
        "dataset_test": run.images.display,
        "optimizer_schedule": recipe["schedule"],
        **{name: recipe[key] for name, key in resolved.items()},
        **run.built.options,
        "code": config.code,
        **_preparation_and_defence(run),
    }


def _preparation_and_defence(run: "Run") -> dict[str, JsonValue]:
    """Give the flags of preparation and defence that are not the usual ones."""
    preparation = {"normalise": run.config.normalise is not False, "augment": run.config.augment is not False}
    defence = resolve_defence(run.config, run.images.name, run.built.mixings, run.built.adversary)
    return {name: value for name, value in preparation.items() if not value} | defence


def _counts(rows: list[Row], *, audited: bool) -> record.EpochCounts:
    best = max((r for r in rows if r.val_accuracy is not None), key=lambda r: r.val_accuracy or 0.0, default=None)
    return record.EpochCounts(
        last=_count(rows[-1]),
        best_val=None if best is None else _count(best),
        best_test=_best_test(rows) if audited else None,
    )


def _count(row: Row) -> record.Count:
    return record.Count(**row.model_dump(include=set(record.Count.model_fields)))


def _best(rows: list[Row], name: str) -> Row:
    return max(rows, key=attrgetter(name))


def _best_test(rows: list[Row]) -> record.BestTest:
    means = [row.batch_mean or 0.0 for row in rows]
    late = evaluate.published_best(means)
    published = None if late is None else record.PublishedBest(epoch=late, batch_mean=means[late])
    return record.BestTest(**_count(_best(rows, "correct")).model_dump(), published_rule=published)


def _audit(rows: list[Row]) -> record.Audit:
    kept = {"last": rows[-1], "best_smoothed": _best(rows, "smoothed"), "best_exact": _best(rows, "correct")}
    fields = set(record.AuditRow.model_fields)
    return record.Audit(**{name: record.AuditRow(**row.model_dump(include=fields)) for name, row in kept.items()})


def mask_pictures(model: nn.Module) -> list[record.Mask]:
    """Draw the first mask of the first channel of every layer in 8 bits, from black (lowest) to white (highest)."""
    return [_mask_picture(name, m.value.detach()) for name, m in model.named_modules() if isinstance(m, Masks)]


def _mask_picture(name: str, value: Tensor) -> record.Mask:
    mask = value[0, 0].float().cpu()
    low, high = mask.min(), mask.max()
    gray = ((mask - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(gray.numpy()).save(file, "PNG")
    return record.Mask(layer=name, shape=list(value.shape), png=base64.b64encode(file.getvalue()).decode())
