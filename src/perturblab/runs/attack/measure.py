"""A run under attack: every attack at every radius once, kept in the run's folder, checked and drawn."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.attacks import masking
from perturblab.attacks.autoattack import autoattack, square
from perturblab.attacks.deepfool import deepfool_path
from perturblab.attacks.pixels import Frozen, untouched
from perturblab.attacks.registry import ATTACKS, Attack, Effort
from perturblab.attacks.threat import Threat, violations
from perturblab.errors import UserError
from perturblab.records import checks, numerics
from perturblab.records.attack_config import AttackConfig
from perturblab.records.attack_names import ACTIVE, FROZEN, TRANSFER, WORST, is_capped
from perturblab.records.checks import load_checks, raised_by
from perturblab.records.paths import RunFolder, file_of, point_files
from perturblab.records.pictures import curves, examples
from perturblab.records.points import Point, load_points, radius, save_points
from perturblab.records.worst_case import load_run_points
from perturblab.runs import open
from perturblab.runs.attack.partial import UNFINISHED, Unfinished
from perturblab.runs.attack.target import Target, changes, make_target
from perturblab.runs.defence import default_eps
from perturblab.seeding import stream
from perturblab.stats import wilson
from perturblab.system.terminal import Show
from perturblab.training import evaluate

# The default radii, by the usual one of the data set; up to where little should be left right.
_RADII: dict[str, dict[str, Sequence[float]]] = {
    "0.3": {"linf": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), "l2": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)},
    "8/255": {"linf": tuple(n / 255 for n in range(9)), "l2": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)},
}


def attack_run(folder: Path, config: AttackConfig, show: Show) -> list[Point]:
    """Attack a run, measuring only what its folder does not hold yet.

    Args:
        folder: of a finished run.
        config: what was asked for.
        show: where progress goes.

    Returns:
        One point for every attack and radius asked for, and at these radii the worst cases over all attacks that these
        images have met; with the flags of all checks and points in the folder.

    Raises:
        UserError: no such run or source, an attack that does not exist or does not know the norm, images too few to
            be checked, a broken file.
    """
    names = _checked_names(config)
    run, _ = open.trained_run(folder, show, changes(config))
    target = make_target(run, config, show)
    load_run_points(folder)  # a broken file is told before hours are spent
    measured = _measure_all(target, _plan(names, target, run.images.name), show)
    if config.checks:
        _check(target, measured, show)
    kept = _settle(target)
    title = f"{run.config.net} on {run.images.display}, seed {run.config.manual_seed}"
    same = [p for p in kept if (p.weights, p.subset) == (target.weights, target.subset)]
    curves.curves_svg(
        [p for p in same if p.norm == config.norm or is_capped(p.attack)],
        RunFolder(folder).attacks / "curves.svg",
        title=title,
        chance=100 / len(run.images.classes),
    )
    by_key = {p.key: p for p in same}
    radii = {p.eps for p in measured if p.is_honest}
    worst = [p for p in same if p.attack == WORST and p.norm == config.norm and p.eps in radii]
    points = [*(by_key[p.key] for p in measured), *worst]
    _draw_examples(target, points, title, run.images.classes)
    return points


def was_checked(folder: Path, points: Sequence[Point]) -> bool:
    """Say whether the masking checks have seen the nets of these points.

    Args:
        folder: of the run.
        points: of it.
    """
    seen = {raised_by(check).net for check in load_checks(folder)}
    return {point.net for point in points if point.attack != WORST} <= seen


def _checked_names(config: AttackConfig) -> list[str]:
    for name in config.attacks:
        plain = name.removeprefix(TRANSFER)
        if plain not in ATTACKS:
            raise UserError(f"--attacks got {name!r}; choose among {', '.join(ATTACKS)}, or {TRANSFER}NAME of one")
        if name != plain and config.source is None:
            raise UserError(f"--attacks got {name!r} and no --source; give the run whose images are transferred")
        if config.norm not in ATTACKS[plain].norms and not ATTACKS[plain].by_iterations:
            raise UserError(f"--norm {config.norm} is not known to {name}; it knows {', '.join(ATTACKS[plain].norms)}")
    return list(dict.fromkeys(config.attacks))


def _plan(names: Sequence[str], target: Target, dataset: str) -> list[tuple[str, float]]:
    """Every (attack, radius): a random net also as its frozen twin, which alone meets the attacks that need one."""
    grid = target.config.eps or _RADII[default_eps(dataset)][target.config.norm]
    plan = []
    for name in names:
        attack = ATTACKS[name.removeprefix(TRANSFER)]
        radii: Sequence[float] = target.config.iterations if attack.by_iterations else grid
        alone = target.random and attack.fixed and not name.startswith(TRANSFER)
        twins = [name + FROZEN] if alone else [name]
        if target.random and attack.looks and not alone:
            twins.append(name + FROZEN)
        plan += [(twin, float(eps)) for twin in twins for eps in dict.fromkeys(radii)]
    return plan


def _measure_all(target: Target, plan: Sequence[tuple[str, float]], show: Show) -> list[Point]:
    points: list[Point] = []
    images = len(target.y)
    with show.bar(len(plan) * images):
        for number, (name, eps) in enumerate(plan):

            def moved(done: int, text: str = f"{name} {radius(eps)}", before: int = number * images) -> None:
                show.move(before + done, text)

            point, is_new = _measured(target, name, eps, moved)
            points.append(point)
            if is_new:
                show.say(f"{name} {radius(eps)}: {point.percent:.2f} %  ({point.seconds:.1f} s)")
    return points


def _settings(target: Target, name: str, attack: Attack) -> dict[str, Any]:
    given = asdict(_effort(target, name))
    settings: dict[str, Any] = {key: given[key] for key in attack.settings if given[key] is not None}
    if name.startswith(TRANSFER):
        settings |= {"source": Path(str(target.config.source)).name, "source_weights": target.source_weights}
    if target.random and not name.endswith(FROZEN):
        settings["verdicts"] = target.config.verdicts
    if target.mode:
        settings["mode"] = target.mode
        if target.mode.startswith(ACTIVE) and name.endswith(FROZEN):
            settings["draw"] = "every image is moved towards the same test image"
    if attack.outside:
        settings["mistake"] = attack.about
    return settings | {"seed": target.config.manual_seed}


def _effort(target: Target, name: str) -> Effort:
    """A transfer raises the source's loss as far as it goes: what barely fools the source fools nobody else."""
    return replace(target.effort, early_stop=False) if name.startswith(TRANSFER) else target.effort


def _measured(target: Target, name: str, eps: float, moved: Callable[[int], None]) -> tuple[Point, bool]:
    """The point, from the folder where it is there; and whether it is new."""
    attack = ATTACKS[name.removeprefix(TRANSFER).removesuffix(FROZEN)]
    norm = "l2" if attack.by_iterations else target.config.norm
    path = file_of(target.folder, name, norm)
    settings = _settings(target, name, attack)
    blank = Point(
        attack=name,
        eps=eps,
        norm=norm,
        correct=0,
        total=len(target.y),
        wilson=(0, 0),
        answers="0",
        subset=target.subset,
        weights=target.weights,
        settings=settings,
    )
    if same := [point for point in load_points(path) if point.key == blank.key]:
        return same[0], False
    # An attack on a random net also draws from the global random state, which is not kept.
    kept = None if target.random else path.with_suffix(UNFINISHED)
    batches = Unfinished(kept, [*blank.key, target.config.batch_size, numerics.NUMERICS])
    with untouched(target.model, seed=target.config.manual_seed):  # in one, so that no verdict repeats a draw
        x_adv = make_images(target, name, eps, moved, batches)
        point = _judged(target, name, blank, attack, x_adv, batches.seconds)
    point = point.model_copy(update={"parts": tuple(batches.parts.items())})
    _keep(path, point)
    batches.remove()
    return point, True


def make_images(
    target: Target,
    name: str,
    eps: float,
    moved: Callable[[int], None] = lambda done: None,
    batches: Unfinished | None = None,
) -> Tensor:
    """Adversarial images of one attack at one radius.

    Args:
        target: what is attacked.
        name: of the attack.
        eps: radius in pixels, or DeepFool's cap.
        moved: told how many images are done.
        batches: those that are made already; gets the others, and how many images each part of AutoAttack left right.

    Returns:
        (N, C, H, W).
    """
    plain = name.removeprefix(TRANSFER).removesuffix(FROZEN)
    attack, model = ATTACKS[plain], target.model
    if name.startswith(TRANSFER) and target.source is not None:
        model = target.source
    if name.endswith(FROZEN):
        model = Frozen(model if name.startswith(TRANSFER) else target.twin)
    threat = Threat(target.config.norm, eps)
    if attack.by_iterations:
        return _capped(target, model, name, int(eps), moved)
    generator = stream(target.config.manual_seed, f"{name} {eps!r}")
    batches = batches or Unfinished()
    effort = _effort(target, name)
    size = len(target.y) if plain == "universal" else target.config.batch_size
    done = batches.resume(target.x, generator)
    for start in range(done, len(target.y), size):
        moved(start)
        x, y, left = target.x[start : start + size], target.y[start : start + size], dict[str, int]()
        if name.removesuffix(FROZEN) == "autoattack":  # a transfer's parts would speak of the source
            made = autoattack(model, x, y, threat, queries=effort.queries, table=left, generator=generator)
        else:
            made = attack.run(model, x, y, threat, effort, generator)
        batches.add(made, left, generator)
    moved(len(target.y))
    return torch.cat(batches.made)


def _capped(target: Target, model: nn.Module, name: str, cap: int, moved: Callable[[int], None]) -> Tensor:
    """DeepFool at one cap; the highest one asked for gives all the lower ones."""
    highest = max(cap, *target.config.iterations)
    free = Threat("l2", float("inf"))
    if name not in target.paths or len(target.paths[name]) < highest:
        parts: list[list[Tensor]] = []
        size = target.config.batch_size
        clip = not ATTACKS[name.removeprefix(TRANSFER).removesuffix(FROZEN)].outside
        for x, y in zip(target.x.split(size), target.y.split(size), strict=True):
            parts.append(deepfool_path(model, x, y, free, iterations=highest, clip=clip))
            moved(size * len(parts))
        target.paths[name] = [torch.cat(at_cap) for at_cap in zip(*parts, strict=True)]
    return target.paths[name][cap - 1]


def _judged(target: Target, name: str, blank: Point, attack: Attack, x_adv: Tensor, seconds: float) -> Point:
    """Check the images against the threat, and count by fresh forward passes."""
    limit = float("inf") if attack.by_iterations else blank.eps
    wrong = violations(x_adv, target.x, Threat(blank.norm, limit))
    if wrong.any() and not attack.outside:
        raise RuntimeError(f"{name} left the ball or the bounds in {int(wrong.sum())} of {len(wrong)} images")
    model = Frozen(target.twin) if name.endswith(FROZEN) else target.model
    fresh = target.random and not name.endswith(FROZEN)
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


def _as_hex(right: Tensor) -> str:
    bits = "".join("1" if value else "0" for value in right.tolist())
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"


def _keep(path: Path, point: Point) -> None:
    """Put a point into a file, in place of the one with its key."""
    kept = [other for other in load_points(path) if other.key != point.key]
    save_points(path, sorted([*kept, point], key=lambda p: (p.total, p.weights, p.eps)))


def _settle(target: Target) -> list[Point]:
    """Give all points of the folder their flags, and make its worst cases anew; what changed is written.

    Returns:
        All points, then the worst cases.
    """
    clean = {}
    if not target.random:
        right = evaluate.answers(target.model, target.x, target.y).correct
        clean[target.weights, target.subset] = _as_hex(right)
    points = load_run_points(target.folder, clean)
    by_key = {p.key: p for p in points}
    files = {path: [by_key[p.key] for p in load_points(path)] for path in point_files(target.folder)}
    for norm in ("linf", "l2"):
        files[file_of(target.folder, WORST, norm)] = [p for p in points if (p.attack, p.norm) == (WORST, norm)]
    for path, marked in files.items():
        if marked != load_points(path):
            save_points(path, marked)
    return points


def _check(target: Target, measured: Sequence[Point], show: Show) -> None:
    """Look for signs of a masked gradient, once for the same net, images and effort."""
    eps = checks.telling_radius(measured)
    count = min(target.config.check_subset, len(target.y))
    source = target.source_weights if target.source is not None else ""
    key = [target.subset, count, target.weights, target.config.norm, eps, asdict(target.effort), target.mode]
    key += [source, target.config.manual_seed]
    if not checks.is_checked(target.folder, key):
        show.say(f"masking checks on {count} images at {radius(eps)}")
        checks.add_check(target.folder, key, _findings(target, count, eps))


def _findings(target: Target, count: int, eps: float) -> checks.Findings:
    model, effort = target.model, target.effort
    breakers: dict[str, masking.Breaker] = {}
    if not target.random:
        queries = min(effort.queries, 1000)
        breakers["square"] = lambda x, y, t, g: square(model, x, y, t, queries=queries, generator=g)
    if target.source is not None:
        source, far = target.source, _effort(target, TRANSFER)
        breakers["transfer"] = lambda x, y, t, g: ATTACKS["pgd"].run(source, x, y, t, far, g)
    with untouched(model, seed=target.config.manual_seed):
        return masking.examine(
            model,
            target.x[:count],
            target.y[:count],
            Threat(target.config.norm, eps),
            effort=effort,
            black_boxes=breakers,
            generator=stream(target.config.manual_seed, "masking checks"),
        )


def _draw_examples(target: Target, points: Sequence[Point], title: str, classes: Sequence[str]) -> None:
    """Clean, perturbation and adversarial images at each radius."""
    shown, radii = examples.examples_of(points)
    if not radii:
        return
    whole = replace(target.effort, early_stop=False)  # what the radius allows is what is shown
    few = replace(target, x=target.x[:5], y=target.y[:5], effort=whole, paths={})
    with torch.no_grad(), untouched(target.model, seed=target.config.manual_seed):
        made = {eps: make_images(few, shown, eps) for eps in radii}
        answers = {eps: target.model(x).argmax(1).tolist() for eps, x in {0.0: few.x, **made}.items()}
    examples.examples_svg(
        few.x.cpu().numpy(),
        {eps: x.cpu().numpy() for eps, x in made.items()},
        {eps: [classes[a] for a in found] for eps, found in answers.items()},
        RunFolder(target.folder).attacks / "examples.svg",
        title=f"{title}: {shown}",
    )
