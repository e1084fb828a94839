"""The plan of a study: its jobs, and which of them are done, missing or in conflict with existing files."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from perturblab.records import store
from perturblab.records.paths import RunFolder
from perturblab.studies.catalogue.types import Flags, Setup
from perturblab.studies.done import (
    conflict,
    fault_in,
    has_other_numerics,
    is_done,
    version_notes,
    void_of,
)
from perturblab.studies.job import Job
from perturblab.studies.presets import Preset
from perturblab.studies.setups import flags_of


@dataclass(frozen=True)
class Standing:
    """The state of a study.

    Args:
        done: jobs with a result.
        missing: jobs to run.
        other: jobs in conflict with existing files of other settings or weights, each with the remedy.
        notes: one line each, such as that records come from several versions of the numerics or of the data.
    """

    done: list[Job]
    missing: list[Job]
    other: list[tuple[Job, str]]
    notes: list[str]


def plan(
    setups: Sequence[Setup],
    preset: Preset,
    seeds: Sequence[int] | None,
    *,
    results: Path,
    work: Path,
    common: Flags | None = None,
) -> list[Job]:
    """List the jobs of a study: its runs seed by seed, for an early comparison, then its attacks.

    Args:
        setups: of the catalogue; those with identical flags at this preset are run once.
        preset: the size.
        seeds: of each; those of the preset for None.
        results: folder of the records: ``results/PRESET/SETUP/seed-K``.
        work: folder of the runs with their weights.
        common: flags of every run that decide where and how it runs, such as ``dataroot``.
    """
    jobs: dict[str, Job] = {}
    asked = {setup.id: seeds or preset.seeds_of(setup.id) for setup in setups}
    for seed in sorted({seed for numbers in asked.values() for seed in numbers}):
        for setup in (setup for setup in setups if seed in asked[setup.id]):
            flags = {**flags_of(setup, preset, seed), **(common or {})}
            key = json.dumps(flags, sort_keys=True)
            place = Path(preset.folder, setup.id, f"seed-{seed}")
            same = jobs.get(key, Job((), preset.folder, flags, work / place, ()))
            jobs[key] = replace(same, setups=(*same.setups, setup.id), results=(*same.results, results / place))
    # The first attack on every run before the second on any: presets list them from the cheapest on.
    attacks = zip_longest(*(_attacks(job, preset, work, common or {}) for job in jobs.values()))
    return [*jobs.values(), *(attack for nth in attacks for attack in nth if attack is not None)]


def _attacks(job: Job, preset: Preset, work: Path, common: Flags) -> Iterator[Job]:
    """Make one job per attack command; images are transferred from the run of the next seed."""
    for attack in preset.attacks_on(job.setups[0]):
        settings, needs = {**attack, **common}, [RunFolder(job.work).record]
        if "source" in attack:
            seeds, seed = preset.seeds_of(str(attack["source"])), job.flags["manual_seed"]
            other = seeds[(seeds.index(seed) + 1) % len(seeds)] if seed in seeds else seeds[0]
            settings["source"] = str(work / preset.folder / str(attack["source"]) / f"seed-{other}")
            needs.append(RunFolder(Path(settings["source"])).record)
        yield replace(job, setups=job.setups[:1], results=job.results[:1], attack=settings, needs=tuple(needs))


def sort_jobs(jobs: Iterable[Job]) -> Standing:
    """Sort the jobs of a study into done, missing and in conflict.

    Args:
        jobs: of one study. A run with a record is missing too if a missing attack needs weights that are not there.

    Raises:
        UserError: a record or a file of points is broken.
    """
    done, missing, other = list[Job](), list[Job](), list[tuple[Job, str]]()
    for job in jobs:
        if is_done(job):
            done.append(job)
        elif reason := conflict(job):
            other.append((job, reason))
        else:
            missing.append(job)
    kept = ((store.record_in(folder), job.config) for job in done if not job.attack for folder in job.results)
    notes = version_notes((record, asked) for record, asked in kept if record)
    needs = {path for job in missing for path in job.needs}
    needed = {path.parent for path in needs if not path.is_file() or fault_in(path.parent)}
    anew = [job for job in done if not job.attack and job.work in needed]
    if anew:
        notes.append(f"note: runs trained anew to be attacked, since their weights are not here: {len(anew)}")
    if others := sum(has_other_numerics(job.results[0]) for job in anew):
        notes.append(
            f"note: {others} of these were trained under another numerics number; if the weights differ now, no attack "
            "is added to their points"
        )
    void = Counter(str(fault) for job in missing if not job.attack and (fault := void_of(job)))
    notes += [f"note: void records, to be run again: {count} ({fault})" for fault, count in void.items()]
    return Standing([job for job in done if job not in anew], [*anew, *missing], other, notes)
