"""Presets: the same set-ups at another size, and what that changes against the published protocol."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perturblab.catalogue import ENTRIES, RELATIONS, SETUPS, Setup
from perturblab.config import PUBLISHED
from perturblab.errors import UserError


@dataclass(frozen=True)
class Preset:
    """A size at which set-ups are run; budgets are fixed in advance and the same for every set-up.

    Args:
        name: as on the command line.
        about: one line.
        setups: those that are run when none is named.
        seeds: runs of each, seeds 1, 2, ...
        changes: what differs from the published protocol, a sentence each; the report lists them.
        width: factor on the number of filters.
        rate: factor on the learning rate, for the larger batch.
        flags: replace those of every set-up.
    """

    name: str
    about: str
    setups: tuple[str, ...] = ()
    seeds: int = 3
    changes: tuple[str, ...] = ()
    width: float = 1.0
    rate: float = 1.0
    flags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def comparable(self) -> bool:
        """Whether an absolute figure may be compared with the published one."""
        return not self.changes


DECIDING = ("K4", "H5", "A1", "A1-level-0")
_CONTROLS = ("K1", "K3", "K3-level-0", "K5", "K7", "A1-cnn")
_OTHERS = ("BO-", "R1-", "R2-", "SEED-", "L1-")  # not of the dispute about noise
_PERTURBATIVE = tuple(
    name
    for name, setup in SETUPS.items()
    if not setup.missing and setup.flags.get("dataset_train") == "CIFAR10" and not name.startswith(_OTHERS)
)

_QUICK = Preset(
    "quick",
    "the dispute on 8x8 digits, three minutes on two cores",
    setups=("K1", "K4", "H5"),
    changes=(
        "1,200 digits of 8x8 pixels instead of CIFAR-10, without augmentation",
        "28/128 of the published width",
        "12 epochs instead of 150, batch 32, ten times the learning rate",
    ),
    width=28 / 128,
    rate=10.0,
    flags={"dataset_train": "digits", "batch_size": 32, "nepochs": 12},
)
_CPU = Preset(
    "cpu",
    "the deciding nets and their controls on all CIFAR-10 images, at an eighth of the width",
    setups=(*DECIDING, *_CONTROLS),
    changes=(
        "1/8 of the published width",
        "5 epochs instead of 150 or 450, the learning rate annealed by a cosine over them",
        "batch 64 instead of 10 or 16, with ten times the learning rate",
    ),
    width=1 / 8,
    rate=10.0,
    flags={"dataset_train": "CIFAR10", "batch_size": 64, "nepochs": 5, "optimizer_schedule": "cosine", "audit": True},
)
_GPU = Preset(
    "gpu",
    "the published width, a large batch and 30 epochs",
    setups=DECIDING,
    changes=(
        "30 epochs instead of 150 or 450, the learning rate annealed by a cosine over them",
        "batch 512 instead of 10 or 16, with ten times the learning rate, in bf16",
    ),
    rate=10.0,
    flags={**_CPU.flags, "batch_size": 512, "nepochs": 30, "precision": "bf16"},
)
PRESETS = {
    preset.name: preset
    for preset in (
        _QUICK,
        _CPU,
        replace(_CPU, name="cpu-all", about="every perturbative set-up at the size of cpu", setups=_PERTURBATIVE),
        _GPU,
        Preset("full", "as published, epoch for epoch", setups=DECIDING, flags={"audit": True}),
    )
}


def flags_of(setup: Setup, preset: Preset, seed: int) -> dict[str, Any]:
    """The training flags of one run.

    Args:
        setup: of the catalogue.
        preset: the size.
        seed: decides init, masks, order and augmentation.

    Returns:
        Fields of `TrainConfig`; the epochs are always among them.
    """
    published = PUBLISHED[str(setup.flags.get("code", "kl"))]
    flags: dict[str, Any] = {"nepochs": published["nepochs"], **setup.flags}
    if "nfilters" in flags:
        flags["nfilters"] = max(1, math.floor(preset.width * int(flags["nfilters"]) + 0.5))
    if preset.rate != 1:
        rate = preset.rate * float(flags.get("learning_rate", published["learning_rate"]))
        flags["learning_rate"] = float(f"{rate:.6g}")
    flags |= preset.flags
    if "dataset_train" in preset.flags:
        flags.pop("dataset_test", None)
    return {**flags, "manual_seed": seed}


def chosen(ids: Iterable[str], preset: Preset) -> list[Setup]:
    """The set-ups that a study runs.

    Args:
        ids: of set-ups, of figures, or of relations, which mean both of their sides; those of the preset when none is
            given.
        preset: the size.

    Returns:
        Set-ups, each once.

    Raises:
        UserError: an unknown id, or one that cannot be run here.
    """
    found: dict[str, Setup] = {}
    for name in ids or preset.setups:
        for setup in _setups_of(name):
            if setup not in SETUPS:
                raise UserError(f"{name} rests on no run; see perturblab show {name}")
            if SETUPS[setup].missing:
                raise UserError(f"{setup} cannot be run: {SETUPS[setup].missing}")
            found[setup] = SETUPS[setup]
    return list(found.values())


def _setups_of(name: str) -> tuple[str, ...]:
    if name in SETUPS:
        return (name,)
    if name in ENTRIES:
        return (ENTRIES[name].setup,)
    if name in RELATIONS:
        return RELATIONS[name].left, RELATIONS[name].right
    raise not_found(name)


def not_found(name: str) -> UserError:
    """The error for a name that the catalogue does not have, with the nearest one that it has."""
    near = difflib.get_close_matches(name, [*SETUPS, *ENTRIES, *RELATIONS], 1)
    hint = f"did you mean {near[0]}?" if near else "see perturblab list"
    return UserError(f"nothing in the catalogue is called {name!r}; {hint}")
