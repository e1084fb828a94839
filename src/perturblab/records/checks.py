"""Masking checks of a run: which net they have seen, what they found, and the file that keeps them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, TypeAdapter, field_validator

from perturblab.errors import UserError
from perturblab.records import flags
from perturblab.records.attack_names import Effort
from perturblab.records.fields import Natural, Positive
from perturblab.records.points import Point
from perturblab.system.files import from_json, write_atomically

_ZERO_SHARE = 0.01  # of the images
_POINTS = 1.0  # accuracy in percent that doubled effort may take away
_AT_LEAST = 5  # images; of a few hundred, one point is within the noise of random starts
FEWEST = 2 * _AT_LEAST  # the checks look where about half of the images are left, and five of these must fall


@dataclass(frozen=True)
class Findings:
    """Numbers that the checks of a net found; `Findings.flags` says what they mean.

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

    images: Natural
    classes: Positive
    eps: FiniteFloat
    zero: Natural
    bad: Natural
    softmax: bool
    saturated: Natural
    random: bool
    large: Natural
    fgsm: Natural
    pgd: Natural
    doubled: Natural
    margin: Natural
    black_box: Mapping[str, Natural] = field(default_factory=dict)
    trace: Sequence[float] = ()

    def flags(self) -> list[str]:
        """List the flags that these numbers raise, each in a few words."""
        few, point = flags.SHARE * self.images, _POINTS * self.images / 100
        # Each of these counts on a random net comes from its own draws, so they cannot be compared.
        one_draw = not self.random
        raised = {
            flags.ABOVE_CHANCE: self.large > self.images / self.classes,
            flags.PGD_WEAKER: one_draw and self.pgd > self.fgsm + few,
            flags.NOT_CONVERGED: one_draw and max(self.pgd - self.doubled, self.margin) >= max(point, _AT_LEAST),
            flags.BLACK_BOX: one_draw and any(count > few for count in self.black_box.values()),
            flags.ZERO: self.zero > _ZERO_SHARE * self.images,
            flags.NAN: self.bad > 0,
            flags.SOFTMAX: self.softmax,
            flags.SATURATED: self.saturated > _ZERO_SHARE * self.images,
            flags.RANDOM: self.random,
        }
        return [flag for flag, is_raised in raised.items() if is_raised]


class CheckKey(BaseModel, frozen=True, extra="forbid"):
    """All that the findings of a check depend on: the same key is never checked twice.

    Args:
        subset: hash of the images that are attacked.
        images: how many of them were looked at.
        weights: hash of the net's weights.
        norm: "linf" or "l2".
        eps: radius of the checks that have one, in pixels of [0, 1].
        effort: how hard the attacks tried.
        mode: how BatchOut took part in evaluation, as `Mode` spells it.
        source_weights: hash of the weights of the net whose images were transferred; "" without one.
        seed: decides all draws.
    """

    # In the order of the list that was a key before it had names.
    subset: str
    images: Natural
    weights: str
    norm: str
    eps: FiniteFloat
    effort: Effort
    mode: str
    source_weights: str
    seed: Natural


class Check(BaseModel, frozen=True):
    """One pass of the masking checks over a net."""

    key: CheckKey
    findings: Findings

    @field_validator("key", mode="before")
    @classmethod
    def _name_the_values(cls, value: Any) -> Any:
        """Read also the key of earlier files, a list of the values without their names."""
        return dict(zip(CheckKey.model_fields, value, strict=True)) if isinstance(value, list) else value

    @property
    def net(self) -> tuple[str, str]:
        """The net, as in `Point.net`."""
        return self.key.weights, self.key.mode

    @property
    def raised(self) -> flags.Raised:
        """The flags, computed from the numbers: the meaning of these may have been refined since they were kept."""
        return flags.Raised(self.net, self.key.norm, self.findings.flags())


_CHECKS = TypeAdapter(list[Check])


def telling_radius(measured: Sequence[Point]) -> float:
    """Choose the radius that shows most: where the strongest curve is nearest to half of the clean accuracy.

    Args:
        measured: points of one net and norm.

    Returns:
        In pixels; 8/255 without curves by radius.
    """
    curves = [p for p in measured if p.eps and not p.name.kind.by_iterations]
    if not curves:
        return 8 / 255
    clean = max(p.correct / p.total for p in measured)
    lowest = {eps: min(p.correct / p.total for p in curves if p.eps == eps) for eps in {p.eps for p in curves}}
    return min(sorted(lowest), key=lambda eps: abs(lowest[eps] - clean / 2))


def load_checks(path: Path) -> list[Check]:
    """Read masking checks; an empty list where there is no file.

    Args:
        path: of the file, `RunFolder.checks`.

    Raises:
        UserError: the file was not written by this program.
    """
    try:
        return _CHECKS.validate_python(from_json(path.read_text(encoding="utf-8"))) if path.is_file() else []
    except (ValueError, RecursionError) as error:
        reason = "; ".join(str(error).splitlines()[1:3] or [str(error)])
        raise UserError(f"{path} cannot be read as masking checks ({reason}); delete it to check again") from error


def save_checks(path: Path, checks: Sequence[Check]) -> None:
    """Write masking checks, whole or not at all; their flags are written for people, and not read again."""
    content = [{"flags": check.findings.flags(), **check.model_dump()} for check in checks]
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
