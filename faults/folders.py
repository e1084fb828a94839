"""Folders that are deleted, copied by half, or spoilt."""

import shutil
import signal
from pathlib import Path

from faults.child import STEP, ended
from faults.runs import EVERY, Straight, World, copied, differences, finished, go_on, in_one_line
from faults.table import Row
from perturblab.records import paths

NEEDED = (paths.CHECKPOINT, paths.PREVIOUS)


def deleted(world: World, run: Straight, each: int) -> Row:
    """The folder of a run is deleted while it trains: it is written anew from memory, or one line says so."""
    row = Row("the run's folder is deleted while it trains")
    for _ in range(each):
        folder = world.new("deleted")
        with ended(world.start(go_on(run, folder), every=EVERY)) as child:
            goal = world.random.randint(1, run.steps // 2)
            child.until(lambda board, goal=goal: board.last >= goal)  # type: ignore[misc]
            shutil.rmtree(folder, ignore_errors=True)
            child.wait()
        if child.code == 0:
            row.judge(differences(folder, run.folder))
        else:
            row.judge(in_one_line(child) or finished(world, run, folder))
    return row


def gone(world: World, run: Straight) -> Row:
    """A run that was deleted, or never was, cannot be resumed."""
    row = Row("--resume of a run that is gone")
    stopped = _stopped(world, run)
    for name in ("deleted", "emptied", "a file"):
        folder = copied(world, stopped)
        shutil.rmtree(folder)
        if name == "emptied":
            folder.mkdir()
        elif name == "a file":
            folder.write_text("nothing")
        with ended(world.start(["train", "--resume", str(folder)])) as child:
            child.wait()
        wrong = in_one_line(child)
        if not wrong and "give the folder of a run" not in child.said[0]:
            wrong = [f"told {child.said[0]}"]
        row.judge(wrong, told=True)
    return row


def half_copied(world: World, run: Straight, each: int) -> Row:
    """Files missing, cut short or with a bit turned: it goes on to the same end, or one line says that it cannot."""
    row = Row("a folder half-copied: files missing, cut short, a bit turned")
    stopped = _stopped(world, run)
    names = sorted(path.name for path in stopped.iterdir())
    for number in range(each):
        folder = copied(world, stopped)
        spoilt = [names[number]] if number < len(names) else world.random.sample(names, world.random.randint(1, 4))
        for name in spoilt:
            _spoil(world, folder / name, number % 3)
        alive = any(name not in spoilt for name in NEEDED) and paths.MASKS not in spoilt
        with ended(world.start(["train", "--quiet", "--nthreads", "1", "--resume", str(folder)])) as child:
            child.wait()
        what = f"{('missing', 'cut short', 'a bit turned')[number % 3]}: {', '.join(spoilt)}: "
        if child.code == 0:  # also where the bit was one that nothing reads
            wrong = differences(folder, run.folder)
        else:
            wrong = [f"does not go on: {child.said[-1:]}"] if alive else in_one_line(child)
        row.judge([what + text for text in wrong], told=child.code != 0)
    return row


def _stopped(world: World, run: Straight) -> Path:
    """A run that was stopped cleanly in the middle, twice, so that all its files are there."""
    folder = world.new("whole")
    for part in (1, 2):
        with ended(world.start(go_on(run, folder))) as child:
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
