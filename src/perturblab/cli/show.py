"""The commands of the catalogue, list, show and run: they parse, call and print."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perturblab.cli.arguments import Parser
from perturblab.cli.study import run_study
from perturblab.errors import UserError
from perturblab.system.exit_codes import DONE

if TYPE_CHECKING:
    from perturblab.studies.catalogue import Claim, PublishedFigure, Setup
    from perturblab.studies.presets import Preset

RESULTS = "results"  # the default of --results
_SETUP = "set-up"  # the kind of a listed set-up without a published figure
Add = Callable[[str, Callable[[argparse.Namespace], int], str], Parser]


def add_catalogue_commands(add: Add) -> None:
    """Add the three commands.

    Args:
        add: makes a command's parser from its name, function and help.
    """
    listed = add("list", _list, "List the published figures and claims, and the set-ups that nobody published.")
    tag = "only figures and claims with this tag, such as pnn, or with each of a,b"
    listed.add_argument("--tag", metavar="T", help=tag)
    listed.add_argument("--json", action="store_true", help="as JSON")
    shown = add("show", _show, "Show one figure, set-up or claim, and its measurements.")
    shown.add_argument("id", metavar="ID", help="of a figure, set-up or claim")
    shown.add_argument("--results", metavar="DIR", default=RESULTS, help="folder of the records [results]")
    shown.add_argument("--json", action="store_true", help="as JSON")
    run = add("run", run_study, "Run the missing runs of a study: set-ups at a preset, several seeds each.")
    run.add_argument("ids", metavar="ID", nargs="*", help="set-ups, figures or claims [the preset's own]")
    run.add_argument("--preset", metavar="P", default="quick", help="quick, cpu, cpu-all, robust, gpu or full [quick]")
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", metavar="N", help="seeds 1 to N of each [the preset's]")
    seeds.add_argument("--seed", metavar="K", help="this seed only; such calls may run side by side")
    run.add_argument("--jobs", metavar="J", help="runs at once [one per core, at most 4; with --on, as many as fit]")
    run.add_argument("--on", metavar="CLUSTER", help="a Ray cluster: ray, or ray://HOST:PORT [this machine]")
    run.add_argument("--cpus", metavar="C", help="with --on: cores of each run [1]")
    run.add_argument("--gpus", metavar="G", help="with --on: GPUs of each run, such as 1 or 0.5 [0]")
    run.add_argument("--results", metavar="DIR", default=RESULTS, help="folder for the records [results]")
    run.add_argument("--work", metavar="DIR", default="runs", help="folder for the runs with their weights [runs]")
    run.add_argument("--dataroot", metavar="DIR", help="folder that is searched first for a data set")
    run.add_argument(
        "--print-commands",
        "--print_commands",
        action="store_true",
        help="print one command per missing run",
    )
    run.add_argument("--dry-run", "--dry_run", action="store_true", help="print what is missing, and run nothing")
    run.add_argument("--quiet", action="store_true", help="no progress")


def _list(args: argparse.Namespace) -> int:
    from perturblab.studies import catalogue

    items: list[PublishedFigure | Claim | Setup] = [
        *catalogue.FIGURES.values(),
        *catalogue.CLAIMS.values(),
        *_unpublished(),
    ]
    if args.tag is not None:
        try:
            items = [*catalogue.find(args.tag)]
        except ValueError as error:
            raise UserError(f"--tag got {args.tag!r}: {error}") from error
    if args.json:
        kinds = ({"kind": _SETUP} if isinstance(item, catalogue.Setup) else {} for item in items)
        _print([{**asdict(item), **kind} for item, kind in zip(items, kinds, strict=True)])
        return DONE
    width = max(len(item.id) for item in items)
    for item in items:
        if isinstance(item, catalogue.PublishedFigure):
            number, kind, about = item.figure.wording, item.figure.kind, item.about
        elif isinstance(item, catalogue.Setup):
            number, kind, about = "-", _SETUP, item.about
        else:
            number, kind, about = item.claimed, "claim", item.text
        print(f"{item.id:{width}}  {number:>9}  {kind:21}  {about}")
    return DONE


def _print(value: object) -> None:
    print(json.dumps(value, indent=1, default=dict))


def _unpublished() -> "list[Setup]":
    """List controls and other set-ups that no published figure rests on."""
    from perturblab.studies.catalogue import FIGURES, SETUPS

    published = {figure.setup for figure in FIGURES.values()}
    return [setup for setup in SETUPS.values() if setup.id not in published and setup.id not in FIGURES]


@dataclass(frozen=True)
class _Item:
    """The figure, set-up or claim of an id; a figure comes with the set-up that it rests on."""

    id: str
    figure: "PublishedFigure | None"
    setup: "Setup | None"
    claim: "Claim | None"


def _look_up(name: str) -> _Item:
    from perturblab.studies import catalogue

    figure, claim = catalogue.FIGURES.get(name), catalogue.CLAIMS.get(name)
    setup = catalogue.SETUPS.get(figure.setup if figure is not None else name)
    if figure is None and claim is None and setup is None:
        from perturblab.studies.setups import not_found

        raise not_found(name)
    return _Item(name, figure, setup, claim)


def _show(args: argparse.Namespace) -> int:
    item = _look_up(args.id)
    run, measured = _how_to_run(item), _measurements(item, Path(args.results))
    obstacle = _why_unmeasurable(item, run)
    if args.json:
        parts = {"figure": item.figure, "setup": item.setup, "relation": item.claim}
        shown: dict[str, object] = {kind: asdict(part) for kind, part in parts.items() if part is not None}
        shown |= {"run": run, **({"unmeasurable": obstacle} if obstacle else {})}
        _print({**shown, "measured": [measurement.values for measurement in measured]})
        return DONE
    for kind, part in {"figure": item.figure, "setup": item.setup, "claim": item.claim}.items():
        if part is not None:
            print("\n".join([f"{kind} {part.id}", *_fields(asdict(part))]))
    print(f"run: cannot be, {run['cannot']}" if "cannot" in run else f"run: {run['command']}")
    print(
        "\n".join(["measured:", *(measurement.line for measurement in measured)])
        if measured
        else "measured: " + (f"cannot be, {obstacle}" if obstacle else "not yet")
    )
    return DONE


def _fields(values: Mapping[str, object]) -> Iterator[str]:
    """Write the fields that are set, one per line; a tuple has a line for each of its parts."""
    for name, value in values.items():
        if name == "id" or value in ("", None, (), {}):
            continue
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, dict) and part is value:
                part = ", ".join(f"{key} {inner}" for key, inner in part.items() if inner not in ("", None))
            yield f"  {name}: {part}"


def _how_to_run(item: _Item) -> dict[str, str]:
    """Give the command that measures an item, or why there is none."""
    from perturblab.studies.catalogue import SETUPS
    from perturblab.studies.setups import flags_of

    claim = item.claim
    sides: tuple[str, ...] = () if item.setup is None else (item.setup.id,)
    measure = None if item.figure is None else item.figure.measure
    if claim is not None:
        sides, measure = tuple(filter(None, (claim.left, claim.right, *claim.rivals))), claim.measure
    if missing := next((SETUPS[side].missing for side in sides if SETUPS[side].missing), ""):
        return {"cannot": missing}
    if not sides:
        settled = claim.how if claim is not None else ""
        return {"cannot": f"no run stands behind it{settled and '; it is settled by ' + settled}"}
    is_attacked = measure is not None and bool(measure.attack)
    preset = _preset_for(sides, claim, attacked=is_attacked)
    reads = {str(flags_of(SETUPS[side], preset, 1).get("dataset_train")) for side in sides} - {"digits"}
    return {"command": f"perturblab run {item.id} --preset {preset.name}{' --dataroot DATA' if reads else ''}"}


def _preset_for(sides: Sequence[str], claim: "Claim | None", *, attacked: bool) -> "Preset":
    """Choose the smallest preset that has all sides among its set-ups, or else is made for them, or else the full one.

    A preset that would leave nothing of a difference, or would not attack an item about attacks, comes last.
    """
    from perturblab.report.evidence import pairs, removal_reason
    from perturblab.studies.presets import PRESETS

    def rank(preset: "Preset") -> tuple[bool, ...]:
        starts = (*preset.special, *preset.attacks)
        made = preset.only or [side for side in sides if side.startswith(starts)]
        return (
            set(sides) <= {*preset.setups, *made} or preset.name == "full",
            claim is None or not all(removal_reason(pair, preset.name) for pair in pairs(claim)),
            not attacked or all(map(preset.attacks_on, sides)),
            set(sides) <= set(preset.setups),
        )

    return max(PRESETS.values(), key=rank)  # the first of equal rank, which is the smallest


def _why_unmeasurable(item: _Item, run: Mapping[str, str]) -> str:
    if "cannot" in run:
        return "there is no run of it"
    measure = None if item.figure is None else item.figure.measure
    if measure is not None and (measure.metric == "none" or measure.mode == "inference-vote"):
        return "nothing here measures this figure"
    return ""


@dataclass(frozen=True)
class _Measurement:
    """One seed's number at a preset: as JSON, and what follows the place in a line of text."""

    values: Mapping[str, object]
    text: str

    @property
    def line(self) -> str:
        return f"  at {self.values['preset']}, seed {self.values['seed']}: {self.text}"


def _measurements(item: _Item, folder: Path) -> list[_Measurement]:
    """Read the numbers of an item from the runs below a folder: of its claim, of its figure, then of its set-up."""
    from perturblab.records import results
    from perturblab.report import claims_table
    from perturblab.report.by_setup import by_place
    from perturblab.report.claims import claim_findings
    from perturblab.report.figures import figure_findings
    from perturblab.stats import signed

    if folder == Path(RESULTS) and not folder.exists():  # nothing was run here yet
        return []
    places, measured = by_place(results.load_results(folder)), list[_Measurement]()
    if (claim := item.claim) is not None:
        finding = next(finding for finding in claim_findings(places) if finding.claim == claim)
        for compared in finding.measured:
            place, words = {"claim": claim.id, "preset": compared.preset}, claims_table.claim_words(claim, compared)
            measured += [
                _Measurement(
                    {**place, "seed": seed, "difference": value, "verdict": words},
                    f"{signed(value)}; over its seeds: {words}",
                )
                for seed, value in compared.differences.items()
            ]
    if (figure := item.figure) is not None:
        of_figure = next(finding for finding in figure_findings(places) if finding.published == figure)
        for at in of_figure.measured:
            flags = f"; flags: {', '.join(at.flags)}" if at.flags else ""
            measured += [
                _Measurement(
                    {"figure": figure.id, "preset": at.preset, "seed": seed, "percent": value, "flags": at.flags},
                    f"{value:.2f}{flags}",
                )
                for seed, value in at.values.items()
            ]
    for (preset, name), seeds in places.items():
        for seed, run in seeds.items() if item.setup is not None and name == item.setup.id else ():
            last = run.record.counts.last
            measured.append(
                _Measurement(
                    {"setup": name, "preset": preset, "seed": seed, **last.model_dump()},
                    f"{last.correct}/{last.total} clean images = {last.accuracy:.2f} % after epoch {last.epoch + 1}, "
                    "the last",
                )
            )
    return measured
