"""BatchOut put into any model by hooks, and taken out again."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perturblab.layers.mixing import Mixing, mix, new_counter

COUNTER = "batchout_draws"
Rule = str | type[nn.Module] | Sequence[str]


def find_sites(model: nn.Module, rule: Rule) -> list[str]:
    """Find the modules that a rule means, in the order of the model.

    Args:
        model: any model.
        rule: a type of module; names or patterns such as ``layer*.conv1``; or, among the convolutions and linear
            layers without the last one (the classifier): "all", "last", "alternate" (the first, third, ...),
            "all-after:NAME" (NAME and all behind it).

    Returns:
        Names as in ``model.named_modules()``.

    Raises:
        ValueError: nothing is matched.
    """
    named = {name: module for name, module in model.named_modules() if name}
    layers = [name for name, module in named.items() if isinstance(module, nn.Conv2d | nn.Linear)][:-1]
    if isinstance(rule, type):
        found = [name for name, module in named.items() if isinstance(module, rule)]
    elif not isinstance(rule, str):
        found = [name for pattern in rule for name in names_matching(pattern, named)]
    elif rule in ("all", "last", "alternate"):
        found = {"all": layers, "last": layers[-1:], "alternate": layers[::2]}[rule]
    elif rule.startswith("all-after:"):
        found = layers[layers.index(rule[10:]) :] if rule[10:] in layers else []
    else:
        found = names_matching(rule, named)
    if not found:
        what = f"{_said(rule)} matches none of the {len(named)} modules of {type(model).__name__}"
        raise ValueError(f"{what}; {near(layers)}")
    return list(dict.fromkeys(found))


def names_matching(pattern: str, named: Mapping[str, nn.Module]) -> list[str]:
    """Names that a pattern such as ``layer*.conv1`` means.

    Args:
        pattern: a name, or one with wildcards.
        named: modules by name.

    Raises:
        ValueError: it means none of them.
    """
    found = fnmatch.filter(named, pattern)
    if not found:
        raise ValueError(f"no module is called {pattern!r}; {near(list(named))}")
    return found


def _said(rule: Rule) -> str:
    return f"the type {rule.__name__}" if isinstance(rule, type) else repr(rule)


def near(names: Sequence[str]) -> str:
    """Say the first of the names that there are."""
    return f"there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


@dataclass
class _Site:
    """A hook. Its counter is a buffer of the module, so that it is saved and copied with the model."""

    name: str
    mixing: Mixing

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not inputs:
            raise ValueError(
                f"{self._place(module)} is given nothing by position, and BatchOut before it mixes the first that is; "
                "place it behind a module"
            )
        return (self._mixed(module, inputs[0], "takes"), *inputs[1:])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if type(output) is tuple and output:  # blocks of transformers give their features first
            return (self._mixed(module, output[0], "gives first"), *output[1:])
        return self._mixed(module, output, "gives")

    def _mixed(self, module: nn.Module, x: Any, does: str) -> Tensor:
        if not isinstance(x, Tensor):
            raise ValueError(
                f"{self._place(module)} {does} a {type(x).__name__}, and BatchOut mixes a tensor, or the first of a "
                "tuple of outputs; choose another module"
            )
        return mix(x, self.mixing, module.get_buffer(COUNTER), training=module.training)

    def _place(self, module: nn.Module) -> str:
        return f"{self.name or 'the model'} ({type(module).__name__})"


class Placement:
    """BatchOut in a model; `remove` takes it out.

    Args:
        names: the modules that it follows (or precedes).
        hosts: those modules.
        handles: of their hooks.
    """

    def __init__(self, names: Sequence[str], hosts: Sequence[nn.Module], handles: Sequence[RemovableHandle]) -> None:
        self.names = tuple(names)
        self._hosts = hosts
        self._handles = handles

    def remove(self) -> None:
        """Leave the model as it was; a second call does nothing."""
        for handle, host in zip(self._handles, self._hosts, strict=True):
            handle.remove()
            delattr(host, COUNTER)
        self._hosts, self._handles = (), ()


def batchout_at(
    model: nn.Module,
    at: Rule | Mapping[str, Mixing],
    mixing: Mixing | None = None,
    *,
    generator: torch.Generator,
    before: bool = False,
) -> Placement:
    """Put BatchOut behind modules of a model, all or nothing; their forward passes then mix their output.

    The first dimension of what is mixed, (N, ...), is the batch. Of a tuple it is the first that is mixed.

    Args:
        model: any model; its parameters and their names stay as they are.
        at: a rule of `find_sites`, such as ``"all"``, ``"layer*.conv1"`` or ``torch.nn.Conv2d``; or name of a module
            -> what happens there.
        mixing: what happens at the places that a rule finds; ``Mixing()`` by default.
        generator: decides what the sites draw.
        before: mix the first input of the modules, one given by position, instead of their output.

    Returns:
        What takes it out again.

    Raises:
        ValueError: nothing to place, no module of that name, one that has a BatchOut, or what is no `Mixing`; in the
            forward pass, a module without a tensor to mix.

    Reference:
        BatchOut, ICVGIP 2018, tables 1 and 2: behind every convolution and linear layer but the last.
    """
    if not isinstance(at, Mapping):
        at = dict.fromkeys(find_sites(model, at), Mixing() if mixing is None else mixing)
    elif mixing is not None:
        raise ValueError("a mapping says by itself what happens at each place; drop mixing, or give a rule instead")
    named = dict(model.named_modules())
    if not at:
        raise ValueError("no place is given for BatchOut; name at least one module, see find_sites")
    for name, settings in at.items():
        if not isinstance(settings, Mixing):
            raise ValueError(f"the mixing at {name} is {settings!r}; expected a Mixing, such as Mixing(eta=0.1)")
        if name not in named:
            raise ValueError(f"no module is called {name!r}; {near(list(named))}")
        if COUNTER in named[name]._buffers:
            raise ValueError(f"{name} has a BatchOut already; remove it first")
    hosts, handles = [named[name] for name in at], []
    for host, (name, settings) in zip(hosts, at.items(), strict=True):
        host.register_buffer(COUNTER, new_counter(generator))
        site = _Site(name, settings)
        hook = host.register_forward_pre_hook(site.before) if before else host.register_forward_hook(site.after)
        handles.append(hook)
    return Placement(list(at), hosts, handles)
