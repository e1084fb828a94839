"""Layers replaced in nets that this project did not write: what is kept, what is refused, all or nothing."""

import copy
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from perturblab.layers import (
    BatchOut,
    Masks,
    Mixing,
    Noise,
    PerturbConv2d,
    batchout_at,
    find_sites,
    perturb_layers,
    perturbify,
    place_batchout,
    replace_layers,
    substitute,
    trace,
)
from perturblab.layers.substitute import Fit, Substitute, fit


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Functional(nn.Module):
    """Everything but the layers with weights is a function; odd sizes, a stride, no padding in front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 5)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.mix = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(F.relu(self.conv2(x)), 0.5, self.training)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.mix(x), 1), 1))


class Shared(nn.Module):
    """One convolution under three names and called three times, one block in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        block = nn.Sequential(self.again, nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([block, block])
        self.named = nn.ModuleDict({"last": self.again, "head": nn.Linear(4, 5)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.named["head"](self.named["last"](x).mean((2, 3)))


def nested() -> nn.Module:
    """Sequential in Sequential; every way to treat an edge."""
    deep = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"), nn.Sequential(nn.BatchNorm2d(4)))
    ends = [nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2), nn.Conv2d(4, 8, 2, stride=2)]
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
    net = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1)), deep), *ends, head)
    net(torch.zeros(2, 3, 12, 8))
    return net


FOREIGN: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "functional": (Functional, (15, 13)),
    "shared": (Shared, (8, 6)),
    "nested": (nested, (12, 8)),
}
foreign = pytest.mark.parametrize("style", FOREIGN)


def new(style: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FOREIGN[style][0]()


def images(style: str, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *FOREIGN[style][1], generator=generator(5))


def structure(model: nn.Module) -> list[Any]:
    """All that surgery may not change where it fails: the very modules, tensors and their values, modes, hooks."""
    found: list[Any] = []
    for name, module in model.named_modules(remove_duplicate=False):
        found.append((name, id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks)))
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.append((name, id(tensor), tensor.requires_grad, tensor.dtype, tensor.detach().clone().tolist()))
    return found


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
    perturbify(net, image_size=FOREIGN[style][1], nmasks=1, level=0.3)
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
    perturbify(net, image_size=(15, 13), level=level)
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
    made = substitute(conv, (size, tuple(want[2:])), Noise(), pool_type=pool_type, generator=generator())
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
    perturbify(net, image_size=(5, 7), nmasks=4)
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
    perturb_layers(net, trace(net, torch.zeros(1, 3, 4, 4)), Noise(trained=True), generator=generator())
    assert [layer.masks.stored.requires_grad for layer in net] == [False, True]


def test_padding_mode_is_kept_where_it_still_means_something() -> None:
    net = new("nested")
    perturbify(net, image_size=(12, 8))
    fits = [module for module in net.modules() if isinstance(module, Fit)]
    assert [(part.size, part.padding_mode) for part in fits] == [((8, 10), "reflect")]


def test_a_replaced_layer_still_tells_its_geometry() -> None:
    """Nets that pad by themselves ask for kernel and stride, others for the type of the weight."""
    conv = nn.Conv2d(3, 4, 7, stride=2, padding=3, bias=False)
    made = substitute(conv, ((8, 8), (4, 4)), Noise(), generator=generator())
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


# --- what is refused, and leaves the model untouched ----------------------------------------------------------------


class Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, weight=self.kernel, padding=1)


class ByFunction(nn.Module):
    """A kernel of its own, convolved by a function, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 3, 3, padding=1), Kernel()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x))


def by(convolve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A net with a kernel of its own, convolved in this way."""

    class By(ByFunction):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(convolve(x, self.inner.kernel))

    return By


def conv2d_as_packet(x: Tensor, kernel: Tensor) -> Tensor:
    return torch.ops.aten.conv2d(x, kernel, padding=(1, 1))


def as_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    pair = (1, 1)
    return torch.convolution(x, weight=kernel, bias=None, stride=pair, padding=pair, dilation=pair, **NOT_TRANSPOSED)


@torch.inference_mode()
def inferred(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel, padding="same")


NOT_TRANSPOSED: dict[str, Any] = {"transposed": False, "output_padding": (0, 0), "groups": 1}


@pytest.mark.parametrize(
    ("convolve", "calls"),
    [
        (conv2d_as_packet, 1),
        (as_convolution, 1),
        (inferred, 1),
        (lambda x, kernel: F.conv2d(x, kernel[..., :1, :1]), 0),
        (lambda x, kernel: F.conv_transpose2d(x, kernel, padding=1), 0),
        (lambda x, kernel: F.conv1d(x[..., 0], kernel[..., 0], padding=1)[..., None], 0),
    ],
)
def test_functions_are_noticed_however_they_are_called(convolve: Any, calls: int) -> None:
    assert trace(by(convolve)(), torch.zeros(1, 3, 8, 8)).functions == ({"": calls} if calls else {})


def test_a_compiled_model_is_watched_like_another() -> None:
    net = torch.compile(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), backend="eager")
    assert list(perturbify(net, image_size=8).replaced) == ["_orig_mod.0"]


def test_an_example_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"^Functional does not run on \(1x2x8x8, more=int\): .*give what its forward"):
        trace(new("functional"), torch.zeros(1, 2, 8, 8), more=3)


class Forgets(nn.Module):
    """Has a layer that it does not call, and one whose weight it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.forgotten = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + F.interpolate(self.head(F.max_pool2d(x, 2)), scale_factor=2)


class Hides(nn.Module):
    """Keeps its layer in a plain list too, and calls that one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.hidden = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


class Asks(nn.Module):
    """Needs something that only a convolution of its own kind has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.weight[0, 0, 2, 2]


class NormConv(nn.Conv2d):
    """A norm and an activation of its own, as detectron2 has them."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.norm, self.activation = nn.BatchNorm2d(3), F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(super().forward(x)))


class ScaledConv(nn.Conv2d):
    """A gain and a mask of its own, used where a convolution is computed."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(3, 1, 1, 1))
        self.register_buffer("mask", torch.ones(3, 1, 1, 1))
        self.register_parameter("shift", None)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * self.gain * self.mask, bias)


class OffsetConv(nn.Conv2d):
    """A convolution with another one inside."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.offset = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.offset(x))


class RenamedConv(nn.Conv2d):
    """Another class and nothing else: as good as the original."""


def carrying() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    net[0].register_buffer("scale", torch.ones(3))
    return net


def patched() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    net[0].forward = torch.zeros_like
    return net


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(192, 2))
    batchout_at(net, "0", generator=generator())
    return net


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 3, padding=1)))


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(192, 2))
    prune.l1_unstructured(net[2], "weight", 0.5)
    return net


def locked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    net.lock = threading.Lock()
    return net


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1)))


def tied() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 3, 3, padding=1))
    net[1].weight = net[0].weight
    return net


def one_by_one() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))


REFUSED: list[tuple[Callable[[], nn.Module], dict[str, Any], str]] = [
    (ByFunction, {}, r"^inner\(\) calls conv2d as a function \(1 in a pass\), which is no layer to replace; name"),
    (Forgets, {}, "^forgotten is not called as a layer in the forward pass, so its size is unknown; name"),
    (Pyramid, {}, "^head sees features of 8x8 and 4x4, and masks have one size; name"),
    (Hides, {}, "^the model goes past the new conv, it keeps the old one elsewhere; nothing was changed$"),
    (Asks, {}, r"^the model does not run with the new layers \(index 2 .*\); nothing was changed$"),
    (hooked, {}, r"^0 has hooks \(BatchOut, weight norm, \.\.\.\), which would be lost; remove them first; name"),
    (lambda: nn.Sequential(NormConv()), {}, "^0 is a NormConv with its own forward, norm, which would be lost; "),
    (
        lambda: nn.Sequential(ScaledConv(), NormConv()),
        {"give_up": ["1"]},
        "^0 is a ScaledConv with its own forward, gain, mask, which would be lost; name it in give_up= to replace it",
    ),
    (lambda: nn.Sequential(OffsetConv()), {}, "^0 is a OffsetConv with its own forward, offset, which would be lost"),
    (carrying, {}, "^0 is a Conv2d with scale, which would be lost; name it in give_up= to replace it all the same; "),
    (patched, {}, "^0 is a Conv2d with its own forward, which would be lost"),
    (Functional, {"give_up": ["nope*"], "image_size": 15}, "^no module is called 'nope\\*'; there are conv1, conv2"),
    (
        old_weight_norm,
        {},
        r"^0 holds a computed weight \(the old weight_norm, pruning, \.\.\.\), which PyTorch does not",
    ),
    (old_weight_norm, {"leave": ["0"]}, "^0 holds a computed weight .*; make it plain first, as"),
    (pruned, {}, "^2 holds a computed weight .*; make it plain first, as"),
    (locked, {}, "^Sequential cannot be copied, and a copy is what is watched: cannot pickle .*; take out what"),
    (
        Functional,
        {"image_size": (2, 8, 8)},
        r"^Functional does not run on \(1x2x8x8\): .*channels.*; give what its forward takes, by",
    ),
    (parametrized, {}, "^0 is parametrized, which would be lost; name"),
    (tied, {}, "^0 shares its weights with 1, and a perturbation layer cannot; name"),
    (one_by_one, {}, r"^Sequential has no convolution to replace \(left: 0, 1x1, 1, 1x1\); nothing was changed$"),
    (Functional, {"leave": ["conv*"], "image_size": 15}, "^Functional has no convolution to replace"),
    (Functional, {"leave": ["nope*"], "image_size": 15}, "^no module is called 'nope\\*'; there are conv1, conv2"),
    (Functional, {"nmasks": 2, "image_size": 15}, "^conv1: nmasks 2 groups .* multiple of 3, or nmasks 1; or name it"),
    (Functional, {"nmasks": 0, "image_size": 15}, "^nmasks is 0"),
    (Functional, {"image_size": (3, 15, 15, 1)}, r"^image_size is .*; expected S, \(H, W\) or \(C, H, W\)"),
    *[
        (Functional, {"image_size": size}, f"^image_size is {re.escape(repr(size))}; expected S")
        for size in (0, "32", 3.5, None, True, (3, 8, True), (8, 8.0), (8, "8"), {}, 1j)
    ],
    (lambda: nn.Sequential(nn.Linear(2, 2)), {}, "^Sequential has no convolution; there is nothing to turn"),
    (lambda: nn.Conv2d(3, 3, 3), {}, "^the model itself is a convolution; put it into a torch.nn.Sequential first"),
    (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), {}, "^0 is lazy and has no weights yet; call the model once"),
]


@pytest.mark.parametrize(("make", "options", "text"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_refused_leaves_the_model_untouched(make: Any, options: dict[str, Any], text: str) -> None:
    net = make()
    lazy = isinstance(net, nn.Sequential) and isinstance(net[0], nn.LazyConv2d)
    before = None if lazy else structure(net)
    with pytest.raises(ValueError, match=text) as caught:
        perturbify(net, **{"image_size": 8, **options})
    assert "\n" not in str(caught.value)
    assert lazy or structure(net) == before


def test_all_that_is_wrong_is_told_at_once() -> None:
    net = nn.Sequential(OrderedDict(a=ByFunction(), b=Forgets()))
    with pytest.raises(ValueError, match=r"a\.inner\(\) calls .*b\.forgotten is not called"):
        perturbify(net, image_size=8)
    done = perturbify(net, image_size=8, leave=["a.inner", "*.forgotten"])
    assert set(done.replaced) == {"a.first", "b.used"}
    assert done.left == {
        "a.inner()": "as asked",
        "b.forgotten": "as asked",
    }


def test_what_a_convolution_has_of_its_own_is_given_up_by_name() -> None:
    net = nn.Sequential(OrderedDict(a=NormConv(), b=OffsetConv(), c=RenamedConv(3, 3, 3, padding=1), d=ScaledConv()))
    done = perturbify(net, image_size=8, give_up=["a", "b*"], leave=["d"])
    assert dict(done.given_up) == {"a": "its own forward, norm", "b": "its own forward, offset"}
    assert str(done).splitlines() == [
        "a: PerturbConv2d (given up: its own forward, norm)",
        "b: PerturbConv2d (given up: its own forward, offset)",
        "c: PerturbConv2d",
        "d: left (as asked)",
    ]
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 3, 8, 8)


class Mixed(nn.Module):
    """A function and a layer side by side, in the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.conv = nn.Parameter(torch.ones(3, 3, 3, 3)), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.kernel, padding=1))


def test_functions_alone_can_be_left() -> None:
    with pytest.raises(ValueError, match=r"^\(\) calls conv2d as a function"):
        perturbify(Mixed(), image_size=8)
    done = perturbify(Mixed(), image_size=8, leave=["()"])
    assert (set(done.replaced), done.left) == ({"conv"}, {"()": "as asked"})
    net = nn.Sequential(Mixed())
    done = perturbify(net, image_size=8, leave=["0()"])
    assert (set(done.replaced), done.left) == ({"0.conv"}, {"0()": "as asked"})
    assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


class Brittle(dict[str, nn.Module]):
    """Takes one replacement, and fails at the second."""

    left = 1

    def __setitem__(self, key: str, value: nn.Module) -> None:
        if key in self and not self.left:
            self.left = 2  # what is put back afterwards is taken
            raise MemoryError(key)
        self.left -= 1
        super().__setitem__(key, value)


def test_a_failure_half_way_leaves_the_model_untouched() -> None:
    net = new("nested")
    modules = Brittle(net._modules)
    net._modules = modules
    net.add_module("more", nn.Identity())
    modules.left = 1
    before = structure(net)
    with pytest.raises(MemoryError):
        replace_layers(net, lambda name, module: nn.ReLU() if isinstance(module, nn.Conv2d) else None)
    assert structure(net) == before


@pytest.mark.parametrize("wrong", [KeyError("rule"), KeyboardInterrupt()])
def test_a_rule_or_a_check_that_fails_leaves_the_model_untouched(wrong: BaseException) -> None:
    def fails(*args: Any) -> None:
        raise wrong

    net = new("nested")
    before = structure(net)
    with pytest.raises(type(wrong)):
        replace_layers(net, lambda name, module: fails() if name == "2" else None)
    with pytest.raises(type(wrong)):
        replace_layers(net, lambda name, module: nn.ReLU() if name == "2" else None, check=fails)
    assert structure(net) == before


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="the rule matches none of the 4 layers of Functional; there are conv1, conv2"):
        replace_layers(new("functional"), lambda name, module: None)


# --- any rule -------------------------------------------------------------------------------------------------------


def test_any_layer_can_be_replaced() -> None:
    net = new("shared").double().eval()
    net.blocks[0][1].requires_grad_(False)
    done = replace_layers(net, lambda name, m: nn.GroupNorm(2, 4) if isinstance(m, nn.BatchNorm2d) else None)
    norm = net.blocks[0][1]
    assert isinstance(norm, nn.GroupNorm)
    assert set(done.replaced) == {"blocks.0.1"}, "inside a shared block there is one place"
    assert norm.weight.dtype is torch.float64
    assert not norm.weight.requires_grad
    assert not norm.training


def test_a_layer_can_be_wrapped_and_stays_itself() -> None:
    net = new("functional").train()
    conv = net.conv2.eval().requires_grad_(False)

    def behind(name: str, module: nn.Module) -> nn.Module | None:
        return nn.Sequential(module, BatchOut(generator=generator())) if name == "conv2" else None

    replace_layers(net, behind)
    assert net.conv2[0] is conv
    assert not any(p.requires_grad for p in conv.parameters())
    assert not net.conv2[1].training, "as the layer whose place it takes"
    assert net(images("functional")).shape == (2, 5)


def test_the_inside_of_what_is_replaced_is_not_asked_about() -> None:
    asked: list[str] = []

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        asked.append(name)
        return nn.Identity() if name == "0" else None

    replace_layers(nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())), rule)
    assert asked == ["0", "1", "1.0"]


# --- BatchOut -------------------------------------------------------------------------------------------------------


@foreign
@pytest.mark.parametrize("rule", ["all", "last", nn.Conv2d], ids=str)
def test_batchout_in_a_net_of_any_style(style: str, rule: Any) -> None:
    """A rule is the same as the mapping of what it finds; in eval the net answers as before, in training it mixes."""
    nets = [new(style), new(style)]
    x, want = images(style, 6), new(style).eval()(images(style, 6))
    mixing = Mixing(eta=0.5, k=1.0, partners="mutual")
    placed = batchout_at(nets[0], rule, mixing, generator=generator())
    batchout_at(nets[1], dict.fromkeys(find_sites(nets[1], rule), mixing), generator=generator())
    assert placed.names == tuple(find_sites(new(style), rule))
    assert torch.equal(nets[0].eval()(x), want)
    for module in nets[0].modules():  # no dropout, no batch statistics: only what is mixed differs
        module.training = bool("batchout_draws" in module._buffers)
    assert not torch.allclose(nets[0](x), want)
    assert {k: v.tolist() for k, v in nets[1].state_dict().items()}.keys() == nets[0].state_dict().keys()
    placed.remove()
    assert torch.equal(nets[0].eval()(x), want)


def test_batchout_after_surgery() -> None:
    net = new("functional")
    perturbify(net, image_size=(15, 13))
    placed = batchout_at(net, ["conv1", "conv2"], generator=generator())
    assert placed.names == ("conv1", "conv2")
    net.train()(images("functional"))
    assert [int(net.get_submodule(name).get_buffer("batchout_draws")[1]) for name in placed.names] == [1, 1]


def test_a_mapping_says_all_by_itself() -> None:
    with pytest.raises(ValueError, match="a mapping says by itself what happens at each place"):
        batchout_at(new("functional"), {"conv1": Mixing()}, Mixing(), generator=generator())


def test_the_former_name_still_works_and_warns() -> None:
    nets = [new("functional"), new("functional")]
    batchout_at(nets[0], {"conv1": Mixing()}, generator=generator())
    with pytest.warns(DeprecationWarning, match="place_batchout is called batchout_at; it goes with version 0.3"):
        place_batchout(nets[1], {"conv1": Mixing()}, generator=generator())
    assert torch.equal(nets[0].conv1.batchout_draws, nets[1].conv1.batchout_draws)


# --- nets of others -------------------------------------------------------------------------------------------------

# Each as small as its library lets it be: (name in transformers, configuration, image size).
WIDTHS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
TRANSFORMERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("ResNet", "ForImageClassification", {**WIDTHS, "layer_type": "basic"}, 32),
    ("RegNet", "ForImageClassification", {**WIDTHS, "groups_width": 4}, 32),
    ("Bit", "ForImageClassification", {**WIDTHS, "num_groups": 4, "global_padding": "same"}, 32),
    ("ConvNext", "ForImageClassification", STAGES, 32),
    ("MobileNetV1", "ForImageClassification", {"image_size": 32, "depth_multiplier": 0.25}, 32),
    ("MobileNetV2", "ForImageClassification", {"image_size": 32, "depth_multiplier": 0.35}, 32),
    ("ViT", "ForImageClassification", {**VIT, "image_size": 32}, 32),
    ("Segformer", "ForSemanticSegmentation", {**STAGES, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}, 64),
]
NO_TRANSFORMERS = "transformers is not installed (extra dev): its image models are not cut"
NO_DIFFUSERS = "diffusers is not installed (extra dev): its U-Net is not cut"


@pytest.mark.parametrize(("name", "task", "config", "size"), TRANSFORMERS, ids=lambda value: str(value)[:12])
def test_image_models_of_transformers(name: str, task: str, config: dict[str, Any], size: int) -> None:
    library = pytest.importorskip("transformers", reason=NO_TRANSFORMERS)
    torch.manual_seed(0)
    model = getattr(library, name + task)(getattr(library, f"{name}Config")(**config, num_labels=5)).eval()
    larger = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    others = {n: t.clone() for n, t in model.state_dict().items() if n.rpartition(".")[0] not in larger}
    x = torch.randn(2, 3, size, size, generator=generator())
    want = model(x).logits
    standardised = [n for n, m in model.named_modules() if type(m).__name__ == "WeightStandardizedConv2d"]
    assert bool(standardised) == (name == "Bit")
    done = perturbify(model, image_size=size, level=0.5, give_up=standardised)
    assert list(done.replaced) == larger
    assert {n for n in standardised if n in larger} == done.given_up.keys()
    after = model.state_dict()
    assert all(torch.equal(after[n], value) for n, value in others.items())
    out = model.train()(x).logits
    assert out.shape == want.shape
    out.float().square().mean().backward()
    new_weights = [module.weight for module in model.modules() if isinstance(module, PerturbConv2d)]
    assert len(new_weights) == len(larger)
    assert all(weight.grad is not None for weight in new_weights)
    done.undo()
    for n, value in others.items():  # the training pass has moved the batch statistics
        model.state_dict()[n].copy_(value)
    assert torch.equal(model.eval()(x).logits, want)


def test_the_u_net_of_diffusers() -> None:
    """Called with an image and a time, so it is traced with both."""
    library = pytest.importorskip("diffusers", reason=NO_DIFFUSERS)
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    net = library.UNet2DModel(sample_size=16, block_out_channels=(8, 16), layers_per_block=1, **blocks)
    x = torch.randn(2, 3, 16, 16, generator=generator())
    done = perturb_layers(net, trace(net, x, timestep=3), Noise(kind="normal"), act="elu", generator=generator())
    assert len(done.replaced) == 20
    assert all(why == "1x1" for why in done.left.values())
    assert net(x, timestep=3).sample.shape == x.shape
