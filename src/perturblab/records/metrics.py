"""Metrics of a run: one row per epoch, in ``metrics.jsonl`` and in its checkpoints."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, FiniteFloat, ValidationError, model_validator

from perturblab.errors import UserError, one_line
from perturblab.records.fields import Natural, NonNegative, Percent, Positive
from perturblab.system.files import from_json

_COUNTED = ("test_loss", "correct", "total")
_AUDITED = (*_COUNTED, "batch_mean", "batch_mean_truncated", "smoothed", "n_batches")


class Row(BaseModel, frozen=True, strict=True):
    """One epoch (0-based): losses are means over images, accuracies are in percent.

    The test images are counted after the last epoch, after the best one on validation and, with the audit, after every
    one; elsewhere the fields from ``test_loss`` on are None, and are not written.
    """

    epoch: Natural
    lr: FiniteFloat
    train_loss: FiniteFloat
    train_accuracy: Percent
    seconds: NonNegative
    images_per_second: FiniteFloat
    val_loss: FiniteFloat | None
    val_accuracy: Percent | None
    test_loss: FiniteFloat | None = None
    exact: Percent | None = None
    correct: Natural | None = None
    total: Positive | None = None
    batch_mean: Percent | None = None
    batch_mean_truncated: Percent | None = None
    smoothed: Percent | None = None
    n_batches: Positive | None = None

    @model_validator(mode="after")
    def _correct_is_possible(self) -> Self:
        if self.correct is not None and (self.total is None or self.correct > self.total):
            raise ValueError(f"correct is {self.correct} of {self.total}")
        return self

    def values(self) -> dict[str, float | None]:
        """Give the fields as they are written, without those that were not measured."""
        return self.model_dump(exclude_unset=True)


def load_metrics(path: Path) -> tuple[Row, ...]:
    """Read the metrics of a run; none where there is no such file.

    Args:
        path: ``metrics.jsonl`` of the run.

    Raises:
        UserError: a line is not a row.
    """
    if not path.is_file():
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return tuple(_row(from_json(line), number) for number, line in enumerate(lines))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as metrics ({error}); restore the file") from error


def metrics_text(rows: Iterable[Row]) -> str:
    """Write rows as ``metrics.jsonl`` holds them: one JSON object per line."""
    return "".join(json.dumps(row.values()) + "\n" for row in rows)


def _row(value: Any, number: int) -> Row:
    try:
        return Row.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(one_line(f"row {number}: {key}: {first['msg'].lower()}")) from error


def check_rows(values: Iterable[Any], total: int, *, audited: bool) -> list[Row]:
    """Read the rows of a checkpoint, and refuse those that its run cannot have written.

    Args:
        values: one mapping per epoch.
        total: test images.
        audited: every epoch was counted on the test set, with the published metrics.

    Raises:
        ValueError: a row lacks something, or holds what cannot be; names it.
    """
    best, rows = -1.0, []
    for number, value in enumerate(values):
        row = _row(value, number)
        if is_best := row.val_accuracy is not None and row.val_accuracy > best:
            best = row.val_accuracy
        if row.epoch != number or row.total not in (total, None):
            raise ValueError(f"row {number} is of epoch {row.epoch} and {row.total} images, expected {total}")
        needed = _AUDITED if audited else _COUNTED if is_best else ()
        if lacking := [name for name in needed if getattr(row, name) is None]:
            raise ValueError(f"row {number} lacks {', '.join(lacking)}")
        rows.append(row)
    return rows
