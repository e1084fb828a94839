"""Modules of any model replaced by a rule: planned first, all or nothing, never silent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from perturblab.layers.surgery.batchout_sites import near

# (name, module) -> what stands in its place, or None
Rule = Callable[[str, nn.Module], nn.Module | None]
Place = tuple[nn.Module, str, nn.Module]  # parent, the child's name in it, the child


@dataclass(frozen=True)
class Surgery:
    """Result of a surgery: the modules that were replaced, and those that were left.

    Args:
        replaced: name of every place -> the module that stands there now; one that was shared is still one module.
        left: name -> why it was left as it is.
        given_up: name of a replaced convolution -> what it had beyond a weight and a bias, which is gone, as asked.
    """

    replaced: Mapping[str, nn.Module]
    left: Mapping[str, str] = field(default_factory=dict)
    given_up: Mapping[str, str] = field(default_factory=dict)
    _places: Sequence[Place] = ()

    def undo(self) -> None:
        """Put every module back that stood there; a second call does nothing."""
        for parent, key, module in self._places:
            parent._modules[key] = module

    def __str__(self) -> str:
        gone = {name: f" (given up: {what})" for name, what in self.given_up.items()}
        lines = [f"{name}: {type(module).__name__}{gone.get(name, '')}" for name, module in self.replaced.items()]
        return "\n".join([*lines, *(f"{name}: left ({why})" for name, why in self.left.items())])


def replace_layers(
    model: nn.Module, rule: Rule, *, check: Callable[[nn.Module], object] = lambda model: None
) -> Surgery:
    """Replace modules of a model in place, all or nothing.

    The rule is asked about every module once, from the outside to the inside, and not about what is inside one that
    it replaces; nothing is touched before it has answered about all. A new module gets the mode (train or eval), the
    device and the type of the one whose place it takes, and is frozen if that was; a shared module is replaced by one
    shared module. What a new module contains of the old one keeps its own.

    Args:
        model: any model; only the modules that the rule names change.
        rule: ``rule(name, module)`` returns what stands in its place, or None to leave it.
        check: called with the model when all is done; what it raises undoes everything.

    Returns:
        What was replaced; `Surgery.undo` takes it back.

    Raises:
        ValueError: the rule matches nothing.
    """
    new: dict[nn.Module, nn.Module | None] = {}
    places = list(_places(model, rule, new))
    if not places:
        kind, total = type(model).__name__, sum(1 for _ in model.modules()) - 1
        raise ValueError(f"the rule matches none of the {total} layers of {kind}; {near(_names(model))}")
    for old, made in new.items():
        if made is not None:
            _adapt(made, old)
    surgery = Surgery({name: made for name, made, _ in places}, _places=[place for _, _, place in places])
    try:
        for _, made, (parent, key, _) in places:
            parent._modules[key] = made
        check(model)
    except BaseException:
        surgery.undo()
        raise
    return surgery


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _places(
    module: nn.Module, rule: Rule, new: dict[nn.Module, nn.Module | None], above: str = ""
) -> Iterator[tuple[str, nn.Module, Place]]:
    """Find every place of every module that the rule replaces; ``new`` keeps one answer per module."""
    for key, child in module._modules.items():
        if child is None:
            continue
        name, first = above + key, child not in new
        if first:
            new[child] = rule(name, child)
        made = new[child]
        if made is not None:
            yield name, made, (module, key, child)
        elif first:
            yield from _places(child, rule, new, f"{name}.")


def _adapt(made: nn.Module, old: nn.Module) -> None:
    """Give a new module the mode, device, type and frozenness of the old one; parts of the old one are left alone."""
    inside = set(old.modules())
    for module in made.modules():
        if module not in inside:
            module.training = old.training
    tensors = [*old.parameters(), *old.buffers()]
    if old in set(made.modules()) or not tensors:
        return
    made.to(tensors[0].device)
    kinds = [next((t.dtype for t in of.parameters() if t.is_floating_point()), None) for of in (made, old)]
    if kinds[0] != kinds[1] and kinds[1] is not None:
        made.to(kinds[1])
    if tensors[0].is_leaf and not any(parameter.requires_grad for parameter in old.parameters()):
        made.requires_grad_(False)
