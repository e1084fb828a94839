"""Counting from the modules themselves: parameters, masks, multiply-accumulates, receptive field."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from perturblab.layers.kernels import published
from perturblab.layers.lbc import AnchorConv2d, LocalBinaryConv2d
from perturblab.layers.masks import Masks
from perturblab.layers.shift import Shift
from perturblab.models.skeleton import Task

_POOLS = (torch.ops.aten.max_pool2d_with_indices.default, torch.ops.aten.avg_pool2d.default)


@dataclass(frozen=True)
class Field:
    """Receptive field of one value of a map: `side` pixels; neighbours are `jump` pixels apart."""

    side: int = 1
    jump: int = 1


@dataclass
class LayerRow:
    """One layer: name, type, output shape of one image, parameters, masks and MACs."""

    name: str
    type: str
    shape: list[int] = field(default_factory=list)
    parameters: int = 0
    masks: int = 0
    macs: int = 0


class _Counter(TorchDispatchMode):
    """Watches every operation of one forward pass of one image: its MACs and its receptive field."""

    def begin(self) -> "_Counter":
        self.macs = 0
        self.field = Field()
        # The tensors are kept with their fields, so that an id is never used twice.
        self._seen: dict[int, tuple[Tensor, Field]] = {}
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, (tuple, list)) else out
        if isinstance(first, Tensor):
            self._count(func, args, first)
        return out

    def widen(self, given: Tensor, out: Tensor, kernel: int) -> None:
        """Say that `out` has seen of `given` what a convolution of that kernel sees, where no operation tells."""
        seen = self._seen[id(given)][1] if id(given) in self._seen else Field()
        self.field = _grown(seen, kernel, 1)
        self._seen[id(out)] = (out, self.field)

    def _count(self, func: Any, args: Sequence[Any], out: Tensor) -> None:
        given = [self._seen[id(a)][1] for a in args if isinstance(a, Tensor) and id(a) in self._seen]
        seen = Field(max((f.side for f in given), default=1), max((f.jump for f in given), default=1))
        if func is torch.ops.aten.convolution.default:
            self.macs += out[0, 0].numel() * args[1].numel()
            seen = _grown(seen, args[1].shape[-1], args[3][0])
        elif func is torch.ops.aten.addmm.default:
            self.macs += args[2].numel()
        elif func in _POOLS:
            seen = _grown(seen, args[1][0], (args[2] or args[1])[0])
        self._seen[id(out)] = (out, seen)
        if out.dim() == 4:
            self.field = seen


def _grown(seen: Field, kernel: int, stride: int) -> Field:
    return Field(seen.side + (kernel - 1) * seen.jump, seen.jump * stride)


def _counted(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the modules that are one row each: leaves; a layer with its masks and activation counts as a leaf."""
    inside: set[str] = set()
    for name, module in net.named_modules():
        if isinstance(module, Masks) or name.rpartition(".")[0] in inside:
            continue
        if isinstance(module, nn.Conv2d):
            inside.add(name)
        if isinstance(module, nn.Conv2d) or not any(True for _ in module.children()):
            yield name, module
        elif any(isinstance(child, Masks) for child in module.children()):
            # The order of the authors' codes: the masks are a part beside the batch norm and the convolution.
            yield f"{name}.masks", next(child for child in module.children() if isinstance(child, Masks))


def _own(module: nn.Module) -> tuple[int, int, int]:
    """Count (trainable, frozen, mask values) of a module and its parts."""
    masks = sum(math.prod(m.shape) for m in module.modules() if isinstance(m, Masks))
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    anchors = sum(m.anchors.numel() for m in module.modules() if isinstance(m, LocalBinaryConv2d | AnchorConv2d))
    return trainable, frozen + anchors, masks


@contextmanager
def _hooks(rows: Mapping[nn.Module, LayerRow], counter: _Counter) -> Iterator[None]:
    start: dict[nn.Module, int] = {}

    def before(module: nn.Module, args: Any) -> None:
        start[module] = counter.macs

    def after(module: nn.Module, args: Any, out: Tensor) -> None:
        rows[module].macs += counter.macs - start[module]
        if isinstance(module, Shift) and out.shape[1] > 1:  # a single channel stays where it is
            counter.widen(args[0], out, 3)
        rows[module].shape = list(out.shape if isinstance(module, Masks) else out.shape[1:])

    handles = [h for m in rows for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe(net: nn.Module, task: Task, name: str = "") -> dict[str, Any]:
    """Count a net from its modules, by one forward pass of one image; no data are needed.

    Args:
        net: built for the task; on the meta device nothing is computed. Its mode is kept.
        task: channels and size of the image.
        name: the net's name.

    Returns:
        ``net``, ``trainable`` (with trained masks), ``frozen`` (with fixed anchors), ``masks`` (all mask values),
        ``macs`` (convolutions and linear layers, per image), ``receptive_field`` (side in pixels of what one cell
        of the last map has seen, clipped to the image) and ``layers``, a row each.
    """
    net = copy.deepcopy(net).eval()  # to look at a net changes neither its modes nor its count of draws
    rows = {}
    for path, module in _counted(net):
        trainable, frozen, masks = _own(module)
        trained = sum(p.numel() for m in module.modules() if isinstance(m, Masks) for p in m.parameters())
        rows[module] = LayerRow(path, type(module).__name__, [], trainable + frozen - trained, masks)
    make: Any = _Counter  # torch does not type its constructor
    counter, like = make().begin(), next(net.parameters())
    with torch.no_grad(), _hooks(rows, counter), counter, published():  # the operations that the papers count
        net(torch.zeros(1, task.channels, *task.size, device=like.device, dtype=like.dtype))
    trainable, frozen, masks = _own(net)
    return {
        "net": name,
        "trainable": trainable,
        "frozen": frozen,
        "masks": masks,
        "macs": counter.macs,
        "receptive_field": min(counter.field.side, max(task.size)),
        "layers": [asdict(row) for row in rows.values() if row.parameters or row.masks or row.macs],
    }
