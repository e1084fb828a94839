"""Published figures beside what was measured: pure functions of runs and of the catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from perturblab import stats
from perturblab.records.results import Result
from perturblab.report.by_setup import Places, flags_in, mixture, presets_run, values_of
from perturblab.report.readings import AUDITED, BEST_EPOCH, exact, images_of_all
from perturblab.report.verdicts import FigureVerdict, against_published
from perturblab.studies.catalogue import ENTRIES, SETUPS, Entry
from perturblab.studies.presets import PRESETS
from perturblab.studies.setups import is_comparable


@dataclass(frozen=True)
class Measured:
    """A figure at one preset.

    Args:
        preset: its name.
        values: seed -> percent.
        interval: mean over seeds and its 95 % t-interval.
        verdict: on the published number; None if no number was published.
        flags: of all seeds.
        images: fewest test images that a seed rests on.
        last: the exact accuracy after the last epoch, where the figure is that of the best epoch on the test set.
        optimism: how much higher the exact accuracy of that best epoch is, in points; None where `last` is.
        unlike: why it says nothing about the published number; "" where the protocol is the published one.
        note: what else is to be said.
    """

    preset: str
    values: Mapping[int, float]
    interval: stats.Interval
    verdict: FigureVerdict | None
    flags: tuple[str, ...]
    images: int
    last: stats.Interval | None = None
    optimism: float | None = None
    unlike: str = ""
    note: str = ""


@dataclass(frozen=True)
class FigureFinding:
    """A published figure, with what was measured at every preset, the largest preset first."""

    entry: Entry
    measured: tuple[Measured, ...]


def figure_findings(places: Places) -> list[FigureFinding]:
    """Put every published figure beside what was measured.

    Args:
        places: from `by_place`.

    Returns:
        One finding an entry of the catalogue, in its order.
    """
    return [
        FigureFinding(entry, tuple(m for preset in presets_run(places) if (m := _figure(entry, places, preset))))
        for entry in ENTRIES.values()
    ]


def _figure(entry: Entry, places: Places, preset: str) -> Measured | None:
    runs = places.get((preset, entry.setup), {})
    found = values_of(runs, entry.measure, images_of_all((runs.values(), entry.measure)))
    if not found:
        return None
    values = {seed: v.number for seed, v in found.items()}
    published, verdict, unlike = entry.figure.value, None, ""
    if published is not None:
        unlike = _unlike(entry, list(runs.values()), preset, min(v.images for v in found.values()))
        verdict = against_published(list(values.values()), published, within=entry.figure.within, comparable=not unlike)
    last = best = None
    if entry.measure.metric in AUDITED:
        last = stats.t_interval([exact(runs[seed]).number for seed in found])
        best = values_of({seed: runs[seed] for seed in found}, BEST_EPOCH).values()
    return Measured(
        preset,
        values,
        stats.t_interval(list(values.values())),
        verdict,
        flags_in(found.values()),
        min(v.images for v in found.values()),
        last,
        fmean(v.number for v in best) - last.mean if best and last else None,
        unlike,
        "; ".join(mixture(runs[seed].record for seed in found)),
    )


def _unlike(entry: Entry, runs: Sequence[Result], preset: str, images: int) -> str:
    """Why runs say nothing about a published number; "" where they followed the published protocol."""
    setup = SETUPS[entry.setup]
    whys = []
    if not (entry.recipe_stated and setup.recipe_stated):
        whys.append("its recipe was not published in full, and a choice was made here")
    if preset not in PRESETS or not is_comparable(setup, PRESETS[preset]):
        whys.append("the preset changes the published protocol")
    if 0 < images < min(run.record.counts.last.total for run in runs) and images != entry.measure.subset:
        whys.append(f"it was counted on {images:,} of the test images only")
    copies = {name for run in runs for name in (run.record.data.train, run.record.data.test) if "copy" in name}
    if copies:
        whys.append(f"the images are those of {', '.join(sorted(copies))}")
    return "; ".join(whys)
