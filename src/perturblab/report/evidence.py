"""Evidence for a claim: what a preset leaves to compare, and whether its nets have learned enough to say anything."""

from dataclasses import replace
from statistics import fmean

from perturblab.report.by_setup import Places
from perturblab.report.readings import exact, trained
from perturblab.studies.catalogue import SETUPS, Claim
from perturblab.studies.presets import PRESETS
from perturblab.studies.setups import differing_flags, flags_of

_BASELINE, EVIDENCE = "K1", 55.0  # the 3x3 net, and percent on CIFAR-10 below which a study is not evidence
LEARNED = 40.0  # percent of the training images below which a net is not trained; chosen after the first K3 (31 %)


def pairs(claim: Claim) -> list[Claim]:
    """Split a claim about several rivals into one claim per rival; any other claim stays as it is."""
    return [replace(claim, right=rival, rivals=()) for rival in claim.rivals] or [claim]


def removal_reason(claim: Claim, preset: str) -> str:
    """Say why a preset leaves nothing of a claim to compare.

    If both sides have identical flags, a single run serves both, and the difference is trivially zero. The same holds
    for a rival that equals the base.

    Args:
        claim: with one right side.
        preset: its name.

    Returns:
        The reason, which follows "the preset"; "" if there is something to compare.
    """
    if preset not in PRESETS:
        return ""
    if claim.measure.metric == "smoothed" and not _is_published(claim.left, preset, "batch_size"):
        return "has test batches of another size, and the metric looks back over so many of them"
    if claim.measure.metric == "best epoch" and not _is_published(claim.left, preset, "optimizer_schedule"):
        return "anneals the rate over few epochs, so that the last one is the best"
    is_of_one_run = claim.left == claim.right  # two measures of it
    if not is_of_one_run and not flags_apart(claim, preset):
        return "gives both sides the same flags"
    if claim.base and not differing_flags(SETUPS[claim.right], SETUPS[claim.base], PRESETS[preset]):
        return f"at this preset the same as {claim.base}"
    return ""


def _is_published(setup: str, preset: str, flag: str) -> bool:
    """Say whether a preset leaves a flag as it was published."""
    return flags_of(SETUPS[setup], PRESETS[preset], 0).get(flag) == SETUPS[setup].flags.get(flag)


def flags_apart(claim: Claim, preset: str) -> tuple[str, ...]:
    """List the training flags in which the sides of a claim differ at a preset; none for an unknown preset."""
    if preset not in PRESETS:
        return ()
    return differing_flags(SETUPS[claim.left], SETUPS[claim.right], PRESETS[preset])


def weakness(claim: Claim, places: Places, preset: str) -> str:
    """Say why a claim about perturbative nets has no evidence on CIFAR-10 at a preset; "" if it has evidence."""
    if "pnn" not in claim.tags or preset not in PRESETS:
        return ""
    if flags_of(SETUPS[claim.left], PRESETS[preset], 0).get("dataset_train") != "CIFAR10":
        return ""
    sides = {side: list(places[preset, side].values()) for side in (claim.left, claim.right)}
    baseline = list(places.get((preset, _BASELINE), {}).values())
    if baseline:
        accuracy = fmean(exact(run).number for run in baseline)
        if accuracy < EVIDENCE:
            return f"the 3x3 net itself has {accuracy:.2f} %"
    elif max(fmean(exact(run).number for run in runs) for runs in sides.values()) < EVIDENCE:
        return "the 3x3 net was not measured"
    for side, runs in sides.items():
        learned = [reading.number for run in runs if (reading := trained(run))]
        if learned and fmean(learned) < LEARNED:
            return f"{side} has learned {fmean(learned):.1f} % of its training images only, less than {LEARNED:.0f} %"
    return ""
