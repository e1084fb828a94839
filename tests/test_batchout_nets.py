"""The nets of BatchOut: sizes, published places, tied blocks, initial weights."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from perturblab.models import NETS, Task, build, published_sites
from tiny_nets import assert_spread, assert_uniform, images, tiny

# --- the nets of BatchOut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "options", "task", "parameters", "features"),
    [
        ("batchout_mnist", {"padding": 0}, Task(10, 1, (28, 28)), 160_362, 512),
        ("batchout_mnist", {}, Task(10, 1, (28, 28)), 234_090, 800),
        ("batchout_mnist", {"padding": 2}, Task(10, 1, (28, 28)), 430_698, 1_568),
        ("batchout_cifar", {}, Task(), 2_495_626, 4_096),
        ("batchout_cifar", {"padding": 0}, Task(), 922_762, 1_024),
        ("bottleneck_resnet", {"reading": "A"}, Task(), 98_048, 4_096),
        ("bottleneck_resnet", {}, Task(), 907_040, 4_096),
        ("vgg19", {}, Task(), 20_040_522, 512),
        ("vgg19_tied", {}, Task(), 4_694_346, 512),
    ],
    ids=str,
)
def test_batchout_nets_have_the_published_size(
    net: str, options: dict[str, Any], task: Task, parameters: int, features: int
) -> None:
    with torch.device("meta"):
        module = build(net, task=task, **options).eval()
        widths: list[int] = []
        module.flatten.register_forward_hook(lambda part, args, out: widths.append(out.shape[1]))
        module(torch.zeros(1, task.channels, *task.size))
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters
    assert widths == [features]


@pytest.mark.parametrize("net", sorted(NETS))
def test_published_sites_exist_and_come_in_the_order_of_the_forward_pass(net: str) -> None:
    module, called = tiny(net).eval(), list[str]()
    names = [name for name, _ in published_sites(net)]
    assert bool(names) == (net.startswith(("batchout", "bottleneck", "vgg")))
    for name in names:
        module.get_submodule(name).register_forward_hook(lambda part, args, out, name=name: called.append(name))
    module(images())
    assert called == names


def test_published_sites_of_the_paper_are_linear_maps_and_all_but_the_last() -> None:
    for net, count in (("batchout_mnist", 3), ("batchout_cifar", 7)):
        linear = [name for name, part in tiny(net).named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        assert [name for name, _ in published_sites(net)] == linear[:-1]
        assert len(linear) == count + 1
    assert [eta for _, eta in published_sites("batchout_cifar")] == ["U[0,0.1]"] * 4 + ["U[0,0.15]"] * 3


@torch.no_grad()
def test_tied_positions_are_modules_of_their_own_around_one_block() -> None:
    net, calls = tiny("vgg19_tied").eval(), dict[str, int]()
    for name, part in net.named_modules():
        part.register_forward_hook(lambda part, args, out, name=name: calls.update({name: calls.get(name, 0) + 1}))
    net(images())
    assert {calls[f"features.{position}"] for position in range(21)} == {1}
    assert {name: count for name, count in calls.items() if count > 1 and name.count(".") == 1} == {
        "shared.width4": 3,
        "shared.width8": 7,
    }
    assert sum(isinstance(part, nn.Conv2d) for part in net.modules()) == 8
    assert sum(isinstance(part, nn.BatchNorm2d) for part in net.modules()) == 8


@torch.no_grad()
def test_tied_net_is_the_true_one_with_equal_blocks_in_eval() -> None:
    tied, true = tiny("vgg19_tied").eval(), tiny("vgg19").eval()
    held = {1: 1, 4: 2, **dict.fromkeys((7, 8, 9), 4), **dict.fromkeys((12, 13, 14, 16, 17, 18, 19), 8)}
    state = true.state_dict()
    for key in state:
        kind, position, *rest = key.split(".")
        width = held.get(int(position)) if kind == "features" else None
        state[key] = tied.state_dict()[".".join(["shared", f"width{width}", *rest]) if width else key]
    true.load_state_dict(state, strict=True)
    assert torch.equal(tied(images()), true(images()))


@pytest.mark.parametrize("net", ["batchout_mnist", "batchout_cifar", "bottleneck_resnet"])
@torch.no_grad()
def test_the_papers_nets_start_as_pytorch_starts_them(net: str) -> None:
    for part in tiny(net, nfilters=16).modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            for values in part.parameters():
                assert_uniform(values, 1 / math.sqrt(part.weight[0].numel()))


@pytest.mark.parametrize("net", ["vgg19", "vgg19_tied"])
@torch.no_grad()
def test_vgg_starts_as_the_reproduction_starts_it(net: str) -> None:
    for part in tiny(net, nfilters=8).modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            assert_spread(part.weight, 0.01 if isinstance(part, nn.Linear) else math.sqrt(2 / (9 * part.out_channels)))
            assert not part.bias.count_nonzero()
