"""One record per run: a JSON file with the measurements and all that repeats them."""

import base64
import math
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue, field_validator, model_validator

from perturblab.records import numerics
from perturblab.records.fields import Natural, NonNegative, Percent, Positive, Seed
from perturblab.records.numerics import Fault

VERSION = 1


_EMBEDDED_PATH = re.compile(r"""(?:^|[\s=:"'(,;])(?:/[\w.~-]+/|~/|[A-Za-z]:\\)""")


class Count(BaseModel, frozen=True, extra="forbid", strict=True):
    """Exact count of correct test images after an epoch (0-based)."""

    epoch: Natural
    correct: Natural
    total: Positive

    @model_validator(mode="after")
    def _correct_is_possible(self) -> Self:
        if self.correct > self.total:
            raise ValueError(f"correct is {self.correct}, expected at most total = {self.total}")
        return self

    @property
    def accuracy(self) -> float:
        """Exact accuracy in percent."""
        return 100 * self.correct / self.total


class PublishedBest(BaseModel, frozen=True, extra="forbid", strict=True):
    """The published rule: the best batch mean (percent) on test among the epochs with an index above 10."""

    epoch: Annotated[int, Field(gt=10)]
    batch_mean: Percent
    rule: Literal["best epoch on test, epoch index > 10"] = "best epoch on test, epoch index > 10"


class BestTest(Count, frozen=True, extra="forbid", strict=True):
    """The best epoch on test, which is an optimistic selection and says so."""

    selection: Literal["selected on the test set"] = "selected on the test set"
    published_rule: PublishedBest | None = None


class EpochCounts(BaseModel, frozen=True, extra="forbid", strict=True):
    """Test counts of the last epoch, of the best one on validation and, with the audit, of the best one on test."""

    last: Count
    best_val: Count | None = None
    best_test: BestTest | None = None

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        for name, count in (("best_val", self.best_val), ("best_test", self.best_test)):
            if count and count.total != self.last.total:
                raise ValueError(f"{name}.total is {count.total}, expected last.total = {self.last.total}")
            if count and count.epoch > self.last.epoch:
                raise ValueError(f"{name}.epoch is {count.epoch}, expected at most last.epoch = {self.last.epoch}")
        if self.best_test and self.best_test.correct < self.last.correct:
            raise ValueError(f"best_test.correct is {self.best_test.correct}, below last.correct {self.last.correct}")
        return self


class AuditRow(Count, frozen=True, extra="forbid", strict=True):
    """One epoch in every metric of the published codes: the exact count and the means over batches, in percent."""

    batch_mean: Percent
    batch_mean_truncated: Percent
    smoothed: Percent
    n_batches: Positive


class Audit(BaseModel, frozen=True, extra="forbid", strict=True):
    """The metric audit: the last epoch, and the best ones by the smoothed and by the exact metric."""

    last: AuditRow
    best_smoothed: AuditRow
    best_exact: AuditRow


class Processor(BaseModel, frozen=True, extra="forbid", strict=True):
    """The processor: its model, the features that decide speed, its logical cores."""

    model: str
    features: list[str]
    cores: Positive


class Environment(BaseModel, frozen=True, extra="forbid", strict=True):
    """Hardware, software and settings of the process that trained."""

    packages: dict[str, str]
    python: str
    processor: Processor
    threads: Positive
    precision: str
    compile: str
    device: str
    code: str = ""  # hash of this package's sources, for information: nothing compares it
    ranks: Positive = 1  # processes of the run


class Data(BaseModel, frozen=True, extra="forbid", strict=True):
    """The data: display names, content hashes, class order, and the number of samples of each part."""

    train: str
    test: str
    recognised: str
    hashes: dict[str, str]
    classes: list[str]
    sizes: dict[str, Natural]


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """Numbers of parameters, of mask values, and of multiply-accumulates per image."""

    trainable: Natural
    frozen: Natural
    masks: Natural
    macs: Natural


class Mask(BaseModel, frozen=True, extra="forbid", strict=True):
    """An 8-bit picture of one mask of a layer: a PNG in base64."""

    layer: str
    shape: list[Natural]
    png: str

    @field_validator("png")
    @classmethod
    def _png_is_a_picture(cls, png: str) -> str:
        # binascii.Error is a ValueError, so text that is not base64 is reported by pydantic too.
        if not base64.b64decode(png, validate=True).startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError("expected a PNG picture in base64")
        return png


class Study(BaseModel, frozen=True, extra="forbid", strict=True):
    """The place of a run in a study: a set-up of the catalogue at a preset."""

    setup: str
    preset: str


class Part(BaseModel, frozen=True, extra="forbid", strict=True):
    """One segment of a resumed run: the settings, hardware and code that can change its last bits.

    It begins at ``epoch`` and ``step``. ``code`` is for information only.
    """

    epoch: Natural
    step: Natural
    nepochs: Positive
    threads: Positive
    device: str
    kernel: str
    torch: str
    processor: str
    numerics: Natural = 0
    code: str = ""


class Record(BaseModel, frozen=True, extra="forbid", strict=True):
    """The record of a run; ``seconds`` is its wall time. It has no path of the machine and no name of its user.

    ``parts`` is empty unless a run was resumed to more epochs, or with other numerics, code, threads, torch, processor
    or device. ``numerics`` is the number of `perturblab.records.numerics` at the end; records from before it existed
    have 0.
    """

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    config: dict[str, JsonValue]
    seed: Seed
    numerics: Natural = 0
    counts: EpochCounts
    audit: Audit | None = None
    environment: Environment
    data: Data
    parameters: Parameters
    masks: list[Mask] = []
    study: Study | None = None
    parts: list[Part] = []
    seconds: NonNegative
    status: Literal["finished", "interrupted"]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numerics numbers that parts of the run were computed under, sorted."""
        return tuple(sorted({self.numerics, *(part.numerics for part in self.parts)}))

    @property
    def fault(self) -> Fault | None:
        """The known fault that makes this record void; None where it is valid."""
        return numerics.find_fault(self.config, self.numbers)

    @model_validator(mode="after")
    def _every_image_is_counted(self) -> Self:
        total, there = self.counts.last.total, self.data.sizes.get("test")
        if there not in (None, total):
            raise ValueError(f"counts.last.total is {total}, expected data.sizes.test = {there}")
        return self

    @model_validator(mode="after")
    def _nothing_private(self) -> Self:
        # The pictures are left out: base64 may hold any run of letters and slashes by chance.
        for key, value in _leaves(self.model_dump(exclude={"masks": {"__all__": {"png"}}})):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} is {value}, expected a finite number")
            if isinstance(value, str) and is_private(value):
                raise ValueError(f"{key} is {value!r}, expected no path of this machine")
        return self


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield key or "key", name
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{index}")
    else:
        yield key, value


def is_private(text: str) -> bool:
    """Say whether a text reads like a path of the machine, which no record may hold.

    Args:
        text: a name or a value.
    """
    home = os.path.expanduser("~")  # unlike Path.home() it never raises, as for a user without an entry
    at_home = len(home) > 1 and re.search(rf"(?<!\w){re.escape(home)}(?!\w)", text)
    return text.startswith(("/", "~")) or bool(at_home) or bool(_EMBEDDED_PATH.search(text))
