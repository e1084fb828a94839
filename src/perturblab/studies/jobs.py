"""Many runs: which are missing, done in several processes, never twice.

A kill loses at most 60 s of training; of an attack, the batch that was at work besides, and of one on a random net, the
radius that was being measured.
"""

import ctypes
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perturblab.errors import UserError
from perturblab.records import store
from perturblab.records.paths import RunFolder
from perturblab.records.record import Study
from perturblab.records.run_points import RunPoints
from perturblab.studies.done import fault_in
from perturblab.studies.plan import Job, unlike
from perturblab.system.files import sweep, write_atomically
from perturblab.system.processes import INTERRUPTED, MISTAKE
from perturblab.system.signals import STOPS
from perturblab.system.terminal import Show

_LOOK_EVERY = 0.5  # seconds between two looks at the processes
_UNMET = "it needs a run that is not trained; say the same once it is"


@dataclass(frozen=True)
class Failure:
    """A run that ended without a record, and why."""

    name: str
    reason: str


def set_aside_void(jobs: Iterable[Job], show: Show) -> None:
    """Rename the folders of void records, so that their runs begin anew and nothing is lost.

    Args:
        jobs: missing ones of a study.
        show: where each renamed folder is told.

    Raises:
        UserError: a record is broken, or a folder cannot be renamed.
    """
    for job in (job for job in jobs if not job.attack):
        for folder in (job.work, *job.results):
            if fault := fault_in(folder):
                names = (folder.with_name(f"{folder.name}-void-{number}") for number in itertools.count(1))
                aside = next(path for path in names if not path.exists())
                try:
                    folder.rename(aside)
                except OSError as error:
                    raise UserError(
                        f"{folder} is void ({fault}) and cannot be renamed ({error.strerror}); move it away"
                    ) from error
                show.say(f"{job.name}: {folder} is void ({fault}), kept as {aside}")


def share(jobs: Iterable[Job]) -> list[Job]:
    """Give what one of several set-ups of the same flags has to the others, as a run is made for all of them once.

    Args:
        jobs: missing ones of a study; their results are written to.

    Returns:
        Those that are still missing.

    Raises:
        UserError: a record is broken.
    """
    left = []
    for job in jobs:
        if not (lacking := to_share(job)):
            left.append(job)
        whole = [folder for folder in job.results if folder not in lacking.values()]
        for setup, folder in lacking.items():
            _keep(replace(job, work=whole[0]), setup, folder)
    return left


def to_share(job: Job) -> dict[str, Path]:
    """Set-ups of a job that lack its record, with their folders, where another one has it.

    Args:
        job: one of a study.
    """
    pairs = zip(job.setups, job.results, strict=True)
    lacking = {setup: folder for setup, folder in pairs if not RunFolder(folder).record.is_file()}
    return {} if job.attack or len(lacking) == len(job.results) else lacking


def argv(job: Job, threads: int) -> list[str]:
    """The command line of a job.

    Args:
        job: one of a study.
        threads: compute threads of its process.

    Returns:
        Program and arguments; a run that was begun goes on.
    """
    start = [sys.executable, "-m", "perturblab"]
    common = ["--quiet", "--nthreads", str(threads)]
    if job.attack:
        return [*start, "attack", str(job.work), *common, *_typed(job.attack)]
    if (work := RunFolder(job.work)).checkpoint.is_file() or work.previous.is_file():
        return [*start, "train", *common, "--resume", str(job.work)]
    return [*start, "train", *common, *_typed(job.flags), "--out", str(job.work)]


def _typed(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}={','.join(map(str, value)) if isinstance(value, tuple | list) else value}"


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
    waiting, failures, attacks = list(jobs), list[Failure](), 0
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    for folder in {folder for job in jobs for folder in (*job.results, failure_file(job).parent)}:
        sweep(folder)
    with show.bar(sum(job.nepochs for job in jobs), _epochs(jobs)):
        try:
            while (waiting and not stop()) or running:
                while len(running) < processes and not stop() and (job := _ready(waiting, running)):
                    waiting.remove(job)
                    if why := unlike(job):
                        failures.append(failed(job, why, 1, show))
                        continue
                    try:
                        running.append((job, _started(job, threads)))
                    except UserError as error:  # what lies beside its weights is broken, no other run's
                        failures.append(failed(job, str(error), MISTAKE, show))
                        continue
                    show.say(f"{job.name}: begun")
                if waiting and not running and not stop():
                    return [*failures, *(Failure(job.name, _UNMET) for job in waiting)]
                time.sleep(_LOOK_EVERY)
                ended = [(job, process) for job, process in running if process.poll() is not None]
                running = [pair for pair in running if pair not in ended]
                failures += [failure for job, process in ended for failure in _ended(job, process, show)]
                attacks += sum(job.nepochs for job, _ in ended if job.attack)
                show.move(_epochs(jobs) + attacks, f"{len(waiting)} waiting, {len(running)} at work")
                if stop():
                    _interrupt(running)
        finally:
            _interrupt(running)
    return failures


def _ready(waiting: Sequence[Job], running: Sequence[tuple[Job, Any]]) -> Job | None:
    """The first job that can begin; two attacks on one run would each write what the other does not know."""
    busy = {job.work for job, _ in running}
    return next((job for job in waiting if job.work not in busy and all(path.is_file() for path in job.needs)), None)


def _started(job: Job, threads: int) -> "subprocess.Popen[bytes]":
    job.work.parent.mkdir(parents=True, exist_ok=True)
    if job.attack:
        _bring_attacks(job)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with _log(job).open("ab") as log:
        return subprocess.Popen(
            argv(job, threads), stdout=log, stderr=log, env=environment, preexec_fn=_end_with_parent
        )


def _log(job: Job) -> Path:
    return job.work.with_name(f"{job.work.name}.log")


def _end_with_parent() -> None:
    """A study that is killed must not leave runs behind that a second call would meet (Linux).

    In a group of its own a run does not see the Ctrl-C of the terminal, which the study passes on: a second one would
    end it without a checkpoint. A run that is only just starting would lose the study's, and go on to its end: it is
    held back until the run unblocks it (`unblock_stops`). A shell lets what it starts in the background ignore Ctrl-C.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _interrupt(running: Sequence[tuple[Job, "subprocess.Popen[bytes]"]]) -> None:
    """Ask all for a clean stop, and wait for it."""
    for _, process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for _, process in running:
        process.wait()


def _ended(job: Job, process: "subprocess.Popen[bytes]", show: Show) -> list[Failure]:
    if process.returncode == INTERRUPTED:
        return []
    # What was begun with other settings has gone on with those; it is not what is asked for now.
    other = unlike(job) if process.returncode == 0 else ""
    if other or process.returncode != 0:
        return [failed(job, other or _reason(job, process.returncode), process.returncode or 1, show)]
    for setup, folder in zip(job.setups, job.results, strict=True):
        _keep_attacks(job, folder) if job.attack else _keep(job, setup, folder)
    forget_failure(job)
    show.say(f"{job.name}: done")
    return []


def failed(job: Job, reason: str, code: int, show: Show) -> Failure:
    """Tell that a job has failed, and write it down until that very job succeeds.

    Args:
        job: one of a study.
        reason: one line.
        code: that its process ended with.
        show: where progress goes.
    """
    content = {"name": job.name, "reason": reason, "code": code}
    write_atomically(failure_file(job), (json.dumps(content, indent=1) + "\n").encode())
    show.warn(f"{job.name}: failed: {reason}")
    return Failure(job.name, reason)


def failure_file(job: Job) -> Path:
    """Where it is written down that a job has failed: each has a file of its own, as a run may meet several attacks.

    Args:
        job: one of a study.
    """
    if not job.attack:
        return RunFolder(job.results[0]).failed
    settings = {name: value for name, value in job.attack.items() if name not in ("dataroot", "source")}
    settings["source"] = Path(str(job.attack.get("source", ""))).parts[-2:]  # wherever the runs lie
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return RunFolder(job.results[0] / f"failed-{str(job.attack['attacks']).replace(',', '-')}-{digest}").failed


def forget_failure(job: Job) -> None:
    """Take a job that has succeeded from what is written down as failed.

    Args:
        job: one of a study.
    """
    file = failure_file(job)
    file.unlink(missing_ok=True)
    with suppress(OSError):  # what holds anything stays
        file.parent.rmdir()


def _reason(job: Job, code: int) -> str:
    if code < 0:  # what stands in the log is of the time before
        return f"its process was ended by {signal.Signals(-code).name}; the same command goes on with it"
    lines = _log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"


def _keep(job: Job, setup: str, folder: Path) -> None:
    """Put the record, with the name of its set-up, and the metrics where results are kept."""
    record = store.load(RunFolder(job.work).record)
    study = Study(setup=setup, preset=job.preset)
    write_atomically(RunFolder(folder).metrics, RunFolder(job.work).metrics.read_bytes())
    store.save(record.model_copy(update={"study": study}), RunFolder(folder).record)


def _keep_attacks(job: Job, folder: Path) -> None:
    """Put the points where results are kept, beside the record, in place of those that were brought from there."""
    for file in sorted(job.work.glob("attacks/*.json")):
        write_atomically(RunFolder(folder).attacks / file.name, file.read_bytes())


def _bring_attacks(job: Job) -> None:
    """Join what earlier attacks have left in the results with what lies beside the weights: the next one adds to it.

    Either may lack some: weights are trained anew, and other studies keep their results elsewhere.
    """
    RunPoints(job.work).bring(RunPoints(job.results[0]))


def _epochs(jobs: Sequence[Job]) -> int:
    """Epochs done so far, from the metrics that a run leaves with every checkpoint."""
    files = [RunFolder(job.work).metrics for job in jobs if not job.attack]
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())
