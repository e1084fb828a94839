"""Curves under attack of many runs in one table: means over seeds, intervals, verdicts and flags."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from perturblab import stats
from perturblab.errors import UserError
from perturblab.records.attack_names import WORST, AttackName
from perturblab.records.flags import flag_note
from perturblab.records.groups import Group, group
from perturblab.records.markdown import Raw, escape, markdown_table
from perturblab.records.points import Point
from perturblab.records.radius import radius
from perturblab.records.results import Result
from perturblab.records.worst_case import NO_WORST, lacks_worst, with_worst

_EFFORT = ("steps", "step_size", "restarts", "queries", "draws", "verdicts", "mode")
Curves = Mapping[int, Sequence[Point]]  # seed -> points


class Kind(NamedTuple):
    """The points that one table shows.

    Args:
        images: how many were attacked.
        norm: "linf" or "l2".
        attack: its name.
        ways: its effort, or the attacks that a worst case is taken over.
    """

    images: int
    norm: str
    attack: str
    ways: str

    @property
    def title(self) -> str:
        """The attack with its effort."""
        return f"{self.attack} {self.ways}".rstrip()

    @property
    def by_iterations(self) -> bool:
        """True if the columns are caps on iterations instead of radii."""
        return AttackName.parse(self.attack).kind.by_iterations


@dataclass(frozen=True)
class Attacked:
    """A group of runs that differ in the seed only, with their points by seed."""

    group: Group
    points: Curves


def attacks_markdown(runs: Sequence[Result], control: str | None = None) -> str:
    """Write one table for each data set, attack and set of images: one row per group, one column per radius.

    Args:
        runs: from `perturblab.records.results.load_results`; those that were not attacked are left out.
        control: label of the group that the others are compared with, paired by seed; None for no comparison.

    Returns:
        Markdown that ends in a newline; the same runs give the same bytes.

    Raises:
        UserError: no run was attacked, or no group has the control's label.
    """
    groups = attacked_groups(runs)
    if not groups:
        raise UserError("no run here was attacked, so there is no table; run perturblab attack RUN first")
    labels = [attacked.group.label for attacked in groups]
    if control is not None and control not in labels:
        raise UserError(f"--control got {control!r}; expected one of {', '.join(map(repr, labels))}")
    blocks = []
    for data in sorted({data_of(attacked) for attacked in groups}):
        of_data = [attacked for attacked in groups if data_of(attacked) == data]
        kinds = {kind_of(p) for attacked in of_data for points in attacked.points.values() for p in points}
        blocks += [_block(data, kind, of_data, control) for kind in sorted(kinds)]
        random = [a.group.label for a in of_data if any(lacks_worst(points) for points in a.points.values())]
        blocks += [f"{escape(data)}, {escape(label)}: {NO_WORST}.\n" for label in random]
    return "\n".join(blocks)


def attacked_groups(runs: Sequence[Result]) -> list[Attacked]:
    """Group the runs that were attacked.

    Args:
        runs: in any order.

    Returns:
        Runs that differ in the seed only, with their points and the worst cases over them.
    """
    chosen = {id(run.record): run.points for run in runs if run.points}
    return [
        Attacked(found, {seed: with_worst(chosen[id(record)]) for seed, record in found.finished.items()})
        for found in group([run.record for run in runs if run.points])
    ]


def data_of(attacked: Attacked) -> str:
    """Name the images of a group, and how many classes they have."""
    data = attacked.group.records[0].data
    classes = f", {len(data.classes)} classes"
    return data.test.removesuffix(classes) + classes  # a set whose classes were chosen says so itself


def kind_of(point: Point) -> Kind:
    """Say which table a point belongs to; only seeds that have met the same attacks share one of the worst case."""
    if point.attack == WORST:
        return Kind(point.total, point.norm, WORST, f"of {', '.join(point.settings['attacks'])}")
    settings = {key: value for key, value in sorted(point.settings.items()) if key in _EFFORT}
    effort = [f"{key} {value}" for key, value in settings.items() if (key, value) != ("draws", 1)]
    return Kind(point.total, point.norm, point.attack, f"({', '.join(effort)})" if effort else "")


def flagged_seeds(attacked: Attacked, kinds: Iterable[Kind]) -> dict[str, tuple[int, ...]]:
    """Say which flags the points of a group have, and in which seeds.

    Args:
        attacked: a group.
        kinds: what the points are of; all others are left out.

    Returns:
        Flag -> seeds, in the order in which the flags are first met.
    """
    wanted, by_flag = {*kinds}, dict[str, dict[int, None]]()
    for seed, points in attacked.points.items():
        for point in points:
            if point.flags and kind_of(point) in wanted:
                for flag in point.flags:
                    by_flag.setdefault(flag, {})[seed] = None
    return {flag: tuple(seeds) for flag, seeds in by_flag.items()}


def _block(data: str, kind: Kind, groups: Sequence[Attacked], control: str | None) -> str:
    chosen = {a.group.label: {s: _at(points, kind) for s, points in a.points.items()} for a in groups}
    radii = sorted({eps for seeds in chosen.values() for at in seeds.values() for eps in at})
    axis = "iterations" if kind.by_iterations else f"{kind.norm}, eps"
    rows = []
    for label, seeds in chosen.items():
        if not any(seeds.values()):
            continue
        against = chosen.get(control) if control not in (None, label) else None
        cells = [_cell(seeds, eps, against) for eps in radii]
        if kind.attack == WORST:  # the line that counts most
            cells = [Raw(f"**{cell}**" if cell else "") for cell in cells]
        rows.append([label, *cells, _flags(seeds.values())])
    title = f"**{escape(data)}: {escape(kind.title)}, {kind.images:,} test images** (accuracy in percent by {axis})"
    return f"{title}\n\n{markdown_table(['', *map(radius, radii), 'flags'], rows, 'l' + 'r' * len(radii) + 'l')}\n"


def _at(points: Iterable[Point], kind: Kind) -> dict[float, Point]:
    return {p.eps: p for p in points if kind_of(p) == kind}


def _cell(
    seeds: Mapping[int, Mapping[float, Point]], eps: float, against: Mapping[int, Mapping[float, Point]] | None
) -> str:
    values = {seed: at[eps].percent for seed, at in seeds.items() if eps in at}
    if not values:
        return ""
    interval = stats.t_interval(list(values.values()))
    text = interval.text()
    if against is None:
        return text
    common = [seed for seed in values if seed in against and eps in against[seed]]
    if not common:
        return text
    compared = stats.paired([values[s] for s in common], [against[s][eps].percent for s in common])
    if compared.verdict != "not distinguishable" or compared.detectable is None:
        return f"{text} {compared.verdict}"
    return f"{text} {compared.verdict} ({compared.detectable:.2f} with 80 % power)"


def _flags(curves: Iterable[Mapping[float, Point]]) -> str:
    return flag_note(list(dict.fromkeys(flag for at in curves for point in at.values() for flag in point.flags)))
