"""A short version of `make faults`: every kind of fault, a few of each, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults.soak import GROWTH, Sample, complaints
from faults.table import Row, join_rows, markdown

from told import in_order

ROOT = Path(__file__).parents[1]


def test_a_few_of_every_fault() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "faults", "--short", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| 0 \|", done.stdout, re.MULTILINE)
    tried = {name: int(count) for name, count, _, _ in rows}
    skipped = re.findall(r"^\| (.+?) \| NOT TRIED: (.+?) \|", done.stdout, re.MULTILINE)
    assert sum(count for name, count in tried.items() if name.startswith("SIGKILL")) == 6
    for name in (
        "SIGTERM",
        "SIGINT",
        "no room",
        "the run's folder",
        "--resume",
        "half-copied",
        "clock",
        "memory",
        "two",
    ):
        assert any(name in row and count >= 2 for row, count in tried.items()), name
    staged = {name for name in tried if name.startswith(("disk full", "read-only"))}
    if os.geteuid() == 0:
        assert len(staged) == 3 or skipped
    if skipped:
        pytest.skip(f"NOT TRIED: {'; '.join(f'{name}: {reason}' for name, reason in skipped)}; the others passed")


def test_a_loss_is_counted_and_told() -> None:
    row, same, skipped = Row("a fault"), Row("a fault"), Row("another", skipped="only root may")
    row.judge([])
    row.judge([], told=True)
    same.judge(["other weights", "another record"])
    table = markdown(join_rows([row, same, skipped]))
    assert "| a fault | 3 | 1 | 1 | 1 |  |" in table
    assert "| another | NOT TRIED: only root may |" in table
    assert "LOST, a fault: other weights; another record" in table


def test_what_grows_is_not_flat() -> None:
    flat = [Sample(done, float(done), 300.0, 7, 0) for done in range(0, 101, 10)]
    assert complaints(flat) == []
    for megabytes, files, tokens in ((301 + GROWTH, 7, "memory 41 MB"), (300.0, 70, "files 7 70")):
        (complaint,) = complaints([*flat, Sample(110, 110.0, megabytes, files, 0)])
        assert re.search(in_order(tokens), complaint)
