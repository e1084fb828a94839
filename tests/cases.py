"""One row for each layer, net and attack: how it is made and what it promises.

`test_conformance.py` and `test_attacks.py` hold the rows to that. Every row of a layer or a net names its second
implementation, in `second.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import seeded
from perturblab import attacks
from perturblab.attacks import Effort, registry
from perturblab.layers import (
    ACTIVATIONS,
    AnchorConv2d,
    BatchOut,
    LocalBinaryConv2d,
    Masks,
    Mixing,
    Noise,
    NoiseLayer,
    PerturbConv2d,
    PerturbLayer,
    PerturbLayerFirst,
    Shift,
    plain_layer,
)
from perturblab.models import Task, build
from perturblab.models.skeleton import init_weights
from second import (
    LEVEL,
    Second,
    Size,
    State,
    binary_layer,
    bottleneck_net,
    conv_stem,
    convnet,
    filtered,
    lbcnet,
    mixed_stem,
    moved,
    mutual_batchout,
    noise_block,
    noise_layer,
    noise_neck,
    one_of_a_window,
    over_3x3,
    paper_net,
    perturb_block,
    perturb_conv,
    perturb_layer,
    perturb_neck,
    perturb_stem,
    reply_first,
    reply_layer,
    reply_stem,
    resnet,
    resnet_block,
    resnet_neck,
    vgg,
)

NCLASSES, WIDTH = 4, 6
# Of a drawn value: its second moment, and the variance of its square.
UNIFORM, NORMAL, SIGNS = (1 / 3, 4 / 45), (1.0, 2.0), (1 - 0.606531, 0.606531 * (1 - 0.606531))


# --- the rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A layer or a net.

    Args:
        name: the id of its tests.
        covers: the exported class, or the key of `perturblab.models.NETS`.
        make: ``make(seed, size)`` or, with masks, ``make(seed, size, level)``.
        second: the second implementation; None where there is nothing to compute (`Masks`).
        shape: (C, H, W) of one image.
        out: shape of one output, given (H, W).
        masks: how many sets of masks (or anchors) it holds.
        moments: second moment of the masks (or anchors), and variance of the square; None without them.
        random: what gives other values at each call: "never", "train" (training mode), "always" (eval too).
        act, outside: what the second implementation must know.
        anchors: what is drawn are filters, which no level multiplies.
        stateless: there is nothing to save.
        smallest: smallest height and width.
    """

    name: str
    covers: Any
    make: Callable[..., nn.Module]
    second: Second | None
    out: Callable[[int, int], tuple[int, ...]]
    masks: int = 1
    moments: tuple[float, float] | None = UNIFORM
    shape: tuple[int, int, int] = (3, 6, 5)
    random: str = "never"
    act: str = "relu"
    outside: bool = False
    anchors: bool = False
    stateless: bool = False
    smallest: int = 1

    @property
    def is_net(self) -> bool:
        return isinstance(self.covers, str)

    def new(self, seed: int = 1, *, size: Size | None = None, level: float | None = None) -> nn.Module:
        """The module, of that seed; only what has masks takes a level."""
        return self.make(seed, size or self.shape[1:], *(() if level is None else (level,)))

    def inputs(self, count: int = 2, *, size: Size | None = None, seed: int = 0) -> tuple[Tensor, ...]:
        """Return the arguments of a call: images (N, C, H, W), or nothing."""
        if self.covers is Masks:
            return ()
        generator = seeded(seed)
        return (torch.randn(count, self.shape[0], *(size or self.shape[1:]), generator=generator),)

    def state(self, module: nn.Module, level: float | None = LEVEL) -> State:
        return State(module.state_dict(), module.training, level, self.act, self.outside)


FILTERS = (LocalBinaryConv2d, AnchorConv2d)


def layer_case(
    name: str,
    covers: type[nn.Module],
    second: Second | None,
    *channels: int,
    noise: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **row: Any,
) -> Case:
    """A row of a layer: its channels, the settings of its noise, its other options."""

    def make(seed: int, size: Size, level: float = LEVEL) -> nn.Module:
        generator = seeded(seed)
        drawn = Noise(level=level, **noise or {})
        if covers in FILTERS:
            made = covers(*channels, **options or {}, generator=generator)
        else:
            made = Masks(channels[0], size, drawn, generator=generator)
        if covers not in (*FILTERS, Masks):
            made = covers(made, *channels[1:], **options or {})
        init_weights(made, generator)
        return made

    defaults = {
        "out": lambda h, w: (channels[1], h, w),
        "moments": NORMAL if (noise or {}).get("noise_type") else UNIFORM,
        "anchors": covers in FILTERS,
    }
    return Case(f"{covers.__name__}-{name}", covers, make, second, **defaults | row)


def masks_case(name: str, shape: Callable[[int, int], tuple[int, ...]], **row: Any) -> Case:
    return layer_case(name, Masks, None, 3, out=shape, **row)


def net_case(net: str, second: Second, masks: int = 0, *, name: str = "", row: Any = None, **options: Any) -> Case:
    """A row of a net at a tiny width, for 4 classes."""

    def make(seed: int, size: Size, *level: float) -> nn.Module:
        given = options | ({"level": level[0]} if level else {})
        return build(net, task=Task(NCLASSES, 3, size), seed=seed, **given)

    settings = {"moments": UNIFORM if masks else None, "shape": (3, 8, 8), "out": lambda h, w: (NCLASSES,)}
    return Case(f"{net}-{name}" if name else net, net, make, second, masks=masks, **settings | (row or {}))


def conv_case(name: str, size: int, out: Callable[[int, int], tuple[int, ...]], stride: int = 1) -> Case:
    """A row of the plain layer that takes the place of a perturbation layer."""

    def make(seed: int, _size: Size, level: float = LEVEL) -> nn.Module:
        made = plain_layer(3, 6, size, first=stride == 2)
        init_weights(made, seeded(seed))
        return made

    second = partial(perturb_layer, stride=stride)
    return Case(f"PerturbLayer-{name}", PerturbLayer, make, second, masks=0, moments=None, out=out)


def wide(h: int, w: int) -> tuple[int, ...]:
    return (6, h, w)


AGAIN = {"redraw_masks": "train"}, {"redraw_masks": "always"}
MASKS = [
    masks_case("unique", lambda h, w: (3, 2, h, w), noise={"nmasks": 2}),
    masks_case(
        "shared-normal", lambda h, w: (1, 2, h, w), noise={"nmasks": 2, "unique_masks": False, "noise_type": "normal"}
    ),
    masks_case("trained", lambda h, w: (3, 1, h, w), noise={"train_masks": True}),
    masks_case("constant", lambda h, w: (3, 1, 1, 1), noise={"constant_masks": True}),
    masks_case("redrawn-in-train", lambda h, w: (3, 1, h, w), noise=AGAIN[0], random="train"),
    masks_case("redrawn-always", lambda h, w: (3, 1, h, w), noise=AGAIN[1], random="always"),
]
PERTURB_CONVS = [
    layer_case("one-mask", PerturbConv2d, perturb_conv, 3, 4),
    layer_case("three-masks", PerturbConv2d, perturb_conv, 3, 6, noise={"nmasks": 3}),
    layer_case("three-shared", PerturbConv2d, perturb_conv, 3, 6, noise={"nmasks": 3, "unique_masks": False}),
    layer_case("outside", PerturbConv2d, perturb_conv, 3, 4, noise={"untied_bias": True}, outside=True),
    layer_case("grouped", PerturbConv2d, perturb_conv, 3, 6, options={"groups": 3}),
]
PERTURB_LAYERS = [
    *(
        layer_case(name, PerturbLayer, perturb_layer, 3, 4, options={"act": name}, act=name)
        for name in ACTIVATIONS
        if name != "rrelu"
    ),
    layer_case("rrelu", PerturbLayer, perturb_layer, 3, 4, options={"act": "rrelu"}, act="rrelu", random="train"),
    layer_case("unique", PerturbLayer, perturb_layer, 3, 6, noise={"nmasks": 4}),
    layer_case("shared", PerturbLayer, perturb_layer, 3, 6, noise={"nmasks": 4, "unique_masks": False}),
    layer_case("mixed", PerturbLayer, perturb_layer, 3, 6, noise={"nmasks": 4}, options={"mix_maps": True}),
    layer_case("ungrouped", PerturbLayer, perturb_layer, 3, 4, noise={"nmasks": 4}, options={"groups": 1}),
    layer_case("normal", PerturbLayer, perturb_layer, 3, 6, noise={"noise_type": "normal"}),
    layer_case("trained", PerturbLayer, perturb_layer, 3, 6, noise={"train_masks": True, "nmasks": 2}),
    layer_case("constant", PerturbLayer, perturb_layer, 3, 6, noise={"constant_masks": True, "nmasks": 2}),
    layer_case("outside", PerturbLayer, perturb_layer, 3, 6, noise={"untied_bias": True}, outside=True),
    layer_case("no-act", PerturbLayer, partial(perturb_layer, use_act=False), 3, 6, options={"use_act": False}),
    layer_case("redrawn-in-train", PerturbLayer, perturb_layer, 3, 6, noise=AGAIN[0], random="train"),
    layer_case("redrawn-always", PerturbLayer, perturb_layer, 3, 6, noise=AGAIN[1], random="always"),
    *(conv_case(f"conv{size}", size, wide) for size in (1, 3, 5, 7)),
    conv_case("conv7-first", 7, lambda h, w: (6, (h + 1) // 2, (w + 1) // 2), stride=2),
]
NOISE_LAYERS = [
    layer_case("one-mask", NoiseLayer, noise_layer, 3, 4),
    layer_case("three-masks", NoiseLayer, noise_layer, 3, 6, noise={"nmasks": 3}),
    layer_case("outside", NoiseLayer, noise_layer, 3, 4, noise={"untied_bias": True}, outside=True),
    layer_case("constant", NoiseLayer, noise_layer, 3, 4, noise={"constant_masks": True}),
]
REPLY_LAYERS = [
    layer_case("five-masks", PerturbLayerFirst, reply_layer, 3, 6, noise={"nmasks": 5}),
    layer_case("shared", PerturbLayerFirst, reply_layer, 3, 6, noise={"nmasks": 5, "unique_masks": False}),
    layer_case("ungrouped", PerturbLayerFirst, reply_layer, 3, 4, noise={"nmasks": 5}, options={"groups": 1}),
    layer_case("mixed", PerturbLayerFirst, reply_layer, 3, 6, noise={"nmasks": 2}, options={"mix_maps": True}),
]
BINARY_LAYERS = [
    layer_case("binary", LocalBinaryConv2d, binary_layer, 3, 6, 16, moments=SIGNS),
    layer_case("gaussian", LocalBinaryConv2d, binary_layer, 3, 6, 16, options={"anchors": "gaussian"}, moments=NORMAL),
]
ANCHORS = [
    layer_case("dense", AnchorConv2d, filtered, 3, 6, moments=SIGNS),
    layer_case("depthwise", AnchorConv2d, filtered, 6, 6, options={"groups": 6}, moments=SIGNS, shape=(6, 6, 5)),
    layer_case("gaussian", AnchorConv2d, filtered, 3, 6, options={"anchors": "gaussian"}, moments=NORMAL),
]


def shift_case(channels: int) -> Case:
    """A row of the shift, which neither draws nor keeps anything."""
    row: dict[str, Any] = {"masks": 0, "moments": None, "stateless": True, "shape": (channels, 6, 5)}
    name = f"{Shift.__name__}-{channels}"
    return Case(name, Shift, lambda seed, size: Shift(), moved, lambda h, w: (channels, h, w), **row)


SHIFTS = [shift_case(channels) for channels in (1, 4, 9, 20)]


def batchout_case(name: str, second: Second = lambda s, x: x, *, random: str = "train", **mixing: Any) -> Case:
    """A row of BatchOut, which has no masks and whose draws the second implementation cannot know.

    So what it computes is compared where nothing is drawn, and in eval mode, where it is the identity. Partners come
    from the batch, hence what stays on in eval mode does not treat every image alone.
    """

    def make(seed: int, size: Size) -> nn.Module:
        return BatchOut(Mixing(**mixing), generator=seeded(seed))

    name = f"{BatchOut.__name__}-{name}"
    return Case(name, BatchOut, make, second, lambda h, w: (3, h, w), masks=0, moments=None, random=random)


BATCHOUTS = [
    batchout_case("paper", eta="U[0,0.1]"),
    batchout_case(
        "mutual", partial(mutual_batchout, eta=0.3, k=0.75), random="never", eta=0.3, k=0.75, partners="mutual"
    ),
    batchout_case("noise", eta=0.3, partners="noise", rows="random"),
    # Undetached: else the derivative, the identity by design, is not that of the function, and gradcheck would say so.
    batchout_case("inference", random="always", eta="U[0.1,0.9]", k=1.0, inference=True, detach=False),
]
LAYERS = [
    *(*MASKS, *PERTURB_CONVS, *PERTURB_LAYERS, *NOISE_LAYERS, *REPLY_LAYERS),
    *(*BINARY_LAYERS, *ANCHORS, *SHIFTS, *BATCHOUTS),
]

plain, plain_neck = (partial(resnet, stem=conv_stem, block=block) for block in (resnet_block, resnet_neck))
noise, noise_deep = (partial(resnet, stem=conv_stem, block=block) for block in (noise_block, noise_neck))
pnn, pnn_neck = (partial(resnet, stem=perturb_stem, block=block) for block in (perturb_block, perturb_neck))
average, strided, overlapping = (
    partial(resnet, stem=perturb_stem, block=partial(perturb_block, pool=pool))
    for pool in (F.avg_pool2d, one_of_a_window, over_3x3)
)
first_act = partial(resnet, stem=partial(perturb_stem, use_act=True, factor=3.0), block=perturb_block)
reply, sigmoid, mixed_first = (
    partial(resnet, stem=stem, block=perturb_block) for stem in (reply_stem, reply_first, mixed_stem)
)
ALL_OF_THE_REPLY: dict[str, Any] = {"first_masks": 5, "first_sigmoid": True, "first_mix": True, "scale_noise": 20.0}
DROPOUT: dict[str, Any] = {"random": "train"}
DRAWN_SIGNS: dict[str, Any] = {"moments": SIGNS, "anchors": True}
P18 = partial(net_case, "perturb_resnet18", nfilters=WIDTH)
LBC = partial(net_case, "lbcnet", partial(lbcnet, depth=2), nfilters=4, nweights=6, depth=2, full=8)


def paper_case(net: str, padding: int, smallest: int, *, name: str = "", dropout: float = 0.5) -> Case:
    """A row of one of the two nets of the BatchOut paper."""
    layers = {"batchout_mnist": {"stages": (1, 1), "hidden": 1}, "batchout_cifar": {"stages": (2, 3), "hidden": 2}}
    size = max(8, smallest)
    row = {"smallest": smallest, "shape": (3, size, size), "random": "train" if dropout else "never"}
    second = partial(paper_net, padding=padding, **layers[net])
    return net_case(net, second, name=name, nfilters=WIDTH, padding=padding, dropout=dropout, row=row)


BOTTLENECK = partial(net_case, "bottleneck_resnet")


def operated(operator: str, masks: int = 0, row: Any = None) -> Case:
    """A row of the authors' net with another operator."""
    return net_case(
        "noiseresnet18", noise, masks, name=operator, nfilters=WIDTH, first_filter_size=3, operator=operator, row=row
    )


NET_ROWS = [
    net_case("resnet18", plain, nfilters=WIDTH),
    net_case("resnet34", plain, nfilters=3),
    net_case("resnet50", plain_neck, nfilters=3),
    net_case("noiseresnet18", noise, 16, nfilters=WIDTH),
    net_case("noiseresnet18", noise, 16, name="first3", nfilters=WIDTH, first_filter_size=3),
    net_case("noiseresnet18", noise, 16, name="up", nfilters=WIDTH, first_filter_size=3, code="up"),
    net_case("noiseresnet18", noise, 16, name="untied", nfilters=WIDTH, untied_bias=True, row={"outside": True}),
    net_case("noiseresnet18", noise, 16, name="constant", nfilters=WIDTH, constant_masks=True),
    net_case("noiseresnet18", noise, 16, name="redrawn", nfilters=3, redraw_masks="train", row=DROPOUT),
    *(operated(operator=operator) for operator in ("shift", "depthwise")),
    *(
        operated(masks=16, operator=o, row={"moments": SIGNS, "anchors": True})
        for o in ("anchors", "anchors-depthwise")
    ),
    net_case("noiseresnet50", noise_deep, name="shift", nfilters=3, operator="shift"),
    net_case("noiseresnet34", noise, 32, nfilters=3),
    net_case("noiseresnet50", noise_deep, 16, nfilters=3),
    net_case("noiseresnet101", noise_deep, 33, nfilters=2),
    net_case("noiseresnet152", noise_deep, 50, nfilters=2),
    P18(pnn, 17),
    P18(pnn, 16, name="first3", first_filter_size=3),
    P18(pnn, 0, name="1x1", first_filter_size=3, filter_size=1),
    P18(pnn, 16, name="first7", first_filter_size=7),
    P18(pnn, 16, name="mixed", first_filter_size=3, nmasks=4, mix_maps=True),
    P18(pnn, 16, name="shared", first_filter_size=3, nmasks=4, unique_masks=False),
    P18(pnn, 16, name="trained", first_filter_size=3, nmasks=4, unique_masks=False, train_masks=True),
    P18(pnn, 16, name="5x5-first", first_filter_size=5, noise_type="normal", row={"moments": NORMAL}),
    P18(pnn, 0, name="7x7", first_filter_size=7, filter_size=7),
    P18(pnn, 17, name="prelu", act="prelu", row={"act": "prelu"}),
    P18(pnn, 17, name="rrelu", act="rrelu", row=DROPOUT | {"act": "rrelu"}),
    P18(pnn, 17, name="redrawn", redraw_masks="always", row={"random": "always"}),
    P18(pnn, 17, name="untied", untied_bias=True, act="tanh", row={"outside": True, "act": "tanh"}),
    P18(average, 17, name="avg", pool_type="avg"),
    P18(strided, 17, name="strided", pool_type="stride"),
    P18(overlapping, 17, name="overlap", pool_type="overlap"),
    P18(first_act, 17, name="use-act", use_act=True, scale_noise=3.0),
    P18(reply, 17, name="up", code="up"),
    P18(reply, 16, name="up-first3", code="up", first_filter_size=3),
    P18(pnn, 17, name="first-masks", first_masks=2),
    P18(sigmoid, 17, name="first-sigmoid", first_sigmoid=True),
    P18(sigmoid, 17, name="first-masks-sigmoid", first_masks=2, first_sigmoid=True),
    P18(sigmoid, 16, name="first3-sigmoid", first_filter_size=3, first_sigmoid=True),
    P18(mixed_first, 17, name="first-mix", first_mix=True, nmasks=2),
    P18(reply, 17, name="first-all", **ALL_OF_THE_REPLY),
    net_case("perturb_resnet34", pnn, 33, nfilters=3),
    net_case("perturb_resnet50", pnn_neck, 17, nfilters=3),
    net_case("cifarnet", partial(convnet, layers=(2, 2, 2)), 6, nfilters=WIDTH, row=DROPOUT),
    net_case("lenet", partial(convnet, layers=(1, 1, 1)), 3, nfilters=WIDTH, row=DROPOUT),
    LBC(masks=2, row=DROPOUT | DRAWN_SIGNS | {"smallest": 5}),
    LBC(
        masks=2, name="gaussian", anchors="gaussian", row=DROPOUT | {"moments": NORMAL, "anchors": True, "smallest": 5}
    ),
    LBC(masks=0, name="dense", anchors="dense", row=DROPOUT | {"smallest": 5}),
    paper_case("batchout_mnist", 1, 8),
    paper_case("batchout_mnist", 0, 14, name="unpadded"),
    paper_case("batchout_mnist", 2, 1, name="same", dropout=0.0),
    paper_case("batchout_cifar", 1, 1),
    paper_case("batchout_cifar", 0, 18, name="unpadded", dropout=0.0),
    BOTTLENECK(partial(bottleneck_net, blocks=2, pool=True), nfilters=3, blocks=2),
    BOTTLENECK(partial(bottleneck_net, blocks=1, pool=False), name="narrow", nfilters=8, blocks=1, reading="A"),
    net_case("vgg19", vgg, nfilters=3),
    net_case("vgg19", partial(vgg, norm_first=True), name="bn-relu", nfilters=3, norm_order="bn-relu"),
    net_case("vgg19_tied", partial(vgg, tied=True), nfilters=3),
    net_case("vgg19_tied", partial(vgg, norm_first=True, tied=True), name="bn-relu", nfilters=3, norm_order="bn-relu"),
]

CASES = [*LAYERS, *NET_ROWS]


# --- the attacks: `test_attacks.py` holds them to their promises ----------------------------------------------------


@dataclass(frozen=True)
class AttackCase:
    """An attack.

    Args:
        covers: the key of `perturblab.attacks.ATTACKS`.
        make: ``make(model, x, y, threat, generator=...)``, with little effort.
        norms: the norms that it knows.
        white: it follows the gradient of the net.
        random: another seed gives other images, and no generator is an error.
        stays: in the ball and the bounds; a published mistake does not.
        name: the id of its tests.
    """

    covers: str
    make: Callable[..., Tensor]
    norms: tuple[str, ...] = ("linf", "l2")
    white: bool = True
    random: bool = False
    stays: bool = True
    name: str = ""

    @property
    def id(self) -> str:
        return self.name or self.covers


def unclipped(attack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The attack as the registry unclips it: images within the bounds, which it may leave."""
    run = registry.unclipped(lambda m, x, y, t, e, g: attack(m, x, y, t, generator=g))
    return lambda model, x, y, threat, generator=None: run(model, x, y, threat, Effort(), generator)


DRAWS: dict[str, Any] = {"random": True}
BLIND: dict[str, Any] = {"random": True, "white": False}
ATTACK_ROWS = [
    AttackCase("fgsm", attacks.fgsm),
    AttackCase("pgd", partial(attacks.pgd, effort=Effort(steps=6, restarts=2)), **DRAWS),
    AttackCase(
        "pgd",
        partial(attacks.pgd, effort=Effort(steps=6, restarts=1), start_at_random=False),
        name="pgd-from-the-image",
    ),
    AttackCase("deepfool", partial(attacks.deepfool, iterations=5), norms=("l2",)),
    AttackCase("autoattack", partial(attacks.autoattack, ensemble=attacks.Ensemble(queries=20)), **DRAWS),
    AttackCase("square", partial(attacks.square, queries=60), **BLIND),
    AttackCase("uniform", attacks.uniform_noise, **BLIND),
    AttackCase("gaussian", attacks.gaussian_noise, **BLIND),
    AttackCase("universal", partial(attacks.universal, batch_size=4), **DRAWS),
    AttackCase("fgsm-unclipped", unclipped(attacks.fgsm), stays=False),
    AttackCase("deepfool-unclipped", unclipped(attacks.deepfool), norms=("l2",), stays=False),
    AttackCase("fgsm-normalised", attacks.fgsm_normalised, norms=("linf",), stays=False),
]


def over(rows: list[AttackCase]) -> pytest.MarkDecorator:
    assert rows, "an empty list of rows would pass without a test"
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.id)


RANDOM = [row for row in ATTACK_ROWS if row.random]
HONEST = [row for row in ATTACK_ROWS if row.stays]
WHITE = [row for row in HONEST if row.white]
