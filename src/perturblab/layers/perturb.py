"""The perturbation layer, in the three orders that were published.

A perturbation layer adds fixed noise masks to its input, applies an activation and combines the maps with a
learned 1x1 convolution: y = sum_i V_i act(x + N_i) (Juefei-Xu, Boddeti, Savvides, Perturbative Neural Networks,
CVPR 2018). The published codes disagree about the order of its parts:

* `NoiseLayer`: mask, ReLU, batch norm, 1x1 (github.com/juefeix/pnn.pytorch);
* `PerturbLayer`: mask, activation, 1x1, batch norm, activation (github.com/michaelklachko/pnn.pytorch);
* `PerturbLayerFirst`: mask, batch norm, sigmoid, grouped 1x1, batch norm, sigmoid
  (github.com/juefeix/pnn.pytorch.update).
"""

from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perturblab.layers.activations import activation
from perturblab.layers.kernels import in_pieces, is_published, perturbed_moments
from perturblab.layers.kernels import perturb as perturb
from perturblab.layers.kernels import perturb_conv2d as perturb_conv2d
from perturblab.layers.masks import Masks
from perturblab.records.choices import FilterSize


class PerturbConv2d(nn.Conv2d):
    """Perturbation and 1x1 convolution, (N, C, H, W) to (N, O, H, W): the replacement of a 3x3 convolution.

    Args:
        masks: of its input; with more than one a channel the convolution is grouped by input channel, as published.
        out_channels: channels O of the output.
        act: name of the activation after the mask, or None.
        groups: of the convolution, instead of these.

    Raises:
        ValueError: several masks a channel, and ``out_channels`` is not a multiple of the channels C.
    """

    def __init__(self, masks: Masks, out_channels: int, *, act: str | None = "relu", groups: int | None = None) -> None:
        groups = groups or _groups(masks, out_channels)
        super().__init__(masks.maps, out_channels, kernel_size=1, groups=groups)
        self.masks = masks
        self.act = activation(act) if act else None

    def forward(self, x: Tensor) -> Tensor:
        noise = self.masks.noise
        if noise.mask_memory == "seed" and noise.nmasks > 1 and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._perturbed, x, use_reentrant=False)  # or autograd would keep the masks
            return out
        return self._perturbed(x)

    def _perturbed(self, x: Tensor) -> Tensor:
        noise, masks = self.masks.noise, self.masks.drawn()
        return perturb_conv2d(
            x, masks, self.weight, self.bias, level=noise.level, act=self.act, outside=noise.untied_bias
        )


def _groups(masks: Masks, out_channels: int) -> int:
    nmasks, channels = masks.noise.nmasks, masks.channels
    if nmasks == 1:
        return 1
    if out_channels % channels:
        raise ValueError(
            f"nmasks {nmasks} groups the 1x1 convolution by input channel, and {out_channels} filters are no multiple "
            f"of {channels} channels; use a multiple of {channels}, or nmasks 1"
        )
    return channels


def _conv_norm_act(conv: nn.Conv2d, act: str) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), activation(act)]


def plain_layer(
    in_channels: int, out_channels: int, filter_size: int, *, act: str = "relu", first: bool = False
) -> nn.Sequential:
    """Make a convolution, batch norm and activation, (N, C, H, W) to (N, O, H, W), in the place of a `PerturbLayer`.

    Args:
        in_channels: channels C of the input.
        out_channels: channels O of the output.
        filter_size: 1 (with a bias), 3, 5 or 7 (without).
        act: activation after the batch norm.
        first: a first layer; a 7x7 convolution then has stride 2.

    Raises:
        ValueError: a filter size that is none of these.

    Reference:
        github.com/michaelklachko/pnn.pytorch, models.py, PerturbLayer.
    """
    if not filter_size or filter_size not in get_args(FilterSize):
        raise ValueError(f"filter_size is {filter_size}; choose 0 (perturbation), 1, 3, 5 or 7")
    # The published 7x7 layer has stride 2 everywhere, which crashes after the first layer; there ours keeps the size.
    stride, padding = 2 if first and filter_size == 7 else 1, filter_size // 2
    conv = nn.Conv2d(in_channels, out_channels, filter_size, stride, padding, bias=filter_size == 1)
    return nn.Sequential(*_conv_norm_act(conv, act))


class PerturbLayer(nn.Sequential):
    """Mask, activation, 1x1, batch norm, activation, (N, C, H, W) to (N, O, H, W).

    Args:
        masks: of its input.
        out_channels: channels O of the output.
        act: activation after the batch norm and, with ``use_act``, after the mask.
        use_act: apply the activation after the mask too.
        mix_maps: add a second 1x1 convolution, batch norm and activation that mixes the maps.
        groups: of the 1x1 convolution, instead of 1 with one mask a channel and C with several.

    Raises:
        ValueError: groups that cannot divide the channels.

    Reference:
        github.com/michaelklachko/pnn.pytorch, models.py, PerturbLayer.
    """

    def __init__(
        self,
        masks: Masks,
        out_channels: int,
        *,
        act: str = "relu",
        use_act: bool = True,
        mix_maps: bool = False,
        groups: int | None = None,
    ) -> None:
        conv = PerturbConv2d(masks, out_channels, act=act if use_act else None, groups=groups)
        mix = _conv_norm_act(nn.Conv2d(out_channels, out_channels, 1), act) if mix_maps else []
        super().__init__(*_conv_norm_act(conv, act), *mix)


class NoiseLayer(nn.Module):
    """Mask, ReLU, batch norm, 1x1, (N, C, H, W) to (N, O, H, W): the order of the authors' first code.

    Args:
        masks: of its input; one a channel and pixel in the published code.
        out_channels: channels O of the output.

    Raises:
        ValueError: several masks a channel, and ``out_channels`` is not a multiple of the channels C.

    Reference:
        github.com/juefeix/pnn.pytorch, models/naiveresnet.py, NoiseLayer.
    """

    def __init__(self, masks: Masks, out_channels: int) -> None:
        super().__init__()
        self.masks = masks
        self.act = nn.ReLU()
        self.norm = nn.BatchNorm2d(masks.maps)
        self.conv = nn.Conv2d(masks.maps, out_channels, 1, groups=_groups(masks, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        maps = perturb(x, self.masks(), act=self.act, outside=self.masks.noise.untied_bias)
        out: Tensor = self.conv(self.norm(maps))
        return out


class PerturbLayerFirst(nn.Module):
    """The authors' reply for a first layer: mask, batch norm, sigmoid, grouped 1x1, batch norm, sigmoid.

    Args:
        masks: of its input, (N, C, H, W).
        out_channels: channels O of the output, (N, O, H, W).
        mix_maps: add a second 1x1 convolution, batch norm and sigmoid that mixes the maps.
        groups: of the 1x1 convolution, instead of 1 with one mask a channel and C with several.

    Raises:
        ValueError: several masks a channel, and ``out_channels`` is not a multiple of the channels C.

    Reference:
        github.com/juefeix/pnn.pytorch.update, models.py, PerturbLayerFirst.
    """

    def __init__(self, masks: Masks, out_channels: int, *, mix_maps: bool = False, groups: int | None = None) -> None:
        super().__init__()
        conv = nn.Conv2d(masks.maps, out_channels, 1, groups=groups or _groups(masks, out_channels))
        mix = _conv_norm_act(nn.Conv2d(out_channels, out_channels, 1), "sigmoid") if mix_maps else []
        self.masks = masks
        self.norm = nn.BatchNorm2d(masks.maps)
        self.act = nn.Sigmoid()
        self.layers = nn.Sequential(*_conv_norm_act(conv, "sigmoid"), *mix)

    def forward(self, x: Tensor) -> Tensor:
        masks = self.masks()
        alone = x[:, 0].numel() == 1  # a single value has no variance, which the batch norm tells best itself
        if masks.shape[1] == 1 or self.masks.noise.untied_bias or alone or is_published():
            out: Tensor = self.layers(self._maps(x, masks))
            return out
        scale, shift = self._normalisation(x, masks)
        conv = self.layers[0]

        def piece(x: Tensor, masks: Tensor) -> Tensor:
            combined: Tensor = conv(self.act(perturb(x, masks) * scale + shift))
            return combined

        out = self.layers[1:](in_pieces(piece, x, masks))
        return out

    def _maps(self, x: Tensor, masks: Tensor) -> Tensor:
        if self.masks.noise.untied_bias:
            plain: Tensor = self.act(self.norm(x.repeat_interleave(masks.shape[1], 1)))
            return plain + masks.expand(x.shape[1], *masks.shape[1:]).flatten(0, 1)
        maps: Tensor = self.act(self.norm(perturb(x, masks)))
        return maps

    def _normalisation(self, x: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the batch norm of x + mask as factor and shift, both (1, C * M, 1, 1), from the moments alone."""
        norm = self.norm
        running = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        mean, variance = running
        if norm.training:
            mean, variance = (moment.flatten() for moment in perturbed_moments(x, masks))
            cast(Tensor, norm.num_batches_tracked).add_(1)
            count = x.numel() // x.shape[1]
            with torch.no_grad():
                for kept, new in zip(running, (mean, variance * count / (count - 1)), strict=True):
                    kept.lerp_(new.to(kept), cast(float, norm.momentum))
        scale = norm.weight / (variance + norm.eps).sqrt()
        return scale.view(1, -1, 1, 1), (norm.bias - mean * scale).view(1, -1, 1, 1)
