"""Pictures of a net under attack: accuracy against the radius, and the images themselves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perturblab.errors import one_line
from perturblab.figures import FIGURE
from perturblab.files import write_atomically
from perturblab.points import WORST, Point, is_capped, said

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Images = npt.NDArray[np.float32]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#bcbd22")
_MARKERS = "osD^vPX*<>"  # one more than colours, so that the pairs repeat late
_COLUMNS = 5


def curves_svg(points: Sequence[Point], path: Path, *, title: str, chance: float) -> None:
    """Draw accuracy against the radius, a line an attack, with Wilson intervals; the worst case is bold.

    Args:
        points: of one net; DeepFool's, whose axis is its cap on iterations, get a panel of their own.
        path: the SVG file to write, atomically; the same points give the same bytes.
        title: one line over the figure.
        chance: accuracy of guessing, in percent.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(FIGURE)
        kinds = sorted({is_capped(p.attack) for p in points})
        figure = _figure(len(kinds), title, points)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, capped in zip(panels, kinds, strict=True):
            _panel(axes, [p for p in points if is_capped(p.attack) == capped], capped=capped, chance=chance)
        _write(figure, path)


def _figure(panels: int, title: str, points: Sequence[Point]) -> "Figure":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 5.5 * panels, 5.5), layout="constrained")
    FigureCanvasSVG(figure)
    figure.suptitle(one_line(title))
    flags = list(dict.fromkeys(flag for point in points for flag in point.flags))
    if flags:
        figure.supxlabel(said(flags), fontsize=9, color="#a00000", wrap=True)
    return figure


def _panel(axes: "Axes", points: Sequence[Point], *, capped: bool, chance: float) -> None:
    names = sorted({p.attack for p in points}, key=lambda name: (name == WORST, name))
    for rank, name in enumerate(names):
        curve = sorted((p for p in points if p.attack == name), key=lambda p: p.eps)
        look: dict[str, Any] = {
            "color": _COLOURS[rank % len(_COLOURS)],
            "marker": _MARKERS[rank % len(_MARKERS)],
            "linewidth": 1.4,
        }
        if name == WORST:
            look = {"color": "#000000", "marker": "x", "linewidth": 3.2, "markeredgewidth": 2, "zorder": 1}
        middle = [p.percent for p in curve]
        ends = [[m - p.wilson[0] for m, p in zip(middle, curve, strict=True)], [p.wilson[1] - p.percent for p in curve]]
        label = name + (" *" if any(p.flags for p in curve) else "")
        axes.errorbar([p.eps for p in curve], middle, yerr=np.maximum(ends, 0), label=label, capsize=2, **look)
    axes.axhline(chance, color="#888888", linestyle=":", linewidth=1)
    axes.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#888888")
    axes.set(ylabel="accuracy, % (95 % Wilson interval)", ylim=(-2, 102))
    if capped:
        axes.set(xlabel="DeepFool, at most so many iterations")
        axes.set_xticks(sorted({p.eps for p in points}))
    else:
        _radius_axis(axes, points)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, handlelength=3)


def _radius_axis(axes: "Axes", points: Sequence[Point]) -> None:
    radii = sorted({p.eps for p in points})
    name = {"linf": "l-inf", "l2": "l2"}[points[0].norm]
    if all(abs(255 * eps - round(255 * eps)) < 1e-6 for eps in radii) and radii[-1] < 0.2:
        axes.set_xticks(radii, [f"{round(255 * eps)}" for eps in radii])
        axes.set(xlabel=f"radius of the {name} ball, /255")
    else:
        axes.set_xticks(radii, [f"{eps:g}" for eps in radii])
        axes.set(xlabel=f"radius of the {name} ball, pixels in [0, 1]")


def examples_svg(
    clean: Images,
    attacked: Mapping[float, Images],
    answers: Mapping[float, Sequence[str]],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw clean images, perturbations and adversarial images, two rows a radius, with what the net answers.

    Args:
        clean: (N, C, H, W) in [0, 1].
        attacked: radius -> (N, C, H, W).
        answers: radius -> names of the classes that the net sees, N; 0 for the clean images.
        path: the SVG file to write, atomically.
        title: one line over the figure.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(FIGURE | {"axes.grid": False, "svg.image_inline": True})
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        count = min(_COLUMNS, len(clean))
        figure = Figure(figsize=(1.4 + 1.5 * count, 1.1 + 3.1 * len(attacked) + 1.5), layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(one_line(title))
        axes = figure.subplots(1 + 2 * len(attacked), count, squeeze=False)
        _image_row(axes[0], clean, answers[0.0], "clean")
        for rank, (eps, images) in enumerate(attacked.items()):
            shift = 0.5 + (images - clean) / (2 * max(eps, 1e-6))  # grey is no change
            _image_row(axes[1 + 2 * rank], shift, [""] * count, f"change / {eps:.3g}")
            _image_row(axes[2 + 2 * rank], images, answers[eps], f"{eps:.3g}")
        _write(figure, path)


def _image_row(row: Sequence["Axes"], images: Images, names: Sequence[str], label: str) -> None:
    for axes, image, name in zip(row, images, names, strict=False):
        shown = np.clip(image.transpose(1, 2, 0), 0, 1)
        axes.imshow(shown if shown.shape[2] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(one_line(name), fontsize=9)
    row[0].set_ylabel(label)


def _write(figure: "Figure", path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_atomically(path, buffer.getvalue())
