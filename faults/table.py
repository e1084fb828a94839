"""The table of results."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from perturblab.records.markdown import markdown_table


@dataclass
class Row:
    """Results for one kind of fault.

    Args:
        fault: its name.
        tried: number of injections.
        survived: injections without loss: the run continued to the same bits as the undisturbed one.
        told: injections that destroyed something necessary, and one line said so.
        wrong: losses.
        known: defects outside perturblab, listed below the table.
        skipped: the reason why it cannot be tried here.
        seconds: the longest training that had to be repeated.
    """

    fault: str
    tried: int = 0
    survived: int = 0
    told: int = 0
    wrong: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    def join(self, other: "Row") -> None:
        """Add another row of the same fault."""
        self.tried += other.tried
        self.survived += other.survived
        self.told += other.told
        self.wrong += other.wrong
        self.known += other.known
        self.seconds = max(self.seconds, other.seconds)

    def judge(self, wrong: list[str], *, told: bool = False) -> None:
        """Count one injection."""
        self.tried += 1
        if wrong:
            self.wrong.append("; ".join(wrong))
        else:
            self.told += told
            self.survived += not told


def join_rows(rows: Iterable[Row]) -> list[Row]:
    """Join the rows of each fault; the order is that of first appearance."""
    by_fault: dict[str, Row] = {}
    for row in rows:
        by_fault.setdefault(row.fault, Row(row.fault, skipped=row.skipped)).join(row)
    return list(by_fault.values())


def markdown(rows: list[Row]) -> str:
    """Write the table, then the losses and the known defects."""
    counts = [(row.tried, row.survived, row.told, len(row.wrong)) for row in rows]
    cells = []
    for row, numbers in zip(rows, counts, strict=True):
        if row.skipped:
            cells.append([row.fault, f"NOT TRIED: {row.skipped}", *[""] * 4])
        else:
            cells.append([row.fault, *map(str, numbers), f"{row.seconds:.2f}" if row.seconds else ""])
    cells.append(["all", *(str(sum(column)) for column in zip(*counts, strict=True)), ""])
    lines = [markdown_table(["fault", "tried", "survived", "gone, and told", "lost", "done again, s"], cells)]
    lines += [f"\nLOST, {row.fault}: {text}" for row in rows for text in row.wrong]
    lines += [f"\nKNOWN, {row.fault}: {text}" for row in rows for text in dict.fromkeys(row.known)]
    return "\n".join(lines)
