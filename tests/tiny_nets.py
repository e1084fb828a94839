"""The nets at a tiny width, and what their tests look at."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import seeded
from perturblab.layers import Masks
from perturblab.models import NETS, Task, build

P, N = "perturb_resnet18", "noiseresnet18"
SMALL = Task(4, 3, (8, 8))
RESNETS = sorted(net for net in NETS if "resnet" in net and net != "bottleneck_resnet")
FEW: dict[str, dict[str, Any]] = {"lbcnet": {"depth": 2}, "bottleneck_resnet": {"blocks": 2}}
FEW["batchout_mnist"] = {"padding": 2}  # the only one that takes images of any size


def tiny(net: str, task: Task = SMALL, **options: Any) -> nn.Module:
    return build(net, task=task, **{"nfilters": 3} | FEW.get(net, {}) | options)


def images(count: int = 2, channels: int = 3, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(count, channels, *size, generator=seeded(1))


def masks_of(net: nn.Module) -> list[Masks]:
    return [part for part in net.modules() if isinstance(part, Masks)]


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if "masks" not in key}


def assert_spread(values: Tensor, sd: float) -> None:
    assert abs(float(values.mean())) < 5 * sd / math.sqrt(values.numel())
    assert float(values.std()) == pytest.approx(sd, rel=5 / math.sqrt(values.numel()))


def assert_uniform(values: Tensor, bound: float) -> None:
    assert float(values.abs().max()) <= bound
    assert_spread(values, bound / math.sqrt(3))
