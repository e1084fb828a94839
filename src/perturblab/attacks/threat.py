"""Threat models: the norm, how far an attacker may go, and within which bounds."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perturblab.records.choices import Norm, check_choice

TOLERANCE = 1e-6  # of a float32 difference of two numbers in [0, 1]; never compare with eps alone


@dataclass(frozen=True)
class Threat:
    """A threat model: every perturbation that the attacker may choose.

    Args:
        norm: "linf" or "l2", over all values of one image.
        eps: radius of the ball in pixel units, where images lie in [0, 1]; infinity for no limit but the bounds.
        bounds: lowest and highest pixel value.

    Raises:
        ValueError: no such norm, a negative radius, or bounds that hold nothing.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, Norm)
        if not self.eps >= 0:
            raise ValueError(f"eps is {self.eps}; choose a radius of at least 0, in pixels of [0, 1], such as 8/255")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds are {self.bounds}; expected the lowest pixel value below the highest")

    def without_bounds(self) -> "Threat":
        """Return the same ball with pixels of any value."""
        return replace(self, bounds=(-math.inf, math.inf))


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Shape one value an image, (N,), so that it broadcasts over images.

    Args:
        values: (N,).
        like: (N, C, H, W), or any other number of dimensions.

    Returns:
        (N, 1, 1, 1).
    """
    return values.view(-1, *[1] * (like.dim() - 1))


def l2_norm(delta: Tensor) -> Tensor:
    """Compute the length of every image's perturbation.

    Args:
        delta: (N, C, H, W).

    Returns:
        (N,).
    """
    length: Tensor = delta.flatten(1).norm(dim=1)
    return length


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Bring images back into the ball around the originals, then into the bounds.

    Both sets are convex and the originals lie in both, so clipping to the bounds does not leave the ball.

    Args:
        x_adv: (N, C, H, W).
        x: the originals, (N, C, H, W), within the bounds.
        threat: norm, radius, bounds.

    Returns:
        (N, C, H, W).
    """
    delta = x_adv - x
    if threat.norm == "linf":
        delta = delta.clamp(-threat.eps, threat.eps)
    elif math.isfinite(threat.eps):
        delta = delta * per_image((threat.eps / l2_norm(delta).clamp_min(1e-12)).clamp_max(1.0), x)
    return (x + delta).clamp(*threat.bounds)


def check_images(x: Tensor, threat: Threat) -> None:
    """Refuse images that are not in the bounds: an attack on normalised inputs measures another threat.

    Args:
        x: (N, C, H, W).
        threat: the bounds.

    Raises:
        ValueError: some pixel is outside the bounds or not finite.
    """
    low, high = threat.bounds
    if len(x) and not (x.amin() >= low - TOLERANCE and x.amax() <= high + TOLERANCE):  # also when not finite
        raise ValueError(
            f"images lie in [{float(x.amin()):g}, {float(x.amax()):g}], expected [{low:g}, {high:g}]; attack in pixel "
            "units and put the normalisation inside the model"
        )


def check_radius(threat: Threat) -> None:
    """Refuse an infinite radius where a step is measured by it.

    Args:
        threat: the radius.

    Raises:
        ValueError: it is infinite.
    """
    if not math.isfinite(threat.eps):
        raise ValueError(
            "eps is infinite; choose a radius in pixels of [0, 1], such as 8/255; only DeepFool needs none"
        )


def violations(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Say which images break the rules of the threat.

    Args:
        x_adv: (N, C, H, W).
        x: the originals, (N, C, H, W).
        threat: norm, radius, bounds.

    Returns:
        bool (N,): outside the ball or the bounds by more than 1e-6 (l2: of the radius plus 1), or not finite.
    """
    delta = (x_adv - x).flatten(1)
    size = delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)
    slack = TOLERANCE if threat.norm == "linf" else TOLERANCE * (1 + threat.eps)
    flat = x_adv.flatten(1)
    inside = (flat.amin(1) >= threat.bounds[0] - TOLERANCE) & (flat.amax(1) <= threat.bounds[1] + TOLERANCE)
    near = (size <= threat.eps + slack) if math.isfinite(threat.eps) else torch.isfinite(size)
    return ~(inside & near)
