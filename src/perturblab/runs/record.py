"""The record of a finished run."""

import base64
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from perturblab.layers.kernels.native import way
from perturblab.layers.masks import Masks
from perturblab.models.describe import describe
from perturblab.models.skeleton import Task
from perturblab.records import environment, numerics, record
from perturblab.records.config import DEFENCE_OPTIONS, NET_OPTIONS
from perturblab.runs.build import net_options
from perturblab.runs.defence import resolved_defence
from perturblab.training import evaluate

if TYPE_CHECKING:
    from perturblab.runs.run import Run

# What stays out of a record: it says where things lay, or how much was shown.
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
    """The record of a finished run."""
    channels, *size = run.images.image_size
    described = describe(run.model, Task(len(run.images.classes), channels, (size[0], size[1])), run.config.net)
    splits = {"train": run.training, "val": run.validation or (), "test": run.images.test}
    return record.Record(
        version=record.VERSION,
        config=resolved_config(run),
        seed=run.config.manual_seed,
        numerics=numerics.NUMERICS,
        counts=_counts(run.rows, audited=run.config.audit),
        audit=_audit(run.rows) if run.config.audit else None,
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
        parts=[record.Part(**part) for part in run.parts] if len(run.parts) > 1 else [],
        seconds=sum(row["seconds"] for row in run.rows),
        status="finished",
    )


def circumstances(run: "Run") -> dict[str, Any]:
    """What may change between two parts of a run: its length, what its last bits depend on, and the source hash."""
    return {
        "nepochs": run.recipe.nepochs,
        "threads": torch.get_num_threads(),
        "device": run.device.type,
        "kernel": way() if run.device.type == "cpu" else "compiled",
        "torch": str(torch.__version__),
        "processor": environment.processor().model,
        "numerics": numerics.NUMERICS,
        "code": numerics.code_hash(),
    }


def resolved_config(run: "Run") -> dict[str, Any]:
    """What repeats the run: every flag with its default filled in; data by name, no places."""
    config = run.config
    left_out = {*_PLACES, "normalise", "augment", *NET_OPTIONS, *DEFENCE_OPTIONS, "manual_seed", "net_type", "defence"}
    given = config.model_dump(exclude=left_out, mode="json")
    recipe = asdict(run.recipe)
    options = net_options(config, lambda text: None)
    resolved = {"nepochs": "nepochs", "optim_method": "optimizer", "learning_rate": "learning_rate"}
    return {
        **given,
        "net_type": config.net,
        "dataset_train": run.images.display,
        "dataset_test": run.images.display,
        "optimizer_schedule": recipe["schedule"],
        **{name: recipe[key] for name, key in resolved.items()},
        **options,
        "code": config.code,
        **_preparation_and_defence(run),
    }


def _preparation_and_defence(run: "Run") -> dict[str, Any]:
    """What was done to the images and in training; a run without a defence has no word of one."""
    preparation = {"normalise": run.config.normalise is not False, "augment": run.config.augment is not False}
    defence = resolved_defence(run.config, run.images.name, run.mixings)
    return {name: value for name, value in preparation.items() if not value} | defence


def _counts(rows: list[dict[str, Any]], *, audited: bool) -> record.Counts:
    best = max((r for r in rows if r["val_accuracy"] is not None), key=lambda r: r["val_accuracy"], default=None)
    return record.Counts(
        last=_count(rows[-1]),
        best_val=None if best is None else _count(best),
        best_test=_best_test(rows) if audited else None,
    )


def _count(row: dict[str, Any]) -> record.Count:
    return record.Count(epoch=row["epoch"], correct=row["correct"], total=row["total"])


def _best_test(rows: list[dict[str, Any]]) -> record.BestTest:
    best = max(rows, key=lambda row: row["correct"])
    late = evaluate.published_best([row["batch_mean"] for row in rows])
    published = None if late is None else record.PublishedBest(epoch=late, batch_mean=rows[late]["batch_mean"])
    return record.BestTest(**_count(best).model_dump(), published_rule=published)


def _audit(rows: list[dict[str, Any]]) -> record.Audit:
    def row(of: dict[str, Any]) -> record.AuditRow:
        return record.AuditRow(**{name: of[name] for name in record.AuditRow.model_fields})

    return record.Audit(
        last=row(rows[-1]),
        best_smoothed=row(max(rows, key=lambda r: r["smoothed"])),
        best_exact=row(max(rows, key=lambda r: r["correct"])),
    )


def mask_pictures(model: nn.Module) -> list[record.Mask]:
    """One 8-bit picture a layer: the first mask of the first channel, black its lowest value, white its highest."""
    return [_mask_picture(name, m.value.detach()) for name, m in model.named_modules() if isinstance(m, Masks)]


def _mask_picture(name: str, value: Tensor) -> record.Mask:
    mask = value[0, 0].float().cpu()
    low, high = mask.min(), mask.max()
    gray = ((mask - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(gray.numpy()).save(file, "PNG")
    return record.Mask(layer=name, shape=list(value.shape), png=base64.b64encode(file.getvalue()).decode())
