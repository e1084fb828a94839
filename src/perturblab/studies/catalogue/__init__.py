"""The catalogue: every published figure, the run that it rests on, and the claims about differences.

>>> from perturblab.studies import catalogue
>>> catalogue.FIGURES["K4"].figure.value
85.5
>>> catalogue.SETUPS["K4"].flags["filter_size"]
1

* `types`: a `Setup` is a training run, a `PublishedFigure` a number that rests on one, a `Claim` a statement about how
  two set-ups differ.
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
from perturblab.studies.catalogue.types import KINDS, METRICS, MODES, Claim, Figure, Measure, PublishedFigure, Setup

__all__ = [
    "CLAIMS",
    "FIGURES",
    "KINDS",
    "METRICS",
    "MODES",
    "SETUPS",
    "Claim",
    "Figure",
    "Measure",
    "PublishedFigure",
    "Setup",
    "find",
    "index_by_id",
]


class _Named(Protocol):
    @property
    def id(self) -> str: ...


_Item = TypeVar("_Item", bound=_Named)


def index_by_id(items: Iterable[_Item]) -> dict[str, _Item]:
    """Index items by their ids.

    Args:
        items: set-ups, figures or claims.

    Returns:
        Id -> item, in their order.

    Raises:
        ValueError: an id is given twice.
    """
    by_id: dict[str, _Item] = {}
    for item in items:
        if item.id in by_id:
            raise ValueError(f"{item.id} is in the catalogue twice; give each {type(item).__name__} an id of its own")
        by_id[item.id] = item
    return by_id


SETUPS: dict[str, Setup] = index_by_id(
    (*pnn.SETUPS, *lbcnn.SETUPS, *controls.SETUPS, *batchout.SETUPS, *batchout_vgg.SETUPS)
)
FIGURES: dict[str, PublishedFigure] = index_by_id(
    (*pnn_figures.FIGURES, *lbcnn.FIGURES, *batchout_figures.FIGURES, *batchout_vgg_figures.FIGURES)
)
CLAIMS: dict[str, Claim] = index_by_id((*claims.CLAIMS, *factors.CLAIMS))


def find(text: str) -> list[PublishedFigure | Claim]:
    """Find figures and claims by tag.

    Args:
        text: a tag, such as "kl" or "ladder", or several separated by commas, which an item must all carry.

    Returns:
        Figures, then claims, in the order of the catalogue.

    Raises:
        ValueError: no tag is given, no item carries one of them, or no item carries all of them.
    """
    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not wanted:
        raise ValueError("expected a tag, such as pnn")
    everything: list[PublishedFigure | Claim] = [*FIGURES.values(), *CLAIMS.values()]
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
