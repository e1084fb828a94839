"""The flags of a set-up at a preset, and the search for set-ups by name."""

import difflib
import math
from collections.abc import Iterable

from perturblab.errors import UserError
from perturblab.records.config import PUBLISHED
from perturblab.studies.catalogue import CLAIMS, FIGURES, SETUPS, Setup
from perturblab.studies.presets import PRESETS, Preset


def flags_of(setup: Setup, preset: Preset, seed: int) -> dict[str, object]:
    """Compute the training flags of one run.

    Args:
        setup: of the catalogue.
        preset: the size.
        seed: decides init, masks, order and augmentation.

    Returns:
        Fields of `TrainConfig`; the epochs are always among them.
    """
    published = PUBLISHED[str(setup.flags.get("code", "kl"))]
    flags = {"nepochs": published["nepochs"], **setup.flags}
    if "nfilters" in flags:
        flags["nfilters"] = max(1, math.floor(preset.width * int(flags["nfilters"]) + 0.5))
    if preset.rate != 1:
        rate = preset.rate * float(flags.get("learning_rate", published["learning_rate"]))
        flags["learning_rate"] = float(f"{rate:.6g}")
    flags |= preset.flags
    for start, special in preset.special.items():
        flags |= special if setup.id.startswith(start) else {}
    if "dataset_train" in preset.flags:  # the test images are of the same data set
        flags.pop("dataset_test", None)
    return {**flags, "manual_seed": seed}


def differing_flags(left: Setup, right: Setup, preset: Preset) -> tuple[str, ...]:
    """List the training flags in which two set-ups differ at a preset; none if the preset makes them equal.

    Args:
        left, right: of the catalogue.
        preset: the size.

    Returns:
        Names of flags, sorted.
    """
    a, b = (flags_of(setup, preset, 0) for setup in (left, right))
    return tuple(sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name)))


def is_comparable(setup: Setup, preset: Preset) -> bool:
    """Say whether an absolute figure of a set-up at a preset may be compared with the published one.

    Args:
        setup: of the catalogue.
        preset: the size.

    Returns:
        True if the preset changes nothing of the set-up but the audit, which only counts.
    """
    published = {"nepochs": PUBLISHED[str(setup.flags.get("code", "kl"))]["nepochs"], **setup.flags, "audit": True}
    return {**flags_of(setup, preset, 0), "audit": True} == {**published, "manual_seed": 0}


def choose_setups(ids: Iterable[str], preset: Preset) -> list[Setup]:
    """Choose the set-ups that a study runs.

    Args:
        ids: of set-ups, of figures, or of claims, which stand for both of their sides; the preset's own if empty.
        preset: the size.

    Returns:
        Set-ups, each once.

    Raises:
        UserError: an id is unknown, cannot be run here, or is not included in the preset.
    """
    chosen: dict[str, Setup] = {}
    for name in ids or preset.setups:
        for setup in _setups_of(name):
            if setup not in SETUPS:
                raise UserError(f"{name} rests on no run; see perturblab show {name}")
            if SETUPS[setup].missing:
                raise UserError(f"{setup} cannot be run: {SETUPS[setup].missing}; see perturblab show {setup}")
            if preset.only and setup not in preset.only:
                fit = " or ".join(p.name for p in PRESETS.values() if not p.only or setup in p.only)
                raise UserError(f"preset {preset.name} does not include {setup}; use --preset {fit}")
            chosen[setup] = SETUPS[setup]
    return list(chosen.values())


def _setups_of(name: str) -> tuple[str, ...]:
    if name in SETUPS:
        return (name,)
    if name in FIGURES:
        return (FIGURES[name].setup,)
    if name in CLAIMS:
        claim = CLAIMS[name]
        return claim.left, *(claim.rivals or (claim.right,))
    raise not_found(name)


def not_found(name: str) -> UserError:
    """Make the error for an unknown name, with the nearest name of the catalogue."""
    known = {known.lower(): known for known in (*SETUPS, *FIGURES, *CLAIMS)}
    near = difflib.get_close_matches(name.lower(), known, 1)
    hint = f"did you mean {known[near[0]]}?" if near else "see perturblab list"
    return UserError(f"nothing in the catalogue is called {name!r}; {hint}")
