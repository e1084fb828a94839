"""The table that `perturblab attack` prints."""

from collections.abc import Sequence

from perturblab.records.attack_names import WORST
from perturblab.records.pictures.curves import notes_under
from perturblab.records.points import Point
from perturblab.records.radius import radius
from perturblab.records.worst_case import NO_WORST


def points_table(points: Sequence[Point], *, terminal: bool = False) -> str:
    """Write accuracies with Wilson intervals, one row per attack and one column per radius, and their flags below.

    Args:
        points: of one net and set of images.
        terminal: print the worst case in bold there; elsewhere its name is marked as in Markdown.
    """
    lines = []
    for capped in (False, True):
        chosen = [p for p in points if p.name.kind.by_iterations == capped]
        if chosen:
            lines += _block(chosen, "iterations" if capped else f"{chosen[0].norm}, eps", terminal=terminal)
    for p in points:
        if p.parts:
            parts = ", ".join(f"{part} {correct}" for part, correct in p.parts)
            lines.append(f"{p.attack} at {radius(p.eps)}, images left right after each part: {parts}")
    met = sorted({name for p in points if p.name.is_worst for name in p.settings["attacks"]})
    lines += [f"{WORST} over all attacks that these images have met: {', '.join(met)}"] if met else []
    lines.append(
        f"accuracy in percent of {points[0].total} test images and its 95 % Wilson interval; "
        "an accuracy under attack is never a guarantee"
    )
    return "\n".join([*lines, *(f"* {note}" if note != NO_WORST else note for note in notes_under(points))])


def _block(points: Sequence[Point], head: str, *, terminal: bool) -> list[str]:
    radii = sorted({p.eps for p in points})
    rows, bold = [[head, *map(radius, radii)]], [False]
    for name in dict.fromkeys(p.attack for p in points):
        at = {p.eps: p for p in points if p.attack == name}
        marked = name == WORST and not terminal
        cells = [f"{at[e].percent:.2f}{'*' if at[e].flags else ''}" if e in at else "" for e in radii]
        rows.append([f"**{name}**" if marked else name, *cells])
        rows.append(["", *("[{:.1f}, {:.1f}]".format(*at[e].wilson) if e in at else "" for e in radii)])
        bold += [name == WORST and terminal] * 2
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [f"\x1b[1m{line}\x1b[0m" if is_bold else line for line, is_bold in zip(lines, bold, strict=True)]
