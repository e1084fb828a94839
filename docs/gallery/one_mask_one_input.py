"""One mask fits one input.

Section 3.3 of the paper argues that some mask makes a perturbation layer equal to a convolution. For one image this
is true: the masks that reproduce a 3x3 convolution on it are solved for exactly below. A reader objected that another
image needs another mask. This page measures how different: it applies the same masks to other images, and it looks
for the best masks for k images at once.

The convolution has 8 filters with PyTorch's random initial weights. The layer has 16 masks per channel and a random
1x1 convolution, so an exact solution exists: at every pixel, maps z >= 0 with V z = target, and masks z - x. Gradient
descent finds the best masks for k images, from two starts; the better result is kept for each pixel. For the third
curve, the 1x1 convolution is learned with the masks, as in a net. The error is the missed share of the target's
variance: 0 is exact, and 1 is as bad as a constant.

The best masks for many images come no closer to the convolution than a 1x1 convolution without masks: a mask that
helps one image hurts another. Random masks that stay fixed, as published, make the result worse.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from perturblab.data import load
from perturblab.data.batches import normalise
from perturblab.data.known import preparation
from perturblab.layers import draw_masks, perturb, perturb_conv2d
from perturblab.records.markdown import markdown_table
from perturblab.seeding import stream

FULL = {"counts": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), "others": 10_000, "steps": 300}
SMALL = {"counts": (1, 2, 4), "others": 50, "steps": 20}
FILTERS, MASKS, EDGE = 8, 16, 16  # the pixels are separate problems: the middle 16x16 are enough


def draw(dataroot: str, counts: tuple[int, ...], others: int, steps: int) -> Figure:
    """Solve for one image and for many; print and draw the error on them and on the test images."""
    data = load("CIFAR10", dataroot=dataroot)
    prep = preparation(data)
    conv = torch.empty(FILTERS, 3, 3, 3).uniform_(-(27**-0.5), 27**-0.5, generator=stream(1, "filters"))
    x, t = _pairs(normalise(data.train.images[: max(counts)], prep), conv)
    unseen = _pairs(normalise(data.test.images[:others], prep), conv)
    weight = torch.randn(FILTERS, 3 * MASKS, 1, 1, generator=stream(1, "1x1")) / (3 * MASKS) ** 0.5
    exact = solve(x[0], t[0], weight)
    rows = [("solved for one image", miss(x[:1], t[:1], exact, weight), miss(*unseen, exact, weight))]
    curves, masks = [], exact
    for k in counts:
        masks = _fit_from_two_starts(x[:k], t[:k], weight, masks, steps)
        refitted, learned = fit(x[:k], t[:k], masks, weight, steps, also_weight=True)
        both = [miss(*images, masks, weight) for images in ((x[:k], t[:k]), unseen)]
        curves.append([*both, miss(*unseen, refitted, learned)])
        rows.append((f"best masks for {k:,}", *both))
        rows.append((f"... and 1x1 convolution, for {k:,}", miss(x[:k], t[:k], refitted, learned), curves[-1][2]))
    fixed = best_weight(x, t, _draw_masks())
    rows.append(
        (
            f"drawn masks, best 1x1 convolution, for {len(x):,}",
            miss(x, t, _draw_masks(), fixed),
            miss(*unseen, _draw_masks(), fixed),
        )
    )
    floor = missed_without_masks(x, t, *unseen)
    cells = [(text, f"{on_own:.4f}", f"{on_others:.4f}") for text, on_own, on_others in rows]
    cells.append((f"no masks, no activation: the best 1x1 convolution, for {len(x):,}", "", f"{floor:.4f}"))
    print(markdown_table(["", "missed on its own images", "missed on the others"], cells))
    print(
        f"\nThe others are {len(unseen[0]):,} test images. On its own image the exact solution is off by at most",
        end=" ",
    )
    print(f"{_worst(x[:1], t[:1], exact, weight):.0e}; the target reaches {float(t[0].abs().max()):.1f}.")
    return _figure(counts, np.array(curves), rows[0][2], floor)


def solve(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Solve for the masks with which a layer gives a target on one image, exactly where the cone of the weights allows.

    Args:
        x: image, (C, H, W).
        t: target, (O, H, W).
        weight: of the 1x1 convolution over all channels and masks, (O, C * M, 1, 1).

    Returns:
        Masks (C, M, H, W): of all solutions of V relu(x + N) = t those with relu(x + N) = x + N.
    """
    v = weight.flatten(1).double().numpy()
    maps = np.stack([nnls(v, pixel)[0] for pixel in t.flatten(1).T.double().numpy()], -1)  # (C * M, H * W), >= 0
    return (torch.from_numpy(maps).reshape(len(x), -1, *x.shape[1:]) - x[:, None]).float()


def fit(
    x: Tensor, t: Tensor, masks: Tensor, weight: Tensor, steps: int, *, also_weight: bool = False
) -> tuple[Tensor, Tensor]:
    """Fit the masks (C, M, H, W) with the smallest mean squared error on all images (N, C, H, W) at once, by Adam.

    With ``also_weight`` every tenth of the steps starts with the best 1x1 convolution for the current masks.
    """
    masks, weight = masks.clone().requires_grad_(), weight.clone()
    optimizer = torch.optim.Adam([masks], lr=0.05)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if also_weight and step % -(-steps // 10) == 0:
            weight = best_weight(x, t, masks.detach())
        optimizer.zero_grad()
        F.mse_loss(_layer(x, masks, weight), t).backward()
        optimizer.step()
        anneal.step()
    masks = masks.detach()
    return masks, best_weight(x, t, masks) if also_weight else weight


def best_weight(x: Tensor, t: Tensor, masks: Tensor) -> Tensor:
    """Fit the 1x1 convolution (O, C * M, 1, 1) for given masks by least squares, on images (N, C, H, W)."""
    maps, target = (part.movedim(1, 0).flatten(1).double() for part in (perturb(x, masks, act=torch.nn.ReLU()), t))
    gram = maps @ maps.T
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram))  # a map may be zero everywhere
    return torch.linalg.solve(gram, maps @ target.T).T.float()[..., None, None]


def miss(x: Tensor, t: Tensor, masks: Tensor, weight: Tensor) -> float:
    """Measure the share of the variance of a target (N, O, H, W), about each filter's mean, that the layer misses."""
    return _share(_layer(x, masks, weight), t)


def missed_without_masks(x: Tensor, t: Tensor, others: Tensor, target: Tensor) -> float:
    """Measure what the best affine map of the centre pixel misses: a 1x1 convolution without masks; (N, C, H, W)."""

    def columns(images: Tensor) -> Tensor:
        flat = images.movedim(1, -1).reshape(-1, 3)
        return torch.cat([flat, torch.ones(len(flat), 1)], 1)

    best = torch.linalg.lstsq(columns(x), t.movedim(1, -1).reshape(-1, FILTERS)).solution
    return _share((columns(others) @ best).reshape(len(others), EDGE, EDGE, FILTERS).movedim(-1, 1), target)


def _pairs(x: Tensor, conv: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the middle out of images (N, C, 32, 32) and out of their convolution."""
    low, high = (32 - EDGE) // 2, (32 + EDGE) // 2
    return x[..., low:high, low:high].contiguous(), F.conv2d(x, conv, padding=1)[..., low:high, low:high].contiguous()


def _layer(x: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    return perturb_conv2d(x, masks, weight, act=torch.nn.ReLU())


def _draw_masks() -> Tensor:
    return draw_masks((3, MASKS, EDGE, EDGE), "uniform", stream(1, "masks"))


def _fit_from_two_starts(x: Tensor, t: Tensor, weight: Tensor, before: Tensor, steps: int) -> Tensor:
    """Fit from two starts, the masks for fewer images and drawn ones; keep the better result at every pixel."""
    ends = [fit(x, t, start, weight, steps)[0] for start in (before, _draw_masks())]
    errors = [(_layer(x, end, weight) - t).square().sum((0, 1)) for end in ends]
    return torch.where(errors[0] <= errors[1], *ends)


def _worst(x: Tensor, t: Tensor, masks: Tensor, weight: Tensor) -> float:
    return float((_layer(x, masks, weight) - t).abs().max())


def _share(y: Tensor, t: Tensor) -> float:
    centred = t - t.mean((0, 2, 3), keepdim=True)
    return float((y - t).double().square().sum() / centred.double().square().sum())


def _figure(counts: tuple[int, ...], curves: np.ndarray, alone: float, floor: float) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(counts, curves[:, 0], "o-", color="#0072b2", label="best masks, on their own images")
    axes.plot(counts, curves[:, 1], "s--", color="#d55e00", label="best masks, on the others")
    axes.plot(counts, curves[:, 2], "D-.", color="#009e73", label="masks and 1x1 convolution, on the others")
    axes.axhline(floor, color="#000000", linewidth=1)
    axes.text(counts[0], floor, "best 1x1 convolution without masks", va="top", fontsize=9)
    axes.axhline(1, color="#808080", linewidth=1, linestyle=":")
    axes.text(counts[-1], 1, "a constant", va="bottom", ha="right", fontsize=9)
    axes.set(xscale="log", xlabel="images that the masks were made for", ylabel="share missed")
    axes.set_yscale("symlog", linthresh=1)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, max(2, 1.2 * alone, 1.2 * float(curves[:, 1:].max())))
    axes.legend(frameon=False, fontsize=9)
    return figure
