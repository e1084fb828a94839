"""Defects of the published code that the nets do not have: D1 to D4 and D8."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets import seeded
from perturblab.layers import NoiseLayer
from perturblab.models import NETS, Task, build
from perturblab.models.skeleton import init_weights
from tiny_nets import SMALL, N, P, assert_spread, assert_uniform, images, masks_of, tiny

# --- defects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [N, P])
@torch.no_grad()
def test_defect_d1_masks_are_state(net: str, tmp_path: Path) -> None:
    """They were in no state dict, so a resumed run drew others."""
    module, other = tiny(net, seed=1).eval(), tiny(net, seed=2).eval()
    keys = [key for key in module.state_dict() if key.endswith("masks.stored")]
    assert len(keys) == len(masks_of(module)) == (16 if net == N else 17)
    assert not torch.equal(module(images()), other(images()))
    torch.save(module.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(module(images()), other(images()))
    assert all(masks.value.is_meta for masks in masks_of(copy.deepcopy(module).to("meta")))


@pytest.mark.parametrize("net", [net for net in sorted(NETS) if net.startswith("noise")])
def test_defect_d2_noise_nets_train_on_the_cpu(net: str) -> None:
    """The masks' assignment raised a TypeError there."""
    module = tiny(net)
    assert {value.device.type for value in module.state_dict().values()} == {"cpu"}
    F.cross_entropy(module(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    assert any(isinstance(part, NoiseLayer) for part in module.modules())


@pytest.mark.parametrize("net", [P, "perturb_resnet50"])
@pytest.mark.parametrize("act", ["relu", "lrelu", "prelu", "rrelu", "elu", "selu", "tanh", "sigmoid"])
def test_defect_d3_backward_works_with_every_activation(net: str, act: str) -> None:
    """The sum in place on the output of an activation is refused by today's autograd."""
    module = tiny(net, act=act)
    F.cross_entropy(module(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("resnet50", {}),
        (P, {"first_filter_size": 3, "nmasks": 8, "mix_maps": True, "nfilters": 24}),
        (N, {"code": "up"}),
        ("lenet", {"filter_size": 5}),
        ("lbcnet", {"nweights": 32}),
    ],
)
@torch.no_grad()
def test_defect_d4_initial_weights_are_fan_out_without_regard_to_groups(net: str, options: dict[str, Any]) -> None:
    """As published, and said so: N(0, 2 / (k k out)) for convolutions, PyTorch's defaults for the rest."""
    module = tiny(net, **{"nfilters": 16} | options)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            want = math.sqrt(2 / (part.kernel_size[0] ** 2 * part.out_channels))
            assert_spread(part.weight, want)
        if isinstance(part, nn.Linear):
            assert_uniform(part.weight, 1 / math.sqrt(part.in_features))
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            assert_uniform(part.bias, 1 / math.sqrt(part.weight[0].numel()))
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (part.weight.unique().tolist(), part.bias.unique().tolist()) == ([1.0], [0.0])


@torch.no_grad()
def test_defect_d4_k7_starts_at_an_eighth_in_its_first_stage() -> None:
    net = build(P, nfilters=128, first_filter_size=3, nmasks=64, unique_masks=False, task=SMALL)
    conv = net.layer1[0].body[0][0]
    assert conv.weight.shape == (128, 64, 1, 1)
    assert float(conv.weight.std()) == pytest.approx(0.125, rel=0.05)


def test_init_moves_neither_masks_nor_anchors() -> None:
    for net, part in ((tiny(P, train_masks=True), "masks"), (tiny("lbcnet"), "anchors")):
        before = {key: value.clone() for key, value in net.state_dict().items()}
        init_weights(net, seeded(9))
        same = [key for key, value in net.state_dict().items() if part in key and torch.equal(value, before[key])]
        assert len(same) == sum(part in key for key in before) > 0


@pytest.mark.parametrize(
    ("net", "options"),
    [
        *((P, {"first_filter_size": 7, "filter_size": inner}) for inner in (0, 1, 3, 5, 7)),
        *((P, {"first_filter_size": 3, "filter_size": inner}) for inner in (5, 7)),
        (P, {"first_filter_size": 5}),
        *((net, {"filter_size": size}) for net in ("lenet", "cifarnet") for size in (5, 7)),
        *((net, {"first_filter_size": size}) for net in ("lenet", "cifarnet") for size in (5, 7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (9, 14)], ids=str)
def test_defect_d8_every_filter_size_works(net: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    module = tiny(net, Task(10, 3, size), **options)
    out = module(images(2, size=size))
    assert out.shape == (2, 10)
    out.square().sum().backward()
