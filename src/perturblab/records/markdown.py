"""Markdown that no text of a record can break."""

import re
from collections.abc import Iterable, Sequence

from perturblab.errors import one_line


class Raw(str):
    """Text that is Markdown already, such as a bold number; `markdown_table` takes it as it is."""

    __slots__ = ()


def escape(text: str) -> str:
    """Make text safe in a line or a cell: no new column or row, no tag, no marker, no link or picture."""
    text = one_line(text).replace("&", "&amp;")
    return re.sub(r"[<>|`*\\~]|!(?=\[)|\](?=[(\[:])", lambda match: f"&#{ord(match[0])};", text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Write a table; every cell that is not `Raw` is escaped.

    Args:
        header: a name for each column.
        rows: cells, as many as there are columns.
        align: "l" or "r" for each column; by default numbers, to the right, behind a name to the left.

    Returns:
        Lines without a newline behind the last one.
    """
    align = align or "l" + "r" * (len(header) - 1)
    rule = "|".join({"l": "---", "r": "---:"}[side] for side in align)
    return "\n".join([_line(header), f"|{rule}|", *map(_line, rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell if isinstance(cell, Raw) else escape(cell) for cell in cells)} |"
