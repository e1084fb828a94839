"""Tables of groups of seeds, with verdicts against a control."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from perturblab import stats
from perturblab.errors import UserError, one_line
from perturblab.records.groups import Group, group
from perturblab.records.markdown import escape, markdown_table
from perturblab.records.record import Record

if TYPE_CHECKING:
    from rich.table import Table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOTHING = "There are no records yet."
BEST_ON_TEST = "Best epoch on test (selected on the test set, optimistic)"
BEST_ON_VALIDATION = "Best epoch on validation"


@dataclass(frozen=True)
class AuditMeans:
    """Means over seeds in percent: the last epoch in the published metrics, and the best epoch on test, exact."""

    batch_mean: float
    batch_mean_truncated: float
    smoothed: float
    best_test: float


@dataclass(frozen=True)
class GroupRow:
    """A group in numbers: exact last-epoch accuracies in percent, and the difference to the control in points.

    ``wilson`` is set for a single seed only. ``holm_p`` is the paired t p-value after Holm's correction for all
    comparisons of the table. ``note`` says why there is no comparison. ``best_val`` is the mean test accuracy of the
    epochs that were best on validation.
    """

    label: str
    trainable: int
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    interrupted: tuple[int, ...]
    interval: stats.Interval | None
    wilson: tuple[float, float] | None
    audit: AuditMeans | None
    comparison: stats.Paired | None = None
    holm_p: float | None = None
    comparisons: int = 0
    note: str = ""
    best_val: float | None = None


def group_rows(records: Sequence[Record], control: str | None = None) -> list[GroupRow]:
    """Reduce records to one row per group, the control first.

    Args:
        records: in any order.
        control: label of the group that all others are compared to, paired by seed; None for no comparison.

    Returns:
        The rows; a group has an audit if each of its finished records has one.

    Raises:
        UserError: no group has the control's label, or a seed has two different results.
    """
    groups = group(records)
    rows = [_row(g) for g in groups]
    if control is None or not rows:
        return rows
    reference = _find(groups, control)
    compared = [_compare(row, g, reference) for row, g in zip(rows, groups, strict=True)]
    return sorted(_correct(compared), key=lambda row: row.label != control)


def group_cells(records: Sequence[Record], control: str | None = None) -> list[tuple[str, ...]]:
    """Lay the table out as text, the header first.

    Args:
        records: in any order.
        control: label of the group that all others are compared to, or None.

    Raises:
        UserError: as `group_rows`.
    """
    rows = group_rows(records, control)
    columns = _columns(rows, control)
    return [tuple(columns), *(tuple(cell(row) for cell in columns.values()) for row in rows)]


def groups_markdown(records: Sequence[Record], control: str | None = None) -> str:
    """Write the table for GitHub, with a line under it that explains the numbers.

    Args:
        records: in any order; the same records give the same bytes.
        control: label of the group that all others are compared to, or None.

    Returns:
        Markdown that ends in a newline; a sentence when there are no records.

    Raises:
        UserError: as `group_rows`.
    """
    if not records:
        return f"{NOTHING}\n"
    header, *rows = group_cells(records, control)
    return f"{markdown_table(header, rows)}\n\n{escape(_footnote(records))}\n"


def rich_table(records: Sequence[Record], control: str | None = None) -> "Table":
    """Build the table for terminals.

    Args:
        records: in any order.
        control: label of the group that all others are compared to, or None.

    Returns:
        A table to print with rich; its caption explains the numbers.

    Raises:
        UserError: as `group_rows`.
    """
    from rich.table import Table
    from rich.text import Text

    if not records:
        return Table(title=NOTHING)
    header, *rows = group_cells(records, control)
    # Text, not str: a label in square brackets must not be taken for markup.
    made = Table(*header, caption=Text(one_line(_footnote(records))), show_lines=True)
    for row in rows:
        made.add_row(*[Text(one_line(cell)) for cell in row])
    return made


def update_between_markers(text: str, table: str) -> str:
    """Replace the text between the two markers of the results.

    Args:
        text: a document with ``<!-- results:begin -->`` and, after it, ``<!-- results:end -->``, once each.
        table: the new text between them.

    Returns:
        The document; the same again when done twice.

    Raises:
        UserError: a marker is missing or repeated, or they are in the wrong order.
    """
    for marker in (BEGIN, END):
        if text.count(marker) != 1:
            raise UserError(f"the text has {text.count(marker)} lines {marker}, expected one; add or remove lines")
    if text.index(END) < text.index(BEGIN):
        raise UserError(f"the text has {END} before {BEGIN}, expected it after; swap the two lines")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"


def _find(groups: Sequence[Group], control: str) -> Group:
    for candidate in groups:
        if candidate.label == control:
            return candidate
    known = ", ".join(repr(g.label) for g in groups)
    raise UserError(f"control is {control!r}, expected one of {known}; name one of these groups")


# Rows


def _row(group: Group) -> GroupRow:
    finished = list(group.finished.values())
    is_audited = all(record.audit and record.counts.best_test for record in finished)
    validated = [record.counts.best_val.accuracy for record in finished if record.counts.best_val]
    values = tuple(record.counts.last.accuracy for record in finished)
    single = finished[0].counts.last if len(finished) == 1 else None
    return GroupRow(
        label=group.label,
        trainable=group.records[0].parameters.trainable,
        seeds=tuple(group.finished),
        values=values,
        interrupted=group.interrupted,
        interval=stats.t_interval(values) if values else None,
        wilson=stats.wilson(single.correct, single.total) if single else None,
        audit=_audit_means(finished) if is_audited and finished else None,
        best_val=fmean(validated) if validated and len(validated) == len(finished) else None,
    )


def _audit_means(records: Sequence[Record]) -> AuditMeans:
    audits = [record.audit.last for record in records if record.audit]
    return AuditMeans(
        batch_mean=fmean(row.batch_mean for row in audits),
        batch_mean_truncated=fmean(row.batch_mean_truncated for row in audits),
        smoothed=fmean(row.smoothed for row in audits),
        best_test=fmean(r.counts.best_test.accuracy for r in records if r.counts.best_test),
    )


def _compare(row: GroupRow, group: Group, control: Group) -> GroupRow:
    if group is control:
        return replace(row, note="control")
    ours, theirs = group.finished, control.finished
    common = [seed for seed in ours if seed in theirs]
    if not common:
        return replace(row, note="not compared: no finished seed in common with the control")
    if any(_test_set(ours[seed]) != _test_set(theirs[seed]) for seed in common):
        return replace(row, note="not compared: another test set than the control")
    a, b = ([runs[seed].counts.last.accuracy for seed in common] for runs in (ours, theirs))
    return replace(row, comparison=stats.paired(a, b))


def _correct(rows: Sequence[GroupRow]) -> list[GroupRow]:
    """Add Holm's correction over all comparisons that have enough seeds for a verdict."""
    tested = {
        index: row.comparison.t_p
        for index, row in enumerate(rows)
        if row.comparison and row.comparison.t_p is not None and row.comparison.n >= stats.MIN_SEEDS
    }
    adjusted = dict(zip(tested, stats.holm(list(tested.values())), strict=True))
    return [replace(r, holm_p=adjusted[i], comparisons=len(tested)) if i in adjusted else r for i, r in enumerate(rows)]


def _test_set(record: Record) -> tuple[str, str | None, int, tuple[str, ...]]:
    data = record.data
    return data.test, data.hashes.get("test"), record.counts.last.total, tuple(data.classes)


# Cells


def _columns(rows: Sequence[GroupRow], control: str | None) -> dict[str, Callable[[GroupRow], str]]:
    columns: dict[str, Callable[[GroupRow], str]] = {
        "Experiment": lambda row: row.label,
        "Trainable parameters": lambda row: f"{row.trainable:,}",
        "Seeds": lambda row: str(len(row.seeds)),
        "Accuracy, %": _accuracy,
        "Each seed": _each_seed,
    }
    if control is not None:
        columns["Against the control"] = _verdict
    if any(row.best_val is not None for row in rows):
        columns[BEST_ON_VALIDATION] = lambda row: "-" if row.best_val is None else _beside(row, row.best_val)
    if any(row.audit for row in rows):
        columns |= _audit_columns()
    return columns


def _audit_columns() -> dict[str, Callable[[GroupRow], str]]:
    return {
        "Batch mean": lambda row: f"{row.audit.batch_mean:.2f}" if row.audit else "-",
        "Batch mean, truncated": lambda row: f"{row.audit.batch_mean_truncated:.2f}" if row.audit else "-",
        "Smoothed": lambda row: f"{row.audit.smoothed:.2f}" if row.audit else "-",
        BEST_ON_TEST: lambda row: _beside(row, row.audit.best_test) if row.audit else "-",
    }


def _accuracy(row: GroupRow) -> str:
    if row.interval is None:
        return "no finished run"
    if row.interval.ends:
        return row.interval.text()
    wilson = f"; test images alone: Wilson {stats.brackets(row.wilson)}" if row.wilson else ""
    return f"{row.interval.text()} (too few seeds{wilson})"


def _each_seed(row: GroupRow) -> str:
    finished = [f"{seed}: {value:.2f}" for seed, value in zip(row.seeds, row.values, strict=True)]
    return ", ".join(finished + [f"{seed}: interrupted" for seed in row.interrupted])


def _verdict(row: GroupRow) -> str:
    if row.comparison is None:
        return row.note
    words = stats.sentence(row.comparison)
    if row.comparisons < 2 or row.holm_p is None:
        return words
    lost = row.comparison.verdict in ("better", "worse") and row.holm_p > stats.ALPHA
    return f"{words}; Holm p = {row.holm_p:.3f} over {row.comparisons} comparisons{', does not hold' if lost else ''}"


def _beside(row: GroupRow, best: float) -> str:
    """Write the accuracy of a best epoch, and its difference to the last one."""
    return f"{best:.2f} ({stats.signed(best - row.interval.mean)})" if row.interval else f"{best:.2f}"


def _footnote(records: Sequence[Record]) -> str:
    data = "; ".join(sorted({f"{r.data.train} (train), {r.data.test} (test)" for r in records}))
    seeds = ", ".join(str(seed) for seed in sorted({r.seed for r in records}))
    epochs = ", ".join(str(n) for n in sorted({r.counts.last.epoch + 1 for r in records if r.status == "finished"}))
    return (
        "Accuracy: exact count over the whole test set after the last epoch, mean over seeds with its 95 % t-interval "
        f"over seeds in brackets. Data: {data}. Seeds: {seeds}. Epochs: {epochs or 'none finished'}."
    )
