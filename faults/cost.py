"""The cost of a checkpoint, compared with the minute of training before it."""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.runs import WARM, World
from perturblab.records import paths
from perturblab.records.config import TrainConfig
from perturblab.records.markdown import markdown_table
from perturblab.runs import open, train
from perturblab.runs.run import Run
from perturblab.system.terminal import Show

WIDE: dict[str, Any] = {"net_type": "perturb_resnet18", "first_filter_size": 3, "optim_method": "Adam"}
CASES: dict[str, dict[str, Any]] = {
    "lenet, 8 filters": {"net_type": "lenet", "nfilters": 8},
    "perturb_resnet18, 16 filters, Adam": {**WIDE, "nfilters": 16},
    "perturb_resnet18, 128 filters, Adam": {**WIDE, "nfilters": 128},
    "perturb_resnet18, 128 filters, 64 masks, Adam": {**WIDE, "nfilters": 128, "nmasks": 64, "nepochs": 1},
}


def costs(world: World) -> str:
    """Time the saves of runs on colour pictures after 100 epochs."""
    rows = []
    images = _pictures(world.new("pictures"))
    for name, flags in CASES.items():
        folder = world.new("saved")
        config = TrainConfig(**{"dataset_train": str(images), "batch_size": 2, "nepochs": 1, **flags})
        run = open.open_run(config, folder, Show(quiet=True))
        train.execute(run, Show(quiet=True), lambda: True)  # one step, so that Adam has its moments
        run.history.rows = [WARM.model_copy(update={"epoch": epoch}) for epoch in range(100)]
        seconds, busy = (statistics.median(times) for times in zip(*(_timed(run) for _ in range(5)), strict=True))
        sizes = [_size(folder / name) for name in (paths.CHECKPOINT, paths.MASKS)]
        times = [f"{number:.2f}" for number in (seconds, busy, 100 * busy / 60)]
        rows.append([name, *(f"{size:.1f}" for size in sizes), *times])
    header = [
        "run",
        "checkpoint, MB",
        "masks, MB, written once",
        "one save, s",
        "CPU time, s",
        "CPU time, % of 60 s",
    ]
    return markdown_table(header, rows)


def _timed(run: Run) -> tuple[float, float]:
    """Measure the seconds and the processor seconds of a save, including the picture."""
    began, busy = time.monotonic(), time.process_time()
    run.written.epochs = -1
    train.save_run(run)
    return time.monotonic() - began, time.process_time() - busy


def _size(path: Path) -> float:
    return path.stat().st_size / 1e6 if path.exists() else 0.0


def _pictures(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root
