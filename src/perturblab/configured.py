"""From what was given on the command line to what is built: published defaults, options, net, recipe, device."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from perturblab.attacks import Threat
from perturblab.data import Preparation
from perturblab.errors import UserError
from perturblab.layers import Mixing, find_sites
from perturblab.models import Task, build, options_read, published_sites, resolve
from perturblab.records.config import DEFENCE_OPTIONS, NET_OPTIONS, PUBLISHED, NetConfig, TrainConfig, parse_eps
from perturblab.training.adversarial import Adversary
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


def check_defence(config: TrainConfig) -> None:
    """Refuse a flag that the chosen defence does not read.

    Raises:
        UserError: such a flag was given.
    """
    read = {"none": (), "batchout": ("batchout_",), "pgd": ("defence_",)}
    prefixes = read.get(config.defence, ("defence_eps", "defence_mode"))
    flags = [name for name in DEFENCE_OPTIONS if getattr(config, name) is not None]
    if unread := [name for name in flags if not name.startswith(prefixes)]:
        names = ", ".join("--" + name.replace("_", "-") for name in unread)
        raise UserError(f"{names} given, but --defence {config.defence} does not read it; drop it or choose another")


def make_mixings(config: TrainConfig, model: nn.Module) -> dict[str, Mixing]:
    """Where BatchOut stands, and what it does there: the published places of the net where none are given.

    Args:
        config: what was given.
        model: the net, as built.

    Returns:
        Name of a module -> what happens to its output; empty without that defence.

    Raises:
        UserError: a place that the net does not have, or a setting out of range.
    """
    if config.defence != "batchout":
        return {}
    given = {
        name.removeprefix("batchout_"): value
        for name in DEFENCE_OPTIONS
        if name.startswith("batchout_") and (value := getattr(config, name)) is not None
    }
    rule, etas = given.pop("at", None), given.pop("eta", None)
    try:
        places = dict(published_sites(config.net))
        if rule is not None or not places:
            places = {name: places.get(name, _ETA) for name in find_sites(model, _rule(rule or "all"))}
        if etas is not None:
            places = dict(zip(places, _one_a_place(etas, list(places)), strict=True))
        return {name: Mixing(eta=eta, **{**_published_mixing(config.net), **given}) for name, eta in places.items()}
    except ValueError as error:
        raise UserError(f"--batchout: {error}") from error


_ETA = "0.1"  # where nothing was published


def _published_mixing(net: str) -> dict[str, Any]:
    """The paper moves half of the rows; its reproduction, whose nets the others are, all of them, and in the VGGs with
    the same partners at every place."""
    if net.startswith("batchout_"):
        return {"k": 0.5}
    return {"k": 1.0, "shared": "partners"} if net.startswith("vgg") else {"k": 1.0}


def _one_a_place(etas: str, places: list[str]) -> list[str]:
    parts = etas.split(";")
    if len(parts) not in (1, len(places)):
        raise ValueError(f"eta got {len(parts)} magnitudes for {len(places)} places; give one, or one a place")
    return parts * len(places) if len(parts) == 1 else parts


def _rule(text: str) -> str | list[str]:
    keyword = text in ("all", "last", "alternate") or text.startswith("all-after:")
    return text if keyword else [part.strip() for part in text.split(",")]


def make_adversary(config: TrainConfig, dataset: str) -> Adversary | None:
    """The attack that training images meet, where there is one.

    Args:
        config: what was given.
        dataset: recognised name of the training set; the default radius is 0.3 for MNIST and the digits, else 8/255.
    """
    if config.defence not in ("fgsm", "fgsm-half", "pgd"):
        return None
    eps = config.defence_eps or default_eps(dataset)
    return Adversary(
        Threat("linf", parse_eps(eps)),
        share=0.5 if config.defence == "fgsm-half" else 1.0,
        steps=(config.defence_steps or 10) if config.defence == "pgd" else 1,
        training=config.defence_mode == "train",
    )


def default_eps(dataset: str) -> str:
    """The radius of adversarial training where none is given: what the data set is usually attacked with."""
    return "0.3" if dataset in ("MNIST", "FashionMNIST", "digits") else "8/255"


def resolved_defence(config: TrainConfig, dataset: str, mixings: Mapping[str, Mixing]) -> dict[str, Any]:
    """The flags that repeat the defence, every default filled in; nothing without one.

    Args:
        config: what was given.
        dataset: recognised name of the training set.
        mixings: from `make_mixings`.
    """
    said: dict[str, Any] = {} if config.defence == "none" else {"defence": config.defence}
    if mixings:
        first = next(iter(mixings.values()))  # the places differ in their magnitude only
        said |= {f"batchout_{name}": getattr(first, name) for name in _MIXING}
        said |= {
            "batchout_at": ",".join(mixings),
            "batchout_eta": ";".join(str(mixing.magnitude) for mixing in mixings.values()),
        }
    adversary = make_adversary(config, dataset)
    if adversary is not None:
        said |= {
            "defence_eps": config.defence_eps or default_eps(dataset),
            "defence_mode": "train" if adversary.training else "eval",
        }
        if config.defence == "pgd":
            said["defence_steps"] = adversary.steps
    return said


_MIXING = ("k", "partners", "rows", "eta_per", "shared", "detach")


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
