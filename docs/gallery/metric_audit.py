"""Which accuracy.

Each published code computes another accuracy from the same answers. The exact accuracy counts right answers over all
images. The authors' code smooths the accuracies of the test batches with weights 0.7 and 0.3, so the last few batches
decide. The reproduction averages over batches, in one version with integer division, and gives a short last batch the
weight of a full one. All of them report the best epoch on the test set. Every run trained with `--audit` keeps all
these values. The table shows the runs in `results/`.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from perturblab.records.markdown import markdown_table
from perturblab.records.results import Result, load_results
from perturblab.stats import t_interval

RESULTS = Path(__file__).parents[2] / "results"
FULL = {"shown": ("H5", "A1", "BO-mnist-none")}
SMALL = {"shown": ("BO-mnist-none",)}
_CURVES = (
    ("exact", "exact", "k-", 3.0),
    ("batch_mean", "mean of batches", "o:", 1.2),
    ("smoothed", "smoothed", "D-.", 1.2),
)


def draw(dataroot: str, shown: tuple[str, ...]) -> Figure:
    """Print the difference of every metric from the exact accuracy per set-up, and draw one run of some."""
    del dataroot  # the numbers are in the records
    groups = defaultdict[str, list[Result]](list)
    for run in load_results(RESULTS):
        if run.metrics and run.metrics[-1].smoothed is not None and run.record.study:
            groups[run.record.study.setup].append(run)
    metrics = ["exact, last epoch", "mean of batches", "smoothed", "best epoch on test", "best of smoothed"]
    lines = []
    for setup, runs in sorted(groups.items()):
        last = [run.metrics[-1] for run in runs]
        exact = t_interval([row.exact for row in last])
        added = [fmean(getattr(row, key) - row.exact for row in last) for key in ("batch_mean", "smoothed")]
        added += [
            fmean(max(getattr(row, key) for row in run.metrics) - run.metrics[-1].exact for run in runs)
            for key in ("exact", "smoothed")
        ]
        lines.append([setup, str(len(runs)), f"{exact.mean:.2f}", *(f"{value:+.2f}" for value in added)])
    print(markdown_table(["set-up", "runs", *metrics], lines))
    print("\nPercent, means over runs; from the fourth column on, points above the exact accuracy of the last epoch.")
    shown = tuple(setup for setup in shown if setup in groups)
    figure, grid = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.8), squeeze=False)
    for axes, setup in zip(grid[0], shown, strict=True):
        rows = groups[setup][0].metrics
        for key, text, look, width in _CURVES:
            axes.plot(
                [row.epoch for row in rows], [getattr(row, key) for row in rows], look, linewidth=width, label=text
            )
        axes.set(title=f"{setup}, seed {groups[setup][0].record.seed}", xlabel="epoch", ylabel="test accuracy, %")
    grid[0][0].legend(frameon=False)
    return figure
