"""Records of one experiment: which belong together, and their label."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from perturblab.errors import UserError, one_line
from perturblab.records.record import Record

# Settings that may differ between two seeds of one experiment.
UNCOMPARED = frozenset({"seed", "label", "out", "save", "logs", "results", "resume", "dataroot", "quiet", "jobs"})
# The inner layers by --filter-size, for nets that have the choice.
_KINDS = {0: "noise", 1: "1x1 only", 3: "3x3", 5: "5x5", 7: "7x7"}
_DEFENCES = {
    "batchout": "BatchOut",
    "fgsm": "FGSM training",
    "fgsm-half": "half-batch FGSM training",
    "pgd": "PGD training",
}


@dataclass(frozen=True)
class Group:
    """Records of one experiment, which differ in the seed only; sorted by seed."""

    label: str
    records: tuple[Record, ...]

    @property
    def finished(self) -> dict[int, Record]:
        """The finished records by seed."""
        return {record.seed: record for record in self.records if record.status == "finished"}

    @property
    def interrupted(self) -> tuple[int, ...]:
        """Seeds whose run did not finish; listed, never averaged."""
        return tuple(record.seed for record in self.records if record.status == "interrupted")


def group(records: Sequence[Record]) -> list[Group]:
    """Group records that differ in the seed (and in where their files lie) only.

    Args:
        records: in any order.

    Returns:
        Groups with distinct labels, sorted by label, numbers in it by value. A label is the config's own ``label``,
        or the net with its filters; what differs among groups of the same label is added.

    Raises:
        UserError: two records of the same group and seed with different results.
    """
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(_canonical(_settings(record)), []).append(record)
    groups = [Group("", _one_a_seed(members[key])) for key in sorted(members)]
    labelled = [Group(label, g.records) for label, g in zip(_labels(groups), groups, strict=True)]
    return sorted(labelled, key=lambda g: _natural(g.label))


def _settings(record: Record) -> dict[str, JsonValue]:
    """Give the settings and data that two records of one experiment have in common."""
    hashes = hashlib.sha256(_canonical(record.data.hashes).encode()).hexdigest()[:8]
    # An option left at None equals one that did not exist when the record was written.
    given = {key: value for key, value in record.config.items() if value is not None}
    config: dict[str, JsonValue] = {
        key: value for key, value in given.items() if key not in UNCOMPARED or key == "label"
    }
    data = {"train data": record.data.train, "test data": record.data.test, "data hashes": hashes}
    return config | data | {"trainable": record.parameters.trainable}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _one_a_seed(records: Iterable[Record]) -> tuple[Record, ...]:
    """Sort by seed; a copy of a result counts once, and a finished run replaces its own interrupted record."""
    kept: dict[int, Record] = {}
    for record in sorted(records, key=lambda r: (r.seed, r.status, _canonical(r.model_dump(mode="json")))):
        first = kept.setdefault(record.seed, record)
        if record.status == first.status == "finished" and record.counts.last != first.counts.last:
            counts = f"{first.counts.last.correct} and {record.counts.last.correct}"
            label = one_line(_base(_settings(record)))
            raise UserError(
                f"{label} has two records of seed {record.seed} with {counts} correct, expected one; keep one"
            )
    return tuple(kept.values())


def _labels(groups: Sequence[Group]) -> list[str]:
    settings = [_settings(g.records[0]) for g in groups]
    bases = [_base(s) for s in settings]
    labels = [
        base + _difference(own, [s for s, b in zip(settings, bases, strict=True) if b == base])
        for base, own in zip(bases, settings, strict=True)
    ]
    return _numbered(labels)


def _base(settings: Mapping[str, Any]) -> str:
    if isinstance(settings.get("label"), str) and settings["label"].strip():
        return str(settings["label"])
    words = [str(settings.get("net_type") or settings.get("net") or "net")]
    if settings.get("nfilters") is not None:
        words.append(f"{settings['nfilters']} filters")
    if settings.get("filter_size") in _KINDS:
        words.append(_KINDS[settings["filter_size"]])
    if settings.get("defence") in _DEFENCES:
        words.append(_DEFENCES[settings["defence"]])
    return ", ".join(words)


def _difference(own: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]) -> str:
    own, namesakes = _flat(own), [_flat(other) for other in namesakes]
    keys = sorted({key for other in namesakes for key in other})
    differing = [key for key in keys if len({_canonical([s.get(key)]) for s in namesakes}) > 1]
    words = [f"{key}={_plain(own.get(key))}" for key in differing]
    return f" ({', '.join(words)})" if words else ""


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, JsonValue]:
    """Flatten nested settings to dotted names, so that a label names only the values that differ."""
    flat: dict[str, JsonValue] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat


def _numbered(labels: Sequence[str]) -> list[str]:
    """Number the labels that are still equal, as those of 1 and "1" are: a control is chosen by its label."""
    taken: Counter[str] = Counter()
    numbered = []
    for label in labels:
        taken[label] += 1
        numbered.append(label if taken[label] == 1 else f"{label} #{taken[label]}")
    return numbered


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _natural(label: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"[0-9]+|[^0-9]+", label)
    return [(0, int(part[:300]), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], label
