"""The volatility of training: the spread of the loss's change from epoch to epoch."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev

from perturblab import stats
from perturblab.records.groups import group
from perturblab.records.markdown import Raw, markdown_table
from perturblab.records.metrics import Row
from perturblab.records.record import Record
from perturblab.records.results import Result

_MOST_DECIMALS = 9  # anything smaller is the noise of floats
Spreads = Mapping[str, float]  # which loss -> standard deviation of its change


def spreads(rows: Sequence[Row]) -> dict[str, float]:
    """Compute the standard deviations of the loss's change from one epoch to the next.

    Args:
        rows: one per epoch.

    Returns:
        For the training loss, for the second half of its epochs, and for the test loss if every epoch has one;
        a loss of fewer than three epochs is left out.
    """
    training = [row.train_loss for row in rows]
    test = [row.test_loss for row in rows if row.test_loss is not None]
    losses = {"training loss": training, "its second half": training[len(rows) // 2 :]}
    if len(test) == len(rows):
        losses["test loss"] = test
    return {name: stdev(b - a for a, b in pairwise(of)) for name, of in losses.items() if len(of) > 2}


def fine(value: float, sign: str = "") -> str:
    """Write a spread, or a difference of two: with four decimals, or as many as show two digits of it.

    Args:
        value: in units of the loss.
        sign: "+" to write the sign of a positive value too.

    Returns:
        Text such as "0.1534" or "+0.000030", never "-0.0000".
    """
    decimals = max(4, 1 - math.floor(math.log10(abs(value)))) if value else 4
    decimals = min(decimals, _MOST_DECIMALS)
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def volatility_markdown(runs: Sequence[Result], control: str | None = None) -> str:
    """Write the spreads, one row per group: means over seeds and, paired by seed, the ratio to the control.

    Args:
        runs: from `perturblab.records.results.load_results`; those without metrics are left out.
        control: label of the group that the others on the same images are compared with; None for no comparison.

    Returns:
        A Markdown table that ends in a newline; the same runs give the same bytes.
    """
    by_record = {id(run.record): spreads(run.metrics) for run in runs if run.metrics}
    groups = group([run.record for run in runs if run.metrics])
    names = list(dict.fromkeys(name for of in by_record.values() for name in of))
    rows = []
    reference = next((g for g in groups if g.label == control), None)
    for one in groups:
        seeds = {seed: by_record[id(record)] for seed, record in one.finished.items()}
        against: dict[int, Spreads] = {}
        if reference is not None and one is not reference and _images(one.records[0]) == _images(reference.records[0]):
            against = {seed: by_record[id(record)] for seed, record in reference.finished.items()}
        rows.append([one.label, *(Raw(_cell(seeds, name, against)) for name in names)])
    return markdown_table(["spread of the change of the", *names], rows) + "\n"


def _images(record: Record) -> object:
    return record.data.hashes, record.data.classes


def _cell(seeds: Mapping[int, Spreads], name: str, against: Mapping[int, Spreads]) -> str:
    values = {seed: of[name] for seed, of in seeds.items() if name in of}
    if not values:
        return ""
    text = f"{fmean(values.values()):.4f}"
    ratios = [math.log(value / against[seed][name]) for seed, value in values.items() if name in against.get(seed, {})]
    if not ratios:
        return text
    interval = stats.t_interval(ratios)
    times = interval.text(lambda logarithm: f"{math.exp(logarithm):.2f}")
    if interval.ends is None:
        return f"{text} (times {times}; too few seeds)"
    low, high = interval.ends
    word = "larger" if low > 0 else "smaller" if high < 0 else "not distinguishable"
    return f"{text} (times {times}: {word})"
