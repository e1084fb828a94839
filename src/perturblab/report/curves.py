"""The curves of the page: under attack, over the epochs, and in the published metrics."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from perturblab import stats
from perturblab.errors import one_line
from perturblab.points import is_capped, radius, said
from perturblab.presets import DECIDING
from perturblab.report import attacks, findings
from perturblab.report.charts import Line, Panel, panels_svg
from perturblab.report.measured import Run

_METRICS = (("exact", "exact"), ("batch_mean", "batch mean"), ("smoothed", "smoothed"))
_SHOWN = ("K1", "K3", "K4", "H5", "K5", "A1", "A1-level-0", "A1-cnn")  # whose curves are drawn, where they were run


@dataclass(frozen=True)
class Chart:
    """A picture with its caption; ``svg`` is made here and holds no text of a record that was not escaped."""

    caption: str
    svg: str


def attack_charts(runs: Sequence[Run]) -> list[Chart]:
    """A panel for each data set and attack, a line a group of runs."""
    by_data: dict[str, list[attacks.Attacked]] = {}
    for group in attacks.attacked_groups(runs):
        by_data.setdefault(attacks.data_of(group), []).append(group)
    charts = list[Chart]()
    for data, groups in sorted(by_data.items()):
        points = [p for group in groups for own in group.points.values() for p in own if "frozen" not in p.attack]
        kinds = sorted({attacks.kind_of(p) for p in points})
        panels = []
        for kind in kinds:
            lines = [line for group in groups if (line := _attack_line(group, kind)).x]
            if max(len(line.x) for line in lines) > 1:
                panels.append(_attack_panel(kind, lines))
        note = said(sorted({flag for p in points for flag in p.flags})) or "no flags"
        caption = f"{one_line(data)}: accuracy in percent, means over seeds with 95 % t-intervals ({note})"
        if panels:
            charts.append(Chart(caption, panels_svg(panels, name=f"attack-{len(charts)}", about=caption)))
    return charts


def _attack_line(group: attacks.Attacked, kind: attacks.Kind) -> Line:
    at = {
        seed: {p.eps: p.percent for p in points if attacks.kind_of(p) == kind} for seed, points in group.points.items()
    }
    radii = sorted({eps for seen in at.values() for eps in seen})
    intervals = [stats.t_interval([seen[eps] for seen in at.values() if eps in seen]) for eps in radii]
    return _line(group.group.label, radii, intervals)


def _line(name: str, x: Sequence[float], intervals: Sequence[stats.Interval]) -> Line:
    enough = bool(intervals) and all(i.n >= stats.MIN_SEEDS and i.low is not None for i in intervals)
    return Line(
        one_line(name)[:48],
        tuple(x),
        tuple(i.mean for i in intervals),
        tuple(max(i.low or 0.0, 0.0) for i in intervals) if enough else (),
        tuple(min(i.high or 0.0, 100.0) for i in intervals) if enough else (),
    )


def _attack_panel(kind: attacks.Kind, lines: Sequence[Line]) -> Panel:
    total, norm, name = kind
    radii = sorted({x for line in lines for x in line.x})
    axis = "iterations" if is_capped(name) else f"radius, {norm}"
    ticks = {eps: radius(eps).removesuffix("/255") for eps in radii}
    axis += ", /255" if any("/255" in radius(eps) for eps in radii) else ""
    return Panel(
        "\n".join(textwrap.wrap(f"{name}, {total:,} images", 44)[:2]), tuple(lines), axis, "accuracy, %", ticks
    )


def learning_charts(places: findings.Places) -> list[Chart]:
    """Test accuracy after every epoch, a panel a preset."""
    charts = list[Chart]()
    for preset in dict.fromkeys(preset for preset, _ in places):
        lines = []
        for setup in _SHOWN:
            curves = _by_epoch(places.get((preset, setup), {}), "exact")
            if len(curves) > 1:
                lines.append(_line(setup, [*curves], [stats.t_interval(values) for values in curves.values()]))
        if lines:
            caption = f"Preset {preset}: exact test accuracy by epoch, means over seeds with 95 % t-intervals"
            panel = Panel(preset, tuple(lines), "epoch (the first is 0)", "accuracy, %", {})
            charts.append(Chart(caption, panels_svg([panel], name=f"learning-{len(charts)}", about=caption)))
    return charts


def _by_epoch(seeds: findings.Seeds, key: str) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for run in seeds.values():
        for row in run.metrics:
            if row.get(key) is not None:
                found.setdefault(row["epoch"], []).append(row[key])
    return {epoch: values for epoch, values in sorted(found.items()) if len(values) == len(seeds)}


def audit_charts(places: findings.Places) -> list[Chart]:
    """The published metrics beside the exact count, for the deciding set-ups of every preset."""
    charts = list[Chart]()
    for preset in dict.fromkeys(preset for preset, _ in places):
        panels = []
        for setup in dict.fromkeys(("K1", *DECIDING)):
            curves = [(name, _by_epoch(places.get((preset, setup), {}), key)) for key, name in _METRICS]
            lines = [
                Line(name, tuple(curve), tuple(fmean(values) for values in curve.values()), bold=name == "exact")
                for name, curve in curves
                if len(curve) > 1
            ]
            if lines:
                panels.append(Panel(setup, tuple(lines), "epoch (the first is 0)", "accuracy, %", {}))
        if panels:
            caption = f"Preset {preset}: what the published codes would have reported for the same answers"
            charts.append(Chart(caption, panels_svg(panels, name=f"audit-{len(charts)}", about=caption)))
    return charts
