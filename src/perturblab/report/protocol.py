"""The protocol of a page: presets, commands that repeat its runs, other records, compute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perturblab.records.config import TrainConfig
from perturblab.records.groups import Group, group
from perturblab.records.record import Record
from perturblab.records.results import Result
from perturblab.report import groups_table
from perturblab.report.by_setup import Places, place_of
from perturblab.studies.catalogue import SETUPS, Setup
from perturblab.studies.catalogue.types import command_line
from perturblab.studies.presets import PRESETS, Preset
from perturblab.studies.setups import flags_of


@dataclass(frozen=True)
class Repeat:
    """The command that repeats a group of runs outside all studies.

    Args:
        label: of the group.
        seeds: of its records, ascending.
        command: of the first one; "" if its config cannot be typed.
    """

    label: str
    seeds: tuple[int, ...]
    command: str


@dataclass(frozen=True)
class PresetRuns:
    """A preset that was run.

    Args:
        name: of the preset.
        about: one line.
        changes: against the published protocol, one sentence each.
        attacks: whether its runs are attacked.
        commands: the calls that make all of it.
        runs: set-up -> the commands of its run with seed 1, one per line.
    """

    name: str
    about: str
    changes: tuple[str, ...]
    attacks: bool
    commands: list[str]
    runs: list[tuple[str, str]]


def list_presets(places: Places) -> list[PresetRuns]:
    """List the presets that were run."""
    presets = []
    for name in dict.fromkeys(preset for preset, _ in places):
        if name not in PRESETS:
            continue
        preset = PRESETS[name]
        seeds = {setup: max(places[at, setup]) for at, setup in places if at == name}
        presets.append(
            PresetRuns(
                name,
                preset.about,
                preset.changes or ("nothing",),
                bool(preset.attacks),
                _studies(preset, seeds),
                [(setup, "\n".join(_runs(SETUPS[setup], preset))) for setup in seeds],
            )
        )
    return presets


def _studies(preset: Preset, seeds: Mapping[str, int]) -> list[str]:
    """Write the calls that make a preset's runs: its own set-ups and seeds, then those that were run beyond them."""
    beyond = {setup: last for setup, last in seeds.items() if setup not in preset.setups}
    beyond |= {setup: last for setup, last in seeds.items() if last > max(preset.seeds_of(setup))}
    start = f"perturblab run --preset {preset.name}"
    default = [start] if seeds.keys() - beyond.keys() else []
    return default + [
        f"{start} {' '.join(setup for setup in beyond if beyond[setup] == last)} --seeds {last}"
        for last in sorted(set(beyond.values()))
    ]


def _runs(setup: Setup, preset: Preset) -> Iterable[str]:
    """Write the commands of one run of a set-up outside a study, and of its attacks."""
    yield command_line(flags_of(setup, preset, 1)) + " --out RUN"
    for attack in preset.attacks_on(setup.id):
        source = {"source": f"RUN-OF-{attack['source']}"} if "source" in attack else {}
        yield command_line({**attack, **source}, "perturblab", "attack", "RUN")


def list_groups(runs: Sequence[Result]) -> list[tuple[str, ...]]:
    """Lay out the records outside all studies of this catalogue as rows of a table."""
    others = _others(runs)
    return groups_table.group_cells(others) if others else []


def list_repeats(runs: Sequence[Result]) -> list[Repeat]:
    """List the commands that repeat these records."""
    groups = group(_others(runs))
    return [Repeat(one.label, tuple(record.seed for record in one.records), _command(one)) for one in groups]


def _others(runs: Sequence[Result]) -> list[Record]:
    """Select the records that appear nowhere else on the page."""
    return [run.record for run in runs if place_of(run) is None]


def _command(repeated: Group) -> str:
    """Write the first record's config as a command, with the images by their registered name."""
    record = repeated.records[0]
    flags = {name: value for name, value in record.config.items() if value is not None and name != "label"}
    names = {part: name for part in ("train", "test") if (name := f"dataset_{part}") in flags}
    flags |= dict.fromkeys(names.values(), record.data.recognised)
    if len(names) > 1 and record.data.train == record.data.test:
        del flags["dataset_test"]
    words = {name: tuple(map(str, value)) if isinstance(value, list) else value for name, value in flags.items()}
    texts = [word for value in words.values() for word in (value if isinstance(value, tuple) else (str(value),))]
    if not words.keys() <= TrainConfig.model_fields.keys() or not all(text and text.isprintable() for text in texts):
        return ""
    return command_line({**words, "manual_seed": record.seed}) + " --out RUN"


def list_compute(runs: Iterable[Result]) -> list[tuple[str, int, str, str, str]]:
    """Sum the compute by preset: runs, core hours of training, hours of attacks, numerics numbers."""
    spent: dict[str, list[Record]] = {}
    attacked: dict[str, float] = {}
    for run in runs:
        name = run.record.study.preset if run.record.study else "others"
        spent.setdefault(name, []).append(run.record)
        attacked[name] = attacked.get(name, 0.0) + sum(point.seconds for point in run.points)
    return [
        (
            name,
            len(records),
            f"{sum(r.seconds * r.environment.threads for r in records) / 3600:.2f}",
            f"{attacked[name] / 3600:.2f}",
            ", ".join(map(str, sorted({number for r in records for number in r.numbers}))),
        )
        for name, records in sorted(spent.items())
    ]
