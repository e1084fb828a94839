"""Is a job already done? Compares the record and attack points in a folder with what was requested."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from perturblab.records import numerics, store
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import AttackName
from perturblab.records.checks import load_checks
from perturblab.records.config import TrainConfig, validated
from perturblab.records.numerics import Fault
from perturblab.records.paths import RunFolder, file_of, point_files
from perturblab.records.points import Point, load_points
from perturblab.records.record import Record
from perturblab.records.store import record_in
from perturblab.studies.job import Job

_NAMES = {"dataset_train", "dataset_test", "dataroot"}  # a record calls the images by their display name
_RULE = re.compile(r"all|last|alternate|all-after:.*|.*[*?[].*")  # places of BatchOut; a record has what they meant


def describe_differences(record: Record, config: TrainConfig, names: Collection[str]) -> str:
    """List the settings in which a record differs from a request.

    Args:
        record: of a run.
        config: settings asked for.
        names: of the settings that count. All others may differ, and those that the record does not have.

    Returns:
        Such as "learning_rate 0.001, now 0.01; nepochs 2, now 1"; "" where nothing differs.
    """
    recorded = {**record.config, "manual_seed": record.seed}
    asked = config.model_dump(mode="json", include=set(names) - _NAMES)
    if _RULE.fullmatch(str(asked.get("batchout_at"))):
        del asked["batchout_at"]
    if ";" not in (etas := str(asked.get("batchout_eta", ";"))):  # a record has one per place
        asked["batchout_eta"] = ";".join([etas] * (str(recorded.get("batchout_eta")).count(";") + 1))
    other = [name for name, value in asked.items() if name in recorded and recorded[name] != value]
    return "; ".join(f"{name} {recorded[name]}, now {asked[name]}" for name in other)


def fault_in(folder: Path) -> numerics.Fault | None:
    """Find the known fault that makes the record of a folder void; None where there is none, or no record."""
    record = record_in(folder) if numerics.FAULTS else None
    return None if record is None else record.fault


def has_other_numerics(folder: Path) -> bool:
    """Say whether the run of a record was trained under another numerics number, so that its weights may differ now."""
    record = record_in(folder)
    return record is not None and record.numbers != (numerics.NUMERICS,)


def version_notes(pairs: Iterable[tuple[Record, TrainConfig]]) -> list[str]:
    """Note where records have several numerics numbers, or several versions of the same data.

    Args:
        pairs: records, each with the settings asked for.

    Returns:
        One line for the numerics, and one for each of the data, that there are several versions of.
    """
    counted = {("the numerics", ""): Counter[str]()}
    for record, asked in pairs:
        counted["the numerics", ""][" and ".join(map(str, record.numbers))] += 1
        test = "" if asked.dataset_test == asked.dataset_train else asked.dataset_test or ""
        parts = ", ".join((*filter(None, [test]), *(asked.classes or ())))
        version = " ".join(
            [record.data.train, *(f"{part} {digits[:6]}" for part, digits in record.data.hashes.items())]
        )
        counted.setdefault((asked.dataset_train, parts), Counter())[version] += 1
    return [
        f"note: the records come from {len(counts)} versions of {name}{parts and f' ({parts})'}: "
        + ", ".join(f"{counts[version]} of {version}" for version in sorted(counts))
        for (name, parts), counts in counted.items()
        if len(counts) > 1
    ]


def weights_of(work: Path, results: Path) -> str:
    """Give the hash of a run's weights, as its points spell it.

    Args:
        work: folder of the run.
        results: folder of its results.

    Returns:
        The hash; "" where the weights are not there, or are those of another run than the record of the results.
    """
    here, kept = record_in(work), record_in(results)
    if here is None or (kept is not None and kept.model_copy(update={"study": None}) != here):
        return ""
    return RunFolder(work).weights_hash()


def other_weights(work: Path, results: Path) -> str:
    """Compare the weights that the points in a folder were made on with those of a run.

    Args:
        work: folder of the run.
        results: folder of its results.

    Returns:
        Such as "e48c4ae5bc3bf788, now 1c34161c25c9e374"; "" where either is missing, or one of the points fits.

    Raises:
        UserError: a record or a file of points is broken.
    """
    now = RunFolder(work).weights_hash() if record_in(work) is not None else ""
    attacked = {point.weights for path in point_files(results) for point in load_points(path)}
    return f"{', '.join(sorted(attacked))}, now {now}" if now and attacked and now not in attacked else ""


def is_measured(config: AttackConfig, folder: Path, *, images: int | None, weights: str) -> bool:
    """Say whether a folder holds all points and checks that an attack asks for, of one state of the weights.

    Args:
        config: settings asked for; the source is read only where the weights are known.
        folder: of the results.
        images: in the test set; None where that is not known.
        weights: hash of those that are attacked; "" where it is not known.

    Raises:
        UserError: a file of points or checks is broken.
    """
    source = RunFolder(Path(config.source)).weights_hash() if weights and config.source else ""
    total = config.subset if images is None else min(config.subset or images, images)
    names = [(name, replace(name, is_frozen=True)) for name in config.names]
    norms = {True: "l2", False: config.norm}
    files = [file_of(folder, twin, norms[twin.kind.by_iterations]) for twins in names for twin in twins]
    points = [p for file in files for p in load_points(file) if p.total == (total or p.total)]
    points = [p for p in points if _is_as_hard(p, config) and source in ("", p.settings.get("source_weights", source))]
    for state in [weights] if weights else dict.fromkeys(p.weights for p in points):
        same = [p for p in points if p.weights == state]
        if _covers(same, config) and (not config.checks or _is_checked(folder, same[0], config, source)):
            return True
    return False


def _is_as_hard(point: Point, config: AttackConfig) -> bool:
    """Say whether a point was measured with the effort and in the mode asked for, as far as it tells."""
    settings = point.settings
    asked: dict[str, Any] = asdict(config.effort) | {"seed": config.manual_seed, "verdicts": config.verdicts}
    asked |= {"draws": config.draws if point.is_random or point.name.is_frozen else 1}
    asked |= {"source": Path(config.source or "").name}
    del asked["early_stop"]  # follows from the net
    if "steps" in settings:
        settings = {"step_size": None, **settings}  # a size that follows from the radius is not written down
    return point.mode == config.mode and all(settings[name] == asked[name] for name in settings.keys() & asked)


def _covers(points: Sequence[Point], config: AttackConfig) -> bool:
    """Say whether every attack met the net at every radius, a random net under all its names."""

    def is_there(name: AttackName, *, drawn: bool) -> bool:
        axis = config.iterations if name.kind.by_iterations else config.eps or ()
        radii = {p.eps for p in points if p.name == name and p.is_random == drawn}
        return bool(radii) and radii >= set(map(float, axis))

    return all(
        is_there(name, drawn=False) or all(is_there(twin, drawn=not twin.is_frozen) for twin in name.on_random_net())
        for name in config.names
    )


def _is_checked(folder: Path, point: Point, config: AttackConfig, source: str) -> bool:
    """Say whether the masking checks asked for have seen the net and the images of a point."""
    asked = {
        "subset": point.subset,
        "images": min(config.check_subset, point.total),
        "weights": point.weights,
        "norm": config.norm,
        "mode": point.net[1],
        "seed": config.manual_seed,
    }
    keys = [check.key for check in load_checks(RunFolder(folder).checks)]
    return any(
        all(getattr(key, name) == value for name, value in asked.items())
        and replace(key.effort, draws=1, early_stop=True) == config.effort
        and bool(key.source_weights) == bool(config.source)
        and source in ("", key.source_weights)
        for key in keys
    )


def is_done(job: Job) -> bool:
    """Say whether a job's result exists: valid records of exactly these flags, or the points of its attacks.

    Args:
        job: one of a study.

    Raises:
        UserError: a record or a file of points is broken.
    """
    if void_of(job) or any(_differing(job, folder) for folder in job.results):
        return False
    if not job.attack:
        return all(store.record_in(folder) for folder in job.results)
    folder, config = job.results[0], validated(AttackConfig, dict(job.attack))
    record = store.record_in(folder) or store.record_in(job.work)
    images = None if record is None else record.counts.last.total
    return is_measured(config, folder, images=images, weights=weights_of(job.work, folder))


def void_of(job: Job) -> Fault | None:
    """Find the known fault that makes a record of a job's run void.

    Args:
        job: one of a study.

    Raises:
        UserError: a record is broken.
    """
    return next((fault for folder in job.results if (fault := fault_in(folder))), None)


def _differing(job: Job, folder: Path) -> str:
    record = store.record_in(folder)
    return "" if record is None else describe_differences(record, job.config, job.flags)


def conflict(job: Job) -> str:
    """Say why a job must not be run: it would overwrite, resume or attack a run with other settings.

    Args:
        job: one that is not done.

    Returns:
        The reason and the remedy; "" if it may be run.

    Raises:
        UserError: a record or a file of points is broken.
    """
    differences = {folder: text for folder in (*job.results, job.work) if (text := _differing(job, folder))}
    if differences:
        folders, settings = " and ".join(map(str, differences)), next(iter(differences.values()))
        return f"its record has other settings ({settings}); move {folders} away to run it again"
    if weights := other_weights(job.work, job.results[0]):
        return (
            f"its points were measured on other weights ({weights}); move {job.results[0]} away to measure them again"
        )
    return ""
