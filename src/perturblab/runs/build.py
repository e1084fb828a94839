"""A configuration turned into a net, its recipe and its defence: published defaults, options, device."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from perturblab import data
from perturblab.data.known import Preparation
from perturblab.data.sets import ImageData
from perturblab.errors import UserError
from perturblab.layers.mixing import Mixing
from perturblab.layers.surgery.batchout_sites import batchout_at
from perturblab.models.build import build, options_read, resolve
from perturblab.models.skeleton import Task
from perturblab.records.config import NET_OPTIONS, PUBLISHED, NetConfig, TrainConfig
from perturblab.runs.defence import make_adversary, make_mixings
from perturblab.seeding import stream
from perturblab.training.adversarial import Adversary
from perturblab.training.loop import Recipe

_EARNED_BACK = 5000  # steps, at about 10 ms that compilation saves in each


NetOptions = dict[str, Any]  # name -> value, as the nets take them


@dataclass(frozen=True)
class Built:
    """A configuration made concrete for some images: built once, trained, and read by the record.

    Attributes:
        task: classes, channels and size of the images.
        options: of the net, every default filled in.
        model: the net on its device, with BatchOut in its places.
        mixings: name of a module -> what BatchOut does to its output.
        adversary: the attack on training images, if any.
        recipe: how the net is trained.
        preparation: from images to what the net takes.
    """

    task: Task
    options: NetOptions
    model: nn.Module
    mixings: dict[str, Mixing]
    adversary: Adversary | None
    recipe: Recipe
    preparation: Preparation


def assemble(config: TrainConfig, options: NetOptions, images: ImageData, device: torch.device) -> Built:
    """Build all that a configuration asks for.

    Args:
        config: what was given.
        options: of the net, from `net_options`.
        images: what it is trained on.
        device: where it is trained.

    Raises:
        UserError: a net, a defence or a recipe that is impossible for these images.
    """
    channels, height, width = images.image_size
    task = Task(len(images.classes), channels, (height, width))
    model = make_net(config.net, options, task, seed=config.manual_seed)
    freeze(config, model)
    recipe = make_recipe(config, images.name)
    model = convert_conv2d_weight_memory_format(model.to(device), torch.channels_last)
    mixings = make_mixings(config, model)
    if mixings:
        batchout_at(model, mixings, generator=stream(config.manual_seed, "batchout"))
    adversary = make_adversary(config, images.name)
    return Built(task, options, model, mixings, adversary, recipe, choose_preparation(config, data.preparation(images)))


def net_options(config: NetConfig, warn: Callable[[str], None]) -> NetOptions:
    """Give the options that the net reads, with the defaults of the chosen code and of the net.

    Args:
        config: what was given.
        warn: told about a published flag that no ResNet reads.

    Raises:
        UserError: no such net; a given option that it does not read; an option out of range.
    """
    try:
        read = options_read(config.net)
        given = {name: value for name in NET_OPTIONS if (value := getattr(config, name)) is not None}
        unread = [name for name in given if name not in read]
        if "dropout" in unread:
            # The published commands may carry it: their parser took it, and their ResNets never looked at it.
            warn(f"warning: --dropout is not read by {config.net}, as in the published codes")
            del given["dropout"]
            unread.remove("dropout")
        if unread:
            flags = ", ".join("--" + name.replace("_", "-") for name in unread)
            raise UserError(f"{flags} given, but {config.net} does not read it; drop it or choose another --net-type")
        fixed = {"level": PUBLISHED[config.code]["level"], "code": config.code}
        if config.operator not in (None, "noise"):
            del fixed["level"]  # this operator has no masks, and only an explicit level is an error
        return asdict(resolve(config.net, {**{k: v for k, v in fixed.items() if k in read}, **given}))
    except ValueError as error:
        raise UserError(str(error)) from error


def build_net(
    config: NetConfig, task: Task, *, seed: int, warn: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """Build the net of a configuration.

    Raises:
        UserError: the net cannot be built as asked.
    """
    return make_net(config.net, net_options(config, warn), task, seed=seed)


def make_net(name: str, options: NetOptions, task: Task, *, seed: int) -> nn.Module:
    """Build a net from its resolved options.

    Args:
        name: of the net.
        options: from `net_options`.
        task: classes, channels and image size.
        seed: decides masks and weights.

    Raises:
        UserError: the options cannot be combined, or the net does not fit in memory.
    """
    try:
        return build(name, task=task, seed=seed, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:  # what PyTorch raises for a tensor beyond the memory, or beyond 64 bits
        raise UserError(
            f"{name} does not fit in memory ({str(error).splitlines()[0]}); use fewer --nfilters"
        ) from error


def freeze(config: TrainConfig, model: nn.Module) -> None:
    """Freeze all parameters but those that ``--train-only`` names.

    Args:
        config: what was given.
        model: the net, as built.

    Raises:
        UserError: nothing would be trained.

    Reference:
        Frankle, Schwab, Morcos, *Training BatchNorm and only BatchNorm*, ICLR 2021, arXiv 2003.00152.
    """
    if config.train_only is None:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        raise UserError(f"--train-only norms given, but {config.net} has no batch norm; drop it or choose another net")
    model.requires_grad_(False)
    for norm in norms:
        norm.requires_grad_(True)


def make_recipe(config: TrainConfig, dataset: str) -> Recipe:
    """Make the recipe of a configuration, with the published defaults of its code."""
    published = PUBLISHED[config.code]
    return Recipe(
        nepochs=config.nepochs or published["nepochs"],
        batch_size=config.batch_size,
        optimizer=config.optim_method or published["optim_method"],
        learning_rate=config.learning_rate or published["learning_rate"],
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        schedule=config.optimizer_schedule or config.code,
        dataset=dataset,
        drop_last=config.code == "or",
        seed=config.manual_seed,
        precision=config.precision,
    )


def choose_preparation(config: TrainConfig, preparation: Preparation) -> Preparation:
    """Drop from the data set's preparation what ``--no-normalise`` and ``--no-augment`` turn off."""
    if config.normalise is False:
        channels = len(preparation.mean)
        preparation = replace(preparation, mean=(0.0,) * channels, std=(1.0,) * channels)
    if config.augment is False:
        preparation = replace(preparation, crop_padding=0, flip=False)
    return preparation


def decide_compile(config: TrainConfig, device: torch.device, steps: int) -> str:
    """Decide whether to compile; a resumed run keeps the decision.

    On a CPU the nets were measured not to gain (LOG.md); on an accelerator a run must be long enough to earn back
    about a minute of compilation.

    Args:
        config: what was given; "auto" leaves it to this function.
        device: where the run trains.
        steps: optimiser steps of the whole run.

    Returns:
        "on" or "off".
    """
    if config.compile != "auto":
        return config.compile
    return "on" if device.type == "cuda" and steps >= _EARNED_BACK else "off"


def choose_device(name: str) -> torch.device:
    """Find the device of a name; "auto" takes CUDA where there is one.

    Raises:
        UserError: this machine has no such device.
    """
    remedy = ", which this machine does not have; use cpu, or cuda on a machine with one"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):
            return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device got {name!r}{remedy}") from error
    raise UserError(f"--device got {name!r}{remedy}")
