"""The results of a study: records and points, copied between the folder of a run and the folders that keep them."""

import itertools
from collections.abc import Iterable
from pathlib import Path

from perturblab.errors import UserError
from perturblab.records import store
from perturblab.records.paths import RunFolder
from perturblab.records.record import Study
from perturblab.studies.done import fault_in
from perturblab.studies.job import Job
from perturblab.system.files import write_atomically
from perturblab.system.terminal import Show


def set_aside_void(jobs: Iterable[Job], show: Show) -> None:
    """Rename the folders of void records, so that their runs start again and nothing is lost.

    Args:
        jobs: missing ones of a study.
        show: reports each renamed folder.

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


def share_records(jobs: Iterable[Job]) -> list[Job]:
    """Copy an existing record to the other set-ups with identical flags; such a run is trained once.

    Args:
        jobs: missing ones of a study; their results are written.

    Returns:
        The jobs that are still missing.

    Raises:
        UserError: a record is broken.
    """
    missing = []
    for job in jobs:
        if not (lacking := lacking_setups(job)):
            missing.append(job)
        whole = [folder for folder in job.results if folder not in lacking.values()]
        for setup, folder in lacking.items():
            keep_run(whole[0], folder, Study(setup=setup, preset=job.preset))
    return missing


def lacking_setups(job: Job) -> dict[str, Path]:
    """Find the set-ups of a job that lack its record although another set-up has it.

    Args:
        job: one of a study.

    Returns:
        Set-up -> the folder of its results; empty for an attack.
    """
    pairs = zip(job.setups, job.results, strict=True)
    lacking = {setup: folder for setup, folder in pairs if not RunFolder(folder).record.is_file()}
    return {} if job.attack or len(lacking) == len(job.results) else lacking


def keep_run(run: Path, results: Path, study: Study) -> None:
    """Copy a run's metrics, and its record with the name of its set-up, to the folder of its results."""
    record = store.load_record(RunFolder(run).record)
    write_atomically(RunFolder(results).metrics, RunFolder(run).metrics.read_bytes())
    store.save_record(record.model_copy(update={"study": study}), RunFolder(results).record)


def keep_attacks(run: Path, results: Path) -> None:
    """Copy a run's points and checks over those of its results."""
    for file in sorted(RunFolder(run).attacks.glob("*.json")):
        write_atomically(RunFolder(results).attacks / file.name, file.read_bytes())
