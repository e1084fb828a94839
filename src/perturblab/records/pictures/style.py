"""The style that all charts share: how a figure is drawn and becomes SVG."""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "perturblab",
    "svg.fonttype": "none",  # text stays text: small files, and a screen reader can read them
    "text.parse_math": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
}


def svg(draw: Callable[[], "Figure"], style: Mapping[Any, Any] | None = None) -> bytes:
    """Draw a figure in the shared style and write it as SVG; the same drawing gives the same bytes.

    Args:
        draw: makes the figure, under that style.
        style: Matplotlib settings of this chart, over the shared ones.

    Returns:
        The file's content.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the reader's own settings must not change the bytes
        matplotlib.rcParams.update({**STYLE, **(style or {})})
        buffer = io.BytesIO()
        draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def empty_figure(width: float, height: float) -> "Figure":
    """Make a figure without axes that needs no window, whose parts are laid out without overlap.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure
