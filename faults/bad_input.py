"""Bad input of eight kinds: ``python -m faults.bad_input`` runs the cases and prints how they ended."""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from faults import messages, world
from faults.case import Case
from faults.forked import Ended, Started, clear, start
from faults.judge import fault

KINDS = {
    "command lines": "commands",
    "impossible flag combinations": "combinations",
    "YAML": "yamls",
    "records": "records",
    "checkpoints": "checkpoints",
    "parquet": "parquet",
    "image files": "pictures",
    "weights": "weights",
}
# What a child would import anew in every case.
PRELOADED = (
    *("perturblab.cli", "perturblab.execution", "perturblab.attacked", "perturblab.report.attacks"),
    *("perturblab.report.volatility", "perturblab.report.page", "perturblab.study", "perturblab.config_file", "yaml"),
    *("pyarrow.parquet", "PIL.Image", "safetensors.torch", "matplotlib.figure", "matplotlib.backends.backend_svg"),
    *("rich.console", "rich.table", "scipy.stats", "matplotlib.font_manager"),
)


@dataclass
class Tally:
    """What became of the cases of one kind."""

    refused: int = 0
    succeeded: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple[float, str] = (0.0, "")

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.refused + self.succeeded + len(self.faults)


Raised = dict[tuple[str, int], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases, print the tables, and say by the exit code whether a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="of each kind [200]")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn ones [0]")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be repeated")
    parser.add_argument("--name", default="", help="only cases whose name contains this")
    parser.add_argument("--processes", type=int, default=2, help="cases at once [2]")
    parser.add_argument("--json", type=Path, help="write the outcome there too")
    parser.add_argument("--verbose", action="store_true", help="print every case with its outcome")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    tallies: dict[str, Tally] = {}
    raised: Raised = {}
    with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
        world.make(Path(folder))
        for kind in args.kind or KINDS:
            made = importlib.import_module(f"faults.kinds.{KINDS[kind]}").cases(args.cases, args.seed)
            chosen = [case for case in made if args.name in case.name]
            say = _print if args.verbose else _silent
            tallies[kind] = _run(kind, chosen, Path(folder), args.processes, raised, say)
            sys.stderr.write(f"{kind}: {tallies[kind].cases} cases, {tallies[kind].seconds:.0f} s\n")
    found = messages.messages()
    _print(report(tallies, found, messages.reached(found, raised)))
    if args.json:
        outcome = {kind: vars(tally) for kind, tally in tallies.items()}
        args.json.write_text(json.dumps(outcome, indent=1, default=str) + "\n")
    return 1 if any(tally.faults for tally in tallies.values()) else 0


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _silent(_text: str) -> None:
    """Nothing is printed."""


def _run(
    kind: str, chosen: Sequence[Case], folder: Path, processes: int, raised: Raised, say: Callable[[str], None]
) -> Tally:
    tally, began = Tally(), time.monotonic()
    for case, ended, seconds in _ends(chosen, folder, processes):
        wrong = fault(case, ended)
        if wrong:
            tally.faults.append(f"{case.name}: {wrong}")
        elif ended.code == 0:
            tally.succeeded += 1
        else:
            tally.refused += 1
        tally.slowest = max(tally.slowest, (seconds, case.name))
        for site in ended.raised:
            raised.setdefault(site, f"{kind}: {case.name}")
        say(f"{kind}: {case.name!r}: {wrong or ended.code} ({seconds:.1f} s) {' '.join(ended.err.split())[:300]!a}")
        clear(ended)
    tally.seconds = time.monotonic() - began
    return tally


def _ends(chosen: Sequence[Case], folder: Path, processes: int) -> Iterator[tuple[Case, Ended, float]]:
    """Run cases, several at once, and give their ends in their order."""
    running: deque[tuple[Started, float]] = deque()
    for case in chosen:
        running.append((start(case, folder), time.monotonic()))
        if len(running) >= processes:
            first, began = running.popleft()
            yield first.case, first.ended(), time.monotonic() - began
    for first, began in running:
        yield first.case, first.ended(), time.monotonic() - began


def report(tallies: dict[str, Tally], found: Sequence[messages.Message], reached: dict[messages.Message, str]) -> str:
    """Write the tables.

    Args:
        tallies: by kind.
        found: every message of the package.
        reached: message -> the case that raised it.
    """
    lines = ["| kind | cases | one line, exit code 2 | success, counted in full | faults |", f"|---|{'---:|' * 4}"]
    rows = {kind: [t.cases, t.refused, t.succeeded, len(t.faults)] for kind, t in tallies.items()}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    lines += [f"| {kind} | {' | '.join(f'{number:,}' for number in numbers)} |" for kind, numbers in rows.items()]
    lines += ["", *(f"FAULT {kind}: {text}" for kind, tally in tallies.items() for text in tally.faults)]
    count = Counter(message.error for message in reached)
    for error, number in Counter(message.error for message in found).items():
        lines.append(f"{error}: {count[error]} of {number} messages raised")
    lines += ["", "| message | raised by |", "|---|---|"]
    lines += [f"| {message.cell} | {reached.get(message) or messages.reason(message)} |" for message in found]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
