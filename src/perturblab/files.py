"""Where files lie, and files that are there whole or not at all."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from perturblab.errors import UserError


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


def write_atomically(
    path: Path, content: bytes, *, verify: Callable[[Path], object] | None = None, previous: Path | None = None
) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Args:
        path: the file; missing folders are made.
        content: all of it.
        verify: reads what was written before it replaces anything; what it raises leaves the old file in its place.
        previous: where the old content goes, if there is any.

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
            path.replace(previous)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{'/'.join(path.parts[-2:])} cannot be written ({reason}), expected a writable folder; choose another"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


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
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Keep every other process out of a folder for as long as this one is at work in it; nothing is left behind.

    Args:
        folder: it is made where it is missing.
        busy: what to tell when another process has it.

    Raises:
        UserError: another process has it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only where nothing was written
