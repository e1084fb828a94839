"""The convolutions of any model turned into perturbation layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from perturblab.layers.masks import Noise
from perturblab.layers.surgery.batchout_sites import COUNTER, names_matching
from perturblab.layers.surgery.replace import Surgery, replace_layers
from perturblab.layers.surgery.substitute import Substitution, substitute
from perturblab.layers.surgery.tracing import Trace, brief, trace
from perturblab.seeding import stream

# of a convolution: what its substitute has too, or what is told by a message of its own
_KNOWN = ("weight", "bias", "parametrizations", COUNTER)


def perturbify(
    model: nn.Module,
    *,
    image_size: int | Sequence[int],
    noise: Noise | None = None,
    leave: Sequence[str] = (),
    give_up: Sequence[str] = (),
    seed: int = 1,
) -> Surgery:
    """Turn the convolutions of any image model into perturbation layers, in place, all or nothing.

    Every `torch.nn.Conv2d` with a kernel larger than 1x1 is replaced by what `perturblab.layers.substitute` makes; the
    masks get the sizes that the layers see in one forward pass of an image of that size, which the model needs from
    then on. Afterwards the model is called once more, and must give the same shapes.

    Args:
        model: takes images (N, C, H, W). For any other call see `perturb_layers`.
        image_size: S for (S, S), (H, W) or (C, H, W); without C, it is that of the first convolution.
        noise: how the masks are drawn and used; ``Noise()`` by default. With several masks a channel, a layer's filters
            must be a multiple of its channels; with level 0, 1x1 convolutions are left.
        leave: names or patterns, such as ``stem*``, of modules that are left as they are, with all inside them;
            ``block()`` leaves only the functions that a module calls, ``()`` those of the model itself.
        give_up: names or patterns of modules in which a convolution may lose what it has beyond a weight and a bias:
            a forward of its own (weight standardisation, padding, ...), modules, parameters, buffers.
        seed: decides masks and weights.

    Returns:
        What was replaced, and what was left and why.

    Raises:
        ValueError: no convolution to replace, or one that cannot be; the text names every such layer and what to do.

    Reference:
        Perturbative Neural Networks, CVPR 2018, section 3: what replaces a convolution of a known net.
    """
    seen = trace(model, torch.zeros(1, *_image_shape(model, image_size), **_like(model)))
    made = Substitution(noise or Noise())
    return perturb_layers(model, seen, made, leave=leave, give_up=give_up, generator=stream(seed, "masks"))


def _image_shape(model: nn.Module, image_size: int | Sequence[int]) -> tuple[int, ...]:
    shape = tuple(image_size) if isinstance(image_size, Iterable) else (image_size, image_size)
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) and side >= 1 for side in shape)
    if len(shape) not in (2, 3) or not whole:
        raise ValueError(f"image_size is {image_size!r}; expected S, (H, W) or (C, H, W), whole numbers of at least 1")
    if len(shape) == 3:
        return shape
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no convolution; there is nothing to turn into a perturbation")
    return (first.in_channels, *shape)


def _like(model: nn.Module) -> dict[str, Any]:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return {"device": like.device, "dtype": like.dtype}


def perturb_layers(
    model: nn.Module,
    seen: Trace,
    substitution: Substitution,
    *,
    leave: Sequence[str] = (),
    give_up: Sequence[str] = (),
    generator: torch.Generator,
) -> Surgery:
    """Turn convolutions into perturbation layers, with every setting, for a model that takes anything.

    Args:
        model: the model that was traced.
        seen: from `perturblab.layers.trace`, with an example of what the model takes.
        substitution: the layer that replaces a convolution.
        leave: names or patterns of modules that are left as they are, with all inside them; ``block()`` leaves only
            the functions that a module calls.
        give_up: names or patterns of modules in which a convolution may lose what it has beyond a weight and a bias.
        generator: decides masks and weights.

    Returns:
        What was replaced, and what was left and why.

    Raises:
        ValueError: no convolution to replace, or one that cannot be; the text names every such layer and what to do.
    """
    chosen, left = _chosen(model, leave, seen)
    every = _every(model)
    may_lose = _within(every, [name for pattern in give_up for name in names_matching(pattern, every)])
    given_up = {name: ", ".join(more) for conv, name in chosen.items() if conv in may_lose and (more := _more(conv))}
    if problems := [*_uncalled(chosen, left, seen), *_lost(chosen, given_up), *_ties(model, chosen)]:
        raise ValueError(f"{'; '.join(problems)}; name what shall stay as it is in leave=")
    if not chosen:
        why = f" (left: {', '.join(f'{name}, {why}' for name, why in left.items())})" if left else ""
        raise ValueError(f"{type(model).__name__} has no convolution to replace{why}; nothing was changed")

    def rule(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Conv2d) or module not in chosen:
            return None
        sizes = seen.sizes[chosen[module]][0]
        try:
            return substitute(module, sizes, substitution, generator=generator)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; or name it in leave=") from error

    done = replace_layers(model, rule, check=lambda model: _check(model, seen, chosen.values()))
    return replace(done, left=left, given_up=given_up)


def _chosen(model: nn.Module, leave: Sequence[str], seen: Trace) -> tuple[dict[nn.Conv2d, str], dict[str, str]]:
    """Choose the convolutions to replace, each with its first name; give the reason for every one that is left."""
    every = _every(model)
    calls = {f"{name}()": model.get_submodule(name) for name in seen.functions}
    spared = [name for pattern in leave for name in names_matching(pattern, every | calls)]
    inside = _within(every, spared)
    chosen: dict[nn.Conv2d, str] = {}
    left = {name: "as asked" for name, module in calls.items() if name in spared or module in inside}
    parts: set[nn.Module] = set()  # of a chosen one: they go with it
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module not in parts:
            if not isinstance(module, nn.Conv2d):
                left[name] = f"a {type(module).__name__}"
            elif max(module.kernel_size) == 1:
                left[name] = "1x1"
            elif module in inside:
                left[name] = "as asked"
            elif name:
                chosen[module] = name
                parts.update(module.modules())
            else:
                raise ValueError("the model itself is a convolution; put it into a torch.nn.Sequential first")
    return chosen, left


def _every(model: nn.Module) -> dict[str, nn.Module]:
    """List the modules by all their names."""
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if name}


def _within(every: Mapping[str, nn.Module], names: Iterable[str]) -> set[nn.Module]:
    """Collect the modules of these names, with all inside them; other names are passed over."""
    return {module for name in names if name in every for module in every[name].modules()}


def _uncalled(chosen: Mapping[nn.Conv2d, str], left: Mapping[str, str], seen: Trace) -> Iterator[str]:
    """Report convolutions that no replaced layer would reach, and layers without one definite size."""
    for name, calls in seen.functions.items():
        if f"{name}()" not in left:
            yield f"{name}() calls conv2d as a function ({calls} in a pass), which is no layer to replace"
    for name in chosen.values():
        met = seen.sizes.get(name, ())
        if not met:
            yield f"{name} is not called as a layer in the forward pass, so its size is unknown"
        elif len(met) > 1:
            sizes = " and ".join(f"{height}x{width}" for (height, width), _ in met)
            yield f"{name} sees features of {sizes}, and masks have one size"


def _lost(chosen: Mapping[nn.Conv2d, str], given_up: Mapping[str, str]) -> Iterator[str]:
    """Report what would silently be lost with a convolution."""
    for conv, name in chosen.items():
        if name not in given_up and (more := _more(conv)):
            what = f"{name} is a {type(conv).__name__} with {', '.join(more)}, which would be lost"
            yield f"{what}; name it in give_up= to replace it all the same"
        if parametrize.is_parametrized(conv):
            yield f"{name} is parametrized, which would be lost"
        hooks = (conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks)
        if any(hooks):
            yield f"{name} has hooks (BatchOut, weight norm, ...), which would be lost; remove them first"


def _more(conv: nn.Conv2d) -> list[str]:
    """List what a convolution has beyond a weight and a bias."""
    own = any(
        name in vars(conv) or getattr(type(conv), name) is not getattr(nn.Conv2d, name)
        for name in ("forward", "_conv_forward", "__call__")
    )
    parts = [*conv._modules.items(), *conv._parameters.items(), *conv._buffers.items()]
    return [*["its own forward"] * own, *(name for name, part in parts if part is not None and name not in _KNOWN)]


def _ties(model: nn.Module, chosen: Mapping[nn.Conv2d, str]) -> Iterator[str]:
    """Report weights that a convolution shares with another module."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(parameter, []).append((name, module))
    for conv, name in chosen.items():
        others = [
            other
            for p in conv._parameters.values()
            if p is not None
            for other, module in owners[p]
            if module is not conv
        ]
        if others:
            yield f"{name} shares its weights with {others[0]}, and a perturbation layer cannot"


def _check(model: nn.Module, seen: Trace, names: Iterable[str]) -> None:
    """Refuse a model that does not run as before through the new layers.

    Raises:
        ValueError: it fails, goes past a new layer, or gives other shapes.
    """
    try:
        again = trace(model, *seen.args, **seen.kwargs)
    except ValueError as error:
        reason = brief(error.__cause__ or error)
        raise ValueError(f"the model does not run with the new layers ({reason}); nothing was changed") from error
    unused = [name for name in names if not {name, f"{name}.perturb"} & again.sizes.keys()]
    if unused:
        raise ValueError(
            f"the model goes past the new {unused[0]}, it keeps the old one elsewhere; nothing was changed"
        )
    if again.shapes != seen.shapes:
        raise ValueError(f"the output was {seen.shapes} and would be {again.shapes}; nothing was changed")
