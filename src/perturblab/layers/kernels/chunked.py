"""The perturbation in pieces that are made, used and made again for the gradient: any activation, any device."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_pieces(piece: Callable[[Tensor, Tensor], Tensor], x: Tensor, masks: Tensor) -> Tensor:
    """Compute a function of all perturbed maps of a place, a few rows of some images at a time.

    The maps of one piece, about as large as ``x``, are there at once. In the backward pass they are made again, from
    the same random state where the activation draws one.

    Args:
        piece: from features (n, C, h, W) and their masks (C or 1, M, h or 1, W or 1) to (n, O, h, W).
        x: features, (N, C, H, W).
        masks: (C or 1, M, H or 1, W or 1).

    Returns:
        (N, O, H, W).
    """
    rows, images = _piece_size(x, masks.shape[1])
    done = []
    for part in x.split(images):
        strips = part.split(rows, 2)
        given = [masks] * len(strips) if masks.shape[2] == 1 else masks.split(rows, 2)
        done.append(torch.cat([_again(piece, *pair) for pair in zip(strips, given, strict=True)], 2))
    return torch.cat(done)


def _again(piece: Callable[..., Tensor], *given: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return piece(*given)
    out: Tensor = checkpoint(piece, *given, use_reentrant=False)
    return out


def _piece_size(x: Tensor, nmasks: int) -> tuple[int, int]:
    """Choose rows and images of a piece so that its maps hold as many values as ``x``, or as few as possible."""
    images, _, height, _ = x.shape
    rows = max(1, height // nmasks)
    return rows, max(1, images * height // (nmasks * rows))
