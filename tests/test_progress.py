"""Progress: the time left is told however long a step takes."""

import functools
import sys

import pytest
from rich.progress import Progress

from perturblab import progress


@pytest.mark.parametrize("step", [0.5, 29.0, 80.0, 2400.0])
def test_the_time_left_is_told_however_long_a_step_takes(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "Progress", functools.partial(Progress, get_time=lambda: now[0]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = progress.Show()
    with show.bar(10):
        assert show._progress is not None
        (task,) = show._progress.tasks
        for done in range(1, 10):
            show.move(done, "at work")
            now[0] += step
            if done > 1:
                assert task.time_remaining == pytest.approx((10 - done) * step, abs=1)


def test_what_is_done_at_the_start_does_not_count_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, or an attack, that goes on begins far from zero."""
    now = [0.0]
    monkeypatch.setattr(progress, "Progress", functools.partial(Progress, get_time=lambda: now[0]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = progress.Show()
    with show.bar(1000):
        assert show._progress is not None
        for done in (700, 800):
            now[0] += 300
            show.move(done, "at work")
        (task,) = show._progress.tasks
        assert task.time_remaining == pytest.approx(2 * 300)
