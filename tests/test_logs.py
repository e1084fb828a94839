"""Logs for other tools: what they hold is what metrics.jsonl holds, also after an interruption."""

import csv
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from builders import metrics_row
from perturblab.cli import main
from perturblab.errors import UserError
from perturblab.records import store
from perturblab.records.config import TrainConfig
from perturblab.runs import logs, open, train
from perturblab.system.terminal import Show
from told import in_order

QUIET = Show(quiet=True)
NO_TENSORBOARD = "tensorboard is not installed (extra tb): its event files are not read"
SETTINGS: dict[str, Any] = {
    **{"dataset_train": "digits", "net_type": "lenet", "nfilters": 3, "nthreads": 1},
    **{"train_size": 60, "val_size": 20, "batch_size": 20, "nepochs": 3, "audit": True},
}


def config(*log: str) -> TrainConfig:
    return TrainConfig(**SETTINGS, log=log)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the log with TensorBoard itself."""
    pytest.importorskip("tensorboard", reason=NO_TENSORBOARD)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def agree(folder: Path) -> None:
    """Both logs against metrics.jsonl, every number."""
    want, found = rows(folder), scalars(folder)
    names = {name for row in want for name, value in row.items() if value is not None and name != "epoch"}
    assert found.keys() == {logs.tag(name) for name in names}
    for name in names:
        points = [(row["epoch"], row[name]) for row in want if row.get(name) is not None]
        assert [step for step, _ in found[logs.tag(name)]] == [step for step, _ in points]
        assert [value for _, value in found[logs.tag(name)]] == pytest.approx([value for _, value in points], rel=1e-6)
    written = list(csv.DictReader(io.StringIO((folder / "metrics.csv").read_text())))
    assert [{name: float(v) for name, v in row.items() if v} for row in written] == [
        {name: float(v) for name, v in row.items() if v is not None} for row in want
    ]


def test_both_logs_hold_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=NO_TENSORBOARD)
    record = train.execute(open.open_run(config("csv", "tb"), tmp_path / "run", QUIET), QUIET)
    assert record is not None
    agree(tmp_path / "run")
    assert "log" not in record.config, "what is shown does not make another experiment"


def test_logs_change_nothing_in_the_run(tmp_path: Path) -> None:
    found = []
    for log in ((), ("csv",)):
        folder = tmp_path / f"run{len(log)}"
        record = train.execute(open.open_run(config(*log), folder, QUIET), QUIET)
        assert record is not None
        found.append((record.counts, record.config, (folder / "weights.safetensors").read_bytes()))
        assert (folder / "metrics.csv").exists() is bool(log)
        assert not (folder / "tb").exists()
    assert found[0] == found[1]


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_resumed_run_goes_on_in_its_logs(after: int, tmp_path: Path) -> None:
    """Stopped within an epoch, at its end, or in the next: what is measured twice counts once."""
    pytest.importorskip("tensorboard", reason=NO_TENSORBOARD)
    steps = iter(range(after))
    stopped = train.execute(
        open.open_run(config("csv", "tb"), tmp_path, QUIET), QUIET, lambda: next(steps, None) is None
    )
    assert stopped is None
    assert train.execute(open.resume_run(tmp_path, {}, QUIET), QUIET) is not None
    agree(tmp_path)


def test_what_was_written_behind_the_last_checkpoint_is_written_again(tmp_path: Path) -> None:
    """A process that is killed leaves more in its logs than in its checkpoint."""
    pytest.importorskip("tensorboard", reason=NO_TENSORBOARD)
    epochs = [metrics_row(epoch=epoch, train_loss=float(epoch)) for epoch in range(4)]
    with logs.open_logs(tmp_path, ("csv", "tb"), []) as add:
        for row in epochs[:3]:
            add(row)
    time.sleep(1.1)  # the names of event files hold whole seconds, and are read in their order
    with logs.open_logs(tmp_path, ("csv", "tb"), epochs[:1]) as add:
        for row in epochs[1:]:
            add(row.model_copy(update={"train_loss": row.train_loss + 10}))
    assert scalars(tmp_path)["train/loss"] == [(0, 0.0), (1, 11.0), (2, 12.0), (3, 13.0)]
    written = csv.DictReader(io.StringIO((tmp_path / "metrics.csv").read_text()))
    assert [(row["epoch"], row["train_loss"]) for row in written] == [
        ("0", "0.0"),
        ("1", "11.0"),
        ("2", "12.0"),
        ("3", "13.0"),
    ]


def test_rows_with_different_keys_keep_their_columns() -> None:
    first, second = csv.DictReader(io.StringIO(logs.csv_text([metrics_row(), metrics_row(epoch=1, exact=2.5)])))
    assert list(first) == list(second) == [*metrics_row().values(), "exact"]
    assert (first["epoch"], first["val_loss"], first["exact"]) == ("0", "", "")
    assert (second["epoch"], second["val_loss"], second["exact"]) == ("1", "", "2.5")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("train_loss", "train/loss"),
        ("val_accuracy", "validation/accuracy"),
        ("test_loss", "test/loss"),
        ("lr", "run/lr"),
        ("images_per_second", "run/images_per_second"),
        ("exact", "test/exact"),
        ("batch_mean_truncated", "test/batch_mean_truncated"),
    ],
)
def test_tags_are_grouped(name: str, want: str) -> None:
    assert logs.tag(name) == want


def test_a_missing_tensorboard_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = f"train --dataset-train nowhere --net-type lenet --log csv,tb --out {tmp_path / 'run'}"
    assert main.main(line.split()) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(
        in_order("perturblab: error: --log tb needs tensorboard pip install 'perturblab[tb]'") + "\n", err
    )
    assert not (tmp_path / "run").exists()
    logs.require_logs(["csv"])
    with pytest.raises(UserError, match=in_order("--log tb tensorboard")), logs.open_logs(tmp_path, ["tb"], []):
        pass


def test_a_resumed_run_can_be_given_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "train --dataset-train digits --net-type lenet --nfilters 3 --train-size 40 --nepochs 1 --quiet --nthreads 1"
    assert main.main([*line.split(), "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert main.main(f"train --resume {tmp_path / 'run'} --nepochs 2 --log csv --quiet".split()) == 0
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
    assert store.load_record(tmp_path / "run" / "record.json").counts.last.epoch == 1
    capsys.readouterr()
