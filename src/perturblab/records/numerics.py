"""The number of this package's arithmetic, and the faults that make records of a number void."""

import functools
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

NUMERICS = 1
"""Raised by hand when a change moves bits of training or of attacks; `tests/test_numerics.py` asks for it.

It stands in every record and voids nothing by itself. Records from before it existed have 0.
"""


@dataclass(frozen=True)
class Fault:
    """A fault that made results wrong, and the records that it makes void.

    Args:
        numerics: the numbers under which it was there.
        what: what was wrong, in a few words without a full stop.
        settings: options of a record's ``config``, each with the values that were affected; a record is void where all
            of them match. None also matches an option that the record does not have. Without settings, all are void.
    """

    numerics: tuple[int, ...]
    what: str
    settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        """The numbers and what was wrong, such as "numerics 1: level read twice"."""
        return f"numerics {' and '.join(map(str, self.numerics))}: {self.what}"


FAULTS: tuple[Fault, ...] = ()
"""The known faults. Only records that one of them names are void: they count as not done, and are run again."""


def find_fault(config: Mapping[str, Any], numbers: Collection[int]) -> Fault | None:
    """Find the first known fault that a run has.

    Args:
        config: every option of the run, as in a record.
        numbers: the numerics numbers that parts of the run were computed under.

    Returns:
        The fault; None where the run is valid.
    """
    for fault in FAULTS:
        affected = all(config.get(name) in values for name, values in fault.settings.items())
        if affected and not set(numbers).isdisjoint(fault.numerics):
            return fault
    return None


@functools.cache
def code_hash() -> str:
    """Give the first 12 digits of the sha256 of this package's sources, which records keep for information.

    It is that of the first call, at the start of a run: what is edited while it trains is not what trains it.
    """
    root, digest = Path(str(resources.files("perturblab"))), hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cpp")):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
