"""Downloads from the hub, with a time limit for the first answer."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from perturblab.data.known import Known
from perturblab.data.parquet import Shard, read_tables
from perturblab.data.sets import Decoded, Progress, silent

WAIT = 6.0
"""Seconds to wait for the hub's first answer."""


def fetch(known: Known, progress: Progress) -> Decoded:
    """Fetch a data set through `datasets`; without a connection, only from the cache of `datasets`.

    Args:
        known: the data set.
        progress: called while fetching and decoding; `datasets` also draws its bars, unless this is `silent`.

    Returns:
        Images (N, C, H, W).

    Raises:
        Exception: any; `datasets` cannot provide the data set.
    """
    online = reachable()
    import datasets

    progress(f"fetching {known.display} from the hub", 0, 1)
    with _settings(online, progress is not silent):
        fetched = datasets.load_dataset(*known.hub)
    tables = {split: [Shard(f"{known.display} {split}", fetched[split].data.table)] for split in ("train", "test")}
    return read_tables(tables, f"{known.display} from the hub", progress)


def reachable() -> bool:
    """Ask the hub for an answer within `WAIT` seconds.

    Returns:
        True for any answer; False without one, or when HF_HUB_OFFLINE is set.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    answers: list[bool] = []
    # In a thread: a name look-up has no time limit, and each address of a host has one of its own.
    probe = threading.Thread(target=lambda: answers.append(_answers()), daemon=True)
    probe.start()
    probe.join(WAIT)
    return any(answers)


def _answers() -> bool:
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=WAIT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _settings(online: bool, bars: bool) -> Iterator[None]:
    """Set the hub's libraries: offline they fail at once instead of retrying for half a minute; bars or none."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled()
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = not online
    _show_bars(bars)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before[:2]
        _show_bars(not before[2])


def _show_bars(bars: bool) -> None:
    import datasets

    (datasets.enable_progress_bars if bars else datasets.disable_progress_bars)()
