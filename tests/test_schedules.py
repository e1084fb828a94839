"""`perturblab.training.schedules`: every epoch against the three published functions, every step against PyTorch."""

import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch

from perturblab.records.choices import Schedule
from perturblab.records.config import TrainConfig
from perturblab.training.schedules import lr_factor
from told import in_order

SCHEDULES = get_args(Schedule)
LONGEST = 500  # epochs; the authors' first code has the longest default run
DATASETS = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN", "digits", "")

# --- the published functions once more, as they are written: products of powers of a bool --------------------------


def hundred(e: int) -> float:
    """CIFAR-100, in all three codes."""
    return (0.1 ** int(e >= 80)) * (0.1 ** int(e >= 120)) * (0.1 ** int(e >= 160))


def mnist(e: int) -> float:
    """MNIST in the reproduction and in the reply."""
    return (0.2 ** int(e >= 30)) * (0.2 ** int(e >= 60)) * (0.2 ** int(e >= 90))


def first(e: int) -> float:
    return (0.1 ** int(e >= 60)) * (0.1 ** int(e >= 90)) * (0.1 ** int(e >= 120))


def reproduction(e: int) -> float:
    return (0.2 ** int(e >= 60)) * (0.2 ** int(e >= 90)) * (0.2 ** int(e >= 120)) * (0.2 ** int(e >= 160))


def reply(e: int) -> float:
    early = (0.2 ** int(e >= 150)) * (0.2 ** int(e >= 250)) * (0.2 ** int(e >= 300))
    return early * (0.2 ** int(e >= 350)) * (0.2 ** int(e >= 400))


PUBLISHED: dict[tuple[str, str], Callable[[int], float]] = {
    ("or", "CIFAR10"): first,
    ("or", "CIFAR100"): hundred,
    ("or", "MNIST"): hundred,
    ("kl", "CIFAR10"): reproduction,
    ("kl", "CIFAR100"): hundred,
    ("kl", "MNIST"): mnist,
    ("up", "CIFAR10"): reply,
    ("up", "CIFAR100"): hundred,
    ("up", "MNIST"): mnist,
}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("code", ["or", "kl", "up"])
def test_every_epoch_of_the_published_schedules(code: str, dataset: str) -> None:
    """The published loops count from 0 and call the function with the epoch + 1; sets they do not name are constant."""
    formula = PUBLISHED.get((code, dataset), lambda e: 1.0)
    have = [lr_factor(code, dataset, epoch, LONGEST) for epoch in range(LONGEST)]
    assert have == pytest.approx([formula(epoch + 1) for epoch in range(LONGEST)], rel=1e-12)


@pytest.mark.parametrize(
    ("code", "dataset", "changes"),
    [
        ("or", "CIFAR10", {59: 0.1, 89: 0.01, 119: 0.001}),
        ("kl", "CIFAR10", {59: 0.2, 89: 0.04, 119: 0.008, 159: 0.0016}),  # the last one is beyond its 150 epochs
        ("up", "CIFAR10", {149: 0.2, 249: 0.04, 299: 8e-3, 349: 1.6e-3, 399: 3.2e-4}),
        ("kl", "CIFAR100", {79: 0.1, 119: 0.01, 159: 0.001}),
        ("or", "MNIST", {79: 0.1, 119: 0.01, 159: 0.001}),
        ("kl", "MNIST", {29: 0.2, 59: 0.04, 89: 0.008}),
        ("up", "MNIST", {29: 0.2, 59: 0.04, 89: 0.008}),
        ("kl", "digits", {}),
    ],
)
def test_the_factor_changes_one_epoch_before_the_number_in_the_code(
    code: str, dataset: str, changes: dict[int, float]
) -> None:
    factors = [lr_factor(code, dataset, epoch, LONGEST) for epoch in range(LONGEST)]
    assert factors[0] == 1.0
    found = {epoch: factors[epoch] for epoch in range(1, LONGEST) if factors[epoch] != factors[epoch - 1]}
    assert found == pytest.approx(changes, rel=1e-12)


@pytest.mark.parametrize("schedule", ["or", "kl", "up", "constant"])
def test_stepwise_schedules_are_constant_in_an_epoch_and_blind_to_the_length_of_the_run(schedule: str) -> None:
    for epoch in (0, 58, 59, 149):
        want = lr_factor(schedule, "CIFAR10", epoch, LONGEST)
        assert {lr_factor(schedule, "CIFAR10", epoch, n, step, 7) for n in (150, 450) for step in range(7)} == {want}


def test_constant_is_constant() -> None:
    assert {lr_factor("constant", dataset, epoch, 9) for dataset in DATASETS for epoch in range(9)} == {1.0}


# --- cosine and one-cycle, step by step -----------------------------------------------------------------------------


def stepped(make: Callable[[torch.optim.Optimizer, int], Any], total: int, base: float = 0.5) -> Iterator[float]:
    """The learning rate in every step of PyTorch's scheduler, over the base."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = make(optimizer, total)
    for number in range(total):
        yield optimizer.param_groups[0]["lr"] / base
        optimizer.step()
        if number + 1 < total:
            scheduler.step()


def cosine(optimizer: torch.optim.Optimizer, total: int) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)


def onecycle(optimizer: torch.optim.Optimizer, total: int) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=total, cycle_momentum=False)


@pytest.mark.parametrize(("nepochs", "steps"), [(1, 1), (1, 4), (4, 1), (3, 7), (10, 10), (150, 3)])
@pytest.mark.parametrize("second", [cosine, onecycle])
def test_every_step_agrees_with_pytorch(second: Callable[..., Any], nepochs: int, steps: int) -> None:
    schedule = second.__name__
    have = [
        lr_factor(schedule, "CIFAR10", epoch, nepochs, step, steps) for epoch in range(nepochs) for step in range(steps)
    ]
    assert have == pytest.approx(list(stepped(second, nepochs * steps)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_without_steps_an_epoch_counts_as_one(schedule: str) -> None:
    assert [lr_factor(schedule, "", epoch, 8) for epoch in range(8)] == [
        lr_factor(schedule, "", 0, 1, step, 8) for step in range(8)
    ]


def test_no_schedule_leaves_the_range_from_zero_to_the_base_rate() -> None:
    for schedule in SCHEDULES:
        factors = [lr_factor(schedule, "CIFAR10", epoch, 450, step, 2) for epoch in range(450) for step in range(2)]
        assert all(0 < factor <= 1 and math.isfinite(factor) for factor in factors), schedule


# --- names ----------------------------------------------------------------------------------------------------------


def test_every_schedule_can_be_asked_for_on_the_command_line() -> None:
    assert SCHEDULES
    assert [TrainConfig(optimizer_schedule=name).optimizer_schedule for name in SCHEDULES] == list(SCHEDULES)


@pytest.mark.parametrize("name", ["linear", "", "OR"])
def test_an_unknown_name_is_refused_with_the_choice(name: str) -> None:
    with pytest.raises(ValueError, match=in_order(f"optimizer_schedule {name!r} " + " ".join(SCHEDULES))):
        lr_factor(name, "CIFAR10", 0, 1)
