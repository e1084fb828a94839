"""The second implementation of every layer and net: plain functions that follow the published code.

Without the masks, the same functions are the mask-free twin that level 0 must equal.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
LEVEL = 0.5


@dataclass(frozen=True)
class State:
    """A part of a state dict; ``level`` None leaves the masks out."""

    values: Mapping[str, Tensor]
    train: bool
    level: float | None = LEVEL
    act: str = "relu"
    outside: bool = False

    def __getitem__(self, part: str) -> "State":
        start = f"{part}."
        return replace(self, values={k.removeprefix(start): v for k, v in self.values.items() if k.startswith(start)})

    def __bool__(self) -> bool:
        return bool(self.values)


Second = Callable[[State, Tensor], Tensor]


def conv(s: State, x: Tensor, stride: int = 1) -> Tensor:
    weight, bias = s.values["weight"], s.values.get("bias")
    return F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])


def linear(s: State, x: Tensor) -> Tensor:
    return F.linear(x, s.values["weight"], s.values["bias"])


def norm(s: State, x: Tensor) -> Tensor:
    running = (None, None) if s.train else (s.values["running_mean"], s.values["running_var"])
    return F.batch_norm(x, *running, s.values["weight"], s.values["bias"], training=s.train)


def act(s: State, x: Tensor) -> Tensor:
    functions: dict[str, Second] = {
        "relu": lambda s, x: F.relu(x),
        "lrelu": lambda s, x: F.leaky_relu(x, 0.01),
        "prelu": lambda s, x: F.prelu(x, s.values["weight"]),
        "rrelu": lambda s, x: F.rrelu(x, 1 / 8, 1 / 3, training=False),
        "elu": lambda s, x: F.elu(x),
        "selu": lambda s, x: F.selu(x),
        "tanh": lambda s, x: torch.tanh(x),
        "sigmoid": lambda s, x: torch.sigmoid(x),
    }
    return functions[s.act](s, x)


def masked(s: State, x: Tensor, factor: float = 1.0) -> Tensor:
    """Map c * M + m is channel c plus level x factor x its mask m; a single set of masks serves every channel."""
    masks = s["masks"].values["stored"].permute(3, 2, 0, 1)
    pairs = [(c, mask) for c in range(x.shape[1]) for mask in masks[c if len(masks) > 1 else 0]]
    maps = [x[:, c] if s.level is None else x[:, c] + s.level * factor * mask for c, mask in pairs]
    return torch.stack(maps, 1)


def masked_act(s: State, x: Tensor, factor: float = 1.0) -> Tensor:
    return masked(s, act(s["act"], x), factor) if s.outside else act(s["act"], masked(s, x, factor))


SIDES = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


def moved(s: State, x: Tensor) -> Tensor:
    """Group by group around the edge to the other side, and what came around is deleted."""
    out = x.clone()
    for (down, right), group in zip(SIDES, torch.arange(x.shape[1]).tensor_split(9), strict=True):
        part = x[:, group].roll((down, right), (2, 3))
        if down:
            part[:, :, 0 if down > 0 else -1] = 0
        if right:
            part[:, :, :, 0 if right > 0 else -1] = 0
        out[:, group] = part
    return out


def filtered(s: State, x: Tensor) -> Tensor:
    """Fixed or learned 3x3 filters."""
    filters = s.values.get("weight", s.values.get("anchors"))
    return F.conv2d(x, filters, padding=1, groups=x.shape[1] // filters.shape[1])


def noise_layer(s: State, x: Tensor) -> Tensor:
    """The authors: + mask, ReLU, BN, 1x1; without masks filters stand there, or what has no state, a shift."""
    other = filtered if s["operator"] else moved
    x = masked_act(s, x) if s["masks"] else F.relu(other(s["operator"], x))
    return conv(s["conv"], norm(s["norm"], x))


def perturb_layer(s: State, x: Tensor, *, use_act: bool = True, factor: float = 1.0, stride: int = 1) -> Tensor:
    """The reproduction: + mask, act if use_act, 1x1, BN, act; to mix the maps 1x1, BN, act again."""
    if s["0.masks"]:
        x = (masked_act if use_act else masked)(s["0"], x, factor)
    x = act(s["2"], norm(s["1"], conv(s["0"], x, stride)))
    return act(s["5"], norm(s["4"], conv(s["3"], x))) if s["3"] else x


def reply_layer(s: State, x: Tensor, factor: float = 1.0) -> Tensor:
    """The authors' reply: + mask, BN, sigmoid, grouped 1x1, BN, sigmoid; to mix the maps 1x1, BN, sigmoid again."""
    x = torch.sigmoid(norm(s["norm"], masked(s, x, factor)))
    return perturb_layer(replace(s["layers"], act="sigmoid"), x)


def binary_layer(s: State, x: Tensor) -> Tensor:
    return conv(s, F.relu(F.conv2d(x, s.values["anchors"], padding=1)))


def perturb_conv(s: State, x: Tensor) -> Tensor:
    return conv(s, masked_act(s, x))


def mutual_batchout(s: State, x: Tensor, *, eta: float, k: float) -> Tensor:
    """In training, each of the first rows goes towards the row as far from the end as it is from the start."""
    rows = [list(row) for row in x.flatten(1).tolist()]
    for i in range(int(k * len(x)) if s.train else 0):
        rows[i] = [value + eta * (other - value) for value, other in zip(rows[i], x[-1 - i].flatten(), strict=True)]
    return torch.tensor(rows, dtype=x.dtype).view(x.shape)


def resnet_block(s: State, x: Tensor, stride: int) -> Tensor:
    return norm(s["4"], conv(s["3"], F.relu(norm(s["1"], conv(s["0"], x, stride)))))


def resnet_neck(s: State, x: Tensor, stride: int) -> Tensor:
    x = F.relu(norm(s["1"], conv(s["0"], x)))
    x = F.relu(norm(s["4"], conv(s["3"], x, stride)))
    return norm(s["7"], conv(s["6"], x))


def noise_block(s: State, x: Tensor, stride: int) -> Tensor:
    """Layer, max-pool, BN, ReLU, layer, BN: the branch keeps its sign."""
    x = F.max_pool2d(noise_layer(s["0"], x), stride, ceil_mode=True)
    return norm(s["5"], noise_layer(s["4"], F.relu(norm(s["2"], x))))


def noise_neck(s: State, x: Tensor, stride: int) -> Tensor:
    x = noise_layer(s["3"], F.relu(norm(s["1"], conv(s["0"], x))))
    x = F.relu(norm(s["5"], F.max_pool2d(x, stride, ceil_mode=True)))
    return norm(s["8"], conv(s["7"], x))


def one_of_a_window(x: Tensor, stride: int, *, ceil_mode: bool) -> Tensor:
    return x[..., ::stride, ::stride]


def over_3x3(x: Tensor, stride: int, *, ceil_mode: bool) -> Tensor:
    """The maximum over each pixel that is kept and its eight neighbours."""
    if stride == 1:
        return x
    bordered = F.pad(x, (1, 1, 1, 1), value=-math.inf)
    height, width = x.shape[2:]
    shifted = [bordered[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.stack(shifted).amax(0)[..., ::stride, ::stride]


def perturb_block(s: State, x: Tensor, stride: int, *, pool: Callable[..., Tensor] = F.max_pool2d) -> Tensor:
    """Layer, pool, layer: the pool comes after batch norm and activation, and the branch ends in an activation."""
    return perturb_layer(s["2"], pool(perturb_layer(s["0"], x), stride, ceil_mode=True))


def perturb_neck(s: State, x: Tensor, stride: int) -> Tensor:
    x = perturb_layer(s["3"], act(s["2"], norm(s["1"], conv(s["0"], x))))
    return norm(s["6"], conv(s["5"], F.max_pool2d(x, stride, ceil_mode=True)))


def conv_stem(s: State, x: Tensor) -> Tensor:
    wide = s["0"].values["weight"].shape[-1] == 7
    x = F.relu(norm(s["1"], conv(s["0"], x, 2 if wide else 1)))
    return F.max_pool2d(x, 3, 2, 1) if wide else x


def perturb_stem(s: State, x: Tensor, **options: Any) -> Tensor:
    wide = s["0.0"].values["weight"].shape[-1] == 7
    x = perturb_layer(s["0"], x, stride=2 if wide else 1, **{"use_act": False} | options)
    return F.max_pool2d(x, 3, 2, 1) if wide else x


def mixed(s: State, x: Tensor) -> Tensor:
    """Behind the first layer 1x1 without bias, BN, act."""
    return act(s["3"], norm(s["2"], conv(s["1"], x)))


def reply_first(s: State, x: Tensor, factor: float = 1.0) -> Tensor:
    """The reply's first layer: masks or a convolution; sigmoid."""
    return reply_layer(s["0"], x, factor) if s["0.masks"] else perturb_layer(replace(s["0"], act="sigmoid"), x)


def reply_stem(s: State, x: Tensor) -> Tensor:
    """The reply: many masks at 20 times the level, or a convolution; sigmoid; then the second 1x1."""
    return mixed(s, reply_first(s, x, 20.0))


def mixed_stem(s: State, x: Tensor) -> Tensor:
    return mixed(s, perturb_layer(s["0"], x, use_act=False))


def resnet(s: State, x: Tensor, *, stem: Second, block: Callable[[State, Tensor, int], Tensor]) -> Tensor:
    x = stem(s["stem"], x)
    for stage in range(1, 5):
        for number in range(len({key.split(".")[0] for key in s[f"layer{stage}"].values})):
            part, stride = s[f"layer{stage}.{number}"], 2 if stage > 1 and number == 0 else 1
            short = norm(part["shortcut.1"], conv(part["shortcut.0"], x, stride)) if part["shortcut"] else x
            x = F.relu(block(part["body"], x, stride) + short)
    return linear(s["linear"], x.mean((2, 3)))


def convnet(s: State, x: Tensor, *, layers: tuple[int, ...]) -> Tensor:
    """Layers and 3x3 pools, then linear, BN, activation, linear (dropout does nothing in eval)."""
    at = 0
    for depth in layers:
        for _ in range(depth):
            x, at = perturb_layer(s[f"{at}"], x, use_act=at > 0), at + 1
        x, at = F.max_pool2d(x, 3, 2, 1), at + 1
    x = act(s[f"{at + 4}"], norm(s[f"{at + 3}"], linear(s[f"{at + 2}"], x.flatten(1))))
    return linear(s[f"{at + 6}"], x)


def lbcnet(s: State, x: Tensor, *, depth: int) -> Tensor:
    x = F.relu(norm(s["stem.1"], conv(s["stem.0"], x)))
    for number in range(depth):
        part = s[f"blocks.{number}.body"]
        y = norm(part["0"], x)
        dense = bool(part["3"])
        x = x + (conv(part["3"], F.relu(conv(part["1"], y))) if dense else binary_layer(part["1"], y))
    x = F.relu(linear(s["hidden.1"], F.avg_pool2d(x, 5).flatten(1)))
    return linear(s["linear.1"], x)


def half(x: Tensor, pool: Callable[..., Tensor]) -> Tensor:
    """2x2 with the odd row left out, unless it is the only one."""
    return pool(x, [1 if edge == 1 else 2 for edge in x.shape[2:]])


def paper_net(s: State, x: Tensor, *, stages: tuple[int, ...], hidden: int, padding: int) -> Tensor:
    """Convolution and ReLU, a pool after each stage, linear layers (dropout does nothing in eval)."""
    at = iter(range(1, 6))
    for depth in stages:
        for part in (s[f"conv{next(at)}"].values for _ in range(depth)):
            x = F.relu(F.conv2d(x, part["weight"], part["bias"], padding=padding))
        x = half(x, F.max_pool2d)
    x = x.flatten(1)
    for number in range(1, hidden + 1):
        x = F.relu(linear(s[f"fc{number}"], x))
    return linear(s[f"fc{hidden + 1}"], x)


def bottleneck_net(s: State, x: Tensor, *, blocks: int, pool: bool) -> Tensor:
    """Norm and activation come before every convolution but the stem; the branch and the shortcut add up bare."""
    x = conv(s["stem"], norm(s["norm"], x))
    for stage, number in ((stage, number) for stage in (1, 2, 3) for number in range(blocks)):
        part, first, stride = s[f"stage{stage}.{number}"], number == 0, 2 if stage > 1 and number == 0 else 1
        a = F.relu(norm(part["act.0"], x))
        y = F.relu(norm(part["body.1"], conv(part["body.0"], a)))
        y = F.relu(norm(part["body.4"], conv(part["body.3"], y, stride)))
        x = conv(part["body.6"], y) + (conv(part["shortcut"], a, stride) if first else x)
    x = F.relu(norm(s["last.0"], x))
    return linear(s["linear"], (half(x, F.avg_pool2d) if pool else x).flatten(1))


def vgg(s: State, x: Tensor, *, norm_first: bool = False, tied: bool = False) -> Tensor:
    """Position by position; where a module is used again, all of its places read the same part of the state."""
    places = {1: "1", 4: "2", **dict.fromkeys((7, 8, 9), "4"), **dict.fromkeys((12, 13, 14, 16, 17, 18, 19), "8")}
    for at in range(21):
        part = s[f"shared.width{places[at]}"] if tied and at in places else s[f"features.{at}"]
        if at in (2, 5, 10, 15, 20):
            x = half(x, F.max_pool2d)
        elif norm_first:
            x = F.relu(norm(part["norm"], conv(part["conv"], x)))
        else:
            x = norm(part["norm"], F.relu(conv(part["conv"], x)))
    return linear(s["linear"], x.flatten(1))
