"""Published figures and claims beside what was measured: pure functions of runs and of the catalogue."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from perturblab import stats
from perturblab.catalogue import ENTRIES, RELATIONS, SETUPS, Entry, Measure, Relation
from perturblab.errors import UserError
from perturblab.points import ACTIVE, AT_INFERENCE, Point
from perturblab.presets import PRESETS, differing, flags_of, is_comparable
from perturblab.report.measured import Run
from perturblab.report.volatility import spreads

Seeds = Mapping[int, Run]
Places = Mapping[tuple[str, str], Seeds]  # (preset, set-up) -> seed -> run
_CLOSE = 1e-6  # radii are typed as decimals here and as fractions there
_EVERY_EPOCH = "every epoch"
_BASELINE, _EVIDENCE = "K1", 55.0  # the 3x3 net, and the percent on CIFAR-10 below which a study is none
_FIRST_COUNTED = 11  # epoch index; the published code looks for the best one from there on
_MODES = {"batchout-in-eval": ACTIVE, "inference-mean": f"{AT_INFERENCE}, beside 30 "}  # how a point's mode begins
_AUDITED = {
    "batch mean": "batch_mean",
    "batch mean, truncated": "batch_mean_truncated",
    "smoothed": "smoothed",
}


@dataclass(frozen=True)
class Value:
    """What one run says.

    Args:
        number: percent; of "volatility" the spread itself.
        flags: signs of a masked gradient.
        images: test images that it rests on; 0 where that is not said.
    """

    number: float
    flags: tuple[str, ...] = ()
    images: int = 0


@dataclass(frozen=True)
class Measured:
    """A figure at one preset.

    Args:
        preset: its name.
        values: seed -> percent.
        interval: mean over seeds and its 95 % t-interval.
        against: the difference to the published figure and the verdict; None without a published number.
        flags: of all seeds.
        images: fewest test images that a seed rests on.
        last: the exact accuracy after the last epoch, where the figure is that of the best epoch on the test set.
    """

    preset: str
    values: Mapping[int, float]
    interval: stats.Interval
    against: stats.Published | None
    flags: tuple[str, ...]
    images: int
    last: stats.Interval | None = None


@dataclass(frozen=True)
class FigureFinding:
    """A published figure, with what was measured at every preset, the largest preset first."""

    entry: Entry
    measured: tuple[Measured, ...]


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
        verdict: on the claimed range; None where none was claimed.
        flags: of both sides.
        differing: flags of the training command in which the sides differ at this preset.
        note: what else is to be said.
        weak: accuracy of the 3x3 net, where it is too low for evidence on CIFAR-10.
    """

    preset: str
    sides: tuple[str, str]
    differences: Mapping[int, float]
    left: float
    right: float
    paired: stats.Paired
    verdict: stats.ClaimVerdict | None
    flags: tuple[str, ...]
    differing: tuple[str, ...] = ()
    note: str = ""
    weak: float | None = None


@dataclass(frozen=True)
class ClaimFinding:
    """A claim about a difference.

    Args:
        relation: the claim.
        measured: at every preset, the largest preset first.
        removed: presets that were run and that give both sides the same flags, so that nothing is left to compare.
    """

    relation: Relation
    measured: tuple[Compared, ...]
    removed: tuple[str, ...] = ()


def by_place(runs: Iterable[Run]) -> dict[tuple[str, str], dict[int, Run]]:
    """Sort finished runs into the catalogue.

    Args:
        runs: those that no study of the catalogue has made are left out.

    Returns:
        (preset, set-up) -> seed -> run, seeds ascending.

    Raises:
        UserError: two different records of the same run.
    """
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.record.seed):
        study, seed = run.record.study, run.record.seed
        if study is not None and run.record.status == "finished" and study.setup in SETUPS:
            same = found.setdefault((study.preset, study.setup), {}).setdefault(seed, run)
            if same != run:
                raise UserError(
                    f"two records of {study.setup} at {study.preset}, seed {seed}, differ; report the folder of one"
                )
    return found


def figures(places: Places) -> list[FigureFinding]:
    """Put every published figure beside what was measured.

    Args:
        places: from `by_place`.

    Returns:
        One finding an entry of the catalogue, in its order.
    """
    return [
        FigureFinding(entry, tuple(m for preset in _presets(places) if (m := _figure(entry, places, preset))))
        for entry in ENTRIES.values()
    ]


def claims(places: Places) -> list[ClaimFinding]:
    """Put every claim about a difference beside what was measured, paired by seed.

    Args:
        places: from `by_place`.

    Returns:
        One finding a relation of the catalogue, in its order.
    """
    found = []
    for relation in RELATIONS.values():
        sides = [replace(relation, right=rival, rivals=()) for rival in relation.rivals] or [relation]
        setups = {relation.left, *(side.right for side in sides)}
        ran = [preset for preset in _presets(places) if {(preset, setup) for setup in setups} <= places.keys()]
        removed = tuple(preset for preset in ran if all(_is_removed(side, preset) for side in sides))
        compared = (_above_all(sides, places, preset) for preset in ran if preset not in removed)
        found.append(ClaimFinding(relation, tuple(c for c in compared if c is not None), removed))
    return found


def _above_all(sides: Sequence[Relation], places: Places, preset: str) -> Compared | None:
    """One comparison as it is; of several with one left side the closest, judged by all after Holm's correction."""
    found = {side.right: c for side in sides if not _is_removed(side, preset) and (c := _claim(side, places, preset))}
    if len(sides) == 1 or not found:
        return next(iter(found.values()), None)
    closest = min(found.values(), key=lambda compared: compared.paired.difference)
    tested = [compared.paired.t_p for compared in found.values()]
    if any(p is None for p in tested) or any(c.paired.n < stats.MIN_SEEDS for c in found.values()):
        return replace(closest, verdict="too few seeds")
    adjusted = dict(zip(found, stats.holm([p for p in tested if p is not None]), strict=True))
    holds = {name: adjusted[name] < stats.ALPHA for name in found}
    is_above = {name: compared.paired.difference > 0 for name, compared in found.items()}
    verdict: stats.ClaimVerdict = "not distinguishable"
    if any(holds[name] and not is_above[name] for name in found):
        verdict = "lower"
    elif all(holds[name] and is_above[name] for name in found):
        verdict = "agrees"
    beside = ", ".join(
        f"{name} {stats.signed(compared.paired.difference)} (p {adjusted[name]:.3g})"
        for name, compared in found.items()
    )
    return replace(closest, verdict=verdict, note=f"Shown is the closest; of all, with Holm's correction: {beside}")


def _is_removed(relation: Relation, preset: str) -> bool:
    """A preset that gives both sides the same flags trains once: the difference of that run to itself says nothing."""
    is_of_one_run = relation.left == relation.right  # two measures of it
    return preset in PRESETS and not is_of_one_run and not _differing(relation, preset)


def _differing(relation: Relation, preset: str) -> tuple[str, ...]:
    if preset not in PRESETS:
        return ()
    return differing(SETUPS[relation.left], SETUPS[relation.right], PRESETS[preset])


def value(run: Run, measure: Measure) -> Value | None:
    """Read from a run what a figure is about.

    Args:
        run: a finished one.
        measure: what is compared.

    Returns:
        The value, or None where the run was not measured that way.
    """
    if measure.metric == "attack" or measure.mode:
        return _attacked(run.points, measure)
    return _READERS[measure.metric](run)


def _exact(run: Run) -> Value:
    last = run.record.counts.last
    return Value(last.accuracy, images=last.total)


def _train(run: Run) -> Value | None:
    rows = [row for row in run.metrics if row.get("train_accuracy") is not None]
    return Value(rows[-1]["train_accuracy"]) if rows else None


def _best(key: str, first: int = 0) -> Callable[[Run], Value | None]:
    """The best audited epoch on test, from epoch index `first` on where a run is longer than that."""

    def read(run: Run) -> Value | None:
        audited = [row for row in run.metrics if row.get(key) is not None]
        ruled = [row for row in audited if row["epoch"] >= first] or audited
        return Value(max(row[key] for row in ruled), images=run.record.counts.last.total) if ruled else None

    return read


def _volatility(run: Run) -> Value | None:
    found = spreads(run.metrics)
    return Value(found["training loss"]) if "training loss" in found else None


def _nothing(run: Run) -> None:
    """Nothing here measures it."""


_READERS: Mapping[str, Callable[[Run], Value | None]] = {
    "exact": _exact,
    _EVERY_EPOCH: _exact,
    "train": _train,
    "best epoch": _best("exact"),
    "volatility": _volatility,
    "none": _nothing,
    **{metric: _best(key, _FIRST_COUNTED) for metric, key in _AUDITED.items()},
}


def _attacked(points: Iterable[Point], measure: Measure) -> Value | None:
    """The point that measures it, on as many images as there are."""
    fitting = [point for point in points if _fits(point, measure)]
    if not fitting:
        return None
    exactly = [point for point in fitting if point.total == measure.subset]
    chosen = max(exactly or fitting, key=lambda point: point.total)
    return Value(chosen.percent, chosen.flags, chosen.total)


def _fits(point: Point, measure: Measure) -> bool:
    clean = measure.metric == "exact"  # of a published mode: the accuracy at radius 0 in that mode
    if (not clean and (point.attack, point.norm) != (measure.attack, measure.norm)) or "frozen" in point.attack:
        return False
    mode, wanted = point.settings.get("mode", ""), _MODES.get(measure.mode, "")
    if abs(point.eps - (0 if clean else measure.eps)) > _CLOSE or bool(mode) != bool(wanted):
        return False
    if not mode.startswith(wanted):
        return False
    step = point.settings.get("step_size")
    if (measure.mode == "step eps/30") != (step is not None and abs(step - measure.eps / 30) < _CLOSE):
        return False
    return measure.mode != "inference-vote" and measure.steps in (0, point.settings.get("steps"))


def _presets(places: Places) -> list[str]:
    """Those that were run, the one nearest to what was published first; unknown ones last."""
    order = list(PRESETS)[::-1]
    known = {preset for preset, _ in places}
    return sorted(known, key=lambda name: (order.index(name) if name in order else len(order), name))


def _figure(entry: Entry, places: Places, preset: str) -> Measured | None:
    runs = places.get((preset, entry.setup), {})
    found = _values(runs, entry.measure)
    if not found:
        return None
    values = {seed: v.number for seed, v in found.items()}
    published, against = entry.figure.value, None
    if published is not None:
        setup = SETUPS[entry.setup]
        is_stated = entry.recipe_stated and setup.recipe_stated
        against = stats.against_published(
            list(values.values()),
            published,
            within=entry.figure.within,
            comparable=is_stated and preset in PRESETS and is_comparable(setup, PRESETS[preset]),
        )
    return Measured(
        preset,
        values,
        stats.t_interval(list(values.values())),
        against,
        _flags(found.values()),
        min(v.images for v in found.values()),
        stats.t_interval([_exact(runs[seed]).number for seed in found]) if entry.measure.metric in _AUDITED else None,
    )


def _claim(relation: Relation, places: Places, preset: str) -> Compared | None:
    left = _values(places.get((preset, relation.left), {}), relation.measure)
    right = _values(places.get((preset, relation.right), {}), relation.right_measure or relation.measure)
    both = [seed for seed in left if seed in right]
    common = [
        seed for seed in both if _are_alike(*(places[preset, side][seed] for side in (relation.left, relation.right)))
    ]
    if not common:
        return None
    a, b = [left[seed].number for seed in common], [right[seed].number for seed in common]
    compared = stats.paired(a, b)
    interval = compared.interval
    note = "" if common == both else f"{len(both) - len(common)} seeds left out: their test images differ"
    verdict = stats.against_claim(interval, relation.low, relation.high)
    if relation.measure.metric == _EVERY_EPOCH:
        verdict, said = _throughout(relation, places[preset, relation.left], places[preset, relation.right], common)
        note = "; ".join(filter(None, (note, said)))
    return Compared(
        preset,
        (relation.left, relation.right),
        {seed: left[seed].number - right[seed].number for seed in common},
        fmean(a),
        fmean(b),
        compared,
        verdict,
        _flags([*left.values(), *right.values()]),
        _differing(relation, preset),
        note,
        _weak(relation, places, preset),
    )


def _weak(relation: Relation, places: Places, preset: str) -> float | None:
    if "pnn" not in relation.tags or preset not in PRESETS:
        return None
    if flags_of(SETUPS[relation.left], PRESETS[preset], 0).get("dataset_train") != "CIFAR10":
        return None
    baseline = places.get((preset, _BASELINE), {}).values()
    accuracy = fmean(_exact(run).number for run in baseline) if baseline else 100.0
    return accuracy if accuracy < _EVIDENCE else None


def _are_alike(left: Run, right: Run) -> bool:
    """Whether they were judged by the same test images."""
    return left.record.data.hashes.get("test") == right.record.data.hashes.get("test")


def _values(seeds: Seeds, measure: Measure) -> dict[int, Value]:
    return {seed: v for seed, run in seeds.items() if (v := value(run, measure))}


def _throughout(
    relation: Relation, left: Seeds, right: Seeds, common: Sequence[int]
) -> tuple[stats.ClaimVerdict | None, str]:
    """The verdict of every audited epoch; together they agree only when each of them does."""
    verdicts = []
    for rows in zip(*(_audited(side[seed]) for seed in common for side in (left, right)), strict=False):
        differences = [a["exact"] - b["exact"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
        verdicts.append(stats.against_claim(stats.t_interval(differences), relation.low, relation.high))
    if not verdicts:
        return None, "no audited epochs"
    counted = {word: verdicts.count(word) for word in dict.fromkeys(verdicts)}
    said = ", ".join(f"{word} in {count} of {len(verdicts)} epochs" for word, count in counted.items())
    worst = max(verdicts, key=lambda word: (word in ("lower", "higher"), word != "agrees"))
    return worst, said


def _audited(run: Run) -> list[Mapping[str, float]]:
    return [row for row in run.metrics if row.get("exact") is not None]


def _flags(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(sorted({flag for v in values for flag in v.flags}))
