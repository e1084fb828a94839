"""The perturbation as published, with every perturbed map: the reference of the fast paths."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
debug_log = logging.getLogger("perturblab.debug")


def perturb(x: Tensor, masks: Tensor, *, act: Activation | None = None, outside: bool = False) -> Tensor:
    """Add every mask to every channel and apply the activation.

    Args:
        x: features, (N, C, H, W).
        masks: level x mask, (C or 1, M, H or 1, W or 1).
        act: elementwise activation, or None.
        outside: add the mask after the activation (an untied bias) instead of before.

    Returns:
        (N, C * M, H, W), of the type of ``x``; map ``c * M + m`` is ``act(x[:, c] + masks[c, m])``.

    Raises:
        ValueError: the channels, the height or the width of the masks do not fit ``x``.

    Reference:
        Perturbative Neural Networks, CVPR 2018, section 3.
    """
    check_masks(x, masks)
    maps = x.unsqueeze(2)  # (N, C, 1, H, W)
    if act is None:
        maps = maps + masks
    elif outside:
        maps = activated(maps, act) + masks
    else:
        maps = activated(maps + masks, act)
    maps = maps.flatten(1, 2).to(x.dtype)
    if is_debugging():
        debug_log.debug(debug_text(x, masks, maps))
    return maps


def combine_maps(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Combine maps (N, C * M, H, W) with a 1x1 convolution (O, C * M / groups, 1, 1) and bias (O,) to (N, O, H, W)."""
    return F.conv2d(maps, weight, bias, groups=maps.shape[1] // weight.shape[1])


def activated(maps: Tensor, act: Activation) -> Tensor:
    """Apply an activation to maps of any shape."""
    # PReLU alone insists on its own type, which in mixed precision is not that of the maps.
    return act(maps.to(act.weight.dtype)) if isinstance(act, nn.PReLU) else act(maps)


def scaled(masks: Tensor, level: float) -> Tensor:
    """Compute level x mask, of the shape (C or 1, M, H or 1, W or 1), rounded once; bfloat16 masks in float32."""
    return (masks.float() if masks.dtype == torch.bfloat16 else masks) * level


def check_masks(x: Tensor, masks: Tensor) -> None:
    """Refuse masks (C or 1, M, H or 1, W or 1) that do not fit features (N, C, H, W).

    Raises:
        ValueError: other channels, another height or width.
    """
    if masks.shape[0] not in (1, x.shape[1]):
        raise ValueError(
            f"the masks are for {masks.shape[0]} channels, the features have {x.shape[1]}; expected 1 or {x.shape[1]}"
        )
    if any(have not in (1, need) for have, need in zip(masks.shape[-2:], x.shape[-2:], strict=True)):
        have, need = tuple(masks.shape[-2:]), tuple(x.shape[-2:])
        raise ValueError(f"the masks are {have}, the features {need}; build the layer with size={need}")


def check_weight(weight: Tensor) -> None:
    """Refuse weights whose shape is not (O, C * M / groups, 1, 1).

    Raises:
        ValueError: a larger kernel, or another number of dimensions.
    """
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(
            f"the weights are {tuple(weight.shape)}; expected (O, C * M / groups, 1, 1): the kernel is 1x1"
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_debugging() -> bool:
    """Return True if every perturbation is logged; constant for torch.compile, which would stop at every layer."""
    return debug_log.isEnabledFor(logging.DEBUG)


def debug_text(x: Tensor, masks: Tensor, maps: Tensor, n: int = 2) -> str:
    """Say the first values of input, masks and perturbed maps, for any number of masks, channels and images.

    Args:
        x: features, (N, C, H, W).
        masks: level x mask, (C or 1, M, H or 1, W or 1).
        maps: perturbed features, (N, C * M, H, W).
        n: how many values of the first row; and how many images, channels and masks at the most.
    """
    nmasks = masks.shape[1]
    lines = [
        f"{name} {tuple(values.shape)} [{i}, {j}] {[round(v, 5) for v in values[i, j, 0, :n].tolist()]}"
        for name, values, step in (("input", x, 1), ("mask", masks, 1), ("output", maps, nmasks))
        for i in range(min(n, values.shape[0]))
        for j in sorted({*range(min(n, values.shape[1])), *range(0, min(n * step, values.shape[1]), step)})
    ]
    return "\n".join(lines)
