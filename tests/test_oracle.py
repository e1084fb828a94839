"""The oracle of bad input sees every fault; a search that judges by it proves something."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import oracle
from oracle import Ended, fault, run

GOOD = {"argv": ["evaluate", "run", "--json", "--quiet"], "code": 2, "err": "perturblab: error: run is bad; mend it\n"}
SUCCESS = {"code": 0, "err": "", "counted": {10}}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, ""),
        ({"err": "Traceback (most recent call last)\nKeyError: 3\n", "code": 1}, "traceback: KeyError"),
        ({"err": "perturblab: error: no\nand more\n"}, "2 lines on stderr"),
        ({"err": ""}, "0 lines on stderr"),
        ({"err": "perturblab: error: \x1b[31mno\n"}, "control characters"),
        ({"err": "perturblab: error: no; mend it\n"}, "names no flag"),
        ({"err": "perturblab: error: run is bad\n"}, "no remedy"),
        ({"out": "half of it"}, "partial output"),
        ({"code": 1}, "exit code 1"),
        ({"code": None}, "hang"),
        ({"grown": 1 << 40}, "took"),
        ({"changed": ["new"]}, "files were changed: new"),
        ({"changed": ["a/pwned"]}, "code from a file was run"),
        (SUCCESS, "success without a word"),
        ({**SUCCESS, "out": "x", "counted": {9}}, "counted [9] images, expected 10"),
        ({**SUCCESS, "out": "\x1b[31m"}, "control characters"),
        ({**SUCCESS, "out": "x", "changed": ["a.part"]}, "left behind: a.part"),
        ({**SUCCESS, "out": "x"}, ""),
    ],
)
def test_every_fault_is_seen(change: dict[str, Any], text: str) -> None:
    found = fault(Ended(**{**GOOD, **change}), total=10, may_succeed=True, names=["run"])
    assert found.startswith(text)
    assert bool(found) == bool(text)


def test_success_is_a_fault_where_there_can_be_none() -> None:
    assert fault(Ended(["models"], 0, out="x")) == "accepted"


def hang() -> int:
    while True:
        pass


def crash() -> int:
    raise KeyError("a bug")


def write() -> int:
    return Path("new").write_text("x") + 1


def warn() -> int:
    warnings.warn("a warning", stacklevel=1)
    return 2


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (hang, "hang"),
        (crash, "traceback: KeyError: 'a bug'"),
        (lambda: len(bytearray(1 << 30)) * 0, "took 10"),
        (lambda: len(bytearray(1 << 36)), "traceback: MemoryError"),
        (write, "0 lines on stderr"),
        (warn, "1 lines on stderr: 'a warning"),
    ],
)
def test_a_real_command_is_watched(
    command: Callable[[], int], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle.main, "main", lambda *_, **__: command())
    if command is hang:
        monkeypatch.setattr(oracle, "SECONDS", 1)
    ended = run(["models"], tmp_path)
    assert fault(ended).startswith(text)
    assert ended.changed == (["new"] if command is write else [])
