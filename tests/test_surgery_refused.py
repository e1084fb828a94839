"""Mistakes that surgery refuses: the message names it, and the model stays untouched."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from foreign import Functional, new, structure
from nets import seeded
from perturblab.layers import Noise, batchout_at, perturbify, replace_layers, trace
from told import in_order

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
    with pytest.raises(ValueError, match=in_order("Functional (1x2x8x8 more=int) forward")):
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
    batchout_at(net, "0", generator=seeded())
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
    (ByFunction, {}, "inner() conv2d function 1 name"),
    (Forgets, {}, "forgotten forward size name"),
    (Pyramid, {}, "head 8x8 4x4 masks size name"),
    (Hides, {}, "past conv nothing changed"),
    (Asks, {}, "layers index 2 nothing changed"),
    (hooked, {}, "0 hooks remove name"),
    (lambda: nn.Sequential(NormConv()), {}, "0 NormConv forward norm"),
    (
        lambda: nn.Sequential(ScaledConv(), NormConv()),
        {"give_up": ["1"]},
        "0 ScaledConv forward gain mask name give_up= replace",
    ),
    (lambda: nn.Sequential(OffsetConv()), {}, "0 OffsetConv forward offset"),
    (carrying, {}, "0 Conv2d scale name give_up= replace"),
    (patched, {}, "0 Conv2d forward"),
    (Functional, {"give_up": ["nope*"], "image_size": 15}, "module nope* conv1 conv2"),
    (
        old_weight_norm,
        {},
        "0 computed weight weight_norm pruning",
    ),
    (old_weight_norm, {"leave": ["0"]}, "0 weight plain first"),
    (pruned, {}, "2 weight plain first"),
    (locked, {}, "Sequential copied"),
    (
        Functional,
        {"image_size": (2, 8, 8)},
        "Functional (1x2x8x8) channels forward",
    ),
    (parametrized, {}, "0 parametrized name"),
    (tied, {}, "0 weights 1 name"),
    (one_by_one, {}, "Sequential 0 1x1 1 1x1 nothing changed"),
    (Functional, {"leave": ["conv*"], "image_size": 15}, "Functional convolution replace"),
    (Functional, {"leave": ["nope*"], "image_size": 15}, "module nope* conv1 conv2"),
    (Functional, {"noise": Noise(nmasks=2), "image_size": 15}, "conv1 nmasks 2 groups multiple 3 nmasks 1 name"),
    (Functional, {"image_size": (3, 15, 15, 1)}, "image_size S (H W) (C H W)"),
    *[
        (Functional, {"image_size": size}, f"image_size {size!r} S")
        for size in (0, "32", 3.5, None, True, (3, 8, True), (8, 8.0), (8, "8"), {}, 1j)
    ],
    (lambda: nn.Sequential(nn.Linear(2, 2)), {}, "Sequential convolution nothing"),
    (lambda: nn.Conv2d(3, 3, 3), {}, "convolution torch.nn.Sequential"),
    (lambda: nn.Sequential(nn.LazyConv2d(3, 3)), {}, "0 lazy weights call once"),
]


@pytest.mark.parametrize(("make", "options", "text"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_refused_leaves_the_model_untouched(make: Any, options: dict[str, Any], text: str) -> None:
    net = make()
    lazy = isinstance(net, nn.Sequential) and isinstance(net[0], nn.LazyConv2d)
    before = None if lazy else structure(net)
    with pytest.raises(ValueError, match=in_order(text)) as caught:
        perturbify(net, **{"image_size": 8, **options})
    assert "\n" not in str(caught.value)
    assert lazy or structure(net) == before


def test_all_that_is_wrong_is_told_at_once() -> None:
    net = nn.Sequential(OrderedDict(a=ByFunction(), b=Forgets()))
    with pytest.raises(ValueError, match=in_order("a.inner() b.forgotten")):
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
    with pytest.raises(ValueError, match=in_order("() conv2d function")):
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
    with pytest.raises(ValueError, match=in_order("none 4 layers Functional conv1 conv2")):
        replace_layers(new("functional"), lambda name, module: None)
