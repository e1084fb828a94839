"""Small runs without a command line: how the tests make them and read their folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from perturblab.records import store
from perturblab.records.config import TrainConfig
from perturblab.records.record import Record
from perturblab.runs import open, train
from perturblab.runs.run import Run
from perturblab.system.terminal import Show

QUIET = Show(quiet=True)
FILES = {
    *("record.json", "metrics.jsonl", "weights.safetensors", "masks.safetensors", "checkpoint.pt", "progress.svg"),
}
TEST = 597  # test images of the bundled digits
NET: dict[str, Any] = {"net_type": "lenet", "nfilters": 4, "act": "rrelu"}
SMALL: dict[str, Any] = {"train_size": 60, "batch_size": 16, "nepochs": 3, "learning_rate": 0.02}
# For the folder of pictures: on them a run augments.
AUGMENTED: dict[str, Any] = {"train_size": None, "batch_size": 5, "nfilters": 3, "optim_method": "RMSprop"}


def config(**given: Any) -> TrainConfig:
    return TrainConfig(**{"dataset_train": "digits", **NET, **SMALL, **given})


def opened(folder: Path, **given: Any) -> Run:
    return open.open_run(config(**given), folder, QUIET)


def executed(folder: Path, **given: Any) -> Run:
    run = opened(folder, **given)
    assert train.execute(run, QUIET) is not None
    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "weights.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows, read as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not a JSON number")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def record_of(folder: Path) -> Record:
    return store.load_record(folder / "record.json")


def results(folder: Path) -> Any:
    """All of a record but how long it took, and that it was made longer."""
    return record_of(folder).model_copy(update={"seconds": 0.0, "parts": []})


@dataclass
class Finished:
    """A run to look at: its folder and what was in memory at its end."""

    folder: Path
    run: Run
    record: Record
