"""DeepFool: the nearest point behind a linearised decision boundary, again and again."""

import torch
from torch import Tensor, nn

from perturblab.attacks.gradient import still_right
from perturblab.attacks.pixels import traceless
from perturblab.attacks.threat import Threat, check_images, l2_norm, per_image, project

_BEYOND = 1e-4  # added to each distance, as in the authors' code, so that a step ends behind the boundary


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    iterations: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move every image that is classified right across the nearest of the linearised l2 decision boundaries.

    Args:
        model: from images in [0, 1] to logits (N, classes).
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels; an image classified wrong stays as it is.
        threat: "l2"; a finite radius limits how far an image may go, infinity does not. Every step is brought into the
            bounds. Of images full of black and white pixels most of each step is lost so, and at a low cap what is
            measured is the clip; the authors' algorithm is that of `Threat.without_bounds`.
        iterations: steps at most; an image stops at its first wrong answer.
        generator: not used; every attack takes one.

    Returns:
        (N, C, H, W), in the ball and the bounds.

    Raises:
        ValueError: images outside the bounds, another norm than l2, no iteration.

    Reference:
        Moosavi-Dezfooli, Fawzi, Frossard, DeepFool, CVPR 2016, algorithm 2.
    """
    return deepfool_path(model, x, y, threat, iterations=iterations)[-1]


def deepfool_path(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    iterations: int,
    overshoot: float = 0.02,
) -> list[Tensor]:
    """Return the images of `deepfool` at every cap from 1 to ``iterations``, for the price of the last.

    Args:
        model: from images in [0, 1] to logits (N, classes).
        x: (N, C, H, W), within the bounds.
        y: int64 (N,), the true labels.
        threat: as for `deepfool`.
        iterations: the highest cap.
        overshoot: share by which the whole way is lengthened.

    Returns:
        One (N, C, H, W) a cap.

    Raises:
        ValueError: as `deepfool`.
    """
    check_images(x, threat)
    if threat.norm != "l2" or iterations < 1:
        raise ValueError(f"norm is {threat.norm!r} and iterations {iterations}; DeepFool needs l2 and at least 1")
    found, way, path = x.clone(), torch.zeros_like(x), []
    with traceless(model):
        for _ in range(iterations):
            left = still_right(model, found, y).nonzero().flatten()
            if len(left) and threat.eps:
                way[left] += _step(model, found[left], y[left])
                found[left] = project(x[left] + (1 + overshoot) * way[left], x[left], threat)
            path.append(found.clone())
    return path


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Find the shortest way to a linearised boundary between the true class and another, (N, C, H, W)."""
    gradients, margins = _linearised(model, x, y)
    lengths = gradients.flatten(2).norm(dim=2).clamp_min(1e-8)  # (classes, N)
    distances = margins.abs() / lengths
    distances.scatter_(0, y[None], torch.inf)  # the true class is no boundary to itself
    nearest, other = distances.min(0)
    chosen = gradients[other, torch.arange(len(x), device=x.device)]
    return per_image((nearest + _BEYOND) / l2_norm(chosen).clamp_min(1e-8), x) * chosen


def _linearised(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (classes, N, C, H, W) and values (classes, N) of every logit minus that of the true class."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf).float()
        margins = logits - logits.gather(1, y[:, None])  # (N, classes)
        classes = margins.shape[1]
        rows = [torch.autograd.grad(margins[:, c].sum(), leaf, retain_graph=c + 1 < classes)[0] for c in range(classes)]
    # A gradient that is not a number leads nowhere.
    return torch.stack(rows).nan_to_num(0.0, 0.0, 0.0), margins.detach().T.nan_to_num().contiguous()
