"""The masking checks: nets that mask their gradient raise their flag, a plain one none; the numbers are right."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders import CLEAN
from nets import (
    Linear,
    Noisy,
    NotANumber,
    NotANumberBehind,
    Planted,
    Quantised,
    Scaled,
    Softmaxed,
    count,
    digits,
    grey,
    linear,
    right_ones,
    seeded,
    trained,
    watched,
)
from perturblab.attacks import Effort, Frozen, Threat, fgsm, input_gradient, masking, pgd, square, still_right
from perturblab.attacks.masking import examine
from perturblab.records.checks import Findings
from perturblab.records.flags import (
    _ORDER,
    ABOVE_CHANCE,
    BLACK_BOX,
    NAN,
    NOT_CONVERGED,
    NOT_MONOTONE,
    PGD_WEAKER,
    RANDOM,
    SATURATED,
    SOFTMAX,
    ZERO,
)

LITTLE = Effort(steps=5, restarts=1)


def looked(model: nn.Module, *, eps: float = 0.1, images: int = 100, effort: Effort = LITTLE, **given: Any) -> Findings:
    """The checks on the first test images of the digits."""
    x, y = digits()
    given = {"generator": seeded(1)} | given
    return examine(model, x[:images], y[:images], Threat("linf", eps), effort=effort, **given)


def by_square(model: nn.Module, queries: int = 150) -> Mapping[str, masking.Breaker]:
    return {"square": lambda x, y, t, g: square(model, x, y, t, queries=queries, generator=g)}


# --- nets and their flags -------------------------------------------------------------------------------------------


def test_a_plain_trained_net_raises_no_flag() -> None:
    """With the effort of the command, Square, and images transferred from another such net."""
    model, other = trained(), trained(1)
    effort = Effort(steps=50, restarts=5)
    breakers = dict(by_square(model, 300))
    breakers["transfer"] = lambda x, y, t, g: pgd(other, x, y, t, Effort(steps=20, restarts=1), generator=g)
    for norm, eps in (("linf", 0.1), ("l2", 0.6)):
        x, y = digits()
        threat = Threat(norm, eps)
        found = examine(model, x[:200], y[:200], threat, effort=effort, black_boxes=breakers, generator=seeded(1))
        assert found.flags() == []
        assert set(found.black_box) == {"uniform", "gaussian", "square", "transfer"}
        assert 10 < found.pgd < found.fgsm < 190, "a radius at which there is something to see"
        assert (
            count(
                other, pgd(other, x[:200], y[:200], threat, Effort(steps=20, restarts=1), generator=seeded(1)), y[:200]
            )
            < 100
        )


def test_a_quantised_net_has_zero_gradients_and_falls_to_a_black_box() -> None:
    model = Quantised(trained())
    found = looked(model, eps=0.15, black_boxes=by_square(model))
    assert {ZERO, BLACK_BOX} <= set(found.flags())
    x, y = digits()
    assert found.zero == count(model, x[:100], y[:100])
    assert found.fgsm == found.zero, "FGSM does not move"
    assert found.black_box["square"] > 10


def test_softmax_outputs_are_seen_and_logits_are_not_taken_for_them() -> None:
    x, _ = digits()
    assert SOFTMAX in looked(Softmaxed(trained())).flags()
    assert masking.is_softmax(Softmaxed(trained()), x[:10])
    assert not masking.is_softmax(trained(), x[:10])
    positive = Linear(torch.zeros(3, 64), torch.tensor([0.2, 0.3, 0.4]))
    assert not masking.is_softmax(positive, x[:10]), "they add up to 0.9"
    negative = Linear(torch.zeros(3, 64), torch.tensor([-0.5, 0.5, 1.0]))
    assert not masking.is_softmax(negative, x[:10]), "one is negative"


def test_saturated_logits_are_seen_and_the_margin_breaks_what_the_loss_does_not() -> None:
    model = Scaled(trained())
    found = looked(model, effort=Effort(steps=20, restarts=1))
    assert SATURATED in found.flags()
    x, y = digits()
    _, logits = input_gradient(model, x[:100], y[:100])
    top = logits.topk(2).values
    far = (logits.argmax(1) == y[:100]) & (top[:, 0] - top[:, 1] > 17)
    assert found.saturated == int(far.sum()) > 50
    assert looked(trained()).saturated == 0


def test_a_net_that_gives_no_number_is_told_so_and_is_not_called_random() -> None:
    found = looked(NotANumber(trained()))
    assert found.bad == 100
    assert NAN in found.flags()
    assert RANDOM not in found.flags()


def test_a_gradient_that_is_no_number_behind_finite_logits_is_seen() -> None:
    found = looked(NotANumberBehind(trained()))
    assert (found.bad, found.random) == (100, False)
    assert NAN in found.flags()


def test_a_random_net_is_seen_and_its_frozen_twin_is_not_one() -> None:
    x, _ = digits()
    model = Noisy(trained())
    assert RANDOM in looked(model, effort=replace(LITTLE, draws=2)).flags()
    assert masking.is_random(model, x[:10])
    assert not masking.is_random(Frozen(model), x[:10])
    assert RANDOM not in looked(Frozen(model)).flags()


def test_a_net_that_no_radius_breaks_is_above_chance() -> None:
    x, y = digits()
    rows = y == 0
    always = Linear(torch.zeros(10, 64), torch.eye(10)[0])
    found = examine(always, x[rows], y[rows], Threat("linf", 0.1), effort=LITTLE, generator=seeded())
    assert found.large == found.images == int(rows.sum())
    assert ABOVE_CHANCE in found.flags()


def test_steps_too_short_to_leave_the_middle_of_the_ball_are_seen() -> None:
    """The published PGD: ten steps of a thirtieth of the radius, which FGSM beats."""
    weak = looked(trained(), effort=Effort(steps=10, step_size=0.1 / 30), images=200)
    assert {PGD_WEAKER, NOT_CONVERGED} <= set(weak.flags())
    assert weak.pgd > weak.fgsm
    assert weak.doubled < weak.pgd - 2
    strong = looked(trained(), effort=Effort(steps=40, restarts=3), images=200)
    assert not {PGD_WEAKER, NOT_CONVERGED} & set(strong.flags())


def test_an_error_that_only_noise_finds_is_a_black_box_stronger() -> None:
    """A net that is wrong wherever the pixels are rough, with a gradient that leads elsewhere."""

    class Rough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            roughness = (x - x.mean((1, 2, 3), keepdim=True)).abs().flatten(1).mean(1).detach()
            away = x.flatten(1).mean(1)  # what the gradient sees: brightness, which changes nothing
            wrong = (roughness > 0.04).float() * 5
            return torch.stack([1 + 0 * away, wrong + 1e-3 * away], 1)

    x, y = torch.full((50, 1, 8, 8), 0.5), torch.zeros(50, dtype=torch.long)
    found = examine(Rough(), x, y, Threat("linf", 0.1), effort=Effort(steps=50), generator=seeded())
    assert found.black_box["uniform"] == 50
    assert BLACK_BOX in found.flags()


# --- the numbers ----------------------------------------------------------------------------------------------------


def closed(eps: float, images: int = 300) -> tuple[Linear, Tensor, Tensor, int]:
    """A linear model of two classes, its images, and how many of them stand at a radius in linf."""
    model, x = linear(2), grey(images)
    y = model(x).argmax(1)
    weight, logits = model.linear.weight.detach(), model(x).detach()
    fall = (logits[:, 0] - logits[:, 1]).abs() / (weight[0] - weight[1]).abs().sum()
    assert (fall - eps).abs().min() > 1e-6
    return model, x, y, int((fall > eps).sum())


@pytest.mark.parametrize("eps", [0.002, 0.004, 0.01])
def test_all_counts_of_a_linear_model_are_the_closed_form(eps: float) -> None:
    model, x, y, want = closed(eps)
    assert 0 < want < 300
    found = examine(model, x, y, Threat("linf", eps), effort=Effort(steps=20), generator=seeded())
    assert (found.fgsm, found.pgd, found.doubled, found.large) == (want, want, want, 0)
    assert (found.images, found.classes, found.eps) == (300, 2, eps)
    assert (found.zero, found.bad, found.margin, found.saturated) == (0, 0, 0, 0)
    assert (found.softmax, found.random) == (False, False)
    assert dict(found.black_box) == {"uniform": 0, "gaussian": 0}
    assert found.flags() == []
    with torch.no_grad():
        clean = float(nn.functional.cross_entropy(model(x), y))
        worst = float(nn.functional.cross_entropy(model(fgsm(model, x, y, Threat("linf", eps))), y))
    assert len(found.trace) == 20
    assert clean * 0.8 < found.trace[0] < worst
    assert list(found.trace) == sorted(found.trace)
    assert found.trace[-1] == pytest.approx(worst, rel=1e-3)


def test_fgsm_and_large_and_zero_are_counted_as_a_plain_loop_counts() -> None:
    model = trained()
    x, y = digits()
    x, y = x[:100], y[:100]
    found = looked(model)
    assert found.fgsm == sum(count(model, fgsm(model, x[i : i + 1], y[i : i + 1], Threat("linf", 0.1)), y[i : i + 1])
                             for i in range(100))  # fmt: skip
    large = pgd(model, x, y, Threat("linf", 0.5), Effort(steps=5, restarts=1), generator=seeded(3))
    assert abs(found.large - count(model, large, y)) <= 2
    assert found.zero == 0


def test_doubled_has_twice_the_steps_and_twice_the_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def spy(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, effort: Effort, **given: Any) -> Tensor:
        asked.append({"eps": threat.eps, **asdict(effort), **given})
        return pgd(model, x, y, threat, effort, **given)

    monkeypatch.setattr(masking, "pgd", spy)
    looked(trained(), effort=Effort(steps=4, restarts=3, draws=2), images=10)
    wanted = [(call["eps"], call["steps"], call["restarts"], call["draws"]) for call in asked]
    assert sorted(wanted) == [(0.1, 4, 1, 2), (0.1, 4, 3, 2), (0.1, 4, 3, 2), (0.1, 8, 6, 2), (0.5, 4, 3, 2)]
    assert [call["loss"] is masking.margin_loss for call in asked if call["restarts"] == 3].count(True) == 1


@pytest.mark.parametrize("step_size", [None, 0.013])
def test_the_step_size_asked_for_is_the_one_that_is_checked(
    monkeypatch: pytest.MonkeyPatch, step_size: float | None
) -> None:
    """Else the flags would speak of another attack than the curve."""
    asked: list[float | None] = []

    def spy(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, effort: Effort, **given: Any) -> Tensor:
        asked.append(effort.step_size)
        return pgd(model, x, y, threat, effort, **given)

    monkeypatch.setattr(masking, "pgd", spy)
    looked(trained(), effort=Effort(steps=4, step_size=step_size), images=10)
    at_radius = [size for size in asked if size is not None]
    assert bool(at_radius) == (step_size is not None)
    assert set(at_radius) <= {step_size}


def test_a_black_box_counts_only_images_that_fgsm_and_pgd_left() -> None:
    eps = 0.004
    model, x, y, stand = closed(eps)
    threat = Threat("linf", eps)
    other = x[(y == 1).nonzero()[0]].expand_as(x), x[(y == 0).nonzero()[0]].expand_as(x)
    wrong = torch.where((y == 0).view(-1, 1, 1, 1), *other)
    assert count(model, wrong, y) == 0
    standing = still_right(model, fgsm(model, x, y, threat), y).nonzero().flatten()
    fallen = (~still_right(model, fgsm(model, x, y, threat), y)).nonzero().flatten()
    seen = []

    def breaker(rows: Tensor) -> masking.Breaker:
        def make(x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
            seen.append(threat.eps)
            return x.index_copy(0, rows, wrong[rows])

        return make

    boxes = {
        "all": breaker(torch.arange(300)),
        "none": breaker(torch.arange(0)),
        "three": breaker(standing[:3]),
        "three and many that fell": breaker(torch.cat([standing[:3], fallen])),
        "only such that fell": breaker(fallen),
    }
    effort = Effort(steps=20)
    found = examine(model, x, y, threat, effort=effort, black_boxes=boxes, generator=seeded())
    counts = {name: found.black_box[name] for name in boxes}
    assert counts == {
        "all": stand,
        "none": 0,
        "three": 3,
        "three and many that fell": 3,
        "only such that fell": 0,
    }
    assert seen == [eps] * 5


def test_a_black_box_does_not_count_what_only_one_of_fgsm_and_pgd_broke() -> None:
    def all_broken(x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        return broken

    # Steps that do not leave the middle of the ball: FGSM breaks what PGD leaves.
    eps = 0.004
    model, x, y, stand = closed(eps)
    broken = fgsm(model, x, y, Threat("linf", 0.4))
    effort = Effort(steps=1, step_size=1e-6)
    given: dict[str, Any] = {"black_boxes": {"all": all_broken}, "generator": seeded()}
    found = examine(model, x, y, Threat("linf", eps), effort=effort, **given)
    assert found.fgsm == stand < found.pgd
    assert found.black_box["all"] == stand
    # An error inside the ball: FGSM steps over it.
    step = 0.05 * torch.rand(1, 1, 8, 8, generator=seeded()).sub(0.5).sign()
    x, y = grey(12, pixels=64), torch.zeros(12, dtype=torch.long)
    broken = x + step
    found = examine(Planted(broken, 0.15), x, y, Threat("linf", 0.1), effort=Effort(), **given)
    assert (found.fgsm, found.pgd, found.black_box["all"]) == (12, 0, 0)


def test_margin_loss_is_the_best_other_logit_minus_the_true_one() -> None:
    logits, y = torch.randn(30, 5, generator=seeded()), torch.arange(30) % 5
    want = sum(
        max(float(row[j]) for j in range(5) if j != label) - float(row[label])
        for row, label in zip(logits, y.tolist(), strict=True)
    )
    assert float(masking.margin_loss(logits, y)) == pytest.approx(want, rel=1e-5)


# --- thresholds -----------------------------------------------------------------------------------------------------

FEW = {"images": 200, "fgsm": 120, "pgd": 100, "doubled": 100}


@pytest.mark.parametrize(
    ("flag", "quiet", "loud"),
    [
        (ABOVE_CHANCE, {"large": 100}, {"large": 101}),
        (PGD_WEAKER, {"pgd": 502, "doubled": 502}, {"pgd": 503, "doubled": 503}),
        (NOT_CONVERGED, {"doubled": 391}, {"doubled": 390}),  # less than a point of 1,000 images: 9
        (BLACK_BOX, {"black_box": {"a": 2, "b": 0}}, {"black_box": {"a": 0, "b": 3}}),
        (ZERO, {"zero": 10}, {"zero": 11}),
        (NAN, {"bad": 0}, {"bad": 1}),
        (SOFTMAX, {"softmax": False}, {"softmax": True}),
        (SATURATED, {"saturated": 10}, {"saturated": 11}),
        (NOT_CONVERGED, {"margin": 9}, {"margin": 10}),  # another loss finds more
        (NOT_CONVERGED, FEW | {"doubled": 96}, FEW | {"doubled": 95}),  # a point of 200 images is noise
        (RANDOM, {"random": False}, {"random": True}),
    ],
)
def test_a_flag_is_raised_beyond_its_threshold_and_not_at_it(
    flag: str, quiet: dict[str, Any], loud: dict[str, Any]
) -> None:
    assert Findings(**CLEAN | quiet).flags() == []
    assert Findings(**CLEAN | loud).flags() == [flag]


def test_every_flag_has_words_of_its_own_and_all_can_be_raised_at_once() -> None:
    worst = {
        "zero": 1000,
        "bad": 1000,
        "softmax": True,
        "saturated": 1000,
        "random": False,
        "large": 1000,
        "fgsm": 0,
        "pgd": 1000,
        "doubled": 0,
        "margin": 1000,
        "black_box": {"square": 1000},
    }
    flags = Findings(**CLEAN | worst).flags()
    of_draws = {PGD_WEAKER, NOT_CONVERGED, BLACK_BOX}
    random = Findings(**CLEAN | worst | {"random": True}).flags()
    assert set(random) == {*flags, RANDOM} - of_draws, "of a random net these compare draws of their own"
    flags.append(RANDOM)
    assert len(flags) == len(set(flags)) == 9
    assert (*flags, NOT_MONOTONE) == _ORDER, "not monotone is told by the curve"


# --- manners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda net: net, Quantised, Softmaxed], ids=["plain", "quantised", "softmax"])
def test_the_checks_leave_no_trace(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(trained())
    with watched(model):
        looked(model, images=10, black_boxes=by_square(model, 10))


def test_the_checks_depend_on_their_generator_only() -> None:
    found = looked(trained(), images=40)
    torch.manual_seed(5)
    assert looked(trained(), images=40) == found
    assert looked(trained(), images=40, generator=seeded(2)).trace != found.trace


def test_a_planted_error_is_found_so_that_the_net_raises_nothing_but_what_it_shows() -> None:
    x, y = right_ones(trained(), 20)
    x = 0.3 + 0.4 * x
    step = 0.09 * torch.rand(x.shape, generator=seeded()).sub(0.5).sign()
    model = Planted(x + step, 0.3 * float(step[0].norm())).eval()
    found = examine(model, x, torch.zeros_like(y), Threat("linf", 0.1), effort=Effort(), generator=seeded())
    assert (found.fgsm, found.pgd, found.doubled) == (0, 0, 0)
    assert not {PGD_WEAKER, BLACK_BOX, ZERO} & set(found.flags())
