"""A command of perturblab in a process of its own, forked from one that has torch already, and watched from outside.

The product knows nothing of this: what it is doing is written to shared memory by wrappers that only the child has.
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
from pathlib import Path
from typing import Any

from perturblab.cli import main
from perturblab.runs import checkpoint, train
from perturblab.system import files
from perturblab.training import loop

PHASES = ("none", "start", "training step", "evaluation", "checkpoint write", "metrics and picture", "finish", "end")
NONE, START, STEP, EVALUATION, WRITE, SAVE, FINISH, END = range(len(PHASES))
STEPS = 1 << 17  # whose times are remembered
PATIENCE = 300.0  # seconds after which a child hangs


class Board:
    """Shared memory: what the child is doing, and when each step of the run was done."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (STEPS + 8))

    def _get(self, place: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * place)[0])

    def _set(self, place: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, value)

    @property
    def phase(self) -> int:
        """One of `PHASES`, as it was last."""
        return self._get(0)

    @phase.setter
    def phase(self, value: int) -> None:
        self._set(0, value)

    @property
    def first(self) -> int:
        """The step that the child began with; -1 before it is known."""
        return self._get(1) - 1

    @property
    def last(self) -> int:
        """The last step that is done, counted from the start of the run."""
        return self._get(2)

    @property
    def saved(self) -> int:
        """How many checkpoints were written."""
        return self._get(3)

    def begin(self, step: int) -> None:
        """The run stands before this step."""
        self._set(1, step + 1)
        self.done(step)

    def done(self, step: int) -> None:
        """So many steps are done."""
        struct.pack_into("d", self._memory, 8 * (8 + step % STEPS), time.monotonic())
        self._set(2, step)

    @property
    def kept(self) -> int:
        """The step that the last whole checkpoint goes on from; the first one where none was written."""
        return self._get(4) if self.saved else max(self.first, 0)

    def written(self) -> None:
        """One more checkpoint is there."""
        self._set(4, self.last)
        self._set(3, self.saved + 1)

    def time(self, step: int) -> float:
        """When that step was done."""
        return float(struct.unpack_from("d", self._memory, 8 * (8 + step % STEPS))[0])

    def longest(self) -> float:
        """Seconds of the longest step, with what was written or measured in it."""
        times = [self.time(step) for step in range(max(self.first, 0), self.last + 1)]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


class Child:
    """A process that runs a command.

    Args:
        argv: of `perturblab`.
        log: where its output goes.
        every: seconds between two checkpoints; the product's own by default.
        before: called in the child first: limits, another user, another clock.
        cwd: its folder.
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
            _be_the_child(argv, log, self.board, every, before, run)

    code: int | None

    @property
    def said(self) -> list[str]:
        """The lines of its output."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
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
        """A signal, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def until(self, reached: Callable[[Board], bool], patience: float = PATIENCE) -> bool:
        """Wait until the board says so; False where the child ended before."""
        end = time.monotonic() + patience
        while not reached(self.board):
            if self.poll() is not None:
                return False
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"a child did not get there in {patience:g} s")
            time.sleep(0.0002)
        return True


def _be_the_child(
    argv: Sequence[str],
    log: Path,
    board: Board,
    every: float | None,
    before: Callable[[], None],
    run: Callable[[Sequence[str]], int],
) -> None:
    """Never returns: the child must not go on with the work of its parent."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(place, 1)
        os.dup2(place, 2)
        _watch(board, every)
        before()
        code = run(argv)
    except BaseException:  # what the interpreter does at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(board: Board, every: float | None) -> None:
    """Wrap what the command calls, so that the board says what it is doing."""
    if every is not None:
        files.SAVE_EVERY = every
    _around(main, "validated", board, START, stay=True)
    _around(train, "_execute", board, STEP)
    _around(train, "_row", board, EVALUATION)
    _around(train, "save", board, SAVE)
    _around(checkpoint, "save_fixed", board, WRITE)
    _around(checkpoint, "save_checkpoint", board, WRITE, after=board.written)
    _around(train, "_finish", board, FINISH)
    real = loop.train

    def trained(model: Any, images: Any, labels: Any, recipe: Any, state: Any, **given: Any) -> Iterator[Any]:
        steps, after_step = loop.steps_per_epoch(len(labels), recipe), given.pop("after_step")
        board.begin(state.epoch * steps + state.step)

        def counted(state: Any) -> bool:
            board.done(state.epoch * steps + state.step)
            return bool(after_step(state))

        yield from real(model, images, labels, recipe, state, after_step=counted, **given)

    loop.train = trained


def _around(
    module: Any, name: str, board: Board, phase: int, *, stay: bool = False, after: Callable[[], None] = lambda: None
) -> None:
    real = getattr(module, name)

    def wrapped(*args: Any, **given: Any) -> Any:
        outer, board.phase = board.phase, phase
        result = real(*args, **given)
        after()
        board.phase = phase if stay else outer
        return result

    setattr(module, name, wrapped)


@contextmanager
def ended(child: Child) -> Iterator[Child]:
    """Whatever happens inside the block, the child ends with it."""
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send(signal.SIGKILL)
            child.wait()
