"""Attacks against closed forms, planted errors and published mistakes."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cases import WHITE, AttackCase, over
from nets import NORMS, Linear, Planted, Quantised, count, grey, lengths, linear, seeded, trained
from perturblab.attacks import (
    Effort,
    Ensemble,
    Frozen,
    PixelModel,
    Threat,
    autoattack,
    deepfool,
    fgsm,
    fgsm_normalised,
    gaussian_noise,
    input_gradient,
    pgd,
    square,
    still_right,
    uniform_noise,
    violations,
)

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
    assert torch.equal(still_right(model, pgd(model, x, y, threat, Effort(restarts=5), generator=seeded()), y), want)
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
    found = autoattack(model, x, y, Threat(norm, eps), Ensemble(queries=20), generator=seeded())
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


def test_unclipped_deepfool_reaches_the_closed_form_on_black_and_white_images_where_the_clip_stops_it() -> None:
    """Half of each step leads out of [0, 1] there, and most images survive the first one."""
    model = linear(4)
    x = torch.rand(300, 1, 4, 6, generator=seeded(1)).round()
    y = model(x).argmax(1)
    falls, free = margins(model, x, y, "l2"), Threat("l2", math.inf)
    found = deepfool(model, x, y, free.without_bounds(), iterations=1)
    torch.testing.assert_close(lengths(found, x, "l2"), 1.02 * (falls + 1e-4), rtol=1e-3, atol=1e-5)
    assert not still_right(model, found, y).any()
    assert found.min() < -0.1
    assert found.max() > 1.1
    clipped = deepfool(model, x, y, free, iterations=1)
    assert torch.equal(clipped, found.clamp(0, 1)), "of a single step the clip is the whole difference"
    assert still_right(model, clipped, y).sum() > 150
    limited = clear_radius(1.02 * (falls + 1e-4))
    near = deepfool(model, x, y, Threat("l2", limited).without_bounds(), iterations=1)
    assert lengths(near, x, "l2").max() <= limited + 1e-5, "the radius holds without the clip too"


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
    # 6 steps are too long to end in it.
    make = partial(row.make, effort=Effort(restarts=1)) if row.covers == "pgd" else row.make
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
    assert torch.equal(pgd(model, x, y, threat, Effort(steps=5, restarts=1), start_at_random=False), x)
    assert torch.equal(deepfool(model, x, y, Threat("l2", math.inf), iterations=3), x)
    assert count(model, square(model, x, y, threat, queries=200, generator=seeded()), y) < clean - 15


# --- published mistakes ---------------------------------------------------------------------------------------------


def test_unclipped_fgsm_is_the_papers_equation(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    leaf = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(trained()(leaf), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    found = fgsm(trained(), x, y, Threat("linf", 0.3).without_bounds())
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
