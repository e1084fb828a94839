"""Where files lie, and files that are there whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perturblab.errors import UserError

SAVE_EVERY = 60.0  # seconds of work between two writings of what a stop would lose
_PARTS = ".*.part"  # what a killed process leaves of a file that it was about to write
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder() -> Path:
    """Where decoded images and compiled kernels are kept.

    Returns:
        ``$PERTURBLAB_CACHE``, or ``~/.cache/perturblab``; it may be deleted at any time.
    """
    return Path(os.environ.get("PERTURBLAB_CACHE") or Path.home() / ".cache" / "perturblab")


def expanded(path: str | Path) -> Path:
    """Put a home folder in the place of ``~``; where there is no such user, the path stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def from_json(text: str, **given: Any) -> Any:
    """Parse JSON as `json.loads`; half a character, which no file or page can hold again, is a ValueError."""
    value = json.loads(text, **given)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def write_atomically(
    path: Path, content: bytes, *, verify: Callable[[Path], object] | None = None, previous: Path | None = None
) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Args:
        path: the file; missing folders are made.
        content: all of it.
        verify: reads what was written before it replaces anything; what it raises leaves the old file in its place.
        previous: where the old content goes, if there is any; both names are there at every moment.

    Raises:
        UserError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(part)
        if previous is not None and path.exists():
            _keep(path, previous)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "make room, or choose another folder" if error.errno in _FULL else "choose another"
        raise UserError(f"{path} cannot be written ({reason}), expected a writable folder; {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, in the place of what had it; where files have one name only, move it."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.part")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
    except OSError:
        path.replace(previous)
        return
    link.replace(previous)
    link.unlink(missing_ok=True)  # it stays where both were one file already


def sweep(folder: Path) -> None:
    """Remove what killed processes have left of files that they were about to write; the folder must be locked."""
    for part in folder.glob(_PARTS):
        with contextlib.suppress(OSError):
            part.unlink()


def is_part(path: Path) -> bool:
    """Say whether a file is one that a killed process had begun to write."""
    return path.match(_PARTS)


def stamp(path: Path) -> tuple[int, ...] | None:
    """What tells one writing of a file from the next; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is; some file systems cannot do that, and need not."""
    with contextlib.suppress(OSError), _opened(folder) as handle:
        os.fsync(handle)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Keep every other process out of a folder for as long as this one is at work in it; nothing is left behind.

    Args:
        folder: it is made where it is missing.
        busy: what to tell when another process has it.
        shared: let others in that share it too.

    Raises:
        UserError: another process has it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder) as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where nothing was written
