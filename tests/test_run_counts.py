"""Counts of a run: which test images are right, which epoch is best, and that evaluating again says the same."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attack_runs import TEST
from perturblab import data
from perturblab.errors import UserError
from perturblab.models import Task, build
from perturblab.runs import open
from perturblab.runs.evaluate import evaluate_run
from perturblab.runs.run import Run
from perturblab.training import evaluate
from run_folders import QUIET, Finished, executed, metrics, record_of, weights
from told import in_order

# --- the counts ------------------------------------------------------------------------------------------------------


def counted(folder: Path) -> tuple[int, Tensor]:
    """Right answers of the saved weights, in a net of another seed and with the pixels normalised by hand."""
    options = {"nfilters": 8, "act": "rrelu", "level": 0.5, "first_filter_size": 3}
    model = build("lenet", task=Task(10, 1, (8, 8)), seed=77, **options).eval()
    model.load_state_dict(weights(folder))
    source = data.load("digits")
    pixels = source.train.images.double() / 255
    mean, std = pixels.mean(), pixels.std(correction=0)
    right = []
    with torch.no_grad():
        for image, label in zip(source.test.images, source.test.labels, strict=True):
            logits = model(((image.double() / 255 - mean) / std).float().unsqueeze(0))
            right.append(int(logits.argmax()) == int(label))
    return sum(right), torch.tensor(right)


def test_the_last_count_equals_an_independent_evaluation(finished: Finished) -> None:
    last = finished.record.counts.last
    correct, right = counted(finished.folder)
    assert (last.epoch, last.correct, last.total) == (12, correct, TEST)
    assert 2 * TEST / 10 < correct < TEST, "the net has learnt something, and not everything"
    assert torch.equal(finished.run.history.correct[-1], right)
    assert len(finished.run.history.correct) == 13


def test_the_audit_in_the_record_is_computed_from_the_stored_answers(finished: Finished) -> None:
    rows, value = metrics(finished.folder), 0.0
    for row, correct in zip(rows, finished.run.history.correct, strict=True):
        want = evaluate.audit(correct, 64, start=value)
        value = float(want["smoothed"])
        assert {name: row[name] for name in want} == want
        assert row["exact"] == 100 * row["correct"] / TEST
    audit = finished.record.audit
    assert audit is not None
    for have, best in (
        (audit.last, rows[-1]),
        (audit.best_smoothed, max(rows, key=lambda row: row["smoothed"])),
        (audit.best_exact, max(rows, key=lambda row: row["correct"])),
    ):
        assert have.model_dump() == {name: best[name] for name in have.model_dump()}


def test_best_test_says_how_it_was_chosen(finished: Finished) -> None:
    best, rows = finished.record.counts.best_test, metrics(finished.folder)
    assert best is not None
    assert best.selection == "selected on the test set"
    assert best.correct == max(row["correct"] for row in rows)
    assert best.published_rule is not None
    assert best.published_rule.epoch in (11, 12)
    assert best.published_rule.batch_mean == max(row["batch_mean"] for row in rows[11:])
    content = (finished.folder / "record.json").read_text(encoding="utf-8")
    assert "selected on the test set" in content
    assert "epoch index > 10" in content


def test_best_val_is_the_test_count_of_that_epoch(finished: Finished) -> None:
    rows, best = metrics(finished.folder), finished.record.counts.best_val
    highest = max(row["val_accuracy"] for row in rows)
    first = next(row for row in rows if row["val_accuracy"] == highest)
    assert best is not None
    assert (best.epoch, best.correct, best.total) == (first["epoch"], first["correct"], TEST)


@pytest.mark.parametrize(
    ("audit", "val", "test", "best_val", "best_test"),
    [
        (True, [5, 8, 8, 7], [10, 20, 30, 30], (1, 20), (2, 30)),
        (False, [5, 8, 8, 7], [10, 20, 30, 30], (1, 20), None),
        (False, [8, 8, 8, 8], [10, 20, 30, 40], (0, 10), None),
        (False, [0, 0, 0, 0], [10, 20, 30, 40], (0, 10), None),
        (True, [1, 2, 3, 4], [40, 40, 20, 10], (3, 10), (0, 40)),
        (False, None, [10, 20, 30, 5], None, None),
        (True, None, [10, 20, 30, 5], None, (2, 30)),
    ],
)
def test_which_epoch_is_best_on_scripted_answers(
    audit: bool,
    val: list[int] | None,
    test: list[int],
    best_val: tuple[int, int] | None,
    best_test: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The earliest on ties; best_val is counted on test images, and best_test exists with the audit only."""

    def scripted(run: Run, split: data.Split) -> evaluate.Answers:
        right = (test if split is run.images.test else val or [])[run.state.epoch - 1]
        return evaluate.Answers(torch.arange(len(split)) < right, 1.0)

    monkeypatch.setattr(Run, "answers", scripted)
    executed(tmp_path / "run", audit=audit, val_size=10 if val else 0, nepochs=4, train_size=40)
    counts = record_of(tmp_path / "run").counts
    assert (counts.last.epoch, counts.last.correct, counts.last.total) == (3, test[3], TEST)
    assert (counts.best_val and (counts.best_val.epoch, counts.best_val.correct)) == best_val
    assert (counts.best_test and (counts.best_test.epoch, counts.best_test.correct)) == best_test
    assert counts.best_test is None or counts.best_test.published_rule is None, "no epoch has an index above 10"
    assert (record_of(tmp_path / "run").audit is not None) == audit


# --- evaluating a run again ------------------------------------------------------------------------------------------


def test_evaluate_run_gives_the_last_row_of_the_metrics(finished: Finished) -> None:
    row = metrics(finished.folder)[-1]
    result = evaluate_run(finished.folder, QUIET, audited=True)
    assert result.keys() == {"exact", "wilson", "batch_mean", "batch_mean_truncated", "smoothed", "n_batches"}
    assert result["exact"] == {"correct": row["correct"], "total": TEST}
    for name in ("batch_mean", "batch_mean_truncated", "smoothed", "n_batches"):
        assert result[name] == row[name], name
    p, n, z2 = row["correct"] / TEST, TEST, 1.959963984540054**2
    middle, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    want = [100 * (middle - half) / (1 + z2 / n), 100 * (middle + half) / (1 + z2 / n)]
    assert result["wilson"] == pytest.approx(want)
    json.dumps(result, allow_nan=False)


def test_evaluate_run_with_another_batch_and_without_the_audit(finished: Finished) -> None:
    plain = evaluate_run(finished.folder, QUIET)
    assert plain.keys() == {"exact", "wilson"}
    result = evaluate_run(finished.folder, QUIET, audited=True, batch_size=10)
    rows, right = metrics(finished.folder), finished.run.history.correct[-1]
    assert result["exact"] == plain["exact"]
    assert result["n_batches"] == 60
    assert result["batch_mean"] == evaluate.batch_mean(right, 10)
    assert result["smoothed"] == evaluate.smoothed(right, 10, start=rows[-2]["smoothed"])


def test_evaluate_run_leaves_the_folder_as_it_is(finished: Finished) -> None:
    before = {path.name: path.read_bytes() for path in finished.folder.iterdir()}
    evaluate_run(finished.folder, QUIET, audited=True)
    assert {path.name: path.read_bytes() for path in finished.folder.iterdir()} == before


@pytest.mark.parametrize("redraw", ["never", "train", "always"])
def test_evaluate_run_of_a_run_without_validation_and_audit(redraw: str, tmp_path: Path) -> None:
    """Also where every forward draws its masks: the weights must say which ones the count was made with."""
    executed(tmp_path / "run", redraw_masks=redraw)
    row = metrics(tmp_path / "run")[-1]
    result = evaluate_run(tmp_path / "run", QUIET, audited=True)
    assert result["exact"] == {"correct": row["correct"], "total": TEST}
    assert result["n_batches"] == 38


@pytest.mark.parametrize(
    "open_again",
    [lambda folder: open.resume_run(folder, {}, QUIET), lambda folder: evaluate_run(folder, QUIET)],
)
def test_a_folder_that_is_no_run_is_refused(open_again: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=in_order("checkpoint.pt ; folder")):
        open_again(tmp_path)
