"""Bad records and what lies beside them: attack points, masking checks, metrics, records of a study."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from good_files import ATTACK, DIGITS, attack
from oracle import judge
from strategies import as_json, changed, damaged, search

RECORD, POINTS, CHECKS = "run/record.json", "run/attacks/fgsm.json", "run/attacks/checks.json"
METRICS, STUDY = "run/metrics.jsonl", "results/quick/K4/seed-1/record.json"
TABLE, AGAIN = "report . --attacks", f"attack run {ATTACK} --json"
COMMANDS = {
    RECORD: ("report .", "report . --markdown", "evaluate run --json", "show K4 --results ."),
    POINTS: (TABLE, AGAIN),
    CHECKS: (TABLE, AGAIN),
    METRICS: (TABLE,),
    STUDY: ("run K4 --dry-run --quiet --results results", "show K4 --results results --json"),
}
NAMES = [*(Path(file).name for file in COMMANDS), "results", "run"]


@pytest.fixture(scope="module")
def attacked(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run that was attacked, and its record where a study expects one."""
    folder = tmp_path_factory.mktemp("attacked")
    shutil.copytree(good / "run", folder / "run")
    attack(folder / "run")
    value = json.loads((folder / RECORD).read_text()) | {"study": {"setup": "K4", "preset": "quick"}}
    (folder / STUDY).parent.mkdir(parents=True)
    (folder / STUDY).write_bytes(as_json(value))
    return folder


def judged(attacked: Path, line: str, prepare: Callable[[Path], Any], pattern: str = "", **expected: Any) -> None:
    """Judge one command after something was done to the files; a pattern forbids success."""
    total = DIGITS if line.startswith("evaluate") else 20 if line.startswith("attack") else None
    given = {"total": total, "may_succeed": not pattern, "names": NAMES} | expected
    ended = judge(attacked, shlex.split(line), prepare, needs=["run"], **given)
    assert re.search(pattern, ended.err), ended.err


def write(file: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes(content)


def change(file: str, apply: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def prepare(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        apply(value)
        (folder / file).write_bytes(as_json(value))

    return prepare


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a text": b"hello",
    "half": b'{"version": 1, "counts": {',
    "a list": b"[]",
    "a number": b"3",
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


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for k, name in enumerate(CONTENTS) for file in list(COMMANDS)[k % 2 :: 2]]
)
def test_content_that_is_nothing_of_ours(name: str, file: str, attacked: Path) -> None:
    judged(attacked, COMMANDS[file][0], write(file, CONTENTS[name]))


@pytest.mark.parametrize("name", ["half", "a text", "two keys only", "deep brackets"])
def test_report_names_the_record_and_a_remedy(name: str, attacked: Path) -> None:
    judged(attacked, "report .", write(RECORD, CONTENTS[name]), r"record\.json(:| is no JSON).*(repair|run again)")


def deep(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


def only_last(**values: Any) -> Callable[[Any], Any]:
    return lambda r: r["counts"].update(last={"epoch": 0, "correct": 5, **values}, best_val=None, best_test=None)


def config(**values: Any) -> Callable[[Any], Any]:
    return lambda r: r["config"].update(values)


# Changes of a record, and a pattern for the error; "" where a report may show it.
CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "more right than there are": (lambda r: r["counts"]["last"].update(correct=598), "correct"),
    "images more than the set has": (only_last(total=598), "total is 598, expected data.sizes.test = 597"),
    "no image": (lambda r: r["counts"]["last"].update(total=0, correct=0), "total"),
    "10^400 images": (only_last(correct=10**400, total=10**400), "correct|total"),
    "an epoch of 10^300": (lambda r: r["counts"]["last"].update(epoch=10**300), "epoch"),
    "a path of the machine": (config(net_type="/root/secret"), "expected no path of this machine"),
    "a path inside a text": (lambda r: r["environment"].update(compile="see /home/someone/file"), "no path"),
    "a mask that is no picture": (
        lambda r: r.update(masks=[{"layer": "a", "shape": [1], "png": "aGVsbG8="}]),
        "png|masks",
    ),
    "an infinite option": (config(level=1e999), "Infinity"),
    "a label of Markdown": (config(label="| x | ![a](http://b) <script> [c](javascript:d)"), ""),
    "a label of controls": (config(label="\x1b[31m\x07\n\r\u202e"), ""),
    "a label of markup": (config(label="[bold red]x[/bold red] [/nothing]"), ""),
    "a label of markers": (config(label="<!-- results:end -->"), ""),
    "a label of half a letter": (config(label="\ud800"), "record.json"),
    "a seed of 10^30": (lambda r: r.update(seed=10**30), ""),
    "deep options": (config(deep=deep(900)), "record.json"),
    "a row of another epoch": (lambda r: r["audit"]["last"].update(epoch=7, correct=1), ""),
    "an audit of another count": (lambda r: r["audit"]["last"].update(correct=0), ""),
    "interrupted": (lambda r: r.update(status="interrupted"), ""),
    "a place more": (lambda r: r.update(more=1), "more"),
    "parameters of 4,000 digits": (lambda r: r["parameters"].update(trainable=10**3999), "record.json"),
    "best below last": (lambda r: r["counts"]["best_test"].update(correct=0), "best_test|record"),
    "best of another set": (lambda r: r["counts"]["best_test"].update(total=1000), "best_test.total is 1000"),
    "best after last": (lambda r: r["counts"]["best_val"].update(epoch=5), "best_val.epoch is 5"),
}


@pytest.mark.parametrize("file", [RECORD, STUDY])
@pytest.mark.parametrize("name", CHANGES)
def test_senseless_record(name: str, file: str, attacked: Path) -> None:
    apply, pattern = CHANGES[name]
    judged(attacked, COMMANDS[file][len(name) % 2], change(file, apply), pattern)


def point(**values: Any) -> Callable[[Any], Any]:
    return lambda points: points["points"][0].update(values)


POINT_CHANGES: dict[str, Callable[[Any], Any]] = {
    "another version": lambda p: p.update(version=2),
    "no version": lambda p: p.pop("version"),
    "an attack elsewhere": point(attack="../../pwned"),
    "an attack of Markdown": point(attack="| x |\n<b>"),
    "answers of no digits": point(answers="xyz"),
    "answers too many": point(answers="f" * 500),
    "no answers": point(answers=""),
    "more right than there are": point(correct=10**6),
    "an endless radius": point(eps=float("inf")),
    "a radius below 0": point(eps=-1),
    "an unknown norm": point(norm="l7"),
    "an interval of one": point(wilson=[1]),
    "flags of Markdown": point(flags=["| x |", "<script>"]),
    "flags of controls": point(flags=["\x1b[31m"]),
    "settings of lists": point(settings={"attacks": 3, "steps": ["x"]}),
    "the worst case of nothing": point(attack="worst case", settings={}),
    "one more field": point(more=1),
    "draws of texts": point(draws=["x"]),
    "10^400 images": point(total=10**400),
}


@pytest.mark.parametrize(
    ("name", "line"),
    [*((name, TABLE) for name in POINT_CHANGES), *((name, AGAIN) for name in list(POINT_CHANGES)[::4])],
)
def test_senseless_points_of_an_attack(name: str, line: str, attacked: Path) -> None:
    judged(attacked, line, change(POINTS, POINT_CHANGES[name]))


METRIC_CHANGES: dict[str, Callable[[Any], Any]] = {
    "no loss": lambda r: r.pop("train_loss"),
    "a loss of text": lambda r: r.update(train_loss="x"),
    "a loss of nothing": lambda r: r.update(train_loss=None),
    "a loss that is not finite": lambda r: r.update(train_loss=float("nan")),
    "an endless loss": lambda r: r.update(train_loss=1e999),
    "a loss of 10^400": lambda r: r.update(train_loss=10**400),
    "a loss like the one before": lambda r: r.update(train_loss=2.0),
    "a test loss of lists": lambda r: r.update(test_loss=[]),
}


@pytest.mark.parametrize("name", METRIC_CHANGES)
def test_senseless_metrics(name: str, attacked: Path) -> None:
    """Change the last of three epochs: a spread needs three."""

    def prepare(folder: Path) -> None:
        row = json.loads((folder / METRICS).read_text().splitlines()[0])
        rows = [{**row, "epoch": k, "train_loss": 2.0 - k * k / 9} for k in range(3)]
        METRIC_CHANGES[name](rows[-1])
        (folder / METRICS).write_bytes(b"".join(as_json(row) + b"\n" for row in rows))

    judged(attacked, f"{TABLE} --control 'lenet, 2 filters, noise'", prepare)


ODD_FILES: dict[str, Callable[[Path], Any]] = {
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("file", [RECORD, POINTS, CHECKS, METRICS])
@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_file_in_place_of_a_record(name: str, file: str, attacked: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / file).unlink()
        ODD_FILES[name](folder / file)

    judged(attacked, COMMANDS[file][0], prepare)


def test_two_records_of_one_seed_that_differ(attacked: Path) -> None:
    def prepare(folder: Path) -> None:
        value = json.loads((folder / RECORD).read_text()) | {"audit": None}
        only_last(total=DIGITS)(value)
        (folder / "again").mkdir()
        (folder / "again/record.json").write_bytes(as_json(value))

    judged(attacked, "report .", prepare, "two records of seed 1 with 5 and 62 correct.*keep one", names=())


def test_control_of_nobody(attacked: Path) -> None:
    judged(
        attacked, f"{TABLE} --control x", lambda folder: None, "--control got 'x'; expected one of 'lenet, 2 filters"
    )


FILES = st.sampled_from([RECORD, RECORD, POINTS, CHECKS, METRICS, STUDY])


@search(25)
@given(st.data(), FILES, st.integers(0, 3), st.booleans())
def test_broken_record(attacked: Path, data: st.DataObject, file: str, line: int, by_bytes: bool) -> None:
    """Break the bytes, or one value, of any file beside a run."""
    content = (attacked / file).read_bytes()
    broken = (
        damaged(content)
        if by_bytes
        else changed(json.loads(content.splitlines()[0] if file == METRICS else content)).map(as_json)
    )
    judged(attacked, COMMANDS[file][line % len(COMMANDS[file])], write(file, data.draw(broken)))
