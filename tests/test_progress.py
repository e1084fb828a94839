"""Progress: the time left is told however long a step takes."""

import functools
import sys

import pytest
from rich.progress import Progress

from perturblab.system import terminal


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a bar on a terminal sees."""
    clock = [0.0]
    monkeypatch.setattr(terminal, "Progress", functools.partial(Progress, get_time=lambda: clock[0]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    return clock


def left(show: terminal.Show) -> float | None:
    assert show._progress is not None
    return show._progress.tasks[0].time_remaining


@pytest.mark.parametrize("step", [0.5, 29.0, 80.0, 2400.0])
def test_the_time_left_is_told_however_long_a_step_takes(step: float, now: list[float]) -> None:
    show = terminal.Show()
    with show.bar(10):
        for done in range(1, 10):
            show.move(done, "at work")
            now[0] += step
            if done > 1:
                assert left(show) == pytest.approx((10 - done) * step, abs=1)


def test_what_is_done_at_the_start_does_not_count_as_speed(now: list[float]) -> None:
    """A run, or an attack, that goes on begins far from zero."""
    show = terminal.Show()
    with show.bar(1000):
        for done in (700, 800):
            now[0] += 300
            show.move(done, "at work")
        assert left(show) == pytest.approx(2 * 300)
