"""Counts: every published row exact to the unit, everything else against a closed form; receptive fields."""

import itertools
from typing import get_args

import pytest
import torch
from torch import nn

from closed_form import FIRST, N, Options, P, closed_form
from nets import seeded
from perturblab.layers import Shift
from perturblab.models import NETS, Task, build, describe
from perturblab.records.choices import Operator

CIFAR, MNIST, IMAGENET = Task(), Task(10, 1, (28, 28)), Task(1000, 3, (224, 224))


K6 = {"nfilters": 128, "first_filter_size": 3, "nmasks": 64, "mix_maps": True}
K7 = {"nfilters": 128, "first_filter_size": 3, "nmasks": 64, "unique_masks": False}


WIDE = {"nfilters": 128}
WIDE3 = {"nfilters": 128, "first_filter_size": 3}
SVHN = {"depth": 40, "full": 512, "sparsity": 0.9}
LBC_CIFAR = {"nfilters": 384, "nweights": 704, "depth": 50, "full": 512, "sparsity": 0.001}
# id, net, options, task: trainable, frozen, masks, MACs, running statistics (None: not published)
PUBLISHED: list[tuple[str, str, Options, Task, tuple[int, int, int, int | None, int | None]]] = [
    ("K1", "resnet18", {"nfilters": 44}, CIFAR, (5_284_982, 0, 0, 262_905_280, 6_600)),
    ("K2", N, {"nfilters": 128, "first_filter_size": 7}, CIFAR, (5_640_074, 0, 68_608, 26_322_944, 32_768)),
    ("K3", N, WIDE3, CIFAR, (5_624_714, 0, 1_097_728, 347_482_112, 32_768)),
    ("K4", P, WIDE3 | {"filter_size": 1}, CIFAR, (5_611_146, 0, 0, 347_482_112, 19_200)),
    ("K5", P, WIDE, CIFAR, (5_608_202, 0, 1_100_800, 344_336_384, 19_200)),
    ("K6", P, K6, CIFAR, (6_813_834, 0, 70_254_592, 533_080_064, 34_560)),
    ("K7", P, K7, CIFAR, (1_220_234, 0, 412_672, 113_649_664, 19_200)),
    ("K7-mixed", P, K7 | {"mix_maps": True}, CIFAR, (6_813_834, 0, 412_672, 533_080_064, 34_560)),
    ("K8", P, K7 | {"train_masks": True}, CIFAR, (1_632_906, 0, 412_672, 113_649_664, 19_200)),
    ("H2", "resnet18", WIDE, CIFAR, (44_662_922, 0, 0, 2_218_141_696, 19_200)),
    ("resnet18-nf64", "resnet18", {}, CIFAR, (11_173_962, 0, 0, 555_422_720, 9_600)),
    ("H4", P, WIDE | {"first_filter_size": 1, "filter_size": 1}, CIFAR, (5_608_202, 0, 0, 344_336_384, 19_200)),
    ("H5", P, WIDE3, CIFAR, (5_611_146, 0, 1_097_728, 347_482_112, 19_200)),
    ("H6", P, K6 | {"mix_maps": False}, CIFAR, (1_220_234, 0, 70_254_592, 113_649_664, 19_200)),
    ("3x3", P, WIDE3 | {"filter_size": 3}, CIFAR, (44_662_922, 0, 0, 2_897_618_944, 19_200)),
    ("A1", N, WIDE3 | {"code": "up"}, CIFAR, (5_621_258, 3_456, 1_097_728, 347_482_112, 32_768)),
    ("U2", N, WIDE3 | {"nfilters": 256, "code": "up"}, CIFAR, (22_383_626, 6_912, 2_195_456, 1_382_830_080, 65_536)),
    ("A2", P, {"nfilters": 256, "code": "up"}, CIFAR, (23_546_122, 0, 6_127_616, 2_583_711_744, 47_616)),
    ("UP-all-noise", P, {"nfilters": 128, "code": "up"}, CIFAR, (5_907_594, 0, 3_063_808, 645_933_056, 23_808)),
    ("UP-K4", P, WIDE3 | {"filter_size": 1, "code": "up"}, CIFAR, (5_667_978, 0, 0, 404_891_648, 19_968)),
    ("UP-K7", P, K7 | {"code": "up"}, CIFAR, (1_277_066, 0, 412_672, 171_059_200, 19_968)),
    ("lenet-nf64", "lenet", {"nfilters": 64}, MNIST, (141_578, 0, 16_464, 1_186_048, 640)),
    ("lenet-nf128", "lenet", WIDE, MNIST, (297_866, 0, 32_144, 4_377_856, 1_024)),
    ("cifarnet-nf64", "cifarnet", {"nfilters": 64}, CIFAR, (287_306, 0, 109_568, 7_277_056, 1_280)),
    ("cifarnet-nf128", "cifarnet", WIDE, CIFAR, (612_234, 0, 216_064, 28_183_040, 2_048)),
    ("OR-18", N, {}, CIFAR, (1_427_402, 0, 34_304, 7_787_520, 16_384)),
    ("OR-18-224", N, {}, IMAGENET, (1_935_272, 0, 1_680_896, 381_849_600, None)),
    ("OR-34-224", "noiseresnet34", {}, IMAGENET, (3_076_136, 0, 2_935_296, 587_370_496, None)),
    ("OR-50-224", "noiseresnet50", {}, IMAGENET, (15_508_584, 0, 1_906_688, 2_560_622_592, None)),
    ("L1-mnist", "lbcnet", {}, Task(10, 1), (693_338, 5_529_600, 0, None, None)),
    ("L1-mnist-dense", "lbcnet", {"anchors": "dense"}, Task(10, 1), (6_261_338, 0, 0, None, None)),
    ("L1-svhn", "lbcnet", SVHN, CIFAR, (630_634, 2_949_120, 0, None, None)),
    ("L1-svhn-dense", "lbcnet", SVHN | {"anchors": "dense"}, CIFAR, (3_600_234, 0, 0, None, None)),
    ("L1-cifar", "lbcnet", LBC_CIFAR, CIFAR, (20_669_450, 121_651_200, 0, None, None)),
    ("L1-cifar-dense", "lbcnet", LBC_CIFAR | {"anchors": "dense"}, CIFAR, (142_355_850, 0, 0, None, None)),
    *(
        (f"B-mnist-{padding}", "batchout_mnist", {"padding": padding}, MNIST, (parameters, 0, 0, None, 0))
        for padding, parameters in enumerate((160_362, 234_090, 430_698))
    ),
    ("B-cifar-0", "batchout_cifar", {"padding": 0}, CIFAR, (922_762, 0, 0, None, 0)),
    ("B-cifar-1", "batchout_cifar", {}, CIFAR, (2_495_626, 0, 0, None, 0)),
    ("B-resnet-A", "bottleneck_resnet", {"reading": "A"}, CIFAR, (98_048, 0, 0, None, None)),
    ("B-resnet-B", "bottleneck_resnet", {}, CIFAR, (907_040, 0, 0, None, None)),
    ("B-vgg19", "vgg19", {}, CIFAR, (20_040_522, 0, 0, None, None)),
    ("B-vgg19-tied", "vgg19_tied", {}, CIFAR, (4_694_346, 0, 0, None, None)),
]
ODD = Task(7, 2, (33, 28))


UNPUBLISHED: list[tuple[str, Options, Task]] = [
    *((net, {"nfilters": width}, CIFAR) for net in sorted(NETS) for width in (37, 128) if net != "lbcnet"),
    *((net, {"nfilters": 4}, ODD) for net in sorted(NETS)),
    *((P, {"nfilters": 6, "first_filter_size": first, "filter_size": 5}, ODD) for first in (0, 1, 3, 5, 7)),
    *((P, {"nfilters": 6, "first_filter_size": first, "filter_size": 7, "code": "up"}, ODD) for first in (0, 5, 7)),
    *(
        (P, {"nfilters": 6, "nmasks": nmasks, "mix_maps": nmasks == 3} | dict(zip(FIRST, ways, strict=True)), ODD)
        for nmasks in (1, 3)
        for ways in itertools.product((0, 2), (False, True), (False, True))
    ),
    (P, {"nfilters": 6, "first_filter_size": 3, "first_sigmoid": True}, ODD),
    ("perturb_resnet50", {"nfilters": 6, "nmasks": 3, "mix_maps": True, "first_filter_size": 3}, ODD),
    ("perturb_resnet50", {"nfilters": 6, "nmasks": 3, "unique_masks": False, "train_masks": True}, ODD),
    ("perturb_resnet34", {"nfilters": 6, "nmasks": 3, "constant_masks": True}, ODD),
    (P, {"nfilters": 6, "nmasks": 3, "mix_maps": True, "code": "up"}, ODD),
    ("noiseresnet50", {"nfilters": 5, "code": "up", "first_filter_size": 3, "constant_masks": True}, ODD),
    *(
        (net, {"nfilters": 5, "first_filter_size": first, "operator": operator}, ODD)
        for net, first in ((N, 3), ("noiseresnet50", 7))
        for operator in get_args(Operator)
    ),
    *((net, {"nfilters": 6, "nmasks": 2, "mix_maps": True}, ODD) for net in ("lenet", "cifarnet")),
    *(
        (net, {"nfilters": 6, "filter_size": k, "first_filter_size": k}, ODD)
        for net in ("lenet", "cifarnet")
        for k in (5, 7)
    ),
    *(("batchout_mnist", {"nfilters": 5, "padding": padding}, ODD) for padding in (0, 2)),
    ("batchout_cifar", {"nfilters": 5, "padding": 0}, ODD),
    *(("bottleneck_resnet", {"nfilters": 8, "reading": reading, "blocks": 2}, ODD) for reading in ("A", "B")),
    *((net, {"nfilters": 3, "norm_order": "bn-relu"}, ODD) for net in ("vgg19", "vgg19_tied")),
    *(("lbcnet", {"nfilters": w, "anchors": a, "depth": 3}, CIFAR) for w in (37, 128) for a in ("gaussian", "dense")),
]


def on_meta(net: str, options: Options, task: Task) -> nn.Module:
    with torch.device("meta"):
        return build(net, task=task, **options)


def running_statistics(net: nn.Module) -> int:
    return sum(value.numel() for name, value in net.named_buffers() if name.endswith(("running_mean", "running_var")))


def counted(net: str, options: Options, task: Task) -> tuple[int, ...]:
    module = on_meta(net, options, task)
    said = describe(module, task, net)
    return *(said[key] for key in ("trainable", "frozen", "masks", "macs")), running_statistics(module)


def spelt(net: str, options: Options, task: Task) -> str:
    return " ".join([net, *(f"{k}={v}" for k, v in options.items()), *(["odd"] if task is ODD else [])])


@pytest.mark.parametrize(("net", "options", "task", "want"), [pytest.param(*row[1:], id=row[0]) for row in PUBLISHED])
def test_published_row_to_the_unit(net: str, options: Options, task: Task, want: tuple[int | None, ...]) -> None:
    counts = counted(net, options, task)
    assert counts == tuple(have if need is None else need for have, need in zip(counts, want, strict=True))
    assert counts == closed_form(net, options, task)


@pytest.mark.parametrize(("net", "options", "task"), UNPUBLISHED, ids=[spelt(*row) for row in UNPUBLISHED])
def test_unpublished_net_agrees_with_the_closed_form(net: str, options: Options, task: Task) -> None:
    assert counted(net, options, task) == closed_form(net, options, task)


def test_every_net_is_counted() -> None:
    assert {net for net, *_ in UNPUBLISHED} == set(NETS)


STAGES = {
    "K1": (1_276, 70_048, 248_688, 992_992, 3_968_448, 3_530),
    "K2": (19_072, 68_096, 267_520, 1_059_328, 4_215_808, 10_250),
    "K3": (3_712, 68_096, 267_520, 1_059_328, 4_215_808, 10_250),
    "K4": (3_712, 67_072, 265_728, 1_055_744, 4_208_640, 10_250),
    "H5": (3_712, 67_072, 265_728, 1_055_744, 4_208_640, 10_250),
    "K5": (768, 67_072, 265_728, 1_055_744, 4_208_640, 10_250),
    "K6": (3_712, 101_376, 367_104, 1_324_032, 5_007_360, 10_250),
    "K7": (3_712, 34_304, 101_888, 269_312, 800_768, 10_250),
    "A2": (1_190_144, 265_216, 1_055_744, 4_208_640, 16_805_888, 20_490),
}
ROWS = {name: row for name, *row in PUBLISHED}


@pytest.mark.parametrize("name", STAGES)
def test_stage_breakdown_to_the_unit(name: str) -> None:
    net, options, task, _ = ROWS[name]
    parts = on_meta(net, options, task).named_children()
    assert tuple(sum(p.numel() for p in part.parameters()) for _, part in parts) == STAGES[name]


def mask_shapes(name: str) -> list[tuple[int, ...]]:
    state = on_meta(*ROWS[name][:3]).state_dict()
    return [tuple(value.permute(3, 2, 0, 1).shape) for key, value in state.items() if key.endswith("masks.stored")]


CELLS = {1: (32, 32, 16, 8, 4), 2: (8, 8, 4, 2, 1)}  # maps at 32 pixels; with a 7x7 stem


@pytest.mark.parametrize(("name", "cells"), [("K3", CELLS[1]), ("K2", CELLS[2])])
def test_mask_shapes_of_the_noise_nets(name: str, cells: tuple[int, ...]) -> None:
    """The first mask of a stage has the size and the width of the block's input."""
    shapes = mask_shapes(name)
    runs = [(128, cells[1], 5), (256, cells[2], 4), (512, cells[3], 4), (1024, cells[4], 3)]
    assert shapes == [(width, 1, cell, cell) for width, cell, count in runs for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("K5", (3, 1, 32, 32), (1024, 1, 4, 4)),
        ("K6", (128, 64, 32, 32), (1024, 64, 4, 4)),
        ("K7", (1, 64, 32, 32), (1, 64, 4, 4)),
        ("K8", (1, 64, 32, 32), (1, 64, 4, 4)),
        ("A2", (3, 1280, 32, 32), (2048, 1, 4, 4)),
    ],
)
def test_mask_shapes_of_the_perturb_nets(name: str, first: tuple[int, ...], last: tuple[int, ...]) -> None:
    shapes = mask_shapes(name)
    assert (shapes[0], shapes[-1]) == (first, last)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("K1", 32), ("K2", 32), ("K3", 10), ("K4", 10), ("K5", 8), ("A1", 10), ("A2", 8), ("H4", 8), ("H5", 10)],
)
def test_published_receptive_field(name: str, pixels: int) -> None:
    net, options, task, _ = ROWS[name]
    assert describe(on_meta(net, options, task), task)["receptive_field"] == pixels


@pytest.mark.parametrize(
    ("net", "options", "size"),
    [
        (P, {"pool_type": "avg", "first_filter_size": 0}, 40),
        (P, {"pool_type": "avg", "first_filter_size": 5}, 40),
        (P, {"pool_type": "stride", "first_filter_size": 5}, 40),
        (P, {"pool_type": "avg", "first_filter_size": 7}, 96),
        (P, {"pool_type": "avg", "first_filter_size": 3, "filter_size": 3}, 160),
        ("perturb_resnet50", {"pool_type": "avg", "filter_size": 3}, 96),
        ("resnet18", {}, 160),
    ],
)
def test_receptive_field_is_what_gradients_reach(net: str, options: Options, size: int) -> None:
    """One cell in the middle of the last map: the rows of the picture with a gradient, over a few noise pictures."""
    task = Task(2, 1, (size, size))
    module = build(net, task=task, nfilters=4, **options).eval()
    last: list[torch.Tensor] = []
    module.layer4.register_forward_hook(lambda part, args, out: last.append(out))
    rows = torch.zeros(size, dtype=torch.bool)
    for seed in range(3):
        x = torch.randn(1, 1, size, size, generator=seeded(seed), requires_grad=True)
        module(x)
        middle = last[-1].shape[-1] // 2
        (gradient,) = torch.autograd.grad(last[-1][0, :, middle, middle].sum(), x)
        rows |= gradient[0, 0].abs().amax(1) > 0
    reached = rows.nonzero()
    assert int(reached.max() - reached.min()) + 1 == describe(module, task)["receptive_field"]


@pytest.mark.parametrize("stride", [1, 2])
def test_receptive_field_of_a_shift_is_what_gradients_reach(stride: int) -> None:
    """No operation tells of it: it copies."""
    mixed = [nn.Conv2d(9, 9, 1), nn.Conv2d(9, 9, 1, stride=stride), nn.Conv2d(9, 9, 1)]
    net = nn.Sequential(nn.Conv2d(1, 9, 3, padding=1), Shift(), mixed[0], Shift(), mixed[1], Shift(), mixed[2])
    x = torch.zeros(1, 1, 25, 25, requires_grad=True)
    out = net(x)
    middle = out.shape[2] // 2
    (gradient,) = torch.autograd.grad(out[0, :, middle, middle].sum(), x)
    reached = (gradient[0, 0].abs().amax(1) > 0).nonzero()
    pixels = int(reached.max() - reached.min()) + 1
    assert describe(net, Task(2, 1, (25, 25)))["receptive_field"] == pixels == (9 if stride == 1 else 11)


def test_receptive_field_of_shifts_is_that_of_3x3_filters() -> None:
    task = Task(2, 3, (160, 160))
    fields = [
        describe(on_meta(N, {"nfilters": 9, "first_filter_size": 3, "operator": operator}, task), task)
        for operator in ("shift", "depthwise", "anchors", "anchors-depthwise")
    ]
    assert len({said["receptive_field"] for said in fields}) == 1


@pytest.mark.parametrize(("size", "pixels"), [((6, 4), 6), ((40, 50), 8)])
def test_receptive_field_is_clipped_to_the_image(size: tuple[int, int], pixels: int) -> None:
    task = Task(size=size)
    assert describe(on_meta(P, {"nfilters": 3}, task), task)["receptive_field"] == pixels


SMALL = Task(4, 3, (8, 8))
TINY: list[tuple[str, Options]] = [
    *((net, {"nfilters": 3}) for net in ("resnet18", "resnet50", N, "noiseresnet50", P, "perturb_resnet50", "lenet")),
    ("lbcnet", {"nfilters": 3, "depth": 2}),
    *((net, {"nfilters": 3}) for net in ("batchout_mnist", "batchout_cifar", "vgg19", "vgg19_tied")),
    ("bottleneck_resnet", {"nfilters": 3, "blocks": 2}),
    (P, {"nfilters": 3, "train_masks": True}),
    (P, {"nfilters": 3, "act": "prelu", "use_act": True}),
    (P, {"nfilters": 3, "code": "up"}),
    (P, {"nfilters": 3, "redraw_masks": "always"}),
    (N, {"nfilters": 3, "code": "up"}),
    *((N, {"nfilters": 3, "operator": operator}) for operator in get_args(Operator)),
]
tiny = pytest.mark.parametrize(
    ("net", "options"), [(n, o) for n, o in TINY], ids=[f"{n} {' '.join(map(str, o.values()))}" for n, o in TINY]
)


@tiny
def test_layers_add_up_to_the_net(net: str, options: Options) -> None:
    module = build(net, task=SMALL, **options)
    said = describe(module, SMALL, net)
    trained = said["masks"] if options.get("train_masks") else 0
    assert said["net"] == net
    assert sum(row["parameters"] for row in said["layers"]) + trained == said["trainable"] + said["frozen"]
    assert sum(row["masks"] for row in said["layers"]) == said["masks"]
    assert sum(row["macs"] for row in said["layers"]) == said["macs"]
    assert said["trainable"] == sum(p.numel() for p in module.parameters() if p.requires_grad)
    names = dict(module.named_modules())
    assert all(type(names[row["name"]]).__name__ == row["type"] for row in said["layers"])
    assert said["layers"][-1]["shape"] == [4]


@tiny
def test_describe_says_the_same_on_every_device(net: str, options: Options) -> None:
    assert describe(build(net, task=SMALL, **options), SMALL) == describe(on_meta(net, options, SMALL), SMALL)


def test_describe_takes_any_dtype() -> None:
    module = build(N, task=SMALL, nfilters=3)
    assert describe(module, SMALL) == describe(module.double(), SMALL)


def test_describe_leaves_every_mode_and_no_hook() -> None:
    module = build(N, task=SMALL, nfilters=3).train()
    module.stem.eval()  # one part has a mode of its own
    modes = [part.training for part in module.modules()]
    describe(module, SMALL)
    assert [part.training for part in module.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize("redraw", ["never", "train", "always"])
def test_describe_leaves_the_state(redraw: str) -> None:
    """Also the count of draws: to look at a net must not change the masks that it will draw."""
    module = build(P, task=SMALL, nfilters=3, redraw_masks=redraw)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    describe(module, SMALL)
    assert not [key for key, value in module.state_dict().items() if not torch.equal(value, state[key])]
