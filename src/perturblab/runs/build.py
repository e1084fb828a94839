"""From what was given on the command line to what is built: published defaults, options, net, recipe, device."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from perturblab.data.known import Preparation
from perturblab.errors import UserError
from perturblab.models.build import build, options_read, resolve
from perturblab.models.skeleton import Task
from perturblab.records.config import NET_OPTIONS, PUBLISHED, NetConfig, TrainConfig
from perturblab.training.loop import Recipe

_EARNED_BACK = 5000  # steps, at about 10 ms that compilation saves in each


def net_options(config: NetConfig, warn: Callable[[str], None]) -> dict[str, Any]:
    """The options that the net reads, with the defaults of the chosen code and of the net.

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
            del fixed["level"]  # no masks: a level that nobody gave is none to refuse
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
    options = net_options(config, warn)
    try:
        return build(config.net, task=task, seed=seed, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:  # what PyTorch raises for a tensor beyond the memory, or beyond 64 bits
        raise UserError(
            f"{config.net} does not fit in memory ({str(error).splitlines()[0]}); use fewer --nfilters"
        ) from error


def freeze(config: TrainConfig, model: nn.Module) -> None:
    """Take out of training what the configuration leaves as it was drawn.

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
    """The recipe of a configuration, with the published defaults of its code."""
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


def chosen_preparation(config: TrainConfig, own: Preparation) -> Preparation:
    """The data set's own preparation, or what is left of it after ``--no-normalise`` and ``--no-augment``."""
    if config.normalise is False:
        own = replace(own, mean=(0.0,) * len(own.mean), std=(1.0,) * len(own.std))
    if config.augment is False:
        own = replace(own, crop_padding=0, flip=False)
    return own


def decide_compile(config: TrainConfig, device: torch.device, steps: int) -> str:
    """Whether to compile, for good: a resumed run keeps what was decided.

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
    """The device of that name; "auto" takes CUDA where there is one.

    Raises:
        UserError: no such device here.
    """
    remedy = ", which is not to be had here; use cpu, or cuda on a machine with one"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):
            return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device got {name!r}{remedy}") from error
    raise UserError(f"--device got {name!r}{remedy}")
