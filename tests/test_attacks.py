"""Attacks: what every one promises."""

import copy
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import ATTACK_ROWS, HONEST, RANDOM, AttackCase, over
from nets import CLASSES, NORMS, SMALL, NotANumberBehind, count, drawn, lengths, right_ones, seeded, trained, watched
from perturblab.attacks import ATTACKS, Effort, Ensemble, PixelModel, Threat, deepfool, input_gradient, pgd, violations
from perturblab.records.attack_names import ATTACK_KINDS
from told import in_order

pytestmark = pytest.mark.usefixtures("short_autoattack")
with_norms = pytest.mark.parametrize(
    ("row", "norm"),
    [pytest.param(row, norm, id=f"{row.id}-{norm}") for row in ATTACK_ROWS for norm in row.norms],
)


# --- every attack ---------------------------------------------------------------------------------------------------


def test_every_attack_has_a_row_that_says_what_the_table_of_attacks_says() -> None:
    assert {row.covers for row in ATTACK_ROWS} == set(ATTACKS) == set(ATTACK_KINDS)
    assert len({row.id for row in ATTACK_ROWS}) == len(ATTACK_ROWS)
    for row in ATTACK_ROWS:
        kind = ATTACK_KINDS[row.covers]
        assert (row.norms, row.white, row.stays) == (kind.norms, not kind.is_blind, not kind.is_mistake), row.id


@with_norms
def test_channels_last_order_changes_nothing(row: AttackCase, norm: str) -> None:
    """Colour images in the order in which convolutions are fastest, which some packages cannot view as rows."""
    x = torch.rand(12, 3, 8, 8, generator=seeded(3))
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten()]
    model = PixelModel(drawn(nn.Sequential(*layers, nn.Linear(384, CLASSES)), 0), [0.5] * 3, [0.25] * 3).eval()
    y = model(x).argmax(1)
    threat = Threat(norm, 0.03 if norm == "linf" else 0.3)
    want = row.make(model, x, y, threat, generator=seeded())
    found = row.make(
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
        y,
        threat,
        generator=seeded(),
    )
    assert found.shape == x.shape
    assert (violations(found, x, threat) == violations(want, x, threat)).all()
    assert abs(count(model, found, y) - count(model, want, y)) <= 1
    assert count(model, want, y) > 0, "all parts of AutoAttack have run"


@with_norms
@pytest.mark.parametrize("eps", [0.0, SMALL, 0.5, 1.0])
def test_images_stay_in_the_ball_and_in_the_bounds(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase, norm: str, eps: float
) -> None:
    x, y = few
    before = x.clone()
    x_adv = row.make(net, x, y, Threat(norm, eps), generator=seeded())
    assert torch.equal(x, before), "the images given were changed"
    assert x_adv.shape == x.shape
    assert x_adv.dtype is x.dtype
    assert not x_adv.requires_grad
    assert torch.isfinite(x_adv).all()
    if eps == 0:
        assert torch.equal(x_adv, x), "radius 0 is the identity, bit for bit"
        return
    if row.covers not in ("autoattack", "square"):  # these keep an image that they cannot break
        assert not torch.equal(x_adv, x)
    if row.covers != "fgsm-normalised":
        assert lengths(x_adv, x, norm).max() <= eps + 1e-6
    inside = bool(x_adv.min() >= -1e-6 and x_adv.max() <= 1 + 1e-6)
    assert inside == row.stays
    assert violations(x_adv, x, Threat(norm, eps)).any() != row.stays


@over(ATTACK_ROWS)
def test_same_seed_same_bits_and_another_seed_another_start(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase
) -> None:
    x, y = few
    threat = Threat(row.norms[0], 0.2)
    first = row.make(net, x, y, threat, generator=seeded(1))
    torch.manual_seed(77)  # a global seed must not matter
    assert torch.equal(first, row.make(net, x, y, threat, generator=seeded(1)))
    if row.random:
        assert not torch.equal(first, row.make(net, x, y, threat, generator=seeded(2)))
    else:
        assert torch.equal(first, row.make(net, x, y, threat))


@over(RANDOM)
def test_a_random_attack_without_a_generator_is_an_error(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase
) -> None:
    with pytest.raises(ValueError, match=in_order("generator None torch.Generator")):
        row.make(net, *few, Threat(row.norms[0], 0.1))


@over(ATTACK_ROWS)
@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda x: (x - 0.3) / 0.35, "images 2] [0 1] pixel"),
        (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), "images [nan nan] [0 1]"),
    ],
    ids=["normalised", "nan"],
)
def test_images_out_of_the_bounds_are_an_error(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase, spoilt: Callable[[Tensor], Tensor], said: str
) -> None:
    x, y = few
    with pytest.raises(ValueError, match=in_order(said)):
        row.make(net, spoilt(x), y, Threat(row.norms[0], 0.1), generator=seeded())


@over(ATTACK_ROWS)
def test_rounding_beyond_the_bounds_is_no_error(net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase) -> None:
    x, y = few
    x = x.clone()
    x[0, 0, 0, 0] = -3e-8
    row.make(net, x, y, Threat(row.norms[0], 0.3), generator=seeded())


@over(ATTACK_ROWS)
@pytest.mark.parametrize("images", [0, 1])
def test_no_image_and_a_single_image_are_attacked_too(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase, images: int
) -> None:
    x, y = few[0][:images], few[1][:images]
    assert row.make(net, x, y, Threat(row.norms[0], 0.2), generator=seeded()).shape == x.shape


@with_norms
def test_a_larger_radius_is_the_stronger_attack(net: nn.Module, row: AttackCase, norm: str) -> None:
    x, y = right_ones(net, 24, CLASSES)
    low, high = (0.05, 0.7) if norm == "linf" else (0.2, 5.0)
    left = [count(net, row.make(net, x, y, Threat(norm, eps), generator=seeded(3)), y) for eps in (low, high)]
    assert left[0] > left[1], left


@pytest.fixture
def marked() -> Iterator[nn.Module]:
    """A net in eval mode with dropout, some gradients and a frozen parameter, under a tracer of its own."""
    model = copy.deepcopy(trained(classes=CLASSES))
    model.net.append(nn.Dropout(0.5)).eval()
    logging.getLogger("auto-attack").disabled = False
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number != 2)
        parameter.grad = None if number == 0 else torch.full_like(parameter, number + 0.5)
    tracer = sys.gettrace()
    sys.settrace(lambda frame, event, arg: None)
    try:
        yield model
    finally:
        sys.settrace(tracer)


@with_norms
def test_an_attack_leaves_no_trace(marked: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase, norm: str) -> None:
    with watched(marked):
        row.make(marked, *few, Threat(norm, 0.2), generator=seeded())


def in_training() -> PixelModel:
    """A net whose every pass in training mode moves batch statistics and draws dropout."""
    model = copy.deepcopy(trained(classes=CLASSES))
    model.net.insert(2, nn.Dropout(0.3))
    return model.train()


@over([row for row in ATTACK_ROWS if row.covers not in ("autoattack", "square")])
def test_a_net_in_training_mode_is_left_as_it_was(few: tuple[Tensor, Tensor], row: AttackCase) -> None:
    model = in_training()
    with watched(model):
        row.make(model, *few, Threat(row.norms[0], 0.1), generator=seeded())
    partly = in_training().eval()
    partly.net[1].train()
    with watched(partly):
        row.make(partly, *few, Threat(row.norms[0], 0.1), generator=seeded())


@over([row for row in ATTACK_ROWS if row.covers in ("autoattack", "square")])
def test_what_refuses_a_net_in_training_mode_leaves_it_as_it_was(few: tuple[Tensor, Tensor], row: AttackCase) -> None:
    model = in_training()
    with watched(model), pytest.raises(ValueError, match=in_order("training model.eval()")):
        row.make(model, *few, Threat(row.norms[0], 0.1), generator=seeded())


def test_within_an_attack_a_net_in_training_mode_draws_anew_at_every_pass(few: tuple[Tensor, Tensor]) -> None:
    """It is put back behind the attack, not between its steps: that would be another net."""
    seen, moments = [], []
    model = in_training()
    model.net[2].register_forward_hook(lambda module, given, out: seen.append((out == 0).sum().item()))
    model.net[1].register_forward_hook(lambda module, given, out: moments.append(module.num_batches_tracked.item()))
    pgd(model, *few, Threat("linf", 0.1), Effort(steps=6, restarts=1), generator=seeded())
    assert len(set(seen)) > 2
    assert moments == list(range(moments[0], moments[0] + 6))


def test_a_net_in_eval_mode_is_not_copied(few: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module) -> None:
        raise AssertionError("the state of a net in eval mode was kept")

    monkeypatch.setattr("perturblab.attacks.pixels.untouched", refuse)
    for row in (row for row in ATTACK_ROWS if row.covers not in ("autoattack", "square")):
        row.make(trained(classes=CLASSES), *few, Threat(row.norms[0], 0.1), generator=seeded())


@over(ATTACK_ROWS)
def test_no_trace_where_gradients_are_switched_off_outside(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase
) -> None:
    threat = Threat(row.norms[0], 0.2)
    want = row.make(net, *few, threat, generator=seeded())
    with torch.no_grad():
        assert torch.equal(row.make(net, *few, threat, generator=seeded()), want)


@over([row for row in HONEST if row.covers not in ("autoattack", "square")])
@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_is_no_number_leads_to_no_image_that_is_none(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase, norm: str
) -> None:
    """Else such a net would look broken, or the run would end without a word of its gradients."""
    threat = Threat(norm if norm in row.norms else row.norms[0], 0.1)
    gradient, logits = input_gradient(NotANumberBehind(net), *few)
    assert torch.isnan(gradient).any()
    assert torch.isfinite(logits).all()
    x_adv = row.make(NotANumberBehind(net), *few, threat, generator=seeded())
    assert not violations(x_adv, few[0], threat).any()


@pytest.mark.parametrize(
    ("name", "given", "reads"),
    [
        ("fgsm", {}, set()),
        ("pgd", {"effort": Effort(steps=3, step_size=0.07, restarts=2)}, {"steps", "step_size", "restarts"}),
        ("autoattack", {"ensemble": Ensemble(queries=13)}, {"queries"}),
        ("square", {"queries": 13}, {"queries"}),
        ("uniform", {}, set()),
        ("gaussian", {}, set()),
        ("universal", {}, set()),
        ("fgsm-unclipped", {}, set()),
        ("fgsm-normalised", {}, set()),
    ],
)
def test_an_attack_by_name_is_the_function_with_that_effort(
    net: nn.Module, few: tuple[Tensor, Tensor], name: str, given: dict[str, Any], reads: set[str]
) -> None:
    row = next(row for row in ATTACK_ROWS if row.covers == name)
    plain = row.make.func if hasattr(row.make, "func") else row.make
    want = plain(net, *few, Threat("linf", 0.1), **given, generator=seeded(4))
    effort = Effort(steps=3, step_size=0.07, restarts=2, queries=13)
    assert torch.equal(ATTACKS[name](net, *few, Threat("linf", 0.1), effort, seeded(4)), want)
    assert reads == set(ATTACK_KINDS[name].reads) - {"draws", "early_stop"}


@pytest.mark.parametrize(("name", "gradients"), [("fgsm", 1), ("pgd", 3)])
def test_the_draws_of_an_effort_are_forward_passes_of_every_gradient(
    few: tuple[Tensor, Tensor], name: str, gradients: int
) -> None:
    passes = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(x.requires_grad)
            return trained(classes=CLASSES)(x)

    effort = Effort(steps=3, restarts=1, draws=4)
    ATTACKS[name](Counting(), *few, Threat("linf", 0.1), effort, seeded())
    assert sum(passes) == 4 * gradients


def test_deepfool_by_name_takes_the_radius_as_its_cap(net: nn.Module, few: tuple[Tensor, Tensor]) -> None:
    free = Threat("l2", math.inf)
    for cap in (1, 3):
        want = deepfool(net, *few, free, iterations=cap)
        assert torch.equal(ATTACKS["deepfool"](net, *few, Threat("l2", float(cap)), Effort(), seeded()), want)
        want = deepfool(net, *few, free.without_bounds(), iterations=cap)
        found = ATTACKS["deepfool-unclipped"](net, *few, Threat("l2", float(cap)), Effort(), seeded())
        assert torch.equal(found, want)
