"""The model card of a run: measurements, their uncertainty and the doubts about them. A pure function."""

import json
from collections.abc import Sequence

from pydantic import JsonValue

from perturblab.errors import one_line
from perturblab.records.flags import flag_note
from perturblab.records.groups import group
from perturblab.records.markdown import escape, markdown_table
from perturblab.records.points import Point
from perturblab.records.radius import radius
from perturblab.records.record import Record
from perturblab.stats import brackets, wilson

_USE = """```python
from perturblab.pretrained import from_pretrained

net = from_pretrained("this repository, as USER/NAME, or a folder")
logits = net.in_pixels(pixels)  # (N, C, H, W) in [0, 1] to (N, classes)
names = [net.classes[label] for label in logits.argmax(1)]
```"""


def model_card(record: Record, points: Sequence[Point] = ()) -> str:
    """Write the card.

    Args:
        record: of the run.
        points: of attacks on it; none where it was not attacked.

    Returns:
        Markdown with the hub's metadata in front; the same record gives the same bytes.
    """
    label = group([record])[0].label
    epochs = record.counts.last.epoch + 1
    parts = [
        _metadata(record, label),
        f"# {escape(label)}",
        f"A net of perturblab, trained on {escape(record.data.train)} for {epochs} epochs, seed {record.seed}.",
        "## Result",
        _result(record),
        "## Under attack",
        _under_attack(points),
        "## How to use",
        _USE,
        "## How it was trained",
        _training(record),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(record: Record, label: str) -> str:
    """Write YAML with its values in JSON, which is a part of YAML, so that no name can break it."""
    dataset: JsonValue = {"name": one_line(record.data.test), "type": one_line(record.data.recognised)}
    metric: JsonValue = {
        "type": "accuracy",
        "name": "Accuracy, percent, last epoch",
        "value": record.counts.last.accuracy,
    }
    task: JsonValue = {"type": "image-classification"}
    fields: dict[str, JsonValue] = {
        "library_name": "perturblab",
        "pipeline_tag": "image-classification",
        "tags": ["perturblab", one_line(str(record.config.get("net_type", "net")))],
        "model-index": [
            {"name": one_line(label), "results": [{"task": task, "dataset": dataset, "metrics": [metric]}]}
        ],
    }
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _result(record: Record) -> str:
    last = record.counts.last
    ends = brackets(wilson(last.correct, last.total))
    lines = [
        f"**{last.accuracy:.2f} %** of the test images of {escape(record.data.test)} ({last.correct:,} of "
        f"{last.total:,}, each counted once), after the last epoch; 95 % Wilson interval {ends}, "
        "which is the noise of a finite test set. A single run: no interval over seeds."
    ]
    if best := record.counts.best_val:
        lines.append(f"At the best epoch on validation images: {best.accuracy:.2f} % of the test images.")
    if best_test := record.counts.best_test:
        lines.append(f"At the best epoch on test: {best_test.accuracy:.2f} %, {best_test.selection}, optimistic.")
    if record.audit:
        row = record.audit.last
        lines.append(
            f"The published codes would have reported {row.batch_mean:.2f} % (mean over batches), "
            f"{row.batch_mean_truncated:.2f} % (truncated) or {row.smoothed:.2f} % (smoothed) for the same answers."
        )
    return "\n\n".join(lines)


def _under_attack(points: Sequence[Point]) -> str:
    if not points:
        return "Not attacked: nothing is known about its robustness."
    rows = []
    for point in points:
        at = f"{point.eps:g} iterations" if point.name.kind.by_iterations else f"{point.norm} {radius(point.eps)}"
        correct, ends = f"{point.correct:,} of {point.total:,}", brackets(point.wilson)
        rows.append([point.attack, at, correct, f"{point.percent:.2f}", ends, flag_note(point.flags)])
    header = ["attack", "at", "correct", "accuracy, %", "95 % Wilson interval", "flags"]
    below = "An accuracy under attack is an empirical upper bound, never a guarantee."
    return f"{markdown_table(header, rows, 'llrrrl')}\n\n{below}"


def _training(record: Record) -> str:
    counted = record.parameters
    settings = json.dumps(record.config, indent=1, sort_keys=True)
    where = ", ".join(f"{name} {version}" for name, version in sorted(record.environment.packages.items()))
    return (
        f"{counted.trainable:,} trained parameters, {counted.masks:,} mask values, {counted.macs:,} "
        f"multiply-accumulates an image. On {escape(record.environment.processor.model)} with {escape(where)}.\n\n"
        f"```json\n{settings}\n```"
    )
