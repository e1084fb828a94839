"""Flags of a masked gradient: which signs raise them, and which points carry them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from perturblab.errors import one_line
from perturblab.records.attack_names import BLIND, FROZEN, TRANSFER, WORST, is_capped
from perturblab.records.points import Point

UPPER_BOUND = "empirical upper bound"


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


def meaning(found: Mapping[str, Any]) -> list[str]:
    """Say which flags the numbers of the masking checks raise.

    Args:
        found: as in `perturblab.records.checks.Findings`, by name.
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
        marked.append(point.model_copy(update={"flags": in_order(told) if point.eps else ()}))
    return marked


def in_order(flags: set[str]) -> tuple[str, ...]:
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
