"""The same promises for every layer and every net of `cases.py`."""

import copy
import inspect
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import perturblab.layers
from cases import CASES, LAYERS, NET_ROWS, Case
from nets import seeded
from perturblab.layers import AnchorConv2d, LocalBinaryConv2d, Masks
from perturblab.layers.kernels import published
from perturblab.models import NETS
from second import LEVEL


def over(cases: list[Case]) -> pytest.MarkDecorator:
    assert cases, "an empty list of cases would pass without a test"
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


MAPS = [case for case in CASES if case.second]  # with an input; `Masks` has none
MASKED = [case for case in MAPS if case.masks and not case.anchors]
DRAWN = [case for case in CASES if case.masks]
STATEFUL = [case for case in CASES if not case.stateless]
STEADY = [case for case in MAPS if case.random != "always"]


def shaken(module: nn.Module, seed: int = 5) -> nn.Module:
    """Give batch norms and slopes values of their own, so that no two of them can be exchanged unnoticed."""
    generator = seeded(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.3, generator=generator)
                part.running_mean.normal_(0, 0.3, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
            elif isinstance(part, nn.PReLU):
                part.weight.uniform_(0.1, 0.9, generator=generator)
    return module


def drawn_values(module: nn.Module) -> list[Tensor]:
    masks = [part.value.detach() for part in module.modules() if isinstance(part, Masks)]
    return masks + [part.anchors for part in module.modules() if isinstance(part, LocalBinaryConv2d | AnchorConv2d)]


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_every_exported_layer_and_every_net_has_a_row() -> None:
    exported = [getattr(perturblab.layers, name) for name in perturblab.layers.__all__]
    layers = {thing for thing in exported if inspect.isclass(thing) and issubclass(thing, nn.Module)}
    assert layers
    assert {case.covers for case in LAYERS} == layers
    assert {case.covers for case in NET_ROWS} == set(NETS)
    assert len({case.name for case in CASES}) == len(CASES)


@over(CASES)
@torch.no_grad()
def test_shape_for_odd_and_oblong_sizes_and_a_batch_of_one(case: Case) -> None:
    for size, count in (((7, 10), 1), ((9, 5), 3), ((1, 1), 1), (case.shape[1:], 2)):
        size = (max(size[0], case.smallest), max(size[1], case.smallest))
        batch = (count,) if case.second else ()
        out = case.new(size=size).eval()(*case.inputs(count, size=size))
        assert out.shape == (*batch, *case.out(*size)), size


@over(CASES)
@torch.no_grad()
def test_dtype_is_kept(case: Case) -> None:
    module = case.new().eval()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert module.to(dtype)(*(x.to(dtype) for x in case.inputs())).dtype is dtype


@over(STATEFUL)
def test_to_moves_every_parameter_and_buffer(case: Case) -> None:
    module = case.new().to("meta")
    assert module.state_dict()
    assert all(tensor.is_meta for tensor in module.state_dict().values())


@over(STATEFUL)
@torch.no_grad()
def test_state_dict_goes_round_bit_for_bit(case: Case, tmp_path: Path) -> None:
    module = shaken(case.new(1)).eval()
    state, x = module.state_dict(), case.inputs()
    torch.save(state, tmp_path / "torch")
    safetensors.torch.save_file(state, tmp_path / "safetensors")
    ways = (
        state,
        torch.load(tmp_path / "torch", weights_only=True),
        safetensors.torch.load_file(tmp_path / "safetensors"),
    )
    other, got = case.new(2).eval(), []
    for loaded in ways:
        for value in other.state_dict().values():
            value.zero_()
        other.load_state_dict(loaded, strict=True)
        assert same_state(module, other)
        got.append(other(*x))
    want = module(*x)  # at last: a counter of draws is part of the state
    assert all(torch.equal(want, out) for out in got)


@over(STATEFUL)
def test_same_seed_same_bits_another_seed_others(case: Case) -> None:
    torch.manual_seed(1)
    first = case.new(7)
    torch.manual_seed(2)  # a global seed must not matter
    assert same_state(first, case.new(7))
    other = case.new(8)
    assert not same_state(first, other)
    pairs = list(zip(drawn_values(first), drawn_values(other), strict=True))
    assert len(pairs) == case.masks
    assert not any(torch.equal(a, b) for a, b in pairs)
    values = drawn_values(first)
    assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[:i]), "two layers share their masks"


@over(MASKED)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_level_zero_is_the_mask_free_twin_bit_for_bit(case: Case, train: bool) -> None:
    module = shaken(case.new(level=0.0)).train(train and case.random != "train")
    twin = case.second(case.state(module, None), *case.inputs(4))
    if not (train and case.is_net):  # there the batch norm of four values magnifies any rounding
        torch.testing.assert_close(module(*case.inputs(4)), twin, rtol=1e-5, atol=1e-5)
    with published():  # the fast paths sum several masks in another order than a convolution does
        assert torch.equal(module(*case.inputs(4)), twin)


@over(STEADY)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_agrees_with_its_second_implementation(case: Case, train: bool) -> None:
    # The last map of a net must be larger than one cell.
    size = (max(9, case.smallest), max(17, case.smallest)) if case.is_net else None
    module = shaken(case.new(size=size)).double().train(train and case.random == "never")
    (x,) = case.inputs(4, size=size)
    want = case.second(case.state(module), x.double())
    torch.testing.assert_close(module(x.double()), want, rtol=1e-10, atol=1e-10)
    if case in MASKED:
        without = case.second(case.state(module, None), x.double())
        assert not torch.allclose(want, without, atol=1e-6), "the masks made no difference"


@over(CASES)
@torch.no_grad()
def test_what_is_random_is_as_documented(case: Case) -> None:
    module, x = case.new(), case.inputs(4)
    for train in (True, False):
        module.train(train)
        random = case.random == "always" or (case.random == "train" and train)
        assert torch.equal(module(*x), module(*x)) != random, f"training {train}"


@over(STEADY)
@torch.no_grad()
def test_eval_treats_every_image_alone(case: Case) -> None:
    """So a ragged last batch, and a batch of one, give what any other batch gives."""
    module, (x,) = shaken(case.new()).double().eval(), case.inputs(5)
    alone = torch.cat([module(part) for part in x.double().split([2, 2, 1])])
    torch.testing.assert_close(module(x.double()), alone, rtol=1e-9, atol=1e-9)


@over(MAPS)
def test_gradcheck(case: Case) -> None:
    """Input and every parameter; of a net, the derivative along one random direction of all of them together."""
    size = (max(2, case.smallest),) * 2
    module = shaken(case.new(size=size)).double().eval()
    names = [name for name, _ in module.named_parameters()]
    start = [case.inputs(2, size=size)[0].double(), *(p.detach() for p in module.parameters())]
    ways = [torch.randn(s.shape, generator=seeded(i)).double() for i, s in enumerate(start)]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        # A counter of draws starts afresh at each call.
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, state | dict(zip(names, values, strict=True)), (x,))

    def along(step: Tensor) -> Tensor:
        return call(*(s + step * way for s, way in zip(start, ways, strict=True)))

    if case.is_net:
        assert torch.autograd.gradcheck(along, (torch.zeros((), dtype=torch.float64, requires_grad=True),))
    else:
        assert torch.autograd.gradcheck(call, [s.requires_grad_() for s in start])


@over(CASES)
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    """In one mode or the other: a bias before a batch norm that trains has no gradient but its rounding."""
    module, x = shaken(case.new()), case.inputs(4)
    for train in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)  # now and then dropout leaves nothing of so few inputs
            out = module.train(train)(*x)
        if out.requires_grad:
            (out * torch.randn(out.shape, generator=seeded(3))).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.count_nonzero(), name


@over(STATEFUL)
@torch.no_grad()
def test_deepcopy_is_equal_and_independent(case: Case) -> None:
    module, x = shaken(case.new()).eval(), case.inputs()
    twin = copy.deepcopy(module)
    assert same_state(module, twin)
    assert torch.equal(module(*x), twin(*x))
    for value in twin.state_dict().values():
        value.zero_()
    assert not same_state(module, twin)


@over(CASES)
def test_repr_names_the_layer_and_its_masks(case: Case) -> None:
    module = case.new()
    text = repr(module)
    assert text.startswith(type(module).__name__ + "(")
    assert text.count("Noise(") == sum(isinstance(part, Masks) for part in module.modules())


@over(DRAWN)
def test_moments_of_what_is_drawn(case: Case) -> None:
    """Mean 0 and the second moment, within 5 standard errors; the values are before the level."""
    rounds = 1 if case.is_net else 60
    values = torch.cat([v.flatten() for seed in range(rounds) for v in drawn_values(case.new(seed))]).double()
    second, scatter = case.moments
    assert abs(values.mean()) < 5 * math.sqrt(second / len(values))
    assert abs(values.square().mean() - second) < 5 * math.sqrt(scatter / len(values))
    assert len(values) >= 150, "too few values to say anything"


@over([case for case in MASKED if case.random == "never" and case.is_net])
def test_masks_move_only_when_trained(case: Case) -> None:
    module, (x,) = case.new(), case.inputs(4)
    before = [value.clone() for value in drawn_values(module)]
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=LEVEL)
    module(x).square().sum().backward()
    optimiser.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, drawn_values(module), strict=True)]
    assert moved == [case.name.endswith("trained")] * case.masks
