"""The fused perturbation: equal to the published computation on every path, forward and backward, without its maps."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernel_cases import (
    KINDS,
    LEVEL,
    PLACES,
    SIZES,
    Path2d,
    acts,
    assert_as_exact,
    assert_close,
    assert_same_bits,
    case,
    chunked_conv2d,
    needs_compiler,
    outcome,
    reference_conv2d,
    spied,
    truth,
    typed,
)
from nets import seeded
from perturblab.layers import ACTIVATIONS, Masks, Noise, PerturbConv2d
from perturblab.layers.kernels import native, perturb_conv2d, published


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ACTIVATIONS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(sizes=SIZES, ratio=st.integers(1, 9), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
@example(sizes=((17, 131, 3, 2), 9), ratio=9, kind="shared", seed=0)  # blocks of 4, 4 and 1 filters
@example(sizes=((9, 140, 2, 3), 2), ratio=7, kind="unique", seed=0)  # of 4, 2 and 1
@example(sizes=((1, 1, 1, 1), 2), ratio=1, kind="unique", seed=0)
def test_native_is_the_reference(
    act: str, dtype: torch.dtype, sizes: tuple[Any, ...], ratio: int, kind: str, seed: int
) -> None:
    given, function = typed(case(*sizes, ratio, kind, seed), dtype), acts()[act]
    frozen = ("masks",) if kind == "constant" else ()
    assert native.usable(given["x"], given["masks"], function)
    got, true = outcome(perturb_conv2d, given, function, frozen=frozen), truth(given, function, frozen=frozen)
    assert got["y"].dtype == dtype
    if dtype == torch.bfloat16:
        assert_close(got, true, 1e-2)
    else:
        plain = outcome(reference_conv2d, given, function, frozen=frozen)
        assert_close(got, plain, 1e-5)
        assert_as_exact(got, plain, true)


@pytest.mark.parametrize("act", ["elu", "selu", "sigmoid", "tanh"])
def test_gradients_keep_their_digits_where_the_slope_is_small(act: str) -> None:
    """Far below 0 the slope of ELU is exp(z): computed as value + 1 it would have lost its digits."""
    given = {**case((4, 5, 4, 3)), "x": -10 - case((4, 5, 4, 3))["x"].abs(), "dy": torch.ones(4, 10, 4, 3)}
    given["masks"] = given["masks"].clamp(-1 / LEVEL, 1 / LEVEL)
    runs = [outcome(path, given, acts()[act]) for path in (perturb_conv2d, reference_conv2d)]
    assert_as_exact(*runs, truth(given, acts()[act]))


@needs_compiler
def test_long_sums_keep_their_digits() -> None:
    given = {**case((64, 16, 32, 32)), "dy": torch.ones(64, 32, 32, 32)}
    got, true = outcome(perturb_conv2d, given, nn.Sigmoid()), truth(given, nn.Sigmoid())
    assert_close(got, true, 3e-6)  # 65,536 values of one sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("act", "outside"), [*((name, False) for name in ACTIVATIONS), (None, False), (None, True), ("tanh", True)]
)
@pytest.mark.parametrize("path", [perturb_conv2d, chunked_conv2d], ids=["chosen", "chunked"])
def test_every_other_path_is_the_reference(
    path: Path2d, act: str | None, outside: bool, kind: str, dtype: torch.dtype
) -> None:
    given, function = typed(case(kind=kind), dtype), acts()[act] if act else None
    true = truth(given, function, outside=outside)
    if dtype == torch.float64:
        function = function and function.double()
        return assert_close(outcome(path, given, function, outside=outside), true, 1e-13)
    plain = outcome(reference_conv2d, given, function, outside=outside)
    return assert_as_exact(outcome(path, given, function, outside=outside), plain, true)


class Doubled(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    act = nn.ReLU()
    act.register_forward_hook(lambda _module, _given, out: 2 * out)
    return act


CHOICES: dict[str, tuple[Any, dict[str, Any], str]] = {
    **{name: (act, {}, "native") for name, act in acts().items()},
    "bfloat16": (nn.ReLU(), {}, "native"),
    "shared": (nn.ReLU(), {"kind": "shared"}, "native"),
    "one mask": (nn.ReLU(), {"nmasks": 1}, "reference"),
    "rrelu in training": (nn.RReLU(), {}, "chunked"),
    "float64": (nn.ReLU(), {}, "chunked"),
    "constant, trained": (nn.ReLU(), {"kind": "constant"}, "chunked"),
    "a slope a channel": (nn.PReLU(5), {}, "chunked"),
    "elu with alpha": (nn.ELU(0.5), {}, "chunked"),
    "a function": (torch.sin, {}, "chunked"),
    "another module": (nn.Softplus(), {}, "chunked"),
    "a subclass": (Doubled(), {}, "chunked"),
    "a hook": (hooked(), {}, "chunked"),
    "no activation": (None, {}, "_bias_map"),
    "untied bias": (nn.ReLU(), {}, "_bias_map"),
}


@needs_compiler
@pytest.mark.parametrize("name", CHOICES)
def test_the_way_that_is_meant_is_chosen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, options, want = CHOICES[name]
    outside, called = name == "untied bias", spied(monkeypatch)
    given = typed(case(**options), {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(name, torch.float32))
    got = outcome(perturb_conv2d, given, act, outside=outside)
    assert want in called[0]
    assert len(called) == 1 or want == "chunked", "nothing else is computed"
    if name != "rrelu in training":
        limit = 1e-2 if name == "bfloat16" else 1e-6
        assert_close(got, truth(given, act, outside=outside), limit)


def test_published_forces_the_reference_and_ends_with_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        with published():
            outcome(perturb_conv2d, case(), lambda x: x + "")

    called = spied(monkeypatch)
    with published():
        with pytest.raises(TypeError):
            fail()
        outcome(perturb_conv2d, case(), None)
    with pytest.raises(TypeError):
        fail()
    outcome(perturb_conv2d, case(), None)
    assert called == [*["reference.perturb"] * 3, "fused._bias_map"]


@needs_compiler
@pytest.mark.parametrize("mask_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unique", [True, False])
def test_the_kink_lies_where_the_reference_has_it(unique: bool, mask_type: torch.dtype) -> None:
    """x lies one step below, at and above the kink of each mask; the bits of dx say which masks let dy through."""
    channels, nmasks, height, width = 37, 8, 5, 3
    drawn = torch.randn(channels if unique else 1, nmasks, height, width, generator=seeded(0))
    masks = drawn.to(mask_type)
    kinks = -(masks.float() * LEVEL).expand(channels, -1, -1, -1).transpose(0, 1)  # (M, C, H, W)
    far = torch.full_like(kinks, torch.inf)
    x = torch.cat([kinks.nextafter(-far), kinks, kinks.nextafter(far)])
    weight = (2.0 ** torch.arange(nmasks)).repeat(channels).view(channels, nmasks, 1, 1)
    given = {"x": x, "masks": masks, "weight": weight, "bias": torch.zeros(channels), "dy": torch.ones_like(x)}
    below, at, above = outcome(perturb_conv2d, given, nn.ReLU(), frozen=("masks",))["x"].int().split(nmasks)
    bit = 2 ** torch.arange(nmasks, dtype=torch.int32).view(-1, 1, 1, 1)
    assert not (at & bit).any(), "the gradient at the kink is 0"
    assert not (below & bit).any()
    assert bool((above & bit).all())
    plain = outcome(reference_conv2d, {**given, "masks": masks.float()}, nn.ReLU(), frozen=("masks",))
    assert torch.equal(torch.cat([below, at, above]), plain["x"].int())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
@pytest.mark.parametrize(("name", "value"), [("x", NAN), ("x", INF), ("x", -INF), ("dy", NAN), ("dy", INF)])
def test_what_diverges_is_seen(name: str, value: float, act: str | None) -> None:
    """A NaN or infinity comes out in all the places where the reference has one."""
    given, function = case((4, 20, 5, 4)), acts()[act] if act else None
    given[name][1, 2, 3, 1] = value
    got, want = (outcome(path, given, function) for path in (perturb_conv2d, reference_conv2d))
    assert value == value or any(bool(v.isnan().any()) for v in want.values())
    seen = [key for key in want if not torch.equal(got[key].isfinite(), want[key].isfinite())]
    assert seen == []
    if act:  # a bias map says inf where a sum over the masks says inf - inf
        assert [key for key in want if not torch.equal(got[key].isnan(), want[key].isnan())] == []


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda v: v.contiguous(memory_format=torch.channels_last),
    "transposed": lambda v: v.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda v: torch.stack([v, v + 1], 4).flatten(3)[..., ::2],
    "masks as stored": lambda v: native.as_stored(v).permute(3, 2, 0, 1),
}


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ["prelu", "elu"])
def test_the_layout_does_not_change_a_bit(act: str, layout: str) -> None:
    given = case((9, 20, 5, 4))
    changed = {name: LAYOUTS[layout](v) if v.ndim == 4 else v for name, v in given.items()}
    assert all(torch.equal(changed[name], v) for name, v in given.items())
    got, want = (outcome(perturb_conv2d, tensors, acts()[act]) for tensors in (changed, given))
    assert_same_bits(got, want, but=("bias",))  # torch sums it, in the order in which it lies
    assert got["y"].is_contiguous(memory_format=torch.channels_last)
    assert got["x"].is_contiguous(memory_format=torch.channels_last)


@needs_compiler
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_same_bits_twice_with_an_expanded_gradient_and_with_frozen_inputs(act: str) -> None:
    given = {**case((9, 20, 5, 4)), "dy": torch.ones(9, 40, 5, 4)}
    full = outcome(perturb_conv2d, given, acts()[act])
    assert_same_bits(outcome(perturb_conv2d, given, acts()[act]), full)
    summed = outcome(lambda **k: perturb_conv2d(**k).sum(), {**given, "dy": torch.ones(())}, acts()[act])
    assert_same_bits(summed, full, but=("y", "bias"))
    for frozen in (("x",), ("masks",), ("weight",), ("x", "masks"), ("weight", "bias", "masks")):
        want = {name: value for name, value in full.items() if name not in frozen}
        assert_same_bits(outcome(perturb_conv2d, given, acts()[act], frozen=frozen), want)
    with torch.no_grad():
        y = perturb_conv2d(**{name: given[name] for name in PLACES}, level=LEVEL, act=acts()[act])
    assert torch.equal(y, full["y"])


@pytest.mark.parametrize("act", [None, nn.ReLU(), nn.PReLU(), nn.Tanh(), nn.Softplus()], ids=str)
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("halves", [("masks",), ("x", "weight", "bias"), PLACES], ids="-".join)
def test_masks_and_features_may_differ_in_type(halves: tuple[str, ...], outside: bool, act: Any) -> None:
    given = typed(case(), torch.bfloat16, halves)
    got = outcome(perturb_conv2d, given, act, outside=outside)
    assert [name for name in PLACES if got[name].dtype != given[name].dtype] == []
    assert_close(got, truth(given, act, outside=outside), 1e-2)


@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast(dtype: torch.dtype, act: str | None) -> None:
    given, function = typed(case(), dtype, ("x",)), acts()[act] if act else None
    rounded = typed(given, torch.bfloat16, ("weight", "bias"))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(outcome(perturb_conv2d, given, function), truth(rounded, function), 1e-2)


def test_the_default_type_of_torch_does_not_matter() -> None:
    want = outcome(perturb_conv2d, case(), nn.PReLU())
    given, act = case(), nn.PReLU()
    torch.set_default_dtype(torch.float64)
    try:
        got = outcome(perturb_conv2d, given, act)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(got, want)


@needs_compiler
@pytest.mark.parametrize(
    ("mask_type", "of_masks", "stored"),  # every pair of choices
    [
        (torch.float32, True, True),
        (torch.float32, False, False),
        (torch.bfloat16, True, False),
        (torch.bfloat16, False, True),
    ],
    ids=str,
)
def test_the_operators_say_the_truth_about_themselves(mask_type: torch.dtype, of_masks: bool, stored: bool) -> None:
    given, below = case((2, 3, 2, 4)), torch.tensor([0.25])
    masks = (native.as_stored(given["masks"]).permute(3, 2, 0, 1) if stored else given["masks"]).to(mask_type)
    x, weight = given["x"].contiguous(memory_format=torch.channels_last), given["weight"]
    torch.library.opcheck(native._backward, (given["dy"], x, masks, weight, below, LEVEL, "leaky_relu", of_masks, True))
    masks.requires_grad_(of_masks)
    for bias in (None, given["bias"].requires_grad_()):
        trained = [x.requires_grad_(), masks, weight.requires_grad_(), bias, below.requires_grad_()]
        torch.library.opcheck(native._forward, (*trained, LEVEL, "leaky_relu"))


class Largest(TorchDispatchMode):
    """Counts the values of the largest tensor that an operator returns."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, list | tuple) else [out]:
            if isinstance(value, Tensor):
                self.count = max(self.count, value.numel())
        return out


@pytest.mark.parametrize("shape", [(8, 4, 8, 7), (1, 4, 9, 8), (33, 2, 1, 3), (2, 3, 2, 2)])
@pytest.mark.parametrize("nmasks", [2, 5, 9])
def test_pieces_are_no_larger_than_the_features(shape: tuple[int, ...], nmasks: int) -> None:
    given = case(shape, nmasks, ratio=1)
    _, channels, _, width = shape
    limit = max(2 * given["x"].numel(), channels * nmasks * width, given["masks"].numel(), 64)
    for act in (nn.PReLU(), nn.RReLU(), nn.Tanh()):
        with Largest() as largest:
            outcome(chunked_conv2d, given, act)
        assert largest.count <= limit
    with Largest() as largest:
        outcome(reference_conv2d, given, nn.PReLU())
    assert largest.count >= given["x"].numel() * nmasks, "the measure sees the maps"


@needs_compiler
@pytest.mark.parametrize("kind", KINDS[:2])
def test_native_makes_nothing_larger_than_what_it_is_given(kind: str) -> None:
    given, below = case((32, 32, 8, 8), nmasks=4, ratio=1, kind=kind), torch.tensor([0.25])
    x, masks, weight = (given[name] for name in ("x", "masks", "weight"))
    with Largest() as largest:  # inside the operators, which a mode does not see otherwise
        native._forward._init_fn(x, masks, weight, None, below, LEVEL, "leaky_relu")
        native._backward._init_fn(given["dy"], x, masks, weight, below, LEVEL, "leaky_relu", True, True)
    assert 0 < largest.count <= max(x.numel(), given["dy"].numel(), masks.numel(), 16 * weight.numel())


@pytest.mark.parametrize("act", [nn.PReLU(), nn.PReLU(3), nn.RReLU(), nn.Sigmoid(), nn.ELU(0.5)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_pieces(act: nn.Module, kind: str) -> None:
    """Random slopes too: the maps that are made again for the gradient are those of the forward pass."""
    given, act = typed(case((2, 3, 2, 1), 2, 2, kind), torch.float64), copy.deepcopy(act).double()

    def function(*tensors: Tensor) -> Tensor:
        torch.manual_seed(0)  # the slopes of RReLU
        return chunked_conv2d(*tensors[:4], level=LEVEL, act=act)

    leaves = [given[name].requires_grad_() for name in PLACES]
    assert torch.autograd.gradcheck(function, [*leaves, *act.parameters()])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when its compiler is imported
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("act", ["relu", "prelu", "rrelu"])
def test_compiled_with_torch_it_gives_the_same_numbers(act: str, trained: bool) -> None:
    noise, generator = Noise(nmasks=3, level=LEVEL, train_masks=trained), seeded(0)
    layer = PerturbConv2d(Masks(5, (4, 3), noise, generator=generator), 10, act=act).eval()
    x, paths = case()["x"].requires_grad_(), (layer, torch.compile(layer, fullgraph=True))
    results = []
    for y in (path(x) for path in paths):
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        results.append({str(i): v.detach() for i, v in enumerate([y, *gradients])})
    assert_close(results[1], results[0], 1e-5)
