"""Readers of other tools' files: CIFAR's pickled batches and MNIST's idx files."""

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perturblab.data.known import number_classes
from perturblab.data.layouts import Source
from perturblab.data.sets import Decoded, Progress, Split
from perturblab.errors import DataError
from perturblab.system.memory import check_available

# All that a pickled numpy array needs. `_reconstruct` comes from an array, because the name of its module varies.
_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_MOST_INFLATED = 1032  # bytes per deflated byte, the limit of the format


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits numpy's array constructors only, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ADMITTED:
            raise DataError(f"asks for {module}.{name}")
        return _ADMITTED[module, name]


def _unpickle(path: Path) -> dict[object, object]:
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        # Python 2 wrote the original files: their keys are bytes.
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except DataError as error:
        raise DataError(
            f"{path} {error}; expected numpy arrays and plain values only: it may be hostile, fetch it again"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{path} is not a readable CIFAR batch ({type(error).__name__}); fetch it again") from error


def read_cifar(source: Source, progress: Progress) -> Decoded:
    """Read CIFAR-10's or CIFAR-100's pickled batches.

    Args:
        source: the files.
        progress: called once per split.

    Returns:
        Images (N, 3, 32, 32) and the (fine) labels and class names.

    Raises:
        DataError: a file is damaged, hostile or not a CIFAR batch.
    """
    fine = "fine_" if source.kind == "cifar100" else ""
    meta = source.files["meta"][0]
    names = _entry(_unpickle(meta), f"{fine}label_names", meta)
    classes = tuple(map(_text, names if isinstance(names, list) else ()))
    train, test = (_batches(source.files[split], f"{fine}labels", split, progress) for split in ("train", "test"))
    return Decoded(train, test, classes)


def _batches(files: Sequence[Path], label_name: str, split: str, progress: Progress) -> Split:
    progress(f"reading {split} images", 0, 1)
    parts = [_batch(path, label_name) for path in files]
    return Split(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def _text(name: object) -> str:
    if not isinstance(name, bytes | str):
        raise DataError(f"a class name is a {type(name).__name__}; expected text: fetch batches.meta again")
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _entry(content: dict[object, object], name: str, path: Path) -> object:
    if name not in content:
        raise DataError(f"{path} has no entry {name!r}; expected a CIFAR batch: fetch it again")
    return content[name]


def _batch(path: Path, label_name: str) -> Split:
    content = _unpickle(path)
    pixels, labels = _entry(content, "data", path), _entry(content, label_name, path)
    if not _are_labels(labels) or not _are_pixels(pixels, len(labels)):
        raise DataError(
            f"{path} does not hold N x 3072 bytes and N whole labels; expected a CIFAR batch: fetch it again"
        )
    images = torch.from_numpy(np.array(pixels)).view(-1, 3, 32, 32)
    return Split(images, torch.tensor(labels, dtype=torch.int64))


def _are_labels(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(label) is int and abs(label) < 2**31 for label in value)


def _are_pixels(value: object, count: int) -> TypeGuard[NDArray[np.uint8]]:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.shape == (count, 3 * 32 * 32)


def read_idx(source: Source, progress: Progress) -> Decoded:
    """Read MNIST's idx files, plain or gzipped.

    Args:
        source: the files.
        progress: called once per split.

    Returns:
        Images (N, 1, H, W); classes "0", "1", ... up to the highest label.

    Raises:
        DataError: a file is damaged, or its header does not match its length.
    """
    train, test = (_idx_split(source.files[split], split, progress) for split in ("train", "test"))
    labels = torch.cat((train.labels, test.labels))
    return Decoded(train, test, number_classes(int(labels.max()) + 1 if len(labels) else 0))


def _idx_split(files: Sequence[Path], split: str, progress: Progress) -> Split:
    progress(f"reading {split} images", 0, 1)
    images, labels = _idx(files[0], 3), _idx(files[1], 1)
    if len(images) != len(labels):
        raise DataError(f"{files[0]} has {len(images)} images, {files[1].name} {len(labels)} labels; fetch both again")
    return Split(images.unsqueeze(1), labels.long())


def _idx(path: Path, ndim: int) -> Tensor:
    """Read an idx file of unsigned bytes: uint8, (N, ...) with ``ndim`` dimensions."""
    start = 4 + 4 * ndim
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            shape = _idx_shape(file.read(start), ndim, path)
            _check_length(path, start + math.prod(shape))
            check_available(math.prod(shape), f"the {math.prod(shape)} bytes of {path}")
            content = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not readable ({error}); fetch it again") from error
    if len(content) != math.prod(shape):
        raise DataError(f"{path} claims {math.prod(shape)} values but has {len(content)}; fetch it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(shape)


def _idx_shape(header: bytes, ndim: int, path: Path) -> tuple[int, ...]:
    if len(header) < 4 + 4 * ndim or header[:4] != bytes((0, 0, 8, ndim)):
        raise DataError(f"{path} is not an idx file of {ndim}-dimensional bytes; fetch it again")
    return struct.unpack(f">{ndim}I", header[4:])


def _check_length(path: Path, claimed: int) -> None:
    """Compare the size in the header with that of the file, before memory is allocated."""
    size = path.stat().st_size
    if path.suffix == ".gz":
        with path.open("rb") as file:  # gzip ends with the unpacked length
            file.seek(-4, io.SEEK_END)
            size = min(struct.unpack("<I", file.read(4))[0], _MOST_INFLATED * size)
    if size != claimed:
        raise DataError(f"{path} claims {claimed} bytes in its header but has {size}; fetch it again")
