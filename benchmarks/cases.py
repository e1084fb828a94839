"""The measured cases: a layer or a training step, computed the published way or ours."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import convert_conv2d_weight_memory_format

from perturblab.layers import Masks, Noise, PerturbConv2d
from perturblab.layers.kernels import published
from perturblab.models import build

Step = Callable[[], Any]


@dataclass(frozen=True)
class Way:
    """A way to compute a case.

    Args:
        published: all the maps, NCHW, plain eager, the default allocator.
        precision: "fp32" or "bf16".
        compile: through torch.compile.
    """

    published: bool = False
    precision: str = "fp32"
    compile: bool = False


WAYS = {
    "reference": Way(published=True),
    "fp32": Way(),
    "bf16": Way(precision="bf16"),
    "bf16 compiled": Way(precision="bf16", compile=True),
}


@dataclass(frozen=True)
class Layer:
    """Forward and backward pass of one perturbation layer on (batch, channels, size, size)."""

    nmasks: int
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    channels: int = 128
    size: int = 32

    def step(self, way: Way, device: str) -> Step:
        """Make the function that does one repetition."""
        noise = Noise(nmasks=self.nmasks, level=0.1, **self.options)
        generator = torch.Generator().manual_seed(0)
        size = (self.size, self.size)
        masks = Masks(self.channels, size, noise, generator=generator)
        layer = _lay_out(PerturbConv2d(masks, self.channels), way).to(device)
        x = _images((self.batch, self.channels, self.size, self.size), way, device).requires_grad_()
        dy = _images(tuple(x.shape), way, device)
        wanted = [x, *layer.parameters()]
        return _in(way, device, lambda: torch.autograd.grad(layer(x), wanted, dy))


@dataclass(frozen=True)
class Training:
    """A whole training step of one of the reproduction's experiments, at full width."""

    net: str
    options: dict[str, Any]
    batch: int

    def step(self, way: Way, device: str) -> Step:
        """Make the function that does one repetition."""
        net = _lay_out(build(self.net, seed=1, **self.options), way).to(device).train()
        trained = torch.compile(net) if way.compile else net
        optimizer = torch.optim.SGD(
            net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=not way.published
        )
        x = _images((self.batch, 3, 32, 32), way, device)
        y = torch.randint(10, (self.batch,), generator=torch.Generator().manual_seed(1)).to(device)

        def step() -> None:
            loss = cross_entropy(trained(x).float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return _in(way, device, step)


def _lay_out(net: nn.Module, way: Way) -> nn.Module:
    if not way.published:
        return convert_conv2d_weight_memory_format(net, torch.channels_last)
    for part in net.modules():
        if isinstance(part, Masks):  # the published order in memory: channel, mask, row, column
            part.stored.data = part.value.detach().contiguous().permute(2, 3, 1, 0)
    return net


def _images(shape: tuple[int, ...], way: Way, device: str) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device)
    return x if way.published else x.contiguous(memory_format=torch.channels_last)


def _in(way: Way, device: str, step: Step) -> Step:
    def inside() -> None:
        with ExitStack() as stack:
            if way.published:
                stack.enter_context(published())
            stack.enter_context(
                torch.autocast(torch.device(device).type, torch.bfloat16, enabled=way.precision == "bf16")
            )
            step()
        if device != "cpu":
            torch.cuda.synchronize()

    return inside


_P = {"nfilters": 128, "first_filter_size": 3}
CASES: dict[str, Layer | Training] = {
    "layer 128-128, 64 unique masks": Layer(64),
    "layer 128-128, 64 trained shared masks": Layer(64, {"unique": False, "trained": True}),
    "experiment 6, batch 16": Training("perturb_resnet18", {**_P, "nmasks": 64, "mix_maps": True, "level": 0.1}, 16),
    "experiment 8, batch 16": Training(
        "perturb_resnet18", {**_P, "nmasks": 64, "unique_masks": False, "train_masks": True, "level": 0.1}, 16
    ),
    "experiment 4, batch 64": Training("perturb_resnet18", {**_P, "filter_size": 1}, 64),
    "experiment 1, batch 64": Training("resnet18", {"nfilters": 44}, 64),
}
GROWTH = (1, 16, 64, 256)
