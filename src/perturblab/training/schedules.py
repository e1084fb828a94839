"""Learning-rate schedules: the published codes epoch by epoch, cosine and one-cycle."""

import math

from perturblab.records.choices import Schedule, check_choice

# The published functions test `epoch + 1 >= threshold`: the change comes one 0-based epoch before the number in the
# code. Each entry: factor at every threshold, thresholds as written in the code.
_STEPS: dict[tuple[str, str], tuple[float, tuple[int, ...]]] = {
    ("or", "CIFAR10"): (0.1, (60, 90, 120)),
    ("kl", "CIFAR10"): (0.2, (60, 90, 120, 160)),
    ("up", "CIFAR10"): (0.2, (150, 250, 300, 350, 400)),
    **{(code, "CIFAR100"): (0.1, (80, 120, 160)) for code in ("or", "kl", "up")},
    ("or", "MNIST"): (0.1, (80, 120, 160)),
    ("kl", "MNIST"): (0.2, (30, 60, 90)),
    ("up", "MNIST"): (0.2, (30, 60, 90)),
}

# BatchOut's MNIST recipe: 1e-2, then 1e-3 after epoch index 4, then 1e-5 after index 10.
_BATCHOUT = ((11, 1e-3), (5, 1e-1), (0, 1.0))

_WARM_UP = 0.3
_START, _END = 1 / 25, 1 / 25e4


def lr_factor(schedule: str, dataset: str, epoch: int, nepochs: int, step: int = 0, steps: int = 1) -> float:
    """Say by what the base learning rate is multiplied.

    Args:
        schedule: one of `perturblab.records.choices.Schedule`.
        dataset: recognised name of the training set; the published schedules depend on it, and are constant on the
            sets that the published codes do not name.
        epoch: 0-based.
        nepochs: epochs of the whole run; read by cosine and one-cycle.
        step: 0-based step in the epoch; read by cosine and one-cycle.
        steps: steps in an epoch.

    Raises:
        ValueError: no schedule has that name.

    Reference:
        learning_rate() in juefeix/pnn.pytorch train.py, michaelklachko/pnn.pytorch main.py and
        juefeix/pnn.pytorch.update main.py; "batchout": github.com/Hrushikesh-github/BatchOut, batchout_mnist.ipynb;
        one-cycle: Smith and Topin, 1708.07120, with PyTorch's constants.
    """
    check_choice("optimizer_schedule", schedule, Schedule)
    done = (epoch * steps + step) / (nepochs * steps)
    if schedule == "cosine":
        return _cosine(1.0, 0.0, done)
    if schedule == "onecycle":
        return _onecycle(epoch * steps + step, nepochs * steps)
    if schedule == "batchout":
        return next(factor for first, factor in _BATCHOUT if epoch >= first)
    factor, thresholds = _STEPS.get((schedule, dataset), (1.0, ()))
    return float(factor ** sum(epoch + 1 >= threshold for threshold in thresholds))


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _onecycle(step: int, total: int) -> float:
    """PyTorch's form: the peak lies at step 0.3 * total - 1, the end at the last step."""
    peak, last = _WARM_UP * total - 1, total - 1
    if step <= peak:
        return _cosine(_START, 1.0, step / peak if peak else 0.0)
    return _cosine(1.0, _END, (step - peak) / (last - peak))
