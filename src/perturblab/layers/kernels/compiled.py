"""The perturbation as one reduction over the masks, for torch.compile: the path of accelerators."""

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor

from perturblab.layers.kernels.reference import Activation, scaled


def reduce_masks(x: Tensor, masks: Tensor, weight: Tensor, act: Activation) -> Tensor:
    """Compute the formula itself. Compiled, both passes are loops over m that keep no map; uncompiled, all are kept.

    Args:
        x: features, (N, C, H, W).
        masks: level x mask, (C or 1, M, H or 1, W or 1).
        weight: (O, M, 1, 1), with O a multiple of C.
        act: elementwise activation.

    Returns:
        (N, O, H, W), of the type of ``x``.
    """
    images, channels, height, width = x.shape
    grouped = weight.view(channels, -1, weight.shape[1], 1, 1)  # (C, R, M, 1, 1)
    maps = act(x.unsqueeze(2) + masks).unsqueeze(2)  # (N, C, 1, M, H, W)
    out = (maps * grouped).sum(3)  # (N, C, R, H, W)
    return out.reshape(images, -1, height, width).to(x.dtype)


@cache
def _compiled() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(reduce_masks, dynamic=False))


def reduce_compiled(x: Tensor, masks: Tensor, weight: Tensor, *, level: float, act: Activation) -> Tensor:
    """Call `reduce_masks`, compiled: features (N, C, H, W) to (N, O, H, W), without a bias.

    level * mask is computed outside: a compiler would contract it with the sum and round once too few.
    """
    return _compiled()(x, scaled(masks, level), weight, act)
