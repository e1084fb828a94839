"""Checkpoints: whole or recognised as not; the one before stays; a folder has one process at work."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import held_elsewhere
from perturblab.errors import UserError
from perturblab.records.config import TrainConfig
from perturblab.records.paths import PREVIOUS
from perturblab.runs import checkpoint, open, train
from perturblab.runs.checkpoint import digest, load_checkpoint, save_checkpoint
from perturblab.system import files
from perturblab.system.terminal import Show
from told import in_order

QUIET = Show(quiet=True)


def content(number: int = 0) -> dict[str, Any]:
    return {
        "config": {"nepochs": number},
        "hashes": {"train": "ab"},
        "model": {"w": torch.arange(300.0) + number, "n": torch.tensor(number), "flags": torch.tensor([True, False])},
        "state": {"optimizer": {"state": {0: {"step": 1.5}}, "groups": [(0.9, 0.999), None]}, "epoch": number},
        "rows": [{"epoch": 0, "loss": 0.1}],
        "correct": [torch.tensor([True])],
    }


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return digest({k: one[k] for k in content()}) == digest({k: two[k] for k in content()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two checkpoints, one after the other."""
    place = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(place, content(1))
    save_checkpoint(place, content(2))
    return place


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """One bit of a weight."""
    found = bytearray(path.read_bytes())
    at = found.find((torch.arange(300.0) + 2).numpy().tobytes())
    assert at > 0
    found[at + 4 * 150] ^= 1
    path.write_bytes(bytes(found))


def foreign(path: Path) -> None:
    torch.save([1, 2], path)


def gone(path: Path) -> None:
    path.unlink()


SPOILT = [torn, empty, flipped, foreign, gone]


def test_what_was_written_is_read(path: Path) -> None:
    told: list[str] = []
    assert same(load_checkpoint(path, told.append), content(2))
    assert same(load_checkpoint(path.with_name(PREVIOUS)), content(1))
    assert told == []
    assert sorted(file.name for file in path.parent.iterdir()) == [PREVIOUS, "checkpoint.pt"]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_checkpoint_gives_way_to_the_one_before_and_that_is_said(
    spoil: Callable[[Path], None], path: Path
) -> None:
    spoil(path)
    told: list[str] = []
    assert same(load_checkpoint(path, told.append), content(1))
    (text,) = told
    assert re.search(in_order(f"checkpoint.pt using {PREVIOUS}"), text)


@pytest.mark.parametrize("spoil", SPOILT[:-1])
def test_without_a_whole_one_before_it_is_refused(spoil: Callable[[Path], None], path: Path) -> None:
    spoil(path)
    path.with_name(PREVIOUS).write_bytes(b"nothing")
    with pytest.raises(UserError, match=rf"{path}.*(restore|train again)"):
        load_checkpoint(path)
    path.with_name(PREVIOUS).unlink()
    with pytest.raises(UserError, match=rf"{path}.*(restore|train again)"):
        load_checkpoint(path)


def test_what_does_not_read_back_replaces_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(value: Any, place: Any) -> None:
        place.write(b"half of it")

    monkeypatch.setattr(checkpoint.torch, "save", weak)
    with pytest.raises(UserError, match="checkpoint"):
        save_checkpoint(path, content(3))
    assert same(load_checkpoint(path), content(2))
    assert same(load_checkpoint(path.with_name(PREVIOUS)), content(1))
    assert sorted(file.name for file in path.parent.iterdir()) == [PREVIOUS, "checkpoint.pt"]


@pytest.mark.parametrize("version", [checkpoint.VERSION - 1, checkpoint.VERSION + 1, "3", None])
def test_another_version_is_refused_with_the_remedy(path: Path, version: object) -> None:
    path.with_name(PREVIOUS).unlink()
    torch.save(torch.load(path, weights_only=True) | {"version": version}, path)
    with pytest.raises(UserError, match=in_order(f"version {version!r} {checkpoint.VERSION} ; restore")):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(3)},
        {"a": torch.zeros(2, 1)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.tensor([0.0, -0.0])},
        {"b": torch.zeros(2)},
        {"a": [0.0, 0.0]},
        {"a": torch.zeros(2), "b": None},
    ],
    ids=str,
)
def test_a_digest_sees_every_bit_shape_type_and_name(other: dict[str, Any]) -> None:
    assert digest(other) != digest({"a": torch.zeros(2)})
    assert digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)})
    assert digest([1]) != digest([True]) != digest(["1"])


def config(**given: Any) -> TrainConfig:
    settings = {"dataset_train": "digits", "net_type": "lenet", "nfilters": 2, "train_size": 40, "batch_size": 20}
    return TrainConfig(**settings | {"nepochs": 3} | given)


def test_flags_that_set_nothing_may_stand_in_a_checkpoint(tmp_path: Path) -> None:
    held = config().model_dump() | {"save": "saved", "logs": None, "learning_rate_decay": None}
    assert open.saved_config(tmp_path, {"config": held}) == config()
    with pytest.raises(UserError, match=in_order("--other 1")):
        open.saved_config(tmp_path, {"config": held | {"other": 1}})


def test_a_run_goes_on_from_the_one_before_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)  # a checkpoint after every step
    assert train.execute(open.open_run(config(), tmp_path / "whole", QUIET), QUIET) is not None
    steps = iter(range(100))
    begun = open.open_run(config(), tmp_path / "torn", QUIET)
    assert train.execute(begun, QUIET, lambda: next(steps) == 3) is None
    torn(tmp_path / "torn" / "checkpoint.pt")
    again = open.resume_run(tmp_path / "torn", {}, QUIET)
    assert train.execute(again, QUIET) is not None
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "torn")]
    assert weights[0] == weights[1]


def test_a_second_process_on_one_run_is_kept_out(tmp_path: Path) -> None:
    run = open.open_run(config(), tmp_path / "run", QUIET)
    with held_elsewhere(run.folder), pytest.raises(UserError, match=in_order("another process run ; wait")):
        train.execute(run, QUIET)
    assert train.execute(run, QUIET) is not None


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.locked(tmp_path, "busy"):
        raise ZeroDivisionError
    with files.locked(tmp_path, "busy"):
        pass
