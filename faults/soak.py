"""``make soak``: memory and open files of a very long run and of a very large study; seconds of their report."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from faults.child import Child
from faults.runs import TINY, World
from faults.studies import TINY as PRESET
from perturblab.records.markdown import markdown_table
from perturblab.studies import plan
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.done import is_done
from perturblab.studies.jobs import run_jobs
from perturblab.studies.presets import Preset
from perturblab.system.terminal import Show

RECORDS = 1000
REPORT_SECONDS = 20.0
GROWTH = 40.0  # MB that a run may gain: it keeps a row of numbers for every epoch


@dataclass(frozen=True)
class Sample:
    """One measurement of a process: progress, memory, open files, children."""

    done: int
    seconds: float
    megabytes: float
    files: int
    children: int


def look(pid: int, done: int, seconds: float) -> Sample:
    """Measure a process from outside."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Sample(done, seconds, memory, len(os.listdir(f"/proc/{pid}/fd")), len(children))


def watch(child: Child, done: "Counter", every: float) -> list[Sample]:
    """Measure a child until its end."""
    samples, began = list[Sample](), time.monotonic()
    while child.poll() is None:
        try:
            samples.append(look(child.pid, done(child), time.monotonic() - began))
        except (OSError, StopIteration):  # the process has ended
            break
        time.sleep(every)
    if child.wait() != 0:
        raise RuntimeError(f"ended with code {child.code}: {' / '.join(child.output[-2:])}")
    return samples


class Counter:
    """The progress of a child: epochs of a run, or records of a study."""

    def __init__(self, folder: Path | None = None, steps: int = 1) -> None:
        self.folder, self.steps = folder, steps

    def __call__(self, child: Child) -> int:
        if self.folder is None:
            return child.board.last // self.steps
        return sum(1 for _ in self.folder.glob("*/*/seed-*/record.json"))


def long_run(world: World, epochs: int) -> list[Sample]:
    """Do a run of very many epochs with two steps and a validation each."""
    flags = [*TINY.split(), "--net-type", "lenet", "--nfilters", "2", "--train-size", "30", "--val-size", "10"]
    child = world.start(["train", *flags, "--nepochs", str(epochs), "--out", str(world.new("long"))])
    return watch(child, Counter(steps=2), 0.5)


def large_study(world: World, runs: int, folder: Path) -> list[Sample]:
    """Do a study of very many runs."""
    tiny: Preset = replace(PRESET, name="tiny", flags={**PRESET.flags, "train_size": 20, "nepochs": 1}, setups=("H5",))

    def run(argv: Sequence[str]) -> int:
        seeds = range(1, runs + 1)
        jobs = plan.plan([SETUPS["H5"]], tiny, seeds, results=folder / "results", work=folder / "work")
        missing = [job for job in jobs if not is_done(job)]
        return len(run_jobs(missing, processes=2, threads=1, show=Show(quiet=True)))

    return watch(world.start([], run=run), Counter(folder / "results"), 5.0)


def report_seconds(world: World, folder: Path) -> tuple[int, int, float]:
    """Write the page of 1,000 runs: those of the study, and copies of them with other seeds if they are fewer.

    Returns:
        Measured records, records in the report, seconds.
    """
    paths = sorted(folder.rglob("record.json"))
    place, page = world.new("records"), world.new("report.html")
    for number in range(RECORDS):
        path, copy = paths[number % len(paths)], place / f"seed-{number + 1}"
        shutil.copytree(path.parent, copy)
        content = json.loads(path.read_text())
        (copy / "record.json").write_text(json.dumps({**content, "seed": number + 1}))
    began = time.monotonic()
    command = [sys.executable, "-m", "perturblab", "report", str(place), "-o", str(page)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = time.monotonic() - began
    if f"{RECORDS} records;" not in output:
        raise RuntimeError(f"the report does not count {RECORDS} records: {output}")
    return len(paths), RECORDS, seconds


def table(name: str, samples: list[Sample]) -> list[str]:
    """Write five rows, from a tenth of the way to the end."""
    rows = []
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        goal = share * samples[-1].done
        s = next(sample for sample in samples if sample.done >= goal)
        rows.append([f"{s.done:,}", f"{s.seconds:.0f}", f"{s.megabytes:.1f}", str(s.files), str(s.children)])
    header = [name, "seconds", "memory, MB", "open files", "child processes"]
    return [markdown_table(header, rows, "rrrrr"), ""]


def complaints(samples: list[Sample]) -> list[str]:
    """Say which measures grew between a tenth of the way and the end."""
    first, last = next(s for s in samples if s.done >= 0.1 * samples[-1].done), samples[-1]
    wrong = []
    if last.megabytes - first.megabytes > GROWTH:
        wrong.append(f"memory grew by {last.megabytes - first.megabytes:.0f} MB")
    if last.files > first.files + 2:
        wrong.append(f"open files grew from {first.files} to {last.files}")
    return wrong


def main() -> int:
    """Run and print; the exit code is 1 if a measure grew or the report is slow."""
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=__doc__)
    parser.add_argument("--epochs", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--work", type=Path, help="folder of the study; its finished runs are not repeated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="perturblab-soak-"))
    os.environ |= {"PERTURBLAB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        world = World(folder, 0)
        epochs = long_run(world, args.epochs)
        print("\n".join(table("epochs", epochs)), flush=True)
        runs = large_study(world, args.runs, args.work or folder)
        print("\n".join(table("runs", runs)), flush=True)
        measured, number, seconds = report_seconds(world, (args.work or folder) / "results")
        print(f"report of {number:,} records ({measured:,} measured, the others copies): {seconds:.1f} s")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wrong = complaints(epochs) + complaints(runs) + ["the report is slow"] * (seconds > REPORT_SECONDS)
    print("flat" if not wrong else f"NOT FLAT: {'; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
