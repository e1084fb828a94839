"""Files: their places, atomic writes, locks."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from perturblab.errors import UserError

SAVE_EVERY = 60.0  # seconds between two saves: the work that a crash can lose
_PARTS = ".*.part"  # unfinished files of killed processes
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder() -> Path:
    """Give the folder of decoded images and compiled kernels.

    Returns:
        ``$PERTURBLAB_CACHE``, or ``~/.cache/perturblab``; it may be deleted at any time.
    """
    return Path(os.environ.get("PERTURBLAB_CACHE") or Path.home() / ".cache" / "perturblab")


def expand_home(path: str | Path) -> Path:
    """Replace ``~`` by the home folder; the path of an unknown user stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def from_json(text: str, **options: Any) -> Any:
    """Parse JSON as `json.loads`; raise ValueError for an unpaired surrogate, which cannot be encoded as UTF-8."""
    value = json.loads(text, **options)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def write_atomically(
    path: Path, content: bytes, *, verify: Callable[[Path], object] | None = None, previous: Path | None = None
) -> None:
    """Write a file in one step: a reader sees the old content or the new one, never a part, also after a crash.

    Args:
        path: the file; missing folders are made.
        content: all of it.
        verify: reads the new file before it replaces the old one; an exception from it keeps the old file.
        previous: new name of the old file, if there is one; both names exist at every moment.

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
    """Give a file a second name, whose old file is replaced; without hard links, rename the file."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.part")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
    except OSError:
        path.replace(previous)
        return
    link.replace(previous)
    link.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def sweep(folder: Path) -> None:
    """Remove unfinished files of killed processes; the folder must be locked."""
    for part in folder.glob(_PARTS):
        with contextlib.suppress(OSError):
            part.unlink()


def is_part(path: Path) -> bool:
    """Say whether a file is the unfinished one of a killed process."""
    return path.match(_PARTS)


def stamp(path: Path) -> tuple[int, ...] | None:
    """Give an identity for one version of a file: inode, size, modification time; None without a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _sync_folder(folder: Path) -> None:
    """Write a folder to disk, and with it the renames inside; some file systems cannot, and need not."""
    with contextlib.suppress(OSError), _open(folder) as handle:
        os.fsync(handle)


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Lock a folder against other processes inside the block; the lock leaves no file behind.

    Args:
        folder: made if it is missing.
        busy: message of the error if another process holds the lock.
        shared: admit other processes that share the lock.

    Raises:
        UserError: another process holds the lock.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _open(folder) as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # fails, and stays, if anything was written
