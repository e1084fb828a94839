"""Attacks: what every one promises, closed forms, planted errors, published mistakes."""

import copy
import itertools
import logging
import math
import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import ATTACK_ROWS, AttackCase
from nets import (
    Linear,
    Noisy,
    NotANumberBehind,
    Planted,
    Quantised,
    count,
    digits,
    drawn,
    grey,
    lengths,
    linear,
    right_ones,
    seeded,
    trained,
    watched,
)
from perturblab import attacks
from perturblab.attacks import (
    ATTACKS,
    Effort,
    Frozen,
    PixelModel,
    Threat,
    autoattack,
    deepfool,
    deepfool_path,
    fgsm,
    fgsm_normalised,
    gaussian_noise,
    input_gradient,
    pgd,
    project,
    random_start,
    square,
    still_right,
    to_pixels,
    uniform_noise,
    universal_perturbation,
    untouched,
    violations,
)
from perturblab.config import ATTACK_NAMES, AttackConfig, TrainConfig, parse_eps, validated
from perturblab.errors import UserError

CLASSES = 4  # of the net that every attack meets: as few as APGD's targeted loss allows
NORMS = ("linf", "l2")
SMALL = 0.02


def over(rows: list[AttackCase]) -> pytest.MarkDecorator:
    assert rows, "an empty list of rows would pass without a test"
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.id)


RANDOM = [row for row in ATTACK_ROWS if row.random]
HONEST = [row for row in ATTACK_ROWS if row.stays]
WHITE = [row for row in HONEST if row.white]
with_norms = pytest.mark.parametrize(
    ("row", "norm"),
    [pytest.param(row, norm, id=f"{row.id}-{norm}") for row in ATTACK_ROWS for norm in row.norms],
)


@pytest.fixture(scope="module")
def net() -> PixelModel:
    return trained(classes=CLASSES)


@pytest.fixture(scope="module")
def few() -> tuple[Tensor, Tensor]:
    """Eight images, the last with a wrong label."""
    x, y = right_ones(trained(classes=CLASSES), 8, CLASSES)
    return x, torch.cat([y[:-1], (y[-1:] + 1) % CLASSES])


@pytest.fixture(scope="module")
def many() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[:200], y[:200]


# --- every attack ---------------------------------------------------------------------------------------------------


def test_every_attack_has_a_row_that_says_what_the_table_of_attacks_says() -> None:
    assert {row.covers for row in ATTACK_ROWS} == set(ATTACKS) == set(ATTACK_NAMES)
    assert len({row.id for row in ATTACK_ROWS}) == len(ATTACK_ROWS)
    for row in ATTACK_ROWS:
        attack = ATTACKS[row.covers]
        assert (row.norms, row.white, row.stays) == (attack.norms, attack.looks, not attack.outside), row.id


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
    with pytest.raises(ValueError, match=r"^generator is None.*; pass a torch\.Generator.*$"):
        row.make(net, *few, Threat(row.norms[0], 0.1))


@over(ATTACK_ROWS)
@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (lambda x: (x - 0.3) / 0.35, r"^images lie in \[-0\.857\d*, 2\], expected \[0, 1\]; attack in pixel"),
        (lambda x: x.index_fill(0, torch.tensor([1]), torch.nan), r"^images lie in \[nan, nan\], expected \[0, 1\];"),
    ],
    ids=["normalised", "nan"],
)
def test_images_out_of_the_bounds_are_an_error(
    net: nn.Module, few: tuple[Tensor, Tensor], row: AttackCase, spoilt: Callable[[Tensor], Tensor], said: str
) -> None:
    x, y = few
    with pytest.raises(ValueError, match=said):
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
    with watched(model), pytest.raises(ValueError, match=r"^the model is in training mode; call model\.eval\(\)"):
        row.make(model, *few, Threat(row.norms[0], 0.1), generator=seeded())


def test_within_an_attack_a_net_in_training_mode_draws_anew_at_every_pass(few: tuple[Tensor, Tensor]) -> None:
    """It is put back behind the attack, not between its steps: that would be another net."""
    seen, moments = [], []
    model = in_training()
    model.net[2].register_forward_hook(lambda module, given, out: seen.append((out == 0).sum().item()))
    model.net[1].register_forward_hook(lambda module, given, out: moments.append(module.num_batches_tracked.item()))
    pgd(model, *few, Threat("linf", 0.1), steps=6, generator=seeded())
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
    ("name", "given"),
    [
        ("fgsm", {}),
        ("pgd", {"steps": 3, "step_size": 0.07, "restarts": 2}),
        ("autoattack", {"queries": 13}),
        ("square", {"queries": 13}),
        ("uniform", {}),
        ("gaussian", {}),
        ("universal", {}),
        ("fgsm-unclipped", {}),
        ("fgsm-normalised", {}),
    ],
)
def test_an_attack_by_name_is_the_function_with_that_effort(
    net: nn.Module, few: tuple[Tensor, Tensor], name: str, given: dict[str, Any]
) -> None:
    row = next(row for row in ATTACK_ROWS if row.covers == name)
    plain = row.make.func if hasattr(row.make, "func") else row.make
    given = given | ({"clip": False} if name == "fgsm-unclipped" else {})
    want = plain(net, *few, Threat("linf", 0.1), **given, generator=seeded(4))
    effort = Effort(steps=3, step_size=0.07, restarts=2, queries=13)
    assert torch.equal(ATTACKS[name].run(net, *few, Threat("linf", 0.1), effort, seeded(4)), want)
    assert set(given) - {"clip"} == set(ATTACKS[name].settings) - {"draws", "early_stop"}


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
    ATTACKS[name].run(Counting(), *few, Threat("linf", 0.1), effort, seeded())
    assert sum(passes) == 4 * gradients


def test_deepfool_by_name_takes_the_radius_as_its_cap(net: nn.Module, few: tuple[Tensor, Tensor]) -> None:
    free = Threat("l2", math.inf)
    for cap in (1, 3):
        want = deepfool(net, *few, free, iterations=cap)
        assert torch.equal(ATTACKS["deepfool"].run(net, *few, Threat("l2", float(cap)), Effort(), seeded()), want)
        want = deepfool(net, *few, free, iterations=cap, clip=False)
        found = ATTACKS["deepfool-unclipped"].run(net, *few, Threat("l2", float(cap)), Effort(), seeded())
        assert torch.equal(found, want)


# --- closed forms ---------------------------------------------------------------------------------------------------


def margins(model: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """Radius at which every image falls: the least margin over the dual norm of the difference of two rows."""
    weight, logits = model.linear.weight.detach().double(), model(x).detach().double()
    falls = torch.full(logits.shape, torch.inf, dtype=torch.float64)
    for i, j in ((i, j) for i in range(len(x)) for j in range(logits.shape[1]) if j != y[i]):
        difference = weight[y[i]] - weight[j]
        dual = difference.abs().sum() if norm == "linf" else difference.square().sum().sqrt()
        falls[i, j] = (logits[i, y[i]] - logits[i, j]) / dual
    return falls.amin(1)


def clear_radius(falls: Tensor) -> float:
    """A radius near the median at which no image falls within 2 %."""
    candidates = [float(falls.median()) * (1 + k / 200) for k in range(60)]
    return max(candidates, key=lambda eps: float((falls / eps - 1).abs().min()))


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_and_pgd_reach_the_closed_form_of_a_linear_model_of_two_classes(norm: str) -> None:
    model, x = linear(2), grey()
    y = model(x).argmax(1)
    falls = margins(model, x, y, norm)
    eps = clear_radius(falls)
    want = falls > eps
    assert (falls / eps - 1).abs().min() > 1e-3
    assert 100 < want.sum() < 200, "a radius at which some images fall and others do not"
    threat = Threat(norm, eps)
    assert torch.equal(still_right(model, fgsm(model, x, y, threat), y), want)
    assert torch.equal(still_right(model, pgd(model, x, y, threat, restarts=5, generator=seeded()), y), want)
    assert torch.equal(still_right(model, pgd(model, x, y, threat, start_at_random=False), y), want)


def test_clipping_is_part_of_the_closed_form_of_a_linear_model() -> None:
    """In linf every pixel is free of the others: the worst image is known with the bounds too."""
    model = linear(2)
    x = torch.rand(400, 1, 4, 6, generator=seeded(1))
    y = model(x).argmax(1)
    way = (model.linear.weight[1 - y] - model.linear.weight[y]).detach().sign().view_as(x)
    for eps in (0.02, 0.05, 0.3):
        worst = (x + eps * way).clamp(0, 1)
        want = still_right(model, worst, y)
        assert torch.equal(still_right(model, fgsm(model, x, y, Threat("linf", eps)), y), want)
        assert torch.equal(still_right(model, pgd(model, x, y, Threat("linf", eps), generator=seeded()), y), want)


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_the_distance_of_deepfool_on_a_linear_model_is_the_distance_to_the_nearest_boundary(classes: int) -> None:
    model, x = linear(classes), grey()
    y = model(x).argmax(1)
    falls = margins(model, x, y, "l2")
    found = deepfool(model, x, y, Threat("l2", math.inf), iterations=1)
    want = 1.02 * (falls + 1e-4)  # the overshoot, and the authors' constant
    torch.testing.assert_close(lengths(found, x, "l2"), want, rtol=1e-3, atol=1e-5)
    assert not still_right(model, found, y).any()
    limited = clear_radius(want)
    left = still_right(model, deepfool(model, x, y, Threat("l2", limited)), y)
    assert torch.equal(left, falls > limited), "with a radius, exactly the nearer ones fall"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_reaches_the_closed_form_of_a_linear_model(classes: int, norm: str) -> None:
    model, x = linear(classes, pixels=64), grey(20, pixels=64)
    y = model(x).argmax(1)
    falls = margins(model, x, y, norm)
    eps = clear_radius(falls)
    assert (falls / eps - 1).abs().min() > 5e-3
    found = autoattack(model, x, y, Threat(norm, eps), queries=20, generator=seeded())
    assert torch.equal(still_right(model, found, y), falls > eps)
    assert 0 < (falls > eps).sum() < len(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [3, 6])
def test_pgd_on_a_linear_model_of_more_classes_is_never_beyond_the_closed_form(classes: int, norm: str) -> None:
    model, x = linear(classes), grey()
    y = model(x).argmax(1)
    falls = margins(model, x, y, norm)
    eps = clear_radius(falls)
    left = still_right(model, pgd(model, x, y, Threat(norm, eps), generator=seeded()), y)
    assert not (~left & (falls > eps)).any(), "an image fell that cannot fall"
    assert (left & (falls <= eps)).sum() <= 40, "of 300; the loss has other maxima than the nearest boundary"


# --- a planted error: Zimmermann et al. 2022 ------------------------------------------------------------------------


def planted(reach: float, corner: float, norm: str, eps: float) -> tuple[Planted, Tensor, Tensor]:
    """Twelve images with one wrong point each, `corner` times the radius away, and the error's size as a share of it.

    The perturbation is the same for all, so that one for all images exists too.
    """
    generator = seeded(2)
    x = 0.3 + 0.4 * torch.rand(12, 1, 8, 8, generator=generator)
    signs = torch.rand(1, 1, 8, 8, generator=generator).sub(0.5).sign()
    step = signs * (eps if norm == "linf" else eps / 8)  # 64 pixels: of length eps
    model = Planted(x + corner * step, reach * corner * float(step.norm()))
    return model.eval(), x, torch.zeros(12, dtype=torch.long)


@pytest.mark.parametrize(
    ("row", "norm"), [pytest.param(row, norm, id=f"{row.id}-{norm}") for row in WHITE for norm in row.norms]
)
def test_every_white_box_attack_finds_the_planted_error(row: AttackCase, norm: str) -> None:
    model, x, y = planted(0.2, 0.99, norm, 0.1)
    assert still_right(model, x, y).all()
    make = partial(row.make, steps=50) if row.covers == "pgd" else row.make  # 6 steps are too long to end in it
    found = make(model, x, y, Threat(norm, 0.1), generator=seeded())
    assert count(model, found, y) == 0
    assert not violations(found, x, Threat(norm, 0.1)).any()


def test_square_finds_a_planted_error_of_its_kind_and_noise_does_not() -> None:
    """Towards all pixels brighter, which squares of one colour add up to; in l2 its windows never do."""
    x, y = 0.3 + 0.4 * torch.rand(12, 1, 8, 8, generator=seeded(2)), torch.zeros(12, dtype=torch.long)
    step, threat = torch.full((1, 1, 8, 8), 0.099), Threat("linf", 0.1)
    model = Planted(x + step, 0.95 * float(step.norm())).eval()
    assert still_right(model, x, y).all()
    assert count(model, square(model, x, y, threat, queries=1000, generator=seeded()), y) == 0
    for noise in (uniform_noise, gaussian_noise):
        assert all(count(model, noise(model, x, y, threat, generator=seeded(s)), y) == 12 for s in range(20))


@pytest.mark.parametrize("noise", [uniform_noise, gaussian_noise])
@pytest.mark.parametrize("norm", NORMS)
def test_noise_does_not_find_the_planted_error(noise: Callable[..., Tensor], norm: str) -> None:
    """So that finding it says something."""
    model, x, y = planted(0.2, 0.99, norm, 0.1)
    assert all(count(model, noise(model, x, y, Threat(norm, 0.1), generator=seeded(s)), y) == 12 for s in range(20))


@over([row for row in WHITE if row.covers in ("pgd", "autoattack")])
def test_an_error_inside_the_ball_is_found_by_iterating_and_missed_by_one_step(row: AttackCase) -> None:
    model, x, y = planted(0.4, 0.5, "linf", 0.1)
    assert count(model, fgsm(model, x, y, Threat("linf", 0.1)), y) == 12
    make = row.make if row.covers == "autoattack" else pgd
    assert count(model, make(model, x, y, Threat("linf", 0.1), generator=seeded()), y) == 0


def test_a_quantised_net_gives_no_gradient_to_follow_but_falls_to_random_search(many: tuple[Tensor, Tensor]) -> None:
    x, y = many[0][:60], many[1][:60]
    model = Quantised(trained())
    gradient, _ = input_gradient(model, x, y)
    assert gradient.count_nonzero() == 0
    threat = Threat("linf", 0.15)
    clean = count(model, x, y)
    assert torch.equal(fgsm(model, x, y, threat), x)
    assert torch.equal(pgd(model, x, y, threat, steps=5, start_at_random=False), x)
    assert torch.equal(deepfool(model, x, y, Threat("l2", math.inf), iterations=3), x)
    assert count(model, square(model, x, y, threat, queries=200, generator=seeded()), y) < clean - 15


# --- PGD and FGSM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_one_pgd_step_of_the_whole_radius_is_fgsm(many: tuple[Tensor, Tensor], norm: str) -> None:
    x, y = many
    for eps in (SMALL, 0.3, 1.0):
        step = pgd(trained(), x, y, Threat(norm, eps), steps=1, step_size=eps, start_at_random=False)
        want = fgsm(trained(), x, y, Threat(norm, eps))
        assert torch.equal(step, want) if norm == "linf" else torch.allclose(step, want, rtol=0, atol=1e-6)


def test_an_image_counts_alone_whatever_is_in_its_batch(many: tuple[Tensor, Tensor]) -> None:
    """The loss is a sum: a mean over many images would round small gradients to 0."""
    x, y = many
    threat = Threat("linf", 0.1)
    alone = torch.cat([fgsm(trained(), x[i : i + 1], y[i : i + 1], threat) for i in range(20)])
    together = fgsm(trained(), x, y, threat)[:20]
    assert ((alone - together).abs() > 1e-6).sum() <= 2, "but for a sign at 0"


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_are_never_weaker_for_any_image(many: tuple[Tensor, Tensor], norm: str) -> None:
    x, y = many
    threat = Threat(norm, 0.1 if norm == "linf" else 0.6)
    made = {r: pgd(trained(), x, y, threat, steps=3, restarts=r, generator=seeded(5)) for r in (1, 2, 4, 8)}
    right = {r: still_right(trained(), found, y) for r, found in made.items()}
    for fewer, more in ((1, 2), (2, 4), (4, 8)):
        assert not (right[more] & ~right[fewer]).any()
        assert torch.equal(made[fewer][~right[fewer]], made[more][~right[fewer]]), "the first that fools is kept"
    assert right[8].sum() < right[1].sum(), "restarts found something"


def test_restarts_stop_when_nothing_is_left() -> None:
    x, y = right_ones(trained(), 10)
    passes = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            return trained()(x)

    pgd(Counting(), x, y, Threat("linf", 0.5), steps=10, restarts=50, generator=seeded())
    assert len(passes) <= 22, "two restarts at most: each has ten steps and one look"
    assert passes[:11] == [10] * 11


@pytest.mark.parametrize("norm", NORMS)
def test_an_early_stop_keeps_the_first_step_that_fools(many: tuple[Tensor, Tensor], norm: str) -> None:
    """Against a plain loop: the whole attack with one step, with two, and so on."""
    x, y = many
    (radius, size), steps = {"linf": (0.1, 0.02), "l2": (0.5, 0.08)}[norm], 8
    threat = Threat(norm, radius)
    want, standing = x.clone(), still_right(trained(), x, y)
    assert 0 < (~standing).sum() < 20, "some images fool it as they are"
    for taken in range(1, steps + 1):
        made = pgd(trained(), x, y, threat, steps=taken, step_size=size, start_at_random=False)
        want[standing] = made[standing]
        standing &= still_right(trained(), made, y)
    got = pgd(trained(), x, y, threat, steps=steps, step_size=size, start_at_random=False, early_stop=True)
    differ = (got - want).flatten(1).abs().amax(1) > 1e-6
    assert differ.sum() <= 2, "but for a sign at 0, whose gradient depends on the images beside it"
    assert 20 < standing.sum() < 180
    assert (still_right(trained(), got, y) != standing).sum() <= 2


def test_an_early_stop_spends_no_step_on_images_that_fool_already(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    sizes = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                sizes.append(len(x))
            return trained()(x)

    threat = Threat("linf", 0.1)
    pgd(Counting(), x, y, threat, steps=20, restarts=3, early_stop=True, generator=seeded())
    assert sizes[:20] == sorted(sizes[:20], reverse=True)
    assert sum(sizes) < 0.8 * 20 * 3 * len(x)
    sizes.clear()
    others = y.where(torch.arange(len(y)) % 2 == 0, (y + 1) % 10)
    found = pgd(Counting(), x, others, threat, steps=20, early_stop=True, generator=seeded())
    wrong = ~still_right(trained(), x, others)
    assert 50 < wrong.sum() < 150
    assert torch.equal(found[wrong], x[wrong]), "what is wrong stays as it is"
    assert sizes[0] == len(x) - wrong.sum()


def test_an_early_stop_is_as_strong_over_random_starts(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    threat, left = Threat("linf", 0.1), {}
    for stop in (False, True):
        made = [pgd(trained(), x, y, threat, steps=20, early_stop=stop, generator=seeded(s)) for s in range(5)]
        left[stop] = [int(still_right(trained(), found, y).sum()) for found in made]
    assert max(left[True]) <= max(left[False]) + 2
    assert min(left[True]) <= min(left[False])


def test_the_trace_is_the_mean_loss_before_every_step_of_the_first_restart(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    trace: list[float] = []
    threat = Threat("linf", 0.1)
    found = pgd(trained(), x, y, threat, steps=7, start_at_random=False, restarts=3, trace=trace)
    assert len(trace) == 7
    with torch.no_grad():
        clean, end = (float(nn.functional.cross_entropy(trained()(images), y)) for images in (x, found))
    assert trace[0] == pytest.approx(clean, rel=1e-5)
    assert trace == sorted(trace)
    assert trace[-1] <= end


def test_another_loss_is_what_is_raised(many: tuple[Tensor, Tensor]) -> None:
    """Here the logit of class 0."""
    x, y = many[0][:50], many[1][:50]

    def zero(logits: Tensor, y: Tensor) -> Tensor:
        return logits[:, 0].sum()

    found = pgd(trained(), x, y, Threat("linf", 0.3), steps=20, loss=zero, generator=seeded())
    assert (trained()(found).argmax(1) == 0).float().mean() > 0.8


def test_draws_average_the_gradients_of_a_random_net(many: tuple[Tensor, Tensor]) -> None:
    x, y = many[0][:10], many[1][:10]
    model = Noisy(trained())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mean, _ = input_gradient(model, x, y, draws=5)
        torch.manual_seed(3)
        single = [input_gradient(model, x, y)[0] for _ in range(5)]
    torch.testing.assert_close(mean, torch.stack(single).mean(0), rtol=1e-5, atol=1e-7)
    assert not torch.equal(single[0], single[1])


class InTurn(nn.Module):
    """A random net without chance: one pass after the other adds the next of some patterns."""

    def __init__(self, net: nn.Module, patterns: Tensor) -> None:
        super().__init__()
        self.net, self.patterns, self.passes = net, patterns, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(x + self.patterns[(self.passes - 1) % len(self.patterns)])


def test_restarts_on_a_random_net_are_judged_over_as_many_draws(many: tuple[Tensor, Tensor]) -> None:
    """Against a plain loop that asks every image at every one of the patterns."""
    x, y = many[0][:60], many[1][:60]
    threat, draws, restarts = Threat("linf", 0.12), 5, 4
    model = InTurn(trained(), 0.3 * torch.randn(draws, 1, 8, 8, generator=seeded(1)))
    got = pgd(model, x, y, threat, steps=3, restarts=restarts, draws=draws, generator=seeded(5))
    want, least = x.clone(), [1.0] * len(x)
    left, source, attacked = list(range(len(x))), seeded(5), []
    for _ in range(restarts):
        attacked.append(len(left))
        found = pgd(model, x[left], y[left], threat, steps=3, draws=draws, generator=source)
        for image, row in zip(found, left, strict=True):
            share = sum(count(trained(), (image + p)[None], y[row : row + 1]) for p in model.patterns) / draws
            if share <= least[row]:
                want[row], least[row] = image, share
        left = [row for row in left if least[row] > 0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert 0 < attacked[-1] < attacked[1] < len(x)
    assert sum(0 < share < 1 for share in least) > 5, "some images fool it in some draws only"


def test_a_pass_that_is_wrong_by_chance_does_not_end_the_restarts() -> None:
    """Every second pass is wrong about everything: a single one would call the images fooled."""

    class EverySecond(nn.Module):
        passes, sizes = 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            self.sizes.append(len(x))
            way = x.flatten(1).sum(1)
            logits = torch.stack([0 * way + 9, 0.001 * way], 1)
            return logits if self.passes % 2 else -logits

    model = EverySecond().eval()
    x, y = torch.rand(6, 1, 4, 4, generator=seeded()), torch.zeros(6, dtype=torch.long)
    pgd(model, x, y, Threat("linf", 0.1), steps=1, restarts=3, draws=4, generator=seeded())
    assert model.sizes == [6] * (3 * (4 + 4)), "all images, a gradient and a judgement of four passes each time"


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_is_one_value_seen_many_times_can_be_followed(norm: str) -> None:
    """That of a sum over pixels is an expanded tensor, which cannot be written to."""

    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((2, 3))

    x, y = 0.3 + 0.4 * torch.rand(5, 3, 4, 4, generator=seeded()), torch.tensor([0, 1, 2, 0, 1])
    gradient, _ = input_gradient(Sums(), x, y)
    assert gradient.stride()[2:] == (0, 0)
    threat = Threat(norm, 0.05)
    moved = pgd(Sums(), x, y, threat, steps=1, step_size=0.05, start_at_random=False)
    torch.testing.assert_close(moved, fgsm(Sums(), x, y, threat), rtol=0, atol=1e-6)
    assert not violations(pgd(Sums(), x, y, threat, steps=3, restarts=2, generator=seeded()), x, threat).any()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, x, y, t: pgd(m, x, y, t, steps=0, generator=seeded()), r"^steps is 0 and restarts 1; choose at"),
        (lambda m, x, y, t: pgd(m, x, y, t, restarts=0, generator=seeded()), r"^steps is 50 and restarts 0; choose"),
        (lambda m, x, y, t: input_gradient(m, x, y, draws=0), r"^draws is 0; choose at least 1$"),
        (lambda m, x, y, t: deepfool(m, x, y, t), r"^norm is 'linf' and iterations 50; DeepFool needs l2 and at"),
        (lambda m, x, y, t: deepfool(m, x, y, Threat("l2"), iterations=0), r"^norm is 'l2' and iterations 0; DeepFo"),
        (
            lambda m, x, y, t: universal_perturbation(m, x, y, t, passes=0, generator=seeded()),
            r"passes 0; pass a torch\.Generator and at least 1 pass$",
        ),
        (lambda m, x, y, t: fgsm_normalised(m.net, x, y, t), r"^norm is 'linf' and the model a Sequential; expected"),
        (lambda m, x, y, t: fgsm_normalised(m, x, y, Threat("l2")), r"^norm is 'l2' and the model a PixelModel; exp"),
    ],
)
def test_an_impossible_effort_is_one_sentence(
    net: nn.Module, few: tuple[Tensor, Tensor], call: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as told:
        call(net, *few, Threat("linf", 0.1))
    assert "\n" not in str(told.value)


# --- DeepFool -------------------------------------------------------------------------------------------------------


def test_the_path_of_deepfool_is_deepfool_at_every_cap(many: tuple[Tensor, Tensor]) -> None:
    x, y = many[0][:40], many[1][:40]
    free = Threat("l2", math.inf)
    path = deepfool_path(trained(), x, y, free, iterations=5)
    assert len(path) == 5
    assert all(torch.equal(found, deepfool(trained(), x, y, free, iterations=cap)) for cap, found in enumerate(path, 1))
    left = [still_right(trained(), found, y) for found in path]
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(left))
    assert left[-1].sum() < left[0].sum()


def test_unclipped_deepfool_reaches_the_closed_form_on_black_and_white_images_where_the_clip_stops_it() -> None:
    """Half of each step leads out of [0, 1] there, and most images survive the first one."""
    model = linear(4)
    x = torch.rand(300, 1, 4, 6, generator=seeded(1)).round()
    y = model(x).argmax(1)
    falls, free = margins(model, x, y, "l2"), Threat("l2", math.inf)
    found = deepfool(model, x, y, free, iterations=1, clip=False)
    torch.testing.assert_close(lengths(found, x, "l2"), 1.02 * (falls + 1e-4), rtol=1e-3, atol=1e-5)
    assert not still_right(model, found, y).any()
    assert found.min() < -0.1
    assert found.max() > 1.1
    clipped = deepfool(model, x, y, free, iterations=1)
    assert torch.equal(clipped, found.clamp(0, 1)), "of a single step the clip is the whole difference"
    assert still_right(model, clipped, y).sum() > 150
    limited = clear_radius(1.02 * (falls + 1e-4))
    near = deepfool(model, x, y, Threat("l2", limited), iterations=1, clip=False)
    assert lengths(near, x, "l2").max() <= limited + 1e-5, "the radius holds without the clip too"


def test_the_path_of_unclipped_deepfool_is_it_at_every_cap(many: tuple[Tensor, Tensor]) -> None:
    x, y = many[0][:20], many[1][:20]
    free = Threat("l2", math.inf)
    path = deepfool_path(trained(), x, y, free, iterations=3, clip=False)
    for cap, found in enumerate(path, 1):
        assert torch.equal(found, deepfool(trained(), x, y, free, iterations=cap, clip=False))
        assert violations(found, x, free).any()


def test_deepfool_leaves_an_image_that_is_wrong_already(few: tuple[Tensor, Tensor], net: nn.Module) -> None:
    x, y = few
    found = deepfool(net, x, y, Threat("l2", math.inf))
    assert torch.equal(found[-1], x[-1])
    assert (lengths(found, x, "l2")[:-1] > 0).all()


# --- noise, and one perturbation for all ----------------------------------------------------------------------------


def test_uniform_noise_fills_the_ball_evenly() -> None:
    x, y = torch.full((400, 1, 5, 5), 0.5), torch.zeros(400)
    delta = uniform_noise(nn.Identity(), x, y, Threat("linf", 0.2), generator=seeded()) - x
    values = delta.flatten().double()
    assert values.abs().max() > 0.1999
    assert abs(values.mean()) < 5 * 0.2 / math.sqrt(3 * len(values))
    assert values.square().mean() == pytest.approx(0.2**2 / 3, rel=0.03)
    radii = lengths(uniform_noise(nn.Identity(), x, y, Threat("l2", 0.4), generator=seeded()), x, "l2")
    shares = (radii / 0.4) ** 25  # uniform in [0, 1] when the ball of 25 dimensions is filled evenly
    assert abs(shares.mean() - 0.5) < 5 / math.sqrt(12 * 400)
    assert shares.var() == pytest.approx(1 / 12, rel=0.25)


def test_gaussian_noise_has_the_whole_length_in_l2_and_the_radius_as_deviation_in_linf() -> None:
    x, y = torch.full((400, 1, 5, 5), 0.5), torch.zeros(400)
    found = gaussian_noise(nn.Identity(), x, y, Threat("l2", 0.4), generator=seeded())
    torch.testing.assert_close(lengths(found, x, "l2"), torch.full((400,), 0.4).double(), rtol=1e-5, atol=0)
    delta = (gaussian_noise(nn.Identity(), x, y, Threat("linf", 0.1), generator=seeded()) - x).flatten()
    within = delta.abs() < 0.0999
    assert float(within.float().mean()) == pytest.approx(0.6827, abs=5 * math.sqrt(0.68 * 0.32 / len(delta)))
    assert delta[within].double().square().mean() == pytest.approx(0.1**2 * 0.2911, rel=0.05)  # of a cut normal


def test_noise_looks_at_nothing_but_the_images() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("noise asked the net")

    x = torch.rand(3, 1, 4, 4, generator=seeded())
    for noise in (uniform_noise, gaussian_noise):
        noise(Refusing(), x, torch.zeros(3), Threat("linf", 0.1), generator=seeded())


@pytest.mark.parametrize("norm", NORMS)
def test_one_perturbation_is_the_same_for_all_images_and_carries_over_to_others(norm: str) -> None:
    x, y = right_ones(trained(), 300)
    threat = Threat(norm, 0.25 if norm == "linf" else 1.6)
    delta = universal_perturbation(trained(), x[:150], y[:150], threat, generator=seeded())
    assert delta.shape == (1, 1, 8, 8)
    assert lengths(delta, torch.zeros_like(delta), norm) <= threat.eps + 1e-6
    others, labels = x[150:], y[150:]
    moved = project(others + delta, others, threat)
    noisy = uniform_noise(trained(), others, labels, threat, generator=seeded())
    assert count(trained(), moved, labels) < count(trained(), noisy, labels) - 20


def test_the_universal_attack_adds_that_one_perturbation(few: tuple[Tensor, Tensor], net: nn.Module) -> None:
    x, y = 0.4 + 0.2 * few[0], few[1]  # so that nothing is clipped
    delta = ATTACKS["universal"].run(net, x, y, Threat("linf", 0.1), Effort(), seeded()) - x
    torch.testing.assert_close(delta, delta[:1].expand_as(delta), rtol=0, atol=1e-6)
    want = universal_perturbation(net, x, y, Threat("linf", 0.1), generator=seeded())
    torch.testing.assert_close(delta[:1], want, rtol=0, atol=1e-6)


def test_a_random_start_needs_a_generator_and_stays_in_the_ball() -> None:
    x = torch.rand(50, 1, 4, 4, generator=seeded())
    for norm in NORMS:
        threat = Threat(norm, 0.3)
        start = random_start(x, threat, seeded(1))
        assert not violations(start, x, threat).any()
        assert not torch.equal(start, random_start(x, threat, seeded(2)))
    with pytest.raises(ValueError, match=r"^generator is None, and the attack starts at random; pass a torch\.Gen"):
        random_start(x, threat, None)


# --- published mistakes ---------------------------------------------------------------------------------------------


def test_unclipped_fgsm_is_the_papers_equation(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    leaf = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(trained()(leaf), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    found = fgsm(trained(), x, y, Threat("linf", 0.3), clip=False)
    assert torch.equal(found, x + 0.3 * gradient.sign())
    assert found.min() < -0.29
    assert torch.equal(found.clamp(0, 1), fgsm(trained(), x, y, Threat("linf", 0.3)))


def test_fgsm_in_normalised_space_moves_pixels_by_the_deviation_and_leaves_the_bounds() -> None:
    """Three channels of other deviations; the step is made as published: on normalised images, with the bare net."""
    generator = seeded(4)
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    x = torch.rand(20, 3, 5, 5, generator=generator)
    x[0] = 1.0
    y = torch.randint(4, (20,), generator=generator)
    net = Linear(torch.randn(4, 75, generator=generator), torch.zeros(4)).eval()
    model = PixelModel(net, mean, std)
    found = fgsm_normalised(model, x, y, Threat("linf", 8 / 255))
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    leaf = ((x - m) / s).requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y), leaf)
    published = leaf.detach() + 8 / 255 * gradient.sign()
    torch.testing.assert_close((found - m) / s, published, rtol=0, atol=1e-5)
    moved = (found - x).abs()
    for channel, deviation in enumerate(std):
        wanted = torch.full((20, 5, 5), 8 / 255 * deviation)
        torch.testing.assert_close(moved[:, channel], wanted, rtol=0, atol=1e-6)
    assert found.max() > 1.001
    assert torch.equal(fgsm_normalised(Frozen(model), x, y, Threat("linf", 8 / 255)), found), "wrapped, too"


# --- the threat -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"norm": "l1"}, r"^norm is 'l1'; choose one of linf, l2$"),
        ({"eps": -0.1}, r"^eps is -0\.1; choose a radius of at least 0, in pixels of \[0, 1\], such as 8/255$"),
        ({"eps": math.nan}, r"^eps is nan; choose a radius"),
        ({"bounds": (1.0, 0.0)}, r"^bounds are \(1\.0, 0\.0\); expected the lowest pixel value below the highest$"),
    ],
)
def test_an_impossible_threat_is_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Threat(**given)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_nearest_point_of_the_ball_and_changes_nothing_inside(norm: str) -> None:
    generator = seeded()
    x = torch.rand(60, 1, 3, 3, generator=generator)
    far = x + torch.randn(x.shape, generator=generator)
    threat = Threat(norm, 0.3)
    back = project(far, x, threat)
    assert not violations(back, x, threat).any()
    torch.testing.assert_close(project(back, x, threat), back, rtol=0, atol=1e-6)
    near = x + 1e-3 * (0.5 - x)
    torch.testing.assert_close(project(near, x, threat), near, rtol=0, atol=1e-6)
    wide = Threat(norm, 0.3, (-9.0, 9.0))
    for i in range(len(x)):
        delta = (far - x)[i].double()
        length = delta.norm()
        want = delta.clamp(-0.3, 0.3) if norm == "linf" else delta * min(1.0, 0.3 / float(length))
        torch.testing.assert_close((project(far, x, wide) - x)[i].double(), want, rtol=0, atol=1e-6)
    assert torch.equal(project(far, x, Threat(norm, math.inf)), (x + (far - x)).clamp(0, 1))


def test_violations_are_told_image_by_image() -> None:
    x = torch.full((6, 1, 2, 2), 0.5)
    found = x.clone()
    found[1, 0, 0, 0] += 0.1 + 5e-7  # rounding is forgiven
    found[2, 0, 0, 0] += 0.1 + 1e-5
    found[3, 0, 0, 0] = torch.nan
    found[4] += 0.06  # of length 0.12 in l2
    assert violations(found, x, Threat("linf", 0.1)).tolist() == [False, False, True, True, False, False]
    assert violations(found, x, Threat("l2", 0.1)).tolist() == [False, False, True, True, True, False]
    assert violations(found, x, Threat("l2", math.inf)).tolist() == [False, False, False, True, False, False]
    edge = torch.zeros_like(x)
    edge[0, 0, 0, 0] = -1e-5
    edge[1, 0, 0, 0] = -1e-7
    edge[2, 0, 0, 0] = -math.inf
    wrong = violations(edge, torch.zeros_like(x), Threat("linf", math.inf)).tolist()
    assert wrong == [True, False, True, False, False, False]


# --- the model from outside -----------------------------------------------------------------------------------------


def test_the_model_in_pixels_is_the_net_on_normalised_images() -> None:
    from perturblab.data import Preparation, normalise
    from perturblab.data.digits import read_digits

    images = read_digits().test.images
    model = PixelModel(trained().net, [0.3], [0.35])
    prepared = normalise(images, Preparation(mean=(0.3,), std=(0.35,), crop_padding=0, flip=False))
    assert torch.equal(model(to_pixels(images)), model.net(prepared)), "the same bits, so that radius 0 is evaluation"
    assert to_pixels(images).amax() == 1
    assert images.dtype is torch.uint8


@pytest.mark.parametrize("wrap", [lambda net: PixelModel(net, [0.3], [0.35]), Frozen], ids=["pixels", "frozen"])
def test_wrapping_a_net_leaves_the_mode_of_every_part(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for outer in (True, False):
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train(outer)
        net[1].train(not outer)
        wrapped = wrap(net)
        assert [net.training, *(part.training for part in net)] == [outer, outer, not outer, outer]
        assert wrapped.training == outer


def test_untouched_puts_back_modes_buffers_and_the_random_state_also_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout()).train()
    net[2].eval()
    x = torch.rand(4, 1, 5, 5, generator=seeded())
    with watched(net):
        with untouched(net, training=True, seed=3):
            assert [part.training for part in net] == [True] * 3
            first = net(x)
        with untouched(net, training=True, seed=3):
            assert torch.equal(net(x), first)
        with untouched(net, training=True, seed=4):
            assert not torch.equal(net(x), first)
        with untouched(net, training=False):
            assert not any(part.training for part in net)
        with pytest.raises(ZeroDivisionError), untouched(net, seed=1):
            net(x) + torch.rand(1) + 1 / 0


def test_a_frozen_net_draws_the_same_at_every_pass_and_lets_gradients_through() -> None:
    """With batch norm too, whose statistics a graph holds."""
    net = nn.Sequential(Noisy(nn.Identity()), trained()).eval()
    x, y = digits()
    x, y = x[:30], y[:30]
    one, two = Frozen(net, 1), Frozen(net, 2)
    with watched(net):
        assert torch.equal(one(x), one(x))
        assert not torch.equal(one(x), two(x))
        found = pgd(one, x, y, Threat("linf", 0.1), steps=3, generator=seeded())
    assert count(one, found, y) < count(one, x, y)
    assert not torch.equal(net(x), net(x)), "the net itself stays random"


def test_the_package_of_attacks_says_what_it_exports() -> None:
    import perturblab.attacks

    public = {name for name, value in vars(perturblab.attacks).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in public if not name.startswith("_")} == set(perturblab.attacks.__all__)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "uniform_noise", "gaussian_noise", "universal", "autoattack"])
def test_a_step_needs_a_finite_radius(name: str) -> None:
    x = torch.rand(2, 1, 8, 8)
    attack = getattr(attacks, name)
    with pytest.raises(ValueError, match=r"eps is infinite; choose a radius in pixels"):
        attack(nn.Flatten(), x, torch.zeros(2).long(), Threat("linf", math.inf), generator=torch.Generator())


@pytest.mark.parametrize("text", ["1e400", "1e999999999", "1/1e-400", "1/2/3", "/255", "8/", "nan", "-1", "-1/255", ""])
def test_a_radius_that_is_none_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match=r"--eps got .*; expected a number of at least 0, or a fraction such as 8/255"):
        parse_eps(text)


@pytest.mark.parametrize("flags", ["--eps 8", "--eps 0,0.1,8/25,8", "--eps 1.001", "--eps 255/8 --attacks fgsm"])
def test_a_radius_of_whole_grey_levels_is_refused_in_linf(flags: str) -> None:
    given_ = dict(zip(*[iter(flags.replace("--", "").split())] * 2, strict=True))
    with pytest.raises(UserError, match=r"^--eps got (8|1\.001|31\.875); expected at most 1 in linf, .* as 8/255$"):
        validated(AttackConfig, given_)
    assert validated(AttackConfig, given_ | {"norm": "l2"}).eps, "in l2 a radius may be any"


def test_a_radius_of_one_is_the_largest_in_linf() -> None:
    assert validated(AttackConfig, {"eps": "0,8/255,1"}).eps == (0.0, 8 / 255, 1.0)
    assert validated(AttackConfig, {}).eps is None
    assert validated(TrainConfig, {"defence_eps": "1"}).defence_eps == "1"
    said = r"^--defence-eps got 8; expected at most 1 in linf, where pixels lie in \[0, 1\]; write 8 of 255 as 8/255$"
    with pytest.raises(UserError, match=said):
        validated(TrainConfig, {"defence_eps": "8", "defence": "pgd"})


def test_a_radius_is_a_number_or_a_fraction() -> None:
    assert [parse_eps(text) for text in ("0", "0.1", "8/255", " 1e-2 ", "1/4")] == [0.0, 0.1, 8 / 255, 0.01, 0.25]
