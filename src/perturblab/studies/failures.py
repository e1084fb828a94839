"""Failed jobs of a study: why each has failed, written down until it succeeds."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from perturblab.records.paths import RunFolder
from perturblab.studies.job import Job
from perturblab.system.files import write_atomically
from perturblab.system.terminal import Show


@dataclass(frozen=True)
class Failure:
    """A job that ended without its result, and the reason in one line."""

    name: str
    reason: str


def record_failure(job: Job, reason: str, code: int, show: Show) -> Failure:
    """Report a failed job, and write it down until that very job succeeds.

    Args:
        job: one of a study.
        reason: one line.
        code: exit code of its process.
        show: where the warning goes.
    """
    content = {"name": job.name, "reason": reason, "code": code}
    write_atomically(failure_file(job), (json.dumps(content, indent=1) + "\n").encode())
    show.warn(f"{job.name}: failed: {reason}")
    return Failure(job.name, reason)


def failure_file(job: Job) -> Path:
    """Name the file of a job's failure; each attack on a run has a file of its own.

    Args:
        job: one of a study.
    """
    if not job.attack:
        return RunFolder(job.results[0]).failed
    settings = {name: value for name, value in job.attack.items() if name not in ("dataroot", "source")}
    settings["source"] = Path(str(job.attack.get("source", ""))).parts[-2:]  # the same for any folder of runs
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return RunFolder(job.results[0] / f"failed-{str(job.attack['attacks']).replace(',', '-')}-{digest}").failed


def forget_failure(job: Job) -> None:
    """Delete the written failure of a job that has succeeded.

    Args:
        job: one of a study.
    """
    file = failure_file(job)
    file.unlink(missing_ok=True)
    with suppress(OSError):  # a folder that holds anything else stays
        file.parent.rmdir()
