"""Adversarial images of a run: all of an attack at one radius, and the first few in a picture."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from perturblab.attacks.autoattack import Ensemble, attack_in_turn
from perturblab.attacks.deepfool import deepfool_path
from perturblab.attacks.pixels import Frozen, untouched
from perturblab.attacks.registry import ATTACKS
from perturblab.attacks.threat import Threat
from perturblab.records.attack_names import AttackName
from perturblab.records.paths import RunFolder
from perturblab.records.pictures import examples
from perturblab.records.points import Point
from perturblab.runs.attack.partial import Unfinished
from perturblab.runs.attack.target import Target
from perturblab.seeding import stream


def make_images(
    target: Target,
    name: AttackName,
    eps: float,
    moved: Callable[[int], None] = lambda done: None,
    batches: Unfinished | None = None,
) -> Tensor:
    """Make the adversarial images of one attack at one radius.

    Args:
        target: net and images.
        name: of the attack.
        eps: radius in pixels, or DeepFool's cap.
        moved: called with the number of images done.
        batches: those that are made already; gets the others, and how many images each part of AutoAttack left right.

    Returns:
        (N, C, H, W).
    """
    model = target.source if name.is_transfer and target.source is not None else target.model
    if name.is_frozen:
        model = Frozen(model if name.is_transfer else target.twin)
    threat = Threat(target.config.norm, eps)
    if name.kind.by_iterations:
        return _capped(target, model, name, int(eps), moved)
    generator = stream(target.config.manual_seed, f"{name} {eps!r}")
    batches = batches or Unfinished()
    effort = target.effort_of(name)
    size = len(target.y) if name.plain == "universal" else target.config.batch_size
    done = batches.resume(target.x, generator)
    for start in range(done, len(target.y), size):
        moved(start)
        x, y, parts = target.x[start : start + size], target.y[start : start + size], dict[str, int]()
        if name.plain == "autoattack" and not name.is_transfer:  # a transfer's parts would speak of the source
            made, parts = attack_in_turn(model, x, y, threat, Ensemble(queries=effort.queries), generator=generator)
        else:
            made = ATTACKS[name.plain](model, x, y, threat, effort, generator)
        batches.add(made, parts, generator)
    moved(len(target.y))
    return torch.cat(batches.made)


def _capped(target: Target, model: nn.Module, name: AttackName, cap: int, moved: Callable[[int], None]) -> Tensor:
    """Make DeepFool's images at one cap; the highest cap asked for gives those of all lower ones."""
    highest = max(cap, *target.config.iterations)
    free = Threat("l2", float("inf"))
    if name.kind.is_mistake:
        free = free.without_bounds()
    if name not in target.paths or len(target.paths[name]) < highest:
        parts: list[list[Tensor]] = []
        size = target.config.batch_size
        for x, y in zip(target.x.split(size), target.y.split(size), strict=True):
            parts.append(deepfool_path(model, x, y, free, iterations=highest))
            moved(size * len(parts))
        target.paths[name] = [torch.cat(at_cap) for at_cap in zip(*parts, strict=True)]
    return target.paths[name][cap - 1]


def draw_examples(target: Target, points: Sequence[Point], title: str, classes: Sequence[str]) -> None:
    """Draw clean, perturbation and adversarial images at each radius into the folder of the run.

    Args:
        target: net and images.
        points: of this call; where none has a radius, nothing is drawn.
        title: one line over the picture.
        classes: their names.
    """
    shown, radii = examples.examples_of(points)
    if not radii:
        return
    whole = replace(target.effort, early_stop=False)  # the picture shows how far the radius lets an attack go
    few = replace(target, x=target.x[:5], y=target.y[:5], effort=whole, paths={})
    with torch.no_grad(), untouched(target.model, seed=target.config.manual_seed):
        made = {eps: make_images(few, AttackName.parse(shown), eps) for eps in radii}
        answers = {eps: target.model(x).argmax(1).tolist() for eps, x in {0.0: few.x, **made}.items()}
    examples.examples_svg(
        few.x.cpu().numpy(),
        {eps: x.cpu().numpy() for eps, x in made.items()},
        {eps: [classes[a] for a in of_images] for eps, of_images in answers.items()},
        RunFolder(target.folder).attacks / "examples.svg",
        title=f"{title}: {shown}",
    )
