"""The perturbation in C++, see perturb.cpp: the fast way on the CPU."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.layers.kernels.build import SCALARS, library

_ACTS = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "leaky_relu",
    nn.RReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
_FLOATS: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are set to
_CHUNKS = 16  # parts of the pixels; fixed, so that sums do not depend on the number of threads


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "pixels", "channels", "masks", "filters", "padded")),
        *((name, ctypes.c_int64) for name in ("shared", "constant", "half_masks", "chunks")),
        *((name, ctypes.c_double) for name in ("level", "below")),
        *((name, ctypes.c_void_p) for name in ("x", "mask", "weight", "bias", "y", "dx", "dweight", "dmask", "dbelow")),
    ]


def knows(act: object) -> bool:
    """Return True if an activation module has a native form."""
    if type(act) not in _ACTS or not isinstance(act, nn.Module) or _is_watched(act):
        return False
    if isinstance(act, nn.PReLU):
        return act.num_parameters == 1
    if isinstance(act, nn.ELU):
        return act.alpha == 1.0
    return not (isinstance(act, nn.RReLU) and act.training)


def _is_watched(act: nn.Module) -> bool:
    """Return True if a hook waits for a call that the native form would not make."""
    return bool(act._forward_hooks or act._forward_pre_hooks or act._backward_hooks or act._backward_pre_hooks)


def usable(x: Tensor, masks: Tensor, act: object) -> bool:
    """Return True if the native form takes features (N, C, H, W), masks (C or 1, M, H or 1, W or 1) and ``act``."""
    place = masks.shape[2:]
    return (
        x.device.type == masks.device.type == "cpu"
        and x.dtype in SCALARS
        and masks.dtype in SCALARS
        and (place == x.shape[2:] or (place == (1, 1) and not masks.requires_grad))
        and knows(act)
        and available(_name(act), x.dtype)
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(act: str, dtype: torch.dtype) -> bool:
    """Return True if a library for an activation and a type of features exists; constant for torch.compile."""
    return library(act, dtype) is not None


def _name(act: object) -> str:
    return _ACTS[type(act)]


def convolve_natively(
    x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor | None = None, *, level: float, act: nn.Module
) -> Tensor:
    """Sum over the masks, grouped by input channel.

    Args:
        x: features, (N, C, H, W), float32 or bfloat16, on the CPU; channels-last is fastest.
        masks: before the level is applied, (C or 1, M, H or 1, W or 1); a view of what `as_stored` made is fastest.
        weight: (O, M, 1, 1), with O a multiple of C.
        bias: (O,), or None.
        level: factor on the masks.
        act: an activation that `knows` accepts.

    Returns:
        (N, O, H, W), channels-last, of the type of ``x``.
    """
    out: Tensor = _forward(x, masks, weight, bias, _slope_below(act), level, _name(act))
    return out


def _slope_below(act: nn.Module) -> Tensor:
    if isinstance(act, nn.PReLU):
        return act.weight
    if isinstance(act, nn.LeakyReLU):
        return torch.tensor([act.negative_slope], **_FLOATS)
    if isinstance(act, nn.RReLU):
        return torch.tensor([(act.lower + act.upper) / 2], **_FLOATS)
    return torch.zeros(1, **_FLOATS)


def as_stored(masks: Tensor) -> Tensor:
    """Reorder masks of shape (C or 1, M, H, W) to contiguous (H, W, M, C or 1), which the kernel reads in one sweep."""
    return masks.detach().permute(2, 3, 1, 0).contiguous()


def _rows(x: Tensor) -> Tensor:
    """Reorder (N, C, H, W) to contiguous (N, H, W, C), without a copy for channels-last."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


class _Call:
    """A call in the making: the problem, and the tensors that its pointers mean."""

    def __init__(self, x: Tensor, masks: Tensor, weight: Tensor, below: Tensor, level: float, act: str) -> None:
        images, channels, height, width = x.shape
        nmasks, filters = masks.shape[1], weight.shape[0] // channels
        found = library(act, x.dtype)
        if found is None:
            raise RuntimeError(f"perturb.cpp is not compiled for {act} of {x.dtype}; ask usable() first")
        self.library = found
        self.alive: list[Tensor] = []
        vector, group = int(found.vector_length()), int(found.group_length())
        self.groups = -(-channels // group)
        self.problem = _Problem(
            images=images,
            pixels=height * width,
            channels=channels,
            masks=nmasks,
            filters=filters,
            padded=-(-channels // vector) * vector,
            shared=masks.shape[0] < channels,
            constant=masks.shape[2:] != x.shape[2:],
            half_masks=masks.dtype == torch.bfloat16,
            chunks=min(_CHUNKS, height * width),
            level=level,
            below=float(below),
        )
        packed = torch.zeros(filters, nmasks, self.problem.padded, **_FLOATS)
        packed[:, :, :channels] = weight.detach().view(channels, filters, nmasks).permute(1, 2, 0)
        self.give(x=_rows(x), mask=as_stored(masks), weight=packed)

    def add(self, bias: Tensor | None) -> None:
        """Start the sums from a bias (O,)."""
        problem = self.problem
        packed = torch.zeros(problem.filters, problem.padded, **_FLOATS)
        if bias is not None:
            packed[:, : problem.channels] = bias.detach().view(problem.channels, problem.filters).t()
        self.give(bias=packed)

    def give(self, **tensors: Tensor) -> None:
        """Point to contiguous tensors, and keep them."""
        for name, tensor in tensors.items():
            setattr(self.problem, name, tensor.data_ptr())
            self.alive.append(tensor)

    def run(self, name: str) -> None:
        """Call the library's function of that name."""
        getattr(self.library, name)(ctypes.byref(self.problem))


@torch.library.custom_op("perturblab::perturb_conv2d", mutates_args=())
def _forward(
    x: Tensor, masks: Tensor, weight: Tensor, bias: Tensor | None, below: Tensor, level: float, act: str
) -> Tensor:
    call, out = _Call(x, masks, weight, below, level, act), _empty(x, weight.shape[0])
    call.add(bias)
    call.give(y=out)
    call.run("forward")
    return out.permute(0, 3, 1, 2)


@_forward.register_fake
def _(x: Tensor, masks: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _empty(x, weight.shape[0]).permute(0, 3, 1, 2)


def _empty(x: Tensor, channels: int) -> Tensor:
    images, _, height, width = x.shape
    return x.new_empty(images, height, width, channels)


@torch.library.custom_op("perturblab::perturb_conv2d_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    masks: Tensor,
    weight: Tensor,
    below: Tensor,
    level: float,
    act: str,
    of_masks: bool,
    of_below: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(x, masks, weight, below, level, act)
    problem, (channels, height, width), nmasks = call.problem, x.shape[1:], masks.shape[1]
    dx = _empty(x, channels)
    dweight = torch.zeros(problem.chunks, problem.filters, nmasks, problem.padded, **_FLOATS)
    call.give(y=_rows(dy.to(x.dtype)), dx=dx, dweight=dweight)
    dmask, dbelow = torch.empty(0, **_FLOATS), torch.zeros((), **_FLOATS)
    if of_masks:
        parts = call.groups if problem.shared else 1
        dmask = torch.zeros(parts, height, width, nmasks, masks.shape[0], **_FLOATS)
        call.give(dmask=dmask)
    if of_below:
        dbelow = torch.zeros(problem.chunks, call.groups, dtype=torch.float64, device="cpu")
        call.give(dbelow=dbelow)
    call.run("backward")
    if of_masks:
        dmask = dmask.sum(0).permute(3, 2, 0, 1).to(masks.dtype)
    total = dweight.sum(0)[:, :, :channels].permute(2, 0, 1).contiguous().view(weight.shape)
    return dx.permute(0, 3, 1, 2), total.to(weight.dtype), dmask, dbelow.sum().to(below.dtype).view(-1)


@_backward.register_fake
def _(dy: Tensor, x: Tensor, masks: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    below, _level, _act, of_masks, _of_below = rest
    channels, nmasks, height, width = masks.shape
    dmask = masks.new_empty(height, width, nmasks, channels).permute(3, 2, 0, 1)
    if not of_masks:
        dmask = x.new_empty(0, dtype=torch.float32)
    dx = _empty(x, x.shape[1]).permute(0, 3, 1, 2)
    return dx, weight.new_empty(weight.shape), dmask, torch.empty_like(below)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, masks, weight, _bias, below, ctx.level, ctx.act = inputs
    ctx.save_for_backward(x, masks, weight, below)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, masks, weight, below = ctx.saved_tensors
    _, of_masks, _, of_bias, of_below, *_ = ctx.needs_input_grad
    dx, dweight, dmask, dbelow = _backward(dy, x, masks, weight, below, ctx.level, ctx.act, of_masks, of_below)
    dbias = dy.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if of_bias else None
    return dx, dmask if of_masks else None, dweight, dbias, dbelow if of_below else None, None, None


_forward.register_autograd(_gradients, setup_context=_remember)
