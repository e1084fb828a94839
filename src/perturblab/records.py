"""One record a run: a JSON file that says what was measured and everything needed to repeat it."""

import base64
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, FiniteFloat, JsonValue, ValidationError, field_validator, model_validator

from perturblab import numerics
from perturblab.errors import UserError, one_line
from perturblab.numerics import Fault
from perturblab.system.files import from_json, write_atomically

VERSION = 1
PACKAGES = ("torch", "numpy", "scipy", "pillow", "datasets", "safetensors", "pydantic")
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "neon", "asimd")

Natural = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Percent = Annotated[FiniteFloat, Field(ge=0)]  # no upper end: float32 means of 100 % exceed it by rounding

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


class Counts(BaseModel, frozen=True, extra="forbid", strict=True):
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
    """What the run ran on and with."""

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
    """Numbers of parameters, of mask values, and of multiply-accumulates an image."""

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
    """Which run of which study a record is: a set-up of the catalogue at a preset."""

    setup: str
    preset: str


class Part(BaseModel, frozen=True, extra="forbid", strict=True):
    """From where on a run had this length, and was computed so: all that its last bits depend on and may change.

    ``code`` stands there for information.
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
    """All that a run leaves; ``seconds`` is its wall time. It holds no path of the machine and no name of its user.

    ``parts`` is empty unless a run was resumed to more epochs, or with other numerics, code, threads, torch, processor
    or device. ``numerics`` is the number of `perturblab.numerics` at the end; records from before it existed have 0.
    """

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    config: dict[str, JsonValue]
    seed: int
    numerics: Natural = 0
    counts: Counts
    audit: Audit | None = None
    environment: Environment
    data: Data
    parameters: Parameters
    masks: list[Mask] = []
    study: Study | None = None
    parts: list[Part] = []
    seconds: Annotated[FiniteFloat, Field(ge=0)]
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


def save(record: Record, path: Path) -> None:
    """Write a record as JSON, atomically: the file is the old one or the new one, never a part.

    Args:
        record: what to write.
        path: the file, ``record.json`` by custom; missing folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def load(path: Path) -> Record:
    """Read a record.

    Args:
        path: the JSON file.

    Returns:
        The record, every field checked.

    Raises:
        UserError: the file is missing, no JSON, of another version, or a field is wrong; names the file and the key.
    """
    return _record(_json(path), path)


def load_all(folder: Path) -> list[Record]:
    """Read every record below a folder: each ``record.json``, and each ``*.json`` with the keys "version" and "counts".

    Args:
        folder: a results folder or a run folder.

    Returns:
        The records, sorted by path; an empty list when there are none.

    Raises:
        UserError: the folder is missing, or a file is no JSON or a broken record (none is left out in silence).
    """
    return [record for _, record in found(folder)]


def found(folder: Path) -> list[tuple[Path, Record]]:
    """Read every record below a folder, with the file that it is in.

    Args:
        folder: as for `load_all`.

    Returns:
        Path and record, sorted by path.

    Raises:
        UserError: as for `load_all`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder, expected one with records; give the folder of the results")
    files = [(path, _json(path)) for path in sorted(folder.rglob("*.json")) if path.is_file()]
    return [
        (path, _record(value, path))
        for path, value in files
        if path.name == "record.json" or (isinstance(value, dict) and {"version", "counts"} <= set(value))
    ]


def environment(*, threads: int, precision: str, compile: str, device: str, ranks: int = 1) -> Environment:
    """Describe where a run happens, without importing any of the packages it names.

    Args:
        threads: compute threads.
        precision: "fp32" or "bf16".
        compile: the decision taken, in words.
        device: the kind of device, such as "cpu".
        ranks: processes of the run.

    Returns:
        The environment.
    """
    return Environment(
        packages=packages(),
        python=platform.python_version(),
        processor=processor(),
        threads=threads,
        precision=precision,
        compile=compile,
        device=device,
        code=numerics.code_hash(),
        ranks=ranks,
    )


def packages() -> dict[str, str]:
    """Give the versions of the installed packages that bear on a result.

    Returns:
        Version by name; a package that is not installed is left out.
    """
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Describe the processor.

    Args:
        cpuinfo: the kernel's description; where it is missing the platform module serves.

    Returns:
        Model, the features among ``FEATURES`` that it has, and the number of logical cores.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    pairs = (line.partition(":") for line in reversed(lines))
    facts = {key.strip().lower(): value.strip() for key, _, value in pairs}
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    model = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Processor(model=model, features=[name for name in FEATURES if name in flags], cores=os.cpu_count() or 1)


def _record(value: Any, path: Path) -> Record:
    version = value.get("version") if isinstance(value, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise UserError(f"{_name(path)}: version is {version}, expected {VERSION}; read it with a matching perturblab")
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{_name(path)}: {_complaint(error)}; repair the file or run again") from error


def _json(path: Path) -> Any:
    try:
        return from_json(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{_name(path)} cannot be read ({reason}), expected a record; give the file of a run"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = _short(str(error))
        raise UserError(
            f"{_name(path)} is no JSON ({reason}), expected a record; repair the file or run again"
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _complaint(error: ValidationError) -> str:
    # Only the first: one sentence, and the next ones are often its consequences.
    first = error.errors(include_url=False)[0]
    key = _short(".".join(str(part) for part in first["loc"]) or "record")
    got = "" if first["type"] in ("missing", "value_error") else f"got {_short(repr(first['input']))}, expected: "
    return f"{key}: {got}{_short(first['msg'], 160)}"


def _short(text: str, limit: int = 60) -> str:
    line = one_line(text)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _name(path: Path) -> str:
    # Every run's file is called record.json, so the folder is what tells them apart.
    return _short("/".join(path.parts[-2:]).replace("//", "/"), 120)


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
