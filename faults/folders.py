"""Folders that are deleted, copied in part, or damaged."""

import shutil
import signal
from pathlib import Path

from faults.child import STEP, ending
from faults.runs import EVERY, Straight, World, check_one_line, copy_run, differences, finish_run, next_command
from faults.table import Row
from perturblab.records import paths

NEEDED = (paths.CHECKPOINT, paths.PREVIOUS)


def deleted(world: World, run: Straight, each: int) -> Row:
    """Delete the folder during training: the run writes it again from memory, or one line says so."""
    row = Row("the run's folder is deleted while it trains")
    for _ in range(each):
        folder = world.new("deleted")
        with ending(world.start(next_command(run, folder), every=EVERY)) as child:
            goal = world.random.randint(1, run.steps // 2)
            child.until(lambda board, goal=goal: board.last >= goal)  # type: ignore[misc]
            shutil.rmtree(folder, ignore_errors=True)
            child.wait()
        if child.code == 0:
            row.judge(differences(folder, run.folder))
        else:
            row.judge(check_one_line(child) or finish_run(world, run, folder))
    return row


def gone(world: World, run: Straight) -> Row:
    """Resume a run that does not exist: one line says so."""
    row = Row("--resume of a run that is gone")
    stopped = _stopped(world, run)
    for name in ("deleted", "emptied", "a file"):
        folder = copy_run(world, stopped)
        shutil.rmtree(folder)
        if name == "emptied":
            folder.mkdir()
        elif name == "a file":
            folder.write_text("nothing")
        with ending(world.start(["train", "--resume", str(folder)])) as child:
            child.wait()
        wrong = check_one_line(child)
        if not wrong and "give the folder of a run" not in child.output[0]:
            wrong = [f"printed {child.output[0]}"]
        row.judge(wrong, told=True)
    return row


def half_copied(world: World, run: Straight, each: int) -> Row:
    """Remove, truncate or change files: the run continues to the same end, or one line says that it cannot."""
    row = Row("a folder half-copied: files missing, cut short, a bit turned")
    stopped = _stopped(world, run)
    names = sorted(path.name for path in stopped.iterdir())
    for number in range(each):
        folder = copy_run(world, stopped)
        spoilt = [names[number]] if number < len(names) else world.random.sample(names, world.random.randint(1, 4))
        for name in spoilt:
            _spoil(world, folder / name, number % 3)
        alive = any(name not in spoilt for name in NEEDED) and paths.MASKS not in spoilt
        with ending(world.start(["train", "--quiet", "--nthreads", "1", "--resume", str(folder)])) as child:
            child.wait()
        damage = f"{('missing', 'cut short', 'a bit turned')[number % 3]}: {', '.join(spoilt)}: "
        if child.code == 0:  # also if no reader uses the bit
            wrong = differences(folder, run.folder)
        else:
            wrong = [f"does not go on: {child.output[-1:]}"] if alive else check_one_line(child)
        row.judge([damage + text for text in wrong], told=child.code != 0)
    return row


def _stopped(world: World, run: Straight) -> Path:
    """Make a run that was stopped cleanly twice, so that it has all kinds of files."""
    folder = world.new("whole")
    for part in (1, 2):
        with ending(world.start(next_command(run, folder))) as child:
            child.until(lambda board, part=part: board.last >= run.steps * part // 4 and board.phase == STEP)  # type: ignore[misc]
            child.send(signal.SIGTERM)
            child.wait()
    return folder


def _spoil(world: World, path: Path, how: int) -> None:
    content = bytearray(path.read_bytes())
    if how == 0:
        path.unlink()
    elif how == 1:
        path.write_bytes(content[: world.random.randrange(len(content))])
    else:
        content[world.random.randrange(len(content))] ^= 1 << world.random.randrange(8)
        path.write_bytes(content)
