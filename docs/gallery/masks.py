"""The effect of a mask on an image.

A perturbation layer adds a fixed mask to every channel and applies an activation. Neither moves anything: an output
pixel depends on its own input pixel and its own mask value. The mask changes *where the ReLU cuts*: at -N instead of
0, at another height for every pixel. The picture shows one normalised test image with masks drawn from U[-1, 1) times
the level.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from perturblab.data import load
from perturblab.data.batches import normalise
from perturblab.data.known import preparation
from perturblab.layers import draw_masks, perturb
from perturblab.records.markdown import markdown_table

FULL = {"levels": (0.0, 0.1, 0.5, 1.0, 2.0), "images": 10_000}
SMALL = {"levels": (0.0, 1.0), "images": 50}
IMAGE = 3  # of the test set


def draw(dataroot: str, levels: tuple[float, ...], images: int) -> Figure:
    """Show the mask, the sum and its ReLU at every level; print how many values the mask decides."""
    data = load("CIFAR10", dataroot=dataroot)
    x = normalise(data.test.images[:images], preparation(data))
    masks = draw_masks((3, 1, 32, 32), "uniform", torch.Generator().manual_seed(1))
    figure, grid = plt.subplots(3, len(levels), figsize=(1.9 * len(levels), 5.6), squeeze=False)
    rows = []
    for column, level in zip(grid.T, levels, strict=True):
        kept = perturb(x, level * masks, act=torch.nn.ReLU())
        for axes, shown in zip(column, (level * masks[:, 0], x[IMAGE] + level * masks[:, 0], kept[IMAGE]), strict=True):
            axes.imshow((0.5 + shown / 4).clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
        column[0].set_title(f"level {level:g}")
        decided = ((kept > 0) != (x > 0)).double().mean()
        cut = f"{100 * (kept == 0).double().mean():.1f}"
        rows.append([f"{level:g}", cut, f"{100 * decided:.1f}", f"{_undone(kept, x):.3f}"])
    for axes, text in zip(grid[:, 0], ("mask", "image + mask", "ReLU of it"), strict=True):
        axes.set_ylabel(text)
    header = ["level", "values that the ReLU cuts, %", "decided by the mask, %", "1x1 convolution that undoes it, R²"]
    print(markdown_table(header, rows, "rrrr"))
    print(
        f"\n{len(x):,} test images. *Decided by the mask*: the ReLU passes a value that it would cut without the mask,"
    )
    print("or the other way round. The last column is the share of the image's variance that an affine function of the")
    print("layer's three channels at the same pixel gives back.")
    return figure


def _undone(kept: torch.Tensor, x: torch.Tensor) -> float:
    """Compute R² of the best affine map per pixel from the layer's channels to the image's, both (N, 3, H, W)."""
    features, target = (part.permute(0, 2, 3, 1).reshape(-1, 3).double() for part in (kept, x))
    features, target = features - features.mean(0), target - target.mean(0)
    left = target - features @ torch.linalg.lstsq(features, target).solution
    return 1 - float(left.square().sum() / target.square().sum())
