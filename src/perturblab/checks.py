"""Findings of the masking checks, as a run's folder keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perturblab.points import (
    Point,
    is_capped,
    load_checks,
    meaning,
    save_checks,
)


@dataclass(frozen=True)
class Findings:
    """What the checks of a net found, as numbers; ``flags`` says what they mean.

    Args:
        images: how many were looked at.
        classes: logits of the net.
        eps: radius of the checks that have one.
        zero: images right whose gradient is 0 in every pixel.
        bad: images whose gradient is not finite.
        softmax: the outputs are probabilities.
        saturated: images whose margin is so large that their loss is 0.
        random: two forward passes differ.
        large: images right under PGD at a radius that can erase every image.
        fgsm, pgd, doubled: images right under FGSM, PGD, and PGD with twice the steps and restarts.
        margin: images that only PGD on the margin of the logits breaks, beside PGD on the cross entropy.
        black_box: attack without the net's gradient -> images that only it breaks, beside FGSM and PGD.
        trace: mean loss before every PGD step.
    """

    images: int
    classes: int
    eps: float
    zero: int
    bad: int
    softmax: bool
    saturated: int
    random: bool
    large: int
    fgsm: int
    pgd: int
    doubled: int
    margin: int
    black_box: Mapping[str, int] = field(default_factory=dict)
    trace: Sequence[float] = ()

    def flags(self) -> list[str]:
        """The flags that these numbers raise, each in a few words."""
        return meaning(asdict(self))


def telling_radius(measured: Sequence[Point]) -> float:
    """The radius at which most can be seen: where the strongest curve is nearest to half of the clean accuracy.

    Args:
        measured: points of one net and norm.

    Returns:
        In pixels; 8/255 without curves by radius.
    """
    curves = [p for p in measured if p.eps and not is_capped(p.attack)]
    if not curves:
        return 8 / 255
    clean = max(p.correct / p.total for p in measured)
    lowest = {eps: min(p.correct / p.total for p in curves if p.eps == eps) for eps in {p.eps for p in curves}}
    return min(sorted(lowest), key=lambda eps: abs(lowest[eps] - clean / 2))


def is_checked(folder: Path, key: Sequence[Any]) -> bool:
    """Say whether a run's folder holds what a check has found.

    Args:
        folder: of the run.
        key: what was checked: images, their number, weights, norm, radius, effort, mode, ...

    Raises:
        UserError: the file is not what this version writes.
    """
    return any(entry["key"] == key for entry in load_checks(folder))


def add_check(folder: Path, key: Sequence[Any], findings: Findings) -> None:
    """Put into a run's folder what a check has found, beside what earlier ones have.

    Args:
        folder: of the run.
        key: as for `is_checked`.
        findings: what was found.
    """
    new = {"key": key, "flags": findings.flags(), "findings": asdict(findings)}
    save_checks(folder, [*load_checks(folder), new])
