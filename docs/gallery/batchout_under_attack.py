"""BatchOut under attack.

Figure 2 of the paper shows a net for MNIST that keeps 95.98 % accuracy under FGSM at a radius of 0.3, while the same
net without BatchOut keeps 19 %. This page attacks both, and half-batch FGSM training, after the same training. It
uses FGSM and attacks with many steps and restarts. A defence that only hides the gradient resists FGSM and fails
under the others. BatchOut fails under both. The checks find no masked gradients, so BatchOut hides nothing; it does
not defend.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from perturblab.records.flags import UPPER_BOUND, flag_note
from perturblab.records.markdown import markdown_table
from perturblab.records.points import Point
from perturblab.records.results import load_results
from perturblab.stats import Interval, t_interval
from perturblab.studies.catalogue import FIGURES

RESULTS = Path(__file__).parents[2] / "results" / "robust"
FULL = {"attacks": ("fgsm", "pgd", "autoattack")}
SMALL = {"attacks": ("fgsm",)}
_ARMS = {
    "none": ("no defence", "#000000", "o"),
    "batchout": ("BatchOut", "#d55e00", "s"),
    "fgsm-half": ("half-batch FGSM training", "#0072b2", "D"),
}


def draw(dataroot: str, attacks: tuple[str, ...]) -> Figure:
    """Draw the curves of the runs in ``results/robust``, under FGSM beside those of the paper."""
    del dataroot  # the numbers are in the records
    figure, grid = plt.subplots(1, len(attacks), figsize=(4.4 * len(attacks), 4), squeeze=False, sharey=True)
    found = {arm: _points(arm) for arm in _ARMS}
    for axes, attack in zip(grid[0], attacks, strict=True):
        own = {arm: _means([p for p in points if p.attack == attack]) for arm, points in found.items()}
        radii = sorted({eps for means in own.values() for eps in means})
        rows = []
        for arm, (text, colour, marker) in _ARMS.items():
            means = {eps: interval.mean for eps, interval in own[arm].items()}
            runs = min(interval.n for interval in own[arm].values())
            flags = flag_note(sorted({flag for p in found[arm] if p.attack == attack for flag in p.flags}))
            bound = f", {UPPER_BOUND}" if flags else ""
            axes.plot([*means], [*means.values()], marker=marker, color=colour, label=f"{text}{bound}")
            cells = [f"{means[eps]:.2f}" if eps in means else "" for eps in radii]
            rows.append([text, *cells, str(runs), flags or "none"])
            if attack == "fgsm":
                figures = _published(arm)
                axes.plot(
                    [*figures], [*figures.values()], ":", marker=marker, color=colour, alpha=0.5, label=f"{text}, paper"
                )
        header = [f"{attack}, radius", *(f"{eps:g}" for eps in radii), "runs", "flags"]
        print(f"{markdown_table(header, rows, 'l' + 'r' * (len(radii) + 1) + 'l')}\n")
        axes.set(title=attack, xlabel="radius, of pixels in [0, 1]", ylim=(-2, 102))
    grid[0][0].set_ylabel("accuracy, %")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    print("Percent, means over runs with different seeds. FGSM on 10,000 test images, the others on the same 1,000.")
    return figure


def _points(arm: str) -> list[Point]:
    runs = load_results(RESULTS / f"BO-mnist-{arm}")
    return [p for run in runs for p in run.points if p.norm == "linf" and p.settings.get("mode", "eval") == "eval"]


def _means(points: list[Point]) -> dict[float, Interval]:
    total = max((p.total for p in points), default=0)  # FGSM was also run on the images of the others
    radii = sorted({p.eps for p in points})
    chosen = {eps: [p.percent for p in points if p.eps == eps and p.total == total] for eps in radii}
    return {eps: t_interval(values) for eps, values in chosen.items() if values}


def _published(arm: str) -> dict[float, float]:
    own = [e for name, e in FIGURES.items() if name.startswith(f"BO2-{arm}-fgsm-")]
    return {published.measure.eps: published.figure.value for published in own if published.figure.value is not None}
