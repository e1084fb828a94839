"""What was tried and what came of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from perturblab.records.markdown import markdown_table


@dataclass
class Row:
    """A kind of fault.

    Args:
        fault: its name.
        tried: how often it was injected.
        survived: how often nothing was lost: the run went on, and its end is bit for bit that of the undisturbed one.
        told: how often what was needed was gone, and one line said so.
        wrong: what should not have been; each is a loss.
        known: what is not ours to mend, and is told below the table.
        skipped: why it could not be staged here.
        seconds: of training that were done again, at most.
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
        """Add what was found elsewhere about the same fault."""
        self.tried, self.survived, self.told = (
            self.tried + other.tried,
            self.survived + other.survived,
            self.told + other.told,
        )
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


def joined(rows: Iterable[Row]) -> list[Row]:
    """One row a fault, in the order in which they came first."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.fault in found:
            found[row.fault].join(row)
        else:
            found[row.fault] = row
    return list(found.values())


def markdown(rows: list[Row]) -> str:
    """The table, then what went wrong and what was not tried."""
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
