"""Runs with a defence, small enough for a test."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perturblab.records.config import TrainConfig, validated
from perturblab.runs import open, train
from perturblab.runs.run import Run
from run_folders import QUIET

# 120 images at 32 are three steps and one of 24.
SMALL: dict[str, Any] = {"train_size": 120, "batch_size": 32, "nepochs": 1, "learning_rate": 0.02}
PAPER: dict[str, Any] = {"net_type": "batchout_mnist", "nfilters": 8, "padding": 2}
NORMED: dict[str, Any] = {"net_type": "lenet", "nfilters": 4}  # with batch norm, which a forward pass moves
ATTACKED = ("fgsm", "fgsm-half", "pgd")


def config(**given: Any) -> TrainConfig:
    net = {} if "net_type" in given else PAPER
    return validated(TrainConfig, {"dataset_train": "digits", **net, **SMALL, **given})


def opened(folder: Path, **given: Any) -> Run:
    return open.open_run(config(**given), folder, QUIET)


def executed(folder: Path, **given: Any) -> Run:
    run = opened(folder, **given)
    assert train.execute(run, QUIET) is not None
    return run


def recorded(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return content["config"]


@dataclass
class Seen:
    """The inputs of each step: prepared images, the images that the net was trained on, labels, and its weights."""

    clean: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    before: list[dict[str, Tensor]] = field(default_factory=list)


def watched(run: Run) -> Seen:
    """Execute a run and look at every step."""
    seen, prepare, during = Seen(), run.augmented, run.during
    last: list[Tensor] = []
    run.model.register_forward_pre_hook(lambda model, args: last.append(args[0].clone()))

    def watch_images(images: Tensor, generator: torch.Generator) -> Tensor:
        x = prepare(images, generator)
        seen.clean.append(x.clone())
        seen.before.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return x

    def watch_labels(x: Tensor, y: Tensor, generator: torch.Generator) -> Any:
        seen.labels.append(y.clone())
        return during(x, y, generator)

    def after_step() -> bool:
        seen.given.append(last[-1])
        last.clear()
        return False

    run.augmented, run.during = watch_images, watch_labels  # type: ignore[method-assign]
    assert train.execute(run, QUIET, after_step) is not None
    return seen


def in_pixels(run: Run, x: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1)
        for v in (run.built.preparation.mean, run.built.preparation.std)
    )
    return x.double() * std + mean


def batch(run: Run, count: int = 32) -> tuple[Tensor, Tensor]:
    return run.normalised(run.training.images[:count]), run.training.labels[:count]
