"""The runs of a study on a Ray cluster: scheduled by Ray, repeated if a machine is lost, their results copied back."""

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
from perturblab.studies.done import is_done
from perturblab.studies.failures import Failure, forget_failure, record_failure
from perturblab.studies.job import Job
from perturblab.studies.jobs import run_jobs
from perturblab.system.files import locked, write_atomically
from perturblab.system.signals import poll_stops
from perturblab.system.terminal import Show

_LOOK_EVERY = 0.5  # seconds between two looks at the runs
_TRIES_AGAIN = 5  # times that a run is started again because its machine was lost
_BUSY = 600.0  # seconds that a run waits for its last attempt to end
_ANSWER = 10.0  # seconds
_CALLS = 3  # attempts to get a server for a client
_STOPPING = 120.0  # seconds for a clean stop
_CODE = 1  # of a run that ended without a code


@dataclass(frozen=True)
class Need:
    """The resources of a run.

    Args:
        cpus: processor cores, which are also its compute threads.
        gpus: graphics processors; 0.5 lets two runs share one.
    """

    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Results:
    """The results of a run on its machine: the files of each results folder by name, and its failures."""

    folders: tuple[dict[str, bytes], ...]
    failures: tuple[Failure, ...]


@contextmanager
def connected(on: str, need: Need, at_once: int | None = None) -> Iterator[Callable[..., list[Failure]]]:
    """Connect to a running cluster.

    Args:
        on: "ray", the cluster of this machine or of ``$RAY_ADDRESS``; or "ray://HOST:PORT", as Ray calls its client.
        need: what each run needs.
        at_once: how many runs are submitted at once; all by default.

    Yields:
        `run_on_cluster` for that cluster; it takes jobs, ``show`` and ``stop`` like `perturblab.studies.jobs.run_jobs`.

    Raises:
        UserError: ``on`` is another word, Ray is not installed, or no cluster answers.
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
            # A head forks a server for each client while its gRPC threads run: about one in ten dies at once (Ray's
            # issue 63202), which the head reports after 30 s.
            if not calls_left:
                raise _no_cluster(on, str(error).strip().splitlines()[-1]) from error
        except (OSError, RuntimeError, ValueError, ImportError) as error:  # what Ray raises without a cluster
            raise _no_cluster(on, str(error).strip().splitlines()[0]) from error
    try:
        # Ray prints the logs of its daemons to stdout, which is for results; a run's error is reported as its failure.
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield partial(run_on_cluster, need=need, at_once=at_once)
    finally:
        ray.shutdown()


def _knock(on: str) -> None:
    """Try the cluster's address first: Ray itself would try for minutes."""
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
        need: what each needs; Ray chooses the machine.
        at_once: how many are submitted at once; all by default.
        show: where progress goes.
        stop: polled; True ends all runs cleanly, to be resumed by the next call.

    Returns:
        The jobs that failed; each failure is also written to the folder of its results.
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
                    failures += _collect(running.pop(run), run, show)
                before, machines = machines, {node["NodeID"] for node in ray.nodes() if node["Alive"]}
                if before - machines:
                    show.warn("warning: the cluster has lost a machine; its runs begin again on another")
                show.move(done, f"{len(waiting)} waiting, {len(running)} with the cluster")
                if stop():
                    break
        finally:
            failures += _stop_all(running, show)
    return failures


def _machines(need: Need, show: Show) -> set[str]:
    """List the machines of the cluster; warn if none suffices, since one may still join."""
    import ray

    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if not any(has.get("CPU", 0) >= need.cpus and has.get("GPU", 0) >= need.gpus for has in nodes.values()):
        cores = f"{need.cpus} cores and {need.gpus:g} GPUs"
        show.warn(f"warning: no machine of the cluster has {cores}; the runs wait for one")
    return set(nodes)


def _run(job: Job, threads: int) -> Results:
    """Run a job on the machine that Ray has chosen, as a study of one run, and return its results."""
    _wait_for(job.work)
    # Ray cancels by an interrupt at any time, for example before the study knows of the process that it starts.
    with TemporaryDirectory() as folder, poll_stops(signals=(signal.SIGINT,)) as stop:
        here = replace(job, results=tuple(Path(folder, str(number)) for number in range(len(job.results))))
        failures = run_jobs([here], processes=1, threads=threads, show=Show(quiet=True), stop=stop)
        if stop() and not failures and not is_done(here):
            raise KeyboardInterrupt
        return Results(tuple(_files(path) for path in here.results), tuple(failures))


def _wait_for(work: Path) -> None:
    """Wait for the attempt of a lost machine, which may still be ending in a shared folder, for its last checkpoint."""
    until = time.monotonic() + _BUSY
    while time.monotonic() < until:
        try:
            with locked(work, "busy"):
                return
        except UserError:
            time.sleep(_LOOK_EVERY)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _collect(job: Job, run: Any, show: Show) -> list[Failure]:
    """Copy the results of a run that has ended to this machine."""
    import ray

    try:
        results: Results = ray.get(run)
    except ray.exceptions.TaskCancelledError:
        return []
    except ray.exceptions.RayError as error:
        return [record_failure(job, str(error).strip().splitlines()[-1], _CODE, show)]
    for folder, files in zip(job.results, results.folders, strict=True):
        for name, content in files.items():
            write_atomically(folder / name, content)
    if not results.failures and not all("record.json" in files for files in results.folders):
        return [record_failure(job, "it was interrupted on its machine; the same command resumes it", _CODE, show)]
    for failure in results.failures:
        show.warn(f"{failure.name}: failed: {failure.reason}")
    if not results.failures:
        forget_failure(job)
        show.say(f"{job.name}: done")
    return list(results.failures)


def _stop_all(running: dict[Any, Job], show: Show) -> list[Failure]:
    """Ask all runs for a clean stop, wait for it, and collect the results of those that have ended meanwhile."""
    import ray

    for run in running:
        ray.cancel(run)
    ended = ray.wait(list(running), num_returns=len(running), timeout=_STOPPING)[0] if running else []
    return [failure for run in ended for failure in _collect(running[run], run, show)]
