"""Files of a run that carry tensors: written whole or not at all, opened without executing anything."""

import io
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from perturblab.errors import UserError
from perturblab.files import write_atomically

VERSION = 1
_HELD = {"config": dict, "hashes": dict, "model": dict, "state": dict, "rows": list, "correct": list}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write what is needed to go on.

    Args:
        path: the file.
        content: tensors, numbers, strings, lists and dictionaries under "config", "hashes" (of the images),
            "model", "state" (of the training), "rows" (of the metrics) and "correct" (the audited answers).
    """
    file = io.BytesIO()
    torch.save({"version": VERSION, **content}, file)
    write_atomically(path, file.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``.

    Raises:
        UserError: it is missing, unreadable, holds more than plain data, or is not what this version writes.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}; give the folder of a run that perturblab train has made")
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch's remarks about a foreign pickle
            content = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a torn or foreign file, with advice of its own
        reason = "torn, or not written by perturblab"
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); train again, or restore the file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint; restore the file")
    if content.get("version") != VERSION:
        raise UserError(f"{path} is of version {content.get('version')!r}, expected {VERSION}; restore the file")
    missing = [name for name, kind in _HELD.items() if not isinstance(content.get(name), kind)]
    if missing:
        raise UserError(f"{path} holds no {', no '.join(missing)}; train again, or restore the file")
    return content


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a net's parameters and buffers, masks included, as safetensors."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors))


def load_weights(path: Path, model: nn.Module) -> None:
    """Read a net's parameters and buffers.

    Raises:
        UserError: the file is missing or unreadable, or of another net.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}; train the run first, or restore the file")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}); restore the file") from error
    load_net(path, model, tensors)


def load_net(path: Path, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved parameters and buffers into a net.

    Raises:
        UserError: they are those of another net.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip().rstrip(".")
        raise UserError(f"{path} holds the weights of another net ({reason}); restore the file") from error
