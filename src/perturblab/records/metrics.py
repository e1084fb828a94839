"""Metrics of a run: one row per epoch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perturblab.errors import UserError
from perturblab.system.files import from_json

_PERCENT = frozenset({"exact", "train_accuracy", "batch_mean", "batch_mean_truncated", "smoothed"})


def load_metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.is_file():
        return ()
    try:
        rows = tuple(from_json(line) for line in path.read_text(encoding="utf-8").splitlines())
        for row in rows:
            _check(row)
    except (ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as metrics ({error}); restore the file") from error
    return rows


def _check(row: Any) -> None:
    """A row of numbers, some of them unknown; of every epoch at least its loss."""
    if not isinstance(row, dict) or not isinstance(row.get("epoch"), int) or row.get("train_loss") is None:
        raise ValueError(f"an epoch without a loss: {str(row)[:60]}")
    for key, value in row.items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{key[:40]} is {str(value)[:40]}, expected a finite number")
        if value is not None and key in _PERCENT and not 0 <= value <= 100:
            raise ValueError(f"{key} is {str(value)[:40]}, expected percent")
