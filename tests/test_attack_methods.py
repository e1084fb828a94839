"""PGD, FGSM, DeepFool, noise and the universal perturbation, each by its own rules."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import NORMS, SMALL, Noisy, count, lengths, right_ones, seeded, trained
from perturblab.attacks import (
    ATTACKS,
    Effort,
    Threat,
    deepfool,
    deepfool_path,
    fgsm,
    fgsm_normalised,
    gaussian_noise,
    input_gradient,
    pgd,
    project,
    random_start,
    still_right,
    uniform_noise,
    universal_perturbation,
    violations,
)
from perturblab.attacks.gradient import sum_loss
from told import in_order

# --- PGD and FGSM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_one_pgd_step_of_the_whole_radius_is_fgsm(many: tuple[Tensor, Tensor], norm: str) -> None:
    x, y = many
    for eps in (SMALL, 0.3, 1.0):
        step = pgd(
            trained(), x, y, Threat(norm, eps), Effort(steps=1, step_size=eps, restarts=1), start_at_random=False
        )
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
    made = {r: pgd(trained(), x, y, threat, Effort(steps=3, restarts=r), generator=seeded(5)) for r in (1, 2, 4, 8)}
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

    pgd(Counting(), x, y, Threat("linf", 0.5), Effort(steps=10, restarts=50), generator=seeded())
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
        made = pgd(trained(), x, y, threat, Effort(steps=taken, step_size=size, restarts=1), start_at_random=False)
        want[standing] = made[standing]
        standing &= still_right(trained(), made, y)
    got = pgd(
        trained(), x, y, threat, Effort(steps=steps, step_size=size, early_stop=True, restarts=1), start_at_random=False
    )
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
    pgd(Counting(), x, y, threat, Effort(steps=20, restarts=3, early_stop=True), generator=seeded())
    assert sizes[:20] == sorted(sizes[:20], reverse=True)
    assert sum(sizes) < 0.8 * 20 * 3 * len(x)
    sizes.clear()
    others = y.where(torch.arange(len(y)) % 2 == 0, (y + 1) % 10)
    found = pgd(Counting(), x, others, threat, Effort(steps=20, early_stop=True, restarts=1), generator=seeded())
    wrong = ~still_right(trained(), x, others)
    assert 50 < wrong.sum() < 150
    assert torch.equal(found[wrong], x[wrong]), "what is wrong stays as it is"
    assert sizes[0] == len(x) - wrong.sum()


def test_an_early_stop_is_as_strong_over_random_starts(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    threat, left = Threat("linf", 0.1), {}
    for stop in (False, True):
        made = [
            pgd(trained(), x, y, threat, Effort(steps=20, early_stop=stop, restarts=1), generator=seeded(s))
            for s in range(5)
        ]
        left[stop] = [int(still_right(trained(), found, y).sum()) for found in made]
    assert sum(left[True]) / 5 <= sum(left[False]) / 5 + 3, "the starts differ, so a few images fall to chance"


def test_the_loss_rises_from_step_to_step(many: tuple[Tensor, Tensor]) -> None:
    x, y = many
    trace: list[float] = []
    threat = Threat("linf", 0.1)

    def traced(logits: Tensor, y: Tensor) -> Tensor:
        loss = sum_loss(logits, y)
        trace.append(float(loss.detach()) / len(y))
        return loss

    found = pgd(trained(), x, y, threat, Effort(steps=7), start_at_random=False, loss=traced)
    assert len(trace) > 7
    del trace[7:]
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

    found = pgd(trained(), x, y, Threat("linf", 0.3), Effort(steps=20, restarts=1), loss=zero, generator=seeded())
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
    got = pgd(model, x, y, threat, Effort(steps=3, restarts=restarts, draws=draws), generator=seeded(5))
    want, least = x.clone(), [1.0] * len(x)
    left, source, attacked = list(range(len(x))), seeded(5), []
    for _ in range(restarts):
        attacked.append(len(left))
        found = pgd(model, x[left], y[left], threat, Effort(steps=3, draws=draws, restarts=1), generator=source)
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
    pgd(model, x, y, Threat("linf", 0.1), Effort(steps=1, restarts=3, draws=4), generator=seeded())
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
    moved = pgd(Sums(), x, y, threat, Effort(steps=1, step_size=0.05, restarts=1), start_at_random=False)
    torch.testing.assert_close(moved, fgsm(Sums(), x, y, threat), rtol=0, atol=1e-6)
    assert not violations(pgd(Sums(), x, y, threat, Effort(steps=3, restarts=2), generator=seeded()), x, threat).any()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda m, x, y, t: pgd(m, x, y, t, Effort(steps=0, restarts=1), generator=seeded()),
            "steps 0 restarts 1 least 1",
        ),
        (lambda m, x, y, t: pgd(m, x, y, t, Effort(restarts=0), generator=seeded()), "steps 50 restarts 0"),
        (lambda m, x, y, t: input_gradient(m, x, y, draws=0), "draws 0 1"),
        (lambda m, x, y, t: deepfool(m, x, y, t), "norm linf iterations 50 DeepFool l2"),
        (lambda m, x, y, t: deepfool(m, x, y, Threat("l2"), iterations=0), "norm l2 iterations 0 DeepFool"),
        (
            lambda m, x, y, t: universal_perturbation(m, x, y, t, passes=0, generator=seeded()),
            "passes 0 torch.Generator 1",
        ),
        (lambda m, x, y, t: fgsm_normalised(m.net, x, y, t), "norm linf Sequential"),
        (lambda m, x, y, t: fgsm_normalised(m, x, y, Threat("l2")), "norm l2 PixelModel expected"),
    ],
)
def test_an_impossible_effort_is_one_sentence(
    net: nn.Module, few: tuple[Tensor, Tensor], call: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ValueError, match=in_order(said)) as told:
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


def test_the_path_of_unclipped_deepfool_is_it_at_every_cap(many: tuple[Tensor, Tensor]) -> None:
    x, y = many[0][:20], many[1][:20]
    free = Threat("l2", math.inf)
    path = deepfool_path(trained(), x, y, free.without_bounds(), iterations=3)
    for cap, found in enumerate(path, 1):
        assert torch.equal(found, deepfool(trained(), x, y, free.without_bounds(), iterations=cap))
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
    delta = ATTACKS["universal"](net, x, y, Threat("linf", 0.1), Effort(), seeded()) - x
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
    with pytest.raises(ValueError, match=in_order("generator None torch.Generator")):
        random_start(x, threat, None)
