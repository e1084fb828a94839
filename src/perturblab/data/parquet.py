"""Readers of parquet tables in the hub's layout."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perturblab.data.known import number_classes
from perturblab.data.layouts import Source
from perturblab.data.pictures import first_line, sort_classes, stack
from perturblab.data.sets import Decoded, Progress, Split, class_mismatch
from perturblab.errors import DataError

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_ROWS = 256  # read at once
_MOST_UNPACKED = 100  # times the bytes of a file; encoded pictures do not shrink any more


class Shard(NamedTuple):
    """A `pyarrow.Table` and its name in messages."""

    where: str
    table: Any


def read_parquet(source: Source, progress: Progress) -> Decoded:
    """Read parquet files in the hub's layout.

    Args:
        source: the files.
        progress: called while decoding.

    Returns:
        Images (N, C, H, W), in the order of the rows.

    Raises:
        DataError: a file is unreadable, lacks a column, or has an unusable picture or label.
    """
    tables = {split: [_shard(path) for path in source.files[split]] for split in ("train", "test")}
    return read_tables(tables, str(source.folder), progress)


def _shard(path: Path) -> Shard:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return Shard(str(path), _read_within(file, path.stat().st_size))
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid and others
        raise DataError(f"{path} is not a readable parquet file ({first_line(error)}); fetch it again") from error


def _read_within(file: Any, size: int) -> Any:
    """Read a table, but no bomb: repeated values take hardly a byte in the file and any number in memory."""
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
        progress: called while decoding.

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
    columns = shard.table.column_names
    for name in names:
        if name in columns:
            return name
    raise DataError(f"{shard.where} has the columns {', '.join(columns)}; expected {' or '.join(names)}: rename one")


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
        return number_classes(max(whole, default=-1) + 1)
    if train != test:
        raise DataError(class_mismatch(where, train or (), test or ()))
    return train or ()


def _class_names(shards: Sequence[Shard], values: list[Any]) -> tuple[str, ...] | None:
    if any(isinstance(value, str) for value in values):
        return sort_classes(set(map(str, values)))
    for shard in shards:
        if names := _stored_names(shard):
            return names
    return None


def _stored_names(shard: Shard) -> tuple[str, ...]:
    """Read the class names that `datasets` stores in a table's metadata."""
    stored = (shard.table.schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(stored).get("info", {}).get("features", {})
        return tuple(map(str, features.get(_column(shard, _LABEL_COLUMNS), {}).get("names") or ()))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"{shard.where} has unreadable metadata ({first_line(error)}); fetch it again") from error


def _as_labels(values: list[Any], classes: tuple[str, ...], where: str) -> Tensor:
    if all(isinstance(value, int) for value in values):
        return torch.tensor(values, dtype=torch.int64)
    position = {name: label for label, name in enumerate(classes)}
    try:
        return torch.tensor([position[str(value)] for value in values])
    except KeyError as error:
        raise DataError(f"{where} has the label {error}; expected one of {', '.join(classes)}") from error
