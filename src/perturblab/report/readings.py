"""Values read from one run: the quantities that figures and claims are about."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from perturblab.records.points import Point
from perturblab.records.results import Result
from perturblab.report.volatility_table import spreads
from perturblab.studies.catalogue import Measure

_CLOSE = 1e-6  # radii are typed as decimals here and as fractions there
_FIRST_COUNTED = 11  # epoch index; the published code looks for the best one from there on
EVERY_EPOCH = "every epoch"
BEST_EPOCH = Measure("best epoch")
AUDITED = {
    "batch mean": "batch_mean",
    "batch mean, truncated": "batch_mean_truncated",
    "smoothed": "smoothed",
}


@dataclass(frozen=True)
class Value:
    """A value read from one run.

    Args:
        number: percent; of "volatility" the spread itself.
        flags: signs of a masked gradient.
        images: number of test images behind it; 0 if unknown.
    """

    number: float
    flags: tuple[str, ...] = ()
    images: int = 0


def value(run: Result, measure: Measure, images: int = 0) -> Value | None:
    """Read the value of a measure from a run.

    Args:
        run: a finished one.
        measure: the quantity.
        images: preferred number of attacked test images, from `images_of_all`; 0 for the number that the measure
            names, or else the largest.

    Returns:
        The value, or None if the run was not measured that way.
    """
    if _is_of_points(measure):
        return _attacked(run.points, measure, images)
    return READERS[measure.metric](run)


def exact(run: Result) -> Value:
    """Read the exact test accuracy after the last epoch, in percent."""
    last = run.record.counts.last
    return Value(last.accuracy, images=last.total)


def trained(run: Result) -> Value | None:
    """Read the accuracy on the training images over the last epoch, in percent; None if it was not recorded."""
    return Value(run.metrics[-1].train_accuracy) if run.metrics else None


def _best(key: str, first: int = 0) -> Callable[[Result], Value | None]:
    """Make a reader of the best audited epoch on test, from epoch index `first` on if the run is longer than that."""

    def read(run: Result) -> Value | None:
        audited = [row for row in run.metrics if getattr(row, key) is not None]
        eligible = [row for row in audited if row.epoch >= first] or audited
        if not eligible:
            return None
        return Value(max(getattr(row, key) for row in eligible), images=run.record.counts.last.total)

    return read


def _volatility(run: Result) -> Value | None:
    spread = spreads(run.metrics).get("training loss")
    return None if spread is None else Value(spread)


def _nothing(run: Result) -> None:
    """Read nothing: no measurement of it exists here."""


READERS: Mapping[str, Callable[[Result], Value | None]] = {
    "exact": exact,
    EVERY_EPOCH: exact,
    "train": trained,
    BEST_EPOCH.metric: _best("exact"),
    "volatility": _volatility,
    "none": _nothing,
    **{metric: _best(key, _FIRST_COUNTED) for metric, key in AUDITED.items()},
}


def images_of_all(*sides: tuple[Iterable[Result], Measure]) -> int:
    """Find the number of attacked test images that all runs share, so that seeds and sides use the same images.

    Args:
        sides: runs and the measure read from them; runs that were not measured that way do not count.

    Returns:
        The number that the measure names if all have it, else the largest that all have; 0 if there is none.
    """
    totals, named = list[set[int]](), set[int]()
    for runs, measure in sides:
        if _is_of_points(measure):
            by_run = ({point.total for point in run.points if _fits(point, measure)} for run in runs)
            totals += [counts for counts in by_run if counts]
            named.add(measure.subset)
    common = set.intersection(*totals) if totals else set()
    return max(common & named or common, default=0)


def _is_of_points(measure: Measure) -> bool:
    return measure.metric == "attack" or bool(measure.mode)


def _attacked(points: Iterable[Point], measure: Measure, images: int) -> Value | None:
    fitting = [point for point in points if _fits(point, measure)]
    if not fitting:
        return None
    wanted = images or measure.subset
    chosen = max(fitting, key=lambda point: (point.total == wanted, point.total))
    return Value(chosen.percent, chosen.flags, chosen.total)


def _fits(point: Point, measure: Measure) -> bool:
    clean = measure.metric == "exact"  # of a published mode: the accuracy at radius 0 in that mode
    if (not clean and (point.attack, point.norm) != (measure.attack, measure.norm)) or point.name.is_frozen:
        return False
    if abs(point.eps - (0 if clean else measure.eps)) > _CLOSE or point.mode != measure.evaluation:
        return False
    step = point.settings.get("step_size")
    if (measure.mode == "step eps/30") != (step is not None and abs(step - measure.eps / 30) < _CLOSE):
        return False
    return measure.mode != "inference-vote" and measure.steps in (0, point.settings.get("steps"))
