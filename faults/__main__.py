"""``make faults``: inject every fault, and print what was tried, what survived and what was lost."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from faults import cost, disk, folders, limits, signals, studies
from faults.runs import KINDS, TINY, Straight, World, undisturbed_run
from faults.table import Row, join_rows, markdown


@dataclass(frozen=True)
class Size:
    """The amount of work: seconds of a run, number of runs, kills and other tries."""

    seconds: float
    runs: int
    kills: int
    tries: int
    halves: int
    studies: int
    real: bool


FULL = Size(seconds=1.5, runs=10, kills=20, tries=10, halves=30, studies=3, real=True)
SHORT = Size(seconds=0.4, runs=1, kills=6, tries=2, halves=7, studies=0, real=False)
Task = Callable[[World, Size], list[Row]]


def _kills(kind: int) -> Task:
    return lambda world, size: signals.kills(world, undisturbed_run(world, KINDS[kind], size.seconds), size.kills)


def _short(world: World, size: Size, kind: int = 0) -> Straight:
    return undisturbed_run(world, KINDS[kind], size.seconds / 3)


def _studies(world: World, size: Size) -> list[Row]:
    if not size.studies:
        return []
    want = studies.undisturbed(world)
    return [kind(world, want, size.studies) for kind in (studies.worker_dies, studies.interrupted, studies.killed)]


def _full(world: World, size: Size) -> list[Row]:
    run = _short(world, size)
    return [disk.disk_full(world, run, size.tries), disk.files_too_large(world, run, size.tries)]


def _folders(world: World, size: Size) -> list[Row]:
    run = _short(world, size)
    return [
        folders.deleted(world, run, size.tries),
        folders.gone(world, run),
        folders.half_copied(world, run, size.halves),
    ]


TASKS: dict[str, Task] = {
    **{f"kills {kind}": _kills(kind) for kind in range(len(KINDS))},
    "stops": lambda world, size: signals.stops(world, undisturbed_run(world, KINDS[1], size.seconds), size.tries),
    "sixty": lambda world, size: [signals.at_sixty_seconds(world, [*TINY.split(), *KINDS[0].split()])] * size.real,
    "full": _full,
    "read-only": lambda world, size: disk.read_only(world, _short(world, size), size.tries),
    "folders": _folders,
    "clock": lambda world, size: [limits.clock(world, _short(world, size, 1), size.tries)],
    "memory": lambda world, size: [limits.memory(world, 2 * size.tries)],
    "two": lambda world, size: [signals.two_processes(world, _short(world, size), size.tries)],
    "studies": _studies,
}


def task_names(size: Size, only: str) -> list[str]:
    """List the names of the tasks of a size."""
    names = [name for name in TASKS if not name.startswith("kills") or int(name.split()[1]) < size.runs]
    return [name for name in names if name.startswith(only)]


def work(name: str, folder: Path, seed: int, size: Size) -> list[Row]:
    """Do one task."""
    return TASKS[name](World(folder / name.replace(" ", "-"), seed), size)


def main() -> int:
    """Inject and print; the exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few of each")
    parser.add_argument("--only", default="", help="only tasks whose name starts with this")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the random moments")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    size, began = SHORT if args.short else FULL, time.monotonic()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="perturblab-faults-"))
    folder.chmod(0o755)
    os.environ |= {"PERTURBLAB_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        rows = _do(task_names(size, args.only), folder, args.seed, size, args.processes)
        text = markdown(rows)
        if not args.short and "cost".startswith(args.only):
            text += "\n\n" + cost.costs(World(folder / "cost", args.seed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{text}\n\nseed {args.seed}, {time.monotonic() - began:.0f} s")
    return 1 if any(row.wrong for row in rows) else 0


def _do(names: list[str], folder: Path, seed: int, size: Size, processes: int) -> list[Row]:
    """Do the tasks in several processes; give the rows in the order of the tasks."""
    rows: dict[str, list[Row]] = {}
    World(folder / "warm", seed)  # imports once for all processes
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        waiting = {pool.submit(work, name, folder, seed + number, size): name for number, name in enumerate(names)}
        for done in as_completed(waiting):
            rows[waiting[done]] = done.result()
            print(f"{waiting[done]}: done", file=sys.stderr, flush=True)
    return join_rows(row for name in names for row in rows[name])


if __name__ == "__main__":
    sys.exit(main())
