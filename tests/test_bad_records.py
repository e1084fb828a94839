"""Bad records and what lies beside them: attack points, masking checks, metrics, records of a study."""

import json
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
from strategies import as_json, changed, damaged, replace, search
from told import in_order

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
def attacked(good: Path, made_once: Callable[..., Path]) -> Path:
    """A good run that was attacked, and its record where a study expects one."""

    def make(folder: Path) -> None:
        shutil.copytree(good / "run", folder / "run")
        attack(folder / "run")
        value = json.loads((folder / RECORD).read_text()) | {"study": {"setup": "K4", "preset": "quick"}}
        (folder / STUDY).parent.mkdir(parents=True)
        (folder / STUDY).write_bytes(as_json(value))

    return made_once("records", make)


def judged(attacked: Path, line: str, prepare: Callable[[Path], Any], tokens: str = "", **expected: Any) -> None:
    """Judge one command after something was done to the files; it must be refused where tokens are expected."""
    total = DIGITS if line.startswith("evaluate") else 20 if line.startswith("attack") else None
    given = {"total": total, "may_succeed": not tokens, "names": NAMES} | expected
    ended = judge(attacked, shlex.split(line), prepare, needs=["run"], **given)
    assert re.search(in_order(tokens), ended.err), ended.err


def write(file: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes(content)


def change(file: str, apply: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def prepare(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        apply(value)
        (folder / file).write_bytes(as_json(value))

    return prepare


DEEP = b'{"version": 1, "counts": 1, "config": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}"
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"version": 1, "counts": {',
    "a list": b"[]",
    "two keys only": b'{"version": 1, "counts": 3}',
    "another version": b'{"version": 2, "counts": {}}',
    "deep brackets": b"[" * 100_000,
    "deep objects": b'{"version": 1, "counts": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5001,
    "deep enough": DEEP,
    "bytes": bytes(range(256)),
    "UTF-16": '{"version": 1, "counts": 3}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"version": 1, "counts": 3}',
    "a number of 5,000 digits": b'{"version": 1, "counts": ' + b"9" * 5000 + b"}",
    "a key that steers a terminal": b'{"version": 1, "counts": {"\\u001b[31m": 1}}',
}


@pytest.mark.parametrize("file", [RECORD, POINTS, METRICS])
@pytest.mark.parametrize("name", CONTENTS)
def test_content_that_is_nothing_of_ours(name: str, file: str, attacked: Path) -> None:
    judged(attacked, COMMANDS[file][0], write(file, CONTENTS[name]), "record.json" * (file == RECORD))


def only_last(**values: Any) -> Callable[[Any], Any]:
    return lambda r: r["counts"].update(last={"epoch": 0, "correct": 5, **values}, best_val=None, best_test=None)


def config(**values: Any) -> Callable[[Any], Any]:
    return lambda r: r["config"].update(values)


# Changes of a record, and what the error tells; "" where a report may show it. The search below draws others.
CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "more right than there are": (lambda r: r["counts"]["last"].update(correct=598), "correct 598 597"),
    "images more than the set has": (only_last(total=598), "total 598 expected data.sizes.test 597"),
    "10^400 images": (only_last(correct=10**400, total=10**400), "record.json"),
    "a path of the machine": (config(net_type="/root/secret"), "expected no path of this machine"),
    "a path inside a text": (
        lambda r: r["environment"].update(compile="see /home/someone/file"),
        "no path of this",
    ),
    "a mask that is not a picture": (lambda r: r.update(masks=[{"layer": "a", "shape": [1], "png": "aGk="}]), "png"),
    "an infinite option": (config(level=1e999), "record.json Infinity repair"),
    "a label of Markdown": (config(label="| x | ![a](http://b) <script> [c](javascript:d)"), ""),
    "a label of controls": (config(label="\x1b[31m\x07\n\r\u202e"), ""),
    "a label of markup": (config(label="[bold red]x[/bold red] [/nothing]"), ""),
    "a label of markers": (config(label="<!-- results:end -->"), ""),
    "a label of half a letter": (config(label="\ud800"), "record.json"),
    "parameters of 4,000 digits": (lambda r: r["parameters"].update(trainable=10**3999), "record.json"),
    "best of another set": (lambda r: r["counts"]["best_test"].update(total=1000), "best_test.total 1000 597"),
    "best after last": (lambda r: r["counts"]["best_val"].update(epoch=5), "best_val.epoch 5"),
}


@pytest.mark.parametrize("file", [RECORD, STUDY])
@pytest.mark.parametrize("name", CHANGES)
def test_senseless_record(name: str, file: str, attacked: Path) -> None:
    apply, tokens = CHANGES[name]
    judged(attacked, COMMANDS[file][len(name) % 2], change(file, apply), tokens)


def point(**values: Any) -> Callable[[Any], Any]:
    return lambda points: points["points"][0].update(values)


POINT_CHANGES: dict[str, Callable[[Any], Any]] = {
    "an attack elsewhere": point(attack="../../pwned"),
    "an attack of Markdown": point(attack="| x |\n<b>"),
    "answers too many": point(answers="f" * 500),
    "more right than there are": point(correct=10**6),
    "an unknown norm": point(norm="l7"),
    "flags of Markdown": point(flags=["| x |", "<script>"]),
    "flags of controls": point(flags=["\x1b[31m"]),
    "settings of lists": point(settings={"attacks": 3, "steps": ["x"]}),
    "the worst case of nothing": point(attack="worst case", settings={}),
}


@pytest.mark.parametrize(
    ("name", "line"),
    [*((name, TABLE) for name in POINT_CHANGES), ("an attack elsewhere", AGAIN), ("an unknown norm", AGAIN)],
)
def test_senseless_points_of_an_attack(name: str, line: str, attacked: Path) -> None:
    judged(attacked, line, change(POINTS, POINT_CHANGES[name]))


@pytest.mark.parametrize("loss", [None, "x", float("nan"), 1e999, 10**400, 2.0, []], ids=lambda loss: str(loss)[:9])
def test_senseless_loss_in_metrics(loss: Any, attacked: Path) -> None:
    """Change the last of three epochs: a spread needs three."""

    def prepare(folder: Path) -> None:
        row = json.loads((folder / METRICS).read_text().splitlines()[0])
        rows = [{**row, "epoch": k, "train_loss": 2.0 - k * k / 9} for k in range(3)]
        rows[-1]["train_loss"] = loss
        (folder / METRICS).write_bytes(b"".join(as_json(row) + b"\n" for row in rows))

    judged(attacked, f"{TABLE} --control 'lenet, 2 filters, noise'", prepare)


@pytest.mark.parametrize("file", [RECORD, POINTS, CHECKS, METRICS])
@pytest.mark.parametrize("name", ["a folder", "a pipe", "a link to itself"])
def test_odd_file_in_place_of_a_record(name: str, file: str, attacked: Path) -> None:
    judged(attacked, COMMANDS[file][0], lambda folder: replace(folder / file, name))


def test_two_records_of_one_seed_that_differ(attacked: Path) -> None:
    def prepare(folder: Path) -> None:
        value = json.loads((folder / RECORD).read_text()) | {"audit": None}
        only_last(total=DIGITS)(value)
        (folder / "again").mkdir()
        (folder / "again/record.json").write_bytes(as_json(value))

    judged(attacked, "report .", prepare, "two records seed 1 5 62 keep one", names=())


def test_control_of_nobody(attacked: Path) -> None:
    judged(attacked, f"{TABLE} --control x", lambda folder: None, "--control 'x' expected 'lenet, 2 filters")


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
