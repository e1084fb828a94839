"""Signals that ask a process to stop."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asked_to_stop(
    given: Callable[[], bool] | None = None, *, once: bool = False, signals: Sequence[int] = STOPS
) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into an answer that is asked for where a stop is clean.

    Args:
        given: the caller's own answer, used in place of the signals; their handlers are then left alone.
        once: a second one raises KeyboardInterrupt wherever it comes.
        signals: those that are turned.

    Yields:
        Says whether one has come.
    """
    if given is not None:
        yield given
        return
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if once and asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hear_stops() -> None:
    """Let through the stops that a study holds back from a run until PyTorch is imported.

    An interrupt in the middle of that can get lost, or end in an abort.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
