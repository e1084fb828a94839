"""Records as a table of pandas, in one line."""

from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.records import store
from perturblab.records.groups import group
from perturblab.stats import wilson

if TYPE_CHECKING:
    import pandas


def frame(folder: str | Path) -> "pandas.DataFrame":
    """Read every record below a folder into a table.

    Args:
        folder: a results folder or a run's folder.

    Returns:
        A row a record: ``label`` (of its experiment, the same for all seeds), ``seed``, ``status``, ``accuracy``
        (exact, last epoch, percent) with the ends ``low`` and ``high`` of its 95 % Wilson interval, ``seconds``; then
        every other field under its dotted name, such as ``config.net_type``, ``counts.last.correct`` or
        ``parameters.trainable``. Pictures of masks are left out, and records that a known fault makes void. Sorted by
        label and seed.

    Raises:
        UserError: the folder is missing, or a record is broken.
    """
    import pandas

    rows = []
    for found in group([record for record in store.load_all(Path(folder)) if not record.fault]):
        for record in found.records:
            last = record.counts.last
            low, high = wilson(last.correct, last.total)
            first = {"label": found.label, "seed": record.seed, "status": record.status}
            first |= {"accuracy": last.accuracy, "low": low, "high": high, "seconds": record.seconds}
            rows.append(first | record.model_dump(mode="json", exclude={"masks", *first}))
    return pandas.json_normalize(rows)
