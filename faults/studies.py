"""Studies: a killed run, Ctrl-C, a killed study."""

import os
import random
import signal
import time
from pathlib import Path

from faults.child import Child, ending
from faults.runs import World, differences, expect_exit, incomplete_files
from faults.table import Row
from perturblab.records import paths
from perturblab.studies import presets

TINY = presets.Preset(
    "quick",
    "twenty epochs on sixty digits",
    changes=("almost nothing is left of the protocol",),
    width=1 / 32,
    flags={"dataset_train": "digits", "train_size": 60, "batch_size": 10, "nepochs": 20},
    setups=("K4", "H5"),
)
RUNS = ("K4/seed-1", "H5/seed-1")


def _prepare_study() -> None:
    """Start a process group, as a shell does, and use a preset that takes seconds."""
    os.setpgid(0, 0)
    presets.PRESETS["quick"] = TINY


def _command(folder: Path) -> list[str]:
    jobs = ["--seeds", "1", "--jobs", "2", "--quiet"]
    return ["run", "--preset", "quick", *jobs, "--results", str(folder / "results"), "--work", str(folder / "work")]


def _start(world: World, folder: Path) -> Child:
    return world.start(_command(folder), before=_prepare_study)


def undisturbed(world: World) -> Path:
    """Do an undisturbed study."""
    folder = world.new("study")
    expect_exit(_start(world, folder))
    return folder


def worker_dies(world: World, want: Path, each: int) -> Row:
    """Kill a run of a study: the study says so, the other runs go on, and the next call completes it."""
    row = Row("a run of a study dies (SIGKILL)")
    for _ in range(each):
        folder = world.new("study")
        with ending(_start(world, folder)) as study:
            killed = _worker(study, folder, world.random)
            os.kill(killed, signal.SIGKILL)
            study.wait()
        wrong = [] if study.code == 1 else [f"code {study.code}: {study.output[-2:]}"]
        if not any("its process was ended by SIGKILL" in line for line in study.output):
            wrong.append(f"printed {study.output}")
        failed = list((folder / "results").rglob("failed.json"))
        done = list((folder / "results").rglob("record.json"))
        wrong += [] if len(failed) == len(done) == 1 else [f"{len(failed)} failed, {len(done)} done"]
        row.judge(wrong + _complete(world, folder, want))
    return row


def interrupted(world: World, want: Path, each: int) -> Row:
    """Send SIGINT to the process group of a study, as Ctrl-C does."""
    row = Row("Ctrl-C on the terminal of a study: clean stop of all runs, code 130")
    for _ in range(each):
        folder = world.new("study")
        with ending(_start(world, folder)) as study:
            for run in RUNS:
                _worker(study, folder, world.random, run)
            os.killpg(study.pid, signal.SIGINT)
            study.wait()
        wrong = [] if study.code == 130 else [f"code {study.code}: {study.output[-2:]}"]
        wrong += [
            f"no checkpoint of {run}" for run in RUNS if not (folder / "work/quick" / run / paths.CHECKPOINT).is_file()
        ]
        row.judge(wrong + _complete(world, folder, want))
    return row


def killed(world: World, want: Path, each: int) -> Row:
    """Kill a study: its runs stop cleanly."""
    row = Row("a study dies (SIGKILL): its runs end with it, cleanly")
    for _ in range(each):
        folder = world.new("study")
        with ending(_start(world, folder)) as study:
            _worker(study, folder, world.random)
            workers = _children(study.pid)
            study.send(signal.SIGKILL)
            study.wait()
        wrong = [f"run {pid} outlived its study" for pid in workers if not _is_gone(pid)]
        row.judge(wrong + _complete(world, folder, want))
    return row


def _worker(study: Child, folder: Path, rng: random.Random, run: str = "") -> int:
    """Wait until a run trains and a random time more; give its process id."""
    chosen = run or rng.choice(RUNS)
    work = folder / "work/quick" / chosen
    if not study.until(lambda board: work.is_dir()):
        raise RuntimeError(f"the study ended too early: {study.output[-2:]}")
    time.sleep(rng.uniform(0, 0.5))
    for pid in _children(study.pid):
        if str(work) in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    raise RuntimeError(f"no process trains {chosen}")


def _children(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_gone(pid: int, patience: float = 60.0) -> bool:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def _complete(world: World, folder: Path, want: Path) -> list[str]:
    """Call the study again, and list the differences of its runs from the undisturbed ones."""
    wrong = [
        text
        for run in RUNS
        if (folder / "work/quick" / run).exists()
        for text in incomplete_files(folder / "work/quick" / run)
    ]
    with ending(_start(world, folder)) as study:
        if study.wait() != 0:
            return [*wrong, f"does not go on: {study.output[-2:]}"]
    for run in RUNS:
        wrong += differences(folder / "work/quick" / run, want / "work/quick" / run)
        names = {path.name for path in (folder / "results/quick" / run).iterdir()}
        wrong += [] if names == {"record.json", "metrics.jsonl"} else [f"results hold {sorted(names)}"]
    return wrong
