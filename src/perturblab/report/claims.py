"""Claims about differences beside what was measured: pure functions of runs and of the catalogue."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from perturblab import stats
from perturblab.records.flags import BLACK_BOX, NOT_CONVERGED, PGD_WEAKER, SATURATED, flag_note
from perturblab.records.record import Parameters
from perturblab.records.results import Result
from perturblab.report.by_setup import Places, Seeds, flags_in, mixture, presets_run, values_of
from perturblab.report.readings import EVERY_EPOCH, exact, images_of_all, trained
from perturblab.report.verdicts import ClaimVerdict, against_claim
from perturblab.studies.catalogue import RELATIONS, SETUPS, Relation
from perturblab.studies.presets import PRESETS
from perturblab.studies.setups import differing, flags_of

_BASELINE, EVIDENCE = "K1", 55.0  # the 3x3 net, and the percent on CIFAR-10 below which a study is none
LEARNED = 40.0  # percent of the training images below which a net is not trained; chosen after the first K3 (31 %)
_SAME_FLAGS = "gives both sides the same flags"
# What the checks find wanting in PGD, and AutoAttack is made for: it has losses without the softmax, steps that adapt,
# and a search without gradients.
_ANSWERED = {"autoattack": {SATURATED, PGD_WEAKER, NOT_CONVERGED, BLACK_BOX}}


@dataclass(frozen=True)
class Compared:
    """A claim at one preset.

    Args:
        preset: its name.
        sides: the two set-ups.
        differences: seed -> left minus right, in points (of "volatility": in units of the loss).
        left: mean of the left side over these seeds.
        right: mean of the right side.
        paired: the comparison by seed; of "every epoch" that of the last epoch.
        verdict: on the claimed range, of several rivals after Holm's correction; None where nothing was claimed.
        flags: of the left side and of the right one.
        differing: flags of the training command in which the sides differ at this preset.
        note: what else is to be said.
        weak: why it is no evidence; "" where it is.
        data: names of the test images.
        sizes: parameters, masks and multiplications of both sides.
        attack: that both sides were under; "" for clean images.
        images: test images that both sides rest on; 0 where that is not said.
        of: images of the whole test set.
        holm_p: p corrected for all comparisons with the same net; None where there is one only, or a claimed range.
    """

    preset: str
    sides: tuple[str, str]
    differences: Mapping[int, float]
    left: float
    right: float
    paired: stats.Paired
    verdict: ClaimVerdict | None
    flags: tuple[tuple[str, ...], tuple[str, ...]]
    differing: tuple[str, ...] = ()
    note: str = ""
    weak: str = ""
    data: tuple[str, ...] = ()
    sizes: tuple[Parameters, ...] = ()
    attack: str = ""
    images: int = 0
    of: int = 0
    holm_p: float | None = None

    @property
    def comparison(self) -> stats.Paired:
        """The comparison by seed, with the verdict after Holm's correction."""
        is_lost = self.holm_p is not None and self.holm_p >= stats.ALPHA
        return replace(self.paired, verdict="not distinguishable") if is_lost else self.paired

    def is_shown(self, word: str, low: float | None = None, high: float | None = None) -> bool:
        """Say whether a verdict stands: an accuracy that is an upper bound cannot be what makes its side better.

        Args:
            word: the verdict.
            low, high: ends of the claimed range of left minus right; None where it is open.
        """
        left, right = (bool({*flags} - _ANSWERED.get(self.attack, set())) for flags in self.flags)
        needs_left = word == "better" or (word == "agrees" and low is not None)
        needs_right = word == "worse" or (word == "agrees" and high is not None)
        return not ((left and needs_left) or (right and needs_right))

    @property
    def part(self) -> str:
        """Which part of the test set was counted, such as "1,000 of 10,000 test images"; "" for all of it."""
        return f"{self.images:,} of {self.of:,} test images" if 0 < self.images < self.of else ""

    @property
    def flagged(self) -> str:
        """Which side is an upper bound, and by what signs; "" where none is."""
        left, right = self.flags
        if left == right:
            return f"both sides: {flag_note(left)}" if left else ""
        pairs = zip(self.sides, self.flags, strict=True)
        return "; ".join(f"{side}: {flag_note(flags)}" for side, flags in pairs if flags)


@dataclass(frozen=True)
class ClaimFinding:
    """A claim about a difference.

    Args:
        relation: the claim.
        measured: at every preset, the largest preset first.
        removed: preset that was run -> why it leaves nothing to compare.
    """

    relation: Relation
    measured: tuple[Compared, ...]
    removed: Mapping[str, str] = field(default_factory=dict)


def claim_findings(places: Places) -> list[ClaimFinding]:
    """Put every claim about a difference beside what was measured, paired by seed.

    Args:
        places: from `by_place`.

    Returns:
        One finding a relation of the catalogue, in its order.
    """
    found = []
    for relation in RELATIONS.values():
        sides = pairs(relation)
        setups = {relation.left, *(side.right for side in sides)}
        ran = [preset for preset in presets_run(places) if {(preset, setup) for setup in setups} <= places.keys()]
        whys = {preset: [is_removed(side, preset) for side in sides] for preset in ran}
        removed = {preset: why[0] for preset, why in whys.items() if all(why)}
        compared = (_above_all(sides, places, preset) for preset in ran if preset not in removed)
        found.append(ClaimFinding(relation, tuple(c for c in compared if c is not None), removed))
    return _corrected(found)


def _corrected(found: Sequence[ClaimFinding]) -> list[ClaimFinding]:
    """Judge differences without a claimed range by p values that are corrected for all those with the same net."""
    families: dict[tuple[str, str, str], dict[str, float]] = {}
    for preset in {compared.preset for finding in found for compared in finding.measured}:
        open_ones = {
            (finding.relation.id, finding.relation.measure.metric): compared
            for finding in found
            for compared in finding.measured
            if compared.preset == preset and compared.verdict is None and compared.paired.n >= stats.MIN_SEEDS
        }
        counts = Counter((side, metric) for (_, metric), compared in open_ones.items() for side in compared.sides)
        for (name, metric), compared in open_ones.items():
            control = max(reversed(compared.sides), key=lambda side: counts[side, metric])
            if compared.paired.t_p is not None:
                families.setdefault((preset, control, metric), {})[name] = compared.paired.t_p
    adjusted = {
        (preset, name): (p, control, len(family))
        for (preset, control, _), family in families.items()
        for name, p in zip(family, stats.holm(list(family.values())), strict=True)
        if len(family) > 1
    }
    return [
        replace(
            finding,
            measured=tuple(
                _judged(compared, *adjusted[compared.preset, finding.relation.id])
                if (compared.preset, finding.relation.id) in adjusted
                else compared
                for compared in finding.measured
            ),
        )
        for finding in found
    ]


def _judged(compared: Compared, p: float, control: str, count: int) -> Compared:
    note = "; ".join(filter(None, (compared.note, f"Holm p = {p:.3g} over {count} comparisons with {control}")))
    return replace(compared, note=note, holm_p=p)


def _above_all(sides: Sequence[Relation], places: Places, preset: str) -> Compared | None:
    """One comparison as it is; of several with one left side the closest, judged by all after Holm's correction."""
    found = {side.right: c for side in sides if not is_removed(side, preset) and (c := _claim(side, places, preset))}
    if len(sides) == 1 or not found:
        return next(iter(found.values()), None)
    idle = {side.right: is_removed(side, preset) for side in sides if is_removed(side, preset)}
    idle |= {name: compared.weak for name, compared in found.items() if compared.weak}
    found = {name: compared for name, compared in found.items() if name not in idle} or found
    closest = min(found.values(), key=lambda compared: compared.paired.difference)
    tested = [compared.paired.t_p for compared in found.values()]
    if any(p is None for p in tested) or any(c.paired.n < stats.MIN_SEEDS for c in found.values()):
        return replace(closest, verdict="too few seeds")
    adjusted = dict(zip(found, stats.holm([p for p in tested if p is not None]), strict=True))
    holds = {name: adjusted[name] < stats.ALPHA for name in found}
    is_above = {name: compared.paired.difference > 0 for name, compared in found.items()}
    verdict: ClaimVerdict = "not distinguishable"
    if any(holds[name] and not is_above[name] for name in found):
        verdict = "lower"
    elif all(holds[name] and is_above[name] for name in found):
        verdict = "agrees"
    beside = ", ".join(
        f"{name} {stats.signed(compared.paired.difference)} (p {adjusted[name]:.3g})"
        for name, compared in found.items()
    )
    note = f"Shown is the closest; of all, with Holm's correction: {beside}"
    note += "".join(f"; left out: {name} ({why})" for name, why in idle.items() if name not in found)
    return replace(closest, verdict=verdict, note=note)


def pairs(relation: Relation) -> list[Relation]:
    """Split a claim about several factors into one a rival; another one is itself."""
    return [replace(relation, right=rival, rivals=()) for rival in relation.rivals] or [relation]


def is_removed(relation: Relation, preset: str) -> str:
    """Say why a preset leaves nothing of a claim.

    Args:
        relation: the claim, with one right side.
        preset: its name.

    Returns:
        The reason, which follows "the preset"; "" where there is something to compare.

    One that gives both sides the same flags trains once, and the difference of that run to itself says nothing. Of a
    claim about several factors the same holds for a rival that is the base.
    """
    if preset not in PRESETS:
        return ""
    if relation.measure.metric == "smoothed" and not _is_published(relation.left, preset, "batch_size"):
        return "has test batches of another size, and the metric looks back over so many of them"
    if relation.measure.metric == "best epoch" and not _is_published(relation.left, preset, "optimizer_schedule"):
        return "anneals the rate over few epochs, so that the last one is the best"
    is_of_one_run = relation.left == relation.right  # two measures of it
    if not is_of_one_run and not _differing(relation, preset):
        return _SAME_FLAGS
    if relation.base and not differing(SETUPS[relation.right], SETUPS[relation.base], PRESETS[preset]):
        return f"at this preset the same as {relation.base}"
    return ""


def _is_published(setup: str, preset: str, flag: str) -> bool:
    """Whether a preset leaves a flag as it was published."""
    return flags_of(SETUPS[setup], PRESETS[preset], 0).get(flag) == SETUPS[setup].flags.get(flag)


def _differing(relation: Relation, preset: str) -> tuple[str, ...]:
    if preset not in PRESETS:
        return ()
    return differing(SETUPS[relation.left], SETUPS[relation.right], PRESETS[preset])


def _claim(relation: Relation, places: Places, preset: str) -> Compared | None:
    sides = (
        (places.get((preset, relation.left), {}), relation.measure),
        (places.get((preset, relation.right), {}), relation.right_measure or relation.measure),
    )
    images = images_of_all(*((seeds.values(), measure) for seeds, measure in sides))
    left, right = (values_of(seeds, measure, images) for seeds, measure in sides)
    both = [seed for seed in left if seed in right]
    ran = {seed: [places[preset, side][seed].record for side in (relation.left, relation.right)] for seed in both}
    common = [seed for seed, (one, other) in ran.items() if one.data.hashes == other.data.hashes]
    if not common:
        return None
    a, b = [left[seed].number for seed in common], [right[seed].number for seed in common]
    compared = stats.paired(a, b)
    interval = compared.interval
    notes = [] if common == both else [f"{len(both) - len(common)} seeds left out: their images differ"]
    notes += mixture(record for seed in common for record in ran[seed])
    verdict = against_claim(interval, relation.low, relation.high)
    if relation.measure.metric == EVERY_EPOCH:
        verdict, counted = _throughout(relation, places[preset, relation.left], places[preset, relation.right], common)
        notes.append(counted)
    return Compared(
        preset,
        (relation.left, relation.right),
        {seed: left[seed].number - right[seed].number for seed in common},
        fmean(a),
        fmean(b),
        compared,
        verdict,
        (flags_in(left.values()), flags_in(right.values())),
        _differing(relation, preset),
        "; ".join(notes),
        _weak(relation, places, preset),
        tuple(sorted({record.data.test for seed in common for record in ran[seed]})),
        tuple(record.parameters for record in ran[common[0]]),
        relation.measure.attack,
        min(v.images for side in (left, right) for v in side.values()),
        ran[common[0]][0].counts.last.total,
    )


def _weak(relation: Relation, places: Places, preset: str) -> str:
    """Why a claim about perturbative nets has no evidence on CIFAR-10 at a preset; "" where it has."""
    if "pnn" not in relation.tags or preset not in PRESETS:
        return ""
    if flags_of(SETUPS[relation.left], PRESETS[preset], 0).get("dataset_train") != "CIFAR10":
        return ""
    sides = {side: list(places[preset, side].values()) for side in (relation.left, relation.right)}
    baseline = list(places.get((preset, _BASELINE), {}).values())
    if baseline:
        accuracy = fmean(exact(run).number for run in baseline)
        if accuracy < EVIDENCE:
            return f"the 3x3 net itself has {accuracy:.2f} %"
    elif max(fmean(exact(run).number for run in runs) for runs in sides.values()) < EVIDENCE:
        return "the 3x3 net was not measured"
    for side, runs in sides.items():
        learned = [found.number for run in runs if (found := trained(run))]
        if learned and fmean(learned) < LEARNED:
            return f"{side} has learned {fmean(learned):.1f} % of its training images only, less than {LEARNED:.0f} %"
    return ""


def _throughout(
    relation: Relation, left: Seeds, right: Seeds, common: Sequence[int]
) -> tuple[ClaimVerdict | None, str]:
    """The verdict of every audited epoch; together they agree only when each of them does."""
    verdicts = []
    for rows in zip(*(_audited(side[seed]) for seed in common for side in (left, right)), strict=False):
        differences = [a["exact"] - b["exact"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
        verdicts.append(against_claim(stats.t_interval(differences), relation.low, relation.high))
    if not verdicts:
        return None, "no audited epochs"
    counted = {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}
    said = ", ".join(f"{word} in {count} of {len(verdicts)} epochs" for word, count in counted.items())
    worst = max(verdicts, key=lambda word: (word in ("lower", "higher"), word != "agrees"))
    return worst, said


def _audited(run: Result) -> list[Mapping[str, float]]:
    return [row for row in run.metrics if row.get("exact") is not None]
