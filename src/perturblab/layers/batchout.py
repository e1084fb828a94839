"""BatchOut: move a sample's features towards those of another sample of the batch.

x* = x + eta (x_r - x), where the added part is a constant in the backward pass (Subramanya, Mopuri, Babu, "BatchOut:
Batch-level feature augmentation to improve robustness to adversarial examples", ICVGIP 2018, algorithm 1).
"""

import torch
from torch import Tensor


def batchout(
    x: Tensor, partners: Tensor, eta: Tensor | float, rows: Tensor | None = None, *, detach: bool = True
) -> Tensor:
    """Move some rows of a batch towards their partners: x + eta (x_r - x).

    Args:
        x: features, (N, ...).
        partners: int64 (K,): the partner of each row that is moved, in [0, N).
        eta: magnitudes, (K,), or a single value, a number or ().
        rows: int64 (K,): the rows that are moved, each once; the first K by default.
        detach: the added part is a constant in the backward pass, so that the derivative is the identity (the
            paper's section 6.1); without it, it is 1 - eta, and eta for the partner.

    Returns:
        (N, ...), a new tensor; ``x`` itself when K is 0. A row with eta 0, or that is its own partner, keeps its
        values.

    Reference:
        BatchOut, ICVGIP 2018, algorithm 1, equations 2 and 3.
    """
    if not len(partners):
        return x
    where, known = _where(rows, len(partners), x), x.detach() if detach else x
    return _moved(x, known[partners.to(x.device)] - known[where], eta, where)  # an index keeps the memory format


def equal_norm_noise(
    x: Tensor, noise: Tensor, eta: Tensor | float, rows: Tensor | None = None, *, detach: bool = True
) -> Tensor:
    """Move some rows along random directions, by eta times their own length: x + eta |x| n / |n|.

    Args:
        x: features, (N, ...).
        noise: (K, ...), the directions n.
        eta: magnitudes, (K,), or a single value, a number or ().
        rows: int64 (K,): the rows that are moved, each once; the first K by default.
        detach: the added part is a constant in the backward pass.

    Returns:
        (N, ...), a new tensor; ``x`` itself when K is 0.

    Reference:
        BatchOut, ICVGIP 2018, equation 5: the baseline of random noise.
    """
    if not len(noise):
        return x
    where, known, noise = _where(rows, len(noise), x), x.detach() if detach else x, noise.to(x)
    length = known[where].flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1).clamp_min(1e-12)
    return _moved(x, noise * _per_row(length, x), eta, where)


def _where(rows: Tensor | None, count: int, x: Tensor) -> slice | Tensor:
    """Select the first rows by a slice, which is a view; an index would copy."""
    return slice(count) if rows is None else rows.to(x.device)


def _moved(x: Tensor, step: Tensor, eta: Tensor | float, where: slice | Tensor) -> Tensor:
    moved = x.clone()
    eta = torch.as_tensor(eta, dtype=x.dtype, device=x.device)
    moved[where] += _per_row(eta.expand(len(step)), x) * step.to(x.dtype)
    return moved


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
