"""A tiny study: its preset, its jobs, and records and points that it could have left."""

import copy
import io
import json
import os
import shlex
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from builders import FULL, command
from perturblab.records import store
from perturblab.records.paths import file_of
from perturblab.records.points import Point, load_points, save_points
from perturblab.records.record import Record
from perturblab.studies import plan
from perturblab.studies.catalogue import SETUPS
from perturblab.studies.failures import Failure
from perturblab.studies.job import Job
from perturblab.studies.jobs import run_jobs
from perturblab.studies.presets import Preset
from perturblab.system.terminal import Show

QUIET = Show(quiet=True)
TINY = Preset(
    "tiny",
    "two epochs on forty digits",
    changes=("almost nothing is left of the protocol",),
    width=1 / 32,
    flags={"dataset_train": "digits", "train_size": 40, "batch_size": 20, "nepochs": 2},
)

ONCE = replace(TINY, name="quick", flags={**TINY.flags, "nepochs": 1})


def planned(folder: Path, *names: str, seeds: int = 1, preset: Preset = TINY, **given: Any) -> list[Job]:
    setups = [SETUPS[name] for name in names]
    folders = {"results": folder / "results", "work": folder / "runs"}
    return plan.plan(setups, preset, range(1, seeds + 1), common=given, **folders)


def run_all(jobs: list[Job], **given: Any) -> list[Failure]:
    return run_jobs(jobs, processes=2, threads=1, show=QUIET, **given)


ATTACKED = replace(
    TINY,
    seeds=2,
    attacks={
        "K4": (
            {"attacks": "fgsm,deepfool", "eps": "0,0.1", "iterations": "1,2", "subset": 20, "checks": False},
            {"attacks": "transfer-fgsm", "eps": "0,0.1", "subset": 20, "checks": False, "source": "K4"},
        )
    },
)
FGSM = {"attacks": "fgsm", "eps": "0,0.1", "subset": 100, "checks": False}
SETTINGS: dict[str, Any] = {"draws": 1, "seed": 1}


def points(folder: Path, attack: str, settings: dict[str, Any], *, total: int = 100, weights: str = "a") -> None:
    """Put the points of a curve into a folder, beside what is there."""
    more = {"correct": 1, "wilson": (0, 1), "answers": "1", "subset": "s", "norm": "linf"}
    file = file_of(folder, attack, "linf")
    new = [Point(attack=attack, eps=eps, total=total, weights=weights, settings=settings, **more) for eps in (0.0, 0.1)]
    save_points(file, [*load_points(file), *new])


def keep_record(job: Job, **config: Any) -> Path:
    """A record as the study would keep it, with the config changed; nothing is trained."""
    record = copy.deepcopy(FULL) | {"seed": job.flags["manual_seed"]}
    record["config"] = json.loads(json.dumps({**job.flags, "dataset_train": "shown otherwise", **config}))
    path = job.results[0] / "record.json"
    store.save_record(Record.model_validate(record), path)
    return path


class InProcess:
    """A job of a study run by the tests' own process, which has imported PyTorch; its interface is that of Popen.

    It runs when it is first looked at, so that others can begin before it has ended.
    """

    def __init__(self, argv: list[str], *, stdout: IO[bytes], **_: object) -> None:
        self.line = shlex.join(argv[argv.index("perturblab") + 1 :])
        self.log, self.returncode = os.fdopen(os.dup(stdout.fileno()), "wb"), -1

    def poll(self) -> int:
        """The exit code of the job, which has ended then."""
        if self.returncode < 0:
            with self.log, io.StringIO() as said, redirect_stdout(said), redirect_stderr(said):
                self.returncode = command(self.line)
                self.log.write(said.getvalue().encode())
        return self.returncode

    wait = poll
