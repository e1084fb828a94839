"""Files of tensors in a run's folder: written whole or not at all, opened without executing anything."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import safetensors.torch
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from perturblab.errors import UserError
from perturblab.records.paths import RunFolder
from perturblab.runs.plain_data import check_archive, check_plain
from perturblab.system.files import write_atomically
from perturblab.training.loop import StateDict

VERSION = 3
_HELD = {"config": dict, "hashes": dict, "model": dict, "fixed": dict, "state": dict, "rows": list, "correct": list}


class Checkpoint(TypedDict):
    """The contents of a checkpoint: plain data, as ``weights_only=True`` reads them.

    `perturblab.runs.train.save_run` collects them; ``state`` is `perturblab.training.loop.State.state_dict`.

    Attributes:
        config: what was given.
        hashes: of the images.
        model: parameters and buffers; in the file, without those that never change.
        fixed: digests of those, in the file only.
        state: of the training loop.
        rows: metrics, one mapping per epoch.
        correct: audited answers, one bool (N,) per epoch.
        parts: segments of the run.
    """

    config: dict[str, object]
    hashes: dict[str, str]
    model: dict[str, Tensor]
    fixed: NotRequired[dict[str, str]]
    state: StateDict
    rows: list[dict[str, float | None]]
    correct: list[Tensor]
    parts: NotRequired[list[dict[str, JsonValue]]]


def save_checkpoint(path: Path, content: Checkpoint, fixed: Mapping[str, str] | None = None) -> None:
    """Write a checkpoint; the one before is replaced only once the new one is verified, and is kept beside it.

    Args:
        path: the file.
        content: all of it.
        fixed: what `save_fixed` has returned; these parts of "model" are left out.

    Raises:
        UserError: it cannot be written, or reads back as something else.
    """
    fixed = dict(fixed or {})
    model = {name: value for name, value in content["model"].items() if name not in fixed}
    held = {"version": VERSION, **content, "model": model, "fixed": fixed}
    file = io.BytesIO()
    torch.save({**held, "digest": digest(held)}, file)
    write_atomically(path, file.getvalue(), verify=_read, previous=RunFolder(path.parent).previous)


def save_fixed(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write the tensors that never change in a run, such as masks, unless the file holds them already.

    Args:
        folder: of the run.
        tensors: by their names in the net, each of any shape (...).

    Returns:
        The digest of each, for `save_checkpoint`.

    Raises:
        UserError: they cannot be written, or read back as something else.
    """
    digests, path = {name: digest(value) for name, value in tensors.items()}, RunFolder(folder).masks
    try:
        _fixed(path, digests)
    except UserError:
        content = safetensors.torch.save({name: value.detach().contiguous() for name, value in tensors.items()})
        write_atomically(path, content, verify=lambda part: _fixed(part, digests))
    return digests


def _fixed(path: Path, digests: Mapping[str, str]) -> dict[str, Tensor]:
    """Read the tensors that never change, and check them."""
    if not digests:
        return {}
    try:
        if not path.is_file():  # a pipe would block
            raise OSError("it is not a file" if path.exists() else "it is missing")
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} holds the fixed masks, and cannot be read ({error}); restore the file") from error
    if other := [name for name, known in digests.items() if name not in tensors or digest(tensors[name]) != known]:
        raise UserError(f"{path} does not hold the {other[0]} of this run; restore the file")
    return {name: tensors[name] for name in digests}


def digest(value: Any) -> str:
    """Hash plain data with its tensors: types, shapes and every bit.

    Args:
        value: tensors, numbers, strings, None, lists, tuples and dictionaries.

    Returns:
        sha256, in hexadecimal digits.
    """
    digest = hashlib.sha256()
    _feed(value, digest.update)
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[Any], None]) -> None:
    if isinstance(value, Tensor):
        update(f"{value.dtype} {tuple(value.shape)}".encode())
        update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict):
        update(f"{{{len(value)}".encode())
        for key, part in value.items():
            update(repr(key).encode())
            _feed(part, update)
    elif isinstance(value, list | tuple):
        update(f"[{len(value)}".encode())
        for part in value:
            _feed(part, update)
    else:
        update(f"{type(value).__name__} {value!r}".encode())


def load_checkpoint(path: Path, warn: Callable[[str], None] = lambda text: None) -> Checkpoint:
    """Read a checkpoint with ``weights_only=True``; where it is torn or changed, the one before.

    Args:
        path: the file.
        warn: told when the one before is used.

    Raises:
        UserError: it is missing, unreadable, changed, holds more than plain data, or is not what this version writes,
            and so is the one before; or the fixed masks are missing or others.
    """
    previous = RunFolder(path.parent).previous
    if not path.is_file() and not previous.is_file():
        raise UserError(f"{path.parent} holds no {path.name}; give the folder of a run that perturblab train has made")
    try:
        return _whole(path)
    except UserError as error:
        if not previous.is_file():
            raise
        try:
            content = _whole(previous)
        except UserError:
            raise error from None
        warn(f"{error}; using the one before, {previous.name}")
        return content


def _whole(path: Path) -> Checkpoint:
    """Read a checkpoint and its fixed masks."""
    content = _read(path)
    content["model"].update(_fixed(RunFolder(path.parent).masks, content.pop("fixed", {})))
    return content


def _read(path: Path) -> Checkpoint:
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch's remarks about a foreign pickle
            check_archive(path)
            content = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a torn or foreign file, with advice of its own
        reason = "torn, or not written by perturblab"
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); train again, or restore the file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint; restore the file")
    version = content.get("version")
    if version != VERSION:
        remedy = "restore the file, or resume the run with the perturblab that wrote it"
        raise UserError(f"{path} is of version {version!r}, expected {VERSION}; {remedy}")
    missing = [name for name, kind in _HELD.items() if not isinstance(content.get(name), kind)]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; train again, or restore the file")
    try:
        check_plain(content, path.stat().st_size)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint of perturblab ({error}); restore the file") from error
    if content.pop("digest", None) != digest(content):
        raise UserError(f"{path} has changed since it was written; restore the file")
    return cast(Checkpoint, content)


def save_weights(path: Path, model: nn.Module, just_before: Callable[[], object] = lambda: None) -> None:
    """Write a net's parameters and buffers, masks included, as safetensors.

    Args:
        path: the file.
        model: the net.
        just_before: called when they are on the disk and are about to replace the old ones.

    Raises:
        UserError: they cannot be written.
    """
    write_atomically(path, weight_bytes(model), verify=lambda part: just_before())


def weight_bytes(model: nn.Module) -> bytes:
    """Give the bytes that `save_weights` writes: the same values give the same bytes."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors)


def load_weights(path: Path, model: nn.Module) -> None:
    """Read a net's parameters and buffers.

    Raises:
        UserError: the file is missing or unreadable, or of another net.
    """
    with _readable(path):
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    load_net(path, model, tensors)


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of saved parameters and buffers, without their values.

    Raises:
        UserError: the file is missing or unreadable.
    """
    with _readable(path), safetensors.safe_open(path, "pt") as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}; train the run first, or restore the file")
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}); restore the file") from error


def load_net(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved parameters and buffers into a net.

    Args:
        path: the file they come from, for the message of an error.
        model: the net; it gets the values.
        tensors: by name, each with the shape (...) and type that the net has under this name.

    Raises:
        UserError: they are those of another net.
    """
    current = model.state_dict()
    kinds = {name: getattr(value, "dtype", type(value).__name__) for name, value in tensors.items()}
    other = [name for name, kind in kinds.items() if name in current and kind != current[name].dtype]
    if other:
        reason = f"{other[0]} is {kinds[other[0]]}, expected {current[other[0]].dtype}"
        raise UserError(f"{path} holds the weights of another net ({reason}); restore the file")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise UserError(f"{path} holds the weights of another net ({reason}); restore the file") from error
