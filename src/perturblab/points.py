"""Points of robustness curves: what an attack left right, as whole numbers, and what they say together."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from perturblab.errors import UserError, one_line
from perturblab.stats import MIN_SEEDS, t_interval, wilson
from perturblab.system.files import from_json, write_atomically

VERSION = 1
WORST = "worst case"
CHECKS = "checks.json"  # beside the curves: what the masking checks found
TRANSFER, FROZEN = "transfer-", " frozen"
BLIND = ("square", "uniform", "gaussian")  # attacks that follow no gradient of the net; nor do transfers
ACTIVE, AT_INFERENCE = "BatchOut active in evaluation", "BatchOut at inference"  # how modes begin, up to a comma
UPPER_BOUND = "empirical upper bound"
NO_WORST = "no worst case of a random net: every attack was judged by draws of its own"

ABOVE_CHANCE = "above chance at a large radius"
PGD_WEAKER = "PGD weaker than FGSM"
NOT_CONVERGED = "not converged"
BLACK_BOX = "black box stronger"
ZERO, NAN = "zero gradients", "NaN gradients"
SOFTMAX, SATURATED, RANDOM = "softmax outputs", "saturated logits", "random forward"
NOT_MONOTONE = "not monotone"
_OF_THE_NET = {ZERO, NAN, SOFTMAX, SATURATED, RANDOM}  # whatever the norm
_ORDER = (ABOVE_CHANCE, PGD_WEAKER, NOT_CONVERGED, BLACK_BOX, ZERO, NAN, SOFTMAX, SATURATED, RANDOM, NOT_MONOTONE)

_SLACK = 0.005  # share of the images by which accuracy may rise with the radius: attacks are random
_SHARE = 0.002  # of the images, as AutoAttack's flag for Square
_ZERO_SHARE = 0.01
_POINTS = 1.0  # accuracy that doubled effort may take away
_AT_LEAST = 5  # images; of a few hundred, one point is within the noise of random starts
FEWEST = 2 * _AT_LEAST  # the checks look where about half of the images are left, and five of these must fall

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
        parts: attacks that AutoAttack is made of, in their order, with the images that each of them left right.
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
    parts: tuple[tuple[str, Natural], ...] = ()
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
        return self.eps, *self.curve

    @property
    def curve(self) -> tuple[str, ...]:
        """What the points of one curve share: all but the radius."""
        return self.attack, self.norm, self.subset, self.weights, json.dumps(self.settings, sort_keys=True)

    @property
    def net(self) -> tuple[str, str]:
        """Which net was attacked: its weights, and how BatchOut took part in evaluation."""
        return self.weights, self.settings.get("mode", "")

    @property
    def plain(self) -> str:
        """The attack, also of the twin with frozen randomness."""
        return self.attack.removesuffix(FROZEN)

    @property
    def is_random(self) -> bool:
        """Whether the answers are those of one draw among many."""
        return "verdicts" in self.settings

    @property
    def is_honest(self) -> bool:
        """Whether it counts for a worst case: by radius, no published mistake, and one answer for one image."""
        by_radius = self.attack not in (WORST, self.plain + FROZEN) and not is_capped(self.attack)
        return by_radius and not {"mistake", "mode", "verdicts"} & self.settings.keys()

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
        One point a radius: an image counts as right when every attack left it right at that radius and at every
        smaller one, whose balls lie inside, and when it was right to begin with.
    """
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault((point.eps, point.norm, point.subset, point.weights), []).append(point)
    found, inside = list[Point](), dict[tuple[str, ...], tuple[int, set[str]]]()
    for (eps, norm, subset, weights), members in sorted(groups.items(), key=lambda item: item[0]):
        bits, attacks = inside.get((norm, subset, weights), (int(clean, 16), set[str]()))
        for point in members:
            bits &= int(point.answers, 16)
        met = attacks | {p.attack for p in members}
        inside[norm, subset, weights] = bits, met if eps else attacks  # without a radius nothing was attacked
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
                settings={"attacks": sorted(met)},
            )
        )
    return found


def with_worst(points: Sequence[Point], clean: Mapping[tuple[str, str], str] | None = None) -> list[Point]:
    """Add the worst cases of every net, norm and set of images, over all honest attacks, whatever call measured them.

    Args:
        points: of any nets, norms and sets of images.
        clean: (weights, subset) -> answers without an attack; from the points of radius 0 where it is not known.

    Returns:
        The points, and behind them a worst case wherever there were two attacks, with the flags of all of them.
    """
    honest = [p for p in points if p.is_honest]
    worst = []
    for weights, norm, subset in dict.fromkeys((p.weights, p.norm, p.subset) for p in honest):
        chosen = [p for p in honest if (p.weights, p.norm, p.subset) == (weights, norm, subset)]
        if len({p.attack for p in chosen}) > 1:
            untouched = next((p.answers for p in chosen if p.eps == 0), "f" * len(chosen[0].answers))
            # That noise happened to break less at a larger radius says nothing of a worst case, which never rises.
            flags = _sorted({f for p in chosen for f in p.flags if f != NOT_MONOTONE or p.attack not in BLIND})
            found = worst_cases(chosen, (clean or {}).get((weights, subset), untouched))
            worst += [p.model_copy(update={"flags": flags if p.eps else ()}) for p in found]
    return [*points, *worst]


def lacks_worst(points: Sequence[Point]) -> bool:
    """Say whether the worst case of these points of one net is missing because the net is random."""
    by_radius = [p for p in points if p.is_random and not is_capped(p.attack) and "mistake" not in p.settings]
    return len({p.attack for p in by_radius if not p.settings.get("mode", "").startswith(ACTIVE)}) > 1


def meaning(found: Mapping[str, Any]) -> list[str]:
    """Say which flags the numbers of the masking checks raise.

    Args:
        found: as in `perturblab.checks.Findings`, by name.
    """
    few, point = _SHARE * found["images"], _POINTS * found["images"] / 100
    # Of a random net each of these counts is of draws of its own, and tells nothing beside another.
    one_draw = not found["random"]
    raised = {
        ABOVE_CHANCE: found["large"] > found["images"] / found["classes"],
        PGD_WEAKER: one_draw and found["pgd"] > found["fgsm"] + few,
        NOT_CONVERGED: one_draw and max(found["pgd"] - found["doubled"], found["margin"]) >= max(point, _AT_LEAST),
        BLACK_BOX: one_draw and any(count > few for count in found["black_box"].values()),
        ZERO: found["zero"] > _ZERO_SHARE * found["images"],
        NAN: found["bad"] > 0,
        SOFTMAX: found["softmax"],
        SATURATED: found["saturated"] > _ZERO_SHARE * found["images"],
        RANDOM: found["random"],
    }
    return [flag for flag, is_raised in raised.items() if is_raised]


class Raised(NamedTuple):
    """Flags of a net, as in `Point.net`, in one norm; none where it was checked and nothing was found."""

    net: tuple[str, str]
    norm: str
    flags: Iterable[str]


def flagged(points: Sequence[Point], checks: Sequence[Raised] = ()) -> list[Point]:
    """Give every point the flags of its net and of its own curve, whatever attack it is of.

    A flag says that the net deceives attacks by gradient. An attack without gradients is not deceived, but where it
    left more right than those would find, its accuracy is no less an upper bound.

    Args:
        points: of any nets, norms and sets of images.
        checks: what the masking checks raised. Of a net that they have not seen, flags that its points have stay.

    Returns:
        The points in their order, those of radius 0 without flags.
    """
    seen = {check.net for check in checks}
    kept = [Raised(p.net, "" if is_capped(p.attack) else p.norm, p.flags) for p in points if p.net not in seen]
    random = [Raised(p.net, p.norm, (RANDOM,)) for p in points if p.is_random or p.attack.endswith(FROZEN)]
    side_by_side, weak = compared(points)
    raised: dict[tuple[tuple[str, str], str], set[str]] = {}
    for net, norm, flags in (*checks, *kept, *random, *side_by_side):
        raised.setdefault((net, norm), set()).update({*flags} - {NOT_MONOTONE})
    own = {NOT_MONOTONE: rising(points), PGD_WEAKER: weak}
    marked = []
    for point in points:
        told = {flag for flag, curves in own.items() if point.curve in curves}
        for (net, norm), flags in raised.items():
            if net == point.net:
                told |= flags if norm == point.norm or is_capped(point.attack) else flags & _OF_THE_NET
        marked.append(point.model_copy(update={"flags": _sorted(told) if point.eps else ()}))
    return marked


def _sorted(flags: set[str]) -> tuple[str, ...]:
    """In their usual order; those of another version last."""
    return *(flag for flag in _ORDER if flag in flags), *sorted(flags - set(_ORDER))


def rising(points: Sequence[Point]) -> set[tuple[str, ...]]:
    """Find the curves whose accuracy rises with the radius by more than half a percent of the images.

    Args:
        points: of any nets, norms and sets of images.

    Returns:
        As `Point.curve`.
    """
    found, lowest = set(), dict[tuple[str, ...], int]()
    for point in sorted(points, key=lambda p: p.eps):
        before = lowest.get(name := point.curve, point.correct)
        if point.correct > before + _SLACK * point.total:
            found.add(name)
        lowest[name] = min(before, point.correct)
    return found


def compared(points: Iterable[Point]) -> tuple[list[Raised], set[tuple[str, ...]]]:
    """Compare attacks that were made at the same radius on the same images of the same net, image by image.

    Args:
        points: of any nets, norms and sets of images; published mistakes and random nets, where every attack has draws
            of its own, are left out.

    Returns:
        What the nets raise: all runs of PGD together leave more right than FGSM, or an attack without gradients breaks
        more than 0.2 % of the images, which FGSM and PGD left. And the runs of PGD that alone are weaker than FGSM.
    """
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for p in points:
        if p.eps and not (is_capped(p.attack) or p.is_random or p.attack == WORST or "mistake" in p.settings):
            groups.setdefault((p.net, p.norm, p.subset, p.eps, p.attack.endswith(FROZEN)), []).append(p)
    raised, weak = list[Raised](), set[tuple[str, ...]]()
    for (net, norm, *_), members in groups.items():
        few = _SHARE * members[0].total
        right: dict[str, int] = {}
        for p in members:
            right[p.plain] = right.get(p.plain, -1) & int(p.answers, 16)
        parts = [pair for p in members for pair in pairwise(p.parts)]
        flags = [BLACK_BOX for (_, before), (name, after) in parts if name == "square" and before - after > few]
        if "pgd" in right:
            left = right["pgd"] & right.get("fgsm", -1)
            blind = [bits for name, bits in right.items() if name in BLIND or name.startswith(TRANSFER)]
            flags += [BLACK_BOX for bits in blind if (left & ~bits).bit_count() > few]
        if {"fgsm", "pgd"} <= right.keys():
            most = right["fgsm"].bit_count() + few
            flags += [PGD_WEAKER] if right["pgd"].bit_count() > most else []
            weak |= {p.curve for p in members if p.plain == "pgd" and p.correct > most}
        raised.append(Raised(net, norm, flags))
    return raised, weak


def said(flags: Sequence[str]) -> str:
    """What is said wherever a flagged accuracy is shown; nothing without flags."""
    return f"{UPPER_BOUND}, flags: {one_line(', '.join(flags))}" if flags else ""


def radius(eps: float) -> str:
    """Write a radius in pixels of [0, 1], or a cap on iterations, as people do: small ones as 255ths, else decimals."""
    steps = eps * 255
    return f"{round(steps)}/255" if 0 < eps < 0.1 and abs(steps - round(steps)) < 1e-6 else f"{eps:g}"


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
        content = from_json(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}, expected {VERSION}")
        return [Point(**point) for point in content["points"]]
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as attack points ({reason}); delete it to measure again") from error


def load_checks(folder: Path) -> list[dict[str, Any]]:
    """Read what the masking checks have left in a run's folder; nothing where there were none.

    Args:
        folder: of the run.

    Raises:
        UserError: the file is not what this version writes.
    """
    path = folder / "attacks" / CHECKS
    try:
        kept: list[dict[str, Any]] = from_json(path.read_text(encoding="utf-8")) if path.is_file() else []
        list(map(raised_by, kept))
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as masking checks ({error}); delete it to check again") from error
    return kept


def save_checks(folder: Path, checks: Sequence[Mapping[str, Any]]) -> None:
    """Write what the masking checks have found, whole or not at all."""
    write_atomically(folder / "attacks" / CHECKS, (json.dumps(checks, indent=1) + "\n").encode())


def raised_by(check: Mapping[str, Any]) -> Raised:
    """Say what a check raised: by its numbers, since what they mean may have been refined."""
    _, _, weights, norm, _, _, mode, *_ = check["key"]
    return Raised((str(weights), str(mode)), str(norm), meaning(check["findings"]))


def point_files(folder: Path) -> list[Path]:
    """The files of a run's curves, without the worst cases, which are made of them."""
    worst = file_of(folder, WORST, "linf").stem
    files = sorted(folder.glob("attacks/*.json"))
    return [file for file in files if file.name != CHECKS and not file.name.startswith(worst)]


def load_run_points(folder: Path, clean: Mapping[tuple[str, str], str] | None = None) -> list[Point]:
    """Read the points of every attack that a run has met, in the order of their files, then the worst cases.

    Args:
        folder: of the run.
        clean: as for `with_worst`.

    Returns:
        Points with all flags that the checks in the folder and the points together raise, whichever call made them.

    Raises:
        UserError: a file is not what this version writes.
    """
    points = [point for file in point_files(folder) for point in load_points(file)]
    return with_worst(flagged(points, list(map(raised_by, load_checks(folder)))), clean)


def save_points(path: Path, points: Sequence[Point]) -> None:
    """Write the points of a curve, whole or not at all."""
    content = {"version": VERSION, "points": [point.model_dump(mode="json") for point in points]}
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
