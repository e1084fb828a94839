"""The pictures of the page: SVG inside the page that follows its colours and has a description in words."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from perturblab.errors import one_line
from perturblab.records.pictures.style import empty_figure, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# The colours of Okabe and Ito, which colour-blind readers can distinguish; the light ones are darkened for a contrast
# of 3 with both white and black. Dashes and markers differ too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c28600", "#3d98cf", "#8c8c8c", "#7a5cc0")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = "osD^vPX*"
_GREY = "#808080"  # axes and grid, on white and on black
# Black text gets no colour of its own in the SVG, and takes that of the page.
_LOOK: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
    "grid.color": _GREY,
    "grid.alpha": 0.35,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": "#000000",
    "ytick.labelcolor": "#000000",
    "savefig.transparent": True,
}
_COLUMNS = 3
_HOLLOW = "hollow marks: an upper bound, see below"
_DOTS_WIDTH, _DOTS_HEIGHT, _EDGE = 240, 34, 8


@dataclass(frozen=True)
class Line:
    """One curve.

    Args:
        name: in the legend.
        x: positions.
        y: heights.
        ends: lower and upper end of every interval, None for no interval; or empty.
        seeds: runs behind every height, or empty.
        bold: drawn wide and behind the others.
        note: why its heights are upper bounds, which are drawn hollow; "" if they are not.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    ends: tuple[tuple[float, float] | None, ...] = ()
    seeds: tuple[int, ...] = ()
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """Axes with curves.

    Args:
        title: over them.
        lines: the curves.
        x: name of the axis.
        y: name of the axis.
        ticks: position -> text on the x axis; empty for automatic ticks.
    """

    title: str
    lines: tuple[Line, ...]
    x: str
    y: str
    ticks: Mapping[float, str]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a panel as a table.

    Args:
        title: of the table.
        header: names of the columns.
        rows: one line each; the first cell is its name.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tabulate(panel: Panel) -> Numbers:
    """Write the numbers of a panel as a table.

    Args:
        panel: with at least one curve.

    Returns:
        One row per curve and one column per position, then the seeds and, if a curve has one, the notes.
    """
    places = sorted({x for line in panel.lines for x in line.x})
    has_seeds, has_notes = any(line.seeds for line in panel.lines), any(line.note for line in panel.lines)
    header = ["Curve", *(panel.ticks.get(x, f"{x:g}") for x in places)]
    rows = []
    for line in panel.lines:
        ends = line.ends or (None,) * len(line.y)
        cells = dict(zip(line.x, map(_number, line.y, ends), strict=True))
        few, many = min(line.seeds, default=0), max(line.seeds, default=0)
        last = [str(many) if few == many else f"{few} to {many}"] if has_seeds else []
        rows.append((line.name, *(cells.get(x, "-") for x in places), *last, *([line.note or "none"] * has_notes)))
    header += ["Seeds"] * has_seeds + ["Flags"] * has_notes
    return Numbers(one_line(f"{panel.title}: {panel.y} by {panel.x}"), tuple(header), tuple(rows))


def _number(mean: float, ends: tuple[float, float] | None) -> str:
    return f"{mean:.2f}" if ends is None else f"{mean:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def panels_svg(panels: Sequence[Panel], *, name: str, about: str) -> str:
    """Draw panels side by side, three in a row.

    Args:
        panels: at least one.
        name: unique in the page; prefix of the ids inside the picture.
        about: description for readers who cannot see it.

    Returns:
        An ``<svg>`` element; the same panels give the same text.
    """
    return _inline(svg(lambda: _figure(panels), _LOOK).decode(), name, about)


def _figure(panels: Sequence[Panel]) -> "Figure":
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    texts = [textwrap.fill(name, 44) for name in names]
    legend = [*texts, *([_HOLLOW] if any(line.note for panel in panels for line in panel.lines) else [])]
    lines = -(-len(legend) // columns) * max(text.count("\n") + 1 for text in legend)
    # A picture of one panel is as wide as one of two, since its curves are closer together.
    width, height = (7.6, 4.4) if len(panels) == 1 else (4.2 * columns, 3.2 * rows)
    figure = empty_figure(width + 0.4, height + 0.4 + 0.2 * lines)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, names)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.legend(
        [_handle(panels, names, name) for name in names] + [_hollow()] * (len(legend) - len(names)),
        legend,
        loc="outside lower center",
        ncols=min(max(columns, 2), len(legend)),
        frameon=False,
        handlelength=4,
    )
    return figure


def _look(line: Line, rank: int) -> Mapping[str, Any]:
    """Choose colour, dashes and marks of a curve; marks of upper bounds are hollow."""
    return {
        "color": _GREY if line.bold else _COLOURS[rank % len(_COLOURS)],
        "linestyle": _DASHES[rank % len(_DASHES)],
        "marker": _MARKERS[rank % len(_MARKERS)],
        "markersize": 6 if line.note else 4,
        "linewidth": 4 if line.bold else 1.5,
        **({"markerfacecolor": "none"} if line.note else {}),
    }


def _draw(axes: "Axes", panel: Panel, names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in panel.lines:
        ends = None
        if any(line.ends):
            known = [(math.nan, math.nan) if pair is None else pair for pair in line.ends]  # draws no cap either
            ends = [
                [mean - min(low, mean) for mean, (low, _) in zip(line.y, known, strict=True)],
                [max(high, mean) - mean for mean, (_, high) in zip(line.y, known, strict=True)],
            ]
        look = _look(line, names.index(line.name))
        axes.errorbar(line.x, line.y, yerr=ends, capsize=2, zorder=1 if line.bold else 2, **look)
    axes.set_title(panel.title, fontsize=10)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # an epoch is a whole number


def _handle(panels: Sequence[Panel], names: Sequence[str], name: str) -> "Line2D":
    """Draw a curve's mark for the legend: hollow only if the curve is hollow in every panel."""
    from matplotlib.lines import Line2D

    curves = [line for panel in panels for line in panel.lines if line.name == name]
    return Line2D([], [], **_look(min(curves, key=lambda line: bool(line.note)), names.index(name)))


def _hollow() -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=_GREY, linestyle="none", marker="o", markersize=6, markerfacecolor="none")


def _inline(svg: str, name: str, about: str) -> str:
    """Strip the XML around an SVG, and make its ids unique in the page."""
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
        values: differences, one per seed.
        interval: of their mean; None for too few seeds.
        claimed: ends of the claimed range, infinite for an open end; None if nothing was claimed.

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
