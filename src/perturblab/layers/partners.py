"""Partners: the row that each row of a batch is mixed with."""

from typing import get_args

import torch
from torch import Tensor

from perturblab.records.choices import Partners, check_choice

PARTNERS: tuple[str, ...] = get_args(Partners)
"""The ways to choose a partner; `draw_partners` says what each does."""

BY_CLASS = ("different-class", "same-class")


def draw_partners(kind: str, count: int, labels: Tensor | None = None, *, generator: torch.Generator) -> Tensor:
    """Draw a partner for every row of a batch.

    Args:
        kind: "replacement": any row, also itself (the paper's); "permutation": every row is taken once; "mutual": row
            i and row N - 1 - i (nothing drawn); "no-self": any other row; "different-class": any row with another
            label; "same-class": any other row with the same label. A row without such a partner (a batch of one
            row, one class or a class of one) gets itself, and so stays as it is.
        count: rows in the batch, N.
        labels: int64 (N,); needed by the last two kinds.
        generator: where from, on the CPU.

    Returns:
        int64 (N,), on the labels' device, else on the CPU.

    Raises:
        ValueError: no such kind, or labels that are missing or not one a row.

    Reference:
        Subramanya, Mopuri, Babu, BatchOut, ICVGIP 2018, algorithm 1.
    """
    check_choice("partners", kind, Partners)
    if kind in BY_CLASS:
        return _by_class(kind, count, labels, generator)
    own = torch.arange(count)
    if kind == "replacement":
        return torch.randint(max(count, 1), (count,), generator=generator)
    if kind == "permutation":
        return torch.randperm(count, generator=generator)
    if kind == "mutual":
        return own.flip(0)
    return (own + 1 + _below(torch.full((count,), count - 1), generator)) % max(count, 1)


def _by_class(kind: str, count: int, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw uniformly among the rows of the other classes, or of the same, without a loop over rows or classes.

    Sorted by label, the rows of a class are one block: a draw below the number of rows outside it, moved on by the
    block's length when it falls at or behind its start, is uniform over all the others.
    """
    if labels is None or labels.shape != (count,):
        got = "none" if labels is None else tuple(labels.shape)
        raise ValueError(
            f"partners {kind!r} needs the labels of the {count} rows, got {got}; call the model inside "
            "`with batch_step(labels):`"
        )
    order = labels.argsort(stable=True)
    place = order.argsort()  # of each row in the sorted batch
    _, inverse, sizes = labels.unique(sorted=True, return_inverse=True, return_counts=True)
    size = sizes[inverse]
    start = (sizes.cumsum(0) - sizes)[inverse]
    if kind == "same-class":
        ahead = 1 + _below(size - 1, generator)
        return order[start + (place - start + ahead) % size]
    drawn = _below(count - size, generator)
    found = order[(drawn + size * (drawn >= start)).clamp_max(count - 1)]
    return torch.where(size == count, torch.arange(count, device=labels.device), found)


def _below(limits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an integer in [0, limit) for each limit; 0 where the limit is 0."""
    drawn = torch.rand(len(limits), generator=generator, dtype=torch.float64).to(limits.device)
    return (drawn * limits).long()
