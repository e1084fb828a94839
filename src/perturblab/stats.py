"""Statistics that turn counts and seeds into intervals and verdicts; accuracies in percent, differences in points."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]

PublishedVerdict = Literal["agrees", "lower", "higher", "not comparable at this preset", "too few seeds"]
ClaimVerdict = Literal["agrees", "lower", "higher", "not distinguishable", "too few seeds"]

MIN_SEEDS = 3  # below this no interval over seeds is worth printing: at n = 2 its half width is 9 sd
ALPHA = 0.05
POWER = 0.8
_EXACT_SEEDS = 40  # half of the 2**40 sign patterns' sums still fit in memory, see sign_flip
_DECIMALS = 9  # points; differences closer than this are float noise, not a difference


@dataclass(frozen=True)
class Interval:
    """A mean and its Student-t interval; ``low``, ``high`` and ``sd`` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int
    sd: float | None


@dataclass(frozen=True)
class Paired:
    """The comparison of A with B, paired by seed; differences are A - B in points.

    ``superiority`` is P(A > B) over the seeds, ties count one half. ``sign_flip_smallest`` is the smallest p that
    the exact sign-flip test can give with this many seeds. ``detectable`` is the smallest true difference that would
    have been detected with 80 % power at alpha 5 %, two-sided, judged by the sd of the differences.
    """

    interval: Interval
    t_p: float | None
    sign_flip_p: float | None
    sign_flip_smallest: float
    superiority: float
    detectable: float | None
    verdict: Verdict

    @property
    def n(self) -> int:
        """Number of pairs, that is of seeds."""
        return self.interval.n

    @property
    def difference(self) -> float:
        """Mean difference A - B in points."""
        return self.interval.mean


@dataclass(frozen=True)
class Published:
    """A published figure beside what was measured: the difference measured - published in points, and the verdict."""

    interval: Interval
    verdict: PublishedVerdict


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Give the Wilson interval of an accuracy: the noise of a finite test set, not that of seeds.

    Args:
        correct: number of correct samples.
        total: number of samples.
        confidence: in (0, 1).

    Returns:
        Low and high end in percent, within [0, 100].

    Raises:
        ValueError: the counts are no counts, or the confidence is outside (0, 1).

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    _check_counts(correct, total)
    _check_confidence(confidence)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (correct + z2 / 2) / (total + z2)
    half = math.sqrt(z2 * (correct * (total - correct) / total + z2 / 4)) / (total + z2)
    low = 0.0 if correct == 0 else 100 * max(0.0, centre - half)
    high = 100.0 if correct == total else 100 * min(1.0, centre + half)
    return low, high


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Give the mean of a few values and its Student-t interval.

    Args:
        values: one value a seed, in percent or points.
        confidence: in (0, 1).

    Returns:
        The interval in the unit of the values, not clipped; without ends for a single value.

    Raises:
        ValueError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    x = _finite(values, "values")
    n, mean = len(x), float(x.mean())
    if n < 2:
        return Interval(mean, None, None, n, None)
    sd = float(x.std(ddof=1)) if np.ptp(x) else 0.0
    half = float(_scipy_stats().t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, sd)


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compare A with B, paired by seed.

    Args:
        a: accuracies of A in percent, one a seed.
        b: accuracies of B in percent, for the same seeds in the same order and on the same test set.

    Returns:
        The difference with its interval, tests and verdict. "better" and "worse" mean that the 95 % t-interval of
        the mean difference excludes 0.

    Raises:
        ValueError: the lengths differ, there is no value, or a value is not finite.
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if len(x) != len(y):
        raise ValueError(f"a has {len(x)} values and b has {len(y)}, expected one pair a seed; keep the common seeds")
    d = np.round(x - y, _DECIMALS)
    interval = t_interval(d.tolist(), 1 - ALPHA)
    return Paired(
        interval=interval,
        t_p=_t_p(interval),
        sign_flip_p=sign_flip(d.tolist()) if len(d) <= _EXACT_SEEDS else None,
        sign_flip_smallest=min(1.0, 2.0 / 2.0 ** len(d)),
        superiority=float(np.mean((d > 0) + 0.5 * (d == 0))),
        detectable=None if interval.sd is None else detectable_ratio(len(d)) * interval.sd,
        verdict=_verdict(interval),
    )


def against_published(values: Sequence[float], figure: float, *, comparable: bool, within: float = 0.0) -> Published:
    """Compare measured values with a published figure, which is a point or a range without a spread.

    Args:
        values: one value a seed, in percent.
        figure: the published one, in percent; the middle of a range.
        comparable: the runs followed the published protocol; else no difference says anything about the figure.
        within: half the width of a published range, in points.

    Returns:
        The interval of the difference measured - published in points, and the verdict: "agrees" means that the 95 %
        t-interval holds 0, or a part of the range.

    Raises:
        ValueError: no value, or a value or figure that is not finite.
    """
    differences = _finite(values, "values") - _finite([figure], "figure")
    interval = t_interval(np.round(differences, _DECIMALS).tolist(), 1 - ALPHA)
    if not comparable:
        return Published(interval, "not comparable at this preset")
    if interval.n < MIN_SEEDS or interval.low is None or interval.high is None:
        return Published(interval, "too few seeds")
    if interval.low > within:
        return Published(interval, "higher")
    return Published(interval, "lower" if interval.high < -within else "agrees")


def against_claim(interval: Interval, low: float | None, high: float | None) -> ClaimVerdict | None:
    """Judge a claimed range of a difference.

    Args:
        interval: of the measured difference, paired by seed.
        low: lower end of the claimed range; None where it is open.
        high: upper end; the same as ``low`` for a claimed number.

    Returns:
        "agrees": the 95 % t-interval lies inside the range, or holds the claimed number; "lower", "higher": it lies
        outside; "not distinguishable": it reaches over an end of the range; None where nothing was claimed. "Above 0"
        does not hold 0: the one end of a range that is open on the other side is outside.
    """
    if low is None and high is None:
        return None
    if interval.n < MIN_SEEDS or interval.low is None or interval.high is None:
        return "too few seeds"
    least = -math.inf if low is None else low if high is not None else math.nextafter(low, math.inf)
    most = math.inf if high is None else high if low is not None else math.nextafter(high, -math.inf)
    if interval.high < least:
        return "lower"
    if interval.low > most:
        return "higher"
    inside = least <= interval.low and interval.high <= most
    return "agrees" if inside or least == most else "not distinguishable"


def sentence(comparison: Paired) -> str:
    """Say a comparison in words: the verdict first, then what it rests on.

    Args:
        comparison: what ``paired`` gave; differences in points.

    Returns:
        One line; "not distinguishable" always says which difference would have been detected.
    """
    start = f"{comparison.verdict} (difference {signed(comparison.difference)} points"
    interval, seeds = comparison.interval, f"{comparison.n} seed{'s' if comparison.n > 1 else ''}"
    if comparison.n < MIN_SEEDS or interval.low is None or interval.high is None:
        return f"{start} over {seeds}; at least {MIN_SEEDS} are needed)"
    if interval.sd == 0:
        return f"{start} in each of {seeds})"
    ends = f"95 % t-interval [{signed(interval.low)}, {signed(interval.high)}] over {seeds}"
    if comparison.verdict != "not distinguishable":
        return f"{start}, {ends})"
    return f"{start}, {ends}; {comparison.detectable:.2f} points would have been detected with 80 % power)"


def signed(points: float) -> str:
    """Write a difference with its sign and two decimals, a tie to the even one, never as "-0.00".

    Args:
        points: a difference in points.

    Returns:
        Text such as "+0.21".
    """
    if not math.isfinite(points):
        return f"{points:+.2f}"
    # Of integer counts a tie is common (-2.95 points over ten seeds), and as a binary number no tie any more.
    return f"{round(Decimal(repr(round(points, 9))), 2) + 0:+.2f}"


def sign_flip(differences: Sequence[float]) -> float:
    """Give the exact two-sided sign-flip permutation p of a mean difference of 0.

    Args:
        differences: A - B, one a seed, in points; at most 40.

    Returns:
        The share of the 2**n sign patterns whose sum is at least as far from 0 as the one seen.

    Raises:
        ValueError: no difference, more than 40, or one that is not finite.
    """
    d = _finite(differences, "differences")
    if len(d) > _EXACT_SEEDS:
        raise ValueError(f"differences has {len(d)} values, expected at most {_EXACT_SEEDS}; use the t-interval")
    seen = abs(float(d.sum())) - 1e-9 * float(np.abs(d).sum())
    if seen <= 0:
        return 1.0
    # Meet in the middle: a sum over all seeds is a sum over the left half plus one over the right half.
    left, right = _signed_sums(d[: len(d) // 2]), np.sort(_signed_sums(d[len(d) // 2 :]))
    above = len(right) * len(left) - np.searchsorted(right, seen - left, side="left").sum()
    below = np.searchsorted(right, -seen - left, side="right").sum()
    return float((above + below) / 2.0 ** len(d))


@functools.cache
def detectable_ratio(n: int) -> float:
    """Give the smallest detectable mean difference in units of the sd of the differences.

    Args:
        n: number of seeds, at least 2.

    Returns:
        Ratio at which the two-sided paired t-test at alpha 5 % has 80 % power.

    Raises:
        ValueError: fewer than 2 seeds.
    """
    if n < 2:
        raise ValueError(f"n is {n}, expected at least 2; one seed has no spread")
    low, high = 0.0, 32.0  # the noncentrality at n = 2 is 16.3 and falls with n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n) < POWER else (low, middle)
    return high / math.sqrt(n)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Correct p-values for several comparisons with one control, by Holm's step-down method.

    Args:
        pvalues: in [0, 1].

    Returns:
        The adjusted p-values, in the order given.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    if wrong := [p for p in pvalues if not 0 <= p <= 1]:
        raise ValueError(f"pvalues has {wrong[0]}, expected values in [0, 1]; pass p-values, not statistics")
    adjusted, running = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = running
    return adjusted


def _verdict(interval: Interval) -> Verdict:
    if interval.n < MIN_SEEDS or interval.low is None or interval.high is None:
        return "too few seeds"
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "not distinguishable"


def _t_p(interval: Interval) -> float | None:
    if interval.sd is None:
        return None
    if interval.sd == 0:
        return 1.0 if interval.mean == 0 else 0.0
    return 2 * float(_scipy_stats().t.sf(abs(interval.mean) / interval.sd * math.sqrt(interval.n), interval.n - 1))


def _power(noncentrality: float, n: int) -> float:
    distributions = _scipy_stats()
    critical = float(distributions.t.ppf(1 - ALPHA / 2, n - 1))
    noncentral = distributions.nct(n - 1, noncentrality)
    return float(noncentral.sf(critical) + noncentral.cdf(-critical))


def _signed_sums(values: Floats) -> Floats:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _finite(values: Sequence[float], name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}, expected at least one number in a flat list; give one a seed")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has {x[~np.isfinite(x)][0]}, expected finite numbers; drop no seed, find its cause")
    return x


def _check_counts(correct: int, total: int) -> None:
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"counts are {correct} of {total}, expected 0 <= correct <= total and total > 0; recount")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a value in (0, 1) such as 0.95; pass a fraction")


def _scipy_stats() -> Any:
    # Imported late: importing this module must stay cheap, and scipy.stats takes most of a second.
    from scipy import stats

    return stats
