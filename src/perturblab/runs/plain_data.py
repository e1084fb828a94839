"""Safety checks on an untrusted tensor file: plain data only, and no larger than the file."""

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DEEPEST = 50
_PLAIN = (str, int, float, bool, type(None))
_KINDS = (dict, OrderedDict, list, tuple, torch.Size)


def check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than the file holds.

    PyTorch writes a zip archive without compression; only a bomb is compressed.

    Args:
        path: the file.

    Raises:
        ValueError: it is not a zip archive, or claims more than it holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError("it is not an archive of PyTorch") from error
    size = path.stat().st_size
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"it claims {claimed} bytes in {size}, expected them uncompressed")


def check_plain(value: Any, size: int) -> None:
    """Refuse values that are not plain data, or that are larger than the file that they came from.

    A pickle can name a list a million times, and let a tensor of one number pass for 10^12 of them.

    Args:
        value: the loaded data.
        size: of the file, in bytes; every value in a file takes at least one byte.

    Raises:
        ValueError: another type, nesting too deep, or more than fits into the file.
    """
    waiting, met = [(value, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        met += 1
        if met > size:
            raise ValueError(f"it holds more than {size} values, its bytes; expected each of them once")
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels; expected plain data")
        if isinstance(value, Tensor):
            _check_tensor(value, size)
        elif type(value) in _KINDS:
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(part, depth + 1) for part in parts]
        elif type(value) not in _PLAIN:
            raise ValueError(f"it holds a {type(value).__name__}; expected plain data")


def _check_tensor(value: Tensor, size: int) -> None:
    if value.layout != torch.strided or value.device.type == "meta" or value.is_quantized:
        raise ValueError(f"it holds a tensor that is {value.layout} on {value.device}; expected plain numbers")
    claimed = max(value.numel() * value.element_size(), value.untyped_storage().nbytes())
    if claimed > size:
        raise ValueError(f"it claims a tensor of {claimed} bytes in {size}; expected no more than there are")
