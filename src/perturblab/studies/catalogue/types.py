"""The types of the catalogue: set-ups that can be trained, published figures, claims about differences."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perturblab.records.attack_names import ACTIVE, AT_INFERENCE, Mode

Flags = Mapping[str, Any]  # fields of a command -> value

# The origin of a published figure.
KINDS = (
    "exact",  # correct over total
    "batch mean",  # unweighted mean over test batches, best epoch on test
    "batch mean, truncated",  # the same with integer division
    "smoothed",  # 0.7/0.3 smoothed over the last test batches, best epoch
    "stated",  # a number in a text or table that does not say how it was counted
    "digitised",  # read from a plot
    "approximate",  # said in words
    "no figure",  # a claim without a number
)
# What is read from a run: of the last epoch, or of the best one as published; "none": nothing here measures it.
METRICS = (
    *("exact", "batch mean", "batch mean, truncated", "smoothed", "train", "attack"),
    *("best epoch", "every epoch", "volatility", "none"),
)
# Published mistakes and detours that a figure was measured with. A step in normalised space and a step that leaves
# [0, 1] are attacks of their own: "fgsm-normalised" and "fgsm-unclipped".
MODES = (
    "",
    "batchout-in-eval",  # BatchOut mixes in evaluation and under attack too
    "step eps/30",  # PGD with the default step of an attack library: ten steps move a third of the radius
    "inference-vote",  # BatchOut at inference, majority over many partners
    "inference-mean",  # the same, mean of the answers
)


@dataclass(frozen=True)
class Figure:
    """A published figure.

    Args:
        value: in percent, the middle of a published range; None where no number was published.
        kind: one of `KINDS`.
        text: as it was published, such as "~92-93%".
        within: half the width of a published range, in points.
    """

    value: float | None
    kind: str
    text: str = ""
    within: float = 0.0

    @property
    def wording(self) -> str:
        """As it was published, an error also as an accuracy, else the number; "" where there is none."""
        if "error" in self.text and self.value is not None:
            return f"{self.text}, {self.value:g} % right"
        return self.text or ("" if self.value is None else f"{self.value:g}")


@dataclass(frozen=True)
class Measure:
    """The quantity read from a finished run for comparison with a figure.

    Args:
        metric: one of `METRICS`: "exact" and "train" (accuracy on test and on training images, last epoch); "batch
            mean", "batch mean, truncated" and "smoothed" (test, best epoch as published); "attack"; for claims also
            "best epoch" (exact, best on test), "every epoch" (exact, of all audited epochs) and "volatility" (standard
            deviation of the training loss's change from epoch to epoch); or "none".
        attack: name of the attack as in `perturblab attack`, for "attack"; "" for clean accuracy.
        eps: its radius in pixels of [0, 1] (of "fgsm-normalised": in normalised units), or DeepFool's cap on
            iterations.
        norm: "linf" or "l2".
        steps: of PGD; 0 where the attack has none or their number was not published.
        subset: attacked test images; 0 for all of them.
        mode: one of `MODES`; "" for none.
    """

    metric: str = "exact"
    attack: str = ""
    eps: float = 0.0
    norm: str = "linf"
    steps: int = 0
    subset: int = 0
    mode: str = ""

    @property
    def evaluation(self) -> Mode:
        """How BatchOut took part in evaluation."""
        return {"batchout-in-eval": Mode(ACTIVE), "inference-mean": Mode(AT_INFERENCE, 30)}.get(self.mode, Mode())


NOTHING = Measure("none")
BATCH_MEAN = Measure("batch mean")
TRUNCATED = Measure("batch mean, truncated")
SMOOTHED = Measure("smoothed")


@dataclass(frozen=True)
class Setup:
    """A training run behind one or several figures, exactly as published.

    Args:
        id: short and unique, such as "K4".
        about: one line.
        flags: fields of the training command (`perturblab train`) -> value; the others have the code's defaults.
        command: the published command line, or ours where none was published.
        parameters: trainable ones, as counted; None where nothing was stated or counted.
        masks: mask values, as counted.
        image: (C, H, W) of the published images where they are not the data set's own; the counts are for it.
        doubts: known uncertainties and errors, one sentence each.
        missing: why it cannot be run here, such as a model that was never stated; "" if it can.
        recipe_stated: whether all of its training was published; if another recipe stands in or a choice was made here,
            no run says anything about an absolute figure.
    """

    id: str
    about: str
    flags: Flags = field(default_factory=dict)
    command: str = ""
    parameters: int | None = None
    masks: int | None = None
    image: tuple[int, int, int] | None = None
    doubts: tuple[str, ...] = ()
    missing: str = ""
    recipe_stated: bool = True


@dataclass(frozen=True)
class PublishedFigure:
    """One published figure.

    Args:
        id: short and unique, such as "K4" or "BO2-batchout-fgsm-0.1".
        about: one line: which net, which data, which attack.
        source: where it was published, by public name, place and URL.
        setup: id of the set-up that it rests on; "" where none is known.
        figure: what was published.
        measure: what is compared with it.
        doubts: about this figure alone, beside those of the set-up.
        tags: such as "pnn", "batchout", "cifar10", "kl", "attack", "control".
        recipe_stated: whether its training was published there; the set-up's may be that of another source.
    """

    id: str
    about: str
    source: str
    setup: str
    figure: Figure
    measure: Measure = Measure()
    doubts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    recipe_stated: bool = True


@dataclass(frozen=True)
class Claim:
    """A claim about a difference, which survives scaling down better than an absolute figure.

    Args:
        id: short and unique, such as "R-noise".
        text: the claim as a sentence.
        source: where it was made.
        left, right: ids of set-ups; the claim is about the measure of left minus that of right.
        low, high: the claimed range of the difference in points; None where it is open on that side, both None where
            nobody claimed a number and the difference itself is what is wanted.
        measure: what is compared.
        right_measure: what is read from the right side where it is something else than `measure`.
        rivals: set-ups that left is said to be above, every one of them; then there is no right side.
        base: from which left and each of the rivals is one step away; "" for none.
        doubts: what is known to be uncertain or wrong about it.
        how: for a claim that no pair of runs decides by itself, how it is settled instead (a test, a computation);
            "" else.
        tags: such as "pnn", "batchout", "ladder", "control".
    """

    id: str
    text: str
    source: str
    left: str = ""
    right: str = ""
    low: float | None = None
    high: float | None = None
    measure: Measure = Measure()
    right_measure: Measure | None = None
    rivals: tuple[str, ...] = ()
    base: str = ""
    doubts: tuple[str, ...] = ()
    how: str = ""
    tags: tuple[str, ...] = ()

    @property
    def claimed(self) -> str:
        """The claimed range in words; "-" where none was claimed."""
        if self.low is None and self.high is None:
            return "-"
        if self.low is None:
            return f"below {self.high:+g}" if self.high else "below 0"
        if self.high is None:
            return f"above {self.low:+g}" if self.low else "above 0"
        return f"{self.low:+g}" if self.low == self.high else f"{self.low:+g} to {self.high:+g}"


@dataclass(frozen=True)
class Origin:
    """A place that published several figures.

    Args:
        source: by public name, place and URL.
        tags: of its figures; one under attack gets "attack" too.
        recipe_stated: whether their training was published there.
    """

    source: str
    tags: tuple[str, ...]
    recipe_stated: bool = True

    def figure(
        self, name: str, setup: str, about: str, figure: Figure, measure: Measure, doubts: Sequence[str] = ()
    ) -> PublishedFigure:
        """Make one of its figures; the arguments are fields of `PublishedFigure`, ``name`` is its id."""
        tags = (*self.tags, *(("attack",) if measure.attack else ()))
        return PublishedFigure(
            name, about, self.source, setup, figure, measure, tuple(doubts), tags, self.recipe_stated
        )


def tag_claims(claims: Iterable[Claim], *tags: str) -> tuple[Claim, ...]:
    """Copy claims with other tags, such as "pnn", "ladder"."""
    return tuple(replace(claim, tags=tags) for claim in claims)


def command_line(flags: Flags, *command: str) -> str:
    """Write the command of some flags as a user types it.

    Args:
        flags: fields of the command -> value.
        *command: what comes before; that of training by default.

    Returns:
        Such as ``perturblab train --nfilters 44 --no-augment``.
    """
    words = list(command or ("perturblab", "train"))
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", shlex.quote(",".join(value) if isinstance(value, tuple) else str(value))]
    return " ".join(words)


def variant(
    base: Setup,
    name: str,
    about: str,
    changes: Flags,
    *,
    counts: tuple[int, int] | None = None,
    doubts: tuple[str, ...] = (),
) -> Setup:
    """Make another set-up by changing some flags of one.

    Args:
        base: the set-up that is changed; its doubts are not copied.
        name: id of the new one.
        about: one line about it.
        changes: flags -> value; None removes a flag.
        counts: trainable parameters and mask values; those of ``base`` by default.
        doubts: its own.

    Returns:
        The new set-up, with a command of ours.
    """
    flags = {key: value for key, value in {**base.flags, **changes}.items() if value is not None}
    parameters, masks = counts or (base.parameters, base.masks)
    return replace(
        base,
        id=name,
        about=about,
        flags=flags,
        command=command_line(flags),
        parameters=parameters,
        masks=masks,
        doubts=doubts,
    )
