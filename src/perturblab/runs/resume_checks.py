"""Checks on an intact checkpoint: are its contents consistent with this run?"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perturblab.training import loop


def check_answers(correct: Sequence[Any], epochs: int, total: int) -> None:
    """Refuse audited answers that are not one bool per test image and epoch.

    Args:
        correct: one tensor per epoch, bool (N,); none without an audit.
        epochs: how many are finished.
        total: test images, N.

    Raises:
        ValueError: something else.
    """
    fit = all(isinstance(a, Tensor) and a.dtype == torch.bool and a.shape == (total,) for a in correct)
    if len(correct) not in (0, epochs) or not fit:
        raise ValueError(f"the answers are not {epochs} times {total} of yes and no")


def check_state(saved: Mapping[str, Any], state: loop.State, images: int, recipe: loop.Recipe) -> None:
    """Refuse a training state that this run cannot have been in.

    Args:
        saved: as ``State.state_dict()`` gives it.
        state: of the same run before its first step.
        images: training images, N.
        recipe: how it trains.

    Raises:
        ValueError: a part of it is impossible; names it.
        KeyError: a part is missing.
    """
    steps = loop.steps_per_epoch(images, recipe)
    epoch, step, order, reached = (saved[name] for name in ("epoch", "step", "permutation", "reached"))
    if type(epoch) is not int or epoch < 0 or type(step) is not int or not 0 <= step <= steps:
        raise ValueError(f"epoch {epoch!r}, step {step!r} of {steps}")
    if order is None and step:
        raise ValueError(f"step {step} and no order of the images")
    if order is not None and not _is_permutation(order, images):
        raise ValueError(f"an order that is not one of {images} images")
    seen = min(step * recipe.batch_size, images)
    if (
        not isinstance(reached, Mapping)
        or dict(reached).keys() != vars(loop.Epoch()).keys()
        or not _is_sum(reached, seen)
    ):
        raise ValueError(f"sums over other than the {seen} images of {step} steps")
    torch.Generator().set_state(saved["forward"])
    _check_optimizer(saved["optimizer"], state.optimizer)


def _is_permutation(order: Any, images: int) -> bool:
    whole = isinstance(order, Tensor) and order.dtype == torch.int64 and order.shape == (images,)
    return whole and torch.equal(order.sort().values, torch.arange(images))


def _is_sum(reached: Mapping[str, Any], seen: int) -> bool:
    numbers = all(type(reached[name]) in (int, float) for name in ("loss", "seconds"))
    correct = reached["correct"]
    return numbers and reached["images"] == seen and type(correct) is int and 0 <= correct <= seen


def _check_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse other settings than the run's (but the learning rate, which every step sets) and other shapes."""
    for group, saved_group in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True):
        wrong = [key for key in group if key != "lr" and group[key] != saved_group.get(key, "missing")]
        if wrong or not isinstance(saved_group.get("lr"), float):
            raise ValueError(f"an optimiser of other settings ({', '.join(wrong) or 'lr'})")
    expected = _moments(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, moments in saved["state"].items():
        for name, value in _same_keys(moments, expected).items():
            shape = parameters[number].shape if expected[name] == (1,) else ()
            fits = isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
            if not (fits if expected[name] is not None else value is None):
                raise ValueError(f"{name} of parameter {number} of another kind")


def _same_keys(moments: Mapping[str, Any], expected: Mapping[str, Any]) -> Mapping[str, Any]:
    if moments.keys() != expected.keys():
        raise ValueError(f"moments {', '.join(map(str, moments))}, expected {', '.join(expected)}")
    return moments


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, ...] | None]:
    """Give the shapes of the moments of a single number by name; None for a moment that is not kept."""
    probe = torch.zeros(1, requires_grad=True)
    probe.grad = torch.zeros(1)
    taken = inspect.signature(type(optimizer)).parameters  # AdamW keeps a default that it does not take
    other = type(optimizer)([probe], **{name: value for name, value in optimizer.defaults.items() if name in taken})
    other.step()
    return {name: None if value is None else tuple(value.shape) for name, value in other.state[probe].items()}
