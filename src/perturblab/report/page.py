"""One self-contained HTML page: a pure function of what the runs have left."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab.records.config import TrainConfig
from perturblab.records.groups import Group, group
from perturblab.records.record import Record
from perturblab.records.results import Failed, Result
from perturblab.report import tables
from perturblab.report.answers import Answer, answers
from perturblab.report.claims import EVIDENCE, LEARNED, claim_findings
from perturblab.report.curves import attack_charts, audit_charts, learning_charts
from perturblab.report.places import Places, by_place, place_of
from perturblab.report.published import figure_findings
from perturblab.report.rows import claim_row, open_claim, sections
from perturblab.studies.catalogue import SETUPS, Setup
from perturblab.studies.catalogue.types import typed
from perturblab.studies.presets import PRESETS, Preset
from perturblab.studies.setups import flags_of

_TEMPLATE = Path(__file__).with_name("page.html")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # control characters that no HTML may hold
_MASKS = 8


@dataclass(frozen=True)
class Repeat:
    """How runs of no study are made again.

    Args:
        label: of the group.
        seeds: of its records, ascending.
        command: of the first one; "" where its config is not one that can be typed.
    """

    label: str
    seeds: tuple[int, ...]
    command: str


def page(runs: Sequence[Result], failed: Sequence[Failed] = (), void: Sequence[str] = ()) -> str:
    """Write the page.

    Args:
        runs: in any order; the same runs give the same bytes.
        failed: runs that ended without a record.
        void: a line for each record that a known fault makes void.

    Returns:
        HTML that needs no other file and no network.
    """
    import jinja2

    runs = sorted(runs, key=lambda run: (run.record.model_dump_json(), len(run.points)))
    places = by_place(runs)
    claims, figures = claim_findings(places), figure_findings(places)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        runs=len(runs),
        evidence=f"{EVIDENCE:.0f}",
        learned=f"{LEARNED:.0f}",
        answers=answers(claims),
        claims=[claim_row(finding, compared) for finding in claims for compared in finding.measured],
        open_claims=[open_claim(finding) for finding in claims if not finding.measured],
        sections=sections(figures),
        charts={
            "Curves under attack": attack_charts(runs),
            "Learning curves": learning_charts(places),
            "The metric audit": audit_charts(places),
        },
        masks=_masks(runs),
        presets=_presets(places),
        groups=_groups(runs),
        repeats=_repeats(runs),
        compute=_compute(runs),
        failed=failed,
        void=void,
    )
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", html)


def answered(runs: Sequence[Result]) -> tuple[Answer, Answer]:
    """The two answers alone, for a terminal.

    Args:
        runs: in any order.
    """
    return answers(claim_findings(by_place(runs)))


def _masks(runs: Iterable[Result]) -> list[dict[str, str]]:
    record = next((run.record for run in runs if run.record.masks), None)
    if record is None:
        return []
    net = record.study.setup if record.study else str(record.config.get("net_type", "net"))
    return [
        {"png": mask.png, "about": f"{net}, {mask.layer}, {' x '.join(map(str, mask.shape))}"}
        for mask in record.masks[:_MASKS]
    ]


def _presets(places: Places) -> list[dict[str, Any]]:
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
    yield typed(flags_of(setup, preset, 1)) + " --out RUN"
    for attack in preset.attacks_on(setup.id):
        source = {"source": f"RUN-OF-{attack['source']}"} if "source" in attack else {}
        yield typed({**attack, **source}, "perturblab", "attack", "RUN")


def _groups(runs: Sequence[Result]) -> list[tuple[str, ...]]:
    """The records that belong to no study of this catalogue, as lines of a table."""
    others = _others(runs)
    return tables.cells(others) if others else []


def _repeats(runs: Sequence[Result]) -> list[Repeat]:
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
    return typed({**words, "manual_seed": record.seed}) + " --out RUN"


def _compute(runs: Iterable[Result]) -> list[tuple[str, int, str, str, str]]:
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
