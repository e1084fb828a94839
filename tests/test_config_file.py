"""Flags from a YAML file: as if they had been typed, and nothing in the file is ever made into an object."""

import json
import shlex
from pathlib import Path

import pytest

from perturblab.cli import arguments, main
from perturblab.cli.config_file import flags_in
from perturblab.records.config import TrainConfig, validated

TINY = """\
net_type: lenet
dataset-train: digits
nfilters: 2
nepochs: 1
train_size: 20
batch-size: 10
lr: 1e-3
classes: [0, 1, 2]
compile: off
audit: yes
seed: null
quiet: true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(TINY)
    return tmp_path / "a.yaml"


def test_values_are_what_would_be_typed(file: Path) -> None:
    config = validated(TrainConfig, dict(flags_in(file, TrainConfig)))
    typed = "--net_type lenet --dataset-train digits --nfilters 2 --nepochs 1 --train_size 20 --batch-size 10 --lr 1e-3"
    args = arguments.parse(
        main._parser(), ["train", *shlex.split(typed), *shlex.split("--classes 0,1,2 --compile off --audit")]
    )
    same = validated(TrainConfig, {**arguments.select_fields(args, TrainConfig), "quiet": True})
    assert config == same  # YAML 1.1 would have read off as no, and 1e-3 as a text


def test_what_is_typed_wins_and_all_of_it_is_recorded(file: Path, tmp_path: Path) -> None:
    assert (
        main.main(["train", "--config", str(file), "--nfilters", "3", "--no-audit", "--out", str(tmp_path / "run")])
        == 0
    )
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert (record["config"]["nfilters"], record["config"]["audit"], record["config"]["learning_rate"]) == (
        3,
        False,
        1e-3,
    )
    assert "a.yaml" not in json.dumps(record)


def test_a_resumed_run_refuses_what_the_file_changes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    file.write_text("nfilters: 7\n")
    assert main.main(["train", "--config", str(file), "--resume", str(tmp_path / "run")]) == 2
    assert "--nfilters given" in capsys.readouterr().err
