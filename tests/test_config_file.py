"""Flags from a YAML file: as if they had been typed, and nothing in the file is ever made into an object."""

import json
import shlex
from pathlib import Path

import pytest

from perturblab.cli import main
from perturblab.cli.config_file import flags_in
from perturblab.errors import UserError
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
    args = main.parsed(
        main._parser(), ["train", *shlex.split(typed), *shlex.split("--classes 0,1,2 --compile off --audit")]
    )
    same = validated(TrainConfig, {**main.given(args, TrainConfig), "quiet": True})
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


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("nepoch: 3", r"line 1: no flag is called 'nepoch'; did you mean nepochs\?"),
        ("nepochs: 3\nnepochs: 4", r"line 2: nepochs is given twice; drop one"),
        ("lr: 3\nlearning-rate: 4", r"line 2: learning-rate is given twice"),
        ("level: {a: 1}", r"line 1: got a mapping inside; expected plain values"),
        ("classes: [[0]]", r"line 1: got a sequence inside"),
        ("save: !!python/object/apply:os.mkdir [pwned]", r"got the tag '.*python/object/apply:os.mkdir'"),
        ("save: !!python/name:os.mkdir", r"got the tag"),
        ("- nepochs", r"holds no mapping"),
        ("a: [", r"is no YAML \(.* in line 1\)"),
        ("a: " + "[" * 30_000, r"is no YAML"),
        ("# x\n" * 20_000, r"has more than 65536 bytes"),
    ],
)
def test_mistakes(text: str, pattern: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    file.write_text(text)
    with pytest.raises(UserError, match=pattern):
        flags_in(file, TrainConfig)
    assert not (file.parent / "pwned").exists()


def test_names_that_repeat_each_other_are_never_unfolded(file: Path) -> None:
    """Each list names the one before nine times: unfolded, this is 9^40 words."""
    lines = ["a0: &a0 [x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 40))]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match="'a0'"):
        flags_in(file, TrainConfig)


@pytest.mark.parametrize("name", ["nowhere", ".", "/dev/zero"])
def test_only_files_are_read(name: str, file: Path) -> None:
    with pytest.raises(UserError, match="is no file"):
        flags_in(file.parent / name, TrainConfig)
