"""Logs for other tools, beside metrics.jsonl: a CSV file, and event files of TensorBoard."""

import csv
import io
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perturblab.records.metrics import Row
from perturblab.system.extras import require
from perturblab.system.files import write_atomically


def require_logs(kinds: Collection[str]) -> None:
    """Check, before any work is done, that the logs can be written.

    Args:
        kinds: some of "csv" and "tb".

    Raises:
        UserError: TensorBoard is asked for and missing.
    """
    if "tb" in kinds:
        require("tb", "tensorboard", feature="--log tb")


def csv_text(rows: Sequence[Row]) -> str:
    """Write rows as CSV.

    Args:
        rows: one per epoch; a metric that only some of them have stays empty in the others.

    Returns:
        A header and a line a row.
    """
    values = [row.values() for row in rows]
    names = list(dict.fromkeys(name for row in values for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue()


@contextmanager
def open_logs(folder: Path, kinds: Collection[str], rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """Keep the logs of a run.

    Args:
        folder: the run's folder; ``metrics.csv`` and event files in ``tb`` go there.
        kinds: some of "csv" and "tb"; with none, nothing is written.
        rows: of the epochs that are over; the event files of a resumed run go on behind them.

    Yields:
        A function that takes the row of every further epoch.

    Raises:
        UserError: TensorBoard is missing, or a file cannot be written.
    """
    require_logs(kinds)
    written = list(rows)
    events = _events(folder / "tb", len(written)) if "tb" in kinds else None

    def add(row: Row) -> None:
        written.append(row)
        if "csv" in kinds:
            write_atomically(folder / "metrics.csv", csv_text(written).encode())
        if events is not None:
            for name, value in row.values().items():
                if value is not None and name != "epoch":
                    events.add_scalar(tag(name), value, row.epoch)
            events.flush()

    try:
        yield add
    finally:
        if events is not None:
            events.close()


def _events(folder: Path, first: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # An interrupted run measures the epochs after its last checkpoint again; their earlier events are purged.
    writer: Any = SummaryWriter
    return writer(str(folder), purge_step=first)


def tag(name: str) -> str:
    """Name a metric for TensorBoard, which groups metrics by the part before the slash.

    Args:
        name: as in metrics.jsonl, such as ``val_loss``.
    """
    part, _, rest = name.partition("_")
    groups = {"train": "train", "val": "validation", "test": "test"}
    if part in groups and rest:
        return f"{groups[part]}/{rest}"
    return f"run/{name}" if name in ("lr", "seconds", "images_per_second") else f"test/{name}"
