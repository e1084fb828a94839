"""Processes that are killed at random moments, and processes that are asked to stop."""

import shutil
import signal
import time

from faults.child import END, EVALUATION, FINISH, NONE, PHASES, SAVE, START, STEP, WRITE, Board, Child, ended
from faults.runs import EVERY, Straight, World, differences, finished, go_on, in_one_line, torn
from faults.table import Row

KILLED_IN = (START, STEP, EVALUATION, WRITE, SAVE, FINISH)
AIMS = (START, STEP, EVALUATION, WRITE, SAVE), (2, 7, 1, 6, 2)  # the last ones are weights
INTERRUPTED = 130


def aimed(world: World, child: Child, phase: int) -> None:
    """Wait for a random moment; in this phase, if it lasts long enough."""
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
    """SIGKILL at random moments, again and again in one run, and then to the end."""
    rows = {phase: Row(f"SIGKILL: {PHASES[phase]}") for phase in KILLED_IN}
    folder, verdicts = world.new("killed"), list[tuple[Row, list[str]]]()
    before: Board | None = None
    while len(verdicts) < each:
        phase = FINISH if len(verdicts) == each - 1 else world.random.choices(*AIMS)[0]
        with ended(world.start(go_on(run, folder), every=None if phase == FINISH else EVERY)) as child:
            aimed(world, child, phase)
            child.send(signal.SIGKILL)
            if child.wait() != -signal.SIGKILL:  # the run was faster; it is done, and another one begins
                shutil.rmtree(folder)
                before = None
                continue
        late, seconds = _lost(before, child.board)
        if late:
            verdicts[-1][1].append(late)
        row = rows[START if child.board.phase in (NONE, END) else child.board.phase]
        row.seconds = max(row.seconds, seconds)
        verdicts.append((row, torn(folder) if folder.exists() else []))
        before = child.board if child.board.first >= 0 else before
    end = finished(world, run, folder)
    for row, wrong in verdicts:
        row.judge([*wrong, *end])
    return list(rows.values())


def _lost(before: Board | None, now: Board) -> tuple[str, float]:
    """What a run lost between two processes: a complaint, and seconds of training."""
    if before is None or now.first < 0:
        return "", 0.0
    if now.first < before.kept:
        return f"went on from step {now.first}, and step {before.kept} had been saved", 0.0
    seconds = before.time(before.last) - before.time(max(now.first, before.first)) if now.first < before.last else 0.0
    allowed = EVERY + 2 * before.longest() + 0.05
    return (f"{seconds:.2f} s of training are lost" if seconds > allowed else ""), seconds


def stops(world: World, run: Straight, each: int) -> list[Row]:
    """SIGTERM and SIGINT at random moments: a clean stop, code 130, and the run goes on."""
    return [_stopped(world, run, number, each) for number in (signal.SIGTERM, signal.SIGINT)]


def _stopped(world: World, run: Straight, number: signal.Signals, each: int) -> Row:
    row = Row(f"{number.name}: clean stop, code {INTERRUPTED}")
    folder, verdicts = world.new("stopped"), list[list[str]]()
    before: Board | None = None
    while len(verdicts) < each:
        with ended(world.start(go_on(run, folder), every=EVERY)) as child:
            aimed(world, child, world.random.choices(*AIMS)[0])
            child.send(number)
            if child.wait() == 0:  # it was at its end
                shutil.rmtree(folder)
                before = None
                continue
        wrong = [] if child.code == INTERRUPTED else [f"code {child.code}: {' / '.join(child.said[-2:])}"]
        if before is not None and 0 <= child.board.first != before.last:
            wrong.append(f"stopped after step {before.last}, and went on from step {child.board.first}")
        verdicts.append(wrong + (torn(folder) if folder.exists() else []))
        before = child.board if child.board.first >= 0 else before
    end = finished(world, run, folder)
    for wrong in verdicts:
        row.judge([*wrong, *end])
    return row


def at_sixty_seconds(world: World, kind: list[str]) -> Row:
    """The interval that users have, once: killed some seconds after its first checkpoint."""
    row = Row("SIGKILL after the first checkpoint of a run with the real interval of 60 s")
    folder = world.new("sixty")
    with ended(world.start(["train", *kind, "--nepochs", "1000000", "--out", str(folder)])) as child:
        child.until(lambda board: board.saved == 1)
        time.sleep(5)
        child.send(signal.SIGKILL)
        child.wait()
    lost = child.board.time(child.board.last) - child.board.time(child.board.kept)
    wrong = torn(folder)
    with ended(world.start(["train", "--quiet", "--resume", str(folder)])) as again:
        again.until(lambda board: board.last > max(board.first, 0) >= 0 and board.first >= 0)
        again.send(signal.SIGINT)
        wrong += [] if again.wait() == INTERRUPTED else [f"does not go on: {again.said[-1:]}"]
    if again.board.first != child.board.kept or lost > 60:
        wrong.append(f"went on from step {again.board.first}, saved was {child.board.kept}; {lost:.0f} s lost")
    row.judge(wrong)
    row.seconds = lost
    return row


def two_processes(world: World, run: Straight, each: int) -> Row:
    """A second process on the run of a first: it is refused, and the first does not notice."""
    row = Row("two processes on one run")
    for number in range(each):
        folder = world.new("shared")
        with ended(world.start(["train", *run.flags, "--out", str(folder)], every=EVERY)) as first:
            if number % 2:
                first.until(lambda board: board.saved >= 1)
            second = world.start(go_on(run, folder) if number % 2 else ["train", *run.flags, "--out", str(folder)])
            with ended(second):
                codes = sorted((first.wait(), second.wait()))
            loser = first if first.code else second
            wrong = in_one_line(loser) if codes == [0, 2] else [f"codes {codes}: {first.said[-1:]} {second.said[-1:]}"]
        row.judge(wrong or differences(folder, run.folder))
    return row
