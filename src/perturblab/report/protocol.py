"""The protocol of a page: presets, commands that repeat its runs, other records, compute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """How runs of no study are made again.

    Args:
        label: of the group.
        seeds: of its records, ascending.
        command: of the first one; "" where its config is not one that can be command_line.
    """

    label: str
    seeds: tuple[int, ...]
    command: str


def list_presets(places: Places) -> list[dict[str, Any]]:
    found = []
    for name in dict.fromkeys(preset for preset, _ in places):
        if name not in PRESETS:
            continue
        preset = PRESETS[name]
        seeds = {setup: max(places[of, setup]) for of, setup in places if of == name}
        found.append(
            {
                "name": name,
                "about": preset.about,
                "changes": preset.changes or ("nothing",),
                "attacks": bool(preset.attacks),
                "commands": _studies(preset, seeds),
                "runs": [(setup, "\n".join(_runs(SETUPS[setup], preset))) for setup in seeds],
            }
        )
    return found


def _studies(preset: Preset, seeds: Mapping[str, int]) -> list[str]:
    """The calls that make all of it: the preset's own set-ups and seeds, then what was run beyond them."""
    beyond = {setup: last for setup, last in seeds.items() if setup not in preset.setups}
    beyond |= {setup: last for setup, last in seeds.items() if last > max(preset.seeds_of(setup))}
    start = f"perturblab run --preset {preset.name}"
    own = [start] if seeds.keys() - beyond.keys() else []
    return own + [
        f"{start} {' '.join(setup for setup in beyond if beyond[setup] == last)} --seeds {last}"
        for last in sorted(set(beyond.values()))
    ]


def _runs(setup: Setup, preset: Preset) -> Iterable[str]:
    """One run of a set-up without a study, and its attacks."""
    yield command_line(flags_of(setup, preset, 1)) + " --out RUN"
    for attack in preset.attacks_on(setup.id):
        source = {"source": f"RUN-OF-{attack['source']}"} if "source" in attack else {}
        yield command_line({**attack, **source}, "perturblab", "attack", "RUN")


def list_groups(runs: Sequence[Result]) -> list[tuple[str, ...]]:
    """The records that belong to no study of this catalogue, as lines of a table."""
    others = _others(runs)
    return groups_table.group_cells(others) if others else []


def list_repeats(runs: Sequence[Result]) -> list[Repeat]:
    """The commands of these records."""
    return [Repeat(of.label, tuple(record.seed for record in of.records), _command(of)) for of in group(_others(runs))]


def _others(runs: Sequence[Result]) -> list[Record]:
    """Records that stand nowhere else on the page."""
    return [run.record for run in runs if place_of(run) is None]


def _command(of: Group) -> str:
    """What the first record's config says, with the images by the name under which they are found."""
    record = of.records[0]
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
    spent: dict[str, list[Record]] = {}
    attacked: dict[str, float] = {}
    for run in runs:
        name = run.record.study.preset if run.record.study else "others"
        spent.setdefault(name, []).append(run.record)
        attacked[name] = attacked.get(name, 0.0) + sum(point.seconds for point in run.points)
    return [
        (
            name,
            len(of),
            f"{sum(r.seconds * r.environment.threads for r in of) / 3600:.2f}",
            f"{attacked[name] / 3600:.2f}",
            ", ".join(map(str, sorted({number for r in of for number in r.numbers}))),
        )
        for name, of in sorted(spent.items())
    ]
