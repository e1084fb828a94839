"""Flags of a masked gradient: their names, and which points carry them.

The masking checks raise flags by the numbers that they measure (`perturblab.records.checks`); points raise some by
comparison with each other, here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

from perturblab.errors import one_line
from perturblab.records.attack_names import AttackName
from perturblab.records.points import Point

UPPER_BOUND = "empirical upper bound"
ABOVE_CHANCE = "above chance at a large radius"
PGD_WEAKER = "PGD weaker than FGSM"
NOT_CONVERGED = "not converged"
BLACK_BOX = "black box stronger"
ZERO, NAN = "zero gradients", "NaN gradients"
SOFTMAX, SATURATED, RANDOM = "softmax outputs", "saturated logits", "random forward"
NOT_MONOTONE = "not monotone"
SHARE = 0.002  # of the images, as AutoAttack's flag for Square

_OF_THE_NET = {ZERO, NAN, SOFTMAX, SATURATED, RANDOM}  # whatever the norm
_ORDER = (ABOVE_CHANCE, PGD_WEAKER, NOT_CONVERGED, BLACK_BOX, ZERO, NAN, SOFTMAX, SATURATED, RANDOM, NOT_MONOTONE)
_SLACK = 0.005  # share of the images by which accuracy may rise with the radius: attacks are random


class Raised(NamedTuple):
    """The flags that were raised for one net (as in `Point.net`) in one norm; empty if a check raised none."""

    net: tuple[str, str]
    norm: str
    flags: Iterable[str]


def flag_points(points: Sequence[Point], checks: Sequence[Raised] = ()) -> list[Point]:
    """Give every point the flags of its net and of its own curve, whichever attack made it.

    A flag says that the net deceives attacks by gradient. An attack without gradients is not deceived, but where it
    left more right than those would find, its accuracy is an upper bound too.

    Args:
        points: of any nets, norms and sets of images.
        checks: flags that the masking checks raised. Points of a net that they have not seen keep their flags.

    Returns:
        The points in their order, those of radius 0 without flags.
    """
    seen = {check.net for check in checks}
    kept = [Raised(p.net, "" if p.name.kind.by_iterations else p.norm, p.flags) for p in points if p.net not in seen]
    random = [Raised(p.net, p.norm, (RANDOM,)) for p in points if p.is_random or p.name.is_frozen]
    side_by_side, weak = compare_attacks(points)
    raised: dict[tuple[tuple[str, str], str], set[str]] = {}
    for net, norm, flags in (*checks, *kept, *random, *side_by_side):
        raised.setdefault((net, norm), set()).update({*flags} - {NOT_MONOTONE})
    by_curve = {NOT_MONOTONE: rising_curves(points), PGD_WEAKER: weak}
    marked = []
    for point in points:
        found = {flag for flag, curves in by_curve.items() if point.curve in curves}
        for (net, norm), flags in raised.items():
            if net == point.net:
                found |= flags if norm == point.norm or point.name.kind.by_iterations else flags & _OF_THE_NET
        marked.append(point.model_copy(update={"flags": sort_flags(found) if point.eps else ()}))
    return marked


def sort_flags(flags: set[str]) -> tuple[str, ...]:
    """Put flags in their usual order; those of another version last."""
    return *(flag for flag in _ORDER if flag in flags), *sorted(flags - set(_ORDER))


def rising_curves(points: Sequence[Point]) -> set[tuple[str, ...]]:
    """Find the curves whose accuracy rises with the radius by more than half a percent of the images.

    Args:
        points: of any nets, norms and sets of images.

    Returns:
        Each as `Point.curve`.
    """
    found, lowest = set(), dict[tuple[str, ...], int]()
    for point in sorted(points, key=lambda p: p.eps):
        before = lowest.get(name := point.curve, point.correct)
        if point.correct > before + _SLACK * point.total:
            found.add(name)
        lowest[name] = min(before, point.correct)
    return found


def compare_attacks(points: Iterable[Point]) -> tuple[list[Raised], set[tuple[str, ...]]]:
    """Compare attacks that were made at the same radius on the same images of the same net, image by image.

    A net gets a flag where all runs of PGD together leave more right than FGSM, or where an attack without gradients
    breaks more than 0.2 % of the images, which FGSM and PGD left.

    Args:
        points: of any nets, norms and sets of images. Published mistakes are left out, and random nets, where every
            attack has its own draws.

    Returns:
        The flags by net, and the curves of PGD that alone are weaker than FGSM, as `Point.curve`.
    """
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for p in points:
        if p.eps and not (p.name.kind.by_iterations or p.is_random or p.name.is_worst or p.is_mistake):
            groups.setdefault((p.net, p.norm, p.subset, p.eps, p.name.is_frozen), []).append(p)
    raised, weak = list[Raised](), set[tuple[str, ...]]()
    fgsm, pgd = AttackName("fgsm"), AttackName("pgd")
    for (net, norm, *_), members in groups.items():
        few = SHARE * members[0].total
        right: dict[AttackName, int] = {}
        for p in members:
            name = replace(p.name, is_frozen=False)
            right[name] = right.get(name, -1) & int(p.answers, 16)
        parts = [pair for p in members for pair in pairwise(p.parts)]
        flags = [BLACK_BOX for (_, before), (part, after) in parts if part == "square" and before - after > few]
        if pgd in right:
            left = right[pgd] & right.get(fgsm, -1)
            blind = [bits for name, bits in right.items() if name.is_blind]
            flags += [BLACK_BOX for bits in blind if (left & ~bits).bit_count() > few]
        if {fgsm, pgd} <= right.keys():
            most = right[fgsm].bit_count() + few
            flags += [PGD_WEAKER] if right[pgd].bit_count() > most else []
            weak |= {p.curve for p in members if replace(p.name, is_frozen=False) == pgd and p.correct > most}
        raised.append(Raised(net, norm, flags))
    return raised, weak


def flag_note(flags: Sequence[str]) -> str:
    """Write the note that stands wherever a flagged accuracy is shown; "" without flags."""
    return f"{UPPER_BOUND}, flags: {one_line(', '.join(flags))}" if flags else ""
