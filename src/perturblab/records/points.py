"""Points of robustness curves: how many images an attack at one radius left right."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from perturblab.errors import UserError
from perturblab.records.attack_names import AttackName, Mode
from perturblab.records.fields import Natural, NonNegative, Positive
from perturblab.stats import MIN_SEEDS, t_interval
from perturblab.system.files import from_json, write_atomically

VERSION = 1


class Point(BaseModel, frozen=True, extra="forbid"):
    """One attack at one radius.

    Args:
        attack: its name.
        eps: radius in pixels of [0, 1]; of DeepFool, the cap on its iterations.
        norm: "linf" or "l2".
        correct: images still classified right; of a random net, the mean over fresh draws, rounded down.
        total: images.
        wilson: 95 % interval of the accuracy in percent: the noise of a finite test set.
        flags: signs of a masked gradient; with any, the accuracy is an empirical upper bound.
        answers: one bit per image in their order, 1 for right, as hexadecimal digits.
        subset: hash of which images.
        weights: hash of the net's weights.
        settings: how hard the attack tried, and in which mode the net was.
        draws: correct images of every fresh draw of a random net.
        parts: attacks that AutoAttack is made of, in their order, with the images that each of them left right.
        distance: farthest image from its original, in the norm.
        median: median distance of the images that were made wrong.
        seconds: spent on the attack.
    """

    attack: str
    eps: NonNegative
    norm: str
    correct: Natural
    total: Positive
    wilson: tuple[FiniteFloat, FiniteFloat]
    flags: tuple[str, ...] = ()
    answers: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    subset: str
    weights: str
    settings: dict[str, Any]
    draws: tuple[int, ...] = ()
    parts: tuple[tuple[str, Natural], ...] = ()
    distance: float = 0.0
    median: float | None = None
    seconds: float = 0.0

    @model_validator(mode="after")
    def _correct_is_possible(self) -> Self:
        if self.correct > self.total or int(self.answers, 16).bit_length() > self.total:
            raise ValueError(f"more images are right than the {self.total} attacked")
        return self

    @property
    def name(self) -> AttackName:
        """The attack's name in its parts."""
        return AttackName.parse(self.attack)

    @property
    def mode(self) -> Mode:
        """How BatchOut took part in evaluation."""
        return Mode.parse(str(self.settings.get("mode", "")))

    @property
    def key(self) -> tuple[Any, ...]:
        """All that the point depends on: the same key is never measured twice."""
        return self.eps, *self.curve

    @property
    def curve(self) -> tuple[str, ...]:
        """All that the points of one curve share: everything but the radius."""
        return self.attack, self.norm, self.subset, self.weights, json.dumps(self.settings, sort_keys=True)

    @property
    def net(self) -> tuple[str, str]:
        """The net that was attacked: the hash of its weights, and its mode."""
        return self.weights, self.settings.get("mode", "")

    @property
    def is_random(self) -> bool:
        """True if the answers are those of one draw among many."""
        return "verdicts" in self.settings

    @property
    def is_mistake(self) -> bool:
        """True if the attack is a published mistake."""
        return "mistake" in self.settings

    @property
    def is_honest(self) -> bool:
        """True if it counts for a worst case: by radius, not a published mistake, and one answer per image."""
        by_radius = not (self.name.is_worst or self.name.is_frozen or self.name.kind.by_iterations)
        return by_radius and not {"mistake", "mode", "verdicts"} & self.settings.keys()

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.total

    def summary(self) -> dict[str, Any]:
        """List the values that are printed as JSON: all but the answers image by image.

        Returns:
            Name -> value; for a random net also mean and 95 % t-interval over its draws, in percent.
        """
        values = self.model_dump(mode="json", exclude={"answers"})
        if len(self.draws) >= MIN_SEEDS:
            interval = t_interval([100 * correct / self.total for correct in self.draws])
            values["draws_interval"] = [interval.mean, interval.low, interval.high]
        return values


def load_points(path: Path) -> list[Point]:
    """Read the points of a file; none where it is missing.

    Raises:
        UserError: the file is not what this version writes.
    """
    if not path.is_file():
        return []
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}, expected {VERSION}")
        points = [Point(**point) for point in content["points"]]
        if any(point.name.is_worst and not _names_attacks(point) for point in points):
            raise ValueError("a worst case without the names of its attacks")
        return points
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as attack points ({reason}); delete it to measure again") from error


def _names_attacks(point: Point) -> bool:
    names = point.settings.get("attacks")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def save_points(path: Path, points: Sequence[Point]) -> None:
    """Write the points of a curve, whole or not at all."""
    content = {"version": VERSION, "points": [point.model_dump(mode="json") for point in points]}
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
