"""Layers replaced in nets that this project did not write: what comes out, what is kept."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foreign import FOREIGN, Functional, foreign, images, new, structure
from nets import seeded
from perturblab.layers import Masks, Noise, PerturbConv2d, perturb_layers, perturbify, substitute, trace
from perturblab.layers.surgery.substitute import Fit, Substitute, Substitution, fit

# --- what comes out -------------------------------------------------------------------------------------------------


@foreign
def test_every_larger_convolution_is_replaced_and_no_other(style: str) -> None:
    net, size = new(style), FOREIGN[style][1]
    before = {name: m for name, m in net.named_modules(remove_duplicate=False) if isinstance(m, nn.Conv2d)}
    done = perturbify(net, image_size=size)
    larger = {name for name, conv in before.items() if max(conv.kernel_size) > 1}
    after = dict(net.named_modules(remove_duplicate=False))
    assert larger
    assert {name for name in before if after[name] is not before[name]} == larger
    assert not any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in net.modules())
    assert {id(module) for module in done.replaced.values()} == {id(after[name]) for name in larger}
    assert set(done.left) == {name for name, conv in before.items() if max(conv.kernel_size) == 1}


@foreign
def test_it_trains(style: str) -> None:
    """A few steps in a loop that knows nothing of this package: the loss falls, every new weight has moved."""
    net = new(style)
    perturbify(net, image_size=FOREIGN[style][1], noise=Noise(level=0.3))
    y = torch.arange(10) % 5
    x = images(style, 10) + 3 * (y.view(-1, 1, 1, 1) == torch.tensor([0, 1, 2]).view(1, 3, 1, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    masks = [m.value.clone() for m in net.modules() if isinstance(m, Masks)]
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(not torch.equal(p, start[name]) for name, p in net.named_parameters())
    kept = [m.value for m in net.modules() if isinstance(m, Masks)]
    assert all(torch.equal(a, b) for a, b in zip(masks, kept, strict=True))


def by_hand(net: Functional, x: Tensor, level: float) -> Tensor:
    """The functional net after surgery, from the formula: y = sum V relu(x + level N), pixel by pixel, then pooling."""

    def layer(x: Tensor, perturb: PerturbConv2d, pool: int) -> Tensor:
        out = torch.empty(len(x), perturb.out_channels, *x.shape[2:])
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                maps = torch.relu(x[:, :, i, j] + level * perturb.masks.value[:, 0, i, j])
                out[:, :, i, j] = maps @ perturb.weight[:, :, 0, 0].T + (0 if perturb.bias is None else perturb.bias)
        rows, columns = (math.ceil(side / pool) for side in out.shape[2:])
        cells = [
            out[:, :, pool * i : pool * (i + 1), pool * j : pool * (j + 1)].amax((2, 3))
            for i in range(rows)
            for j in range(columns)
        ]
        return torch.stack(cells, 2).view(len(x), -1, rows, columns)

    x = layer(x[:, :, 2:-2, 2:-2], net.conv1.perturb, 1)  # a 5x5 convolution without padding loses two pixels a side
    x = layer(F.max_pool2d(F.relu(x), 2), net.conv2.perturb, 2)
    return net.fc(net.mix(F.relu(x)).mean((2, 3)))


@pytest.mark.parametrize("level", [0.0, 0.7])
@torch.no_grad()
def test_the_result_is_the_formula(level: float) -> None:
    """At level 0 this is the twin with 1x1 convolutions."""
    net = new("functional").eval()
    perturbify(net, image_size=(15, 13), noise=Noise(level=level))
    x = images("functional")
    torch.testing.assert_close(net(x), by_hand(net, x, level))


SIDES = st.integers(5, 12)
KERNELS = st.integers(1, 5)


@given(
    size=st.tuples(SIDES, SIDES),
    kernel=st.tuples(KERNELS, KERNELS),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    pool_type=st.sampled_from(["max", "avg", "stride", "overlap"]),
)
@settings(max_examples=150, deadline=None)
@torch.no_grad()
def test_any_convolution_keeps_its_shape(
    size: Any, kernel: Any, stride: Any, padding: Any, dilation: int, mode: str, pool_type: str
) -> None:
    conv = nn.Conv2d(2, 3, kernel, stride, padding, dilation, padding_mode=mode)
    x = torch.randn(2, 2, *size)
    try:
        want = conv(x).shape
    except RuntimeError:  # the kernel does not fit
        return
    made = substitute(conv, (size, tuple(want[2:])), Substitution(pool_type=pool_type), generator=seeded())
    assert made(x).shape == want
    perturb = made if isinstance(made, PerturbConv2d) else made.perturb
    padded = all(2 * p == dilation * (k - 1) for p, k in zip(padding, kernel, strict=True))
    if padded:  # as in the published nets: the layer at the size of its input, then the pooling
        assert perturb.masks.shape == (2, 1, *size)
        assert (type(made) is PerturbConv2d) == (stride == (1, 1))


@given(
    have=st.tuples(SIDES, SIDES),
    by=st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
)
@settings(deadline=None)
def test_fit_is_a_plain_loop(have: Any, by: Any, mode: str) -> None:
    """Cell i of the result is cell i - start of the input, where the start is half of what is added."""
    size = (have[0] + by[0], have[1] + by[1])
    x = torch.arange(1.0, 1 + math.prod(have)).view(1, 1, *have)

    def source(i: int, side: int, added: int) -> int | None:
        i -= added // 2 if added >= 0 else -(-added // 2)
        if 0 <= i < side:
            return i
        outside = {"zeros": None, "replicate": min(max(i, 0), side - 1), "circular": i % side}
        return outside.get(mode, -i if i < 0 else 2 * (side - 1) - i)

    rows = [source(i, have[0], by[0]) for i in range(size[0])]
    columns = [source(j, have[1], by[1]) for j in range(size[1])]
    want = [[0.0 if i is None or j is None else x[0, 0, i, j].item() for j in columns] for i in rows]
    assert fit(x, size, padding_mode=mode)[0, 0].tolist() == want


def test_several_masks_are_grouped_as_published() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=3))
    perturbify(net, image_size=(5, 7), noise=Noise(nmasks=4))
    assert [(layer.groups, tuple(layer.weight.shape)) for layer in (net[0], net[2])] == [
        (3, (6, 4, 1, 1)),
        (6, (6, 4, 1, 1)),
    ]
    assert net(torch.zeros(2, 3, 5, 7)).shape == (2, 6, 5, 7)


def test_one_mask_keeps_the_groups() -> None:
    net = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=3))
    perturbify(net, image_size=4)
    assert (net[0].groups, tuple(net[0].weight.shape)) == (3, (6, 2, 1, 1))


# --- what is kept ---------------------------------------------------------------------------------------------------


@foreign
def test_everything_else_is_the_very_same(style: str) -> None:
    net = new(style)
    others = {
        id(p): p.detach().clone()
        for m in net.modules()
        if not isinstance(m, nn.Conv2d) or max(m.kernel_size) == 1
        for p in (*m._parameters.values(), *m._buffers.values())
        if p is not None
    }
    perturbify(net, image_size=FOREIGN[style][1])
    kept = {id(t): t for t in net.state_dict(keep_vars=True).values()}
    assert others
    assert others.keys() <= kept.keys()
    assert all(torch.equal(kept[key], value) for key, value in others.items())


@foreign
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept(style: str, dtype: torch.dtype) -> None:
    net = new(style).to(dtype)
    perturbify(net, image_size=FOREIGN[style][1])
    assert {t.dtype for t in net.state_dict().values() if t.is_floating_point()} == {dtype}
    assert net.eval()(images(style).to(dtype)).dtype is dtype


@foreign
def test_device_is_kept(style: str) -> None:
    net = new(style).to("meta")
    perturbify(net, image_size=FOREIGN[style][1])
    assert all(t.is_meta for t in net.state_dict().values())


@foreign
def test_modes_are_kept(style: str) -> None:
    net = new(style).train()
    convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    for name in convs[1:]:
        net.get_submodule(name).eval()
    before = {name: module.training for name, module in net.named_modules()}
    perturbify(net, image_size=FOREIGN[style][1])
    assert {name: net.get_submodule(name).training for name in before} == before
    replaced = net.get_submodule(convs[1])
    assert not any(part.training for part in replaced.modules())


def test_frozen_stays_frozen_and_a_bias_keeps_its_values() -> None:
    net = new("functional")
    net.conv1.weight.requires_grad_(False)
    net.conv2.requires_grad_(False)
    bias = net.conv1.bias.detach().clone()
    perturbify(net, image_size=(15, 13))
    assert {name: p.requires_grad for name, p in net.named_parameters()} == {
        "conv1.perturb.weight": False,
        "conv1.perturb.bias": True,
        "conv2.perturb.weight": False,
        "mix.weight": True,
        "mix.bias": True,
        "fc.weight": True,
        "fc.bias": True,
    }
    assert torch.equal(net.conv1.perturb.bias, bias)
    assert net.conv2.perturb.bias is None


def test_trained_masks_of_a_frozen_layer_are_frozen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    net[0].requires_grad_(False)
    perturb_layers(net, trace(net, torch.zeros(1, 3, 4, 4)), Substitution(Noise(train_masks=True)), generator=seeded())
    assert [layer.masks.stored.requires_grad for layer in net] == [False, True]


def test_padding_mode_is_kept_where_it_still_means_something() -> None:
    net = new("nested")
    perturbify(net, image_size=(12, 8))
    fits = [module for module in net.modules() if isinstance(module, Fit)]
    assert [(part.size, part.padding_mode) for part in fits] == [((8, 10), "reflect")]


def test_a_replaced_layer_still_tells_its_geometry() -> None:
    """Nets that pad by themselves ask for kernel and stride, others for the type of the weight."""
    conv = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
    made = substitute(conv, ((8, 8), (4, 4)), Substitution(), generator=seeded())
    assert isinstance(made, Substitute)
    assert (made.kernel_size, made.stride, made.padding, made.in_channels) == ((7, 7), (2, 2), (3, 3), 3)
    assert made.weight is made.perturb.weight
    assert made.bias is None


def test_shared_layers_stay_shared() -> None:
    net = new("shared")
    done = perturbify(net, image_size=(8, 6))
    assert net.again is net.blocks[0][0] is net.blocks[1][0] is net.named["last"] is done.replaced["again"]
    assert set(done.replaced) == {"stem", "again", "blocks.0.0", "named.last"}
    weights = [name for name, _ in net.named_parameters() if name.endswith("again.weight")]
    assert weights == ["again.weight"]
    assert sum(p.numel() for p in net.again.parameters()) == 4 * 4 + 4


@foreign
def test_looking_changes_nothing(style: str) -> None:
    """Neither batch statistics, nor modes, nor the global random state."""
    net = new(style).train()
    before, state = structure(net), torch.get_rng_state()
    trace(net, images(style))
    assert structure(net) == before
    perturbify(net, image_size=FOREIGN[style][1])
    assert torch.equal(torch.get_rng_state(), state)


@foreign
def test_the_seed_decides(style: str) -> None:
    nets = [new(style) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        perturbify(net, image_size=FOREIGN[style][1], seed=seed)
    one, same, other = ({k: v.tolist() for k, v in net.state_dict().items()} for net in nets)
    drawn = [name for name in one if name.endswith(("masks.stored", "perturb.weight"))]
    assert drawn
    assert one == same
    assert all(one[name] != other[name] for name in drawn)


@foreign
def test_it_can_be_taken_back(style: str) -> None:
    net = new(style)
    before = structure(net)
    done = perturbify(net, image_size=FOREIGN[style][1])
    assert structure(net) != before
    for _ in range(2):
        done.undo()
        assert structure(net) == before


def test_the_state_goes_into_a_twin_made_the_same_way() -> None:
    one, two = new("nested", 0), new("nested", 1)
    for seed, net in enumerate((one, two)):
        perturbify(net, image_size=(12, 8), seed=seed)
    x = images("nested")
    assert not torch.equal(one.eval()(x), two.eval()(x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))
    assert torch.equal(copy.deepcopy(one)(x), one(x))


def test_it_says_what_it_did() -> None:
    done = perturbify(new("functional"), image_size=(15, 13), leave=["conv1"])
    assert str(done).splitlines() == ["conv2: Substitute", "conv1: left (as asked)", "mix: left (1x1)"]


@pytest.mark.parametrize("image_size", [8, (8, 8), (3, 8, 8), [8, 8]])
def test_ways_to_say_the_size(image_size: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    perturbify(net, image_size=image_size)
    assert net[0].masks.shape == (3, 1, 8, 8)
