"""Runs sorted into the catalogue: by preset, set-up and seed."""

import json
from collections.abc import Iterable, Mapping

from perturblab.errors import UserError
from perturblab.records.record import Record
from perturblab.records.results import Result
from perturblab.report.readings import Value, value
from perturblab.studies.catalogue import SETUPS, Measure
from perturblab.studies.presets import PRESETS

Seeds = Mapping[int, Result]
Places = Mapping[tuple[str, str], Seeds]  # (preset, set-up) -> seed -> run


def place_of(run: Result) -> tuple[str, str] | None:
    """Give a run's preset and set-up; None if it is not finished, or belongs to no study of the catalogue."""
    study = run.record.study
    return (study.preset, study.setup) if study and run.record.status == "finished" and study.setup in SETUPS else None


def by_place(runs: Iterable[Result]) -> dict[tuple[str, str], dict[int, Result]]:
    """Sort finished runs into the catalogue.

    Args:
        runs: those without a place are left out.

    Returns:
        (preset, set-up) -> seed -> run, seeds ascending.

    Raises:
        UserError: two different records of the same run.
    """
    places: dict[tuple[str, str], dict[int, Result]] = {}
    for run in sorted(runs, key=lambda run: run.record.seed):
        place, seed = place_of(run), run.record.seed
        if place is not None and places.setdefault(place, {}).setdefault(seed, run) != run:
            preset, setup = place
            raise UserError(f"two records of {setup} at {preset}, seed {seed}, differ; report the folder of one")
    return places


def presets_run(places: Places) -> list[str]:
    """List the presets that were run, the one nearest to the published protocol first; unknown ones last."""
    order = list(PRESETS)[::-1]
    known = {preset for preset, _ in places}
    return sorted(known, key=lambda name: (order.index(name) if name in order else len(order), name))


def values_of(seeds: Seeds, measure: Measure, images: int = 0) -> dict[int, Value]:
    """Read a value from each run of a set-up, as `value` does; leave out runs that were not measured that way."""
    return {seed: v for seed, run in seeds.items() if (v := value(run, measure, images))}


def flags_of_values(values: Iterable[Value]) -> tuple[str, ...]:
    """Collect the flags of some values, sorted."""
    return tuple(sorted({flag for v in values for flag in v.flags}))


def note_mixture(records: Iterable[Record]) -> list[str]:
    """Note in what the records behind one number differ: the numerics, or the images."""
    records = list(records)
    numbers = sorted({number for record in records for number in record.numbers})
    images = {json.dumps(record.data.hashes, sort_keys=True) for record in records}
    notes = [f"made with numerics {' and '.join(map(str, numbers))}"] if len(numbers) > 1 else []
    return notes + ([f"made by {len(images)} versions of the images"] if len(images) > 1 else [])
