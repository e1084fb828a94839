"""Shift: every channel moved by at most one pixel, which looks at the neighbours without a multiplication.

Reference: Wu et al., Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions, CVPR 2018,
arXiv 1711.08141.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perturblab.layers.kernels import is_published

# (rows down, columns to the right); the nearest first, so that few channels too look to all sides evenly.
MOVES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


def shift(x: Tensor) -> Tensor:
    """Move each of nine groups of channels by a displacement of its own: none, or one pixel to one of eight sides.

    The groups are neighbouring channels, in the order of `MOVES`; where nine does not divide C, the first ones have a
    channel more, so that fewer than nine channels know fewer displacements.

    Args:
        x: features, (N, C, H, W).

    Returns:
        (N, C, H, W); what comes in from outside is 0, and a channel that is moved by (dh, dw) has at [h, w] what it
        had at [h - dh, w - dw].

    Reference:
        Wu et al., CVPR 2018.
    """
    sizes = _sizes(x.shape[1])
    if _is_quicker_filtered(x):
        return F.conv2d(x, _filters(sizes).to(x), padding=1, groups=x.shape[1])
    # A negative padding cuts off: one copy a group, forward and backward, in any order of memory.
    return torch.cat([F.pad(p, (dw, -dw, dh, -dh)) for p, (dh, dw) in zip(x.split(sizes, 1), MOVES, strict=False)], 1)


def _sizes(channels: int) -> list[int]:
    """Count the channels of each displacement; none is 0."""
    return [channels // len(MOVES) + (place < channels % len(MOVES)) for place in range(min(len(MOVES), channels))]


def _is_quicker_filtered(x: Tensor) -> bool:
    """Return True if the groups lie a few values side by side, where copies take three times as long.

    A filter of one 1 is the same for all finite values; it needs single precision, which nothing may round on the way.
    A compiler makes one pass of the copies by itself.
    """
    return (
        x.device.type == "cpu"
        and x.dtype is torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not (is_published() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    )


def _filters(sizes: list[int]) -> Tensor:
    """Write the displacements as filters of one 1, (C, 1, 3, 3)."""
    ones = [3 * (1 - dh) + 1 - dw for count, (dh, dw) in zip(sizes, MOVES, strict=False) for _ in range(count)]
    return F.one_hot(torch.tensor(ones, device="cpu"), 9).view(-1, 1, 3, 3)


class Shift(nn.Module):
    """Every channel moved by at most one pixel; see `shift`: (N, C, H, W) to (N, C, H, W), nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        return shift(x)
