"""BatchOut at the places of a net: rules, hooks, published places."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixing import drawn, looped, partners_in, same, units
from nets import seeded
from perturblab.layers import Mixing, batch_step, batchout_at, find_sites
from perturblab.models import NETS, Task, build, published_sites
from told import in_order

# --- placement ------------------------------------------------------------------------------------------------------


def toy() -> nn.Sequential:
    """Two convolutions and two linear layers, each with a name of its own."""
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 2, 3),
            relu1=nn.ReLU(),
            stage=nn.Sequential(OrderedDict(conv2=nn.Conv2d(2, 3, 3), relu2=nn.ReLU())),
            flatten=nn.Flatten(),
            fc1=nn.Linear(12, 4),
            relu3=nn.ReLU(),
            fc2=nn.Linear(4, 3),
        )
    ).double()
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(drawn(*value.shape, seed=value.numel()))
    return net


def pixels(count: int = 6) -> Tensor:
    return drawn(count, 1, 6, 6, seed=4)


MUTUAL = Mixing(eta=0.25, k=0.5, partners="mutual")


def mutual(x: Tensor) -> Tensor:
    half = len(x) // 2
    return looped(x, [len(x) - 1 - i for i in range(half)], [0.25] * half, list(range(half)))


def fingerprint(model: nn.Module) -> Any:
    """Everything that a placement could leave behind."""
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    parts = {
        name: (sorted(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks), sorted(part._buffers))
        for name, part in model.named_modules()
    }
    return state, parts


@pytest.mark.parametrize(
    ("rule", "want"),
    [
        ("all", ["conv1", "stage.conv2", "fc1"]),
        ("last", ["fc1"]),
        ("alternate", ["conv1", "fc1"]),
        ("all-after:conv1", ["conv1", "stage.conv2", "fc1"]),
        ("all-after:stage.conv2", ["stage.conv2", "fc1"]),
        ("conv1", ["conv1"]),
        ("fc*", ["fc1", "fc2"]),
        ("*conv?", ["conv1", "stage.conv2"]),
        (["fc1", "conv1"], ["fc1", "conv1"]),
        (["conv*", "conv1", "stage"], ["conv1", "stage"]),
        (nn.Conv2d, ["conv1", "stage.conv2"]),
        (nn.ReLU, ["relu1", "stage.relu2", "relu3"]),
    ],
    ids=str,
)
def test_rules_find_modules(rule: Any, want: list[str]) -> None:
    """A keyword never means the classifier, which the paper leaves alone."""
    assert find_sites(toy(), rule) == want


@pytest.mark.parametrize(
    "rule", ["nope", "conv", "layer*", [], ["conv1", "nope"], nn.LSTM, "all-after:nope", "all-after:relu1", ""], ids=str
)
def test_a_rule_that_matches_nothing_is_an_error(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"\bnone\b|\bno module\b") as caught:
        find_sites(toy(), rule)
    assert "\n" not in str(caught.value)
    assert "conv1" in str(caught.value), "it says what there is"


@pytest.mark.parametrize("rule", ["all", "last", "alternate"])
def test_a_net_of_one_layer_has_no_place_but_its_classifier(rule: str) -> None:
    with pytest.raises(ValueError, match=in_order("none 2 modules Sequential")):
        find_sites(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), rule)


@torch.no_grad()
def test_placed_at_the_outputs_it_is_there() -> None:
    """Behind a layer, so before its ReLU, as in the paper; the same numbers as BatchOut as a layer of its own."""
    net, x = toy(), pixels()
    batchout_at(net, dict.fromkeys(("conv1", "stage.conv2", "fc1"), MUTUAL), generator=seeded())
    features = net.relu1(mutual(nn.functional.conv2d(x, net.conv1.weight, net.conv1.bias)))
    conv2, fc1 = net.stage.conv2, net.fc1
    features = torch.relu(mutual(nn.functional.conv2d(features, conv2.weight, conv2.bias))).flatten(1)
    features = torch.relu(mutual(features @ fc1.weight.T + fc1.bias))
    want = features @ net.fc2.weight.T + net.fc2.bias
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_placed_before_a_module_its_input_is_mixed() -> None:
    net, x = toy(), pixels()
    batchout_at(net, {"fc1": MUTUAL}, generator=seeded(), before=True)
    features = mutual(net.flatten(net.stage(net.relu1(net.conv1(x)))))
    want = net.fc2(torch.relu(features @ net.fc1.weight.T + net.fc1.bias))
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)
    behind = toy()
    batchout_at(behind, {"relu1": MUTUAL}, generator=seeded())
    before = toy()
    batchout_at(before, {"relu1": MUTUAL}, generator=seeded(), before=True)
    assert not torch.allclose(behind(x), before(x))


def test_in_eval_a_placed_net_answers_as_before() -> None:
    net, x = toy().eval(), pixels()
    want = net(x)
    batchout_at(net, dict.fromkeys(find_sites(net, "all"), MUTUAL), generator=seeded())
    assert torch.equal(net(x), want)
    with batch_step(active=True):
        assert not torch.equal(net(x), want)
    with batch_step(active=False):
        assert torch.equal(net.train()(x), want)


def test_a_part_in_eval_mode_is_left_alone() -> None:
    net, x = toy(), pixels()
    batchout_at(net, {"conv1": MUTUAL}, generator=seeded())
    net.conv1.eval()
    assert torch.equal(net(x), toy()(x))


def test_every_placed_site_draws_for_itself() -> None:
    """Two sites on the same features; the second hook sees what the first has left."""
    net = nn.Sequential(nn.Identity(), nn.Identity())
    seen: list[Tensor] = []
    for part in net:
        part.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    mixing = Mixing(eta=1.0, k=1.0, partners="no-self")  # a row becomes its partner
    batchout_at(net, {"0": mixing, "1": mixing}, generator=seeded())
    out = net(units(16))
    first, second = seen[1].argmax(1).tolist(), (out @ seen[1].T).argmax(1).tolist()
    assert first != second


@pytest.mark.parametrize("shared", ["none", "partners"])
def test_sites_of_one_net_share_their_draws_within_a_step(shared: str) -> None:
    net, inputs = nn.Sequential(nn.Identity(), nn.Identity()), list[Tensor]()
    net[1].register_forward_pre_hook(lambda part, args: inputs.append(args[0]))
    mixing = Mixing(eta=0.25, k=1.0, partners="no-self", shared=shared)
    batchout_at(net, {"0": mixing, "1": mixing}, generator=seeded())
    for _ in range(2):
        with batch_step():
            out = net(units(8))
        assert (partners_in(inputs[-1]) == who(inputs[-1], out, 0.25)) == (shared == "partners")
    assert partners_in(inputs[0]) != partners_in(inputs[1])


class Twice(nn.Module):
    """One linear layer that is called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 5)
        self.two = self.one
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


def test_a_module_that_is_called_twice_is_mixed_twice_and_is_one_place() -> None:
    net, x = Twice().double(), drawn(6, 5)
    assert find_sites(net, "all") == find_sites(net, nn.Linear)[:1] == ["one"]
    batchout_at(net, {"one": MUTUAL}, generator=seeded())
    want = net.head(torch.tanh(mutual(mutual_free(net, torch.tanh(mutual(mutual_free(net, x)))))))
    torch.testing.assert_close(net(x), want, rtol=1e-12, atol=1e-12)


def mutual_free(net: Twice, x: Tensor) -> Tensor:
    return nn.functional.linear(x, net.one.weight, net.one.bias)


def tied() -> nn.Module:
    return build("vgg19_tied", task=Task(4, 3, (8, 8)), nfilters=3)


@torch.no_grad()
def test_the_shared_block_of_the_tied_net_is_mixed_at_each_of_its_seven_calls() -> None:
    net, plain, mixed = tied(), list[Tensor](), list[Tensor]()
    host = net.get_submodule("shared.width8.conv")
    host.register_forward_hook(lambda part, args, out: plain.append(out))
    mixing = Mixing(eta=0.5, k=1.0, partners="no-self")
    batchout_at(net, {"shared.width8.conv": mixing}, generator=seeded())
    host.register_forward_hook(lambda part, args, out: mixed.append(out))
    net(torch.randn(12, 3, 8, 8, generator=seeded()))
    assert len(plain) == len(mixed) == 7
    draws = [who(before, after, 0.5) for before, after in zip(plain, mixed, strict=True)]
    assert len(set(map(tuple, draws))) == 7, "every call draws anew"
    assert int(host.get_buffer("batchout_draws")[1]) == 7


def who(x: Tensor, out: Tensor, eta: float) -> list[int]:
    """The partner of every row: the one that explains it best, of all of them."""
    misfit = torch.stack([(out - x - eta * (partner - x)).flatten(1).norm(dim=1) for partner in x], 1)
    assert misfit.amin(1).max() < 1e-5 < 0.1 < (out - x).flatten(1).norm(dim=1).median()
    return misfit.argmin(1).tolist()


@torch.no_grad()
def test_the_positions_of_the_tied_net_are_places_of_their_own() -> None:
    net, names = tied(), [name for name, _ in published_sites("vgg19_tied")]
    batchout_at(net, dict.fromkeys(names, Mixing(eta=0.5)), generator=seeded())
    net(torch.randn(6, 3, 8, 8, generator=seeded()))
    assert [int(net.get_submodule(name).get_buffer("batchout_draws")[1]) for name in names] == [1] * 5


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ({}, "BatchOut name module"),
        ({"nope": MUTUAL}, "module nope conv1"),
        ({"conv1": MUTUAL, "fc1": MUTUAL, "nope": MUTUAL}, "module nope conv1"),
        ({"fc1": MUTUAL, "relu3": MUTUAL}, "relu3 BatchOut remove"),
        ({"fc1": MUTUAL, "conv1": None}, "conv1 None Mixing Mixing(eta=0.1)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("before", [False, True])
def test_a_placement_that_fails_leaves_the_model_untouched(at: dict[str, Mixing], text: str, before: bool) -> None:
    net, source = toy(), seeded()
    batchout_at(net, {"relu3": MUTUAL}, generator=source)
    want, state = fingerprint(net), source.get_state()
    with pytest.raises(ValueError, match=in_order(text)) as caught:
        batchout_at(net, at, generator=source, before=before)
    assert "\n" not in str(caught.value)
    assert str(fingerprint(net)) == str(want)
    assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("mixing", ["x", 0, Mixing], ids=str)
def test_a_mixing_that_is_none_is_refused_at_once(mixing: Any) -> None:
    net = toy()
    want = str(fingerprint(net))
    with pytest.raises(ValueError, match=in_order("conv1 Mixing")):
        batchout_at(net, "all", mixing, generator=seeded())
    assert str(fingerprint(net)) == want


class Gives(nn.Module):
    """A block that gives whatever it is told to make of its features."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return self.make(x * scale)


@pytest.mark.parametrize("more", [(), (None,), (torch.ones(2, 3),)], ids=["alone", "none", "tensor"])
def test_of_a_tuple_the_first_is_mixed(more: tuple[Any, ...]) -> None:
    block, x = Gives(lambda x: (x, *more)), drawn(6, 5)
    batchout_at(block, {"": MUTUAL}, generator=seeded())
    out = block(x)
    assert isinstance(out, tuple)
    torch.testing.assert_close(out[0], mutual(x), rtol=1e-12, atol=1e-12)
    assert all(got is given for got, given in zip(out[1:], more, strict=True))
    assert int(block.get_buffer("batchout_draws")[1]) == 1


@pytest.mark.parametrize(
    ("make", "does"),
    [
        (lambda x: [x], "gives a list"),
        (lambda x: {"x": x}, "gives a dict"),
        (lambda x: None, "gives a NoneType"),
        (lambda x: (), "gives a tuple"),
        (lambda x: (None, x), "gives first a NoneType"),
        (lambda x: ((x,), x), "gives first a tuple"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_what_holds_no_tensor_is_refused_by_name(make: Callable[[Tensor], Any], does: str, training: bool) -> None:
    """In eval too, where nothing is mixed: it would be told too late."""
    net = nn.Sequential(OrderedDict(block=Gives(make)))
    batchout_at(net, "block", generator=seeded())
    with pytest.raises(ValueError, match=in_order(f"block (Gives) {does} BatchOut tensor")):
        net.train(training)(drawn(6, 5))


def test_before_a_module_the_first_input_by_position_is_mixed() -> None:
    block, x = Gives(lambda x: x), drawn(6, 5)
    batchout_at(block, {"": MUTUAL}, generator=seeded(), before=True)
    torch.testing.assert_close(block(x, scale=2.0), 2 * mutual(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=in_order("(Gives) nothing BatchOut")):
        block(x=x)
    with pytest.raises(ValueError, match=in_order("(Gives) BatchOut")):
        block([x])


@pytest.mark.parametrize("before", [False, True])
def test_what_is_removed_leaves_no_trace(before: bool) -> None:
    net, x = toy(), pixels()
    want, value = str(fingerprint(net)), net(x)
    names = [name for name, _ in net.named_parameters()]
    placed = batchout_at(net, {"conv1": MUTUAL, "fc1": MUTUAL}, generator=seeded(), before=before)
    assert placed.names == ("conv1", "fc1")
    assert [name for name, _ in net.named_parameters()] == names
    assert not torch.equal(net(x), value)
    for _ in range(2):
        placed.remove()
        assert str(fingerprint(net)) == want
        assert torch.equal(net(x), value)
    batchout_at(net, {"conv1": MUTUAL}, generator=seeded())
    placed.remove()
    assert not torch.equal(net(x), value), "it takes out only what it has put in"


def test_hooks_of_others_stay() -> None:
    net, calls = toy(), list[str]()
    net.conv1.register_forward_hook(lambda part, args, out: calls.append("hook"))
    placed = batchout_at(net, {"conv1": MUTUAL}, generator=seeded())
    placed.remove()
    net(pixels())
    assert calls == ["hook"]


ANY = Mixing(eta="U[0.1,0.9]", partners="different-class", rows="random")


def test_the_state_dict_of_a_placed_net_carries_the_sequence_on() -> None:
    nets = [toy(), toy()]
    for seed, net in enumerate(nets):
        batchout_at(net, dict.fromkeys(("conv1", "fc1"), ANY), generator=seeded(seed))
    assert {name for name in nets[0].state_dict() if name not in toy().state_dict()} == {
        "conv1.batchout_draws",
        "fc1.batchout_draws",
    }

    def outputs(net: nn.Module, calls: int) -> list[Tensor]:
        with batch_step(torch.arange(6) % 3):
            return [net(pixels()) for _ in range(calls)]

    outputs(nets[0], 2)
    nets[1].load_state_dict(nets[0].state_dict())
    assert same(outputs(nets[0], 3), outputs(nets[1], 3))


def test_a_copy_of_a_placed_net_is_equal_and_independent() -> None:
    net = toy()
    placed = batchout_at(net, {"conv1": ANY, "fc1": ANY}, generator=seeded())
    twin = copy.deepcopy(net)
    with batch_step(torch.arange(6) % 3):
        want = [twin(pixels()) for _ in range(3)]
        assert int(net.conv1.batchout_draws[1]) == 0
        assert same([net(pixels()) for _ in range(3)], want)
        assert not torch.equal(want[0], want[1])
        placed.remove()
        assert not torch.equal(twin(pixels()), net(pixels())), "the copy keeps its own"


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it traces
def test_a_placed_net_is_compiled_as_it_is() -> None:
    torch.compiler.reset()
    nets = [toy(), toy()]
    for net in nets:
        batchout_at(net, dict.fromkeys(("conv1", "fc1"), ANY), generator=seeded())
    fast = torch.compile(nets[1], backend="eager")
    for _ in range(3):
        with batch_step(torch.arange(6) % 3):
            torch.testing.assert_close(fast(pixels()), nets[0](pixels()))
    assert torch.equal(nets[0].fc1.batchout_draws, nets[1].fc1.batchout_draws)


SMALL: dict[str, dict[str, Any]] = {"bottleneck_resnet": {"blocks": 1}, "batchout_mnist": {"padding": 2}}
WITH_SITES = [net for net in NETS if published_sites(net)]


def test_nets_with_published_places_are_the_five_of_the_sources() -> None:
    assert WITH_SITES == ["batchout_mnist", "batchout_cifar", "bottleneck_resnet", "vgg19", "vgg19_tied"]


@pytest.mark.parametrize("name", WITH_SITES)
@torch.no_grad()
def test_published_places_work_in_training_only(name: str) -> None:
    net = build(name, task=Task(4, 3, (8, 8)), nfilters=4, **SMALL.get(name, {}))
    x = torch.randn(8, 3, 8, 8, generator=seeded())
    plain = net.eval()(x)
    sites = published_sites(name)
    placed = batchout_at(net, {site: Mixing(eta=eta) for site, eta in sites}, generator=seeded())
    assert torch.equal(net(x), plain), "in eval mode"
    state = {key: value.clone() for key, value in net.state_dict().items()}
    outputs = []
    for active in (False, None):  # the same dropout and batch statistics
        net.load_state_dict(state)
        with torch.random.fork_rng(devices=[]), batch_step(active=active):
            torch.manual_seed(0)
            outputs.append(net.train()(x))
    assert not torch.allclose(*outputs, rtol=1e-3, atol=1e-5), "in training"
    assert [int(net.get_submodule(site).get_buffer("batchout_draws")[1]) for site, _ in sites] == [1] * len(sites)
    net.load_state_dict(state)
    placed.remove()
    assert torch.equal(net.eval()(x), plain)
