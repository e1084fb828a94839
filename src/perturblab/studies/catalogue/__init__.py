"""The catalogue: every published figure, the run that it rests on, and the claims about differences.

>>> from perturblab.studies import catalogue
>>> catalogue.ENTRIES["K4"].figure.value
85.5
>>> catalogue.SETUPS["K4"].flags["filter_size"]
1

* `types`: the types. A `Setup` is a training run, an `Entry` a published figure, a `Relation` a claim about how two
  set-ups differ.
* `pnn`, `lbcnn`, `controls`; `batchout`, `batchout_vgg`: the set-ups, with flags exactly as published.
* `pnn_figures`, `lbcnn`; `batchout_figures`, `batchout_vgg_figures`: the figures.
* `claims`, `factors`: the claims; factors are those of one change at a time.

Nothing here imports PyTorch or trains: to list the catalogue is instant.
"""

import difflib
from collections.abc import Iterable
from typing import Protocol, TypeVar

from perturblab.studies.catalogue import (
    batchout,
    batchout_figures,
    batchout_vgg,
    batchout_vgg_figures,
    claims,
    controls,
    factors,
    lbcnn,
    pnn,
    pnn_figures,
)
from perturblab.studies.catalogue.types import KINDS, METRICS, MODES, Entry, Figure, Measure, Relation, Setup, typed

__all__ = [
    "ENTRIES",
    "KINDS",
    "METRICS",
    "MODES",
    "RELATIONS",
    "SETUPS",
    "Entry",
    "Figure",
    "Measure",
    "Relation",
    "Setup",
    "by_id",
    "find",
    "typed",
]


class _Named(Protocol):
    @property
    def id(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


def by_id(items: Iterable[_Item]) -> dict[str, _Item]:
    """Put items into a dictionary.

    Args:
        items: set-ups, entries or relations.

    Returns:
        Id -> item, in their order.

    Raises:
        ValueError: an id is given twice.
    """
    found: dict[str, _Item] = {}
    for item in items:
        if item.id in found:
            raise ValueError(f"{item.id} is in the catalogue twice; every id names one {type(item).__name__.lower()}")
        found[item.id] = item
    return found


SETUPS: dict[str, Setup] = by_id((*pnn.SETUPS, *lbcnn.SETUPS, *controls.SETUPS, *batchout.SETUPS, *batchout_vgg.SETUPS))
ENTRIES: dict[str, Entry] = by_id(
    (*pnn_figures.ENTRIES, *lbcnn.ENTRIES, *batchout_figures.ENTRIES, *batchout_vgg_figures.ENTRIES)
)
RELATIONS: dict[str, Relation] = by_id((*claims.RELATIONS, *factors.RELATIONS))


def find(text: str) -> list[Entry | Relation]:
    """Find entries and relations by tag.

    Args:
        text: a tag, such as "kl" or "ladder", or several with commas between: what carries all of them.

    Returns:
        Entries, then relations, in the order of the catalogue.

    Raises:
        ValueError: no tag is given, or nothing carries one of them, or all of them.
    """
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not wanted:
        raise ValueError("expected a tag, such as pnn")
    everything: list[Entry | Relation] = [*ENTRIES.values(), *RELATIONS.values()]
    known = {tag for item in everything for tag in item.tags}
    for tag in wanted:
        if tag not in known:
            near = difflib.get_close_matches(tag, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(sorted(known))}"
            raise ValueError(f"nothing in the catalogue is tagged {tag!r}; {hint}")
    found = [item for item in everything if set(wanted) <= set(item.tags)]
    if not found:
        raise ValueError(f"nothing in the catalogue carries all of {', '.join(wanted)}; give fewer")
    return found
