"""The command run: the missing runs of a study."""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.cli.arguments import integers
from perturblab.errors import UserError
from perturblab.system.exit_codes import DONE, FAILED, INTERRUPTED
from perturblab.system.signals import poll_stops

if TYPE_CHECKING:
    from perturblab.studies.failures import Failure
    from perturblab.studies.job import Job
    from perturblab.studies.plan import Standing
    from perturblab.system.terminal import Show


def run_study(args: argparse.Namespace) -> int:
    """Run the command."""
    from perturblab.studies.keep import lacking_setups, set_aside_void, share_records
    from perturblab.studies.plan import sort_jobs
    from perturblab.studies.presets import PRESETS
    from perturblab.system.files import locked
    from perturblab.system.terminal import Show

    show, jobs = Show(quiet=args.quiet), _jobs(args)
    runner = _runner(args)
    standing = sort_jobs(jobs)
    if args.on is not None and (left := sum(bool(job.attack) for job in standing.missing)):
        # A machine without the weights cannot attack them.
        show.warn(f"{left} attacks are left out: weights stay on the machine that trains; attack there, without --on")
        jobs = [job for job in jobs if not job.attack]
        standing = sort_jobs(jobs)
    missing = standing.missing
    _say_standing(args.preset, len(jobs), standing, show)
    if args.dry_run or not missing:
        nothing = "nothing else is missing" if standing.other else "nothing is missing"
        lines = ((job.name, ", ".join(lacking_setups(job))) for job in missing)
        names = (f"{name}: trained already, kept for {more} too" if more else name for name, more in lines)
        print("\n".join(names) or nothing)
        return DONE
    if args.print_commands:
        print("\n".join(dict.fromkeys(shlex.join(_command(job, args)) for job in missing)))
        return DONE
    with ExitStack() as stack:
        # Calls for single seeds, such as those of an array of jobs, lock their own runs only.
        single = [] if args.seed is None else [job.results[0] for job in missing if not job.attack]
        # On a cluster the runs are on its machines.
        whole = [(Path(args.results), "--results"), *([(Path(args.work), "--work")] if args.on is None else [])]
        for folder, flag in [*whole, *((folder, "--results") for folder in single)]:
            busy = f"another study is at work in {folder}; wait for it, or choose another {flag}"
            shared = args.seed is not None and folder not in single
            stack.enter_context(locked(folder, busy, shared=shared))
        set_aside_void(missing, show)
        missing = share_records(missing)
        run_all = stack.enter_context(runner)
        stop = stack.enter_context(poll_stops(args.stop))
        failures = run_all(missing, show=show, stop=stop)
    if stop():
        show.warn("stopped; the same command resumes it")
        return INTERRUPTED
    records = f"{args.results}/{PRESETS[args.preset].folder}"
    print(f"{len(missing) - len(failures)} runs done, {len(failures)} failed; records: {records}")
    for failure in failures:
        print(f"failed: {failure.name}: {failure.reason}")
    return FAILED if failures else DONE


def _say_standing(preset: str, jobs: int, standing: "Standing", show: "Show") -> None:
    other = f", {len(standing.other)} with other settings" if standing.other else ""
    show.say(f"{preset}: {jobs} runs, {len(standing.done)} done, {len(standing.missing)} missing{other}")
    for note in standing.notes:
        show.say(note)
    for line in dict.fromkeys(f"{replace(job, attack={}).name}: {reason}" for job, reason in standing.other):
        show.warn(line)


def _jobs(args: argparse.Namespace) -> "list[Job]":
    from perturblab.studies.plan import plan
    from perturblab.studies.presets import PRESETS
    from perturblab.studies.setups import choose_setups

    if args.preset not in PRESETS:
        raise UserError(f"--preset got {args.preset!r}; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[args.preset]
    seeds: Sequence[int] | None = None
    if args.seeds is not None:
        seeds = range(1, integers(args.seeds, "--seeds")[0] + 1)
    elif args.seed is not None:
        seeds = integers(args.seed, "--seed")
    common = {} if args.dataroot is None else {"dataroot": str(Path(args.dataroot).absolute())}
    folders = {"results": Path(args.results), "work": Path(args.work)}
    for name, folder in folders.items():
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--{name} got {folder}, which is a file; give a folder, which is created if missing")
    return plan(choose_setups(args.ids, preset), preset, seeds, common=common, **folders)


def _runner(args: argparse.Namespace) -> "AbstractContextManager[Callable[..., list[Failure]]]":
    """Make the context in which jobs run: this machine, or a cluster."""
    from perturblab.studies.jobs import run_jobs

    at_once = integers(args.jobs, "--jobs")[0] if args.jobs is not None else None
    if args.on is None:
        if unread := [f"--{name}" for name in ("cpus", "gpus") if getattr(args, name) is not None]:
            raise UserError(f"{unread[0]} belongs to --on; drop it, or add --on ray")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = at_once or min(cores, 4)
        return nullcontext(partial(run_jobs, processes=processes, threads=max(1, cores // processes)))
    from perturblab.studies import ray

    need = ray.Need(
        integers(args.cpus, "--cpus")[0] if args.cpus is not None else 1, _gpus(args.gpus) if args.gpus else 0.0
    )
    return ray.connected(args.on, need, at_once)


def _gpus(text: str) -> float:
    """Read a number of GPUs: whole ones, or a part of one; Ray does not give one and a half."""
    number = math.nan
    with suppress(ValueError):
        number = float(text)
    if not (0 <= number <= 1 or (number < 2**31 and number.is_integer())):
        raise UserError(f"--gpus got {text!r}; expected whole GPUs such as 2, or a part of one such as 0.5")
    return number


def _command(job: "Job", args: argparse.Namespace) -> list[str]:
    """Write a command that does one run from any folder, and keeps its record in the study's results."""
    flags = {"preset": args.preset, "seed": job.flags["manual_seed"], "jobs": 1}
    flags |= {name: Path(getattr(args, name)).absolute() for name in ("results", "work")}
    if args.dataroot is not None:
        flags["dataroot"] = job.flags["dataroot"]
    options = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "perturblab", "run", *job.setups, *options, "--quiet"]
