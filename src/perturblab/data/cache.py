"""A cache of decoded images on disk; each entry is named by the content of its source files."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from perturblab.data.sets import Decoded, Split, content_hashes
from perturblab.system.files import cache_folder

VERSION = 1


class _Header(TypedDict):
    classes: list[str]
    hashes: dict[str, str]
    seal: str


def key(kind: str, files: Mapping[str, str]) -> str:
    """Make the name of a cache entry from its source files.

    Args:
        kind: the reader that decodes them.
        files: path inside the source -> sha256 of the file; the paths count, because they may name classes.

    Returns:
        sha256, hexadecimal; it changes with `VERSION`.
    """
    return hashlib.sha256(json.dumps([VERSION, kind, sorted(files.items())]).encode()).hexdigest()


def read(name: str) -> tuple[Decoded, dict[str, str]] | None:
    """Read an entry that `write` made.

    Args:
        name: of the entry.

    Returns:
        The images (N, C, H, W) and the hashes of their content; None for a missing or damaged entry.
    """
    path = _path(name)
    if not path.is_file():
        return None
    try:
        return _read(path, name)
    except Exception:  # a damaged file raises anything: decode and write it again
        return None


def _read(path: Path, name: str) -> tuple[Decoded, dict[str, str]] | None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["header"])
        train, test = (Split(file.get_tensor(f"{x}.images"), file.get_tensor(f"{x}.labels")) for x in ("train", "test"))
    decoded = Decoded(train, test, tuple(header["classes"]))
    # Hashing all of it detects a flipped bit; it costs a tenth of a second on CIFAR-10.
    fresh = _header(decoded, name)
    return (decoded, fresh["hashes"]) if fresh == header else None


def write(name: str, decoded: Decoded) -> dict[str, str]:
    """Write decoded images as one entry, whole or not at all.

    A folder that cannot be written causes a warning: the run continues without a cache.

    Args:
        name: of the entry, a file name without suffix.
        decoded: splits of (N, C, H, W) images.

    Returns:
        The hashes of the content.
    """
    from safetensors import SafetensorError

    header = _header(decoded, name)
    try:
        _write(_path(name), decoded, json.dumps(header))
    except (OSError, SafetensorError) as error:
        warnings.warn(f"cannot cache decoded images: {cache_folder()} is not writable ({error})", stacklevel=2)
    return header["hashes"]


def _write(path: Path, decoded: Decoded, header: str) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    splits = {"train": decoded.train, "test": decoded.test}
    tensors = {f"{x}.images": split.images.contiguous() for x, split in splits.items()}
    tensors |= {f"{x}.labels": split.labels.contiguous() for x, split in splits.items()}
    # Two runs may write at once: each has a temporary folder, and the rename is atomic.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        save_file(tensors, Path(scratch) / path.name, metadata={"header": header})
        os.replace(Path(scratch) / path.name, path)


def _header(decoded: Decoded, name: str) -> _Header:
    classes, hashes = list(decoded.classes), content_hashes(decoded.train, decoded.test)
    # The seal covers what the hashes do not: the class names and the name of the entry.
    seal = hashlib.sha256(json.dumps([name, classes, hashes]).encode()).hexdigest()
    return {"classes": classes, "hashes": hashes, "seal": seal}


def _path(name: str) -> Path:
    return cache_folder() / f"{name}.safetensors"
