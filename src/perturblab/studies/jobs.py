"""The jobs of a study, run in several processes, none of them twice.

A kill loses at most 60 s of training; of an attack also the current batch, and of an attack on a random net the current
radius.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from perturblab.errors import UserError
from perturblab.records.paths import RunFolder
from perturblab.records.record import Study
from perturblab.records.run_points import RunPoints
from perturblab.studies.catalogue.types import Flags
from perturblab.studies.done import conflict
from perturblab.studies.failures import Failure, failure_file, forget_failure, record_failure
from perturblab.studies.job import Job
from perturblab.studies.keep import keep_attacks, keep_run
from perturblab.system.exit_codes import INTERRUPTED, MISTAKE
from perturblab.system.files import sweep
from perturblab.system.signals import STOPS
from perturblab.system.terminal import Show

Running = tuple[Job, "subprocess.Popen[bytes]"]
_LOOK_EVERY = 0.5  # seconds between two looks at the processes
_UNMET = "it needs a run that is not trained; repeat the command once it is"


def argv(job: Job, threads: int) -> list[str]:
    """Write the command line of a job.

    Args:
        job: one of a study.
        threads: compute threads of its process.

    Returns:
        Program and arguments; a run with a checkpoint is resumed.
    """
    start = [sys.executable, "-m", "perturblab"]
    common = ["--quiet", "--nthreads", str(threads)]
    if job.attack:
        return [*start, "attack", str(job.work), *common, *_options(job.attack)]
    if (work := RunFolder(job.work)).checkpoint.is_file() or work.previous.is_file():
        return [*start, "train", *common, "--resume", str(job.work)]
    return [*start, "train", *common, *_options(job.flags), "--out", str(job.work)]


def _options(settings: Flags) -> Iterator[str]:
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
        stop: polled; True ends all processes cleanly, to be resumed by the next call.

    Returns:
        The jobs that failed; each failure is also written to the folder of its results.
    """
    waiting, failures, attacks = list(jobs), list[Failure](), 0
    running: list[Running] = []
    for folder in {folder for job in jobs for folder in (*job.results, failure_file(job).parent)}:
        sweep(folder)
    with show.bar(sum(job.nepochs for job in jobs), _epochs(jobs)):
        try:
            while (waiting and not stop()) or running:
                while len(running) < processes and not stop() and (job := _next_ready(waiting, running)):
                    waiting.remove(job)
                    if reason := conflict(job):
                        failures.append(record_failure(job, reason, 1, show))
                        continue
                    try:
                        running.append((job, _start(job, threads)))
                    except UserError as error:  # the points beside its weights are broken; other jobs go on
                        failures.append(record_failure(job, str(error), MISTAKE, show))
                        continue
                    show.say(f"{job.name}: begun")
                if waiting and not running and not stop():
                    return [*failures, *(Failure(job.name, _UNMET) for job in waiting)]
                time.sleep(_LOOK_EVERY)
                ended = [(job, process) for job, process in running if process.poll() is not None]
                running = [pair for pair in running if pair not in ended]
                failures += [failure for job, process in ended for failure in _finish(job, process, show)]
                attacks += sum(job.nepochs for job, _ in ended if job.attack)
                show.move(_epochs(jobs) + attacks, f"{len(waiting)} waiting, {len(running)} at work")
                if stop():
                    _interrupt(running)
        finally:
            _interrupt(running)
    return failures


def _next_ready(waiting: Sequence[Job], running: Sequence[Running]) -> Job | None:
    """Find the first job that can begin; two attacks on one run at once would overwrite each other's points."""
    busy = {job.work for job, _ in running}
    return next((job for job in waiting if job.work not in busy and all(path.is_file() for path in job.needs)), None)


def _start(job: Job, threads: int) -> "subprocess.Popen[bytes]":
    job.work.parent.mkdir(parents=True, exist_ok=True)
    if job.attack:
        # Either folder may lack points: weights are trained again, and other studies keep their results elsewhere.
        RunPoints(job.work).bring(RunPoints(job.results[0]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with _log(job).open("ab") as log:
        return subprocess.Popen(
            argv(job, threads), stdout=log, stderr=log, env=environment, preexec_fn=_end_with_parent
        )


def _log(job: Job) -> Path:
    return job.work.with_name(f"{job.work.name}.log")


def _end_with_parent() -> None:
    """Prepare a child of the study (Linux): it ends when the study is killed, and gets Ctrl-C from the study alone.

    A run that outlived its study would meet a second call in its folder. The child's own process group does not receive
    the terminal's Ctrl-C, since a second signal would end it without a checkpoint; the study passes the first one on.
    While the child starts, that signal would be lost: it stays blocked until the run calls `unblock_stops`. A shell
    makes its background processes ignore Ctrl-C, so the default handler is restored.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _interrupt(running: Sequence[Running]) -> None:
    """Ask all for a clean stop, and wait for it."""
    for _, process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for _, process in running:
        process.wait()


def _finish(job: Job, process: "subprocess.Popen[bytes]", show: Show) -> list[Failure]:
    if process.returncode == INTERRUPTED:
        return []
    # A run that was begun with other settings was resumed with those.
    other = conflict(job) if process.returncode == 0 else ""
    if other or process.returncode != 0:
        return [record_failure(job, other or _reason(job, process.returncode), process.returncode or 1, show)]
    for setup, folder in zip(job.setups, job.results, strict=True):
        if job.attack:
            keep_attacks(job.work, folder)
        else:
            keep_run(job.work, folder, Study(setup=setup, preset=job.preset))
    forget_failure(job)
    show.say(f"{job.name}: done")
    return []


def _reason(job: Job, code: int) -> str:
    if code < 0:  # the last line of the log is from before the signal
        return f"its process was ended by {signal.Signals(-code).name}; the same command resumes it"
    lines = _log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"ended with code {code}"


def _epochs(jobs: Sequence[Job]) -> int:
    """Count the epochs done so far in the metrics, which a run writes with every checkpoint."""
    files = [RunFolder(job.work).metrics for job in jobs if not job.attack]
    return sum(file.read_bytes().count(b"\n") for file in files if file.is_file())
