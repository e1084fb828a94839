"""Where files lie, and files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

from perturblab.errors import UserError


def cache_folder() -> Path:
    """Where decoded images and compiled kernels are kept.

    Returns:
        ``$PERTURBLAB_CACHE``, or ``~/.cache/perturblab``; it may be deleted at any time.
    """
    return Path(os.environ.get("PERTURBLAB_CACHE") or Path.home() / ".cache" / "perturblab")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Args:
        path: the file; missing folders are made.
        content: all of it.

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
        part.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{'/'.join(path.parts[-2:])} cannot be written ({reason}), expected a writable folder; choose another"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
