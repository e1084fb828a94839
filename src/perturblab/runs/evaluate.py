"""Counts of a run's test images: after an epoch, and again from its weights."""

from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

from perturblab import stats
from perturblab.records import store
from perturblab.records.metrics import Row
from perturblab.records.paths import RunFolder
from perturblab.runs.open import check_ranks, open_trained
from perturblab.runs.run import Run
from perturblab.system.terminal import Show
from perturblab.training import evaluate
from perturblab.training.ranks import ALONE, Ranks


class Evaluation(TypedDict):
    """A new count of a run's test images, as it is printed: accuracies are in percent."""

    exact: dict[str, int]
    wilson: list[float]
    batch_mean: NotRequired[float]
    batch_mean_truncated: NotRequired[float]
    smoothed: NotRequired[float]
    n_batches: NotRequired[float]


def count_test(run: Run, row: Row) -> Row:
    """Count the correct test images after an epoch.

    Args:
        run: its net has just been trained for this epoch; with the audit, the answers are added to the run.
        row: the epoch's, without test metrics.

    Returns:
        The row with its test metrics.
    """
    answers = run.answers(run.images.test)
    values = {"test_loss": answers.loss, "exact": answers.counts.percent, **asdict(answers.counts)}
    if run.config.audit:
        run.history.correct.append(answers.correct)
        values |= evaluate.audit(answers.correct, run.config.batch_size, start=_carried(run.history.rows[: row.epoch]))
    return Row.model_validate(row.values() | values)


def _carried(rows: list[Row]) -> float:
    """Give the smoothed value that the last of these epochs leaves to the next."""
    return rows[-1].smoothed or 0.0 if rows else 0.0


def evaluate_run(
    folder: Path,
    show: Show,
    *,
    audited: bool = False,
    batch_size: int | None = None,
    dataroot: str | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Count a run's correct test images again, from its weights.

    Args:
        folder: the run's folder.
        show: where progress goes.
        audited: add the published metrics, computed from the same answers.
        batch_size: nominal test batch of the audit; the run's by default.
        dataroot: where the data set is looked for first; the run's by default.
        ranks: this process among those that count.

    Returns:
        ``exact`` {correct, total}, ``wilson`` [low, high] in percent; audited, also ``batch_mean``,
        ``batch_mean_truncated``, ``smoothed`` (percent; it starts from what the run's epoch before left) and
        ``n_batches``.

    Raises:
        UserError: no such run, other test images than the run's, weights of another net.
    """
    with ranks.agreed():
        run = open_trained(folder, show, {} if dataroot is None else {"dataroot": dataroot}, ranks)
        # The weights are those of the last finished epoch count, which a longer run that was stopped has gone beyond.
        finished = store.load_record(RunFolder(folder).record).counts.last.epoch
    check_ranks(run)
    answers = run.answers(run.images.test)
    counts = answers.counts
    result: Evaluation = {"exact": asdict(counts), "wilson": list(stats.wilson(counts.correct, counts.total))}
    if audited:
        metrics = evaluate.audit(
            answers.correct, batch_size or run.config.batch_size, start=_carried(run.history.rows[:finished])
        )
        result |= {
            "batch_mean": metrics["batch_mean"],
            "batch_mean_truncated": metrics["batch_mean_truncated"],
            "smoothed": metrics["smoothed"],
            "n_batches": metrics["n_batches"],
        }
    return result
