"""Local binary convolution: fixed sparse anchors, ReLU, a learned 1x1 convolution.

Reference: Juefei-Xu, Boddeti, Savvides, Local Binary Convolutional Neural Networks, CVPR 2017;
github.com/juefeix/lbcnn.torch, RandomBinaryConvolution.lua.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perturblab.records.choices import FixedAnchors, check_choice


def draw_anchors(shape: tuple[int, ...], kind: str, sparsity: float, generator: torch.Generator) -> Tensor:
    """Draw the fixed filters.

    ``floor(sparsity * values)`` places are drawn *with replacement* and set to +1 or -1, so that the share of
    non-zeros is 1 - exp(-sparsity), not ``sparsity``: 39.3 % for 0.5.

    Args:
        shape: (O, C, k, k).
        kind: "binary" for sparse +1/-1, "gaussian" for dense N(0, 1), which does not read ``sparsity``.
        sparsity: draws as a share of all values, in (0, 1].
        generator: the stream that decides the values.

    Returns:
        float32 values of that shape.

    Raises:
        ValueError: the kind is neither, or the sparsity is out of range.
    """
    check_choice("anchors", kind, FixedAnchors)
    if not 0 < sparsity <= 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in (0, 1]: the share of draws, 0.5 in the MNIST recipe")
    values = torch.zeros(shape)
    if values.is_meta:
        return values
    if kind == "gaussian":
        return values.normal_(generator=generator)
    flat = values.view(-1)
    # A sign for every place, so that a place drawn twice has one definite value.
    signs = torch.randint(0, 2, (flat.numel(),), generator=generator) * 2.0 - 1.0
    drawn = torch.randint(0, flat.numel(), (int(sparsity * flat.numel()),), generator=generator)
    flat[drawn] = signs[drawn]
    return values


def local_binary_conv2d(x: Tensor, anchors: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with the fixed anchors, apply ReLU, combine with a 1x1 convolution.

    Args:
        x: features, (N, C, H, W).
        anchors: fixed filters, (M, C, k, k), k odd.
        weight: learned, (O, M, 1, 1).
        bias: (O,), or None.

    Returns:
        (N, O, H, W).
    """
    return F.conv2d(F.relu(F.conv2d(x, anchors, padding=anchors.shape[-1] // 2)), weight, bias)


class LocalBinaryConv2d(nn.Conv2d):
    """Local binary convolution: the 1x1 weights are parameters, the anchors a buffer that nothing updates.

    Args:
        in_channels: channels C of the input, (N, C, H, W).
        out_channels: channels O of the output, (N, O, H, W).
        nweights: how many anchors.
        anchors: "binary" or "gaussian".
        sparsity: draws as a share of all values.
        generator: the stream that decides the anchors.
    """

    fixed = ("anchors",)

    anchors: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        nweights: int,
        *,
        anchors: str = "binary",
        sparsity: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        super().__init__(nweights, out_channels, kernel_size=1)
        self.register_buffer("anchors", draw_anchors((nweights, in_channels, 3, 3), anchors, sparsity, generator))

    def forward(self, x: Tensor) -> Tensor:
        return local_binary_conv2d(x, self.anchors, self.weight, self.bias)


class AnchorConv2d(nn.Module):
    """A 3x3 convolution with fixed filters alone, as they stand in a local binary convolution: nothing is learned.

    The filters are drawn over all their values at once, so that a single one may be empty: with one input channel and
    a sparsity of 0.5 about exp(-4.5), 1 % of them.

    Args:
        in_channels: channels C of the input, (N, C, H, W).
        out_channels: how many filters O, and channels of the output, (N, O, H, W).
        groups: input channels and filters are divided into so many groups; C for one filter a channel.
        anchors: "binary" or "gaussian".
        sparsity: draws as a share of all values.
        generator: the stream that decides the filters.

    Raises:
        ValueError: the groups divide the channels or the filters not.
    """

    fixed = ("anchors",)

    anchors: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 1,
        anchors: str = "binary",
        sparsity: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups is {groups}; it must divide {in_channels} channels and {out_channels} filters")
        self.groups = groups
        shape = (out_channels, in_channels // groups, 3, 3)
        self.register_buffer("anchors", draw_anchors(shape, anchors, sparsity, generator))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.anchors, padding=1, groups=self.groups)

    def extra_repr(self) -> str:
        return f"{tuple(self.anchors.shape)}, groups={self.groups}"
