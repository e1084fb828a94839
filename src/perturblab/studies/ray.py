"""The runs of a study on a Ray cluster: placed there, tried again when a machine is lost, brought home once."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from perturblab.errors import UserError
from perturblab.studies import plan
from perturblab.studies.failures import Failure, forget_failure, record_failure
from perturblab.studies.jobs import run_jobs
from perturblab.studies.plan import Job
from perturblab.system.files import locked, write_atomically
from perturblab.system.signals import poll_stops
from perturblab.system.terminal import Show

_LOOK_EVERY = 0.5  # seconds between two looks at the runs
_TRIES_AGAIN = 5  # times that a run is begun anew because its machine was lost
_BUSY = 600.0  # seconds that a run may wait for what is left of its last attempt
_ANSWER = 10.0  # seconds
_CALLS = 3  # times that a cluster is asked for a client's server
_STOPPING = 120.0  # seconds that runs have for a clean stop
_CODE = 1  # of a run that ended without a code


@dataclass(frozen=True)
class Need:
    """What a run needs of a machine.

    Args:
        cpus: processor cores, which are also its compute threads.
        gpus: graphics processors; 0.5 lets two runs share one.
    """

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Brought:
    """What a run has left on its machine: for every folder of results its files by name, and why it failed, if so."""

    folders: tuple[dict[str, bytes], ...]
    failures: tuple[Failure, ...]


@contextmanager
def connected(on: str, need: Need, at_once: int | None = None) -> Iterator[Callable[..., list[Failure]]]:
    """Connect to a cluster that is there.

    Args:
        on: "ray", the cluster of this machine or of ``$RAY_ADDRESS``; or "ray://HOST:PORT", as Ray calls its client.
        need: what each run needs.
        at_once: how many runs are handed to the cluster at once; all by default.

    Yields:
        `run_on_cluster` there, which takes jobs, ``show`` and ``stop`` as `perturblab.studies.jobs.run_jobs` does.

    Raises:
        UserError: another word, no Ray, or no cluster.
    """
    if on != "ray" and not on.startswith("ray://"):
        raise UserError(f"--on got {on!r}; expected ray, or ray://HOST:PORT")
    _knock(on)
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs Ray, which is not installed; pip install 'perturblab[ray]'") from error
    for calls_left in reversed(range(_CALLS)):
        try:
            ray.init("auto" if on == "ray" else on, logging_level=logging.ERROR, log_to_driver=False)
            break
        except ConnectionAbortedError as error:
            # A head forks a server for each client while its gRPC threads run: about one in ten dies at birth (Ray's
            # issue 63202), which the head tells after 30 s.
            if not calls_left:
                raise _no_cluster(on, str(error).strip().splitlines()[-1]) from error
        except (OSError, RuntimeError, ValueError, ImportError) as error:  # what Ray raises where there is none
            raise _no_cluster(on, str(error).strip().splitlines()[0]) from error
    try:
        # Ray prints what its daemons log to stdout, which is the result's; what ends a run is told as its failure.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield partial(run_on_cluster, need=need, at_once=at_once)
    finally:
        ray.shutdown()


def _knock(on: str) -> None:
    """Ray itself would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", "") if on == "ray" else on
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(on, f"{address}: {error}") from error


def _no_cluster(on: str, reason: str) -> UserError:
    return UserError(
        f"--on {on}: no cluster answers ({reason}); start one with ray start --head, or correct the address"
    )


def run_on_cluster(
    jobs: Sequence[Job], *, need: Need, at_once: int | None, show: Show, stop: Callable[[], bool] = lambda: False
) -> list[Failure]:
    """Run jobs on the connected cluster until all are done or have failed; otherwise as `jobs.run_jobs`.

    Args:
        jobs: those that are missing.
        need: what each needs; Ray finds it a machine.
        at_once: how many are handed to the cluster at once; all by default.
        show: where progress goes.
        stop: asked again and again; True ends all runs cleanly, to be resumed by the next call.

    Returns:
        The runs that failed; each is also written down beside where its record would be.
    """
    import ray

    begin = ray.remote(_run).options(num_cpus=need.cpus, num_gpus=need.gpus, max_retries=_TRIES_AGAIN)
    machines = _machines(need, show)
    waiting, failures, done = list(jobs), list[Failure](), 0
    running: dict[Any, Job] = {}
    with show.bar(sum(job.nepochs for job in jobs)):
        try:
            while waiting or running:
                while waiting and len(running) < (at_once or len(jobs)):
                    job = waiting.pop(0)
                    running[begin.remote(replace(job, work=job.work.absolute()), need.cpus)] = job
                for run in ray.wait(list(running), timeout=_LOOK_EVERY)[0]:
                    done += running[run].nepochs
                    failures += _home(running.pop(run), run, show)
                before, machines = machines, {node["NodeID"] for node in ray.nodes() if node["Alive"]}
                if before - machines:
                    show.warn("warning: the cluster has lost a machine; its runs begin again on another")
                show.move(done, f"{len(waiting)} waiting, {len(running)} with the cluster")
                if stop():
                    break
        finally:
            failures += _stopped(running, show)
    return failures


def _machines(need: Need, show: Show) -> set[str]:
    """The machines of the cluster; that none of them suffices is told, since one may still join."""
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if not any(has.get("CPU", 0) >= need.cpus and has.get("GPU", 0) >= need.gpus for has in nodes.values()):
        what = f"{need.cpus} cores and {need.gpus:g} GPUs"
        show.warn(f"warning: no machine of the cluster has {what}; the runs wait for one")
    return set(nodes)


def _run(job: Job, threads: int) -> Brought:
    """On the machine that Ray has chosen: as a study of one run, whose results are handed back instead of kept."""
    _wait_for(job.work)
    # Ray cancels by an interrupt wherever it comes: before the study knows of the process that it starts, for one.
    with TemporaryDirectory() as folder, poll_stops(signals=(signal.SIGINT,)) as stop:
        own = replace(job, results=tuple(Path(folder, str(number)) for number in range(len(job.results))))
        failures = run_jobs([own], processes=1, threads=threads, show=Show(quiet=True), stop=stop)
        if stop() and not failures and not plan.is_done(own):
            raise KeyboardInterrupt
        return Brought(tuple(_files(path) for path in own.results), tuple(failures))


def _wait_for(work: Path) -> None:
    """What a lost machine has begun may still be ending in a shared folder; its last checkpoint is worth the wait."""
    until = time.monotonic() + _BUSY
    while time.monotonic() < until:
        try:
            with locked(work, "busy"):
                return
        except UserError:
            time.sleep(_LOOK_EVERY)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _home(job: Job, run: Any, show: Show) -> list[Failure]:
    """Keep what a run that has ended leaves, once."""
    import ray

    try:
        brought: Brought = ray.get(run)
    except ray.exceptions.TaskCancelledError:
        return []
    except ray.exceptions.RayError as error:
        return [record_failure(job, str(error).strip().splitlines()[-1], _CODE, show)]
    for folder, files in zip(job.results, brought.folders, strict=True):
        for name, content in files.items():
            write_atomically(folder / name, content)
    if not brought.failures and not all("record.json" in files for files in brought.folders):
        return [record_failure(job, "it was interrupted where it ran; the same command goes on", _CODE, show)]
    for failure in brought.failures:
        show.warn(f"{failure.name}: failed: {failure.reason}")
    if not brought.failures:
        forget_failure(job)
        show.say(f"{job.name}: done")
    return list(brought.failures)


def _stopped(running: dict[Any, Job], show: Show) -> list[Failure]:
    """Ask all for a clean stop, wait for it, and keep what has ended in the meantime."""
    import ray

    for run in running:
        ray.cancel(run)
    ended = ray.wait(list(running), num_returns=len(running), timeout=_STOPPING)[0] if running else []
    return [failure for run in ended for failure in _home(running[run], run, show)]
