"""Trace of one forward pass: the sizes that the convolutions of any model really see."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Size = tuple[int, int]
Shape = tuple[int, ...]
# what every way to call a convolution comes down to; in inference mode `conv2d` itself
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten._convolution, torch.ops.aten.conv2d)


@dataclass(frozen=True)
class Trace:
    """Observations of one forward pass.

    Args:
        args: the example that was given.
        kwargs: the same, by name.
        sizes: name of a convolution -> the distinct sizes of its (input, output), each (H, W), in order; a layer that
            was not called is not in it.
        functions: name of a module, "" for the model itself -> two-dimensional convolutions, with a kernel larger
            than 1x1, that it computed by a function (`torch.nn.functional.conv2d`, `torch.convolution`, ...) without
            a module for it.
        shapes: of the tensors in the model's output.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    sizes: Mapping[str, tuple[tuple[Size, Size], ...]]
    functions: Mapping[str, int]
    shapes: tuple[Shape, ...]


@torch.no_grad()
def trace(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    """Watch one forward pass of a copy of a model in eval mode; the model and the global random state stay untouched.

    Args:
        model: any model.
        *args: an example of what it takes, such as images (1, C, H, W).
        **kwargs: the same, by name.

    Returns:
        The sizes that every convolution saw, what was convolved by functions, and the shapes of the output.

    Raises:
        ValueError: a lazy layer has no weights yet, the model cannot be copied, or does not run on the example.
    """
    _refuse_lazy(model)
    twin, watch = _copied(model).eval(), _Watch()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), watch.hooks(twin), watch:
            shapes = tuple(_shapes(twin(*args, **kwargs)))
    except Exception as error:  # whatever a foreign model raises
        given = ", ".join([*map(_said, args), *(f"{name}={_said(value)}" for name, value in kwargs.items())])
        raise ValueError(
            f"{type(model).__name__} does not run on ({given}): {brief(error)}; "
            "give what its forward takes, by image_size or as an example to trace()"
        ) from error
    sizes = {name: tuple(dict.fromkeys(met)) for name, met in watch.sizes.items()}
    return Trace(args, kwargs, sizes, dict(watch.functions), shapes)


def brief(error: BaseException) -> str:
    """Give the text of an error in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _said(value: Any) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model deeply.

    Raises:
        ValueError: it cannot be copied.
    """
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:  # which PyTorch does not copy
                raise ValueError(
                    f"{name or 'the model'} holds a computed {key} (the old weight_norm, pruning, ...), which PyTorch "
                    "does not copy; make it plain first, as torch.nn.utils.remove_weight_norm and prune.remove do"
                )
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a foreign model holds
        raise ValueError(
            f"{type(model).__name__} cannot be copied, and a copy is what is watched: {brief(error)}; "
            "take out what cannot be copied"
        ) from error


def _refuse_lazy(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(nn.parameter.is_lazy(value) for value in (*module._parameters.values(), *module._buffers.values())):
            raise ValueError(f"{name} is lazy and has no weights yet; call the model once, then come back")


class _Watch(TorchDispatchMode):
    """Watch which module is running, and every convolution."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[str, list[tuple[Size, Size]]] = {}
        self.functions: Counter[str] = Counter()
        self._running: list[tuple[str, nn.Module]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in CONVOLUTIONS and not isinstance(self._running[-1][1], nn.Conv2d):
            transposed = func.overloadpacket is not torch.ops.aten.conv2d and args[6]
            if args[1].dim() == 4 and max(args[1].shape[-2:]) > 1 and not transposed:
                self.functions[self._running[-1][0]] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), prepend=True))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        return lambda module, args: self._running.append((name, module))

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self._running.pop()
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if isinstance(module, nn.Conv2d) and given and isinstance(out, Tensor):
                self.sizes.setdefault(name, []).append((_size(given[0]), _size(out)))

        return leave


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def _shapes(out: Any) -> Iterator[Shape]:
    """Yield the shapes of all tensors in a model's output: a tensor, or lists, tuples and mappings of them."""
    if isinstance(out, Tensor):
        yield tuple(out.shape)
    elif isinstance(out, Mapping):
        for value in out.values():
            yield from _shapes(value)
    elif isinstance(out, list | tuple):
        for value in out:
            yield from _shapes(value)
