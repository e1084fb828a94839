"""Pictures of accuracy against the radius of an attack."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from perturblab.errors import one_line
from perturblab.records.attack_names import WORST
from perturblab.records.flags import flag_note
from perturblab.records.pictures.style import empty_figure, svg
from perturblab.records.points import Point
from perturblab.records.worst_case import NO_WORST, lacks_worst
from perturblab.system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#bcbd22")
_MARKERS = "osD^vPX*<>"  # one more than colours, so that the pairs repeat late
_WIDTH = 84  # letters below a panel
_BELOW = 4.2  # lines from a panel to its legend: ticks and the axis's name stand between


def curves_svg(points: Sequence[Point], path: Path, *, title: str, chance: float) -> None:
    """Draw accuracy against the radius, one line per attack, with Wilson intervals; the worst case is bold.

    Args:
        points: of one net, norm and set of images. Those of DeepFool, whose axis is its cap on iterations, get a panel
            of their own. An attack that was made in several ways has several lines.
        path: the SVG file to write, atomically; the same points give the same bytes.
        title: one line over the figure.
        chance: accuracy of guessing, in percent.
    """
    write_atomically(path, svg(lambda: _curves(points, title, chance)))


def _curves(points: Sequence[Point], title: str, chance: float) -> "Figure":
    kinds = {capped: [p for p in points if p.name.kind.by_iterations == capped] for capped in (False, True)}
    shown = {capped: curves for capped, curves in kinds.items() if curves}
    legends = [_Legend.of(_labels(curves)) for curves in shown.values()]
    figure = _figure(len(shown), title, points, max(legend.lines for legend in legends))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (capped, curves), legend in zip(panels, shown.items(), legends, strict=True):
        _panel(axes, curves, capped=capped, chance=chance, legend=legend)
    return figure


class _Legend(NamedTuple):
    """Size of the legend below a panel, in columns and lines."""

    columns: int
    lines: int

    @classmethod
    def of(cls, labels: Sequence[str]) -> "_Legend":
        """Measure the legend of curves with these names, wrapped as by `_wrapped`."""
        names = [_wrapped(name) for name in sorted(set(labels))]
        longest = max(len(line) for name in names for line in name.split("\n"))
        columns = max(1, min(3, _WIDTH // (longest + 9)))  # beside a name its star, its line and a gap
        rows = -(-len(names) // columns)
        return cls(columns, rows * max(name.count("\n") + 1 for name in names))


def _wrapped(name: str) -> str:
    return textwrap.fill(name, _WIDTH - 12)


def _figure(panels: int, title: str, points: Sequence[Point], lines: int) -> "Figure":
    figure = empty_figure(1.5 + 5.5 * panels, 5.3 + 0.22 * lines)
    figure.suptitle(one_line(title))
    notes = notes_under(points)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=9, color="#a00000", wrap=True)
    return figure


def notes_under(points: Sequence[Point]) -> list[str]:
    """Write the notes that belong beside the numbers, one line each."""
    flags = list(dict.fromkeys(flag for point in points for flag in point.flags))
    return [*([flag_note(flags)] if flags else []), *([NO_WORST] if lacks_worst(points) else [])]


def _labels(points: Sequence[Point]) -> list[str]:
    """Name the curve of each point: its attack and, where this was made in several ways, the settings that differ."""
    ways: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
    for point in points:
        ways.setdefault(point.attack, {})[point.curve] = point.settings
    labels = []
    for point in points:
        others = ways[point.attack].values() if point.attack != WORST else ()
        special = {k: v for k, v in sorted(point.settings.items()) if any(other.get(k) != v for other in others)}
        words = [point.mode.kind if k == "mode" else f"{k.replace('_', ' ')} {v}" for k, v in special.items()]
        labels.append(f"{point.attack} ({', '.join(words)})" if words else point.attack)
    return labels


def _panel(axes: "Axes", points: Sequence[Point], *, capped: bool, chance: float, legend: _Legend) -> None:
    named = list(zip(_labels(points), points, strict=True))
    for rank, name in enumerate(sorted({name for name, _ in named}, key=lambda name: (name == WORST, name))):
        curve = sorted((p for label, p in named if label == name), key=lambda p: p.eps)
        look: dict[str, Any] = {
            "color": _COLOURS[rank % len(_COLOURS)],
            "marker": _MARKERS[rank % len(_MARKERS)],
            "linewidth": 1.4,
        }
        if name == WORST:
            look = {"color": "#000000", "marker": "x", "linewidth": 3.2, "markeredgewidth": 2, "zorder": 1}
        middle = [p.percent for p in curve]
        ends = [[m - p.wilson[0] for m, p in zip(middle, curve, strict=True)], [p.wilson[1] - p.percent for p in curve]]
        label = _wrapped(name) + (" *" if any(p.flags for p in curve) else "")
        axes.errorbar([p.eps for p in curve], middle, yerr=np.maximum(ends, 0), label=label, capsize=2, **look)
    axes.axhline(chance, color="#888888", linestyle=":", linewidth=1)
    axes.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#888888")
    axes.set(ylabel="accuracy, % (95 % Wilson interval)", ylim=(-2, 102))
    if capped:
        axes.set(xlabel="DeepFool, at most so many iterations")
        axes.set_xticks(sorted({p.eps for p in points}))
    else:
        _radius_axis(axes, points)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=_BELOW,
        ncols=legend.columns,
        frameon=False,
        handlelength=3,
    )


def _radius_axis(axes: "Axes", points: Sequence[Point]) -> None:
    radii = sorted({p.eps for p in points})
    name = {"linf": "l-inf", "l2": "l2"}[points[0].norm]
    if all(abs(255 * eps - round(255 * eps)) < 1e-6 for eps in radii) and radii[-1] < 0.2:
        axes.set_xticks(radii, [f"{round(255 * eps)}" for eps in radii])
        axes.set(xlabel=f"radius of the {name} ball, /255")
    else:
        axes.set_xticks(radii, [f"{eps:g}" for eps in radii])
        axes.set(xlabel=f"radius of the {name} ball, pixels in [0, 1]")
