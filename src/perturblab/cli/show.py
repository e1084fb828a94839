"""The commands of the catalogue: list, show, run. They parse, call and print."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturblab.cli.arguments import Parser
from perturblab.cli.study import run_study
from perturblab.errors import UserError
from perturblab.system.processes import DONE

if TYPE_CHECKING:
    from perturblab.studies.catalogue import Entry, Relation, Setup
    from perturblab.studies.presets import Preset

RESULTS = "results"  # where records lie unless --results says otherwise
_SETUP = "set-up"  # kind of what is listed without a figure or a claim
Add = Callable[[str, Callable[[argparse.Namespace], int], str], Parser]


def add_commands(add: Add) -> None:
    """Add the three commands.

    Args:
        add: from name, function and text to the command's parser.
    """
    listed = add("list", _list, "List the published figures and claims, and the set-ups that nobody published.")
    tag = "only figures and claims with this tag, such as pnn, or with all of a,b"
    listed.add_argument("--tag", metavar="T", help=tag)
    listed.add_argument("--json", action="store_true", help="as JSON")
    shown = add("show", _show, "Show all about one figure, set-up or relation, and what has been measured.")
    shown.add_argument("id", metavar="ID", help="of a figure, set-up or relation")
    shown.add_argument("--results", metavar="DIR", default=RESULTS, help="where the records lie [results]")
    shown.add_argument("--json", action="store_true", help="as JSON")
    run = add("run", run_study, "Run what is missing of a study: set-ups at a preset, several seeds each.")
    run.add_argument("ids", metavar="ID", nargs="*", help="set-ups, figures or relations; the preset's own by default")
    run.add_argument("--preset", metavar="P", default="quick", help="quick, cpu, cpu-all, robust, gpu or full [quick]")
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", metavar="N", help="seeds 1 to N of each [the preset's]")
    seeds.add_argument("--seed", metavar="K", help="this seed only, beside other such calls")
    run.add_argument("--jobs", metavar="J", help="runs at once [one a core, at most 4; with --on, what fits]")
    run.add_argument("--on", metavar="CLUSTER", help="a Ray cluster: ray, or ray://HOST:PORT [this machine]")
    run.add_argument("--cpus", metavar="C", help="with --on: cores of each run [1]")
    run.add_argument("--gpus", metavar="G", help="with --on: GPUs of each run, such as 1 or 0.5 [0]")
    run.add_argument("--results", metavar="DIR", default=RESULTS, help="where the records go [results]")
    run.add_argument("--work", metavar="DIR", default="runs", help="where the runs lie, with their weights [runs]")
    run.add_argument("--dataroot", metavar="DIR", help="where a data set is looked for first")
    run.add_argument(
        "--print-commands", "--print_commands", action="store_true", help="one command a line for each missing run"
    )
    run.add_argument("--dry-run", "--dry_run", action="store_true", help="say what is missing, and run nothing")
    run.add_argument("--quiet", action="store_true", help="no progress")


def _list(args: argparse.Namespace) -> int:
    from perturblab.studies import catalogue

    items: list[Entry | Relation | Setup] = [
        *catalogue.ENTRIES.values(),
        *catalogue.RELATIONS.values(),
        *_unpublished(),
    ]
    if args.tag is not None:
        try:
            items = [*catalogue.find(args.tag)]
        except ValueError as error:
            raise UserError(f"--tag got {args.tag!r}: {error}") from error
    if args.json:
        kinds = ({"kind": _SETUP} if isinstance(item, catalogue.Setup) else {} for item in items)
        said = [{**asdict(item), **kind} for item, kind in zip(items, kinds, strict=True)]
        print(json.dumps(said, indent=1, default=dict))
        return DONE
    width = max(len(item.id) for item in items)
    for item in items:
        if isinstance(item, catalogue.Entry):
            figure, kind, about = item.figure.said, item.figure.kind, item.about
        elif isinstance(item, catalogue.Setup):
            figure, kind, about = "-", _SETUP, item.about
        else:
            figure, kind, about = item.claimed, "claim", item.text
        print(f"{item.id:{width}}  {figure:>9}  {kind:21}  {about}")
    return DONE


def _unpublished() -> "list[Setup]":
    """Controls and other set-ups that no published figure rests on."""
    from perturblab.studies.catalogue import ENTRIES, SETUPS

    published = {entry.setup for entry in ENTRIES.values()}
    return [setup for setup in SETUPS.values() if setup.id not in published and setup.id not in ENTRIES]


def _found(name: str) -> "tuple[Entry | None, Setup | None, Relation | None]":
    from perturblab.studies import catalogue

    entry, relation = catalogue.ENTRIES.get(name), catalogue.RELATIONS.get(name)
    setup = catalogue.SETUPS.get(entry.setup if entry is not None else name)
    if entry is None and relation is None and setup is None:
        from perturblab.studies.setups import not_found

        raise not_found(name)
    return entry, setup, relation


def _show(args: argparse.Namespace) -> int:
    entry, setup, relation = _found(args.id)
    named = {"figure": entry, "setup": setup, "relation": relation}
    said: dict[str, Any] = {kind: asdict(of) for kind, of in named.items() if of is not None}
    said["run"] = _how_to_run(args.id, entry, setup, relation)
    if why := _unmeasurable(entry, said["run"]):
        said["unmeasurable"] = why
    said["measured"] = _measured(entry, setup, relation, Path(args.results))
    print(json.dumps(said, indent=1, default=dict) if args.json else "\n".join(_lines(said)))
    return DONE


def _how_to_run(name: str, entry: "Entry | None", setup: "Setup | None", relation: "Relation | None") -> dict[str, str]:
    """The command, or why there is none."""
    from perturblab.studies.catalogue import SETUPS
    from perturblab.studies.setups import flags_of

    sides: tuple[str, ...] = () if setup is None else (setup.id,)
    measure = None if entry is None else entry.measure
    if relation is not None:
        sides, measure = tuple(filter(None, (relation.left, relation.right, *relation.rivals))), relation.measure
    if why := next((SETUPS[side].missing for side in sides if SETUPS[side].missing), ""):
        return {"cannot": why}
    if not sides:
        settled = relation.how if relation is not None else ""
        return {"cannot": f"no run stands behind it{settled and '; it is settled by ' + settled}"}
    is_attacked = measure is not None and bool(measure.attack)
    preset = _preset_for(sides, relation, attacked=is_attacked)
    reads = {str(flags_of(SETUPS[side], preset, 1).get("dataset_train")) for side in sides} - {"digits"}
    return {"command": f"perturblab run {name} --preset {preset.name}{' --dataroot DATA' if reads else ''}"}


def _preset_for(sides: Sequence[str], relation: "Relation | None", *, attacked: bool) -> "Preset":
    """The smallest preset that has all sides among its own set-ups, or else is made for them; the full one for others.

    One that would leave nothing of a difference, or would not attack what is asked about under attack, comes last.
    """
    from perturblab.report.claims import is_removed, pairs
    from perturblab.studies.presets import PRESETS

    def suits(preset: "Preset") -> tuple[bool, ...]:
        starts = (*preset.special, *preset.attacks)
        made = preset.only or [side for side in sides if side.startswith(starts)]
        return (
            set(sides) <= {*preset.setups, *made} or preset.name == "full",
            relation is None or not all(is_removed(pair, preset.name) for pair in pairs(relation)),
            not attacked or all(map(preset.attacks_on, sides)),
            set(sides) <= set(preset.setups),
        )

    return max(PRESETS.values(), key=suits)  # of those that suit alike the first, which is the smallest


def _unmeasurable(entry: "Entry | None", run: dict[str, str]) -> str:
    if "cannot" in run:
        return "there is no run of it"
    if entry is not None and (entry.measure.metric == "none" or entry.measure.mode == "inference-vote"):
        return "nothing here measures this figure"
    return ""


def _measured(
    entry: "Entry | None", setup: "Setup | None", relation: "Relation | None", folder: Path
) -> list[dict[str, Any]]:
    """What the runs below a folder say: what the figure or the claim is about, and of a set-up the last epochs."""
    from perturblab.records import results
    from perturblab.report import claims_table
    from perturblab.report.by_setup import by_place
    from perturblab.report.claims import claim_findings
    from perturblab.report.figures import figure_findings

    if folder == Path(RESULTS) and not folder.exists():  # nothing was run here yet
        return []
    places, said = by_place(results.load(folder)), list[dict[str, Any]]()
    if relation is not None:
        of_claim = next(finding for finding in claim_findings(places) if finding.relation == relation)
        said += [
            {"claim": relation.id, "preset": c.preset, "seed": seed, "difference": value, "verdict": words}
            for c in of_claim.measured
            for words in (claims_table.claim_words(relation, c),)
            for seed, value in c.differences.items()
        ]
    if entry is not None:
        of_figure = next(finding for finding in figure_findings(places) if finding.entry == entry)
        said += [
            {"figure": entry.id, "preset": m.preset, "seed": seed, "percent": value, "flags": m.flags}
            for m in of_figure.measured
            for seed, value in m.values.items()
        ]
    return said + [
        {"setup": name, "preset": preset, "seed": seed, **run.record.counts.last.model_dump()}
        for (preset, name), seeds in places.items()
        if setup is not None and name == setup.id
        for seed, run in seeds.items()
    ]


def _lines(said: dict[str, Any]) -> list[str]:
    lines = []
    for kind, of in said.items():
        if kind == "measured":
            why = f"cannot be, {said['unmeasurable']}" if "unmeasurable" in said else "not yet"
            lines += ["measured:", *map(_line, of)] if of else [f"measured: {why}"]
        elif kind == "run":
            lines.append(f"run: cannot be, {of['cannot']}" if "cannot" in of else f"run: {of['command']}")
        if not isinstance(of, dict) or "id" not in of:
            continue
        lines.append(f"{kind} {of['id']}")
        for key, value in of.items():
            if key == "id" or value in ("", None, (), {}):
                continue
            parts = value if isinstance(value, tuple) else (_plain(value),)
            lines += [f"  {key}: {part}" for part in parts]
    return lines


def _line(of: dict[str, Any]) -> str:
    from perturblab.stats import signed

    start = f"  at {of['preset']}, seed {of['seed']}: "
    if "claim" in of:
        return f"{start}{signed(of['difference'])}; over its seeds: {of['verdict']}"
    if "figure" in of:
        return f"{start}{of['percent']:.2f}{'; flags: ' + ', '.join(of['flags']) if of['flags'] else ''}"
    percent = 100 * of["correct"] / of["total"]
    return (
        f"{start}{of['correct']}/{of['total']} clean images = {percent:.2f} % after epoch {of['epoch'] + 1}, the last"
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items() if part not in ("", None))
    return str(value)
