"""The nets by name."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn

from perturblab.models.batchout_nets import BatchOutOptions, batchout_cifar, batchout_mnist, init_default
from perturblab.models.bottleneck_resnet import BottleneckOptions, bottleneck_resnet
from perturblab.models.convnets import ConvNetOptions, convnet
from perturblab.models.lbcnet import LBCOptions, lbcnet
from perturblab.models.noise_resnet import NoiseResNetOptions, noise_resnet
from perturblab.models.perturb_resnet import PerturbResNetOptions, perturb_resnet
from perturblab.models.resnet import ResNetOptions, resnet
from perturblab.models.skeleton import Task, init_weights
from perturblab.models.vgg import VGGOptions, init_vgg, vgg19
from perturblab.records.choices import Code, check_choice
from perturblab.seeding import stream


@dataclass(frozen=True)
class Net:
    """A net by name: the class of its options, its maker, one line about it, and its initial weights."""

    options: type[Any]
    make: Callable[[Task, Any, torch.Generator], nn.Module]
    about: str
    init: Callable[[nn.Module, torch.Generator], None] = init_weights


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _family(
    name: str, depths: tuple[int, ...], options: type[Any], make: Callable[..., nn.Module], about: str
) -> dict[str, Net]:
    return {
        f"{name}{depth}": Net(options, partial(make, nblocks=_BLOCKS[depth], bottleneck=depth >= 50), about)
        for depth in depths
    }


NETS: dict[str, Net] = {
    **_family("resnet", (18, 34, 50), ResNetOptions, resnet, "3x3 convolutions, CIFAR form: the baseline"),
    **_family(
        "noiseresnet",
        (18, 34, 50, 101, 152),
        NoiseResNetOptions,
        noise_resnet,
        "the authors' net: mask or another operator, ReLU, batch norm, 1x1 (code up: first convolution frozen)",
    ),
    **_family(
        "perturb_resnet",
        (18, 34, 50),
        PerturbResNetOptions,
        perturb_resnet,
        "the reproduction's net, every option (code up: the authors' reply variant)",
    ),
    "cifarnet": Net(ConvNetOptions, partial(convnet, layers=(2, 2, 2), hidden=256), "six layers, two linear"),
    "lenet": Net(ConvNetOptions, partial(convnet, layers=(1, 1, 1), hidden=128), "three layers, two linear"),
    "lbcnet": Net(LBCOptions, lbcnet, "local binary convolutions: fixed sparse 3x3 anchors, learned 1x1"),
    "batchout_mnist": Net(
        BatchOutOptions, batchout_mnist, "BatchOut's net for MNIST: two 5x5, two linear", init_default
    ),
    "batchout_cifar": Net(
        BatchOutOptions, batchout_cifar, "BatchOut's net for CIFAR: five 3x3, three linear", init_default
    ),
    "bottleneck_resnet": Net(
        BottleneckOptions, bottleneck_resnet, "pre-activation bottlenecks, 4096 last features", init_default
    ),
    "vgg19": Net(VGGOptions, vgg19, "16 3x3 convolutions with batch norm, one linear", init_vgg),
    "vgg19_tied": Net(
        VGGOptions, partial(vgg19, tied=True), "as reproduced: the same block called 7 times (8 convolutions)", init_vgg
    ),
}
"""The published nets by name; `build` makes one, `options_read` says what it can be told."""


def options_read(name: str) -> frozenset[str]:
    """List the options that a net reads.

    Raises:
        ValueError: no net has that name.
    """
    return frozenset(field.name for field in fields(_net(name).options))


def resolve(name: str, options: Mapping[str, Any]) -> Any:
    """Check a net's options and fill in its defaults.

    Args:
        name: a key of `NETS`.
        options: some of the options that the net reads.

    Returns:
        The net's frozen options.

    Raises:
        ValueError: no net has that name, or it does not read one of the options.
    """
    net, read = _net(name), options_read(name)
    unread = sorted(set(options) - read)
    if unread:
        raise ValueError(f"{name} does not read {', '.join(unread)}; it reads {', '.join(sorted(read))}")
    made = net.options(**options)
    if made.nfilters < 1:
        raise ValueError(f"nfilters is {made.nfilters}; a net needs at least 1")
    check_choice("code", getattr(made, "code", "kl"), Code)
    return made


def _net(name: str) -> Net:
    if name not in NETS:
        near = difflib.get_close_matches(name, NETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(NETS)}"
        raise ValueError(f"no net is called {name!r}; {hint}")
    return NETS[name]


def build(name: str, *, task: Task | None = None, seed: int = 1, **options: Any) -> nn.Module:
    """Build a net with its masks and its published initial weights.

    Args:
        name: a key of `NETS`.
        task: classes, channels and image size; CIFAR-10's by default.
        seed: decides masks and weights, each from its own stream.
        **options: what the net reads, see `options_read`.

    Returns:
        A module from (N, C, H, W) to logits (N, classes).

    Raises:
        ValueError: an unknown name or option, or a combination that cannot be built.
    """
    chosen = _net(name)
    net = chosen.make(task or Task(), resolve(name, options), stream(seed, "masks"))
    chosen.init(net, stream(seed, "init"))
    return net
