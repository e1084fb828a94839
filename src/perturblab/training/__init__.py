"""Training and exact evaluation: the loop, its schedules, several ranks, adversarial training.

* `loop`: the recipe, and `train`, which yields after every epoch. `schedules`: learning rates of the published codes.
* `evaluate`: exact answers, and the audit of the published metrics.
* `adversarial`: the attacks that training images may meet.
* `ranks`: one run on several processes.
"""

from perturblab.training.adversarial import Adversary, adversarial_images
from perturblab.training.evaluate import Answers, Counts, answers, audit, batch_mean, published_best, smoothed
from perturblab.training.loop import (
    Epoch,
    Hooks,
    Recipe,
    State,
    make_optimizer,
    start,
    steps_per_epoch,
    train,
)
from perturblab.training.schedules import lr_factor

__all__ = [
    "Adversary",
    "Answers",
    "Counts",
    "Epoch",
    "Hooks",
    "Recipe",
    "State",
    "adversarial_images",
    "answers",
    "audit",
    "batch_mean",
    "lr_factor",
    "make_optimizer",
    "published_best",
    "smoothed",
    "start",
    "steps_per_epoch",
    "train",
]
