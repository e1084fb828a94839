"""The perturbation in pieces that are made, used and made again for the gradient: any activation, any device."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from perturblab.kernels import reference


def perturb_conv2d(
    x: Tensor,
    masks: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    level: float = 1.0,
    act: reference.Activation | None = None,
    outside: bool = False,
) -> Tensor:
    """The same as the reference; the maps of one piece, about as large as ``x``, are there at a time.

    A piece is a few rows of some images. In the backward pass its maps are made again, from the same random state
    where the activation draws one.
    """

    def piece(x: Tensor, masks: Tensor) -> Tensor:
        return reference.perturb_conv2d(x, masks, weight, bias, level=level, act=act, outside=outside)

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
    """Rows and images of a piece whose maps hold as many values as ``x``, or else as few as they can."""
    images, _, height, _ = x.shape
    rows = max(1, height // nmasks)
    return rows, max(1, images * height // (nmasks * rows))
