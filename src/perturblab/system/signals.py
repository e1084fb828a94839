"""Signals that ask a process to stop."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def poll_stops(
    stop: Callable[[], bool] | None = None, *, once: bool = False, signals: Sequence[int] = STOPS
) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that the caller polls between steps.

    Args:
        stop: a flag of the caller's instead; the signals are then left alone.
        once: raise KeyboardInterrupt at the second signal, wherever it arrives.
        signals: to catch.

    Yields:
        The flag: a function that returns True after a signal.
    """
    if stop is not None:
        yield stop
        return
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if once and received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unblock_stops() -> None:
    """Unblock SIGINT and SIGTERM, which a study blocks in a run until PyTorch is imported.

    An interrupt during that import can get lost, or end in an abort.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
