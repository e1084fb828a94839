"""The dispatcher of the perturbation: it chooses one of the ways to compute it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perturblab.layers.kernels import chunked, compiled, native, reference

_published = False


@contextmanager
def published() -> Iterator[None]:
    """Inside the block, compute as the published codes do, with all the maps in memory: to count or to compare."""
    global _published
    before, _published = _published, True
    try:
        yield
    finally:
        _published = before


def is_published() -> bool:
    """Return True if all is computed as published: on request, for the debug log, or for an export.

    An exported graph then holds nothing but operations of PyTorch, and no size of a piece that depends on the batch.
    """
    return _published or torch.compiler.is_exporting() or bool(reference.is_debugging())


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
    """Perturb the features and combine the maps with a (grouped) 1x1 convolution.

    y[n, o] = sum_m weight[o, m] act(x[n, c(o)] + level * masks[c(o), m]) + bias[o], where level * mask is rounded
    before it is added. The maps, (N, C * M, H, W), are never there all at once, with one exception: with a single
    mask they are as large as ``x``.

    Args:
        x: features, (N, C, H, W); channels-last is fastest.
        masks: (C or 1, M, H or 1, W or 1).
        weight: (O, C * M / groups, 1, 1); the number of groups, 1 or C, follows from its shape.
        bias: (O,), or None.
        level: factor on the masks.
        act: elementwise activation, or None; a module of `torch.nn` may have a fast form of its own.
        outside: add the mask after the activation (an untied bias) instead of before.

    Returns:
        (N, O, H, W).

    Raises:
        ValueError: masks and features do not fit each other, or the weights are not those of a 1x1 convolution.

    Reference:
        Perturbative Neural Networks, CVPR 2018, section 3.
    """
    reference.check_masks(x, masks)
    reference.check_weight(weight)

    def whole(x: Tensor, masks: Tensor) -> Tensor:
        """Compute as published, with all the maps of the given features."""
        maps = reference.perturb(x, reference.scaled(masks, level), act=act, outside=outside)
        return reference.combine_maps(maps, weight, bias)

    grouped = masks.shape[1] > 1 and weight.shape[1] == masks.shape[1]
    if not grouped or is_published():
        return whole(x, masks)
    if act is None or outside:
        features = reference.activated(x, act).to(x.dtype) if act else x
        return _bias_map(features, reference.scaled(masks, level), weight, bias)
    if x.device.type == "cuda" and not torch.compiler.is_compiling():
        return _as_conv2d(_with_bias(compiled.reduce_compiled(x, masks, weight, level=level, act=act), bias))
    if isinstance(act, nn.Module) and native.usable(x, masks, act):
        return _as_conv2d(native.convolve_natively(x, masks, weight, bias, level=level, act=act))
    return chunked.in_pieces(whole, x, masks)


def _as_conv2d(y: Tensor) -> Tensor:
    """Convert a result as a convolution does in automatic mixed precision."""
    device = y.device.type
    return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


def _bias_map(x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Without an activation between them, masks and convolution make one map: sum_m w (x + t) = x sum_m w + sum_m w t.

    Args:
        x: features, (N, C, H, W).
        masks: level x mask, (C or 1, M, H or 1, W or 1).
        weight: (O, M, 1, 1), grouped by input channel.
        bias: (O,), or None.
    """
    channels = x.shape[1]
    maps = masks.expand(channels, -1, -1, -1).flatten(0, 1).unsqueeze(0).to(weight.dtype)
    return F.conv2d(x, weight.sum(1, keepdim=True), bias, groups=channels) + F.conv2d(maps, weight, groups=channels)
