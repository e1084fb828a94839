"""Full disks and read-only folders: on a separate mount, or as another user."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.child import ending
from faults.runs import EVERY, Straight, World, check_one_line, finish_run, incomplete_files, next_command
from faults.table import Row

NOBODY = 65534
_NO_ROOT = "only root may mount a disk or become another user"


@contextmanager
def small_disk(world: World, size: str) -> Iterator[Path | None]:
    """Mount a small disk in memory; None if this user may not mount one."""
    place = world.new("disk")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_full(world: World, run: Straight, each: int) -> Row:
    """Fill the disk at every stage of a run; with room again the run continues."""
    row = Row("disk full (a mount of its own)")
    need = sum(path.stat().st_size for path in run.folder.iterdir())
    with small_disk(world, "16m") as disk:
        if disk is None:
            row.skipped = _NO_ROOT
            return row
        total = shutil.disk_usage(disk).free
        for number in range(each):
            folder, filler = disk / f"run{number}", disk / "filler"
            room = round(need * 2.2 * number / each)
            filler.write_bytes(b"x" * (total - room))
            with ending(world.start(next_command(run, folder), every=EVERY)) as child:
                child.wait()
            full = child.code != 0
            wrong = check_one_line(child) if full else []
            if full and not any("No space left on device" in line for line in child.output):
                wrong.append(f"printed {child.output[-1:]}")
            wrong += incomplete_files(folder) if folder.exists() else []
            filler.unlink()
            row.judge(wrong + finish_run(world, run, folder))
            shutil.rmtree(folder)
    return row


def files_too_large(world: World, run: Straight, each: int) -> Row:
    """Limit the file size, so that a write ends in the middle of the file."""
    row = Row("no room (RLIMIT_FSIZE: a write ends in the middle of a file)")
    need = max(path.stat().st_size for path in run.folder.iterdir())
    for number in range(each):
        folder, limit = world.new("limited"), round(need * 1.1 * (number + 0.5) / each)

        def small(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        with ending(world.start(next_command(run, folder), every=EVERY, before=small)) as child:
            child.wait()
        wrong = check_one_line(child) if child.code != 0 else []
        wrong += incomplete_files(folder) if folder.exists() else []
        row.judge(wrong + finish_run(world, run, folder))
    return row


def read_only(world: World, run: Straight, each: int) -> list[Row]:
    """Make the folder read-only, from the start or during the run."""
    return [_read_only_mount(world, run, each), _other_user(world, run, each)]


def _read_only_mount(world: World, run: Straight, each: int) -> Row:
    row = Row("read-only folder (the mount turns read-only while the run trains)")
    with small_disk(world, "16m") as disk:
        if disk is None:
            row.skipped = _NO_ROOT
            return row
        for number in range(each):
            folder = disk / f"run{number}"
            row.judge(
                _revoke_and_restore(world, run, folder, lambda: _remount(disk, "ro"), lambda: _remount(disk, "rw"))
            )
    return row


def _remount(disk: Path, mode: str) -> None:
    """Remount; try again while a file is open for writing."""
    for _ in range(1000):
        if not subprocess.run(
            ["mount", "-o", f"remount,{mode}", str(disk)], capture_output=True, check=False
        ).returncode:
            return
        time.sleep(0.003)
    raise TimeoutError(f"{disk} cannot be made {mode}")


def _other_user(world: World, run: Straight, each: int) -> Row:
    row = Row("read-only folder (of another user: the run is nobody's)")
    if os.geteuid() != 0:
        row.skipped = _NO_ROOT
        return row

    def be_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    for number in range(each):
        above = world.new("theirs")
        above.mkdir(mode=0o755)
        if number % 3 == 0:  # from the start
            with ending(world.start(next_command(run, above / "run"), before=be_nobody)) as child:
                child.wait()
            wrong = check_one_line(child) + (["the folder was made"] if (above / "run").exists() else [])
            row.judge(wrong, told=True)
            continue
        os.chown(above, NOBODY, NOBODY)
        folder = above / "run"

        def close(folder: Path = folder) -> None:
            os.chown(folder, 0, 0)
            folder.chmod(0o555)

        def open_again(folder: Path = folder) -> None:
            os.chown(folder, NOBODY, NOBODY)
            folder.chmod(0o755)

        row.judge(_revoke_and_restore(world, run, folder, close, open_again, be_nobody))
    return row


def _revoke_and_restore(
    world: World,
    run: Straight,
    folder: Path,
    close: Callable[[], None],
    open_again: Callable[[], None],
    before: Callable[[], None] = lambda: None,
) -> list[str]:
    """Revoke the write permission during training, try to resume without it, and restore it."""
    with ending(world.start(next_command(run, folder), every=EVERY, before=before)) as child:
        if not child.until(lambda board: board.saved >= 1):
            return [f"ended too early: {child.output[-1:]}"]
        close()
        child.wait()
    wrong = check_one_line(child)
    with ending(world.start(next_command(run, folder), every=EVERY, before=before)) as second:
        second.wait()
    wrong += check_one_line(second)
    open_again()
    wrong += incomplete_files(folder)
    return wrong + finish_run(world, run, folder, before=before)
