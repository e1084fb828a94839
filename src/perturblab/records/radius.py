"""Radii of attacks: numbers and fractions such as 8/255, read, checked and written."""

import math
from contextlib import suppress


def parse_eps(text: str, flag: str = "--eps") -> float:
    """Read the radius of an attack.

    Args:
        text: a number such as ``0.3``, or a fraction such as ``8/255``.
        flag: where it was given.

    Returns:
        The radius in pixel units, where images lie in [0, 1].

    Raises:
        ValueError: it is neither, or negative.
    """
    number = math.nan
    top, slash, bottom = text.strip().partition("/")
    with suppress(ValueError, ZeroDivisionError):
        number = float(top) / (float(bottom) if slash else 1.0)
    if not 0 <= number < math.inf:
        raise ValueError(f"{flag} got {text!r}; expected a number of at least 0, or a fraction such as 8/255")
    return number


def check_linf(eps: float, flag: str) -> None:
    """Refuse 8 where 8/255 was meant: with 1 every pixel can become any other."""
    if eps > 1:
        raise ValueError(
            f"{flag} got {eps:g}; expected at most 1 in linf, where pixels lie in [0, 1]; write 8 of 255 as 8/255"
        )


def radius(eps: float) -> str:
    """Write a radius in pixels of [0, 1], or a cap on iterations, as people do: small ones as 255ths, else decimals."""
    steps = eps * 255
    return f"{round(steps)}/255" if 0 < eps < 0.1 and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"
