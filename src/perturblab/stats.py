"""Statistics that turn counts and seeds into intervals and verdicts; accuracies in percent, differences in points."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "not distinguishable", "too few seeds"]

MIN_SEEDS = 3  # below this no interval over seeds is worth printing: at n = 2 its half width is 9 sd
ALPHA = 0.05
POWER = 0.8
_EXACT_SEEDS = 40  # half of the 2**40 sign patterns' sums still fit in memory, see sign_flip
_DECIMALS = 9  # points; differences closer than this are float noise, not a difference


def percent(value: float) -> str:
    """Write an accuracy in percent with two decimals; the end of an interval is clipped to [0, 100]."""
    return f"{min(max(0.0, value), 100.0):.2f}"


def signed(points: float) -> str:
    """Write a difference in points, such as "+0.21": two decimals, a tie to the even one, never "-0.00"."""
    if not math.isfinite(points):
        return f"{points:+.2f}"
    # Of integer counts a tie is common (-2.95 points over ten seeds), and as a binary number no tie any more.
    return f"{round(Decimal(repr(round(points, 9))), 2) + 0:+.2f}"


def brackets(ends: tuple[float, float], write: Callable[[float], str] = percent) -> str:
    """Write the low and the high end of an interval, such as "[84.02, 86.40]"."""
    return f"[{write(ends[0])}, {write(ends[1])}]"


@dataclass(frozen=True)
class Interval:
    """A mean and its Student-t interval; ``low``, ``high`` and ``sd`` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int
    sd: float | None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The low and the high end; None for fewer than `MIN_SEEDS` values, as the interval would say nothing."""
        if self.n < MIN_SEEDS or self.low is None or self.high is None:
            return None
        return self.low, self.high

    def text(self, write: Callable[[float], str] = percent, unit: str = "") -> str:
        """Write the mean with its unit and, of enough values, the ends, such as "85.21 [84.02, 86.40]"."""
        ends = "" if self.ends is None else f" {brackets(self.ends, write)}"
        return f"{write(self.mean)}{unit}{ends}"


@dataclass(frozen=True)
class Paired:
    """The comparison of A with B, paired by seed; differences are A - B in points.

    ``superiority`` is P(A > B) over the seeds; ties count one half. ``sign_flip_smallest`` is the smallest p that the
    exact sign-flip test can give with this many seeds. ``detectable`` is the smallest true difference that a two-sided
    test at alpha 5 % detects with 80 % power, judged by the sd of the differences.
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
        """The number of seeds."""
        return self.interval.n

    @property
    def difference(self) -> float:
        """Mean difference A - B in points."""
        return self.interval.mean


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the Wilson interval of an accuracy: the noise of a finite test set, not that of seeds.

    Args:
        correct: number of correct samples.
        total: number of samples.
        confidence: in (0, 1).

    Returns:
        Low and high end in percent, within [0, 100].

    Raises:
        ValueError: the counts are impossible, or the confidence is outside (0, 1).

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"counts are {correct} of {total}, expected 0 <= correct <= total and total > 0; recount")
    _check_confidence(confidence)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (correct + z2 / 2) / (total + z2)
    half = math.sqrt(z2 * (correct * (total - correct) / total + z2 / 4)) / (total + z2)
    low = 0.0 if correct == 0 else 100 * max(0.0, centre - half)
    high = 100.0 if correct == total else 100 * min(1.0, centre + half)
    return low, high


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Compute the mean of a few values and its Student-t interval, which is not clipped.

    Args:
        values: one per seed, in percent or points.
        confidence: in (0, 1).

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
        a: accuracies of A in percent, one per seed.
        b: accuracies of B in percent, for the same seeds in the same order and on the same test set.

    Returns:
        The difference with its interval, tests and verdict: "better" or "worse" if the 95 % t-interval of the mean
        difference excludes 0.

    Raises:
        ValueError: the lengths differ, there is no value, or a value is not finite.
    """
    x, y = _finite(a, "a"), _finite(b, "b")
    if len(x) != len(y):
        raise ValueError(f"a has {len(x)} values and b has {len(y)}, expected one pair per seed; keep the common seeds")
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


def sentence(comparison: Paired) -> str:
    """Write a comparison in one line: its verdict, difference in points and interval.

    "Not distinguishable" always says which difference would have been detected.
    """
    start = f"{comparison.verdict} (difference {signed(comparison.difference)} points"
    ends, seeds = comparison.interval.ends, f"{comparison.n} seed{'s' if comparison.n > 1 else ''}"
    if ends is None:
        return f"{start} over {seeds}; at least {MIN_SEEDS} are needed)"
    if comparison.interval.sd == 0:
        return f"{start} in each of {seeds})"
    power = f"; {comparison.detectable:.2f} points would have been detected with 80 % power"
    bound = power if comparison.verdict == "not distinguishable" else ""
    return f"{start}, 95 % t-interval {brackets(ends, signed)} over {seeds}{bound})"


def sign_flip(differences: Sequence[float]) -> float:
    """Compute the exact two-sided sign-flip permutation p of a mean difference of 0.

    Args:
        differences: A - B, one per seed, in points; at most 40.

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
    """Compute the mean difference, in sd of the differences, that a paired t-test detects with 80 % power.

    Args:
        n: number of seeds; the test is two-sided at alpha 5 %.

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
    """Correct the p-values of several comparisons with one control by Holm's step-down method.

    Args:
        pvalues: in [0, 1].

    Returns:
        The adjusted p-values, in the order given.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    if wrong := [p for p in pvalues if not 0 <= p <= 1]:
        raise ValueError(f"pvalues has {wrong[0]}, expected values in [0, 1]; pass p-values, not statistics")
    order = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    scaled = (min(1.0, (len(pvalues) - rank) * pvalues[index]) for rank, index in enumerate(order))
    adjusted = dict(zip(order, itertools.accumulate(scaled, max), strict=True))
    return [adjusted[index] for index in range(len(pvalues))]


def _verdict(interval: Interval) -> Verdict:
    if interval.ends is None:
        return "too few seeds"
    low, high = interval.ends
    return "better" if low > 0 else "worse" if high < 0 else "not distinguishable"


def _t_p(interval: Interval) -> float | None:
    if interval.sd is None:
        return None
    if interval.sd == 0:
        return 1.0 if interval.mean == 0 else 0.0
    return 2 * float(_scipy_stats().t.sf(abs(interval.mean) / interval.sd * math.sqrt(interval.n), interval.n - 1))


def _power(noncentrality: float, n: int) -> float:
    critical = float(_scipy_stats().t.ppf(1 - ALPHA / 2, n - 1))
    noncentral = _scipy_stats().nct(n - 1, noncentrality)
    return float(noncentral.sf(critical) + noncentral.cdf(-critical))


def _signed_sums(values: Floats) -> Floats:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _finite(values: Sequence[float], name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} has shape {x.shape}, expected at least one number in a flat list; give one per seed")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has {x[~np.isfinite(x)][0]}, expected finite numbers; drop no seed, find its cause")
    return x


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a value in (0, 1) such as 0.95; pass a fraction")


def _scipy_stats() -> Any:
    # Imported late: importing this module must stay cheap, and scipy.stats takes most of a second.
    from scipy import stats

    return stats
