"""A command of perturblab in a forked process that its parent watches.

The parent has imported torch already. Wrappers in the child write its progress to shared memory; perturblab itself is
unchanged.
"""

import itertools
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from perturblab.cli import config_file, main
from perturblab.cli import train as command
from perturblab.runs import checkpoint, train
from perturblab.system import files
from perturblab.training import loop

PHASES = ("none", "start", "training step", "evaluation", "checkpoint write", "metrics and picture", "finish", "end")
NONE, START, STEP, EVALUATION, WRITE, SAVE, FINISH, END = range(len(PHASES))
STEPS = 1 << 17  # the most steps whose times are kept
PATIENCE = 300.0  # seconds until a child counts as hanging


class Board:
    """Shared memory with the phase of the child and the time of each step."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (STEPS + 8))

    def _get(self, place: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * place)[0])

    def _set(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)

    @property
    def phase(self) -> int:
        """The current phase, an index into `PHASES`."""
        return self._get(0)

    @phase.setter
    def phase(self, value: int) -> None:
        self._set(0, value)

    @property
    def first(self) -> int:
        """The step at which the child started; -1 until it is known."""
        return self._get(1) - 1

    @property
    def last(self) -> int:
        """The last finished step, counted from the start of the run."""
        return self._get(2)

    @property
    def saved(self) -> int:
        """The number of checkpoints written."""
        return self._get(3)

    def begin(self, step: int) -> None:
        """Note the step at which the child starts."""
        self._set(1, step + 1)
        self.done(step)

    def done(self, step: int) -> None:
        """Note a finished step and its time."""
        struct.pack_into("d", self._memory, 8 * (8 + step % STEPS), time.monotonic())
        self._set(2, step)

    @property
    def kept(self) -> int:
        """The step of the last checkpoint; the first step without one."""
        return self._get(4) if self.saved else max(self.first, 0)

    def written(self) -> None:
        """Note a written checkpoint."""
        self._set(4, self.last)
        self._set(3, self.saved + 1)

    def time(self, step: int) -> float:
        """Give the time at which a step was finished."""
        return float(struct.unpack_from("d", self._memory, 8 * (8 + step % STEPS))[0])

    def longest(self) -> float:
        """Give the seconds of the longest step, including saves and evaluations in it."""
        times = [self.time(step) for step in range(max(self.first, 0), self.last + 1)]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


class Child:
    """A process that runs a command.

    Args:
        argv: of `perturblab`.
        log: where its output goes.
        every: seconds between two checkpoints; perturblab's interval by default.
        before: called first in the child: to set limits, another user, another clock.
        run: the function to call; `main` by default.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        every: float | None = None,
        before: Callable[[], None] = lambda: None,
        run: Callable[[Sequence[str]], int] = main.main,
    ) -> None:
        self.board, self.log, self.code = Board(), log, None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run_and_exit(argv, log, self.board, every, before, run)

    code: int | None

    @property
    def output(self) -> list[str]:
        """The lines of its output."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def poll(self) -> int | None:
        """Give its exit code, or minus the signal that ended it; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for its end.

        Raises:
            TimeoutError: it hangs; it is killed.
        """
        end = time.monotonic() + patience
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a child was still running after {patience:g} s, in {PHASES[self.board.phase]}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Send a signal if it is still running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def until(self, reached: Callable[[Board], bool], patience: float = PATIENCE) -> bool:
        """Wait until the board satisfies a condition; False if the child ends before."""
        end = time.monotonic() + patience
        while not reached(self.board):
            if self.poll() is not None:
                return False
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a child did not get there in {patience:g} s")
            time.sleep(0.0002)
        return True


def _run_and_exit(
    argv: Sequence[str],
    log: Path,
    board: Board,
    every: float | None,
    before: Callable[[], None],
    run: Callable[[Sequence[str]], int],
) -> None:
    """Run the command and exit; it never returns, as the child must not continue the work of its parent."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(place, 1)
        os.dup2(place, 2)
        _watch(board, every)
        before()
        code = run(argv)
    except BaseException:  # as the interpreter does at exit
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(board: Board, every: float | None) -> None:
    """Wrap functions of perturblab, so that the board shows the phase."""
    if every is not None:
        files.SAVE_EVERY = every
    _around(command, config_file.training_config, board, START, stay=True)
    _around(train, train._execute, board, STEP)
    _around(train, train._row, board, EVALUATION)
    _around(train, train.save_run, board, SAVE)
    _around(checkpoint, checkpoint.save_fixed, board, WRITE)
    _around(checkpoint, checkpoint.save_checkpoint, board, WRITE, after=board.written)
    _around(train, train._finish, board, FINISH)
    real = loop.train

    def trained(model: Any, images: Any, labels: Any, recipe: Any, state: Any, hooks: loop.Hooks) -> Iterator[Any]:
        steps = loop.steps_per_epoch(len(labels), recipe)
        board.begin(state.epoch * steps + state.step)

        def counted(state: Any) -> bool:
            board.done(state.epoch * steps + state.step)
            return hooks.after_step(state)

        yield from real(model, images, labels, recipe, state, replace(hooks, after_step=counted))

    loop.train = trained


def _around(
    module: ModuleType,
    real: Callable[..., Any],
    board: Board,
    phase: int,
    *,
    stay: bool = False,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Wrap the function of this name in the module that calls it."""
    if getattr(module, real.__name__, None) is not real:
        raise RuntimeError(f"{module.__name__} does not have {real.__name__}")

    def wrapped(*args: Any, **options: Any) -> Any:
        outer, board.phase = board.phase, phase
        result = real(*args, **options)
        after()
        board.phase = phase if stay else outer
        return result

    setattr(module, real.__name__, wrapped)


@contextmanager
def ending(child: Child) -> Iterator[Child]:
    """End the child with the block, whatever happens inside."""
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send(signal.SIGKILL)
            child.wait()
