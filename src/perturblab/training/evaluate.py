"""Exact evaluation, and the published metrics recomputed from the same answers.

Accuracy is a whole number of correct images over a whole number of images. `audit` computes beside it what the two
published code bases would have reported for exactly these answers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perturblab.errors import NonFiniteError

_CHUNK = 500  # images a forward pass; the counts do not depend on it


@dataclass(frozen=True)
class Counts:
    """Correct answers out of all images."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100.0 * self.correct / self.total


@dataclass(frozen=True)
class Answers:
    """Answers of a net on a set: `correct`, bool (N,), in the order of the set, and the mean `loss`."""

    correct: Tensor
    loss: float

    @property
    def counts(self) -> Counts:
        """Correct answers and images, as whole numbers."""
        return Counts(int(self.correct.sum()), len(self.correct))


@torch.no_grad()
def answers(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    batch_size: int = _CHUNK,
    part: slice = slice(None),
) -> Answers:
    """Classify every image exactly once.

    Args:
        model: from prepared images to logits (N, classes); in eval mode.
        images: (N, C, H, W).
        labels: int64 (N,).
        prepare: from a batch of ``images`` to the input of the model.
        batch_size: images a forward pass; any number, the answers are the same.
        part: which rows of every such batch are asked about. The others count as wrong and add nothing to the loss, so
            that answers over parts add up to those of one process.

    Raises:
        ValueError: the set is empty, or some module is in training mode.
        NonFiniteError: some logits are not finite; argmax would count them as class 0.
    """
    if not len(images) == len(labels) > 0:
        raise ValueError(f"got {len(images)} images and {len(labels)} labels; expected as many, and at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1; the default is {_CHUNK}")
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"{training[0]} is in training mode; call model.eval() before evaluating")
    correct, loss = torch.zeros(len(labels), dtype=torch.bool), 0.0
    for start in range(0, len(labels), batch_size):
        asked = range(len(labels))[start : start + batch_size][part]
        if not asked:
            continue
        rows = slice(asked.start, asked.stop, asked.step)
        logits, target = model(prepare(images[rows])), labels[rows]
        if not torch.isfinite(logits).all():
            raise NonFiniteError(f"logits of images {asked[0]} to {asked[-1]} are not finite; nothing is counted")
        target = target.to(logits.device)
        correct[rows] = (logits.argmax(1) == target).cpu()
        loss += float(nn.functional.cross_entropy(logits.float(), target, reduction="sum"))
    return Answers(correct, loss / len(labels))


def _per_batch(correct: Tensor, batch_size: int) -> list[tuple[int, int]]:
    """Count (correct, images) in every batch, the short last one included."""
    return [(int(part.sum()), len(part)) for part in correct.split(batch_size)]


def batch_mean(correct: Tensor, batch_size: int, *, truncate: bool = False) -> float:
    """Average 100 * correct / *nominal* batch size over the batches, in percent: the reproduction's metric.

    Args:
        correct: bool (N,), in test order.
        batch_size: nominal size; a short last batch is divided by it all the same.
        truncate: floor each batch, as integer tensors did before PyTorch 1.3.

    Reference:
        michaelklachko/pnn.pytorch, main.py, test().
    """
    values = [100 * k // batch_size if truncate else 100.0 * k / batch_size for k, _ in _per_batch(correct, batch_size)]
    return math.fsum(values) / len(values)


def smoothed(correct: Tensor, batch_size: int, *, start: float = 0.0) -> float:
    """Smooth the accuracies of the test batches, 0.7 * old + 0.3 * batch, in percent: the authors' metric.

    It knows only the last batches in test order. A batch smaller than the nominal size is skipped, and the value is
    never reset: each epoch starts from the last one's.

    Args:
        correct: bool (N,), in test order.
        batch_size: nominal size.
        start: the value left by the epoch before; 0 in the first.

    Reference:
        juefeix/pnn.pytorch, plugins/monitor.py and train.py, test().
    """
    value = start
    for k, size in _per_batch(correct, batch_size):
        if size == batch_size:
            value = 0.7 * value + 0.3 * (100.0 * k / size)
    return value


def audit(correct: Tensor, batch_size: int, *, start: float = 0.0) -> dict[str, float | int]:
    """Compute all the metrics from one set of answers.

    Args:
        correct: bool (N,), in test order.
        batch_size: nominal size of the published test batches.
        start: smoothed value left by the epoch before.

    Returns:
        ``correct``, ``total``, ``n_batches``; in percent ``batch_mean``, ``batch_mean_truncated``, ``smoothed``.
    """
    return {
        "correct": int(correct.sum()),
        "total": len(correct),
        "batch_mean": batch_mean(correct, batch_size),
        "batch_mean_truncated": batch_mean(correct, batch_size, truncate=True),
        "smoothed": smoothed(correct, batch_size, start=start),
        "n_batches": len(_per_batch(correct, batch_size)),
    }


def published_best(batch_means: Sequence[float]) -> int | None:
    """Find the epoch that the reproduction reports: best batch mean on test, epoch index > 10, earliest on ties.

    Args:
        batch_means: one an epoch, in percent, from epoch 0.

    Returns:
        The 0-based epoch, or None when there is none after index 10.
    """
    late = range(11, len(batch_means))
    return max(late, key=lambda epoch: (batch_means[epoch], -epoch), default=None)
