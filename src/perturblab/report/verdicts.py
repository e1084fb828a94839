"""Verdicts on what was published: a figure, or the claimed range of a difference."""

import math
from collections.abc import Sequence
from typing import Literal

from perturblab import stats

FigureVerdict = Literal["agrees", "lower", "higher", "not comparable at this preset", "too few seeds"]
ClaimVerdict = Literal["agrees", "lower", "higher", "not distinguishable", "too few seeds"]
_DECIMALS = 9  # points; differences closer than this are float noise


def against_published(
    values: Sequence[float], figure: float, *, comparable: bool, within: float = 0.0
) -> FigureVerdict:
    """Judge measured values by a published figure, which is a point or a range without a spread.

    Args:
        values: one per seed, in percent.
        figure: the published one, in percent; the middle of a range.
        comparable: the runs followed the published protocol; otherwise no difference says anything about the figure.
        within: half the width of a published range, in points.

    Returns:
        "agrees" if the 95 % t-interval of measured - published holds 0, or a part of the range.
    """
    if not comparable:
        return "not comparable at this preset"
    differences = [round(value - figure, _DECIMALS) for value in values]
    side = _side(stats.t_interval(differences, 1 - stats.ALPHA), -within, within)
    return "agrees" if side == "meets" else side


def against_claim(interval: stats.Interval, low: float | None, high: float | None) -> ClaimVerdict | None:
    """Judge the claimed range of a difference.

    Args:
        interval: of the measured difference, paired by seed.
        low: lower end of the claimed range; None if it is open.
        high: upper end; the same as ``low`` for a claimed number.

    Returns:
        "agrees" if the 95 % t-interval lies inside the range, or holds the claimed number; "lower" or "higher" if it
        lies outside; "not distinguishable" if it reaches over an end of the range; None if nothing was claimed. The
        end of a half-open range lies outside it: a difference of 0 is not "above 0".
    """
    if low is None and high is None:
        return None
    least = -math.inf if low is None else low if high is not None else math.nextafter(low, math.inf)
    most = math.inf if high is None else high if low is not None else math.nextafter(high, -math.inf)
    side = _side(interval, least, most)
    if side != "meets" or interval.ends is None:
        return side if side != "meets" else None
    is_inside = least <= interval.ends[0] and interval.ends[1] <= most
    return "agrees" if is_inside or least == most else "not distinguishable"


def _side(interval: stats.Interval, low: float, high: float) -> Literal["lower", "higher", "meets", "too few seeds"]:
    """Say on which side of a range an interval lies, or that the two meet."""
    if interval.ends is None:
        return "too few seeds"
    if interval.ends[1] < low:
        return "lower"
    return "higher" if interval.ends[0] > high else "meets"
