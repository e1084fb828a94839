"""The pictures of the page: SVG that lies in the page, follows its colours, and says in words what it shows."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from perturblab.figures import FIGURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers, on white and on black (Okabe and Ito); dashes and markers differ too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#a6761d")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
_MARKERS = "osD^vPX*"
_GREY = "#808080"  # axes and grid, on white and on black
# Text stays black here: it has no colour of its own in the SVG, and takes that of the page.
_LOOK: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
    "grid.color": _GREY,
    "grid.alpha": 0.35,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "#000000",
    "ytick.labelcolor": "#000000",
}
_COLUMNS = 3
_DOTS_WIDTH, _DOTS_HEIGHT, _EDGE = 240, 34, 8


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        name: in the legend.
        x: positions.
        y: heights.
        low: lower ends of the intervals, or empty.
        high: upper ends.
        bold: drawn wide and behind the others.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    bold: bool = False


@dataclass(frozen=True)
class Panel:
    """Axes with curves.

    Args:
        title: over them.
        lines: the curves.
        x: name of the axis.
        y: name of the axis.
        ticks: position -> text on the x axis; chosen by itself where empty.
    """

    title: str
    lines: tuple[Line, ...]
    x: str
    y: str
    ticks: Mapping[float, str]


def panels_svg(panels: Sequence[Panel], *, name: str, about: str) -> str:
    """Draw panels side by side, three a row.

    Args:
        panels: at least one.
        name: unique in the page; what is inside the picture is called after it.
        about: what it shows, for those who cannot see it.

    Returns:
        An ``<svg>`` element; the same panels give the same text.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(FIGURE | _LOOK)
        columns = min(_COLUMNS, len(panels))
        rows = -(-len(panels) // columns)
        names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
        figure = _figure(4.2 * columns + 0.4, 3.2 * rows + 0.4 + 0.2 * len(names))
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            _draw(axes, panel, names)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        shown = {name: line for axes in grid for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            [shown[name] for name in names],
            names,
            loc="outside lower center",
            ncols=min(columns, len(names)),
            frameon=False,
            handlelength=3,
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, about)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _draw(axes: "Axes", panel: Panel, names: Sequence[str]) -> None:
    for line in panel.lines:
        rank = names.index(line.name)
        look: dict[str, Any] = {
            "color": _GREY if line.bold else _COLOURS[rank % len(_COLOURS)],
            "linestyle": _DASHES[rank % len(_DASHES)],
            "marker": _MARKERS[rank % len(_MARKERS)],
            "markersize": 4,
            "linewidth": 4 if line.bold else 1.5,
        }
        ends = None
        if line.low:
            ends = [
                [max(m - low, 0) for m, low in zip(line.y, line.low, strict=True)],
                [max(high - m, 0) for m, high in zip(line.y, line.high, strict=True)],
            ]
        axes.errorbar(line.x, line.y, yerr=ends, label=line.name, capsize=2, zorder=1 if line.bold else 2, **look)
    axes.set_title(panel.title, fontsize=10)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))


def _inline(svg: str, name: str, about: str) -> str:
    """Without the XML around it, with names that are unique in the page, black text in the page's colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    box, body = re.findall(r'<svg\b[^>]*?viewBox="([^"]*)"[^>]*>(.*)', svg, flags=re.DOTALL)[0]
    width = round(1.25 * float(box.split()[2]))
    start = f'<svg class="chart" role="img" aria-label="{escape(about)}" viewBox="{box}" style="max-width:{width}px"'
    return f'{start} xmlns:xlink="http://www.w3.org/1999/xlink">{body.strip()}'


def dots_svg(values: Sequence[float], interval: tuple[float, float] | None, claimed: tuple[float, float] | None) -> str:
    """Draw a dot for every seed, their interval and mean, zero, and the claimed range as a band.

    Args:
        values: differences, one a seed.
        interval: of their mean; None for too few seeds.
        claimed: ends of the claimed range, infinite where it is open; None where nothing was claimed.

    Returns:
        A small ``<svg>`` element; the numbers stand in words beside it, so it is hidden from screen readers.
    """
    shown = [0.0, *values, *(interval or ()), *(end for end in claimed or () if abs(end) != float("inf"))]
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        clipped = min(max(value, low), high)
        return float(f"{_EDGE + (_DOTS_WIDTH - 2 * _EDGE) * (clipped - low) / (high - low):.1f}")

    middle, parts = _DOTS_HEIGHT / 2, []
    if claimed is not None:
        start, end = at(claimed[0]), at(claimed[1])
        parts.append(f'<rect class="claimed" x="{start - 1}" y="2" width="{end - start + 2:.1f}" height="30"/>')
    parts.append(f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="2" y2="32"/>')
    if interval is not None:
        ends = f'x1="{at(interval[0])}" x2="{at(interval[1])}"'
        parts.append(f'<line class="interval" {ends} y1="{middle}" y2="{middle}"/>')
    parts += [f'<circle class="seed" cx="{at(v)}" cy="{middle}" r="3.5"/>' for v in values]
    mean = at(sum(values) / len(values))
    parts.append(f'<line class="mean" x1="{mean}" x2="{mean}" y1="7" y2="27"/>')
    size = f'viewBox="0 0 {_DOTS_WIDTH} {_DOTS_HEIGHT}" width="{_DOTS_WIDTH}" height="{_DOTS_HEIGHT}"'
    return f'<svg class="dots" aria-hidden="true" {size}>{"".join(parts)}</svg>'
