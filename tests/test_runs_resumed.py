"""Runs that are stopped, crash or go on: the result is that of a run without a stop, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perturblab.errors import UserError
from perturblab.records.paths import PREVIOUS
from perturblab.runs import checkpoint, evaluate, open, train
from perturblab.system import files
from run_folders import AUGMENTED, QUIET, executed, metrics, opened, record_of, results, same, untimed, weights
from told import in_order

PAPER: dict[str, Any] = {"net_type": "batchout_mnist", "nfilters": 8, "padding": 2, "act": None}
# 60 images at 16 are 4 steps an epoch, the last one ragged, and 3 under code or, which drops it.
KINDS: dict[str, dict[str, Any]] = {
    "SGD, dropout, audit": {"audit": True, "val_size": 10, "train_size": 70},
    "Adam, code or": {"net_type": "noiseresnet18", "code": "or", "act": None, "nfilters": 3, "audit": True},
    "augmented": AUGMENTED,
    "redrawn, one-cycle": {"redraw_masks": "train", "optimizer_schedule": "onecycle"},
    "BatchOut": PAPER
    | {"defence": "batchout", "batchout_partners": "different-class", "batchout_rows": "random", "audit": True}
    | {"batchout_eta": "U[0,0.4]", "batchout_eta_per": "image", "batchout_shared": "partners"},
    "noise": {"defence": "batchout", "batchout_partners": "noise"},
    "fgsm-half": PAPER | {"defence": "fgsm-half", "defence_mode": "train"},
    "pgd": {"defence": "pgd", "defence_steps": 2, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Callable[[str], Path]:
    """The folder of the uninterrupted run of a kind; made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("straight"), {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = executed(root / str(len(made)), **settings(kind, pictures)).folder
        return made[kind]

    return folder


def settings(kind: str, pictures: Path) -> dict[str, Any]:
    return KINDS[kind] | ({"dataset_train": str(pictures)} if kind == "augmented" else {})


def after(steps: int) -> Callable[[], bool]:
    """A stop that is asked for after so many steps."""
    made = iter(range(1, steps))
    return lambda: next(made, None) is None


def assert_same_run(folder: Path, want: Path) -> None:
    files, wanted = ({path.name for path in place.iterdir()} - {PREVIOUS} for place in (folder, want))
    assert files == wanted
    assert same(weights(folder), weights(want))
    assert untimed(metrics(folder)) == untimed(metrics(want))
    assert results(folder) == results(want)
    answers, wanted = (torch.load(path / "checkpoint.pt", weights_only=True)["correct"] for path in (folder, want))
    assert len(answers) == len(wanted)
    assert all(map(torch.equal, answers, wanted)), "the audited answers of the epochs before the stop"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 4, 6], ids="after {}".format)
def test_interrupted_and_resumed_equals_uninterrupted(
    kind: str, steps: int, straight: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    run = opened(tmp_path / "run", **settings(kind, pictures))
    assert train.execute(run, QUIET, after(steps)) is None
    assert not (tmp_path / "run" / "record.json").exists()
    resumed = open.resume_run(tmp_path / "run", {}, QUIET)
    assert resumed.state.epoch * resumed.steps + resumed.state.step == steps
    assert train.execute(resumed, QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


def test_stopped_at_every_step(straight: Callable[[str], Path], tmp_path: Path) -> None:
    kind = next(iter(KINDS))
    run = opened(tmp_path / "run", **KINDS[kind])
    for _ in range(11):
        assert train.execute(run, QUIET, after(1)) is None
        run = open.resume_run(tmp_path / "run", {}, QUIET)
    assert train.execute(run, QUIET, after(1)) is None, "the last step is done, the last epoch not yet counted"
    assert train.execute(open.resume_run(tmp_path / "run", {}, QUIET), QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_a_crash_loses_only_what_came_after_the_last_checkpoint(
    steps: int, straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SAVE_EVERY", -1.0)  # a checkpoint after every step
    kind, asked = next(iter(KINDS)), after(steps)

    def crash() -> bool:
        if asked():
            raise ZeroDivisionError("crash")
        return False

    with pytest.raises(ZeroDivisionError, match="crash"):
        train.execute(opened(tmp_path / "run", **KINDS[kind]), QUIET, crash)
    run = open.resume_run(tmp_path / "run", {}, QUIET)
    assert run.state.epoch * run.steps + run.state.step == steps
    assert train.execute(run, QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


def test_a_finished_run_goes_on_to_more_epochs(straight: Callable[[str], Path], tmp_path: Path) -> None:
    kind = next(iter(KINDS))
    executed(tmp_path / "run", **KINDS[kind], nepochs=1)
    run = open.resume_run(tmp_path / "run", {"nepochs": 3}, QUIET)
    assert train.execute(run, QUIET) is not None
    assert_same_run(tmp_path / "run", straight(kind))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    executed(tmp_path / "run", audit=True)
    want, rows = weights(tmp_path / "run"), metrics(tmp_path / "run")
    record = record_of(tmp_path / "run")
    assert train.execute(open.resume_run(tmp_path / "run", {}, QUIET), QUIET) is not None
    assert same(weights(tmp_path / "run"), want)
    assert metrics(tmp_path / "run") == rows
    assert record_of(tmp_path / "run") == record


@pytest.mark.parametrize("audit", [False, True], ids=["plain", "audit"])
def test_fewer_epochs_than_begun_are_refused(audit: bool, tmp_path: Path) -> None:
    """The weights have had a step of the second epoch: they are no result of a run of one epoch."""
    train.execute(opened(tmp_path / "run", audit=audit), QUIET, after(5))
    with pytest.raises(UserError, match="nepochs"):
        train.execute(open.resume_run(tmp_path / "run", {"nepochs": 1}, QUIET), QUIET)
    assert not (tmp_path / "run" / "record.json").exists()


def test_fewer_epochs_are_taken_where_they_are_just_done(tmp_path: Path) -> None:
    train.execute(opened(tmp_path / "run"), QUIET, after(4))
    assert train.execute(open.resume_run(tmp_path / "run", {"nepochs": 1}, QUIET), QUIET) is not None
    assert_same_run(tmp_path / "run", executed(tmp_path / "one", nepochs=1).folder)


def test_weights_and_metrics_are_not_mixed_when_a_longer_run_is_stopped(tmp_path: Path) -> None:
    """Whichever epoch the weights are of, every metric of `evaluate --audit` is that epoch's."""
    folder = tmp_path / "run"
    executed(folder, audit=True, nepochs=2, batch_size=60, train_size=120)  # 9 full test batches: the start still shows
    train.execute(open.resume_run(folder, {"nepochs": 5}, QUIET), QUIET, after(5))
    rows = metrics(folder)
    assert len(rows) == 4
    result = evaluate.evaluate_run(folder, QUIET, audited=True)
    names = ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches")
    have = (result["exact"]["correct"], *(result[name] for name in names))
    assert have in [(row["correct"], *(row[name] for name in names)) for row in rows]


def test_other_images_than_the_run_was_started_with_are_refused(tmp_path: Path, pictures: Path) -> None:
    executed(tmp_path / "run", dataset_train=str(pictures), train_size=None, nepochs=1)
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    saved["hashes"]["test"] = "0" * 64
    del saved["digest"]
    torch.save({**saved, "digest": checkpoint.digest(saved)}, tmp_path / "run" / "checkpoint.pt")
    for again in (
        lambda: open.resume_run(tmp_path / "run", {}, QUIET),
        lambda: evaluate.evaluate_run(tmp_path / "run", QUIET),
    ):
        with pytest.raises(UserError, match=in_order("test images pets ; --dataroot")):
            again()
