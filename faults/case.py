"""One bad input: a command line, the files that it meets, and what a success would have to say."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Prepare = Callable[[Path], None]


def nothing(folder: Path) -> None:
    """Prepare no file."""


@dataclass(frozen=True)
class Case:
    """One bad input.

    Args:
        name: what is wrong, unique within its kind.
        argv: the command line; it runs in a folder of its own.
        needs: folders and files of the world that are copied into that folder first.
        prepare: writes or changes files in that folder.
        total: images that a success has to count; None where the command counts none.
        seconds: time limit, where the usual one is too short.
        may_succeed: whether the input may be as good as any.
    """

    name: str
    argv: Sequence[str]
    needs: Sequence[str] = ()
    prepare: Prepare = nothing
    total: int | None = None
    seconds: int = 30
    may_succeed: bool = True


def fill(fixed: Sequence[Case], drawn: Callable[[int, random.Random], Case], count: int, seed: int) -> list[Case]:
    """Take what was thought of first, spread over its list, and draw the rest.

    Args:
        fixed: cases written by hand.
        drawn: makes the k-th further case from a random generator of its own.
        count: how many cases are wanted.
        seed: of the drawn ones.

    Returns:
        ``count`` cases, at least half of them drawn where both kinds are there.
    """
    spread = [fixed[k * len(fixed) // (count // 2)] for k in range(count // 2)]
    taken = spread if count < len(fixed) else list(fixed)
    return [*taken, *(drawn(k, random.Random(f"{seed}/{k}")) for k in range(count - len(taken)))]
