"""Readers of encoded pictures: image folders, and parquet tables in the hub's layout."""

import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perturblab.data.known import numbers
from perturblab.data.layouts import Source, inside
from perturblab.data.sets import Decoded, Progress, Split, other_classes
from perturblab.errors import DataError
from perturblab.system.memory import check_room

Pixels = NDArray[np.uint8]
# Only formats that Pillow decodes by itself: EPS, for one, would start another program.
_FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 1 << 26
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_ROWS = 256  # read at once
_MOST_UNPACKED = 100  # times the bytes of a file; encoded pictures do not shrink any more


class Shard(NamedTuple):
    """A parquet table and what to call it in messages."""

    where: str
    table: Any


def decode(data: bytes | None, where: str) -> Pixels:
    """Decode one picture.

    Args:
        data: the file's content.
        where: its path or row, for the message.

    Returns:
        uint8, (H, W) for grey or (H, W, 3) for colour.

    Raises:
        DataError: the picture is corrupt, or neither 8-bit grey nor RGB.
    """
    from PIL import Image

    try:
        with _no_remarks(), Image.open(io.BytesIO(data or b""), formats=_FORMATS) as picture:
            _check_pixels(picture.size)  # what the header says; nothing is decoded yet
            pixels: Pixels = np.asarray(picture)
            mode = picture.mode
    except Exception as error:  # decoders raise whatever they stumble over: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{where} is no readable image ({_first_line(error)}); replace or remove it") from error
    if mode not in ("L", "RGB"):
        raise DataError(f"{where} is of mode {mode}; expected L (grey) or RGB, 8 bits each: convert it")
    return pixels


@contextmanager
def _no_remarks() -> Iterator[None]:
    """What Pillow only remarks upon, a file cut short or a bomb, is a picture that cannot be used."""
    from PIL.Image import DecompressionBombWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", DecompressionBombWarning)
        yield


def _check_pixels(size: tuple[int, int]) -> None:
    if size[0] * size[1] > _MOST_PIXELS:
        raise ValueError(f"it claims {size[0]}x{size[1]} pixels, expected at most {_MOST_PIXELS}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def stack(pictures: Iterable[tuple[str, bytes | None]], count: int, text: str, progress: Progress) -> Tensor:
    """Decode pictures of one size into one tensor.

    Args:
        pictures: (path or row, content) of each.
        count: how many there are, N.
        text: for the progress report.
        progress: told every 1,000 pictures.

    Returns:
        uint8, (N, C, H, W); (0, 1, 1, 1) when there are none.

    Raises:
        DataError: a picture is corrupt, or of another size or mode than the first.
    """
    images = np.empty((0, 1, 1), np.uint8)
    for done, (where, data) in enumerate(pictures):
        pixels = decode(data, where)
        if not done:
            images = _room(count, pixels.shape)
        if pixels.shape != images.shape[1:]:
            have, need = (_size_and_mode(shape) for shape in (pixels.shape, images.shape[1:]))
            raise DataError(f"{where} is {have}, expected {need} as the first image: make all images alike")
        images[done] = pixels
        if done % 1000 == 0:
            progress(text, done, count)
    progress(text, count, count)
    return _channels_first(torch.from_numpy(images))


def _room(count: int, shape: Sequence[int]) -> Pixels:
    what = f"{count} images of {_size_and_mode(shape)}"
    check_room(count * math.prod(shape), what)
    return np.empty((count, *shape), np.uint8)


def _size_and_mode(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} {'RGB' if len(shape) == 3 else 'grey'}"


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous() if images.ndim == 4 else images.unsqueeze(1)


def read_pictures(source: Source, progress: Progress) -> Decoded:
    """Read ``train/CLASS/*.png`` and ``test/CLASS/*.png``.

    Args:
        source: the files.
        progress: told while decoding.

    Returns:
        Images (N, C, H, W); classes in the order of `in_order`, labels their position in it.

    Raises:
        DataError: train and test have other classes, or a picture is unusable.
    """
    names = {split: [_class_of(path, source.folder) for path in source.files[split]] for split in ("train", "test")}
    classes, others = (in_order(set(names[split])) for split in ("train", "test"))
    if classes != others:
        raise DataError(other_classes(str(source.folder), classes, others))
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
    return inside(path, folder).split("/")[1]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: as numbers when all are numbers, so that 2 comes before 10, else as text.

    Args:
        names: class names.

    Returns:
        The names in label order.
    """
    text = sorted(names)
    return tuple(sorted(text, key=int) if all(name.isdecimal() for name in text) else text)


def read_parquet(source: Source, progress: Progress) -> Decoded:
    """Read parquet files in the hub's layout.

    Args:
        source: the files.
        progress: told while decoding.

    Returns:
        Images (N, C, H, W), in the order of the rows.

    Raises:
        DataError: a file is unreadable, lacks the columns, or holds an unusable picture or label.
    """
    tables = {split: [_shard(path) for path in source.files[split]] for split in ("train", "test")}
    return read_tables(tables, str(source.folder), progress)


def _shard(path: Path) -> Shard:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return Shard(str(path), _read_within(file, path.stat().st_size))
    except Exception as error:  # a damaged file makes pyarrow raise OSError, ArrowInvalid, or others
        raise DataError(f"{path} is no readable parquet file ({_first_line(error)}); fetch it again") from error


def _read_within(file: Any, size: int) -> Any:
    """A table that is no bomb: what repeats itself takes hardly a byte in the file, and any number of them here."""
    import pyarrow

    rows, batches, most = file.metadata.num_rows, [], _MOST_UNPACKED * size
    if rows > size:
        raise ValueError(f"it claims {rows} rows in {size} bytes")
    for batch in file.iter_batches(batch_size=_ROWS):
        batches.append(batch)
        most -= batch.nbytes
        if most < 0:
            raise ValueError(f"its {size} bytes unpack to more than {_MOST_UNPACKED} times as many")
    return pyarrow.Table.from_batches(batches, schema=file.schema_arrow)


def read_tables(tables: Mapping[str, Sequence[Shard]], where: str, progress: Progress) -> Decoded:
    """Decode tables with an image column (structs of bytes and path) and a label column.

    Args:
        tables: "train" and "test" -> tables.
        where: the source, for messages.
        progress: told while decoding.

    Returns:
        Images (N, C, H, W), in the order of the rows.

    Raises:
        DataError: a column is missing, the class names differ, or a picture or label is unusable.
    """
    values = {split: [value for shard in shards for value in _labels(shard)] for split, shards in tables.items()}
    classes = _classes(tables, values, where)
    labels = {split: _as_labels(values[split], classes, f"the {split} split of {where}") for split in tables}
    train, test = (Split(_stack_rows(tables[split], split, progress), labels[split]) for split in ("train", "test"))
    return Decoded(train, test, classes)


def _stack_rows(shards: Sequence[Shard], split: str, progress: Progress) -> Tensor:
    pictures = (picture for shard in shards for picture in _rows(shard))
    return stack(pictures, sum(len(shard.table) for shard in shards), f"decoding {split} images", progress)


def _column(shard: Shard, names: Sequence[str]) -> str:
    there = shard.table.column_names
    for name in names:
        if name in there:
            return name
    raise DataError(
        f"{shard.where} has the columns {', '.join(there)}; expected {' or '.join(names)}: name one of them so"
    )


def _rows(shard: Shard) -> Iterable[tuple[str, bytes | None]]:
    column = _column(shard, _IMAGE_COLUMNS)
    start = 0
    for chunk in shard.table.column(column).chunks:
        if "bytes" not in [field.name for field in getattr(chunk.type, "fields", [])]:
            raise DataError(f"{shard.where} has {chunk.type} in {column}; expected a struct of bytes and path")
        for row, data in enumerate(chunk.field("bytes").to_pylist(), start):
            yield f"row {row} of {shard.where}", data
        start += len(chunk)


def _labels(shard: Shard) -> list[Any]:
    labels: list[Any] = shard.table.column(_column(shard, _LABEL_COLUMNS)).to_pylist()
    for row, label in enumerate(labels):
        if not isinstance(label, int | str) or (isinstance(label, int) and abs(label) >= 2**31):
            raise DataError(f"row {row} of {shard.where} has the label {label!r}; expected a whole number or a name")
    return labels


def _classes(tables: Mapping[str, Sequence[Shard]], values: Mapping[str, list[Any]], where: str) -> tuple[str, ...]:
    train, test = (_class_names(tables[split], values[split]) for split in ("train", "test"))
    if train is None and test is None:
        whole = [value for group in values.values() for value in group if isinstance(value, int)]
        return numbers(max(whole, default=-1) + 1)
    if train != test:
        raise DataError(other_classes(where, train or (), test or ()))
    return train or ()


def _class_names(shards: Sequence[Shard], values: list[Any]) -> tuple[str, ...] | None:
    if any(isinstance(value, str) for value in values):
        return in_order(set(map(str, values)))
    for shard in shards:
        if names := _stored_names(shard):
            return names
    return None


def _stored_names(shard: Shard) -> tuple[str, ...]:
    """The class names that `datasets` keeps in a table's metadata."""
    stored = (shard.table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(stored).get("info", {}).get("features", {})
        return tuple(map(str, features.get(_column(shard, _LABEL_COLUMNS), {}).get("names") or ()))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{shard.where} has unreadable metadata ({_first_line(error)}); fetch it again") from error


def _as_labels(values: list[Any], classes: tuple[str, ...], where: str) -> Tensor:
    if all(isinstance(value, int) for value in values):
        return torch.tensor(values, dtype=torch.int64)
    position = {name: label for label, name in enumerate(classes)}
    try:
        return torch.tensor([position[str(value)] for value in values])
    except KeyError as error:
        raise DataError(f"{where} has the label {error}; expected one of {', '.join(classes)}") from error
