"""How far a sample is moved: constant, uniform, or one of a few values."""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

_UNIFORM = re.compile(r"U\[([^,\]]+),([^,\]]+)\]", re.IGNORECASE)


@dataclass(frozen=True)
class Magnitude:
    """The distribution of BatchOut's magnitude eta; any value may be negative.

    Args:
        values: one value: constant; several: one of them is drawn; with ``uniform``, the two ends of an interval.
        probabilities: of the values, summing to 1; equal when empty.
        uniform: draw from U[low, high] instead.

    Raises:
        ValueError: no value, one that is not finite, probabilities that do not fit, an interval without two ends.

    Reference:
        constant and U[0, N]: Subramanya, Mopuri, Babu, BatchOut, ICVGIP 2018, tables 1 and 2.
    """

    values: tuple[float, ...]
    probabilities: tuple[float, ...] = ()
    uniform: bool = False

    def __post_init__(self) -> None:
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError(f"eta has the values {self.values}; expected at least one, all finite")
        if self.uniform and (len(self.values) != 2 or self.values[0] > self.values[1]):
            raise ValueError(f"eta is uniform over {self.values}; expected the two ends, the lower first")
        if self.probabilities:
            fit = len(self.probabilities) == len(self.values) and min(self.probabilities) >= 0 and not self.uniform
            if not fit or not math.isclose(sum(self.probabilities), 1, abs_tol=1e-6):
                raise ValueError(
                    f"eta has the probabilities {self.probabilities}; expected one a value, at least 0, summing to 1"
                )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw magnitudes.

        Args:
            count: how many, N.
            generator: where from; a constant takes nothing from it.

        Returns:
            float64, (N,): given values exactly.
        """
        if self.uniform:
            return torch.empty(count).uniform_(*self.values, generator=generator).double()
        values = torch.tensor(self.values, dtype=torch.float64)
        if len(values) == 1:
            return values.expand(count)
        weights = torch.tensor(self.probabilities or [1.0] * len(values))
        return values[torch.multinomial(weights, count, replacement=True, generator=generator)]

    def at(self, shares: Tensor) -> Tensor:
        """Magnitudes at given shares of the distribution: its inverse, so that one draw serves several distributions.

        Args:
            shares: float64 (N,), in [0, 1); uniform ones give magnitudes with this distribution.

        Returns:
            float64, (N,): of an interval the point so far along it, of values the one at which their probabilities, in
            the order given, first add up to more.
        """
        if self.uniform:
            low, high = self.values
            return low + (high - low) * shares
        values = torch.tensor(self.values, dtype=torch.float64)
        weights = torch.tensor(self.probabilities or [1.0] * len(values), dtype=torch.float64)
        ends = (weights / weights.sum()).cumsum(0)
        # The last end is 1 but for rounding, and nothing lies behind it.
        return values[torch.bucketize(shares, ends[:-1], right=True)]

    def __str__(self) -> str:
        if self.uniform:
            return f"U[{_short(self.values[0])},{_short(self.values[1])}]"
        shares = self.probabilities or (1 / len(self.values),) * len(self.values)
        if len(self.values) == 1:
            return _short(self.values[0])
        return ",".join(f"{_short(value)}:{_short(share)}" for value, share in zip(self.values, shares, strict=True))


def _short(value: float) -> str:
    """Write a number as the shortest text that reads back the same: 0.3, 1."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def parse_magnitude(text: str | float) -> Magnitude:
    """Read a magnitude.

    Args:
        text: ``0.1`` (constant), ``U[0,0.15]`` (uniform) or ``0.3:0.6,-0.2:0.4`` (values and their probabilities).

    Returns:
        The distribution; ``str`` of it reads back as the same.

    Raises:
        ValueError: none of the three.
    """
    wrong = f"eta got {text!r}; expected a number, U[low,high], or value:probability,... such as 0.3:0.6,-0.2:0.4"
    plain = str(text).replace(" ", "")
    try:
        if ends := _UNIFORM.fullmatch(plain):
            return Magnitude((float(ends[1]), float(ends[2])), uniform=True)
        if ":" not in plain:
            return Magnitude((float(plain),))
        pairs = [part.split(":") for part in plain.split(",")]
        return Magnitude(tuple(float(value) for value, _ in pairs), tuple(float(share) for _, share in pairs))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith("eta") else wrong) from error
