"""Processes killed or stopped at random moments."""

import shutil
import signal
import time

from faults.child import END, EVALUATION, FINISH, NONE, PHASES, SAVE, START, STEP, WRITE, Board, Child, ending
from faults.runs import EVERY, Straight, World, check_one_line, differences, finish_run, incomplete_files, next_command
from faults.table import Row

KILLED_IN = (START, STEP, EVALUATION, WRITE, SAVE, FINISH)
AIMS = (START, STEP, EVALUATION, WRITE, SAVE), (2, 7, 1, 6, 2)  # the last ones are weights
INTERRUPTED = 130


def wait_for_moment(world: World, child: Child, phase: int) -> None:
    """Wait for a random moment, if possible in this phase."""
    rng, board = world.random, child.board
    if phase == START:
        child.until(lambda board: board.phase == START)
        time.sleep(rng.uniform(0, 0.3))
    elif phase == STEP:
        saved, more = rng.choice([0, 1, 1]), rng.randint(1, 20)
        child.until(lambda board: board.saved >= saved and board.phase == STEP)
        goal = board.last + more
        child.until(lambda board: board.last >= goal and board.phase == STEP)
    elif phase == FINISH:
        child.until(lambda board: board.phase == FINISH)
        time.sleep(rng.uniform(0, 0.01))
    else:
        saved = rng.choice([0, 0, 1])
        child.until(lambda board: board.saved >= saved and board.phase == phase)
        time.sleep(rng.uniform(0, 0.02))


def kills(world: World, run: Straight, each: int) -> list[Row]:
    """Kill one run at random moments, resume it each time, and finish it."""
    rows = {phase: Row(f"SIGKILL: {PHASES[phase]}") for phase in KILLED_IN}
    folder, verdicts = world.new("killed"), list[tuple[Row, list[str]]]()
    before: Board | None = None
    while len(verdicts) < each:
        phase = FINISH if len(verdicts) == each - 1 else world.random.choices(*AIMS)[0]
        with ending(world.start(next_command(run, folder), every=None if phase == FINISH else EVERY)) as child:
            wait_for_moment(world, child, phase)
            child.send(signal.SIGKILL)
            if child.wait() != -signal.SIGKILL:  # the run ended first: start another one
                shutil.rmtree(folder)
                before = None
                continue
        late, seconds = _lost(before, child.board)
        if late:
            verdicts[-1][1].append(late)
        row = rows[START if child.board.phase in (NONE, END) else child.board.phase]
        row.seconds = max(row.seconds, seconds)
        verdicts.append((row, incomplete_files(folder) if folder.exists() else []))
        before = child.board if child.board.first >= 0 else before
    end = finish_run(world, run, folder)
    for row, wrong in verdicts:
        row.judge([*wrong, *end])
    return list(rows.values())


def _lost(before: Board | None, now: Board) -> tuple[str, float]:
    """Give a complaint and the seconds of training that were lost between two processes of a run."""
    if before is None or now.first < 0:
        return "", 0.0
    if now.first < before.kept:
        return f"went on from step {now.first}, and step {before.kept} had been saved", 0.0
    seconds = before.time(before.last) - before.time(max(now.first, before.first)) if now.first < before.last else 0.0
    allowed = EVERY + 2 * before.longest() + 0.05
    return (f"{seconds:.2f} s of training are lost" if seconds > allowed else ""), seconds


def stops(world: World, run: Straight, each: int) -> list[Row]:
    """Send SIGTERM and SIGINT at random moments: a clean stop, code 130, and the run can be resumed."""
    return [_stopped(world, run, number, each) for number in (signal.SIGTERM, signal.SIGINT)]


def _stopped(world: World, run: Straight, number: signal.Signals, each: int) -> Row:
    row = Row(f"{number.name}: clean stop, code {INTERRUPTED}")
    folder, verdicts = world.new("stopped"), list[list[str]]()
    before: Board | None = None
    while len(verdicts) < each:
        with ending(world.start(next_command(run, folder), every=EVERY)) as child:
            wait_for_moment(world, child, world.random.choices(*AIMS)[0])
            child.send(number)
            if child.wait() == 0:  # the run ended first
                shutil.rmtree(folder)
                before = None
                continue
        wrong = [] if child.code == INTERRUPTED else [f"code {child.code}: {' / '.join(child.output[-2:])}"]
        if before is not None and 0 <= child.board.first != before.last:
            wrong.append(f"stopped after step {before.last}, and went on from step {child.board.first}")
        verdicts.append(wrong + (incomplete_files(folder) if folder.exists() else []))
        before = child.board if child.board.first >= 0 else before
    end = finish_run(world, run, folder)
    for wrong in verdicts:
        row.judge([*wrong, *end])
    return row


def at_sixty_seconds(world: World, kind: list[str]) -> Row:
    """Kill a run with the interval of users, some seconds after its first checkpoint."""
    row = Row("SIGKILL after the first checkpoint of a run with the real interval of 60 s")
    folder = world.new("sixty")
    with ending(world.start(["train", *kind, "--nepochs", "1000000", "--out", str(folder)])) as child:
        child.until(lambda board: board.saved == 1)
        time.sleep(5)
        child.send(signal.SIGKILL)
        child.wait()
    lost = child.board.time(child.board.last) - child.board.time(child.board.kept)
    wrong = incomplete_files(folder)
    with ending(world.start(["train", "--quiet", "--resume", str(folder)])) as again:
        again.until(lambda board: board.last > max(board.first, 0) >= 0 and board.first >= 0)
        again.send(signal.SIGINT)
        wrong += [] if again.wait() == INTERRUPTED else [f"does not go on: {again.output[-1:]}"]
    if again.board.first != child.board.kept or lost > 60:
        wrong.append(f"went on from step {again.board.first}, saved was {child.board.kept}; {lost:.0f} s lost")
    row.judge(wrong)
    row.seconds = lost
    return row


def two_processes(world: World, run: Straight, each: int) -> Row:
    """Start a second process on a run: it is refused, and the first is not disturbed."""
    row = Row("two processes on one run")
    for number in range(each):
        folder = world.new("shared")
        with ending(world.start(["train", *run.flags, "--out", str(folder)], every=EVERY)) as first:
            if number % 2:
                first.until(lambda board: board.saved >= 1)
            second = world.start(
                next_command(run, folder) if number % 2 else ["train", *run.flags, "--out", str(folder)]
            )
            with ending(second):
                codes = sorted((first.wait(), second.wait()))
            loser = first if first.code else second
            wrong = (
                check_one_line(loser)
                if codes == [0, 2]
                else [f"codes {codes}: {first.output[-1:]} {second.output[-1:]}"]
            )
        row.judge(wrong or differences(folder, run.folder))
    return row
