"""Readers of encoded pictures: image folders, and parquet tables in the hub's layout."""

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perturblab.data.layouts import Source, relative_path
from perturblab.data.sets import Decoded, Progress, Split, class_mismatch
from perturblab.errors import DataError
from perturblab.system.memory import check_available

Pixels = NDArray[np.uint8]
# Only formats that Pillow decodes itself; EPS, for example, would start another program.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 1 << 26
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_ROWS = 256  # read at once
_MOST_UNPACKED = 100  # times the bytes of a file; encoded pictures do not shrink any more


def decode(data: bytes | None, where: str) -> Pixels:
    """Decode one picture.

    Args:
        data: content of the file.
        where: its path or row, for the message.

    Returns:
        uint8, (H, W) for grey or (H, W, 3) for colour.

    Raises:
        DataError: the picture is corrupt, or neither 8-bit grey nor RGB.
    """
    from PIL import Image

    try:
        with _warnings_as_errors(), Image.open(io.BytesIO(data or b""), formats=_FORMATS) as picture:
            _check_pixels(picture.size)  # from the header: nothing is decoded yet
            pixels: Pixels = np.asarray(picture)
            mode = picture.mode
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(f"{where} is not a readable image ({first_line(error)}); replace or remove it") from error
    if mode not in ("L", "RGB"):
        raise DataError(f"{where} has mode {mode}; expected L (grey) or RGB, 8 bits each: convert it")
    return pixels


@contextmanager
def _warnings_as_errors() -> Iterator[None]:
    """Raise for pictures that Pillow only warns about: a truncated file, a decompression bomb."""
    from PIL.Image import DecompressionBombWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", DecompressionBombWarning)
        yield


def _check_pixels(size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(f"it claims {size[0]}x{size[1]} pixels, expected at most {_MOST_PIXELS}")


def first_line(error: Exception) -> str:
    """Shorten an error's message to its first line; an empty one becomes the name of its type."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def stack(pictures: Iterable[tuple[str, bytes | None]], count: int, text: str, progress: Progress) -> Tensor:
    """Decode pictures of one size into one tensor.

    Args:
        pictures: (path or row, content) of each.
        count: number of pictures, N.
        text: for the progress report.
        progress: called every 1,000 pictures.

    Returns:
        uint8, (N, C, H, W); (0, 1, 1, 1) when there are none.

    Raises:
        DataError: a picture is corrupt, or of another size or mode than the first.
    """
    images = np.empty((0, 1, 1), np.uint8)
    for done, (where, data) in enumerate(pictures):
        pixels = decode(data, where)
        if not done:
            images = _allocate(count, pixels.shape)
        if pixels.shape != images.shape[1:]:
            have, need = (_size_and_mode(shape) for shape in (pixels.shape, images.shape[1:]))
            raise DataError(f"{where} is {have}, expected {need} as the first image: make all images alike")
        images[done] = pixels
        if done % 1000 == 0:
            progress(text, done, count)
    progress(text, count, count)
    return _channels_first(torch.from_numpy(images))


def _allocate(count: int, shape: Sequence[int]) -> Pixels:
    check_available(count * math.prod(shape), f"{count} images of {_size_and_mode(shape)}")
    return np.empty((count, *shape), np.uint8)


def _size_and_mode(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} {'RGB' if len(shape) == 3 else 'grey'}"


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images.unsqueeze(1)


def read_pictures(source: Source, progress: Progress) -> Decoded:
    """Read ``train/CLASS/*.png`` and ``test/CLASS/*.png``.

    Args:
        source: the files.
        progress: called while decoding.

    Returns:
        Images (N, C, H, W); classes in the order of `sort_classes`, which the labels index.

    Raises:
        DataError: train and test have different classes, or a picture is unusable.
    """
    names = {split: [_class_of(path, source.folder) for path in source.files[split]] for split in ("train", "test")}
    classes, test_classes = (sort_classes(set(names[split])) for split in ("train", "test"))
    if classes != test_classes:
        raise DataError(class_mismatch(str(source.folder), classes, test_classes))
    position = {name: label for label, name in enumerate(classes)}
    labels = {split: torch.tensor([position[name] for name in names[split]]) for split in names}
    train, test = (
        Split(_stack_files(source.files[split], split, progress), labels[split]) for split in ("train", "test")
    )
    return Decoded(train, test, classes)


def _stack_files(files: Sequence[Path], split: str, progress: Progress) -> Tensor:
    contents = ((str(path), path.read_bytes()) for path in files)
    return stack(contents, len(files), f"decoding {split} images", progress)


def _class_of(path: Path, folder: Path) -> str:
    return relative_path(path, folder).split("/")[1]


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: as numbers if all are numbers (2 before 10), else as text.

    Args:
        names: class names.

    Returns:
        The names in label order.
    """
    text = sorted(names)
    return tuple(sorted(text, key=int) if all(name.isdecimal() for name in text) else text)
