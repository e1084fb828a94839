"""The perturbation layers against plain loops, closed forms and the published orders; defects D5, D6, D7 and D14."""

import logging
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import seeded
from perturblab.layers import (
    ACTIVATIONS,
    Masks,
    Noise,
    NoiseLayer,
    PerturbConv2d,
    PerturbLayer,
    PerturbLayerFirst,
    Shift,
    activation,
    draw_masks,
    perturb,
    perturb_conv2d,
    plain_layer,
    shift,
)
from perturblab.layers.kernels import perturbed_moments, published
from perturblab.models.skeleton import init_weights
from told import in_order

SELU, ALPHA = 1.0507009873554805, 1.6732632423543772
SCALAR: dict[str, Callable[[float], float]] = {
    "relu": lambda v: max(v, 0.0),
    "lrelu": lambda v: v if v > 0 else 0.01 * v,
    "prelu": lambda v: v if v > 0 else 0.25 * v,
    "rrelu": lambda v: v if v > 0 else v * (1 / 8 + 1 / 3) / 2,
    "elu": lambda v: v if v > 0 else math.expm1(v),
    "selu": lambda v: SELU * (v if v > 0 else ALPHA * math.expm1(v)),
    "tanh": math.tanh,
    "sigmoid": lambda v: 1 / (1 + math.exp(-v)),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def looped(x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor, act: str | None, outside: bool) -> Tensor:
    """y[n, o, h, w] = b[o] + sum over the (c, m) of its group of V[o, c, m] act(x[n, c, h, w] + N[c, m, h, w])."""
    function = SCALAR[act] if act else lambda v: v
    (batch, channels, height, width), nmasks = x.shape, masks.shape[1]
    out = torch.zeros(batch, len(weight), height, width, dtype=torch.float64)
    fan_in = weight.shape[1]
    for n, o, h, w in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        group = o // (len(weight) * fan_in // (channels * nmasks))  # outputs of a group stand side by side
        total = float(bias[o])
        for at in range(fan_in):
            c, m = divmod(group * fan_in + at, nmasks)
            mask = float(masks[c % len(masks), m, h % masks.shape[2], w % masks.shape[3]])
            value = float(x[n, c, h, w])
            total += float(weight[o, at, 0, 0]) * (function(value) + mask if outside else function(value + mask))
        out[n, o, h, w] = total
    return out


@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("unique", [True, False])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, 3) for _ in range(4))),
    nmasks=st.integers(1, 3),
    factor=st.integers(1, 2),
    grouped=st.booleans(),
    constant=st.booleans(),
)
def test_perturb_conv2d_agrees_with_a_loop(
    act: str | None,
    outside: bool,
    unique: bool,
    shape: tuple[int, ...],
    nmasks: int,
    factor: int,
    grouped: bool,
    constant: bool,
) -> None:
    channels, place = shape[1], (1, 1) if constant else shape[2:]
    masks = drawn(channels if unique else 1, nmasks, *place, seed=1)
    fan_in = nmasks if grouped else channels * nmasks
    x, weight, bias = drawn(*shape), drawn(channels * factor, fan_in, 1, 1, seed=2), drawn(channels * factor, seed=3)
    function = activation(act).double().eval() if act else None
    got = perturb_conv2d(x, masks, weight, bias, act=function, outside=outside)
    torch.testing.assert_close(got, looped(x, masks, weight, bias, act, outside), rtol=1e-12, atol=1e-12)


def test_every_activation_has_a_scalar_twin() -> None:
    assert SCALAR.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (6, 2, 3, 3), (3, 3, 1, 3), (3, 3)], ids=str)
def test_a_kernel_larger_than_1x1_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=in_order(f"weights {shape} expected 1x1")):
        perturb_conv2d(drawn(2, 3, 8, 8), drawn(3, shape[0] // 3, 8, 8), drawn(*shape))


@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
@pytest.mark.parametrize("outside", [False, True])
def test_perturb_conv2d_gradcheck(act: str | None, outside: bool) -> None:
    function = activation(act).double().eval() if act else None
    given = [drawn(2, 3, 2, 2), drawn(3, 2, 2, 2, seed=1), drawn(6, 2, 1, 1, seed=2), drawn(6, seed=3)]
    inputs = [tensor.requires_grad_() for tensor in given]
    assert torch.autograd.gradcheck(lambda *a: perturb_conv2d(*a, act=function, outside=outside), inputs)


def test_order_of_the_maps_is_channel_then_mask() -> None:
    x, masks = drawn(2, 3, 4, 5), drawn(3, 2, 4, 5, seed=1)
    maps = perturb(x, masks)
    assert all(torch.equal(maps[:, c * 2 + m], x[:, c] + masks[c, m]) for c in range(3) for m in range(2))
    shared = perturb(x, masks[:1])
    assert all(torch.equal(shared[:, c * 2 + m], x[:, c] + masks[0, m]) for c in range(3) for m in range(2))


@pytest.mark.parametrize(
    ("masks", "text"),
    [
        ((2, 1, 4, 5), "masks 2 channels 3"),
        ((3, 1, 5, 4), "masks 5 4 features 4 5 build"),
        ((3, 1, 4, 4), "masks 4 4 features 4 5 build"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)):
        perturb(torch.zeros(2, 3, 4, 5), torch.zeros(masks))


def made(kind: type[nn.Module] = PerturbConv2d, outputs: int = 6, **options: Any) -> nn.Module:
    settings = options.pop("settings", {})
    return kind(Masks(3, (4, 5), Noise(**options), generator=seeded(1)), outputs, **settings).double()


def test_first_layer_without_activation_is_a_1x1_convolution_plus_a_fixed_bias_map() -> None:
    layer, x = made(settings={"act": None}, level=0.7), drawn(2, 3, 4, 5)
    bias_map = torch.einsum("oc,chw->ohw", layer.weight[:, :, 0, 0], layer.masks.value[:, 0] * 0.7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias) + bias_map)


def test_untied_bias_is_a_bias_map_behind_the_activation() -> None:
    layer, x = made(untied_bias=True, level=0.7), drawn(2, 3, 4, 5)
    bias_map = F.conv2d(0.7 * layer.masks.value[:, 0].unsqueeze(0), layer.weight)
    torch.testing.assert_close(layer(x), F.conv2d(F.relu(x), layer.weight, layer.bias) + bias_map)


@pytest.mark.parametrize("kind", [PerturbConv2d, PerturbLayer, NoiseLayer, PerturbLayerFirst])
def test_untied_bias_is_never_dropped_in_silence(kind: type[nn.Module]) -> None:
    inside, outside = (made(kind, level=0.7, untied_bias=outside).eval() for outside in (False, True))
    outside.load_state_dict(inside.state_dict())
    assert not torch.allclose(inside(drawn(2, 3, 4, 5)), outside(drawn(2, 3, 4, 5)))


@pytest.mark.parametrize("constant", [True, False])
def test_constant_masks_know_no_place(constant: bool) -> None:
    layer, x = made(constant_masks=constant, nmasks=2, level=1.0), drawn(2, 3, 4, 5)
    assert torch.allclose(layer(x.roll((1, 2), (2, 3))), layer(x).roll((1, 2), (2, 3))) == constant


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("level", [0.0, 0.1, 2.0])
def test_masks_are_level_times_what_was_drawn(kind: str, level: float) -> None:
    masks = Masks(3, (4, 5), Noise(nmasks=2, level=level, noise_type=kind), generator=seeded(3))
    assert torch.equal(masks.value, draw_masks((3, 2, 4, 5), kind, seeded(3)))
    assert torch.equal(masks(), masks.value * level)


def test_moments_and_range_of_both_kinds() -> None:
    uniform, normal = (draw_masks((1, 1, 400, 500), kind, seeded()).double() for kind in ("uniform", "normal"))
    assert (uniform.min() >= -1, uniform.max() < 1) == (True, True)
    for values, moments in ((uniform, (0, 1 / 3, 0, 1 / 5)), (normal, (0, 1, 0, 3))):
        for power, moment in enumerate(moments, 1):
            assert values.pow(power).mean() == pytest.approx(moment, abs=0.06)
    assert uniform[..., :-1].mul(uniform[..., 1:]).mean().abs() < 0.004, "neighbours are correlated"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nmasks": 0}, "nmasks 0 1 mask"),
        ({"noise_type": "laplace"}, "noise_type laplace uniform normal"),
        ({"redraw_masks": "eval"}, "redraw_masks eval never train always"),
        ({"train_masks": True, "redraw_masks": "train"}, "masks trained redrawn"),
    ],
)
def test_noise_out_of_range_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)):
        Noise(**options)


def test_trained_masks_are_parameters_and_fixed_ones_buffers() -> None:
    fixed, trained = made(), made(train_masks=True)
    for layer, parameters, buffers in ((fixed, 0, 1), (trained, 1, 0)):
        assert sum(name == "masks.stored" for name, _ in layer.named_parameters()) == parameters
        assert sum(name == "masks.stored" for name, _ in layer.named_buffers()) == buffers
    assert fixed.state_dict().keys() == trained.state_dict().keys()
    trained.load_state_dict(fixed.state_dict())
    assert torch.equal(trained.masks.value, fixed.masks.value)


@pytest.mark.parametrize("redraw", ["train", "always"])
def test_redrawn_masks_resume_where_they_were_saved(redraw: str) -> None:
    masks, other = (Masks(3, (4, 5), Noise(redraw_masks=redraw), generator=seeded(seed)) for seed in (1, 2))
    seen = [masks() for _ in range(3)]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    other.load_state_dict(masks.state_dict())
    assert torch.equal(masks(), other())
    first = masks.eval()()
    assert torch.equal(first, masks()) == (redraw == "train")
    assert torch.equal(first, masks.value * 0.1) == (redraw == "train")
    twins = [Masks(3, (4, 5), Noise(redraw_masks=redraw), generator=seeded(1)) for _ in range(2)]
    assert torch.equal(*(twin() for twin in twins))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_redrawn_masks_keep_their_distribution(kind: str) -> None:
    masks = Masks(3, (30, 30), Noise(redraw_masks="always", noise_type=kind, level=1.0), generator=seeded(4))
    values = torch.stack([masks() for _ in range(20)])
    assert values.mean() == pytest.approx(0, abs=0.03)
    assert values.square().mean() == pytest.approx(1 / 3 if kind == "uniform" else 1, rel=0.04)


def test_masks_neither_read_nor_move_the_global_seed() -> None:
    masks = Masks(3, (4, 5), Noise(redraw_masks="always"), generator=seeded(1))
    before = torch.get_rng_state()
    Masks(3, (4, 5), Noise(redraw_masks="always"), generator=seeded(1))
    masks()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("first", [True, False])
def test_a_7x7_convolution_halves_the_map_only_in_front(first: bool) -> None:
    layer = plain_layer(3, 6, 7, first=first).eval()
    assert layer(torch.zeros(1, 3, 4, 5)).shape == ((1, 6, 2, 3) if first else (1, 6, 4, 5))


def test_a_filter_size_that_was_never_published_is_refused() -> None:
    with pytest.raises(ValueError, match=in_order("filter_size 4 0")):
        plain_layer(3, 6, 4)


@pytest.mark.parametrize(("size", "bias"), [(0, True), (1, True), (3, False), (5, False), (7, False)])
def test_only_1x1_convolutions_have_a_bias(size: int, bias: bool) -> None:
    layer = plain_layer(3, 6, size) if size else made(PerturbLayer)
    assert (layer[0].bias is not None) == bias


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=in_order("act gelu relu lrelu prelu rrelu elu selu")):
        activation("gelu")


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_defect_d5_every_place_has_its_own_activation(act: str) -> None:
    """One shared module made one PReLU slope serve three places and stand under three names."""
    layer = made(PerturbLayer, settings={"act": act, "mix_maps": True})
    places = [part for part in layer.modules() if type(part) is ACTIVATIONS[act]]
    assert len(places) == 3  # after the mask, after the batch norm, after the mixing
    slopes = [p for part in places for p in part.parameters()]
    assert len({id(p) for p in slopes}) == len(slopes) == (3 if act == "prelu" else 0)
    keys = [key for key, value in layer.state_dict().items() if value.shape == (1,)]
    assert len(keys) == len(slopes)


@pytest.mark.parametrize("kind", [PerturbConv2d, PerturbLayer, NoiseLayer, PerturbLayerFirst])
def test_defect_d6_groups_that_cannot_divide_are_refused_in_one_sentence(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=in_order("nmasks 2 128 3 channels multiple 3 nmasks 1")):
        made(kind, outputs=128, nmasks=2)
    assert made(kind, outputs=128, nmasks=1).eval()(drawn(1, 3, 4, 5)).shape == (1, 128, 4, 5)
    assert made(kind, outputs=129, nmasks=2).eval()(drawn(1, 3, 4, 5)).shape == (1, 129, 4, 5)


@pytest.mark.parametrize(("nmasks", "mix", "seen"), [(1, False, 3), (2, False, 1), (2, True, 3)])
def test_defect_d7_what_is_mixed_is_what_was_asked_for(nmasks: int, mix: bool, seen: int) -> None:
    """With several masks a map sees one input channel, so 1/3 of the weights: a choice to be seen, not a surprise."""
    layer = made(PerturbLayer, nmasks=nmasks, settings={"mix_maps": mix, "act": "elu"}).eval()
    x = drawn(1, 3, 4, 5).requires_grad_()
    for channel in range(6):
        (gradient,) = torch.autograd.grad(layer(x)[0, channel].sum(), x)
        touched = [c for c in range(3) if gradient[0, c].abs().max() > 0]
        assert len(touched) == seen
        assert seen == 3 or touched == [channel // 2]
    assert layer[0].weight.numel() == 6 * nmasks * (3 if nmasks == 1 else 1)


@pytest.mark.parametrize("nmasks", [1, 2, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"unique_masks": False}, {"constant_masks": True}], ids=str)
def test_defect_d14_debug_works_for_any_number_of_masks_and_channels(
    nmasks: int, channels: int, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    noise, x = Noise(nmasks=nmasks, level=1.0, **options), torch.randn(1, channels, 4, 5, generator=seeded())
    layer = PerturbConv2d(Masks(channels, (4, 5), noise, generator=seeded(1)), 6)
    layer(x)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "perturblab.debug"):
        layer(x)
        layer(x)
    assert len(caplog.records) == 2, "one message a step"
    text, mask = caplog.records[0].getMessage(), layer.masks()[0, 0, 0]
    shown = {"input": x[0, 0, 0, :2], "mask": mask[:2], "output": F.relu(x[0, 0, 0, :2] + mask[:2])}
    for name, values in shown.items():
        assert re.search(rf"^{name} .*{re.escape(str([round(v, 5) for v in values.tolist()]))}$", text, re.M), name


def test_debug_shows_the_second_mask_and_the_second_channel(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "perturblab.debug"):
        perturb(torch.arange(120.0).view(2, 3, 4, 5), torch.arange(80.0).view(1, 4, 4, 5))
    text = caplog.text
    assert "[0, 1] [20.0, 21.0]" in text.split("mask")[0], "second channel of the input"
    assert "mask (1, 4, 4, 5) [0, 1] [20.0, 21.0]" in text
    assert "output (2, 12, 4, 5) [0, 1] [20.0, 22.0]" in text, "first channel, second mask"
    assert "output (2, 12, 4, 5) [0, 4] [20.0, 22.0]" in text, "second channel, first mask"


def test_init_leaves_the_masks_alone() -> None:
    layer = made(train_masks=True)
    before = layer.masks.value.clone()
    init_weights(layer, seeded(9))
    assert torch.equal(before, layer.masks.value)


@pytest.mark.parametrize(
    "noise", [{}, {"unique_masks": False}, {"constant_masks": True}, {"train_masks": True}], ids=str
)
def test_statistics_of_perturbed_maps_follow_from_those_of_the_input(noise: dict[str, Any]) -> None:
    x = drawn(5, 3, 4, 6)
    masks = Masks(3, (4, 6), Noise(nmasks=7, level=0.8, **noise), generator=seeded(2)).double()()
    maps = perturb(x, masks)
    mean, variance = perturbed_moments(x, masks)
    torch.testing.assert_close(mean.flatten(), maps.mean((0, 2, 3)))
    torch.testing.assert_close(variance.flatten(), maps.var((0, 2, 3), correction=0))


@pytest.mark.parametrize("train", [True, False])
def test_the_replys_first_layer_in_pieces_is_the_published_one(train: bool) -> None:
    """Outputs, gradients, running statistics and the count of batches, over two forwards."""
    found = []
    for way in (published, nullcontext):
        layer, x = made(PerturbLayerFirst, nmasks=40, level=0.7, settings={"mix_maps": True}), drawn(4, 3, 4, 5)
        init_weights(layer, seeded(3))
        layer.norm.running_mean += 0.3
        layer.train(train)
        x.requires_grad_()
        with way():
            y = layer(x) + layer(2 * x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found.append([y, *gradients, *layer.state_dict().values()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_replys_first_layer_makes_no_map_larger_than_its_input_needs() -> None:
    layer, x, seen = made(PerturbLayerFirst, nmasks=40), drawn(4, 3, 4, 5), []
    layer.act.register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    layer(x)
    assert max(seen) <= max(x.numel(), 3 * 40 * 5)
    assert sum(seen) == 4 * 3 * 40 * 20


# --- shift --------------------------------------------------------------------------------------------------------


def looped_shift(x: Tensor) -> Tensor:
    """out[n, c, h, w] = x[n, c, h - dh, w - dw] where that is inside; channels share nine moves as evenly as can be."""
    moves = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    of_channel = sorted(c % 9 for c in range(x.shape[1]))
    out = torch.zeros_like(x)
    for n, c, h, w in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        row, column = h - moves[of_channel[c]][0], w - moves[of_channel[c]][1]
        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
            out[n, c, h, w] = x[n, c, row, column]
    return out


@pytest.mark.parametrize("channels", [1, 2, 8, 9, 10, 17, 18, 31])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 1), (5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_shift_agrees_with_a_loop_in_any_order_of_memory(
    channels: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """In single precision and channels-last order another way is taken; its gradient too is that of the copies."""
    x, weight = drawn(2, channels, *size).to(dtype), drawn(2, channels, *size, seed=1).to(dtype)
    want, gradients = looped_shift(x), []
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout).requires_grad_()
        got = shift(given)
        assert torch.equal(got, want)
        assert got.is_contiguous(memory_format=layout)
        gradients += torch.autograd.grad((got * weight).sum(), given)
    assert torch.equal(*gradients)
    crooked = drawn(2, channels, size[1], size[0]).transpose(2, 3)
    assert torch.equal(shift(crooked), looped_shift(crooked))
    assert torch.equal(shift(x.bfloat16()), looped_shift(x.bfloat16()))


def test_shift_looks_to_all_nine_sides_and_undoes_itself_inside() -> None:
    """The derivative moves back: the same as the shift with the channels in the order of the opposite sides."""
    x = torch.zeros(1, 9, 5, 5)
    x[:, :, 2, 2] = 1
    seen = shift(x).sum(1)[0]
    assert torch.equal(seen, F.pad(torch.ones(3, 3), (1, 1, 1, 1)))
    y = drawn(1, 9, 5, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(shift(y), y, drawn(1, 9, 5, 5, seed=1))
    opposite = [0, 2, 1, 4, 3, 8, 7, 6, 5]
    assert torch.equal(gradient, shift(drawn(1, 9, 5, 5, seed=1)[:, opposite])[:, opposite])


def test_shift_multiplies_nothing_where_that_is_counted() -> None:
    x = drawn(2, 12, 4, 4).float().contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 1] = torch.inf
    with published():
        assert torch.equal(shift(x), looped_shift(x))


def test_shift_is_exact_beside_what_is_not_finite_and_in_automatic_precision() -> None:
    x = torch.full((1, 9, 3, 3), torch.inf)
    assert not shift(x).isnan().any()
    with torch.autocast("cpu", torch.bfloat16):
        x = drawn(2, 12, 4, 4).float().contiguous(memory_format=torch.channels_last)
        assert torch.equal(Shift()(x), looped_shift(x))
        assert Shift()(x.bfloat16()).dtype is torch.bfloat16
