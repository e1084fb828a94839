"""Trained nets in the layout of the hub: config.json, model.safetensors, and a card filled from the record."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError, model_validator
from torch import nn

from perturblab.attacks.pixels import PixelModel
from perturblab.errors import UserError, one_line
from perturblab.layers.masks import Masks
from perturblab.layers.surgery.batchout_sites import COUNTER
from perturblab.models.build import NETS, build, options_read
from perturblab.models.skeleton import Task
from perturblab.records import store
from perturblab.records.fields import Positive
from perturblab.records.paths import RunFolder
from perturblab.records.run_points import RunPoints
from perturblab.records.worst_case import with_worst
from perturblab.runs import checkpoint
from perturblab.runs.build import NetOptions
from perturblab.runs.export.card import model_card
from perturblab.runs.open import open_trained
from perturblab.system.files import write_atomically
from perturblab.system.memory import check_available
from perturblab.system.terminal import Show

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

_MOST = 1e9  # what float32 divides by and multiplies with, and far beyond what pixels in [0, 1] can need


class PretrainedConfig(BaseModel, frozen=True, extra="forbid"):
    """The configuration that rebuilds a net and prepares its input.

    Attributes:
        model_type: always "perturblab".
        version: of this layout.
        net: a key of `perturblab.models.NETS`.
        options: every option of that net.
        classes: names in label order.
        image_size: (C, H, W) of an image.
        mean: one for each channel, for pixels in [0, 1]: the net takes (x - mean) / std.
        std: likewise, above 0.
    """

    model_type: Literal["perturblab"] = "perturblab"
    version: Literal[1] = 1
    net: str
    options: dict[str, JsonValue]
    classes: tuple[str, ...]
    image_size: tuple[Positive, Positive, Positive]
    mean: tuple[Annotated[FiniteFloat, Field(ge=-_MOST, le=_MOST)], ...]
    std: tuple[Annotated[FiniteFloat, Field(gt=1 / _MOST, le=_MOST)], ...]

    @model_validator(mode="after")
    def _is_one_a_channel(self) -> Self:
        channels = self.image_size[0]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                many = "channel" if channels == 1 else "channels"
                raise ValueError(f"{name} has {len(values)} values for images of {channels} {many}")
        return self


@dataclass(frozen=True)
class Pretrained:
    """A trained net, in eval mode, with its configuration."""

    net: nn.Module
    config: PretrainedConfig

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""
        return self.config.classes

    @property
    def in_pixels(self) -> PixelModel:
        """The net from pixels (N, C, H, W) in [0, 1] to logits (N, classes), its normalisation inside."""
        return PixelModel(self.net, self.config.mean, self.config.std)


def save_pretrained(
    run: Path, folder: Path, *, show: Show | None = None, dataroot: str | None = None, exist_ok: bool = False
) -> Path:
    """Save a finished run in the layout of the hub.

    Args:
        run: the run's folder.
        folder: new or empty; it gets ``config.json``, ``model.safetensors`` and ``README.md``.
        show: where progress goes; nowhere by default.
        dataroot: where the data set is looked for first; the run's by default.
        exist_ok: a folder that holds this very net already, with a card of any text, is left as it is.

    Returns:
        The folder.

    Raises:
        UserError: no such run, one that is not finished, or a folder that is taken.
    """
    is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_taken and not exist_ok:
        raise UserError(f"{folder} exists and is never overwritten; choose another folder")
    card = model_card(store.load_record(RunFolder(run).record), with_worst(RunPoints(run).marked()))
    trained = open_trained(run, show or Show(quiet=True), {} if dataroot is None else {"dataroot": dataroot})
    config = PretrainedConfig(
        net=trained.config.net,
        options=trained.built.options,
        classes=trained.images.classes,
        image_size=trained.images.image_size,
        mean=trained.built.preparation.mean,
        std=trained.built.preparation.std,
    )
    # BatchOut is the identity in eval mode; its counters belong to the training.
    state = {name: value for name, value in trained.model.state_dict().items() if not name.endswith(COUNTER)}
    net = _built(config)
    net.load_state_dict(state)
    files = {WEIGHTS: checkpoint.weight_bytes(net), CONFIG: (config.model_dump_json(indent=1) + "\n").encode()}
    if not is_taken:
        for name, content in (files | {CARD: card.encode()}).items():
            write_atomically(folder / name, content)
    elif not all((folder / name).is_file() and (folder / name).read_bytes() == files[name] for name in files):
        reason = f"exists and does not hold the net of {run}, and is never overwritten"
        raise UserError(f"{folder} {reason}; choose another folder")
    return folder


def _built(config: PretrainedConfig) -> nn.Module:
    task = Task(len(config.classes), config.image_size[0], (config.image_size[1], config.image_size[2]))
    options: NetOptions = dict(config.options)
    return build(config.net, task=task, **options).eval()


def from_pretrained(source: str | Path, *, revision: str | None = None) -> Pretrained:
    """Load a net that `save_pretrained` has saved, from a folder or from the hub; nothing of it is executed.

    Args:
        source: a folder, or ``user/name`` on the hub.
        revision: branch, tag or commit on the hub.

    Returns:
        The net, in eval mode on the CPU, and its configuration.

    Raises:
        UserError: no such folder or repository, a broken file, weights of another net.
    """
    folder = Path(source)
    if folder.is_dir():
        files = [folder / CONFIG, folder / WEIGHTS]
    else:
        files = [_downloaded(str(source), name, revision) for name in (CONFIG, WEIGHTS)]
    config = _config(files[0])
    _check_net(config, *files)
    net = _built(config)
    checkpoint.load_weights(files[1], net)
    return Pretrained(net, config)


def _check_net(config: PretrainedConfig, path: Path, weights: Path) -> None:
    """Refuse a net that is not the one of the weights, before any memory is taken for it."""
    held = checkpoint.weight_shapes(weights)
    try:
        _check_options(config, len(held))
        with torch.device("meta"):
            net = _built(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # PyTorch's for a size beyond 64 bits too
        raise UserError(
            f"{path} does not describe a net of this version ({_complaint(error)}); save it again"
        ) from error
    need = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    other = next((name for name in (*need, *held) if need.get(name) != held.get(name)), None)
    if other is not None:
        got, expected = (str(shapes.get(other, "missing")) for shapes in (held, need))
        reason = one_line(f"{other[:200]} is {got}, expected {expected}")
        raise UserError(f"{weights} holds the weights of another net ({reason}); restore the file")
    for masks in (module for module in net.modules() if isinstance(module, Masks)):
        if masks.noise.mask_memory == "seed":  # their shape is not in the file; drawn, ordered and hashed: three times
            height, width = masks.shape[2:]
            check_available(3 * 4 * math.prod(masks.shape), f"{path}: masks of {height}x{width}")


def _check_options(config: PretrainedConfig, tensors: int) -> None:
    if unread := sorted(set(config.options) - options_read(config.net)):
        raise ValueError(f"{config.net} does not read {', '.join(unread)}")
    TypeAdapter(NETS[config.net].options).validate_json(json.dumps(config.options), strict=True)
    for name in ("depth", "blocks"):  # each block has weights, and is made one by one
        count = config.options.get(name, 0)
        if isinstance(count, int) and count > tensors:
            raise ValueError(f"{name} is {count}, and its weights are {tensors} tensors")


def _complaint(error: Exception) -> str:
    """Describe the first error in one line, with the field in front."""
    if not isinstance(error, ValidationError):
        return one_line(str(error).split("\n")[0])
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return one_line(f"{field}: {message[:1].lower()}{message[1:]}" if field else message)


def _config(path: Path) -> PretrainedConfig:
    try:
        return PretrainedConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path.parent} holds no {path.name}; give a folder that save_pretrained has made") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not the configuration of a perturblab net ({_complaint(error)}); save it again"
        ) from error


def _downloaded(repo: str, name: str, revision: str | None) -> Path:
    import huggingface_hub

    what = f"{repo} is not a folder, and its {name} on the hub cannot be reached"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
    except Exception as error:  # a dozen kinds, of huggingface_hub and of its transport
        raise UserError(f"{what}: {_first_line(error)}") from error


def push_to_hub(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder that `save_pretrained` has saved.

    Args:
        folder: with ``config.json``, ``model.safetensors`` and ``README.md``; nothing else is uploaded.
        repo: ``user/name``; it is made where it is missing.
        private: make it a private one.
        token: that may write; by default the one that ``hf auth login`` has left.

    Returns:
        The address of the commit.

    Raises:
        UserError: the folder is not complete, the hub refuses or cannot be reached.
    """
    import huggingface_hub

    _config(folder / CONFIG)
    if missing := [name for name in (WEIGHTS, CARD) if not (folder / name).is_file()]:
        raise UserError(f"{folder} holds no {missing[0]}; give a folder that save_pretrained has made")
    api = huggingface_hub.HfApi(token=token)
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
            commit_message="Net and model card",
        )
    except Exception as error:  # a dozen kinds, of huggingface_hub and of its transport
        raise UserError(f"{repo} cannot be pushed: {_first_line(error)}") from error
    return str(done.commit_url)


def _first_line(error: Exception) -> str:
    """Give the first line of an error of huggingface_hub, without the advice that follows it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0].rstrip('.')} ({type(error).__name__})" if lines else type(error).__name__
