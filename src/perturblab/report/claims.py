"""Claims about differences beside their measurements: pure functions of runs and of the catalogue."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from perturblab import stats
from perturblab.records.flags import BLACK_BOX, NOT_CONVERGED, PGD_WEAKER, SATURATED, flag_note
from perturblab.records.record import Parameters
from perturblab.records.results import Result
from perturblab.report.by_setup import Places, Seeds, flags_of_values, note_mixture, presets_run, values_of
from perturblab.report.evidence import flags_apart, pairs, removal_reason, weakness
from perturblab.report.readings import EVERY_EPOCH, images_of_all
from perturblab.report.verdicts import ClaimVerdict, against_claim
from perturblab.studies.catalogue import CLAIMS, Claim

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
        verdict: on the claimed range, of several rivals after Holm's correction; None if nothing was claimed.
        flags: of the left side and of the right one.
        differing: flags of the training command in which the sides differ at this preset.
        note: further remarks.
        weak: why it is not evidence; "" if it is.
        data: names of the test images.
        sizes: parameters, masks and multiplications of both sides.
        attack: on both sides; "" for clean images.
        images: test images that both sides rest on; 0 if unknown.
        of: images of the whole test set.
        holm_p: p corrected for all comparisons with the same net; None for a single one, or for a claimed range.
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
        """Say whether a verdict stands: an accuracy that is only an upper bound cannot make its side better.

        Args:
            word: the verdict.
            low, high: ends of the claimed range of left minus right; None for an open end.
        """
        left, right = (bool({*flags} - _ANSWERED.get(self.attack, set())) for flags in self.flags)
        needs_left = word == "better" or (word == "agrees" and low is not None)
        needs_right = word == "worse" or (word == "agrees" and high is not None)
        return not ((left and needs_left) or (right and needs_right))

    @property
    def part(self) -> str:
        """The counted part of the test set, such as "1,000 of 10,000 test images"; "" for all of it."""
        return f"{self.images:,} of {self.of:,} test images" if 0 < self.images < self.of else ""

    @property
    def flagged(self) -> str:
        """The sides that are upper bounds, with their flags; "" for none."""
        left, right = self.flags
        if left == right:
            return f"both sides: {flag_note(left)}" if left else ""
        pairs = zip(self.sides, self.flags, strict=True)
        return "; ".join(f"{side}: {flag_note(flags)}" for side, flags in pairs if flags)


@dataclass(frozen=True)
class ClaimFinding:
    """A claim about a difference, and its measurements.

    Args:
        claim: of the catalogue.
        measured: one per preset, the largest preset first.
        removed: preset that was run -> why it leaves nothing to compare.
    """

    claim: Claim
    measured: tuple[Compared, ...]
    removed: Mapping[str, str] = field(default_factory=dict)


def claim_findings(places: Places) -> list[ClaimFinding]:
    """Put every claim about a difference beside its measurements, paired by seed.

    Args:
        places: from `by_place`.

    Returns:
        One finding per claim of the catalogue, in its order.
    """
    findings = []
    for claim in CLAIMS.values():
        sides = pairs(claim)
        setups = {claim.left, *(side.right for side in sides)}
        ran = [preset for preset in presets_run(places) if {(preset, setup) for setup in setups} <= places.keys()]
        reasons = {preset: [removal_reason(side, preset) for side in sides] for preset in ran}
        removed = {preset: reason[0] for preset, reason in reasons.items() if all(reason)}
        compared = (_compare_with_all(sides, places, preset) for preset in ran if preset not in removed)
        findings.append(ClaimFinding(claim, tuple(c for c in compared if c is not None), removed))
    return _correct_open_claims(findings)


def _correct_open_claims(findings: Sequence[ClaimFinding]) -> list[ClaimFinding]:
    """Add Holm's p to the differences without a claimed range: a family is all comparisons with the same net."""
    families: dict[tuple[str, str, str], dict[str, float]] = {}
    for preset in {compared.preset for finding in findings for compared in finding.measured}:
        open_ones = {
            (finding.claim.id, finding.claim.measure.metric): compared
            for finding in findings
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

    def correct(name: str, compared: Compared) -> Compared:
        if (compared.preset, name) not in adjusted:
            return compared
        p, control, count = adjusted[compared.preset, name]
        note = "; ".join(filter(None, (compared.note, f"Holm p = {p:.3g} over {count} comparisons with {control}")))
        return replace(compared, note=note, holm_p=p)

    return [
        replace(finding, measured=tuple(correct(finding.claim.id, compared) for compared in finding.measured))
        for finding in findings
    ]


def _compare_with_all(sides: Sequence[Claim], places: Places, preset: str) -> Compared | None:
    """Compare one left side with its rivals: return the closest comparison, judged by all after Holm's correction.

    A claim with a single right side is compared as it is.
    """
    removed = {side.right: reason for side in sides if (reason := removal_reason(side, preset))}
    rivals = {side.right: c for side in sides if side.right not in removed and (c := _compare(side, places, preset))}
    if len(sides) == 1 or not rivals:
        return next(iter(rivals.values()), None)
    idle = removed | {name: compared.weak for name, compared in rivals.items() if compared.weak}
    rivals = {name: compared for name, compared in rivals.items() if name not in idle} or rivals
    closest = min(rivals.values(), key=lambda compared: compared.paired.difference)
    tested = [compared.paired.t_p for compared in rivals.values()]
    if any(p is None for p in tested) or any(c.paired.n < stats.MIN_SEEDS for c in rivals.values()):
        return replace(closest, verdict="too few seeds")
    adjusted = dict(zip(rivals, stats.holm([p for p in tested if p is not None]), strict=True))
    differences = {name: compared.paired.difference for name, compared in rivals.items()}
    verdict: ClaimVerdict = "not distinguishable"
    if any(adjusted[name] < stats.ALPHA and differences[name] <= 0 for name in rivals):
        verdict = "lower"
    elif all(adjusted[name] < stats.ALPHA for name in rivals):
        verdict = "agrees"
    beside = ", ".join(f"{name} {stats.signed(differences[name])} (p {adjusted[name]:.3g})" for name in rivals)
    note = f"Shown is the closest; of all, with Holm's correction: {beside}"
    note += "".join(f"; left out: {name} ({reason})" for name, reason in idle.items() if name not in rivals)
    return replace(closest, verdict=verdict, note=note)


def _compare(claim: Claim, places: Places, preset: str) -> Compared | None:
    sides = (
        (places.get((preset, claim.left), {}), claim.measure),
        (places.get((preset, claim.right), {}), claim.right_measure or claim.measure),
    )
    images = images_of_all(*((seeds.values(), measure) for seeds, measure in sides))
    left, right = (values_of(seeds, measure, images) for seeds, measure in sides)
    both = [seed for seed in left if seed in right]
    ran = {seed: [places[preset, side][seed].record for side in (claim.left, claim.right)] for seed in both}
    common = [seed for seed, (one, other) in ran.items() if one.data.hashes == other.data.hashes]
    if not common:
        return None
    a, b = [left[seed].number for seed in common], [right[seed].number for seed in common]
    compared = stats.paired(a, b)
    notes = [] if common == both else [f"{len(both) - len(common)} seeds left out: their images differ"]
    notes += note_mixture(record for seed in common for record in ran[seed])
    verdict = against_claim(compared.interval, claim.low, claim.high)
    if claim.measure.metric == EVERY_EPOCH:
        verdict, counted = _judge_every_epoch(claim, places[preset, claim.left], places[preset, claim.right], common)
        notes.append(counted)
    return Compared(
        preset,
        (claim.left, claim.right),
        {seed: left[seed].number - right[seed].number for seed in common},
        fmean(a),
        fmean(b),
        compared,
        verdict,
        (flags_of_values(left.values()), flags_of_values(right.values())),
        flags_apart(claim, preset),
        "; ".join(notes),
        weakness(claim, places, preset),
        tuple(sorted({record.data.test for seed in common for record in ran[seed]})),
        tuple(record.parameters for record in ran[common[0]]),
        claim.measure.attack,
        min(v.images for side in (left, right) for v in side.values()),
        ran[common[0]][0].counts.last.total,
    )


def _judge_every_epoch(
    claim: Claim, left: Seeds, right: Seeds, common: Sequence[int]
) -> tuple[ClaimVerdict | None, str]:
    """Judge every audited epoch, and count the verdicts; together they agree only if each of them does."""
    verdicts = []
    for rows in zip(*(_audited(side[seed]) for seed in common for side in (left, right)), strict=False):
        differences = [a - b for a, b in zip(rows[::2], rows[1::2], strict=True)]
        verdicts.append(against_claim(stats.t_interval(differences), claim.low, claim.high))
    if not verdicts:
        return None, "no audited epochs"
    counts = Counter(verdicts)
    worst = max(verdicts, key=lambda word: (word in ("lower", "higher"), word != "agrees"))
    return worst, ", ".join(f"{word} in {count} of {len(verdicts)} epochs" for word, count in counts.items())


def _audited(run: Result) -> list[float]:
    return [row.exact for row in run.metrics if row.exact is not None]
