"""Perturbations that look at no gradient: uniform and Gaussian noise, and one perturbation for all images."""

import torch
from torch import Tensor, nn

from perturblab.attacks.gradient import direction, input_gradient, random_start
from perturblab.attacks.pixels import traceless
from perturblab.attacks.threat import Threat, check_images, check_radius, l2_norm, per_image, project


def uniform_noise(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw an image of the ball uniformly.

    Args:
        model: not looked at; every attack takes one.
        x: (N, C, H, W), within the bounds.
        y: not looked at.
        threat: norm and radius.
        generator: where the noise comes from.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        ValueError: images outside the bounds, or no generator.
    """
    check_images(x, threat)
    check_radius(threat)
    return random_start(x, threat, generator)


def gaussian_noise(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, generator: torch.Generator | None = None
) -> Tensor:
    """Add Gaussian noise: of the whole radius in l2; in linf with the radius as deviation, clipped to it.

    Args:
        model: not looked at; every attack takes one.
        x: (N, C, H, W), within the bounds.
        y: not looked at.
        threat: norm and radius.
        generator: where the noise comes from.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        ValueError: images outside the bounds, or no generator.
    """
    check_images(x, threat)
    check_radius(threat)
    if generator is None:
        raise ValueError("generator is None, and the noise is random; pass a torch.Generator")
    noise = torch.randn(x.shape, generator=generator).to(x)
    if threat.norm == "l2":
        noise = noise / per_image(l2_norm(noise).clamp_min(1e-12), noise)
    return project(x + threat.eps * noise, x, threat)


def universal(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Add one perturbation, made on these images, to all of them.

    Args:
        model: from images in [0, 1] to logits.
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels.
        threat: norm and radius.
        batch_size: images a step.
        generator: decides the order.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        ValueError: images outside the bounds, or no generator.

    Reference:
        Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017.
    """
    delta = universal_perturbation(model, x, y, threat, batch_size=batch_size, generator=generator)
    return project(x + delta, x, threat)


def universal_perturbation(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    passes: int = 10,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find one perturbation for all images by projected ascent on the loss, batch by batch.

    Args:
        model: from images in [0, 1] to logits.
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels.
        threat: norm and radius.
        passes: over the images.
        batch_size: images a step.
        generator: decides the order.

    Returns:
        (1, C, H, W), in the ball; add it to any images and bring them into the bounds (`project`).

    Raises:
        ValueError: images outside the bounds, no pass, or no generator.

    Reference:
        Moosavi-Dezfooli et al., Universal adversarial perturbations, CVPR 2017; the ascent on the loss instead of its
        loop over images: Shafahi et al., Universal adversarial training, AAAI 2020.
    """
    check_images(x, threat)
    check_radius(threat)
    if generator is None or passes < 1:
        raise ValueError(f"generator is {generator} and passes {passes}; pass a torch.Generator and at least 1 pass")
    delta, origin = torch.zeros_like(x[:1]), torch.zeros_like(x[:1])
    ball = threat.without_bounds()
    size = threat.eps / 5
    with traceless(model):
        for _ in range(passes if threat.eps else 0):
            for rows in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
                moved = project(x[rows] + delta, x[rows], threat)
                gradient, _ = input_gradient(model, moved, y[rows])
                way = direction(gradient.sum(0, keepdim=True), threat.norm)
                delta = project(delta + size * way, origin, ball)
    return delta
