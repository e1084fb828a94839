"""Results of a run: its record, the metrics of its epochs, and the points of its curves under attack."""

from dataclasses import dataclass
from pathlib import Path

from perturblab.errors import UserError
from perturblab.records import numerics, store
from perturblab.records.metrics import Row, load_metrics
from perturblab.records.paths import FAILED_FILE, RunFolder
from perturblab.records.points import Point
from perturblab.records.record import Record
from perturblab.records.run_points import RunPoints
from perturblab.system.files import from_json


@dataclass(frozen=True)
class Result:
    """One run: its record, and the metrics and points that were kept.

    Args:
        record: of the run.
        metrics: one row per epoch; empty where they were not kept.
        points: of every attack but the worst cases, which are made anew from all of them.
    """

    record: Record
    metrics: tuple[Row, ...] = ()
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


def load_results(folder: Path) -> list[Result]:
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
    return [_result(path, record) for path, record in store.load_with_paths(folder) if not record.fault]


def load_void(folder: Path) -> list[str]:
    """Name the records below a folder that a known fault makes void, one line per record.

    Args:
        folder: as for `load_results`.

    Returns:
        Such as "K4 at cpu, seed 1 is void (numerics 1: level read twice); run it again", in the order of their paths.

    Raises:
        UserError: as for `load_results`.
    """
    found = [record for _, record in store.load_with_paths(folder)] if numerics.FAULTS else []
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
    for path in sorted(folder.rglob(FAILED_FILE)):
        try:
            content = from_json(path.read_text(encoding="utf-8"))
            found.append(Failed(str(content["name"]), str(content["reason"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read as a failure ({error}); delete it and run the study again"
            ) from error
    return found


def _result(path: Path, record: Record) -> Result:
    folder = RunFolder(path.parent)
    if path != folder.record:
        return Result(record)
    points = [point for point in RunPoints(path.parent).marked() if not point.name.is_worst]  # these are computed anew
    return Result(record, load_metrics(folder.metrics), tuple(points))
