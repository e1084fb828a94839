"""Parameters, masks and multiplications of every net in closed form.

It knows nothing of the modules: it adds up convolutions, norms and masks from the widths and sizes.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from perturblab.models import Task

Options = dict[str, Any]
N, P = "noiseresnet18", "perturb_resnet18"
FIRST = ("first_masks", "first_sigmoid", "first_mix")
DEPTHS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}


@dataclass
class Ledger:
    """The totals of a net, added layer by layer; ``h`` x ``w`` is the size of the current map, ``c`` its width."""

    c: int
    h: int
    w: int
    options: Options
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0])  # trainable, frozen, masks, MACs, statistics

    def book(self, *amounts: int) -> None:
        self.counts = [have + more for have, more in zip(self.counts, amounts, strict=True)]

    def option(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)

    def halve(self) -> None:
        self.h, self.w = math.ceil(self.h / 2), math.ceil(self.w / 2)

    def conv(
        self, out: int, k: int = 1, *, bias: bool = False, stride: int = 1, fan_in: int = 0, frozen: bool = False
    ) -> None:
        """``fan_in``: maps that one output sees, if not all."""
        if stride == 2:
            self.halve()
        weights = out * (fan_in or self.c) * k * k
        self.book(0 if frozen else weights + bias * out, weights if frozen else 0, 0, weights * self.h * self.w, 0)
        self.c = out

    def norm(self, width: int = 0) -> None:
        self.book(2 * (width or self.c), 0, 0, 0, 2 * (width or self.c))

    def mask(self, nmasks: int = 1) -> None:
        channels = self.c if self.option("unique_masks", True) else 1
        values = channels * nmasks * (1 if self.option("constant_masks", False) else self.h * self.w)
        self.book(values if self.option("train_masks", False) else 0, 0, values, 0, 0)

    def linear(self, inputs: int, outputs: int) -> None:
        self.book(inputs * outputs + outputs, 0, 0, inputs * outputs, 0)

    def operate(self) -> None:
        """Count the replacement of the masks in a noise ResNet: nothing, or nine values per filter."""
        operator = self.option("operator", "noise")
        if operator == "noise":
            self.mask()
        elif operator != "shift":
            fan_in = self.c if operator == "anchors" else 1
            self.conv(self.c, 3, fan_in=fan_in, frozen=operator.startswith("anchors"))

    def noise(self, out: int) -> None:
        self.operate()
        self.norm()
        self.conv(out, bias=True)

    def perturb(self, out: int, size: int, *, first: bool = False) -> None:
        """The reproduction's layer: masks and a grouped 1x1, or a convolution; batch norm; perhaps the mixing."""
        if size:
            self.conv(out, size, bias=size == 1, stride=2 if first and size == 7 else 1)
        else:
            nmasks = self.option("nmasks", 1)
            self.mask(nmasks)
            self.conv(out, bias=True, fan_in=nmasks if nmasks > 1 else 0)
        self.norm()
        self.mix(not size)

    def mix(self, perturbs: bool) -> None:
        if perturbs and self.option("mix_maps", False):
            self.conv(self.c, bias=True)
            self.norm()

    def conv_norm(self, out: int, k: int = 1, stride: int = 1) -> None:
        self.conv(out, k, stride=stride)
        self.norm()


def several(book: Ledger, width: int, reply: bool) -> None:
    """A first layer that the reply changed in one way or several."""
    times, mix = book.option("first_masks", 5 if reply else 0), book.option("first_mix", reply)
    nmasks = times * width if times else book.option("nmasks", 1)
    book.mask(nmasks)
    if book.option("first_sigmoid", reply):
        book.norm(book.c * nmasks)
    grouped = nmasks > 1 and (mix or not times)
    book.conv(width * (book.c if mix else 1), bias=True, fan_in=nmasks if grouped else book.c * nmasks)
    book.norm()
    book.mix(True)


def stem(book: Ledger, family: str) -> None:
    width, reply = book.option("nfilters", 64), book.option("code", "kl") == "up"
    size = book.option("first_filter_size", 7 if family == "noiseresnet" else 0)
    if family == "resnet":
        book.conv_norm(width, 3)
    elif family == "noiseresnet":
        book.conv(width, size, stride=2 if size == 7 else 1, frozen=reply)
        book.norm()
    elif family == "perturb_resnet" and not size and any(book.option(name, reply) for name in FIRST):
        several(book, width, reply)
    else:
        book.perturb(book.c * width if book.option("first_mix", reply) else width, size, first=True)
    if size == 7:
        book.halve()  # max-pool 3/2
    if family == "perturb_resnet" and book.option("first_mix", reply):
        book.conv_norm(width)


def block(book: Ledger, family: str, planes: int, stride: int, neck: bool) -> None:
    inner = book.option("filter_size", 0)
    if neck:
        book.conv_norm(planes)
    if family == "resnet":
        book.conv_norm(planes, 3, stride)
        book.conv_norm(4 * planes) if neck else book.conv_norm(planes, 3)
        return
    book.noise(planes) if family == "noiseresnet" else book.perturb(planes, inner)
    if stride == 2:
        book.halve()
    if family == "noiseresnet":
        book.norm()
    if neck:
        book.conv_norm(4 * planes)
    elif family == "noiseresnet":
        book.noise(planes)
        book.norm()
    else:
        book.perturb(planes, inner)


def residual(book: Ledger, name: str, task: Task) -> None:
    depth = name.removeprefix("perturb_").removeprefix("noise").removeprefix("resnet")
    family, neck = name.removesuffix(depth), int(depth) >= 50
    stem(book, family)
    for stage, blocks in enumerate(DEPTHS[depth]):
        for number in range(blocks):
            planes, stride = book.option("nfilters", 64) * 2**stage, 2 if stage and not number else 1
            inputs = book.c
            block(book, family, planes, stride, neck)
            if stride == 2 or inputs != book.c:
                weights = inputs * book.c
                book.book(weights, 0, 0, weights * book.h * book.w, 0)
                book.norm()
    book.linear(book.c, task.nclasses)


def convnet(book: Ledger, layers: int, hidden: int, task: Task) -> None:
    for at in range(3 * layers):
        name = "filter_size" if at else "first_filter_size"
        book.perturb(book.option("nfilters", 64), book.option(name, 0), first=not at)
        if at % layers == layers - 1:
            book.halve()
    book.linear(book.c * book.h * book.w, hidden)
    book.norm(hidden)
    book.linear(hidden, task.nclasses)


def lbcnet(book: Ledger, task: Task) -> None:
    width, nweights, dense = book.option("nfilters", 16), book.option("nweights", 512), book.option("anchors", "")
    book.conv(width, 3, bias=True)
    book.norm()
    for _ in range(book.option("depth", 75)):
        book.norm()
        book.conv(nweights, 3, bias=dense == "dense", frozen=dense != "dense")
        book.conv(width, bias=True)
    full = book.option("full", 128)
    book.linear(width * (book.h // 5) * (book.w // 5), full)
    book.linear(full, task.nclasses)


def shrink(book: Ledger) -> None:
    """A 2x2 pooling that leaves odd rows out."""
    book.h, book.w = max(1, book.h // 2), max(1, book.w // 2)


def paper_net(book: Ledger, size: int, stages: list[list[int]], hidden: list[int], task: Task) -> None:
    edge = 2 * book.option("padding", 1) - size + 1
    for stage in stages:
        for multiple in stage:
            book.h, book.w = book.h + edge, book.w + edge
            book.conv(multiple * book.option("nfilters", 32), size, bias=True)
        shrink(book)
    widths = [book.c * book.h * book.w, *(multiple * book.option("nfilters", 32) for multiple in hidden), task.nclasses]
    for inputs, outputs in itertools.pairwise(widths):
        book.linear(inputs, outputs)


def bottleneck(book: Ledger, task: Task) -> None:
    width, narrow = book.option("nfilters", 16), book.option("reading", "B") == "A"
    book.norm()
    book.conv(width, 3)
    for stage, number in itertools.product(range(3), range(book.option("blocks", 9))):
        inner, inputs = width * 2**stage // (4 if narrow else 1), book.c
        book.norm()
        book.conv_norm(inner)
        book.conv_norm(inner, 3, 2 if stage and not number else 1)
        book.conv(4 * inner)
        if not number:
            book.book(inputs * book.c, 0, 0, inputs * book.c * book.h * book.w, 0)
    book.norm()
    if not narrow:
        shrink(book)
    book.linear(book.c * book.h * book.w, task.nclasses)


def vgg(book: Ledger, task: Task, *, tied: bool) -> None:
    """(width, positions of a stage, how many of them have a block of their own in the tied net)."""
    for multiple, depth, own in ((1, 2, 2), (2, 2, 2), (4, 4, 2), (8, 4, 2), (8, 4, 0)):
        for number in range(depth):
            if tied and number >= own:
                book.book(0, 0, 0, 9 * book.c * book.c * book.h * book.w, 0)
            else:
                book.conv(multiple * book.option("nfilters", 64), 3, bias=True)
                book.norm()
        shrink(book)
    book.linear(book.c * book.h * book.w, task.nclasses)


def closed_form(net: str, options: Options, task: Task) -> tuple[int, ...]:
    """(trainable, frozen, masks, MACs, running statistics)."""
    book = Ledger(task.channels, *task.size, options)
    if net == "lbcnet":
        lbcnet(book, task)
    elif net in ("lenet", "cifarnet"):
        convnet(book, *((1, 128) if net == "lenet" else (2, 256)), task)
    elif net == "batchout_mnist":
        paper_net(book, 5, [[1], [1]], [8], task)
    elif net == "batchout_cifar":
        paper_net(book, 3, [[1, 2], [2, 2, 2]], [16, 16], task)
    elif net == "bottleneck_resnet":
        bottleneck(book, task)
    elif net.startswith("vgg"):
        vgg(book, task, tied=net == "vgg19_tied")
    else:
        residual(book, net, task)
    return tuple(book.counts)
