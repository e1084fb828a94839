"""Local binary convolution: what is drawn, what is learned, what the net makes of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import seeded
from perturblab.layers import AnchorConv2d, LocalBinaryConv2d, draw_anchors, local_binary_conv2d
from perturblab.models import Task, build
from perturblab.models.lbcnet import Identity
from perturblab.models.skeleton import init_weights
from told import in_order


def layer(**options: object) -> LocalBinaryConv2d:
    return LocalBinaryConv2d(3, 4, 5, generator=seeded(), **options)


def looped(x: Tensor, anchors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    (batch, _, height, width), reach = x.shape, anchors.shape[-1] // 2
    out = torch.zeros(batch, len(weight), height, width, dtype=torch.float64)
    for n, h, w in torch.cartesian_prod(*map(torch.arange, (batch, height, width))).tolist():
        for m, anchor in enumerate(anchors):
            response = 0.0
            for c, dh, dw in torch.cartesian_prod(*map(torch.arange, anchor.shape)).tolist():
                row, column = h + dh - reach, w + dw - reach
                if 0 <= row < height and 0 <= column < width:
                    response += float(anchor[c, dh, dw] * x[n, c, row, column])
            out[n, :, h, w] += weight[:, m, 0, 0] * max(response, 0.0)
    return out + bias.view(-1, 1, 1)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_local_binary_conv2d_agrees_with_a_loop(kernel: int) -> None:
    g = seeded(kernel)
    x, weight, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 2, 3, 4), (3, 4, 1, 1), (3,)))
    anchors = draw_anchors((4, 2, kernel, kernel), "binary", 0.9, g).double()
    torch.testing.assert_close(local_binary_conv2d(x, anchors, weight, bias), looped(x, anchors, weight, bias))


@pytest.mark.parametrize(
    ("sparsity", "percent"), [(0.5, 39.35), (0.9, 59.34), (0.1, 9.516), (0.001, 0.09995), (1.0, 63.21)]
)
def test_non_zeros_are_those_of_draws_with_replacement(sparsity: float, percent: float) -> None:
    anchors = draw_anchors((704, 384, 3, 3), "binary", sparsity, seeded(1))
    count, share = anchors.numel(), 1 - math.exp(-sparsity)
    assert set(anchors.unique().tolist()) == {-1.0, 0.0, 1.0}
    nonzero = int(anchors.count_nonzero())
    assert nonzero <= int(sparsity * count)
    spread = 5 * math.sqrt(share * (1 - share) / count)
    assert nonzero / count == pytest.approx(share, abs=spread)
    assert share == pytest.approx(percent / 100, rel=1e-3)
    assert abs(float(anchors.sum())) < 5 * math.sqrt(nonzero), "as many +1 as -1"


def test_draws_with_replacement_are_not_bernoulli() -> None:
    """floor(s N) draws: one draw of one place never gives none or two, which a coin for each place would."""
    counts = [int(draw_anchors((1, 1, 3, 3), "binary", 0.12, seeded(seed)).count_nonzero()) for seed in range(50)]
    assert set(counts) == {1}
    twice = [int(draw_anchors((1, 1, 3, 3), "binary", 0.23, seeded(seed)).count_nonzero()) for seed in range(300)]
    assert set(twice) == {1, 2}
    assert twice.count(1) == pytest.approx(300 / 9, abs=5 * math.sqrt(300 * 8 / 81))


def test_every_place_and_both_signs_are_drawn_alike() -> None:
    anchors = torch.stack([draw_anchors((1, 1, 3, 3), "binary", 0.5, seeded(seed)) for seed in range(2000)])
    share = anchors.abs().mean(0).flatten()
    want = 1 - (8 / 9) ** 4
    assert share.tolist() == pytest.approx([want] * 9, abs=5 * math.sqrt(want * (1 - want) / 2000))


def test_non_zeros_of_a_filter_in_the_cifar10_recipe() -> None:
    anchors = draw_anchors((704, 384, 3, 3), "binary", 0.001, seeded(2))
    assert float(anchors.abs().sum((1, 2, 3)).mean()) == pytest.approx(3.45, abs=0.1)


def test_gaussian_anchors_are_dense_and_standard() -> None:
    anchors = draw_anchors((64, 64, 3, 3), "gaussian", 0.5, seeded())
    assert anchors.count_nonzero() == anchors.numel()
    assert anchors.mean() == pytest.approx(0, abs=0.03)
    assert anchors.var() == pytest.approx(1, abs=0.04)
    assert anchors.pow(4).mean() == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(
    ("kind", "sparsity", "text"),
    [
        ("ternary", 0.5, "anchors ternary binary gaussian"),
        ("binary", 0.0, "sparsity 0.0 (0 1]"),
        ("binary", 1.5, "sparsity 1.5 (0 1]"),
        ("binary", math.nan, "sparsity nan (0 1]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(kind: str, sparsity: float, text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)):
        draw_anchors((1, 1, 3, 3), kind, sparsity, seeded())


@pytest.mark.parametrize("anchors", ["binary", "gaussian"])
def test_anchors_are_fixed_and_the_1x1_is_learned(anchors: str) -> None:
    module = layer(anchors=anchors)
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]
    assert [name for name, _ in module.named_buffers()] == ["anchors"]
    fixed, weight = module.anchors.clone(), module.weight.detach().clone()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1)
    module(torch.randn(2, 3, 6, 6, generator=seeded(1))).square().sum().backward()
    optimiser.step()
    init_weights(module, seeded(2))
    assert torch.equal(module.anchors, fixed)
    assert not torch.equal(module.weight, weight)
    assert not module.anchors.requires_grad


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_anchors_alone_are_what_the_binary_convolution_has_before_its_relu(groups: int) -> None:
    """With every output taken as it is: the loop, its ReLU undone by asking for both signs."""
    x = torch.randn(2, 4, 3, 5, generator=seeded(1), dtype=torch.float64)
    module = AnchorConv2d(4, 8, groups=groups, generator=seeded()).double()
    assert module.anchors.shape == (8, 4 // groups, 3, 3)
    assert torch.equal(module.anchors, draw_anchors((8, 4 // groups, 3, 3), "binary", 0.5, seeded()).double())
    dense = torch.zeros(8, 4, 3, 3, dtype=torch.float64)
    for out in range(8):
        first = out // (8 // groups) * (4 // groups)
        dense[out, first : first + 4 // groups] = module.anchors[out]
    keep, nothing = torch.eye(8, dtype=torch.float64).view(8, 8, 1, 1), torch.zeros(8, dtype=torch.float64)
    want = looped(x, dense, keep, nothing) - looped(-x, dense, keep, nothing)
    torch.testing.assert_close(module(x), want)
    assert not list(module.parameters())


def test_anchors_of_one_channel_each_may_be_empty() -> None:
    anchors = AnchorConv2d(20_000, 20_000, groups=20_000, generator=seeded()).anchors
    empty = float((anchors.abs().sum((1, 2, 3)) == 0).double().mean())
    assert empty == pytest.approx(math.exp(-4.5), abs=0.003)


@pytest.mark.parametrize(("groups", "text"), [(0, "groups 0"), (3, "groups 3 4 channels 6")])
def test_groups_that_cannot_divide_are_refused(groups: int, text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)):
        AnchorConv2d(4, 6, groups=groups, generator=seeded())


def test_the_block_keeps_its_sign_and_its_size() -> None:
    """BN, anchors, ReLU, 1x1, + identity, and no ReLU after the sum."""
    net = build("lbcnet", nfilters=4, nweights=6, depth=3, full=8, task=Task(size=(7, 9))).eval()
    blocks = [block for block in net.modules() if isinstance(block, Identity)]
    assert len(blocks) == 3
    x = torch.randn(2, 4, 7, 9, generator=seeded())
    for block in blocks:
        first, second = block.body
        assert isinstance(first, nn.BatchNorm2d)
        want = x + F.conv2d(F.relu(F.conv2d(first(x), second.anchors, padding=1)), second.weight, second.bias)
        torch.testing.assert_close(block(x), want)
        assert want.min() < 0
    assert len({tuple(block.body[1].anchors.flatten().tolist()) for block in blocks}) == 3, "blocks share anchors"


@pytest.mark.parametrize(("size", "cells"), [((32, 32), 36), ((28, 28), 25), ((5, 5), 1), ((9, 14), 2)])
def test_the_linear_layer_sees_whole_5x5_cells(size: tuple[int, int], cells: int) -> None:
    net = build("lbcnet", nfilters=4, nweights=6, depth=1, full=8, task=Task(3, 1, size)).eval()
    linear = next(part for part in net.modules() if isinstance(part, nn.Linear))
    assert linear.in_features == 4 * cells
    assert net(torch.zeros(1, 1, *size)).shape == (1, 3)


@pytest.mark.parametrize("size", [(4, 32), (32, 4), (1, 1)])
def test_images_below_5x5_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=in_order("images 5x5 5x5")):
        build("lbcnet", task=Task(size=size))
