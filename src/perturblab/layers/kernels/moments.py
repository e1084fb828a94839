"""Batch statistics of perturbed features, without the perturbed features."""

from torch import Tensor


def perturbed_moments(x: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance of x + mask over images and places, as a batch norm takes them.

    With xbar the mean over the images: var(x + t) = var(x) + var(t) + 2 cov(xbar, t), so that one product of xbar
    and the masks replaces C * M maps.

    Args:
        x: features, (N, C, H, W).
        masks: level x mask, (C or 1, M, H or 1, W or 1).

    Returns:
        Mean and biased variance, both (C, M).
    """
    channels, (height, width) = x.shape[1], x.shape[2:]
    flat = masks.expand(channels, -1, height, width).flatten(2).to(x.dtype)  # (C, M, P)
    mean_x, mean_t = x.mean((0, 2, 3)).unsqueeze(1), flat.mean(2)
    t = flat - mean_t.unsqueeze(2)
    centred = (x.mean(0).flatten(1) - mean_x).unsqueeze(2)  # (C, P, 1)
    covariance = (t @ centred).squeeze(2) / (height * width)
    spread = (x - mean_x.view(1, -1, 1, 1)).square().mean((0, 2, 3)).unsqueeze(1)
    return mean_x + mean_t, (spread + t.square().mean(2) + 2 * covariance).clamp_min(0)
