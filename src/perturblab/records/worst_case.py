"""The worst case over all attacks that an image has met."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from perturblab.records.attack_names import ACTIVE, WORST
from perturblab.records.flags import NOT_MONOTONE, sort_flags
from perturblab.records.points import Point
from perturblab.stats import wilson

NO_WORST = "no worst case of a random net: every attack was judged by draws of its own"


def worst_cases(points: Iterable[Point], clean: str) -> list[Point]:
    """Reduce the attacks to the worst case of every image, radius by radius.

    Args:
        points: of one net, norm and set of images, without published mistakes and without curves by iterations.
        clean: answers without an attack, as in `Point`.

    Returns:
        One point per radius: an image counts as right when every attack left it right at that radius and at every
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
    """Add the worst cases of every net, norm and set of images, over all honest attacks of all calls.

    Args:
        points: of any nets, norms and sets of images.
        clean: (weights, subset) -> answers without an attack; taken from the points of radius 0 where it is missing.

    Returns:
        The points, then a worst case wherever there were two attacks, with the flags of all of them.
    """
    honest = [p for p in points if p.is_honest]
    worst = []
    for weights, norm, subset in dict.fromkeys((p.weights, p.norm, p.subset) for p in honest):
        chosen = [p for p in honest if (p.weights, p.norm, p.subset) == (weights, norm, subset)]
        if len({p.attack for p in chosen}) > 1:
            untouched = next((p.answers for p in chosen if p.eps == 0), "f" * len(chosen[0].answers))
            # Noise that happened to break less at a larger radius says nothing about a worst case, which never rises.
            noise = {p.attack for p in chosen if p.name.kind.is_blind and not p.name.is_transfer}
            flags = sort_flags({f for p in chosen for f in p.flags if f != NOT_MONOTONE or p.attack not in noise})
            cases = worst_cases(chosen, (clean or {}).get((weights, subset), untouched))
            worst += [p.model_copy(update={"flags": flags if p.eps else ()}) for p in cases]
    return [*points, *worst]


def lacks_worst(points: Sequence[Point]) -> bool:
    """Say whether the worst case of these points of one net is missing because the net is random."""
    by_radius = [p for p in points if p.is_random and not (p.name.kind.by_iterations or p.is_mistake)]
    return len({p.attack for p in by_radius if p.mode.kind != ACTIVE}) > 1
