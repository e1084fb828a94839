"""Records on the disk: read, checked, written atomically."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from perturblab.errors import UserError, one_line
from perturblab.records import store
from perturblab.records.paths import RunFolder
from perturblab.records.record import VERSION, Record
from perturblab.system.files import from_json, write_atomically


def save_record(record: Record, path: Path) -> None:
    """Write a record as JSON, atomically: the file is the old one or the new one, never a part.

    Args:
        record: what to write.
        path: the file, ``record.json`` by custom; missing folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def load_record(path: Path) -> Record:
    """Read a record.

    Args:
        path: the JSON file.

    Returns:
        The record, every field checked.

    Raises:
        UserError: the file is missing, not JSON, of another version, or a field is wrong; names the file and the key.
    """
    return _record(_json(path), path)


def load_all(folder: Path) -> list[Record]:
    """Read every record below a folder: each ``record.json``, and each ``*.json`` with the keys "version" and "counts".

    Args:
        folder: a results folder or a run folder.

    Returns:
        The records, sorted by path; an empty list when there are none.

    Raises:
        UserError: the folder is missing, or a file is not JSON or a broken record (none is left out in silence).
    """
    return [record for _, record in load_with_paths(folder)]


def load_with_paths(folder: Path) -> list[tuple[Path, Record]]:
    """Read every record below a folder, with the file that it is in.

    Args:
        folder: as for `load_all`.

    Returns:
        Path and record, sorted by path.

    Raises:
        UserError: as for `load_all`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder, expected one with records; give the folder of the results")
    files = [(path, _json(path)) for path in sorted(folder.rglob("*.json")) if path.is_file()]
    return [
        (path, _record(value, path))
        for path, value in files
        if path == RunFolder(path.parent).record or (isinstance(value, dict) and {"version", "counts"} <= set(value))
    ]


def _record(value: Any, path: Path) -> Record:
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise UserError(f"{_name(path)}: version is {version}, expected {VERSION}; read it with a matching perturblab")
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{_name(path)}: {_complaint(error)}; repair the file or run again") from error


def _json(path: Path) -> Any:
    try:
        return from_json(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{_name(path)} cannot be read ({reason}), expected a record; give the file of a run"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = _short(str(error))
        raise UserError(
            f"{_name(path)} is not JSON ({reason}), expected a record; repair the file or run again"
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _complaint(error: ValidationError) -> str:
    # Only the first: one sentence, and the next ones are often its consequences.
    first = error.errors(include_url=False)[0]
    key = _short(".".join(str(part) for part in first["loc"]) or "record")
    got = "" if first["type"] in ("missing", "value_error") else f"got {_short(repr(first['input']))}, expected: "
    return f"{key}: {got}{_short(first['msg'], 160)}"


def _short(text: str, limit: int = 60) -> str:
    line = one_line(text)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _name(path: Path) -> str:
    # Every run's file is called record.json, so the folder is what tells them apart.
    return _short("/".join(path.parts[-2:]).replace("//", "/"), 120)


def record_in(folder: Path) -> Record | None:
    """Read the record of a run.

    Args:
        folder: of the run, or of its results.

    Returns:
        The record; None where there is none.

    Raises:
        UserError: it is broken.
    """
    path = RunFolder(folder).record
    return store.load_record(path) if path.is_file() else None
