"""Published figures beside their measurements: pure functions of runs and of the catalogue."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from perturblab import stats
from perturblab.records.results import Result
from perturblab.report.by_setup import Places, flags_of_values, note_mixture, presets_run, values_of
from perturblab.report.readings import AUDITED, BEST_EPOCH, exact, images_of_all
from perturblab.report.verdicts import FigureVerdict, against_published
from perturblab.studies.catalogue import FIGURES, SETUPS, PublishedFigure
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
        last: the exact accuracy after the last epoch, if the figure is that of the best epoch on the test set.
        optimism: how much higher the exact accuracy of that best epoch is, in points; None if `last` is.
        unlike: why it says nothing about the published number; "" if the protocol is the published one.
        note: further remarks.
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
    """A published figure and its measurements, one per preset, the largest preset first."""

    published: PublishedFigure
    measured: tuple[Measured, ...]


def figure_findings(places: Places) -> list[FigureFinding]:
    """Put every published figure beside its measurements.

    Args:
        places: from `by_place`.

    Returns:
        One finding per figure of the catalogue, in its order.
    """
    return [
        FigureFinding(figure, tuple(m for preset in presets_run(places) if (m := _measure(figure, places, preset))))
        for figure in FIGURES.values()
    ]


def _measure(published: PublishedFigure, places: Places, preset: str) -> Measured | None:
    runs = places.get((preset, published.setup), {})
    readings = values_of(runs, published.measure, images_of_all((runs.values(), published.measure)))
    if not readings:
        return None
    values = {seed: reading.number for seed, reading in readings.items()}
    images = min(reading.images for reading in readings.values())
    figure, verdict, unlike = published.figure, None, ""
    if figure.value is not None:
        unlike = _explain_unlike(published, list(runs.values()), preset, images)
        verdict = against_published(list(values.values()), figure.value, within=figure.within, comparable=not unlike)
    last = best = None
    if published.measure.metric in AUDITED:
        last = stats.t_interval([exact(runs[seed]).number for seed in readings])
        best = values_of({seed: runs[seed] for seed in readings}, BEST_EPOCH).values()
    return Measured(
        preset,
        values,
        stats.t_interval(list(values.values())),
        verdict,
        flags_of_values(readings.values()),
        images,
        last,
        fmean(reading.number for reading in best) - last.mean if best and last else None,
        unlike,
        "; ".join(note_mixture(runs[seed].record for seed in readings)),
    )


def _explain_unlike(published: PublishedFigure, runs: Sequence[Result], preset: str, images: int) -> str:
    """Say why runs say nothing about a published number; "" if they followed the published protocol."""
    setup = SETUPS[published.setup]
    reasons = []
    if not (published.recipe_stated and setup.recipe_stated):
        reasons.append("its recipe was not published in full, and a choice was made here")
    if preset not in PRESETS or not is_comparable(setup, PRESETS[preset]):
        reasons.append("the preset changes the published protocol")
    if 0 < images < min(run.record.counts.last.total for run in runs) and images != published.measure.subset:
        reasons.append(f"it was counted on {images:,} of the test images only")
    copies = {name for run in runs for name in (run.record.data.train, run.record.data.test) if "copy" in name}
    if copies:
        reasons.append(f"the images are those of {', '.join(sorted(copies))}")
    return "; ".join(reasons)
