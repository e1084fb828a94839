"""The figures of the second reproduction of BatchOut: a net called VGG19 and others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from perturblab.studies.catalogue.batchout_figures import CLEAN, under_fgsm
from perturblab.studies.catalogue.batchout_vgg import UNSAID
from perturblab.studies.catalogue.sources import R1
from perturblab.studies.catalogue.types import Figure, Measure, Origin, PublishedFigure

_MAX = 8 / 255
_SPREAD = "Within one run the same attack varies by 5 to 16 points from checkpoint to checkpoint."


@dataclass(frozen=True)
class _Notes:
    """A place in the repository: its path, and the tags of its figures."""

    place: str
    tag: str
    data: str = "cifar10"

    def figure(
        self, name: str, setup: str, about: str, figure: Figure, measure: Measure, doubts: Sequence[str] = ()
    ) -> PublishedFigure:
        """Make one of the figures there."""
        origin = Origin(R1.format(self.place), ("batchout", self.data, "r1", self.tag))
        return origin.figure(f"R1-{name}", setup, about, figure, measure, doubts)


def _stated(value: float) -> Figure:
    return Figure(value, "stated", f"{value:g}")


# Clean, FGSM of 1 to 8 of 255 in pixels, then the fast gradient method of Euclidean length 0.5.
_FGSM = """
standard       89.19 54.89 32.21 20.21 14.36 10.78  8.57  7.16  6.50 20.19
middle-0.1     86.79 56.69 37.91 28.21 22.49 18.92 16.81 15.40 14.02 28.46
middle-0.2     89.89 60.19 45.55 38.93 34.89 32.43 31.05 30.00 28.74 39.22
middle-0.3     89.52 61.99 48.26 41.84 37.78 34.90 32.93 31.43 29.92 41.94
middle-minus-0.3 91.50 63.40 46.80 37.97 33.11 29.98 27.93 26.03 24.69 38.22
middle-minus-0.2 90.47 59.20 39.39 29.49 24.00 20.72 18.93 17.30 16.26 30.60
alt-0.1        89.69 58.80 40.97 32.73 28.10 25.27 23.11 21.83 20.55 33.11
alt-0.2        87.91 65.47 54.17 48.20 43.92 41.18 39.32 37.53 36.18 47.61
alt-0.3        86.73 75.48 69.09 64.91 61.92 59.04 56.93 54.58 52.57 64.73
alt-minus-0.2  90.43 61.98 45.74 38.12 34.24 31.63 29.94 28.68 27.48 37.77
alt-minus-0.3  90.58 60.97 42.18 33.04 27.90 24.89 22.40 21.00 19.64 33.32
random-3_-2    87.66 72.20 61.39 54.59 49.35 46.07 43.44 41.43 39.39 53.79
random-3_-2_0  88.85 74.30 64.43 57.48 51.95 47.76 43.98 40.58 37.62 57.14
all-0.2        90.21 67.26 55.97 50.75 47.70 45.76 44.62 43.48 42.42 50.99
all-0.3        86.29 62.37 48.24 41.14 36.81 34.10 32.30 30.38 29.20 40.57
"""
_PIXEL_PLOT = _Notes("report.pdf, p. 3, and similar_papers.pdf, p. 5", "r1-fgsm")


def _in_pixels(row: str) -> Iterator[PublishedFigure]:
    model, *values = row.split()
    for n, value in enumerate(map(float, values)):
        if n == 0:
            measure, suffix, about = CLEAN, "clean", "clean images"
        elif n <= 8:
            measure, suffix, about = under_fgsm(n / 255), f"fgsm-{n}", f"FGSM {n}/255, clipped"
        else:
            measure, suffix, about = under_fgsm(0.5, "l2"), "l2", "one Euclidean gradient step of 0.5"
        figure = _stated(value)
        yield _PIXEL_PLOT.figure(f"{model}-{suffix}", f"R1-{model}", f"{model}, {about}", figure, measure, (_SPREAD,))


_WRONG_SPACE = (
    "The step was added after the normalisation and not clipped: a stated 8/255 is about 2/255 of a pixel, not 4/255 "
    "as the author's correction says."
)
# FGSM of 0 to 8 of 255 in normalised space: screenshots of error rates, then plots.
_SHOT = """
standard   89.19 80.91 71.84 63.27 54.83 47.88 41.92 36.63 32.09
alt-0.1    89.69 81.15 72.92 65.17 58.83 53.11 48.04 44.26 40.90
alt-0.2    87.91 80.32 74.41 69.45 65.45 61.80 58.95 56.43 54.25
"""
_PLOTTED = """
last-0.2   86.9 78.4 69.5 61.2 53.4 47.2 42.0 37.6 34.1
middle-0.4 88.5 81.1 74.0 67.6 62.1 57.4 53.0 48.9 45.3
middle-0.5 86.5 78.8 71.1 65.0 58.8 53.4 48.9 45.5 42.4
"""
# Clean, then "8/255".
_TABLE = """
standard   89.19 32.09
last-0.2   86.98 34
middle-0.1 86.79 37.81
middle-0.2 89.89 45.48
middle-0.3 89.52 48.22
alt-0.1    89.69 40.90
alt-0.2    87.91 54.25
alt-0.3    86.73 69.09
"""


def _normalised(
    row: str, kind: str, place: str, infix: str = "", radii: Sequence[int] = range(9)
) -> Iterator[PublishedFigure]:
    model, *values = row.split()
    for n, value in zip(radii, values, strict=True):
        measure = under_fgsm(n / 255, attack="fgsm-normalised") if n else CLEAN
        about = f"FGSM {n}/255 in normalised space" if n else "clean images"
        yield _Notes(place, "r1-normalised").figure(
            f"{model}-normalised{infix}-{n}",
            f"R1-{model}",
            f"{model}, {about}",
            Figure(float(value), kind, value),
            measure,
            (_WRONG_SPACE, _SPREAD) if n else (),
        )


_TRAINING = _Notes("terminology_ablation_studies.pdf, p. 5", "r1-normalised")
_ABOUT_TRAINING = tuple(
    _TRAINING.figure(
        f"middle-{eta}-{name}",
        f"R1-middle-{eta}",
        f"middle-{eta}, {about}",
        _stated(value),
        measure,
        ("Counted while features are mixed.",) if name == "train" else (),
    )
    for eta, name, about, value, measure in (
        ("0.5", "train", "training images", 57.37, Measure("train")),
        ("0.5", "test", "test images", 86.6, CLEAN),
        ("0.6", "train", "training images", 60.0, Measure("train")),
        ("0.6", "test", "test images", 75.0, CLEAN),
    )
)

_WEAK = (
    "With the attack library's default of a thirtieth of the radius a step, 10 steps move a third of it: weaker than "
    "FGSM, which moves all of it."
)
_UNWRITTEN = "The script is not in the repository; radius 8/255 and the library's default step are inferred."
_SWAPPED = "Some notes of the author swap accuracy and error, and a script prints accuracies as errors."
_HEADLINE = (
    "This row mixes checkpoints: 37.62 belongs to one of 88.85 % clean, for which other notes have other figures."
)
# Clean, FGSM, PGD of 10, 50 and 200 steps; a dash where nothing was published.
_PGD = """
alt-0.3        86.73 52.50 54.8  19.21 4.91
alt-0.2        87.91 36.19 38.49 17.37 8.84
alt-c-0.2      90.25 32.77 40.1  23.58 21.18
alt-c-0.25     86.25 31.89 45.58 27.27 15.21
all-0.2        90.21 42.40 43.97 30.79 25.82
all-0.3        86.29 29.21 -     12.07 10.82
random-3_-2_0  82.88 37.62 55.06 44.7  32.37
random-3_-2    87.66 39.44 -     32.54 21.94
all-c-random   -     -     -     -     6.08
"""
_PGD_NOTES = _Notes("initial_reports/new_change_results.md and batchout_inference_results.md", "r1-pgd")


def _under_pgd(steps: int, eps: float = _MAX) -> Measure:
    """Measure the accuracy under PGD with the attack library's default step; 0 steps where none were published."""
    return Measure("attack", "pgd", eps, steps=steps, mode="step eps/30")


def _iterated(row: str) -> Iterator[PublishedFigure]:
    model, *values = row.split()
    columns = (
        ("clean", CLEAN),
        ("fgsm", under_fgsm(_MAX)),
        *((f"pgd-{steps}", _under_pgd(steps)) for steps in (10, 50, 200)),
    )
    for (name, measure), value in zip(columns, values, strict=True):
        if value != "-":
            notes: tuple[str, ...] = (_UNWRITTEN, _SWAPPED, _SPREAD) if measure.attack else (_SWAPPED,)
            notes += (_WEAK,) if name == "pgd-10" else ()
            notes += (_HEADLINE,) if model == "random-3_-2_0" else ()
            about = f"{model}, " + {"clean": "clean images", "fgsm": "FGSM 8/255"}.get(name, f"{name.upper()}, 8/255")
            figure = Figure(float(value), "stated", value)
            yield _PGD_NOTES.figure(f"{model}-notes-{name}", f"R1-{model}", about, figure, measure, notes)


_IMPOSSIBLE = (
    "Not believable: the plain net's is above its FGSM in pixels (6.50) and below its FGSM in normalised space "
    "(32.09), so that the attack ran in the wrong space."
)
_AUTOATTACK = tuple(
    notes.figure(name, setup, about, figure, Measure("attack", "autoattack", _MAX, subset=subset), doubts)
    for name, setup, about, figure, subset, notes, doubts in (
        (
            "random-3_-2-autoattack",
            "R1-random-3_-2",
            "random-3_-2, AutoAttack, 1,000 images",
            _stated(0.80),
            1000,
            _PGD_NOTES,
            ("Its radius is presumably 8/255.",),
        ),
        (
            "conclusion-autoattack",
            "R1-random-3_-2",
            "BatchOut under AutoAttack, in the conclusion",
            Figure(0.0, "approximate", "0 %"),
            0,
            _Notes("conclusion", "r1-pgd"),
            ("Which net is meant is not said.",),
        ),
        (
            "middle-autoattack",
            "R1-middle-0.2",
            "BatchOut in the middle, AutoAttack 8/255, an early figure",
            _stated(26.36),
            0,
            _Notes("initial_reports/abations.md", "r1-pgd"),
            (_IMPOSSIBLE, "Which magnitude is not said."),
        ),
        (
            "standard-autoattack",
            "R1-standard",
            "the plain net, AutoAttack 8/255, an early figure",
            _stated(23.06),
            0,
            _Notes("initial_reports/abations.md", "r1-pgd"),
            (_IMPOSSIBLE,),
        ),
    )
)
# The other notes on the checkpoint of 82.88 % clean, which the headline row mixes with another one.
_OTHER_NOTES = tuple(
    _Notes("batchout_inference_results.md", "r1-pgd").figure(
        f"random-3_-2_0-inference-notes-{name}",
        "R1-random-3_-2_0",
        f"random-3_-2_0, checkpoint of 82.88 % clean, {about}",
        Figure(value, "stated", text),
        measure,
        (_UNWRITTEN, _SPREAD),
    )
    for name, about, value, text, measure in (
        ("fgsm", "FGSM 8/255", 54.31, "54.31 %", under_fgsm(_MAX)),
        ("pgd-200", "PGD of 200 steps, 8/255", 31.93, "error 0.6807", _under_pgd(200)),
    )
)
_CHECKPOINTS = tuple(
    _PGD_NOTES.figure(
        f"{model}-epoch-{epoch}",
        f"R1-{model}",
        f"{model}, FGSM 8/255, checkpoint of epoch {epoch}",
        _stated(value),
        under_fgsm(_MAX),
        ("One of four checkpoints of one run; here the last epoch is measured.", *notes),
    )
    for model, epochs, notes in (
        ("random-3_-2_0", {116: 32.15, 120: 32.85, 123: 37.63, 125: 34.47}, ()),
        ("all-0.2", {68: 26.01, 64: 29.76, 72: 38.19, 94: 42.40}, ("The radius is not printed; 42.40 fits 8/255.",)),
    )
    for epoch, value in epochs.items()
)

_UNNAMED = "Neither the places nor the recipe are stated."
# Name, set-up, about, values for clean, FGSM and PGD of 50 steps.
_OTHERS = (
    ("resnet18-alt_mid-0.2", "resnet18-some", "ResNet18, BatchOut 0.2 at alternate middle places", ("87+", "5.7", "0")),
    ("resnet18-all_mid-0.2", "resnet18-some", "ResNet18, BatchOut 0.2 at all middle places", ("87+", "11.5", "0")),
    ("resnet18-all_mid-random", "resnet18-some", "ResNet18, random magnitude, all middle", ("87.75", "7", "0")),
    ("resnet18-alt_mid-random", "resnet18-some", "ResNet18, random magnitude, alternate middle", ("92", "8.3", "0")),
    ("resnet18-all-0.1", "resnet18-all-0.1", "ResNet18, BatchOut 0.1 everywhere", ("90.4", "0.4", "0")),
    ("resnet18-all-0.2", "resnet18-all-0.2", "ResNet18, BatchOut 0.2 everywhere", ("81.3", "2.7", "0")),
    (
        "resnet18-all-0.2-again",
        "resnet18-all-0.2",
        "ResNet18, BatchOut 0.2 everywhere, second figure",
        ("84.6", "", ""),
    ),
    ("densenet", "densenet", "DenseNet with BatchOut", ("", "~10", "0")),
    ("densenet-standard", "densenet", "DenseNet, plain", ("88.31", "", "")),
    ("hook-0.2", "hook-0.2", "the net called VGG19, BatchOut 0.2 by hooks", ("89.59", "24.82", "")),
)
_OTHER_COLUMNS = (
    ("clean", CLEAN, "clean images"),
    ("fgsm", under_fgsm(_MAX), "FGSM 8/255"),
    ("pgd-50", _under_pgd(50), "PGD of 50 steps"),
)
_HOOKS = _Notes("torch_hooks/vgg/n_2, screenshot", "r1-pgd")
_OTHER_NETS = tuple(
    (_PGD_NOTES if name != "hook-0.2" else _HOOKS).figure(
        f"{name}-{column}",
        f"R1-{setup}",
        f"{about}, {what}",
        Figure(float(value.strip("~+")), "stated" if value[-1].isdigit() and value[0] != "~" else "approximate", value),
        measure,
        (_UNNAMED, _SWAPPED),
    )
    for name, setup, about, values in _OTHERS
    for (column, measure, what), value in zip(_OTHER_COLUMNS, values, strict=True)
    if value
)

_DIGIT_COLUMNS = (
    ("clean", CLEAN, "clean images"),
    ("fgsm", under_fgsm(0.3), "FGSM 0.3"),
    ("pgd", _under_pgd(0, 0.3), "PGD 0.3"),
)
_STEPS = "The number of steps is not stated."
_MAY = _Notes("notes of May 2021", "r1-pgd", "mnist")
_DIGITS = tuple(
    replace(
        _MAY.figure(
            f"mnist-{name}-{column}",
            setup,
            f"{about}, MNIST, {what}",
            Figure(float(value), "stated", value),
            measure,
            (*((_STEPS,) if column == "pgd" else ()), *((UNSAID,) if name == "standard" else ()), _SWAPPED),
        ),
        recipe_stated=name != "standard",  # the set-ups of the others say it for themselves
    )
    for name, setup, about, values in (
        ("standard", "BO-mnist-none", "plain", ("97.99", "0.5", "0")),
        ("all-0.1", "R1-mnist-all-0.1", "BatchOut 0.1 everywhere", ("", "6.5", "1")),
        ("later-0.1", "R1-mnist-later-0.1", "BatchOut 0.1 but for the first place", ("", "10.7", "1")),
        ("later-0.15", "R1-mnist-later-0.15", "BatchOut 0.15 but for the first place", ("", "4.2", "0")),
        ("later-0.2", "R1-mnist-later-0.2", "BatchOut 0.2 but for the first place", ("91.1", "1", "1")),
        ("but-last-0.1", "R1-mnist-but-last-0.1", "BatchOut at all places but the last", ("", "10", "1")),
    )
    for (column, measure, what), value in zip(_DIGIT_COLUMNS, values, strict=True)
    if value
)
_NOT_CONVERGED = tuple(
    _MAY.figure(
        f"mnist-all-{eta}",
        f"R1-mnist-all-{eta}",
        f"BatchOut {eta} everywhere, MNIST",
        Figure(None, "no figure", "does not converge"),
        Measure("none"),
    )
    for eta in ("0.2", "0.3")
)

# Error rates with BatchOut at inference, by vote and by mean over 30 test images.
_INFERENCE = tuple(
    _Notes("inference/ and batchout_inference_results.md", "r1-pgd").figure(
        f"alt-0.3-inference-{name}-{way}",
        "R1-alt-0.3",
        f"alt-0.3 with BatchOut at inference, {way} over 30 partners, {what}",
        Figure(round(100 - error, 2), "stated", f"{error:g} % error"),
        Measure(metric, attack, eps, steps=steps, mode=f"inference-{way}"),
        (
            f"Without it the error is {before}.",
            "By the notes 10, 30 or 80 partners, or partners from the training set, make no difference.",
            "An early script for it averages a tensor that is never filled, so that its mean is always class 0; it was "
            "replaced later.",
            *((_STEPS,) if name == "pgd" else ()),
        ),
    )
    for name, what, metric, attack, eps, steps, before, errors in (
        ("clean", "clean images", "exact", "", 0.0, 0, "13.27", (13.22, 13.21)),
        ("fgsm", "FGSM", "attack", "fgsm", _MAX, 0, "47.50 by the table of attacks", (47.35, 47.31)),
        ("pgd", "PGD", "attack", "pgd", _MAX, 0, "not given", (76.03, 76.04)),
        ("pgd-10", "PGD of 10 steps", "attack", "pgd", _MAX, 10, "45.2", (44.36, 44.38)),
        ("pgd-50", "PGD of 50 steps", "attack", "pgd", _MAX, 50, "80.79", (79.69, 79.9)),
    )
    for way, error in zip(("vote", "mean"), errors, strict=True)
)

_ABLATIONS = "terminology_ablation_studies.pdf, p. 1, and vgg19/24_2.pdf, p. 1"
FIGURES = (
    *(figure for row in _FGSM.strip().splitlines() for figure in _in_pixels(row)),
    *(figure for row in _SHOT.strip().splitlines() for figure in _normalised(row, "stated", "screenshots")),
    *(figure for row in _PLOTTED.strip().splitlines() for figure in _normalised(row, "digitised", "plots")),
    *(
        figure
        for row in _TABLE.strip().splitlines()
        for figure in _normalised(row, "stated", _ABLATIONS, "-table", (0, 8))
    ),
    *_ABOUT_TRAINING,
    *(figure for row in _PGD.strip().splitlines() for figure in _iterated(row)),
    *_OTHER_NOTES,
    *_AUTOATTACK,
    *_CHECKPOINTS,
    *_OTHER_NETS,
    *_DIGITS,
    *_NOT_CONVERGED,
    *_INFERENCE,
)
