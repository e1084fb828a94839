"""What a run has left: its record, the metrics of its epochs, the points of its curves under attack."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab import numerics, records
from perturblab.errors import UserError
from perturblab.points import WORST, Point, load_run_points
from perturblab.records import Record
from perturblab.system.files import from_json

_PERCENT = frozenset({"exact", "train_accuracy", "batch_mean", "batch_mean_truncated", "smoothed"})
FAILED = "failed.json"  # written by a study beside where the record would be


@dataclass(frozen=True)
class Run:
    """One run, as far as it was kept.

    Args:
        record: what it left.
        metrics: a row an epoch; empty where they were not kept.
        points: of every attack but the worst cases, which are made anew from all of them.
    """

    record: Record
    metrics: tuple[Mapping[str, Any], ...] = ()
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Failed:
    """A run that ended without a record.

    Args:
        name: set-up and seed.
        reason: the last line that it said.
    """

    name: str
    reason: str


def load(folder: Path) -> list[Run]:
    """Read every run below a folder.

    Args:
        folder: of results or of runs; a record is any ``*.json`` with a record's keys, and where it is called
            ``record.json``, ``metrics.jsonl`` and ``attacks/*.json`` beside it belong to it.

    Returns:
        Runs in the order of their paths; none where there are no records. Those that a known fault makes void are
        left out; `load_void` names them.

    Raises:
        UserError: the folder is missing, or a file is broken (none is left out in silence).
    """
    return [_run(path, record) for path, record in records.found(folder) if not record.fault]


def load_void(folder: Path) -> list[str]:
    """Name the records below a folder that a known fault makes void, a line each.

    Args:
        folder: as for `load`.

    Returns:
        Such as "K4 at cpu, seed 1 is void (numerics 1: level read twice); run it again", in the order of their paths.

    Raises:
        UserError: as for `load`.
    """
    found = [record for _, record in records.found(folder)] if numerics.FAULTS else []
    return [
        f"{_name(record)}, seed {record.seed} is void ({fault}); run it again"
        for record in found
        if (fault := record.fault)
    ]


def _name(record: Record) -> str:
    return f"{record.study.setup} at {record.study.preset}" if record.study else str(record.config.get("net_type"))


def load_failed(folder: Path) -> list[Failed]:
    """Read what failed in the studies below a folder, in the order of their paths.

    Args:
        folder: of results.

    Raises:
        UserError: a file is broken.
    """
    found = []
    for path in sorted(folder.rglob(FAILED)):
        try:
            content = from_json(path.read_text(encoding="utf-8"))
            found.append(Failed(str(content["name"]), str(content["reason"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read as a failure ({error}); delete it and run the study again"
            ) from error
    return found


def _run(path: Path, record: Record) -> Run:
    if path.name != "record.json":
        return Run(record)
    points = [point for point in load_run_points(path.parent) if point.attack != WORST]
    return Run(record, _metrics(path.with_name("metrics.jsonl")), tuple(points))


def _metrics(path: Path) -> tuple[Mapping[str, Any], ...]:
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
