"""The defence of a run: the places of BatchOut, and the attack on training images."""

from collections.abc import Mapping

from pydantic import JsonValue
from torch import nn

from perturblab.attacks.threat import Threat
from perturblab.data.known import KNOWN, Known
from perturblab.errors import UserError
from perturblab.layers.mixing import Mixing
from perturblab.layers.surgery.batchout_sites import find_sites
from perturblab.models.sites import published_mixing, published_sites
from perturblab.records.config import DEFENCE_OPTIONS, TrainConfig
from perturblab.records.radius import parse_eps
from perturblab.training.adversarial import Adversary


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
    """Choose the places of BatchOut and its settings; by default, the published places of the net.

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
        return {name: Mixing(eta=eta, **{**published_mixing(config.net), **given}) for name, eta in places.items()}
    except ValueError as error:
        raise UserError(f"--batchout: {error}") from error


_ETA = "0.1"  # where nothing was published


def _one_a_place(etas: str, places: list[str]) -> list[str]:
    parts = etas.split(";")
    if len(parts) not in (1, len(places)):
        raise ValueError(f"eta got {len(parts)} magnitudes for {len(places)} places; give one, or one a place")
    return parts * len(places) if len(parts) == 1 else parts


def _rule(text: str) -> str | list[str]:
    keyword = text in ("all", "last", "alternate") or text.startswith("all-after:")
    return text if keyword else [part.strip() for part in text.split(",")]


def make_adversary(config: TrainConfig, dataset: str) -> Adversary | None:
    """Make the attack on training images; None for a defence without one.

    Args:
        config: what was given.
        dataset: recognised name of the training set; the default radius is its `Known.attack_radius`.
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
    return {known.name: known.attack_radius for known in KNOWN}.get(dataset, Known.attack_radius)


def resolve_defence(
    config: TrainConfig, dataset: str, mixings: Mapping[str, Mixing], adversary: Adversary | None
) -> dict[str, JsonValue]:
    """Give the flags that repeat the defence, every default filled in; none without a defence.

    Args:
        config: what was given.
        dataset: recognised name of the training set.
        mixings: from `make_mixings`.
        adversary: from `make_adversary`.
    """
    flags: dict[str, JsonValue] = {} if config.defence == "none" else {"defence": config.defence}
    if mixings:
        first = next(iter(mixings.values()))  # the places differ in their magnitude only
        flags |= {f"batchout_{name}": getattr(first, name) for name in _MIXING}
        flags |= {
            "batchout_at": ",".join(mixings),
            "batchout_eta": ";".join(str(mixing.magnitude) for mixing in mixings.values()),
        }
    if adversary is not None:
        flags |= {
            "defence_eps": config.defence_eps or default_eps(dataset),
            "defence_mode": "train" if adversary.training else "eval",
        }
        if config.defence == "pgd":
            flags["defence_steps"] = adversary.steps
    return flags


_MIXING = ("k", "partners", "rows", "eta_per", "shared", "detach")
