"""The harness of bad input, short: 25 cases of each kind in a process of its own; and its parts can fail."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.case import Case
from faults.forked import Ended
from faults.judge import fault
from faults.messages import messages, reached

ROOT = Path(__file__).parents[1]
CASES = 25


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bad") / "outcome.json"
    command = [sys.executable, "-m", "faults.bad_input", "--cases", str(CASES), "--json", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert path.is_file(), done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_no_bad_input_does_harm(outcome: dict[str, Any]) -> None:
    assert {kind: tally["faults"] for kind, tally in outcome.items() if tally["faults"]} == {}


def test_every_kind_has_its_cases_and_most_are_refused(outcome: dict[str, Any]) -> None:
    assert len(outcome) == 8
    for kind, tally in outcome.items():
        assert tally["refused"] + tally["succeeded"] == CASES, kind
        assert tally["refused"] > CASES // 3, kind


GOOD = {"code": 2, "signal": 0, "out": "", "err": "perturblab: error: no\n", "raised": [], "grown": 0}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"err": "Traceback (most recent call last)\nKeyError: 3\n", "code": 1}, "traceback: KeyError"),
        ({"err": "perturblab: error: no\nand more\n"}, "2 lines on stderr"),
        ({"err": ""}, "0 lines on stderr"),
        ({"err": "perturblab: error: \x1b[31mno\n"}, "control characters"),
        ({"out": "half of it"}, "partial output"),
        ({"code": 1}, "exit code 1"),
        ({"code": None, "signal": 14}, "hang"),
        ({"code": None, "signal": 11}, "killed by SIGSEGV"),
        ({"grown": 1 << 40}, "took"),
        ({"after": {"new": (3, 4, 5)}}, "files were changed: new"),
        ({"after": {"a/pwned": True}}, "code from a file was run"),
        ({"code": 0, "err": ""}, "success without a word"),
        ({"code": 0, "err": "", "out": '{"exact": {"total": 9}}'}, "counted [9] images, expected 10"),
        ({"code": 0, "err": "", "out": '{"exact": {"total": 10}}'}, ""),
    ],
)
def test_the_judge_sees_every_fault(change: dict[str, Any], text: str) -> None:
    case = Case("x", ["evaluate", "run", "--json", "--quiet"], total=10)
    ended = Ended(**{**GOOD, "before": {}, "after": {}, **change})
    assert fault(case, ended).startswith(text)
    assert bool(fault(case, ended)) == bool(text)


def test_success_is_a_fault_where_there_can_be_none() -> None:
    case = Case("x", ["models"], may_succeed=False)
    assert fault(case, Ended(**{**GOOD, "code": 0, "out": "x", "before": {}, "after": {}})) == "accepted"


def test_the_document_has_every_message_of_today_and_no_other() -> None:
    lines = (ROOT / "docs/bad-input.md").read_text().splitlines()
    written = [line for line in lines if line.startswith("| `")]
    assert len(written) == len(messages())
    for line, message in zip(written, messages(), strict=True):
        assert line.startswith(f"| {message.cell} | "), "say python -m faults.bad_input --cases 240"


def test_messages_are_found_where_they_are_raised() -> None:
    found = messages()
    assert len(found) > 150
    (unreadable,) = [m for m in found if m.file == "config_file.py" and "has more than" in m.text]
    source = ROOT / "src/perturblab" / unreadable.file
    assert "raise UserError" in source.read_text().splitlines()[unreadable.first - 1]
    case = {(str(source.resolve()), unreadable.first): "a case"}
    assert reached(found, case) == {unreadable: "a case"}
