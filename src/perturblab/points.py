"""Points of robustness curves: what an attack left right, as whole numbers, and what they say together."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from perturblab.errors import UserError, one_line
from perturblab.files import write_atomically
from perturblab.stats import MIN_SEEDS, t_interval, wilson

VERSION = 1
WORST = "worst case"
CHECKS = "checks.json"  # beside the curves: what the masking checks found
TRANSFER = "transfer-"
NOT_MONOTONE = "not monotone"
UPPER_BOUND = "empirical upper bound"
_SLACK = 0.005  # share of the images by which accuracy may rise with the radius: attacks are random

Natural = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]


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
        answers: one bit an image in their order, 1 for right, as hexadecimal digits.
        subset: hash of which images.
        weights: hash of the net's weights.
        settings: how hard the attack tried, and in which mode the net was.
        draws: correct images of every fresh draw of a random net.
        distance: farthest image from its original, in the norm.
        median: median distance of the images that were made wrong.
        seconds: spent on the attack.
    """

    attack: str
    eps: Annotated[FiniteFloat, Field(ge=0)]
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
    distance: float = 0.0
    median: float | None = None
    seconds: float = 0.0

    @model_validator(mode="after")
    def _correct_is_possible(self) -> Self:
        if self.correct > self.total or int(self.answers, 16).bit_length() > self.total:
            raise ValueError(f"more is right than the {self.total} images")
        return self

    @property
    def key(self) -> tuple[Any, ...]:
        """What a point measures: the same key is never measured twice."""
        settings = json.dumps(self.settings, sort_keys=True)
        return self.attack, self.eps, self.norm, self.subset, self.weights, settings

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.total

    def summary(self) -> dict[str, Any]:
        """What is printed as JSON; of a random net also mean and 95 % t-interval over its draws, in percent."""
        said = self.model_dump(mode="json", exclude={"answers"})
        if len(self.draws) >= MIN_SEEDS:
            interval = t_interval([100 * correct / self.total for correct in self.draws])
            said["draws_interval"] = [interval.mean, interval.low, interval.high]
        return said


def is_capped(attack: str) -> bool:
    """Say whether a curve's axis is a cap on iterations instead of a radius: DeepFool's, transferred or not.

    Args:
        attack: its name.
    """
    return attack.removeprefix(TRANSFER).startswith("deepfool")


def worst_cases(points: Iterable[Point], clean: str) -> list[Point]:
    """Reduce the attacks to the worst case of every image, radius by radius.

    Args:
        points: of one net, norm and set of images, without published mistakes and without curves by iterations.
        clean: answers without an attack, as in `Point`.

    Returns:
        One point a radius: an image counts as right when every attack at that radius left it right, and it was right
        to begin with.
    """
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault((point.eps, point.norm, point.subset, point.weights), []).append(point)
    found = []
    for (eps, norm, subset, weights), members in sorted(groups.items(), key=lambda item: item[0]):
        bits = int(clean, 16)
        for point in members:
            bits &= int(point.answers, 16)
        first = members[0]
        correct = bits.bit_count()
        found.append(
            Point(
                attack=WORST,
                eps=eps,
                norm=norm,
                correct=correct,
                total=first.total,
                wilson=wilson(correct, first.total),
                answers=f"{bits:0{len(first.answers)}x}",
                subset=subset,
                weights=weights,
                settings={"attacks": sorted({p.attack for p in members})},
            )
        )
    return found


def rising(points: Sequence[Point]) -> set[str]:
    """Name the attacks whose accuracy rises with the radius by more than half a percent of the images.

    Args:
        points: of one net, norm and set of images.
    """
    found = set()
    for name in {point.attack for point in points}:
        curve = sorted((p for p in points if p.attack == name), key=lambda p: p.eps)
        lowest = curve[0].correct
        for point in curve[1:]:
            if point.correct > lowest + _SLACK * point.total:
                found.add(name)
            lowest = min(lowest, point.correct)
    return found


def flagged(points: Sequence[Point], flags: Sequence[str]) -> list[Point]:
    """Give every point the flags of the net and of its own curve.

    Args:
        points: of one net, norm and set of images.
        flags: of the net, from the masking checks.
    """
    own = rising(points)
    marked = []
    for point in points:
        more = (NOT_MONOTONE,) if point.attack in own else ()
        marked.append(point.model_copy(update={"flags": (*flags, *more) if point.eps else ()}))
    return marked


def said(flags: Sequence[str]) -> str:
    """What is said wherever a flagged accuracy is shown; nothing without flags."""
    return f"{UPPER_BOUND}, flags: {one_line(', '.join(flags))}" if flags else ""


def radius(eps: float) -> str:
    """Write a radius as people do: whole 255ths of small ones, else decimals.

    Args:
        eps: in pixels of [0, 1], or a cap on iterations.
    """
    steps = eps * 255
    return f"{round(steps)}/255" if 0 < eps < 0.1 and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"


def table(points: Sequence[Point]) -> str:
    """Lay accuracies out, a row an attack and a column a radius, with the flags under them.

    Args:
        points: of one net and set of images.
    """
    blocks = []
    for capped in (False, True):
        chosen = [p for p in points if is_capped(p.attack) == capped]
        if not chosen:
            continue
        radii = sorted({p.eps for p in chosen})
        rows = [["iterations" if capped else f"{chosen[0].norm}, eps", *map(radius, radii)]]
        for name in dict.fromkeys(p.attack for p in chosen):
            at = {p.eps: p for p in chosen if p.attack == name}
            cells = [f"{at[e].percent:.2f}{'*' if at[e].flags else ''}" if e in at else "" for e in radii]
            rows.append([name, *cells])
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        blocks += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    flags = list(dict.fromkeys(flag for point in points for flag in point.flags))
    total = points[0].total
    blocks.append(f"accuracy in percent of {total} test images; an accuracy under attack is never a guarantee")
    return "\n".join([*blocks, *([f"* {said(flags)}"] if flags else [])])


def file_of(folder: Path, attack: str, norm: str) -> Path:
    """The file of a curve.

    Args:
        folder: of the run.
        attack: its name.
        norm: "linf" or "l2".
    """
    usual = "l2" if is_capped(attack) else "linf"
    return folder / "attacks" / f"{attack.replace(' ', '-')}{'' if norm == usual else '-' + norm}.json"


def load_points(path: Path) -> list[Point]:
    """Read the points of a file; none where it is missing.

    Raises:
        UserError: the file is not what this version writes.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}, expected {VERSION}")
        return [Point(**point) for point in content["points"]]
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as attack points ({reason}); delete it to measure again") from error


def load_run_points(folder: Path) -> list[Point]:
    """Read the points of every attack that a run has met, in the order of their files.

    Args:
        folder: of the run.

    Raises:
        UserError: a file is not what this version writes.
    """
    files = [file for file in sorted(folder.glob("attacks/*.json")) if file.name != CHECKS]
    return [point for file in files for point in load_points(file)]


def save_points(path: Path, points: Sequence[Point]) -> None:
    """Write the points of a curve, whole or not at all."""
    content = {"version": VERSION, "points": [point.model_dump(mode="json") for point in points]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
