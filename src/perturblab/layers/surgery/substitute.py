"""Replacement of one convolution: a perturbation layer, with cropping or pooling that keeps the sizes."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perturblab.layers.masks import Masks, Noise
from perturblab.layers.perturb import PerturbConv2d
from perturblab.layers.pooling import pool
from perturblab.layers.surgery.tracing import Size

GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def fit(x: Tensor, size: Size, *, padding_mode: str = "zeros") -> Tensor:
    """Crop or pad features around their centre.

    Args:
        x: features, (N, C, H, W).
        size: (H', W') of the result.
        padding_mode: "zeros", "reflect", "replicate" or "circular", as of a convolution.

    Returns:
        (N, C, H', W'); where a side changes by an odd number, its start gets the smaller part.
    """
    spare = [want - have for want, have in zip(size, x.shape[-2:], strict=True)]
    tops = [max(-by, 0) // 2 for by in spare]
    x = x[..., tops[0] : tops[0] + min(size[0], x.shape[-2]), tops[1] : tops[1] + min(size[1], x.shape[-1])]
    added = [max(by, 0) for by in spare]
    pads = [added[1] // 2, added[1] - added[1] // 2, added[0] // 2, added[0] - added[0] // 2]
    return F.pad(x, pads, mode="constant" if padding_mode == "zeros" else padding_mode) if any(pads) else x


class Fit(nn.Module):
    """`fit` as a layer: features (N, C, H, W) to (N, C, *size)."""

    def __init__(self, size: Size, *, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.size, self.padding_mode = size, padding_mode

    def forward(self, x: Tensor) -> Tensor:
        return fit(x, self.size, padding_mode=self.padding_mode)

    def extra_repr(self) -> str:
        return f"{self.size}, padding_mode={self.padding_mode}"


@dataclass(frozen=True)
class Substitution:
    """Settings of the layers that replace convolutions.

    Args:
        noise: how the masks are drawn and used.
        act: activation after the mask, or None.
        pool_type: what a stride becomes: "max", "avg", "stride" or "overlap", see `perturblab.layers.pooling.pool`.
    """

    noise: Noise = field(default_factory=Noise)
    act: str | None = "relu"
    pool_type: str = "max"


class Substitute(nn.Sequential):
    """``fit`` (where sizes need it), ``perturb``, ``pool`` (where the convolution had a stride), in this order.

    Models that ask their convolution for its ``weight`` (for a type or a device) get that of the perturbation layer,
    and those that ask for its kernel, stride or padding (to pad by themselves) get what the convolution had.

    Args:
        parts: the three, by these names.
        conv: the convolution that it stands for.
    """

    def __init__(self, parts: "OrderedDict[str, nn.Module]", conv: nn.Conv2d) -> None:
        super().__init__(parts)
        for name in GEOMETRY:
            setattr(self, name, getattr(conv, name))

    @property
    def weight(self) -> Tensor:
        """The 1x1 weights, (O, C * M / groups, 1, 1)."""
        return cast(PerturbConv2d, self.perturb).weight

    @property
    def bias(self) -> Tensor | None:
        """(O,), or None."""
        return cast(PerturbConv2d, self.perturb).bias


def substitute(
    conv: nn.Conv2d, sizes: tuple[Size, Size], settings: Substitution, *, generator: torch.Generator
) -> nn.Module:
    """Make the layers that replace a convolution, from its input's size to its output's.

    The perturbation layer works at the size of the convolution's input and has no neighbours, so it needs no padding.
    A stride becomes a pooling of that window behind the layer, as in the published nets. Where the sizes do not meet
    by that alone (an unpadded convolution, or one with more padding than its kernel needs), the features are first
    cropped or padded around their centre, with the convolution's own padding mode. A dilation is gone with the
    kernel. Bias or none, and with one mask a channel the groups, are the convolution's, as are device, type and
    what is frozen; its bias keeps its values; its weights are drawn anew, as PyTorch draws those of a 1x1 convolution.

    Args:
        conv: the convolution, from (N, C, H, W) to (N, O, H', W').
        sizes: ((H, W), (H', W')), see `perturblab.layers.trace`.
        settings: of the masks, the activation and the pooling.
        generator: decides masks and weights.

    Returns:
        A `PerturbConv2d`, alone where nothing else is needed, or in a `Substitute`.

    Raises:
        ValueError: several masks a channel, and the filters are no multiple of the channels.
    """
    given, wanted = sizes
    size = _before_pooling(given, wanted, _pair(conv.stride))
    with torch.random.fork_rng(devices=[]):  # PyTorch draws initial weights from the global stream
        masks = Masks(conv.in_channels, size, settings.noise, generator=generator)
        groups = conv.groups if settings.noise.nmasks == 1 else None
        perturb = PerturbConv2d(masks, conv.out_channels, act=settings.act, groups=groups)
    _take_over(perturb, conv, generator)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if size != given:
        parts["fit"] = Fit(size, padding_mode=conv.padding_mode)
    parts["perturb"] = perturb
    if _pair(conv.stride) != (1, 1):
        parts["pool"] = pool(settings.pool_type, _pair(conv.stride))
    return perturb if len(parts) == 1 else Substitute(parts, conv)


def _before_pooling(given: Size, wanted: Size, stride: Size) -> Size:
    """Find the size nearest to the given one that a pooling, which rounds up, turns into the wanted one."""
    sides = [
        min(max(have, (want - 1) * step + 1), want * step)
        for have, want, step in zip(given, wanted, stride, strict=True)
    ]
    return sides[0], sides[1]


def _pair(value: tuple[int, ...]) -> Size:
    return value[0], value[-1]


@torch.no_grad()
def _take_over(perturb: PerturbConv2d, conv: nn.Conv2d, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(perturb.weight[0].numel())
    perturb.weight.uniform_(-bound, bound, generator=generator)
    perturb.to(conv.weight.device)
    if perturb.weight.dtype != conv.weight.dtype:  # or masks that are kept in another type would be widened
        perturb.to(conv.weight.dtype)
    if conv.bias is None:
        perturb.register_parameter("bias", None)
    elif perturb.bias is not None:
        perturb.bias.copy_(conv.bias)
        perturb.bias.requires_grad_(conv.bias.requires_grad)
    for name, parameter in perturb.named_parameters():
        if name != "bias":
            parameter.requires_grad_(conv.weight.requires_grad)
