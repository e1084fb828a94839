"""Memory for images, taken only where there is enough of it."""

import math
import re
from contextlib import suppress
from pathlib import Path

from perturblab.errors import DataError


def check_room(size: int, what: str, *, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Refuse more bytes than memory has left, before any of it is taken.

    Args:
        size: bytes.
        what: they are for, such as "5 images of 8x8 grey".
        meminfo: where Linux says what is left; where it is missing, the allocation itself must fail.

    Raises:
        DataError: they do not fit.
    """
    if size > _left(meminfo):
        raise DataError(f"{what} do not fit into memory; use fewer or smaller ones")


def _left(meminfo: Path) -> float:
    with suppress(OSError):
        found = re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text())
        return 1024 * int(found[1]) if found else math.inf
    return math.inf
