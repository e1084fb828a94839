"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from perturblab.errors import one_line
from perturblab.system.processes import is_first


class Show:
    """Progress output. Writes to stderr (stdout is for results), and only on rank 0.

    Args:
        quiet: show warnings only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet = quiet or not is_first()
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, emoji=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Write one plain line, above the bar if there is one."""
        self.console.print(one_line(text), markup=False)

    def warn(self, text: str) -> None:
        """Write one line, even when quiet."""
        if is_first():
            sys.stderr.write(f"{one_line(text)}\n")

    @contextmanager
    def bar(self, total: int, done: int = 0) -> Iterator[None]:
        """Show a bar inside the block; only on a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield
            return
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn(compact=True))
        # The speed over the whole time: an epoch, or a batch of AutoAttack, exceeds the usual window of 30 seconds.
        bar = Progress(*columns, console=self.console, transient=True, speed_estimate_period=math.inf)
        with bar as self._progress:
            self._task = self._progress.add_task("", total=total, completed=done)
            yield
        self._progress = None

    def move(self, done: int, text: str) -> None:
        """Move the bar, if there is one."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=text)

    def loading(self, text: str, done: int, total: int) -> None:
        """Report the reading of data: one line at its start, as the bar belongs to training."""
        if done == 0:
            self.say(text)
