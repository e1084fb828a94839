"""Bad records, and what lies beside them: attack points, masking checks, metrics, records of a study."""

import json
import os
import random
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from faults.case import Case, fill
from faults.kinds.mutations import as_json, changed, damaged
from faults.world import ATTACK, DIGITS

RECORD, POINTS, WORST = "run/record.json", "run/attacks/fgsm.json", "run/attacks/uniform.json"
CHECKS, METRICS, STUDY = "run/attacks/checks.json", "run/metrics.jsonl", "results/quick/K4/seed-1/record.json"
COMMANDS = {
    RECORD: ("report .", "report . --markdown", "report . --control x", "evaluate run --json", "show K4 --results ."),
    POINTS: ("report . --attacks", f"attack run {shlex.join(ATTACK)} --json"),
    WORST: ("report . --attacks", f"attack run {shlex.join(ATTACK)} --json"),
    CHECKS: ("report . --attacks", f"attack run {shlex.join(ATTACK)} --json"),
    METRICS: ("report . --attacks", "report . --attacks --control 'lenet, 2 filters, noise'"),
    STUDY: ("run K4 --dry-run --quiet --results results", "show K4 --results results --json"),
}
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a text": b"hello",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "two keys only": b'{"version": 1, "counts": 3}',
    "another version": b'{"version": 2, "counts": {}}',
    "a version as text": b'{"version": "1", "counts": {}}',
    "deep brackets": b"[" * 100_000,
    "deep objects": b'{"version": 1, "counts": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5001,
    "deep enough": b'{"version": 1, "counts": 1, "config": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}",
    "bytes": bytes(range(256)),
    "UTF-16": '{"version": 1, "counts": 3}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"version": 1, "counts": 3}',
    "NaN": b'{"version": 1, "counts": NaN}',
    "a number of 5,000 digits": b'{"version": 1, "counts": ' + b"9" * 5000 + b"}",
    "a number of 4,000 digits": b'{"version": ' + b"9" * 4000 + b', "counts": 3}',
    "a key that steers a terminal": b'{"version": 1, "counts": {"\\u001b[31m": 1}}',
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "more right than there are": lambda r: r["counts"]["last"].update(correct=598),
    "images more than the set has": lambda r: r["counts"].update(
        last={"epoch": 0, "correct": 5, "total": 598}, best_val=None, best_test=None
    ),
    "no image": lambda r: r["counts"]["last"].update(total=0, correct=0),
    "10^400 images": lambda r: r["counts"].update(
        last={"epoch": 0, "correct": 10**400, "total": 10**400}, best_val=None, best_test=None
    ),
    "an epoch of 10^300": lambda r: r["counts"]["last"].update(epoch=10**300),
    "a path of the machine": lambda r: r["config"].update(net_type="/root/secret"),
    "a path inside a text": lambda r: r["environment"].update(compile="see /home/someone/file"),
    "a mask that is no picture": lambda r: r.update(masks=[{"layer": "a", "shape": [1], "png": "aGVsbG8="}]),
    "a mask that is no base64": lambda r: r.update(masks=[{"layer": "a", "shape": [1], "png": "\x00"}]),
    "an infinite option": lambda r: r["config"].update(level=1e999),
    "a label of Markdown": lambda r: r["config"].update(label="| x | ![a](http://b) <script> [c](javascript:d)"),
    "a label of controls": lambda r: r["config"].update(label="\x1b[31m\x07\n\r\u202e"),
    "a label of markup": lambda r: r["config"].update(label="[bold red]x[/bold red] [/nothing]"),
    "a label of markers": lambda r: r["config"].update(label="<!-- results:end -->"),
    "a label of half a letter": lambda r: r["config"].update(label="\ud800"),
    "a seed of 10^30": lambda r: r.update(seed=10**30),
    "deep options": lambda r: r["config"].update(deep=_deep(100)),
    "deeper options": lambda r: r["config"].update(deep=_deep(400)),
    "deepest options": lambda r: r["config"].update(deep=_deep(900)),
    "a row of another epoch": lambda r: r["audit"]["last"].update(epoch=7, correct=1),
    "an audit of another count": lambda r: r["audit"]["last"].update(correct=0),
    "interrupted": lambda r: r.update(status="interrupted"),
    "no status": lambda r: r.pop("status"),
    "a place more": lambda r: r.update(more=1),
    "a million parameters of a trillion": lambda r: r["parameters"].update(trainable=10**4000),
    "best below last": lambda r: r["counts"]["best_test"].update(correct=0),
    "best of another set": lambda r: r["counts"]["best_test"].update(total=1000),
    "best after last": lambda r: r["counts"]["best_val"].update(epoch=5),
}


def _deep(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


def _point(**values: Any) -> Callable[[Any], Any]:
    return lambda points: points["points"][0].update(values)


POINT_CHANGES: dict[str, Callable[[Any], Any]] = {
    "another version": lambda p: p.update(version=2),
    "no version": lambda p: p.pop("version"),
    "an attack elsewhere": _point(attack="../../pwned"),
    "an attack of Markdown": _point(attack="| x |\n<b>"),
    "answers of no digits": _point(answers="xyz"),
    "answers too many": _point(answers="f" * 500),
    "no answers": _point(answers=""),
    "more right than there are": _point(correct=10**6),
    "an endless radius": _point(eps=float("inf")),
    "a radius below 0": _point(eps=-1),
    "a norm that is none": _point(norm="l7"),
    "an interval of one": _point(wilson=[1]),
    "flags of Markdown": _point(flags=["| x |", "<script>"]),
    "flags of controls": _point(flags=["\x1b[31m"]),
    "settings of lists": _point(settings={"attacks": 3, "steps": ["x"]}),
    "the worst case of nothing": _point(attack="worst case", settings={}),
    "one more field": _point(more=1),
    "draws of texts": _point(draws=["x"]),
    "10^400 images": _point(total=10**400),
}


def _json_changed(file: str, change: Callable[[Any], Any], folder: Path) -> None:
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_bytes(as_json(value))


def _bytes(file: str, content: bytes, folder: Path) -> None:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)


def _lines(change: Callable[[Any], Any], folder: Path) -> None:
    """Three epochs of metrics, the last of them changed: a spread needs three."""
    row = json.loads((folder / METRICS).read_text().splitlines()[0])
    rows = [{**row, "epoch": k, "train_loss": 2.0 - k * k / 9} for k in range(3)]
    change(rows[-1])
    (folder / METRICS).write_bytes(b"".join(as_json(row) + b"\n" for row in rows))


METRIC_CHANGES: dict[str, Callable[[Any], Any]] = {
    "no loss": lambda r: r.pop("train_loss"),
    "a loss of text": lambda r: r.update(train_loss="x"),
    "a loss that is none": lambda r: r.update(train_loss=None),
    "a loss that is not finite": lambda r: r.update(train_loss=float("nan")),
    "an endless loss": lambda r: r.update(train_loss=1e999),
    "a loss of 10^400": lambda r: r.update(train_loss=10**400),
    "a loss like the one before": lambda r: r.update(train_loss=2.0),
    "a test loss of lists": lambda r: r.update(test_loss=[]),
}


def _study(change: Callable[[Any], Any], folder: Path) -> None:
    """A record where a study expects one."""
    value = json.loads((folder / RECORD).read_text())
    value |= {"study": {"setup": "K4", "preset": "quick"}}
    change(value)
    _bytes(STUDY, as_json(value), folder)


def _broken_study(content: bytes, folder: Path) -> None:
    _bytes(STUDY, content, folder)


def _twice(folder: Path) -> None:
    """Two records of one seed that do not agree."""
    value = json.loads((folder / RECORD).read_text())
    last = {"epoch": 0, "correct": 3, "total": DIGITS}
    value |= {"counts": {"last": last, "best_val": None, "best_test": None}, "audit": None}
    _bytes("again/record.json", as_json(value), folder)


def _pipe(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)


def _loop(file: str, folder: Path) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to(Path(file).name)


def _folder(file: str, folder: Path) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()


def _markers(text: str, folder: Path) -> None:
    (folder / "page.md").write_text(text)


BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
PAGES = {"no markers": "x", "one marker": BEGIN, "the wrong order": f"{END}\n{BEGIN}", "twice": f"{BEGIN}{END}" * 2}


def cases(count: int, seed: int) -> list[Case]:
    """Bad records for ``report``, ``evaluate``, ``show``, ``run`` and ``attack``."""
    fixed = []
    for k, (name, change) in enumerate(CHANGES.items()):
        fixed += [_case(name, RECORD, c, partial(_json_changed, RECORD, change)) for c in (k, k + 2)]
        fixed.append(_case(f"{name}, in a study", STUDY, k, partial(_study, change)))
    for k, (name, content) in enumerate(CONTENTS.items()):
        fixed += [_case(name, file, k, partial(_bytes, file, content)) for file in list(COMMANDS)[k % 2 :: 2]]
    for k, (name, change) in enumerate(POINT_CHANGES.items()):
        fixed += [_case(name, POINTS, c, partial(_json_changed, POINTS, change)) for c in (k, k + 1)]
    for k, (name, change) in enumerate(METRIC_CHANGES.items()):
        fixed += [_case(name, METRICS, c, partial(_lines, change)) for c in (k, k + 1)]
    for k, (name, odd) in enumerate({"a pipe": _pipe, "a link to itself": _loop, "a folder": _folder}.items()):
        fixed += [_case(name, file, k, partial(odd, file)) for file in (RECORD, POINTS, CHECKS, METRICS)]
    fixed.append(
        Case("a folder, evaluated", shlex.split("evaluate run"), ("run",), partial(_folder, RECORD), may_succeed=False)
    )
    fixed.append(_case("two that differ", RECORD, 0, _twice))
    for name, text in PAGES.items():
        command = shlex.split("report . --into page.md")
        fixed.append(Case(f"a page with {name}", command, ("run",), partial(_markers, text), may_succeed=False))
    for line in (
        "report nowhere",
        "report run --into nowhere.md",
        "report pictures --attacks",
        "report nowhere --attacks",
    ):
        fixed.append(Case(line, shlex.split(line), ("run", "pictures"), may_succeed=False))
    fixed.append(
        Case("a control of nobody", shlex.split("report . --attacks --control x"), ("run",), may_succeed=False)
    )
    return fill(fixed, _drawn, count, seed)


def _case(name: str, file: str, k: int, prepare: Callable[[Path], None]) -> Case:
    lines: Sequence[str] = COMMANDS[file]
    line = lines[k % len(lines)]
    total = DIGITS if line.startswith("evaluate") else 20 if line.startswith("attack") else None
    return Case(f"{Path(file).name}, {' '.join(line.split()[:3])}: {name}", shlex.split(line), ("run",), prepare, total)


def _drawn(k: int, chance: random.Random) -> Case:
    file = (RECORD, POINTS, RECORD, CHECKS, RECORD, METRICS, RECORD, STUDY)[k % 8]
    prepare = partial(_damaged if k // 8 % 2 else _odd, file, chance)
    return _case(f"{k}: {'damaged' if k // 8 % 2 else 'odd'}", file, k // 8, prepare)


def _source(file: str, folder: Path) -> bytes:
    if file == STUDY:
        _study(lambda value: None, folder)
    return (folder / file).read_bytes()


def _damaged(file: str, chance: random.Random, folder: Path) -> None:
    _bytes(file, damaged(_source(file, folder), chance), folder)


def _odd(file: str, chance: random.Random, folder: Path) -> None:
    value, _ = changed(json.loads(_source(file, folder)), chance)
    _bytes(file, as_json(value), folder)
