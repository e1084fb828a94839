"""Many runs: which are missing, done in several processes, never twice, and a kill loses no more than a minute."""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab import records
from perturblab.config import TrainConfig, validated
from perturblab.errors import UserError
from perturblab.files import write_atomically
from perturblab.progress import Show

FAILED = "failed.json"
KEPT = ("record.json", "metrics.jsonl")  # what is small enough to be committed
_LOOK_EVERY = 0.5  # seconds between two looks at the processes
_INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Args:
        name: of the run, such as "K4/seed-1".
        flags: of `perturblab train`, with the seed; `TrainConfig` checks them.
        work: folder of the run, with weights and checkpoint.
        result: folder of its record.
    """

    name: str
    flags: Mapping[str, Any]
    work: Path
    result: Path

    @property
    def config(self) -> TrainConfig:
        """The flags, checked."""
        return validated(TrainConfig, dict(self.flags))

    @property
    def nepochs(self) -> int:
        """Epochs of the whole run."""
        return int(self.flags["nepochs"])


@dataclass(frozen=True)
class Failure:
    """A run that ended without a record, and why."""

    name: str
    reason: str


def is_done(job: Job) -> bool:
    """Say whether a job's record is there, of these very flags.

    Args:
        job: one of a study.

    Raises:
        UserError: the record is broken, or of other flags: it is never overwritten.
    """
    path = job.result / "record.json"
    if not path.is_file():
        return False
    record = records.load(path)
    found = {**record.config, "manual_seed": record.seed}
    comparable = json.loads(json.dumps({name: value for name, value in job.flags.items() if name in found}))
    other = sorted(name for name, value in comparable.items() if found[name] != value)
    if other and not set(other) <= {"dataset_train", "dataset_test"}:
        name = other[0]
        raise UserError(
            f"{path} was measured with {name} {found[name]!r}, and {job.flags[name]!r} is asked for; "
            "choose another --results, or move the record away"
        )
    return True


def argv(job: Job, threads: int) -> list[str]:
    """The command line of a job.

    Args:
        job: one of a study.
        threads: compute threads of its process.

    Returns:
        Program and arguments; a run that was begun goes on.
    """
    command = [sys.executable, "-m", "perturblab", "train", "--quiet", "--nthreads", str(threads)]
    if (job.work / "checkpoint.pt").is_file():
        return [*command, "--resume", str(job.work)]
    for name, value in job.flags.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            command.append(flag if value else f"--no-{flag[2:]}")
        else:
            command.append(f"{flag}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}")
    return [*command, "--out", str(job.work)]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other study out of a results folder.

    Args:
        folder: of the results; made where it is missing.

    Raises:
        UserError: another study is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another study is at work in {folder}; wait for it, or choose another --results"
            ) from error
        yield


def run_jobs(
    jobs: Sequence[Job],
    *,
    processes: int,
    threads: int,
    show: Show,
    stop: Callable[[], bool] = lambda: False,
) -> list[Failure]:
    """Run jobs until all are done or have failed.

    Args:
        jobs: those that are missing.
        processes: how many run at once.
        threads: compute threads of each.
        show: where progress goes.
        stop: asked again and again; True ends all processes cleanly, to be resumed by the next call.

    Returns:
        The runs that failed; each is also written down beside where its record would be.
    """
    waiting, running, failures = list(jobs), dict[Job, subprocess.Popen[bytes]](), list[Failure]()
    total = sum(job.nepochs for job in jobs)
    with show.bar(total, sum(_epochs(job) for job in jobs)):
        try:
            while (waiting and not stop()) or running:
                while waiting and len(running) < processes and not stop():
                    job = waiting.pop(0)
                    running[job] = _started(job, threads)
                    show.say(f"{job.name}: begun")
                time.sleep(_LOOK_EVERY)
                for job in [job for job, process in running.items() if process.poll() is not None]:
                    failures += _ended(job, running.pop(job), show)
                show.move(sum(_epochs(job) for job in jobs), f"{len(waiting)} waiting, {len(running)} at work")
                if stop():
                    _interrupt(running.values())
        finally:
            _interrupt(running.values())
    return failures


def _started(job: Job, threads: int) -> "subprocess.Popen[bytes]":
    job.work.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with _log(job).open("ab") as log:
        return subprocess.Popen(
            argv(job, threads), stdout=log, stderr=log, env=environment, preexec_fn=_end_with_parent
        )


def _log(job: Job) -> Path:
    return job.work.with_name(f"{job.work.name}.log")


def _end_with_parent() -> None:
    """A study that is killed must not leave runs behind that a second call would meet (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _interrupt(processes: Any) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()


def _ended(job: Job, process: "subprocess.Popen[bytes]", show: Show) -> list[Failure]:
    if process.returncode == _INTERRUPTED:
        return []
    if process.returncode == 0:
        job.result.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (job.work / name).resolve() != (job.result / name).resolve():
                shutil.copyfile(job.work / name, job.result / name)
        (job.result / FAILED).unlink(missing_ok=True)
        show.say(f"{job.name}: done")
        return []
    lines = _log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"ended with code {process.returncode}"
    content = {"name": job.name, "reason": reason, "code": process.returncode}
    write_atomically(job.result / FAILED, (json.dumps(content, indent=1) + "\n").encode())
    show.warn(f"{job.name}: failed: {reason}")
    return [Failure(job.name, reason)]


def _epochs(job: Job) -> int:
    """Epochs done so far, from the metrics that every epoch leaves."""
    metrics = job.work / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
