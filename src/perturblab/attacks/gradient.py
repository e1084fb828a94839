"""Attacks that follow the gradient of the loss: FGSM, FGM and PGD."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.attacks.pixels import PixelModel, traceless
from perturblab.attacks.threat import Threat, check_images, check_radius, l2_norm, per_image, project
from perturblab.records.attack_names import Effort

Loss = Callable[[Tensor, Tensor], Tensor]
ONE_RESTART = Effort(restarts=1)


def sum_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Cross entropy summed over images, so that no image's gradient depends on how many there are.

    Args:
        logits: (N, classes).
        y: int64 (N,).

    Returns:
        A single value.
    """
    return cross_entropy(logits.float(), y, reduction="sum")


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = sum_loss, draws: int = 1
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the loss with respect to the images; the parameters' gradients are not touched.

    Args:
        model: from images in [0, 1] to logits (N, classes).
        x: (N, C, H, W).
        y: int64 (N,), the true labels.
        loss: from logits and labels to a single value, a sum over images.
        draws: forward passes that are averaged: expectation over transformation, for a net whose forward is random.

    Returns:
        The gradient (N, C, H, W), and the logits (N, classes) of the last pass.

    Reference:
        Athalye, Carlini, Wagner, Obfuscated gradients give a false sense of security, ICML 2018 (for ``draws``).
    """
    total: Tensor | None = None
    for _ in range(draws):
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(leaf)
            (gradient,) = torch.autograd.grad(loss(logits, y), leaf)
        total = gradient if total is None else total + gradient
    if total is None:
        raise ValueError(f"draws is {draws}; choose at least 1")
    return total / draws if draws > 1 else total, logits.detach()


def direction(gradient: Tensor, norm: str) -> Tensor:
    """Compute the step of length 1 that raises the loss fastest.

    Args:
        gradient: (N, C, H, W).
        norm: "linf" or "l2".

    Returns:
        (N, C, H, W); 0 where the gradient is 0 or not a number, so that an attack stays in its ball.
    """
    gradient = gradient.nan_to_num(nan=0.0)
    if norm == "linf":
        return gradient.sign()
    return gradient / per_image(l2_norm(gradient).clamp_min(1e-12), gradient)


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Take one step of the whole radius along the gradient: FGSM (linf), or the fast gradient method (l2).

    Args:
        model: from images in [0, 1] to logits.
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels.
        threat: norm, radius and bounds; `Threat.without_bounds` is the paper's equation 4.
        draws: forward passes a gradient, for a net whose forward is random.
        generator: not used; every attack takes one.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: images outside the bounds.

    Reference:
        Goodfellow, Shlens, Szegedy, Explaining and harnessing adversarial examples, ICLR 2015.
    """
    check_images(x, threat)
    check_radius(threat)
    if threat.eps == 0:
        return x.clone()
    with traceless(model):
        gradient, _ = input_gradient(model, x, y, draws=draws)
    return (x + threat.eps * direction(gradient, threat.norm)).clamp(*threat.bounds)


def fgsm_normalised(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: torch.Generator | None = None
) -> Tensor:
    """Repeat a published mistake: FGSM's step added after the normalisation, and not clipped.

    A radius of 8/255 there is one of about 2/255 in pixels (the deviation of a channel is about a quarter), so that
    accuracies look far better than they are.

    Args:
        model: a `PixelModel`, or one within, whose deviations say how large the step is in pixels.
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels.
        threat: "linf", with a radius in normalised units.
        generator: not used; every attack takes one.

    Returns:
        (N, C, H, W) in pixels, possibly outside the bounds.

    Raises:
        ValueError: a model without a normalisation, or another norm than linf.

    Reference:
        github.com/Hrushikesh-github/Batchout-Robustness-method, attack_model.py: the mistake.
    """
    # It may be wrapped, in `Frozen` for one.
    normalised = next((module for module in model.modules() if isinstance(module, PixelModel)), None)
    if normalised is None or threat.norm != "linf":
        raise ValueError(
            f"norm is {threat.norm!r} and the model a {type(model).__name__}; expected linf and PixelModel"
        )
    check_images(x, threat)
    check_radius(threat)
    with traceless(model):
        gradient, _ = input_gradient(model, x, y)
    return x + threat.eps * normalised.std * direction(gradient, "linf")


def random_start(x: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
    """Draw an image of the ball uniformly, and bring it into the bounds.

    Args:
        x: (N, C, H, W).
        threat: norm and radius.
        generator: where from, on the CPU.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: no generator.
    """
    if generator is None:
        raise ValueError("generator is None, and the attack starts at random; pass a torch.Generator")
    if threat.norm == "linf":
        noise = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
        return project(x + threat.eps * noise, x, threat)
    noise = torch.randn(x.shape, generator=generator).to(x)
    radius = torch.rand(len(x), generator=generator).to(x) ** (1 / x[:1].numel())
    return project(x + threat.eps * direction(noise, "l2") * per_image(radius, x), x, threat)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    effort: Effort = ONE_RESTART,
    *,
    start_at_random: bool = True,
    loss: Loss = sum_loss,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ascend the loss by projected gradients; of several restarts, keep for every image the one that fools the model.

    Args:
        model: from images in [0, 1] to logits.
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels.
        threat: norm and radius.
        effort: ``steps`` of each restart, of length ``step_size`` in pixels: 2.5 eps / steps by default, which can
            cross the ball. ``restarts``: one by default; from the second on, only images that are still classified
            right are attacked. ``draws``: forward passes a gradient, for a net whose forward is random. With several,
            the images attacked again are those that are right in any of as many fresh passes, and of all restarts the
            one that is right in the fewest is kept: a single pass would drop images that it fools by chance.
            ``early_stop``: leave an image alone as soon as it fools the model, which it may do unchanged. What one step
            found no later step loses, and most of the work is saved. But the loss is raised no further, as a transfer
            and adversarial training need it, and a model whose forward is random would be judged by its worst draw.
        start_at_random: begin at a random image of the ball; else at the image itself.
        loss: what is raised, a sum over images.
        generator: decides the starts.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        ValueError: images outside the bounds, no step, no restart, or no generator for a random start.

    Reference:
        Madry et al., Towards deep learning models resistant to adversarial attacks, ICLR 2018.
    """
    check_images(x, threat)
    check_radius(threat)
    steps, restarts, draws = effort.steps, effort.restarts, effort.draws
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps is {steps} and restarts {restarts}; choose at least 1 of each")
    if threat.eps == 0:
        return x.clone()
    size = 2.5 * threat.eps / steps if effort.step_size is None else effort.step_size
    result, left = x.clone(), torch.arange(len(x), device=x.device)
    least = torch.ones_like(left, dtype=torch.float32)  # share of passes in which the restart kept leaves it right
    with traceless(model):
        if effort.early_stop:
            left = left[still_right(model, x, y)]
        for restart in range(restarts):
            if not len(left):
                break
            near, target = x[left], y[left]
            found = random_start(near, threat, generator) if start_at_random else near.clone()
            climb = _climber(near, threat, size)
            for _ in range(steps):
                gradient, logits = input_gradient(model, found, target, loss=loss, draws=draws)
                if effort.early_stop and not bool((held := logits.argmax(1) == target).all()):
                    result[left[~held]] = found[~held]
                    left, target, found, gradient = left[held], target[held], found[held], gradient[held]
                    if not len(left):
                        break
                    climb = _climber(x[left], threat, size)
                found = climb(found, gradient)
            if restart + 1 == restarts and (restarts == 1 or draws == 1):
                result[left] = found  # the only one, or no worse than those before, which fooled nobody
                break
            share = torch.stack([still_right(model, found, target) for _ in range(draws)]).float().mean(0)
            kept = left[better := share <= least[left]]
            result[kept], least[kept] = found[better], share[better]
            left = left[least[left] > 0]
    return result


def _climber(x: Tensor, threat: Threat, size: float) -> Callable[[Tensor, Tensor], Tensor]:
    """One step and the way back into the ball; in linf both in place, with limits that are computed once.

    The sign of NaN is 0 there. It is not taken in place: a gradient may be a view of one value.
    """
    if threat.norm == "l2":
        return lambda found, gradient: project(found + size * direction(gradient, "l2"), x, threat)
    low, high = (x - threat.eps).clamp_min(threat.bounds[0]), (x + threat.eps).clamp_max(threat.bounds[1])
    return lambda found, gradient: found.add_(gradient.sign(), alpha=size).clamp_(low, high)


@torch.no_grad()
def still_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Say which images a model classifies right.

    Args:
        model: from images to logits.
        x: (N, C, H, W).
        y: int64 (N,).

    Returns:
        bool (N,).
    """
    return (model(x).argmax(1) == y) if len(x) else torch.zeros(0, dtype=torch.bool, device=x.device)
