"""The picture of a run's progress, drawn from its metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perturblab.errors import UserError, one_line
from perturblab.records.metrics import Row
from perturblab.records.pictures.style import empty_figure, svg
from perturblab.system.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Curve = tuple[str, str, Mapping[str, Any]]
_TRAIN = {"color": "#0072b2", "linestyle": "-", "marker": "o"}
_VALIDATION = {"color": "#e69f00", "linestyle": "--", "marker": "s"}
# Metric, name in the legend, look. Line styles and markers differ too, for prints in grey. The exact accuracy is drawn
# wide and first, so that the other metrics, which often lie within its width, stay visible on top of it.
_EXACT = {"color": "#000000", "linestyle": "-", "marker": "x", "linewidth": 3.2, "markeredgewidth": 2}
_LOSS: tuple[_Curve, ...] = (
    ("train_loss", "train", _TRAIN),
    ("val_loss", "validation", _VALIDATION),
)
_ACCURACY: tuple[_Curve, ...] = (
    ("exact", "test, exact", _EXACT),
    ("train_accuracy", "train", _TRAIN),
    ("val_accuracy", "validation", _VALIDATION),
    ("smoothed", "test, smoothed", {"color": "#d55e00", "linestyle": "-.", "marker": "D"}),
    ("batch_mean", "test, batch mean", {"color": "#56b4e9", "linestyle": ":", "marker": "^"}),
    (
        "batch_mean_truncated",
        "test, batch mean, truncated",
        {"color": "#cc79a7", "linestyle": (0, (4, 1, 1, 1, 1, 1)), "marker": "v"},
    ),
)


def progress_svg(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw a run's loss and accuracy over its epochs; the same rows give the same bytes.

    Args:
        rows: one per epoch; a metric that is None is left out.
        path: the SVG file to write, atomically.
        title: one line over the figure.

    Raises:
        UserError: there are no rows, or the file cannot be written.
    """
    if not rows:
        raise UserError("rows has no epoch, expected at least one; draw the progress after the first epoch")
    write_atomically(path, svg(lambda: _draw(rows, one_line(title))))


def _draw(rows: Sequence[Row], title: str) -> "Figure":
    figure = empty_figure(10, 5)
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    _panel(loss, rows, _LOSS, "loss")
    _panel(accuracy, rows, _ACCURACY, "accuracy, %")
    if len(rows) == 1:
        figure.supxlabel("one epoch only: points, no curve", fontsize=9, color="#555555")
    return figure


def _panel(axes: "Axes", rows: Sequence[Row], metrics: Sequence[_Curve], unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for rank, (key, name, look) in enumerate(metrics):
        points = [(row.epoch, value) for row in rows if (value := getattr(row, key)) is not None]
        if points:
            # About ten markers per curve, staggered, distinguish the curves without covering them.
            step = 1 + len(points) // 10
            every = (rank * step // len(metrics), step)
            axes.plot(*zip(*points, strict=True), label=name, **{"markersize": 5, "markevery": every, **look})
    axes.set(xlabel="epoch (the first is 0)", ylabel=unit)
    axes.set_xlim(rows[0].epoch - 0.5, rows[-1].epoch + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if axes.lines:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, handlelength=3)
