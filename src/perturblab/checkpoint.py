"""Files of a run that carry tensors: written whole or not at all, opened without executing anything."""

import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from perturblab.errors import UserError
from perturblab.files import write_atomically


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write what is needed to go on: tensors, numbers, strings, lists and dictionaries."""
    file = io.BytesIO()
    torch.save(content, file)
    write_atomically(path, file.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``.

    Raises:
        UserError: it is missing, unreadable or holds more than plain data.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}; give the folder of a run that perturblab train has made")
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a torn or foreign file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); train again, or restore the file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint; restore the file")
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
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} holds the weights of another net ({str(error).splitlines()[1].strip()})") from error
