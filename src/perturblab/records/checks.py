"""Findings of the masking checks, as a run's folder keeps them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perturblab.errors import UserError
from perturblab.records.attack_names import is_capped
from perturblab.records.flags import Raised, meaning
from perturblab.records.paths import CHECKS, RunFolder
from perturblab.records.points import Point
from perturblab.system.files import from_json, write_atomically


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


def load_checks(folder: Path) -> list[dict[str, Any]]:
    """Read what the masking checks have left in a run's folder; nothing where there were none.

    Args:
        folder: of the run.

    Raises:
        UserError: the file is not what this version writes.
    """
    path = RunFolder(folder).attacks / CHECKS
    try:
        kept: list[dict[str, Any]] = from_json(path.read_text(encoding="utf-8")) if path.is_file() else []
        list(map(raised_by, kept))
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as masking checks ({error}); delete it to check again") from error
    return kept


def save_checks(folder: Path, checks: Sequence[Mapping[str, Any]]) -> None:
    """Write what the masking checks have found, whole or not at all."""
    write_atomically(RunFolder(folder).attacks / CHECKS, (json.dumps(checks, indent=1) + "\n").encode())


def raised_by(check: Mapping[str, Any]) -> Raised:
    """Say what a check raised: by its numbers, since what they mean may have been refined."""
    _, _, weights, norm, _, _, mode, *_ = check["key"]
    return Raised((str(weights), str(mode)), str(norm), meaning(check["findings"]))
