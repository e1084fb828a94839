"""The nets: identities, sizes, the reply's variant, operators, refusals."""

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from perturblab.layers import AnchorConv2d, NoiseLayer, PerturbLayerFirst, Shift, fixed_buffers
from perturblab.layers.pooling import pool
from perturblab.models import NETS, Task, build, options_read, resolve
from perturblab.models.skeleton import Residual
from perturblab.records.choices import PoolType
from tiny_nets import RESNETS, SMALL, N, P, images, masks_of, tiny, weights
from told import in_order

POOLS = get_args(PoolType)

# --- identities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["perturb_resnet18", "perturb_resnet34", "perturb_resnet50", "lenet", "cifarnet"])
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@torch.no_grad()
def test_level_zero_is_the_1x1_net_bit_for_bit(net: str, first: int, train: bool) -> None:
    """Same seed, so also the same weights: masks and weights come from streams of their own."""
    given = {"dropout": 0.0} if "dropout" in options_read(net) else {}
    noise = tiny(net, level=0.0, first_filter_size=first, **given).train(train)
    plain = tiny(net, filter_size=1, first_filter_size=first or 1, **given).train(train)
    assert masks_of(noise)
    assert not masks_of(plain)
    assert weights(noise).keys() == plain.state_dict().keys()
    assert all(torch.equal(value, weights(noise)[key]) for key, value in plain.state_dict().items())
    assert torch.equal(noise(images()), plain(images()))


@torch.no_grad()
def test_the_first_layer_of_k5_is_a_1x1_convolution_plus_a_fixed_map() -> None:
    net, x = tiny(P).eval(), images()
    conv, norm = net.stem[0][0], net.stem[0][1]
    bias_map = F.conv2d((conv.masks.value * 0.5).transpose(0, 1), conv.weight, conv.bias)
    torch.testing.assert_close(net.stem(x), F.relu(norm(F.conv2d(x, conv.weight) + bias_map)))


@pytest.mark.parametrize("net", RESNETS)
@torch.no_grad()
def test_the_mean_is_the_published_4x4_pool_at_32(net: str) -> None:
    first = {} if net.startswith("resnet") else {"first_filter_size": 3}
    module, seen = tiny(net, Task(), **first).double().eval(), {}
    module.layer4.register_forward_hook(lambda part, args, out: seen.update(last=out))
    logits = module(images(size=(32, 32)).double())
    assert seen["last"].shape[2:] == (4, 4)
    torch.testing.assert_close(logits, module.linear(F.avg_pool2d(seen["last"], 4).flatten(1)))


@torch.no_grad()
def test_the_branch_of_the_reproduction_is_never_negative_and_that_of_the_authors_is() -> None:
    for net, negative in ((P, False), (N, True)):
        module, lowest = tiny(net).train(), []
        for part in module.modules():
            if isinstance(part, Residual):
                part.body.register_forward_hook(lambda part, args, out, lowest=lowest: lowest.append(out.min()))
        module(images(4))
        assert len(lowest) == 8
        assert (min(lowest) < 0) == negative


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", sorted(NETS))
@pytest.mark.parametrize("task", [Task(10, 1, (28, 28)), Task(3, 4, (33, 20)), Task(2, 3, (6, 5))], ids=str)
@torch.no_grad()
def test_any_channels_classes_and_sizes(net: str, task: Task) -> None:
    first = [0, 3, 7] if net.startswith("perturb") else [3, 7] if net.startswith("noise") else [None]
    for size in first:
        module = tiny(net, task, **({} if size is None else {"first_filter_size": size})).eval()
        assert module(images(1, task.channels, task.size)).shape == (1, task.nclasses)


@pytest.mark.parametrize("net", RESNETS)
@pytest.mark.parametrize("kind", POOLS)
def test_every_map_of_a_1x1_image_is_1x1(net: str, kind: str) -> None:
    options = {"pool_type": kind} if "pool_type" in options_read(net) else {}
    module = tiny(net, Task(2, 3, (1, 1)), **options).eval()
    assert module(images(1, size=(1, 1))).shape == (1, 2)
    assert all(masks.value.shape[2:] == (1, 1) for masks in masks_of(module))


@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("stride", [1, (1, 1)])
def test_a_pooling_of_stride_1_makes_no_pass_over_the_map(kind: str, stride: Any) -> None:
    x = images(2)
    assert all(pool(kind, stride, overlapping=overlapping)(x) is x for overlapping in (False, True))


def test_another_size_than_the_masks_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=in_order("masks 8 8 9 8")):
        tiny(P)(images(size=(9, 8)))


# --- the reply of the authors -------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_reply_has_many_masks_at_twenty_times_the_level_in_front() -> None:
    net = tiny(P, code="up", level=0.1, scale_noise=2.0, nmasks=1)
    first, *others = masks_of(net)
    assert isinstance(net.stem[0], PerturbLayerFirst)
    assert first.value.shape == (3, 15, 8, 8)
    assert first.noise.level == pytest.approx(0.1 * 2 * 20)
    assert {masks.noise.level for masks in others} == {0.1}
    assert {masks.noise.nmasks for masks in others} == {1}
    squeeze = next(part for part in list(net.stem)[1:] if isinstance(part, nn.Conv2d))
    assert (squeeze.in_channels, squeeze.out_channels, squeeze.bias) == (9, 3, None)
    stem = net.train().stem[0](images())
    assert ((stem > 0) & (stem < 1)).all(), "it ends in a sigmoid"


@torch.no_grad()
def test_the_reply_ignores_use_act_and_keeps_its_sigmoid_behind_a_convolution() -> None:
    x = images()
    for first in (0, 3):
        nets = [tiny(P, code="up", first_filter_size=first, use_act=use, act="elu").eval() for use in (True, False)]
        assert torch.equal(*(net(x) for net in nets))
        out = nets[0].stem[0](x)
        assert out.shape == (2, 9, 8, 8)
        assert ((out > 0) & (out < 1)).all()


REPLY: dict[str, Any] = {"first_masks": 5, "first_sigmoid": True, "first_mix": True, "scale_noise": 20.0}


@pytest.mark.parametrize("more", [{}, {"act": "elu", "mix_maps": True}, {"nmasks": 2, "unique_masks": False}], ids=str)
@pytest.mark.parametrize("net", [P, "perturb_resnet50"])
def test_the_reply_is_its_changes_one_by_one(net: str, more: dict[str, Any]) -> None:
    """Same seed: the same masks, weights, answers and gradients, bit for bit; and no change alone is all of them."""
    reply, steps = tiny(net, code="up", **more), tiny(net, **REPLY, **more)
    assert list(reply.state_dict()) == list(steps.state_dict())
    assert all(map(torch.equal, reply.state_dict().values(), steps.state_dict().values()))
    answers = [module(images(4)) for module in (reply, steps)]
    assert torch.equal(*answers)
    for module, answer in zip((reply, steps), answers, strict=True):
        answer.square().sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(reply.parameters(), steps.parameters(), strict=True))
    for name in REPLY:
        others = {key: value for key, value in REPLY.items() if key != name}
        lacking = tiny(net, **others, **more).eval()
        same = lacking.state_dict().keys() == reply.state_dict().keys()
        assert not same or not torch.equal(lacking(images()), reply.eval()(images())), f"{name} did nothing"


@pytest.mark.parametrize("nfilters", [16, 128])
def test_three_changes_together_have_the_published_size(nfilters: int) -> None:
    """At any width, since the number of masks is a multiple of it: 5,907,594 and 3,063,808 at 128 filters."""
    found = []
    with torch.device("meta"):
        for options in ({"code": "up"}, REPLY):
            net = build(P, nfilters=nfilters, nmasks=1, **options)
            sizes = [sum(p.numel() for p in net.parameters()), sum(math.prod(masks.shape) for masks in masks_of(net))]
            found.append((*sizes, masks_of(net)[0].noise.nmasks))
    assert found[0] == found[1]
    assert found[0][2] == 5 * nfilters
    assert nfilters == 16 or found[0][:2] == (5_907_594, 3_063_808)


@torch.no_grad()
def test_each_change_of_the_first_layer_leaves_the_others_alone() -> None:
    x = images()
    masks, sigmoid, mix = (tiny(P, **{name: REPLY[name]}).eval() for name in list(REPLY)[:3])
    first = masks.stem[0][0]  # mask, 1x1 over all colours, batch norm, ReLU, as in experiment 5
    assert first.masks.value.shape == (3, 15, 8, 8)
    assert (first.in_channels, first.out_channels, first.groups) == (45, 3, 1)
    maps = torch.cat([x[:, c : c + 1] + 0.5 * first.masks.value[c] for c in range(3)], 1)
    torch.testing.assert_close(masks.stem(x), F.relu(masks.stem[0][1](F.conv2d(maps, first.weight, first.bias))))
    layer = sigmoid.stem[0]
    maps = torch.sigmoid(layer.norm(x + 0.5 * layer.masks.value[:, 0]))
    conv, norm = layer.layers[:2]
    assert (conv.in_channels, conv.out_channels, conv.groups, len(sigmoid.stem)) == (3, 3, 1, 1)
    torch.testing.assert_close(sigmoid.stem(x), torch.sigmoid(norm(conv(maps))))
    inner, extra, last, act = mix.stem
    assert inner[0].masks.value.shape == (3, 1, 8, 8)
    assert (extra.in_channels, extra.out_channels, extra.bias, type(act)) == (9, 3, None, nn.ReLU)
    maps = F.relu(inner[1](F.conv2d(x + 0.5 * inner[0].masks.value[:, 0], inner[0].weight, inner[0].bias)))
    torch.testing.assert_close(mix.stem(x), F.relu(last(F.conv2d(maps, extra.weight))))


def test_the_reply_freezes_the_first_convolution_at_random_values() -> None:
    net, twin = (tiny(N, first_filter_size=3, code=code) for code in ("up", "kl"))
    names = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert names == ["stem.0.weight"]
    assert all(parameter.requires_grad for parameter in twin.parameters())
    assert torch.equal(net.stem[0].weight, twin.stem[0].weight), "frozen, and still drawn by the published init"
    before = net.stem[0].weight.clone(), net.stem[1].weight.clone()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    net(images(4)).square().sum().backward()
    optimiser.step()
    assert torch.equal(net.stem[0].weight, before[0])
    assert not torch.equal(net.stem[1].weight, before[1])


# --- another operator than noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "kind"),
    [("shift", Shift), ("depthwise", nn.Conv2d), ("anchors", AnchorConv2d), ("anchors-depthwise", AnchorConv2d)],
)
@pytest.mark.parametrize("net", [N, "noiseresnet50"])
def test_an_operator_stands_where_the_masks_stood(operator: str, kind: type[nn.Module], net: str) -> None:
    """Nothing else changes: the same parts with the same shapes, and masks nowhere."""
    noise, other = (tiny(net, operator=name, first_filter_size=3) for name in ("noise", operator))
    places = [name for name, part in noise.named_modules() if isinstance(part, NoiseLayer)]
    assert places
    assert [name for name, part in other.named_modules() if name.endswith(".operator")] == [
        f"{name}.operator" for name in places
    ]
    assert not masks_of(other)
    for name in places:
        parts = dict(other.get_submodule(name).named_children())
        assert [type(part) for part in parts.values()] == [kind, nn.ReLU, nn.BatchNorm2d, nn.Conv2d]
        if operator != "shift":
            (filters,) = parts["operator"].state_dict().values()
            width = parts["norm"].num_features
            assert filters.shape == (width, width if operator == "anchors" else 1, 3, 3)
    rest = {key: value.shape for key, value in other.state_dict().items() if ".operator." not in key}
    assert rest == {key: value.shape for key, value in noise.state_dict().items() if not key.endswith("masks.stored")}


@pytest.mark.parametrize("operator", ["anchors", "anchors-depthwise"])
def test_fixed_filters_come_from_the_stream_of_the_masks_and_stay(operator: str) -> None:
    net, twin, other = (tiny(N, operator=operator, seed=seed) for seed in (1, 1, 2))
    weights = dict(net.named_parameters())
    assert all(torch.equal(value, dict(twin.named_parameters())[name]) for name, value in weights.items())
    plain = dict(tiny(N, operator="shift").named_parameters())
    assert all(torch.equal(value, plain[name]) for name, value in weights.items()), "they moved the initial weights"
    before = fixed_buffers(net)
    assert len(before) == 16
    for name, filters in before.items():
        assert set(filters.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert torch.equal(filters, fixed_buffers(twin)[name])
        assert not torch.equal(filters, fixed_buffers(other)[name])
    kept = {name: value.clone() for name, value in before.items()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    net(images(4)).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(value, fixed_buffers(net)[name]) for name, value in kept.items())
    assert set(kept) < set(net.state_dict())


# --- seeds and options --------------------------------------------------------------------------------------------


def test_scale_noise_is_for_the_first_layer_alone() -> None:
    levels = [masks.noise.level for masks in masks_of(tiny(P, level=0.2, scale_noise=3.0))]
    assert levels == pytest.approx([0.6] + [0.2] * 16)


def test_defaults_of_the_two_layers_differ() -> None:
    """use_act is off by default in the first layer only."""
    net, other = tiny(P), tiny(P, use_act=True)
    assert net.stem[0][0].act is None
    assert isinstance(other.stem[0][0].act, nn.ReLU)
    assert all(isinstance(part.body[0][0].act, nn.ReLU) for part in net.modules() if isinstance(part, Residual))


def test_what_is_drawn_for_masks_does_not_move_the_weights() -> None:
    base = tiny(P)
    for options in ({"noise_type": "normal"}, {"level": 2.0}, {"redraw_masks": "train"}, {"constant_masks": True}):
        other = tiny(P, **options)
        assert all(torch.equal(value, weights(other)[key]) for key, value in weights(base).items())
    assert torch.equal(masks_of(base)[3].value, masks_of(tiny(P, act="elu", pool_type="avg"))[3].value)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("net", ["lenet", "cifarnet", "lbcnet", "batchout_mnist", "batchout_cifar"])
@torch.no_grad()
def test_dropout_is_read(net: str, dropout: float) -> None:
    module, x = tiny(net, dropout=dropout), images(8)
    assert [part.p for part in module.modules() if isinstance(part, nn.Dropout)] == [dropout] * 2
    assert torch.equal(module(x), module(x)) == (dropout == 0)


@pytest.mark.parametrize(
    ("net", "options", "text"),
    [
        ("perturb_resnet19", {}, "perturb_resnet19 mean"),
        ("zzz", {}, "zzz resnet18 resnet34"),
        ("resnet18", {"nmasks": 2}, "resnet18 nmasks nfilters"),
        (P, {"dropout": 0.5}, f"{P} dropout act code"),
        (N, {"first_filter_size": 5}, "first_filter_size 5 3 7"),
        (N, {"operator": "roll"}, "operator roll noise shift depthwise anchors"),
        *(
            (N, {"operator": operator, **masks}, f"operator {operator} masks {text} drop")
            for operator, masks, text in (
                ("shift", {"level": 0.1}, "level 0.1"),
                ("depthwise", {"constant_masks": True}, "constant_masks True"),
                ("anchors", {"redraw_masks": "train"}, "redraw_masks train"),
                ("anchors-depthwise", {"untied_bias": True}, "untied_bias True"),
                ("shift", {"mask_memory": "seed"}, "mask_memory seed"),
            )
        ),
        (P, {"operator": "shift"}, f"{P} operator act"),
        (P, {"first_filter_size": 4}, "filter_size 4 0"),
        (P, {"pool_type": "mean"}, "pool_type mean max avg stride overlap"),
        ("lenet", {"pool_type": "mean"}, "pool_type mean max avg stride overlap"),
        (P, {"act": "gelu"}, "act gelu relu"),
        (P, {"nmasks": 2, "nfilters": 128}, "multiple 3 nmasks 1"),
        (P, {"first_masks": -1}, "first_masks -1 0 multiple nfilters 1"),
        (
            P,
            {"first_masks": 5, "first_filter_size": 3},
            "first_masks 5 first 3x3 drop",
        ),
        (P, {"first_sigmoid": True, "use_act": True}, "use_act drop"),
        ("lenet", {"first_mix": True}, "first_mix act"),
        (P, {"code": "upp"}, "code upp"),
        (N, {"code": "upp"}, "code upp"),
        (P, {"nfilters": 0}, "nfilters 0"),
        ("vgg19", {"nfilters": 0}, "nfilters 0"),
        ("batchout_mnist", {"padding": 3}, "padding 3 batchout_mnist 0 1 2"),
        ("batchout_cifar", {"padding": 2}, "padding 2 batchout_cifar 0 1"),
        (
            "batchout_mnist",
            {"padding": 0},
            "images (8 8) batchout_mnist padding 0 14x14 padding 2 images",
        ),
        ("batchout_cifar", {"padding": 0}, "18x18 padding 1 images"),
        ("bottleneck_resnet", {"reading": "C"}, "reading C A B"),
        ("bottleneck_resnet", {"blocks": 0}, "blocks 0 1"),
        (
            "bottleneck_resnet",
            {"reading": "A", "nfilters": 6},
            "nfilters 6 reading A multiple 4 reading B",
        ),
        ("vgg19", {"norm_order": "bn"}, "norm_order bn relu-bn bn-relu"),
        ("vgg19_tied", {"norm_order": ""}, "norm_order relu-bn bn-relu"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(net: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=in_order(text)):
        build(net, task=SMALL, **options)


@pytest.mark.parametrize("task", [(0, 3, (8, 8)), (4, 0, (8, 8)), (4, 3, (0, 8)), (4, 3, (8, -1))], ids=str)
def test_a_task_without_classes_channels_or_pixels_is_refused(task: tuple[int, int, tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=in_order("least 1")):
        Task(*task)


@pytest.mark.parametrize("net", sorted(NETS))
def test_options_are_resolved_to_their_defaults(net: str) -> None:
    options = resolve(net, {"nfilters": 5})
    assert options.nfilters == 5
    assert options_read(net) == set(vars(options))
    with pytest.raises(AttributeError):
        options.nfilters = 6
