"""The curves of the page: under attack, over the epochs, and in the published metrics."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from perturblab import stats
from perturblab.errors import one_line
from perturblab.records.flags import flag_note
from perturblab.records.radius import radius
from perturblab.records.results import Result
from perturblab.report import attacks_table
from perturblab.report.by_setup import Places, Seeds
from perturblab.report.charts import Line, Numbers, Panel, panels_svg, tabulate
from perturblab.studies.presets import DECIDING

_METRICS = (("exact", "exact"), ("batch_mean", "batch mean"), ("smoothed", "smoothed"))
# The set-ups whose curves are drawn: one picture per recipe, since ten curves in one picture are hard to distinguish.
_RECIPES = {
    "the reproduction's recipe": ("K1", "K3", "K3-level-0", "K4", "H5", "K5", "K7"),
    "the authors' recipe": ("A1", "A1-level-0", "A1-order", "A1-1x1", "A1-cnn"),
}
_EPOCHS = "epoch (the first is 0)"
_LONGEST = 120  # characters of a name in a legend


@dataclass(frozen=True)
class Chart:
    """A picture with its title, its caption, which begins with the title, and its numbers.

    ``svg`` is made here, and all text of records in it is escaped.
    """

    title: str
    caption: str
    svg: str
    numbers: tuple[Numbers, ...]


def _chart(title: str, more: str, panels: Sequence[Panel], name: str) -> Chart:
    about = f"{title}; the numbers stand in tables below the picture"
    svg = panels_svg(panels, name=name, about=about)
    return Chart(title, f"{title}, {more}", svg, tuple(tabulate(panel) for panel in panels))


def attack_charts(runs: Sequence[Result]) -> list[Chart]:
    """Draw one picture per data set, with one panel per attack and one line per group of runs."""
    by_data: dict[str, list[attacks_table.Attacked]] = {}
    for group in attacks_table.attacked_groups(runs):
        by_data.setdefault(attacks_table.data_of(group), []).append(group)
    charts = list[Chart]()
    for data, groups in sorted(by_data.items()):
        points = [p for group in groups for curve in group.points.values() for p in curve if not p.name.is_frozen]
        drawn = []
        for kind in sorted({attacks_table.kind_of(p) for p in points}):
            lines = [line for group in groups if (line := _attack_line(group, kind)).x]
            if max(len(line.x) for line in lines) > 1:
                drawn.append((kind, lines))
        panels = [
            _attack_panel(kind, lines, f"({number}) " if len(drawn) > 1 else "")
            for number, (kind, lines) in enumerate(drawn, 1)
        ]
        if panels:
            flags = _describe_flags(groups, [kind for kind, _ in drawn])
            more = f"{_describe_seeds(panels)}. {flags}"
            charts.append(_chart(f"{one_line(data)}: accuracy in percent", more, panels, f"attack-{len(charts)}"))
    return charts


def _attack_line(group: attacks_table.Attacked, kind: attacks_table.Kind) -> Line:
    at = {
        seed: {p.eps: p.percent for p in points if attacks_table.kind_of(p) == kind}
        for seed, points in group.points.items()
    }
    radii = sorted({eps for seen in at.values() for eps in seen})
    intervals = [stats.t_interval([seen[eps] for seen in at.values() if eps in seen]) for eps in radii]
    flags = attacks_table.flagged_seeds(group, [kind])
    note = ", ".join(_in_seeds(flag, seeds, [seed for seed in at if at[seed]]) for flag, seeds in flags.items())
    return _line(group.group.label, radii, intervals, note)


def _in_seeds(flag: str, seeds: Sequence[int], among: Sequence[int]) -> str:
    """Write a flag, with its seeds unless all have it."""
    return one_line(flag) + (
        "" if {*seeds} >= {*among} else f" in seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    )


def _describe_flags(groups: Sequence[attacks_table.Attacked], kinds: Sequence[attacks_table.Kind]) -> str:
    """Say which nets have flags, in which seeds and panels: a flag of one net says nothing about the others."""
    flagged, drawn = [], 0
    for group in groups:
        shown = {kind for points in group.points.values() for kind in map(attacks_table.kind_of, points)} & {*kinds}
        drawn += bool(shown)
        words = []
        for flag, seeds in attacks_table.flagged_seeds(group, kinds).items():
            where = [n for n, kind in enumerate(kinds, 1) if flag in attacks_table.flagged_seeds(group, [kind])]
            panels = "" if len(where) == len(shown) else f" ({_panels(where)})"
            words.append(_in_seeds(flag, seeds, [*group.points]) + panels)
        if words:
            flagged.append(f"{_short(group.group.label)} ({flag_note(words)})")
    if not flagged:
        return "No curve has a flag."
    rest = "." if len(flagged) == drawn else ". The other curves have no flags."
    return f"Drawn with hollow marks: {'; '.join(flagged)}{rest}"


def _panels(numbers: Sequence[int]) -> str:
    return f"panel{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _describe_seeds(panels: Sequence[Panel], *, intervals: bool = True) -> str:
    """Say how many seeds stand behind the means, and which curves have too few of them for an interval."""
    counts = {n for panel in panels for line in panel.lines for n in line.seeds}
    few, many = min(counts), max(counts)
    if many == 1:
        return f"n = 1{', no interval' if intervals else ''}"
    means = f"means over n = {few if few == many else f'{few} to {many}'} seeds"
    if not intervals:
        return means
    if many < stats.MIN_SEEDS:
        return f"{means}, too few for intervals"
    short: dict[tuple[str, str], list[int]] = {}
    panels_of = Counter(line.name for panel in panels for line in panel.lines)
    for number, panel in enumerate(panels, 1):
        for line in panel.lines:
            if min(line.seeds) < stats.MIN_SEEDS:
                where = " at some places, no interval there" if max(line.seeds) >= stats.MIN_SEEDS else ", no interval"
                short.setdefault((line.name, f"n = {min(line.seeds)}{where}"), []).append(number)
    without = [
        f"{name}: {words}{'' if len(where) == panels_of[name] else f' ({_panels(where)})'}"
        for (name, words), where in short.items()
    ]
    return f"{means} with 95 % t-intervals" + (f"; but {'; '.join(without)}" if without else "")


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _line(name: str, x: Sequence[float], intervals: Sequence[stats.Interval], note: str = "") -> Line:
    ends = tuple(i.ends and (max(i.ends[0], 0.0), min(i.ends[1], 100.0)) for i in intervals)
    return Line(
        _short(name), tuple(x), tuple(i.mean for i in intervals), ends, tuple(i.n for i in intervals), note=note
    )


def _attack_panel(kind: attacks_table.Kind, lines: Sequence[Line], number: str) -> Panel:
    radii = sorted({x for line in lines for x in line.x})
    axis = "iterations" if kind.by_iterations else f"radius, {kind.norm}"
    ticks = {eps: radius(eps).removesuffix("/255") for eps in radii}
    axis += ", /255" if any("/255" in radius(eps) for eps in radii) else ""
    title = "\n".join(textwrap.wrap(f"{number}{kind.title}, {kind.images:,} images", 44)[:3])
    return Panel(title, tuple(lines), axis, "accuracy, %", ticks)


def learning_charts(places: Places) -> list[Chart]:
    """Draw the test accuracy after every epoch, one picture per preset and recipe."""
    charts = list[Chart]()
    for preset in dict.fromkeys(preset for preset, _ in places):
        for recipe, setups in _RECIPES.items():
            lines = []
            for setup in setups:
                curves = _by_epoch(places.get((preset, setup), {}), "exact")
                if len(curves) > 1:
                    lines.append(_line(setup, [*curves], [stats.t_interval(values) for values in curves.values()]))
            if lines:
                title = f"Preset {one_line(preset)}, {recipe}: exact test accuracy by epoch"
                panels = [Panel(f"{one_line(preset)}, {recipe}", tuple(lines), _EPOCHS, "accuracy, %", {})]
                charts.append(_chart(title, _describe_seeds(panels), panels, f"learning-{len(charts)}"))
    return charts


def _by_epoch(seeds: Seeds, key: str) -> dict[float, list[float]]:
    by_epoch: dict[float, list[float]] = {}
    for run in seeds.values():
        for row in run.metrics:
            if (value := getattr(row, key)) is not None:
                by_epoch.setdefault(row.epoch, []).append(value)
    return {epoch: values for epoch, values in sorted(by_epoch.items()) if len(values) == len(seeds)}


def audit_charts(places: Places) -> list[Chart]:
    """Draw the published metrics beside the exact count, for the deciding set-ups of every preset."""
    charts = list[Chart]()
    for preset in dict.fromkeys(preset for preset, _ in places):
        panels = []
        for setup in dict.fromkeys(("K1", *DECIDING)):
            curves = [(name, _by_epoch(places.get((preset, setup), {}), key)) for key, name in _METRICS]
            lines = [
                Line(
                    name,
                    tuple(curve),
                    tuple(fmean(values) for values in curve.values()),
                    seeds=tuple(map(len, curve.values())),
                    bold=name == "exact",
                )
                for name, curve in curves
                if len(curve) > 1
            ]
            if lines:
                panels.append(Panel(setup, tuple(lines), _EPOCHS, "accuracy, %", {}))
        if panels:
            title = f"Preset {one_line(preset)}: what the published codes would have reported for the same answers"
            charts.append(_chart(title, _describe_seeds(panels, intervals=False), panels, f"audit-{len(charts)}"))
    return charts
