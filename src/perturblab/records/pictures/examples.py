"""Pictures of attacked images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perturblab.errors import one_line
from perturblab.records.pictures.style import empty_figure, svg
from perturblab.records.points import Point
from perturblab.system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Images = npt.NDArray[np.float32]


_COLUMNS = 5


def examples_of(points: Sequence[Point]) -> tuple[str, list[float]]:
    """Choose the attack whose images are drawn: FGSM where the call had it and not PGD, else PGD, the quickest to make.

    Args:
        points: of one call.

    Returns:
        Name of the attack, and its radii above 0, ascending; without one no images are drawn.
    """
    radii: dict[str, set[float]] = {}
    for point in points:
        if point.eps and not (point.name.is_worst or point.name.kind.by_iterations or point.is_mistake):
            radii.setdefault(point.attack, set()).add(point.eps)
    shown = "fgsm" if "fgsm" in radii and "pgd" not in radii else "pgd"
    return shown, sorted(radii.get(shown) or set().union(*radii.values()))


def examples_svg(
    clean: Images,
    attacked: Mapping[float, Images],
    answers: Mapping[float, Sequence[str]],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw clean images, perturbations and adversarial images, two rows per radius, with the answers of the net.

    Args:
        clean: (N, C, H, W) in [0, 1].
        attacked: radius -> (N, C, H, W).
        answers: radius -> names of the N classes that the net answers; 0 for the clean images.
        path: the SVG file to write, atomically.
        title: one line over the figure.
    """

    def draw() -> "Figure":
        count = min(_COLUMNS, len(clean))
        figure = empty_figure(1.4 + 1.5 * count, 1.1 + 3.1 * len(attacked) + 1.5)
        figure.suptitle(one_line(title))
        axes = figure.subplots(1 + 2 * len(attacked), count, squeeze=False)
        _image_row(axes[0], clean, answers[0.0], "clean")
        for rank, (eps, images) in enumerate(attacked.items()):
            shift = 0.5 + (images - clean) / (2 * max(eps, 1e-6))  # grey: unchanged
            _image_row(axes[1 + 2 * rank], shift, [""] * count, f"change / {eps:.3g}")
            _image_row(axes[2 + 2 * rank], images, answers[eps], f"{eps:.3g}")
        return figure

    write_atomically(path, svg(draw, {"axes.grid": False, "svg.image_inline": True}))


def _image_row(row: Sequence["Axes"], images: Images, names: Sequence[str], label: str) -> None:
    for axes, image, name in zip(row, images, names, strict=False):
        shown = np.clip(image.transpose(1, 2, 0), 0, 1)
        axes.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(one_line(name), fontsize=9)
    row[0].set_ylabel(label)
