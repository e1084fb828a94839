"""A run under attack: every attack at every radius once, kept in the run's folder, checked and drawn."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from perturblab.attacks.pixels import Frozen, untouched
from perturblab.attacks.threat import Threat, violations
from perturblab.errors import UserError
from perturblab.records import numerics
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import ACTIVE, ATTACK_KINDS, AttackName
from perturblab.records.paths import RunFolder, file_of
from perturblab.records.pictures import curves
from perturblab.records.points import Point
from perturblab.records.radius import radius
from perturblab.records.run_points import RunPoints
from perturblab.runs import open
from perturblab.runs.attack.check import check_net
from perturblab.runs.attack.images import draw_examples, make_images
from perturblab.runs.attack.partial import UNFINISHED, Unfinished
from perturblab.runs.attack.target import Target, changes, make_target
from perturblab.runs.defence import default_eps
from perturblab.stats import wilson
from perturblab.system.terminal import Show
from perturblab.training import evaluate

# The default radii, by the usual one of the data set; up to where little should be left right.
_RADII: dict[str, dict[str, Sequence[float]]] = {
    "0.3": {"linf": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "l2": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)},
    "8/255": {"linf": tuple(n / 255 for n in range(9)), "l2": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)},
}


def attack_run(folder: Path, config: AttackConfig, show: Show) -> list[Point]:
    """Attack a run, measuring only the points that its folder lacks.

    Args:
        folder: of a finished run.
        config: settings asked for.
        show: where progress goes.

    Returns:
        One point for every attack and radius asked for, and at these radii the worst cases over all attacks that these
        images have met; with the flags of all checks and points in the folder.

    Raises:
        UserError: no such run or source, an attack that does not exist or does not know the norm, too few images for
            the checks, a broken file.
    """
    names = _checked_names(config)
    run = open.open_trained(folder, show, changes(config))
    target = make_target(run, config, show)
    kept = RunPoints(folder)
    kept.marked()  # a broken file is reported before hours are spent
    measured = _measure_all(target, kept, _plan(names, target, run.images.name), show)
    if config.checks:
        check_net(target, kept, measured, show)
    same = [p for p in kept.settle(_clean(target)) if (p.weights, p.subset) == (target.weights, target.subset)]
    title = f"{run.config.net} on {run.images.display}, seed {run.config.manual_seed}"
    curves.curves_svg(
        [p for p in same if p.norm == config.norm or p.name.kind.by_iterations],
        RunFolder(folder).attacks / "curves.svg",
        title=title,
        chance=100 / len(run.images.classes),
    )
    by_key = {p.key: p for p in same}
    radii = {p.eps for p in measured if p.is_honest}
    worst = [p for p in same if p.name.is_worst and p.norm == config.norm and p.eps in radii]
    points = [*(by_key[p.key] for p in measured), *worst]
    draw_examples(target, points, title, run.images.classes)
    return points


def _checked_names(config: AttackConfig) -> list[AttackName]:
    for name in config.names:
        if name.plain not in ATTACK_KINDS or name.is_frozen:
            choices = f"{', '.join(ATTACK_KINDS)}, or {AttackName('NAME', is_transfer=True)} of one"
            raise UserError(f"--attacks got {str(name)!r}; choose among {choices}")
        if name.is_transfer and config.source is None:
            raise UserError(f"--attacks got {str(name)!r} and no --source; give the run whose images are transferred")
        if config.norm not in name.kind.norms and not name.kind.by_iterations:
            raise UserError(f"--norm {config.norm} is not known to {name}; it knows {', '.join(name.kind.norms)}")
    return config.names


def _plan(names: Sequence[AttackName], target: Target, dataset: str) -> list[tuple[AttackName, float]]:
    """List every attack with every radius; a random net meets some also, or only, as its frozen twin."""
    grid = target.config.eps or _RADII[default_eps(dataset)][target.config.norm]
    plan = []
    for name in names:
        radii: Sequence[float] = target.config.iterations if name.kind.by_iterations else grid
        twins = name.on_random_net() if target.random else (name,)
        plan += [(twin, float(eps)) for twin in twins for eps in dict.fromkeys(radii)]
    return plan


def _measure_all(target: Target, kept: RunPoints, plan: Sequence[tuple[AttackName, float]], show: Show) -> list[Point]:
    points: list[Point] = []
    images = len(target.y)
    with show.bar(len(plan) * images):
        for number, (name, eps) in enumerate(plan):

            def moved(done: int, text: str = f"{name} {radius(eps)}", before: int = number * images) -> None:
                show.move(before + done, text)

            blank = _blank(target, name, eps)
            point = kept.find(blank)
            if point is None:
                point = _measure(target, kept, blank, moved)
                show.say(f"{name} {radius(eps)}: {point.percent:.2f} %  ({point.seconds:.1f} s)")
            points.append(point)
    return points


def _settings(target: Target, name: AttackName) -> dict[str, Any]:
    values = asdict(target.effort_of(name))
    settings: dict[str, Any] = {key: values[key] for key in name.kind.reads if values[key] is not None}
    if name.is_transfer:
        settings |= {"source": Path(str(target.config.source)).name, "source_weights": target.source_weights}
    if target.random and not name.is_frozen:
        settings["verdicts"] = target.config.verdicts
    mode = target.config.mode
    if mode.kind:
        settings["mode"] = str(mode)
        if mode.kind == ACTIVE and name.is_frozen:
            settings["draw"] = "every image is moved towards the same test image"
    if name.kind.is_mistake:
        settings["mistake"] = name.kind.about
    return settings | {"seed": target.config.manual_seed}


def _blank(target: Target, name: AttackName, eps: float) -> Point:
    """Make the point of an attack at a radius, without its results."""
    return Point(
        attack=str(name),
        eps=eps,
        norm="l2" if name.kind.by_iterations else target.config.norm,
        correct=0,
        total=len(target.y),
        wilson=(0, 0),
        answers="0",
        subset=target.subset,
        weights=target.weights,
        settings=_settings(target, name),
    )


def _measure(target: Target, kept: RunPoints, blank: Point, moved: Callable[[int], None]) -> Point:
    # An attack on a random net also draws from the global random state, which is not saved.
    path = None if target.random else file_of(target.folder, blank.name, blank.norm).with_suffix(UNFINISHED)
    batches = Unfinished(path, [*blank.key, target.config.batch_size, numerics.NUMERICS])
    # Attack and verdicts share one random stream, so no verdict reuses a draw of the attack.
    with untouched(target.model, seed=target.config.manual_seed):
        x_adv = make_images(target, blank.name, blank.eps, moved, batches)
        point = _judged(target, blank, x_adv, batches.seconds)
    point = point.model_copy(update={"parts": tuple(batches.parts.items())})
    kept.add(point)
    batches.remove()
    return point


def _judged(target: Target, blank: Point, x_adv: Tensor, seconds: float) -> Point:
    """Check the images against the threat, and count right answers in fresh forward passes."""
    name = blank.name
    limit = float("inf") if name.kind.by_iterations else blank.eps
    wrong = violations(x_adv, target.x, Threat(blank.norm, limit))
    if wrong.any() and not name.kind.is_mistake:
        raise RuntimeError(f"{name} left the ball or the bounds in {int(wrong.sum())} of {len(wrong)} images")
    model = Frozen(target.twin) if name.is_frozen else target.model
    fresh = target.random and not name.is_frozen
    times = target.config.verdicts if fresh else 1
    verdicts = [evaluate.answers(model, x_adv, target.y).correct for _ in range(times)]
    counts = tuple(int(v.sum()) for v in verdicts)
    delta = (x_adv - target.x).flatten(1)
    distance = delta.abs().amax(1) if blank.norm == "linf" else delta.norm(dim=1)
    fooled = distance[~verdicts[0].to(distance.device) & (distance > 0)]
    correct = sum(counts) // len(counts)
    return blank.model_copy(
        update={
            "correct": correct,
            "wilson": wilson(correct, blank.total),
            "answers": _as_hex(verdicts[0]),
            "draws": counts if fresh else (),
            "distance": float(distance.max()),
            "median": float(fooled.median()) if len(fooled) else None,
            "seconds": round(seconds, 3),
        }
    )


def _clean(target: Target) -> dict[tuple[str, str], str]:
    """Give the answers without an attack, as `with_worst` takes them; nothing for a random net."""
    if target.random:
        return {}
    return {(target.weights, target.subset): _as_hex(evaluate.answers(target.model, target.x, target.y).correct)}


def _as_hex(right: Tensor) -> str:
    bits = "".join("1" if value else "0" for value in right.tolist())
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"
