"""The masking checks on the target of an attack, each made once."""

from collections.abc import Sequence

from perturblab.attacks import masking
from perturblab.attacks.autoattack import square
from perturblab.attacks.pixels import untouched
from perturblab.attacks.registry import ATTACKS
from perturblab.attacks.threat import Threat
from perturblab.records.attack_names import AttackName
from perturblab.records.checks import Check, CheckKey, Findings, telling_radius
from perturblab.records.points import Point
from perturblab.records.radius import radius
from perturblab.records.run_points import RunPoints
from perturblab.runs.attack.target import Target
from perturblab.seeding import stream
from perturblab.system.terminal import Show


def check_net(target: Target, kept: RunPoints, measured: Sequence[Point], show: Show) -> None:
    """Look for signs of a masked gradient, once for the same net, images and effort.

    Args:
        target: net and images.
        kept: the folder of the run, which gets the findings.
        measured: points of this call, which decide the radius.
        show: where progress goes.
    """
    key = CheckKey(
        subset=target.subset,
        images=min(target.config.check_subset, len(target.y)),
        weights=target.weights,
        norm=target.config.norm,
        eps=telling_radius(measured),
        effort=target.effort,
        mode=str(target.config.mode),
        source_weights=target.source_weights if target.source is not None else "",
        seed=target.config.manual_seed,
    )
    if key not in [check.key for check in kept.checks]:
        show.say(f"masking checks on {key.images} images at {radius(key.eps)}")
        kept.add_check(Check(key=key, findings=_findings(target, key)))


def _findings(target: Target, key: CheckKey) -> Findings:
    model, effort = target.model, target.effort
    breakers: dict[str, masking.Breaker] = {}
    if not target.random:
        queries = min(effort.queries, 1000)
        breakers["square"] = lambda x, y, t, g: square(model, x, y, t, queries=queries, generator=g)
    if target.source is not None:
        source, far = target.source, target.effort_of(AttackName("pgd", is_transfer=True))
        breakers["transfer"] = lambda x, y, t, g: ATTACKS["pgd"](source, x, y, t, far, g)
    with untouched(model, seed=key.seed):
        return masking.examine(
            model,
            target.x[: key.images],
            target.y[: key.images],
            Threat(key.norm, key.eps),
            effort=effort,
            black_boxes=breakers,
            generator=stream(key.seed, "masking checks"),
        )
